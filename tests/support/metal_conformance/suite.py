"""All cases, and the table of the cases that compile and of those with right results."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from metal_conformance import (
    attention,
    checkout,
    chosen_products,
    convolutions,
    elementwise,
    float_products,
    fourier,
    matmul,
    movement,
    norms,
    products,
    reductions,
    rows,
    tensor_attention,
    tensor_gated_delta,
    tensor_products,
    tensor_quantized,
    vector_attention,
)
from metal_conformance.case import Case, Mismatch
from metal_conformance.headers import version
from metal_conformance.sweep import compile_file, compile_header, headers, kernel_files, sweep
from mlx_flash.metal import SimulatorError, mode
from mlx_flash.metal.frontend.errors import CompileError

_FAMILIES = (
    attention,
    vector_attention,
    matmul,
    float_products,
    products,
    chosen_products,
    convolutions,
    fourier,
    rows,
    norms,
    reductions,
    elementwise,
    movement,
    checkout,
    tensor_attention,
    tensor_gated_delta,
    tensor_products,
    tensor_quantized,
)
_WORKERS = 2

# {start of a case's name: report}: errors in MLX's own kernels that checked runs report. There are no others.
REPORTED = {
    "steel attention: D256 float16": "misaligned access",  # a float scratch in an array declared as half
    "steel attention: D256 bfloat16": "misaligned access",
    "convolution: implicit": "out of bounds: 'B'",  # weights beyond the last output, then unused
    "tensor gated delta": "race in threadgroup memory: read of threadgroup variable 'gamma_all'",  # no barrier
    "scan: contiguous_scan": "nothing has written",  # sums of simdgroups that do not exist, which are not used then
}


def cases() -> list[Case]:
    """Every case of every family, in a fixed order."""
    return [case for family in _FAMILIES for case in family.cases()]


def expected_report(case: Case) -> str:
    """The report that a checked run of the case makes; empty if there is none."""
    return next((words for start, words in REPORTED.items() if str(case).startswith(start)), "")


def outcome(case: Case, checked: bool) -> str:
    """Empty if the case conforms, otherwise the reason why it does not."""
    wanted = expected_report(case) if checked else ""
    try:
        with mode("check" if checked else "fast"):
            case.run()
    except SimulatorError as error:
        return "" if wanted and wanted in str(error) else str(error)
    except (CompileError, Mismatch) as error:
        return str(error)
    return f"not reported: {wanted}" if wanted else ""


def table(checked: bool = False, progress: Callable[[str], None] = lambda line: None) -> tuple[str, int]:
    """(the report as text, number of failures). Takes a few minutes if nothing has been compiled yet."""
    found = sweep(headers(), compile_header)
    files = sweep(kernel_files(), compile_file)
    chosen = cases()
    with ThreadPoolExecutor(_WORKERS) as pool:
        outcomes = []
        for case, failure in zip(chosen, pool.map(lambda case: outcome(case, checked), chosen)):
            progress(f"{case}{': ' + failure if failure else ''}")
            outcomes.append((case, failure))
    lines = [f"MLX {version()}, kernel headers of the wheel mlx-metal", ""]
    lines += [f"  {name}: {why}" for name, why in (found | files).items() if why]
    lines += [f"{sum(not why for why in found.values())} of {len(found)} headers compile"]
    if files:
        lines += [f"{sum(not why for why in files.values())} of {len(files)} .metal files of the checkout compile"]
    lines += ["", f"{'family':<24}{'cases':>6}{'right':>7}"]
    for family in dict.fromkeys(case.family for case in chosen):
        mine = [failure for case, failure in outcomes if case.family == family]
        lines.append(f"{family:<24}{len(mine):>6}{sum(not failure for failure in mine):>7}")
    lines.append(f"{'all':<24}{len(outcomes):>6}{sum(not failure for _, failure in outcomes):>7}")
    failed = [f"  {case}: {failure.splitlines()[0]}" for case, failure in outcomes if failure]
    lines += ["", *failed] if failed else []
    return "\n".join(lines), len(failed) + sum(map(bool, (found | files).values()))
