"""The sentences of a report: what happened, to which buffer and index, in which thread and on which line."""

from enum import IntEnum

from ..frontend.errors import SimulatorError
from .buffers import unwritten
from .launch import MAX_REPORTS, Launch, Report


class Kind(IntEnum):
    """Why a launch is reported; the numbers of runtime/layout.h."""

    OUT_OF_BOUNDS = 1
    WRITE_TO_INPUT = 2
    UNINITIALISED = 3
    UNWRITTEN = 4
    THREADGROUP_RACE = 5
    DEVICE_RACE = 6
    BARRIER_EXITED = 7
    BARRIER_DIFFERENT = 8
    INACTIVE_LANES = 9
    THREADGROUP_BYTES = 10
    MISALIGNED = 11
    RAGGED = 12
    STEP_LIMIT = 13
    WILD = 14
    OVERFLOW = 15
    DIVISION = 16
    ARRAY_BOUNDS = 17
    RECURSION = 18
    TENSOR_UNSET = 19
    IN_FLIGHT = 20
    RELEASED_IN_FLIGHT = 21
    RELEASED = 22
    STAGE_HELD = 23
    STAGE_RELEASED_TWICE = 24
    ACCUMULATOR_IN_FLIGHT = 25


_DEVICE, _THREADGROUP, _OTHER = range(3)


def _position(values) -> str:
    return f"({values[0]}, {values[1]}, {values[2]})"


def _place(kernel, pc: int) -> str:
    line = kernel.line_of(pc)
    return f"line {line}: {kernel.line(line)}" if line else "an unknown line"


def _target(kernel, launch: Launch, report: Report) -> str:
    if report.space == _DEVICE:
        buffer = launch.buffers[report.buffer]
        item = max(1, buffer.item)
        index, size = (report.offset - buffer.start) // item, buffer.bytes // item
        return f"'{kernel.buffer_names[report.buffer]}' at index {index} (it has {size} elements of {item} bytes)"
    if report.space == _OTHER:
        return f"address {report.offset:#x}"
    names = kernel.variable_names
    if report.buffer >= len(names):
        return "threadgroup memory outside every variable"
    size = launch.variable_size[report.buffer]
    return f"threadgroup variable '{names[report.buffer]}' at byte {report.offset} (it has {size} bytes)"


def _race(kernel, launch: Launch, report: Report) -> str:
    access = "write" if report.is_write else "read"
    other = "write" if report.other_is_write else "read"
    target = _target(kernel, launch, report)
    who = f"thread {_position(report.other_thread)}"
    if report.kind == Kind.DEVICE_RACE:
        x, y = launch.groups[0], launch.groups[1]
        n = report.value
        if [n % x, n // x % y, n // (x * y)] != list(report.group):
            who = f"threadgroup ({n % x}, {n // x % y}, {n // (x * y)})"
    space = "device" if report.space == _DEVICE else "threadgroup"
    place = _place(kernel, report.other_pc)
    return f"race in {space} memory: {access} of {target} and {other} by {who} at {place} with no barrier between them"


def _lanes(mask: int) -> str:
    return f"{mask & 0xFFFFFFFF:#010x}"


def _asynchronous(kernel, target: str, report: Report) -> str:
    """Of NVIDIA's asynchronous products and the pipelines of their operands: runtime/flights.h."""
    product = f"the product at {_place(kernel, report.other_pc)}, which no wait has retired"
    match report.kind:
        case Kind.IN_FLIGHT:
            return f"write of {target}, which is read by {product}"
        case Kind.RELEASED_IN_FLIGHT:
            return f"release of a block that is read by {product}"
        case Kind.RELEASED:
            return f"read of a block that this simdgroup has released: {target}"
        case Kind.STAGE_HELD:
            return "wait for a block whose stage this simdgroup has not released: its producers wait for ever"
        case Kind.STAGE_RELEASED_TWICE:
            return "release of a block that this simdgroup does not hold"
        case Kind.ACCUMULATOR_IN_FLIGHT:
            return f"the accumulator was changed while it belonged to {product}"
    return f"finding {report.kind}"


def _what(kernel, launch: Launch, report: Report) -> str:
    access = "write" if report.is_write else "read"
    target = _target(kernel, launch, report)
    match report.kind:
        case Kind.OUT_OF_BOUNDS:
            return f"{access} of {report.size} bytes out of bounds: {target}"
        case Kind.WRITE_TO_INPUT:
            return f"write to the input {target}"
        case Kind.UNINITIALISED:
            return f"read of what nothing has written: {target}"
        case Kind.THREADGROUP_RACE | Kind.DEVICE_RACE:
            return _race(kernel, launch, report)
        case Kind.BARRIER_EXITED:
            threads = f"{report.offset} of {report.size} threads of the threadgroup"
            return f"threadgroup_barrier reached by {threads}; the others have returned"
        case Kind.BARRIER_DIFFERENT:
            return f"threads of one threadgroup wait at different barriers, others at {_place(kernel, report.other_pc)}"
        case Kind.INACTIVE_LANES:
            active, needed = _lanes(report.offset), _lanes(report.value)
            return f"simdgroup operation that needs inactive lanes: active {active}, needed {needed}"
        case Kind.THREADGROUP_BYTES:
            return f"{report.offset} bytes of threadgroup memory, more than the {launch.arena_limit} there are"
        case Kind.MISALIGNED:
            return f"misaligned access: {target} is no multiple of the type's alignment"
        case Kind.RAGGED:
            return (
                f"the grid is no multiple of the threadgroup: here only {report.offset} of {report.size} threads "
                "exist, yet they cooperate; round the grid up and test the position"
            )
        case Kind.STEP_LIMIT:
            return (
                f"the kernel does not end: one threadgroup took {launch.step_limit} steps "
                "(mode(..., step_limit=n) allows more)"
            )
        case Kind.RECURSION:
            return "the kernel does not end: a function calls itself until a thread's memory is full"
        case Kind.WILD:
            return f"{access} of {report.size} bytes outside every buffer: {target}"
        case Kind.OVERFLOW:
            return "integer overflow: the value does not fit its 32 bits"
        case Kind.ARRAY_BOUNDS:
            return f"index {report.offset} is outside an array or a vector"
        case Kind.TENSOR_UNSET:
            role = ("left input", "right input", "destination")[report.value]
            return f"element {report.offset} of the {role} of a product of cooperative tensors was never set"
        case Kind.DIVISION:
            return "integer division by zero, or of the least integer by -1"
    return _asynchronous(kernel, target, report)


def describe(kernel, launch: Launch, report: Report) -> str:
    """One finding in one sentence."""
    who = f"thread {_position(report.thread)} of threadgroup {_position(report.group)}"
    return f"{_what(kernel, launch, report)} [kernel '{kernel.name}', {_place(kernel, report.pc)}] by {who}"


def unwritten_outputs(kernel, launch: Launch) -> list[str]:
    """A sentence for every output with elements that no thread wrote."""
    found = []
    for index in range(launch.buffer_count):
        buffer = launch.buffers[index]
        if not buffer.writable:
            continue
        missing = unwritten(buffer)
        if len(missing):
            per_item = max(1, buffer.item >> buffer.shift)
            found.append(
                f"output '{kernel.buffer_names[index]}': {-(-len(missing) // per_item)} of its "
                f"{buffer.bytes // buffer.item} elements "
                f"were never written, the first at index {missing[0] // per_item} [kernel '{kernel.name}']"
            )
    return found


def raise_reports(kernel, launch: Launch, findings: list[str]):
    """Raises SimulatorError if the launch reported anything, or if there are other findings."""
    count = min(launch.report_count, MAX_REPORTS)
    findings = [*(describe(kernel, launch, launch.reports[i]) for i in range(count)), *findings]
    if findings:
        raise SimulatorError("\n".join(findings), findings)
