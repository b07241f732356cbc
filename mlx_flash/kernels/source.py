"""Template + table row -> the Metal text of one kernel. Pure: same arguments, same bytes; cached."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import gcd
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

from ..mlx_private import kernel_attribute
from ..problem.kinds import ACCUMULATORS, DECODE, FORWARD, KernelKind
from ..problem.variants import METAL_TYPES, Variants
from .devices import FAMILIES
from .tile_layers import LAYERS, threadgroup_elements

if TYPE_CHECKING:
    from .apple import TileConfig
    from .devices import Family

BODY = "// ---- body\n"


@dataclass(frozen=True)
class Kernel:
    """What mx.fast.metal_kernel takes. `name` holds every fact the text is specialised by; `output_dtypes` are the
    types the kernel writes, float32 where an accumulator is paged."""

    name: str
    header: str
    body: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    output_dtypes: tuple[str, ...]


@lru_cache
def template(name: str) -> str:
    """The text of one template; in a checkout they lie beside the package, in a wheel inside it."""
    package = Path(__file__).parents[1]
    for folder in (package / "templates", package.parent / "templates"):
        for path in folder.glob(f"*/{name}.metal"):
            return path.read_text(encoding="ascii")
    raise FileNotFoundError(f"[mlx_flash] template {name}.metal is missing from the installation: reinstall it")


def _literal(value: bool | int | str) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


@lru_cache(maxsize=1024)
def build(
    step: KernelKind,
    row: TileConfig,
    family: Family,
    dtype: str,
    head_dim: int,
    value_dim: int,
    variants: Variants,
    max_threads: int | None,
) -> Kernel:
    """The kernel of one step. `head_dim`, `value_dim`: multiples of 8. `max_threads`: the attribute of M1 and M2."""
    holes = {
        "MMA_ROWS": LAYERS[row.tiles].mma_rows,
        "ELEMENT": METAL_TYPES[dtype],
        **_read_widths(step, row, family, dtype, max(head_dim, value_dim)),
        "VALUE_DIM": value_dim,
        "BLOCK_PARALLEL": row.parallel,
        "ATTRIBUTES": kernel_attribute(f"max_total_threads_per_threadgroup({max_threads})") if max_threads else "",
    }
    if step.tiled:
        holes |= {
            "HEAD_DIM": head_dim,
            "BLOCK_TRAVERSAL": row.traversal,
            "BLOCK_HEAD": row.head_block(max(head_dim, value_dim)),
            "SIMDGROUP_ROWS": row.simdgroup_rows,
            "USES_THREADGROUP": family.uses_threadgroup_memory,
            "SCRATCH": threadgroup_elements(step, row, family, head_dim, value_dim),
            **variants.holes(step),
            **{f"CACHE_{name.upper()}": name in row.cached for name in step.cacheable},
        }
    if row.tiles != "simdgroup":
        holes |= {"STAGES": row.stages, "PRODUCER_WARPS": LAYERS[row.tiles].producer_warps}
        holes["CONSUMER_WARPS"] = row.parallel // row.simdgroup_rows
    if step.over_keys:
        holes |= {"WANTS_DK": int("dK" in step.outputs), "WANTS_DV": int("dV" in step.outputs)}
    files = ["tile", *LAYERS[row.tiles].files]
    files += ["quantized"] if step in (FORWARD, DECODE) else []
    files += ["mask", "softmax", "dropout"] if step.tiled else []
    files.append(step.template or step.name)
    literals = {hole: _literal(value) for hole, value in holes.items()}
    parts = [_filled(name, literals) for name in files]
    paged = row.paged(step)
    return Kernel(
        name=_name(step, row, family, dtype, head_dim, value_dim, variants, max_threads),
        header="\n".join(header for header, _ in parts),
        body="".join(body for _, body in parts),
        inputs=step.inputs + variants.inputs(step),
        outputs=step.outputs,
        output_dtypes=tuple(
            dtype if name in ACCUMULATORS and name not in paged else "float32" for name in step.outputs
        ),
    )


def _read_widths(step: KernelKind, row: TileConfig, family: Family, dtype: str, head_dim: int) -> dict[str, int]:
    """Fragments that one read of 16 bytes serves: along columns, along rows of a transposed block, along columns that
    are summed over. Groups of fragments do not cross head blocks."""
    if not step.tiled:
        return {"WIDE": 1, "WIDE_ROWS": 1, "DEEP": 1}
    pairs = 2 if dtype == "float32" else 4
    # The order of sums is the family's own, also where quantized operands go through threadgroup memory: equal bits.
    if FAMILIES[family.name].uses_threadgroup_memory:
        return {"WIDE": pairs, "WIDE_ROWS": pairs, "DEEP": 1}
    deep = 2 * pairs if row.head >= head_dim else gcd(2 * pairs, row.head // 8)
    return {"WIDE": pairs, "WIDE_ROWS": 1, "DEEP": deep}


def _filled(name: str, literals: dict[str, str]) -> tuple[str, str]:
    """A template's header and body; those without a marker are all header."""
    header, _, body = Template(template(name)).substitute(literals).partition(BODY)
    return header.rstrip() + "\n", body


def _name(step, row, family, dtype, head_dim, value_dim, variants, max_threads):
    facts = ["flash", step.name, dtype, f"v{value_dim}", f"p{row.parallel}", f"m{max_threads or 0}"]
    if step.tiled:
        loads = "staged" if family.uses_threadgroup_memory else "direct"
        facts += [
            f"d{head_dim}", f"t{row.traversal}", f"h{row.head_block(max(head_dim, value_dim))}",
            f"r{row.simdgroup_rows}", "c" + "".join(row.cached),
            f"{row.tiles}{row.stages}" if row.tiles != "simdgroup" else loads,
            *variants.names(step),
        ]  # fmt: skip
    return "_".join(facts)
