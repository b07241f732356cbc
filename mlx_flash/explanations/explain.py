"""`explain`: backend, table rows, registers and memory of a call, with reasons. Nothing is computed."""

from __future__ import annotations

import inspect
import math
from dataclasses import replace

import mlx.core as mx

from ..autodiff.call import wanted_lse
from ..backends import CAPABILITIES, NAMES, current_backend, default, guard, kernel_backend
from ..backends import backend as backend_of
from ..common.errors import wrong
from ..common.machine import metal_gpu
from ..common.scalars import shown, word
from ..distributed.plan import planned
from ..kernels import mask_map, neural
from ..kernels.config import MIXED, precision_of
from ..kernels.devices import FAMILIES, Family, TunedRow
from ..kernels.kept import heads_at_a_time, turn_of
from ..kernels.lookup import candidates, matrix_rows, tuned_row
from ..kernels.nvidia import thread_registers
from ..kernels.plan import Plan, delta_inside, key_value_kinds, plan_of
from ..kernels.registers import live_bytes, register_demand
from ..kernels.split_kv import decodes, describe
from ..kernels.tile_layers import LAYERS, column_shares, threadgroup_elements
from ..problem.kinds import (
    ACCUMULATORS,
    BACKWARD_MASK,
    BACKWARD_QUERY,
    BACKWARD_QUERY_DELTA,
    COMBINE,
    DECODE,
    DELTA,
    FORWARD,
    KEPT_KINDS,
    SCORES,
    KernelKind,
)
from ..problem.problem import DTYPES, Problem, padded, problem_of
from ..problem.variants import variants_of
from .report import Explanation, KernelExplanation

SHARING = ("group_size", "link", "layout", "method", "flops")
NUMBERS = ("head_dim", "value_dim", "heads", "key_heads", "length", "key_length", "batch", "dtype")
# Arguments of `attention` that choose kernels, without those that `explain` names itself.
OPTIONS = tuple(name for name in inspect.signature(variants_of).parameters if name not in ("heads", "dtype", "causal"))
OPTIONS += ("scratch",)


def explain(
    q: mx.array | None = None,
    k: mx.array | None = None,
    v: mx.array | None = None,
    *,
    scale: float | None = None,
    causal: bool = False,
    backend: str | None = None,
    family: str | None = None,
    **arguments,
) -> Explanation:
    """Explains what `attention` would do with these arguments: backend, table row, blocks of every kernel, and why.

    Numbers may take the place of arrays: ``explain(head_dim=128, dtype="float16", family="apple9")``.

    Args:
        q, k, v, scale, causal: as in `attention`. Arrays are never evaluated; only shapes and dtypes are read.
        backend: "metal", "cuda", "simulator" or "reference"; None means the backend that `attention` would use now.
        family: GPU family ("apple7" for M1, "apple8" M2, "apple9" M3 and M4, "apple10" M5, "sm80" NVIDIA Ampere and
            later, "sm90" Hopper); None means the backend's.
        arguments: the other arguments of `attention` (mask, window, ...), and the numbers that take the place of
            q, k and v: head_dim (required), value_dim, heads, key_heads, length, key_length, batch, dtype. group_size,
            with link, layout, method and flops if needed, adds the cost of sharing the sequence among that many ranks
            (`distributed.plan.planned`).

    Returns:
        An Explanation: plain data that prints itself.

    Raises:
        ValueError: an argument is wrong. UnsupportedProblem: no backend can serve the call.
    """
    numbers = {name: arguments.pop(name) for name in NUMBERS if name in arguments}
    sharing = {name: arguments.pop(name) for name in SHARING if name in arguments}
    if sharing and "group_size" not in sharing:
        raise wrong("group_size", f"with {', '.join(sharing)}", "none", "Pass it.", "explain")
    _check_names(arguments)
    if q is None and k is None and v is None:
        q, k, v = arrays_of(**numbers)
    elif numbers:
        raise wrong(", ".join(numbers), "arrays or numbers", "both", "Pass one.", "explain")
    options = {name: value for name, value in arguments.items() if name in OPTIONS}
    problem = problem_of(q, k, v, scale=scale, causal=causal, **options)
    name, chosen, why = _resolve(backend, family)
    inner = inner_problem(problem)
    decoding = CAPABILITIES[name].get("decodes", False)
    runs = not problem.empty and chosen is not None
    parts = plan_of(DECODE, inner, chosen).launch(inner).parts if runs and decoding and decodes(problem) else 1
    with_lse = bool(wanted_lse(arguments.get("return_lse")))
    chain = kinds_of(problem, name, parts, chosen, with_lse) if runs else ()
    tested = name == "metal" and metal_gpu()
    kernels = tuple(_explain_kernel(kind, inner, chosen, tested) for kind in chain)
    if problem.empty:
        why += "; an axis is empty, so zeros are returned and no kernel runs"
    rows = problem.batch * problem.query_heads * problem.query_length
    return Explanation(
        problem, name, chosen, why, _padding(problem, inner), describe(problem, decoding, name, parts), kernels,
        residual_bytes=3 * rows * 4,  # L holds two numbers per row, delta one
        unfused_bytes=2 * rows * problem.key_length * _size(problem),
        sharing=planned(problem, sharing.pop("group_size"), **sharing) if sharing else None,
    )  # fmt: skip


def arrays_of(
    head_dim: int | None = None,
    value_dim: int | None = None,
    heads: int = 8,
    key_heads: int | None = None,
    length: int = 1024,
    key_length: int | None = None,
    batch: int = 1,
    dtype: str = "float16",
) -> tuple[mx.array, mx.array, mx.array]:
    """Lazy q, k and v with these sizes; they are never evaluated and hold no memory."""
    if head_dim is None:
        raise wrong("head_dim", "a head dimension", "none", "Pass arrays or head_dim.", "explain")
    value_dim = head_dim if value_dim is None else value_dim
    key_heads = heads if key_heads is None else key_heads
    key_length = length if key_length is None else key_length
    numbers = {
        "head_dim": head_dim, "value_dim": value_dim, "heads": heads, "key_heads": key_heads, "length": length,
        "key_length": key_length, "batch": batch,
    }  # fmt: skip
    for name, value in numbers.items():
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < 2**31:
            expected = "a whole number of at least 1 and below 2^31"
            raise wrong(name, expected, shown(value), "Pass the size of that axis.", "explain")
    word("dtype", dtype, DTYPES.values(), "explain")
    shapes = (
        (batch, heads, length, head_dim), (batch, key_heads, key_length, head_dim),
        (batch, key_heads, key_length, value_dim),
    )  # fmt: skip
    return tuple(mx.zeros(shape, getattr(mx, dtype)) for shape in shapes)


def _check_names(arguments: dict) -> None:
    for name in arguments:
        if name not in OPTIONS and name not in ("stream", "return_lse"):
            known = ", ".join((*OPTIONS, *NUMBERS, *SHARING))
            raise wrong(name, f"one of {known}", repr(name), "Check the spelling.", "explain")


def kinds_of(
    problem: Problem, backend: str = "metal", parts: int = 1, family: Family | None = None, with_lse: bool = False
) -> tuple[KernelKind, ...]:
    """The kernels of a call and of its gradients, in order.

    `parts`: the number of parts into which decoding splits the keys. `family`: on some GPU families dK and dV have
    separate kernels. `with_lse`: the LSE is returned, so that its gradient enters delta between two kernels. The kernel
    of the mask's gradient is included only for a mask that is added to the scores.
    """
    inner = inner_problem(problem)
    inside = not with_lse and delta_inside(problem.signature, family, problem.query_length)
    query = [BACKWARD_QUERY_DELTA] if inside else [DELTA, BACKWARD_QUERY]
    kinds = [FORWARD, *query, *key_value_kinds(inner.signature, family)]
    if heads_at_a_time(inner, family):
        kinds = [FORWARD, DELTA, *KEPT_KINDS]
    kinds += [BACKWARD_MASK] if problem.variants.additive else []
    if CAPABILITIES[backend].get("decodes", False) and decodes(problem):
        kinds = [DECODE, *([COMBINE] if parts > 1 else []), *(kind for kind in kinds if kind is not FORWARD)]
    return tuple(kinds)


def inner_problem(problem: Problem) -> Problem:
    """The problem as the kernels see it, with head dimensions rounded up to multiples of 8."""
    signature = problem.signature
    padding = {"head_dim": padded(signature.head_dim), "value_dim": padded(signature.value_dim)}
    return problem._replace(signature=replace(signature, **padding))


def _resolve(name: str | None, family: str | None) -> tuple[str, Family | None, str]:
    """(backend name, family, reason). No backend is created, so that any machine can explain any other."""
    if family is not None:
        word("family", family, FAMILIES, "explain")
    if name is None and family is None:
        return _current()
    if name is None:
        name, why = kernel_backend(), f"kernels of {family} were asked for"
    else:
        name, why = word("backend", name, NAMES, "explain"), "asked for by name"
    if name == "reference":
        return name, None, f"{why}; it runs no kernels, so no family"
    if family is None and CAPABILITIES[name].get("gpu"):
        if not (metal_gpu() if name == "metal" else mx.cuda.is_available()):
            expected = f"one of {', '.join(FAMILIES)} to explain {name} on a machine without it"
            raise wrong("family", expected, None, "Name the GPU.", "explain")
        return name, backend_of(name).family, why
    return name, FAMILIES[family or "apple9"], why


def _current() -> tuple[str, Family | None, str]:
    current, (usual, why) = current_backend(), default()
    if current.name != usual:
        why = "chosen by use_backend or MLX_FLASH_BACKEND"
    return current.name, current.family, why + (f"; 8x8 matrices, since {current.note}" if current.note else "")


def _explain_kernel(kind: KernelKind, problem: Problem, family: Family, tested: bool) -> KernelExplanation:
    if kind in KEPT_KINDS:  # which serve some of the heads at a time
        problem = turn_of(problem, heads_at_a_time(problem, family))
    plan = plan_of(kind, problem, family)
    row, launch, head_dim = plan.config, plan.launch(problem), plan.head_dim
    layer = LAYERS[row.tiles]
    uses_threadgroup_memory = kind.tiled and (plan.text_family.uses_threadgroup_memory or layer.uses_threadgroup_memory)
    demand, live = _registers(plan)
    return KernelExplanation(
        name=kind.name,
        kernel=plan.kernel.name,
        row=_place(plan),
        why=_why_row(plan) + _why_delta(plan) + _why_kept(plan) + _why_map(plan, problem),
        blocks=(row.parallel, row.traversal, row.head_block(head_dim)),
        threads=row.threads,
        grid=tuple(threads // group for threads, group in zip(launch.grid, launch.threadgroup)),
        cached=row.cached,
        reread=tuple(n for n in kind.cacheable if n in kind.inputs and n not in row.cached),
        paged=row.paged(kind),
        traversed=_traversed(kind),
        uses_threadgroup_memory=uses_threadgroup_memory,
        tiles=row.tiles if kind.tiled else "none",
        registers=demand,
        live_bytes=live,
        threadgroup_bytes=_threadgroup_bytes(plan, problem),
        max_threads=plan.max_threads,
        output_bytes=launch.output_bytes,
        extra_bytes=_extra_bytes(plan, problem),
        verdict=guard.describe(plan) if tested else "",
    )


def _registers(plan: Plan) -> tuple[int, int | None]:
    """(16-bit registers, live bytes of a thread or None where these do not limit the row)."""
    kind, row, head_dim = plan.kind, plan.config, plan.head_dim
    precision = precision_of(plan.signature.dtype)
    if row.tiles == "nax":
        live = neural.live_bytes(kind, row, head_dim)
        return live // 2, live
    if LAYERS[row.tiles].uses_threadgroup_memory:  # rows for tensor cores count registers of 32 bits
        return 2 * thread_registers(kind, row, head_dim), None
    dynamic = kind.tiled and not plan.max_threads
    demand = register_demand(kind, row, precision, head_dim)
    return demand, live_bytes(kind, row, precision, head_dim) if dynamic else None


def _threadgroup_bytes(plan: Plan, problem: Problem) -> int:
    row = plan.config
    if not plan.kind.tiled:
        return 0
    size = _size(problem)
    elements = threadgroup_elements(
        plan.kind, row, plan.text_family, problem.head_dim, problem.value_dim, size,
        bool(problem.variants.mask),
    )  # fmt: skip
    return elements * size if elements > 1 else 0


OPERANDS = frozenset({"Q", "K", "V", "dO"}) | SCORES


def _traversed(kind: KernelKind) -> tuple[str, ...]:
    own = {*kind.cacheable, *kind.shapes}
    return tuple(name for name in kind.inputs if name in OPERANDS and name not in own) if kind.tiled else ()


def _place(plan: Plan) -> str:
    if _tuned(plan):
        return f"tuned for {plan.config.max_head}"
    rows = candidates(plan.kind, precision_of(plan.signature.dtype), plan.effective_family)
    return f"{rows.index(plan.table_row) + 1} of {len(rows)}, up to {plan.config.max_head}"


def _tuned(plan: Plan) -> TunedRow | None:
    return tuned_row(plan.kind, plan.signature.dtype, plan.effective_family, plan.head_dim)


def _why_row(plan: Plan) -> str:
    shared = "; two simdgroups share the columns" if plan.config.head_parts > 1 else ""
    signature = plan.signature
    parts = column_shares(plan.kind, plan.config, signature.head_dim, signature.value_dim).parts
    shared += f"; {parts} threadgroups share the columns of {plan.kind.outputs[0]}" if parts > 1 else ""
    return _why_this_row(plan) + shared + _why_not_accelerated(plan)


def _why_not_accelerated(plan: Plan) -> str:
    """Why a kernel does not use the neural accelerators of its family; "" if it does, or there are none."""
    kind, signature = plan.kind, plan.signature
    if plan.family.tensor != "nax" or not kind.tiled or plan.config.tiles == "nax":
        return ""
    if signature.dtype == "float32":
        served = "for float32"
    elif not (rows := matrix_rows(kind.table, MIXED, plan.family)):
        served = "of this kind"
    elif plan.effective_family.tensor != "nax":
        served = f"for pages of {signature.variants.page} keys"
    else:
        served = f"beyond {rows[-1].max_head} columns"
    return f"; 8x8 matrices, since there is no kernel for neural accelerators {served}"


def _why_this_row(plan: Plan) -> str:
    if found := _tuned(plan):
        return (
            f"the fastest that `tune` timed on this machine: {found.ms:.3g} ms, the table's row {found.table_ms:.3g} ms"
        )
    if len(candidates(plan.kind, precision_of(plan.signature.dtype), plan.effective_family)) == 1:
        return "the only row"
    if plan.head_dim > plan.config.max_head:
        return f"the last serves {plan.head_dim} too"
    return f"the first to cover {plan.head_dim}"


def _why_delta(plan: Plan) -> str:
    if plan.kind is not BACKWARD_QUERY_DELTA:
        return ""
    return f"; delta is made here too, which saves a launch with fewer than {plan.family.separate_delta} queries"


def _why_kept(plan: Plan) -> str:
    if SCORES.isdisjoint(plan.kind.outputs):
        return ""
    heads = plan.signature.key_heads
    return f"; it keeps P and dS, of {heads} key head{'s' * (heads > 1)} at a time: five products in place of seven"


def _why_map(plan: Plan, problem: Problem) -> str:
    if "mask_map" not in plan.kernel.inputs or not mask_map.pays(plan.kind, problem):
        return ""
    return "; another kernel maps the mask first, and blocks that it hides are left out"


def _extra_bytes(plan: Plan, problem: Problem) -> int:
    """Bytes of the row statistics, and of the float32 buffers of paged accumulators with 16-bit results."""
    launch, dtype = plan.launch(problem), getattr(mx, problem.dtype)
    named = zip(plan.kind.outputs, launch.output_shapes, launch.output_dtypes)
    return sum(
        math.prod(shape) * written.size
        for name, shape, written in named
        if name not in ACCUMULATORS or written != dtype
    )


def _padding(problem: Problem, inner: Problem) -> str:
    changed = []
    if inner.head_dim != problem.head_dim:
        changed.append(f"q and k are copied with {inner.head_dim} columns for {problem.head_dim}")
    if inner.value_dim != problem.value_dim:
        changed.append(f"v is copied with {inner.value_dim} columns for {problem.value_dim}")
    return "; ".join(changed) or "none: head dimensions are multiples of 8"


def _size(problem: Problem) -> int:
    return getattr(mx, problem.dtype).size
