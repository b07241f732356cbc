"""The words of a report: what happened, to which buffer and index, in which thread, on which line."""

from .launch import Launch, Report

_SPACES = ("device", "threadgroup", "memory")


def _position(values) -> str:
    return f"({values[0]}, {values[1]}, {values[2]})"


def _place(kernel, report: Report, pc: int) -> str:
    line = kernel.line_of(pc)
    return f"line {line}: {kernel.line(line)}" if line else "an unknown line"


def _target(kernel, launch: Launch, report: Report) -> str:
    if report.space == 0:
        buffer = launch.buffers[report.buffer]
        index = (report.offset - buffer.start) // max(1, buffer.item)
        count = buffer.bytes // max(1, buffer.item)
        return f"'{kernel.buffer_names[report.buffer]}' at index {index} (it has {count} elements of {buffer.item} bytes)"
    names = kernel.variable_names
    name = names[report.buffer] if report.buffer < len(names) else "?"
    size = launch.variable_size[report.buffer] if report.buffer < len(names) else 0
    return f"threadgroup variable '{name}' at byte {report.offset} (it has {size} bytes)"


def describe(kernel, launch: Launch, report: Report) -> str:
    """One finding in one sentence."""
    access = "write" if report.is_write else "read"
    where = f"kernel '{kernel.name}', {_place(kernel, report, report.pc)}"
    who = f"thread {_position(report.thread)} of threadgroup {_position(report.group)}"
    match report.kind:
        case 1:
            what = f"{access} of {report.size} bytes out of bounds: {_target(kernel, launch, report)}"
        case 2:
            what = f"write to the input {_target(kernel, launch, report)}"
        case 7:
            what = (
                f"threadgroup_barrier reached by {report.offset} of {report.size} threads of the threadgroup; the others have returned"
            )
        case 8:
            other = _place(kernel, report, report.other_pc)
            what = f"threads of one threadgroup wait at different barriers; others at {other}"
        case 9:
            what = (
                f"simdgroup operation with inactive lanes: active lanes {report.offset & 0xFFFFFFFF:#010x}, "
                f"needed lanes {report.value:#010x}"
            )
        case 10:
            what = f"{report.offset} bytes of threadgroup memory, more than the 32768 there are"
        case _:
            what = f"finding {report.kind} at {_target(kernel, launch, report)}"
    return f"{what} [{where}] by {who}"
