"""Templates + table row -> the Metal text of one kernel. Pure and cached: the same arguments give the same bytes.

MLX copies the whole text at every call and hashes it at every launch, so a kernel gets only the text that it uses: the
template files of its kind, without the branches of `#if` that its constants exclude, shortened by `minify.py`.
MLX_FLASH_KEEP_COMMENTS=1 in the environment keeps comments and names.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from functools import lru_cache
from math import gcd
from pathlib import Path
from string import Template

from ..common.mlx_private import kernel_attribute
from ..problem.formulas.metal import struct
from ..problem.kinds import (
    ACCUMULATORS,
    BACKWARD_KEY_KEPT,
    BACKWARD_MASK,
    BACKWARD_QUERY,
    BACKWARD_VALUE_KEPT,
    COMBINE,
    DECODE,
    FORWARD,
    KEPT_KINDS,
    MASK_MAP,
    SCORES,
    KernelKind,
)
from ..problem.variants import METAL_TYPES, Variants
from . import arguments, mask_map
from .config import TileConfig
from .devices import FAMILIES, Family
from .mask_map import reads_map
from .minify import minified, stripped
from .split_kv import keys_are_unshared
from .tile_layers import (
    LAYERS,
    column_shares,
    heads_between,
    merged_fragments,
    stages_statistics,
    threadgroup_elements,
)

READ_KEPT = frozenset((BACKWARD_KEY_KEPT, BACKWARD_VALUE_KEPT))
MAPPED = {"MAPS": 1, "MAP_BLOCK": mask_map.BLOCK, "STRIP": mask_map.STRIP}  # constants
REOPENED = "}\nnamespace flash{\n"  # between two files
KEEP_COMMENTS = "MLX_FLASH_KEEP_COMMENTS"  # environment variable, for debugging


@dataclass(frozen=True)
class Kernel:
    """The arguments of mx.fast.metal_kernel. `name` holds every fact that the text is specialised by. `output_dtypes`:
    the types that the kernel writes, float32 where an accumulator is paged. `gathers`: operands are passed as they are,
    and not as bytes, since the kernel reads columns that are not neighbours too."""

    name: str
    header: str
    body: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    output_dtypes: tuple[str, ...]
    gathers: bool = False


@lru_cache
def template(name: str) -> str:
    """The text of one template; in a checkout they lie beside the package, in a wheel inside it."""
    package = Path(__file__).parents[1]
    for folder in (package / "templates", package.parent / "templates"):
        for path in folder.glob(f"*/{name}.metal"):
            return path.read_text(encoding="ascii")
    raise FileNotFoundError(f"[mlx_flash] template {name}.metal is missing from the installation: reinstall it")


@lru_cache
def fingerprint() -> str:
    """A hash of all templates. Measurements of kernels are valid for one state of the templates only."""
    package = Path(__file__).parents[1]
    paths = [
        path for folder in (package / "templates", package.parent / "templates") for path in folder.glob("*/*.metal")
    ]
    texts = [path.name + path.read_text(encoding="ascii") for path in sorted(paths)]
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


def files_of(kind: KernelKind, layer: str, variants: Variants, splits: int = 1) -> list[str]:
    """The template files of a kernel, in order; the struct of its arguments follows the shared constants."""
    if not kind.tiled:
        return ["views", *{COMBINE: ["exp2"], MASK_MAP: []}.get(kind, ["row_delta"]), kind.name]
    forward = kind in (FORWARD, DECODE)
    tile = LAYERS[layer]
    files = ["views", "constants", "tile", *(["quantized"] if variants.quantization else []), *tile.files]
    files += tile.quantized if variants.quantization else ()
    files += ["sums"] if kind is BACKWARD_MASK else []
    files += ["statistics"] if stages_statistics(kind, layer) else []
    files += [LAYERS[layer].kept] if kind in KEPT_KINDS else []
    files += ["formula", *(["dual"] if variants.score and not forward else []), "texts"] if variants.texts else []
    files += ["exp2", "mask", "mask_look", "mask_apply", "softmax", *(["score"] if variants.score else [])]
    files += ["online_softmax" if forward else "softmax_gradient"]
    files += ["dropout"] if variants.dropout and kind is not DECODE else []
    files += ["query_block"] if kind is FORWARD or kind.table is BACKWARD_QUERY else []
    files += ["row_delta"] if "delta" in kind.outputs else []
    files += ["key_splits"] if splits > 1 else []
    return [*files, kind.template or kind.name]


@lru_cache(maxsize=1024)
def build(
    kind: KernelKind,
    row: TileConfig,
    family: Family,
    dtype: str,
    head_dim: int,
    value_dim: int,
    variants: Variants,
    max_threads: int | None,
    readable: bool = False,
) -> Kernel:
    """The kernel of one kind. `head_dim`, `value_dim`: multiples of 8. `max_threads`: the attribute of M1 and M2.
    `readable`: with comments and names, as with the environment variable."""
    readable = readable or bool(os.environ.get(KEEP_COMMENTS))
    constants = {name: _literal(value) for name, value in _constants(kind, row, family, dtype, variants).items()}
    shares = column_shares(kind, row, head_dim, value_dim)
    constants |= {"PARTED": str(int(shares.parts > 1)), "PARTS": str(shares.parts), "HELD": str(shares.columns)}
    constants |= {"ELEMENT": METAL_TYPES[dtype], "VALUE_DIM": str(value_dim), "BLOCK_PARALLEL": str(row.parallel)}
    if kind.tiled:
        size = 4 if dtype == "float32" else 2
        constants["HEAD_DIM"] = str(head_dim)
        constants["BLOCK_HEAD"] = str(row.head_block(max(head_dim, value_dim)))
        widths = _read_widths(kind, row, family, dtype, max(head_dim, value_dim))
        constants |= {name: str(width) for name, width in widths.items()}
        taken = threadgroup_elements(kind, row, family, head_dim, value_dim, size, bool(variants.mask))
        constants |= {"SCRATCH": str(taken), "MERGED": str(merged_fragments(row, value_dim))}
    inputs = tuple(name for name in kind.inputs + variants.inputs(kind) if name not in variants.absent(kind))
    inputs += ("mask_map",) if reads_map(kind, LAYERS[row.tiles].producer_warps, variants) else ()
    parts = {name: resolved(name, constants, readable) for name in files_of(kind, row.tiles, variants, row.splits)}
    if kind.tiled and variants.texts:  # structs generated from the users' texts
        before = "dual" if "dual" in parts else "formula"
        seed = variants.score.arrays[variants.seed - 1].name if variants.seed else "s"
        structs = [struct(one, seed if "dual" in parts else None, kind is not DECODE) for one in variants.texts]
        text = "\n".join(["namespace flash {", "namespace formula {", *structs, "}", "}", ""])
        parts[before] += text if readable else stripped(text)
    shared = "constants" if kind.tiled else "views"
    pieces = kind.tiled and variants.pieces is not None
    struct_of_arguments = arguments.struct(kind, inputs, pieces)
    parts[shared] += struct_of_arguments if readable else stripped(struct_of_arguments)
    header = "".join(parts.values()).replace(REOPENED, "")
    body = arguments.body(kind, inputs, pieces, _gathers(kind, row, variants))
    # Users' texts name functions of Metal that no template does.
    header = header if readable else minified(header, body, names=bool(variants.texts))
    attribute = kernel_attribute(f"max_total_threads_per_threadgroup({max_threads})") if max_threads else ""
    paged = row.paged(kind)
    return Kernel(
        name=_name(kind, row, family, dtype, head_dim, value_dim, variants, max_threads),
        header=Template(header).substitute(constants) + attribute,
        body=body,
        inputs=inputs,
        outputs=kind.outputs,
        output_dtypes=tuple(_output_dtype(name, dtype, paged) for name in kind.outputs),
        gathers=_gathers(kind, row, variants),
    )


def _output_dtype(name: str, dtype: str, paged: tuple[str, ...]) -> str:
    """The type that a kernel writes: q's for results and what is kept in 16 bits, float32 for statistics and paged
    accumulators."""
    if name == "mask_map":
        return "uint8"
    return dtype if name in SCORES or (name in ACCUMULATORS and name not in paged) else "float32"


def _gathers(kind: KernelKind, row: TileConfig, variants: Variants) -> bool:
    """Whether operands are passed as they are. A view as bytes is an operation of MLX, and in decoding the host's time
    for each of them counts; it copies an array whose columns are no neighbours, which these kernels gather."""
    plain = not (variants.quantization or variants.page or variants.pieces)
    return kind is DECODE and LAYERS[row.tiles].producer_warps > 0 and plain


def _overlaps(kind: KernelKind, row: TileConfig, variants: Variants) -> bool:
    """Whether products overlap with more. A function of the scores needs the registers of P V in flight."""
    return row.overlaps and not variants.dropout and not (kind is FORWARD and variants.computes_scores)


def _constants(kind: KernelKind, row: TileConfig, family: Family, dtype: str, variants: Variants) -> dict[str, object]:
    """The constants that templates test in `#if` or name as $CONSTANT, except for the dimensions."""
    if not kind.tiled:
        named = ("GATHERS", "QUANTIZED", "HAS_MASK", "HAS_SEGMENTS", "HAS_BLOCKS", "HAS_PAGES", "HAS_PIECES", "MAPS")
        absent = dict.fromkeys(named, 0)
        own = {**variants.holes(kind), "HAS_MASK": 1, **MAPPED} if kind is MASK_MAP else {}
        return {**absent, **own, "SCALED_FIRST": int(variants.scaled_first)}
    layer, holes = LAYERS[row.tiles], variants.holes(kind)
    slices = row.splits if layer.producer_warps else 1
    apart = layer.rescales_apart and kind is FORWARD and dtype != "float32"
    trims = layer.rescales_apart and kind is FORWARD and bool(variants.causal or variants.window)
    return {
        **holes,
        "SCALED_FIRST": int(variants.scaled_first),
        "GATHERS": int(_gathers(kind, row, variants)),
        **{f"CACHE_{name.upper()}": name in row.cached for name in kind.cacheable},
        "OVER_KEYS": int(kind.over_keys),
        "CACHES": int(any(name in row.cached for name in ACCUMULATORS)),
        "PAGES": int(bool(row.paged(kind))),
        "HEADS_BETWEEN": int(any(heads_between(kind, row))),
        "SINGLE_PRECISION": int(dtype == "float32"),
        "WRITES_DELTA": int("delta" in kind.outputs),
        "KEEPS": int(not SCORES.isdisjoint(kind.outputs)),
        "WANTS_DK": int("dK" in kind.outputs),
        "WANTS_DV": int("dV" in kind.outputs),
        "BLOCK_TRAVERSAL": row.traversal,
        "SIMDGROUP_ROWS": row.simdgroup_rows,
        "USES_THREADGROUP": family.uses_threadgroup_memory,
        "SPLITS_KEYS": int(row.splits > 1),
        "SLICED": int(slices > 1),
        "SLICES": slices,
        "OVERLAPS": int(_overlaps(kind, row, variants)),
        "LOADS_EARLY": int(layer.loads_early),
        # The loop over whole blocks then has no code for others. In other kernels the assembler's code is slower so.
        "SKIPS_VOTE": int(kind.table is BACKWARD_QUERY and SCORES.isdisjoint(kind.outputs)),
        "STAGES_STATISTICS": int(stages_statistics(kind, row.tiles)),
        "FUSES_EXPONENTS": int(layer.fuses_exponents or apart),
        # Three warpgroups leave no registers for a row's largest score beside the reference of its sum.
        "RESCALES_LATE": int(apart or layer.rescales_late and row.parallel < 3 * layer.mma_rows),
        "RESCALES_APART": int(apart),
        "TRIMS": int(trims and family.uses_threadgroup_memory),
        "LOW_PARTS": int(layer.low_parts),
        "LOOKS": int(layer.looks and holes["HAS_MASK"]),
        **(MAPPED if reads_map(kind, layer.producer_warps, variants) else {"MAPS": 0}),
        "SPLITS": row.splits,
        "SPLITS_HEAD": int(row.head_parts > 1),
        "HEAD_PARTS": row.head_parts,
        "MMA_ROWS": layer.mma_rows,
        "STAGES": row.stages,
        "PRODUCER_WARPS": layer.producer_warps,
        "CONSUMER_WARPS": row.parallel // row.simdgroup_rows * slices,
    }


def _read_widths(kind: KernelKind, row: TileConfig, family: Family, dtype: str, head_dim: int) -> dict[str, int]:
    """The number of fragments that one read of 16 bytes serves: WIDE along columns, WIDE_ROWS along the rows of a
    transposed block, DEEP along columns that are summed over. Groups of fragments do not cross head blocks."""
    pairs = 2 if dtype == "float32" else 4
    # By the family itself, not by the kernel's: quantized operands, which always go through threadgroup memory, are
    # then summed in the order of plain ones, and give the same bits.
    if FAMILIES[family.name].uses_threadgroup_memory and not keys_are_unshared(kind, row):
        return {"WIDE": pairs, "WIDE_ROWS": 1 if kind in READ_KEPT else pairs, "DEEP": 1}
    deep = 2 * pairs if row.head >= head_dim else gcd(2 * pairs, row.head // 8)
    return {"WIDE": pairs, "WIDE_ROWS": 1, "DEEP": deep}


def _literal(value: bool | int | str) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def resolved(name: str, constants: dict[str, str], readable: bool = False) -> str:
    """A template without the branches that its constants exclude, and without comments and blanks unless `readable`.

    Its $CONSTANTS stay, so that texts which differ only in these are shortened once.
    """
    text = template(name)
    asked = frozenset((word, constants[word]) for word in _asked(text) if word in constants)
    return _resolved(text, asked) if readable else stripped(_resolved(text, asked))


@lru_cache
def _asked(text: str) -> frozenset[str]:
    """The names that a template's conditions test."""
    return frozenset(re.findall(r"\b[A-Z][A-Z_]+\b", " ".join(re.findall(r"^#(?:el)?if\b(.*)", text, re.MULTILINE))))


@lru_cache(maxsize=1024)  # most kernels share most of their files
def _resolved(text: str, constants: frozenset[tuple[str, str]]) -> str:
    """The text with those branches of `#if` that the constants choose; other directives stay as they are."""
    values = {name: value in ("1", "true") for name, value in constants}
    lines: list[str] = []
    nested: list[list[bool]] = []  # for every open #if: is this branch chosen, and was any branch so far?
    for line in text.splitlines(keepends=True):
        directive = re.match(r"#(if|elif|else|endif)\b([^/\n]*)", line)
        if directive is None:
            if all(chosen for chosen, _ in nested):
                lines.append(line)
            continue
        word, condition = directive.groups()
        if word == "endif":
            nested.pop()
        elif word == "if":
            # Conditions inside an excluded branch are not evaluated: their constants may be unknown.
            left_out = not all(chosen for chosen, _ in nested)
            holds = not left_out and _holds(condition, values)
            nested.append([holds, holds or left_out])
        else:
            chosen = not nested[-1][1] and (word == "else" or _holds(condition, values))
            nested[-1] = [chosen, nested[-1][1] or chosen]
    return "".join(lines)


def _holds(condition: str, values: dict[str, bool]) -> bool:
    """The value of a condition of `#if`: names of constants, 0, 1, !, && and ||, and parentheses."""
    python = condition.replace("&&", " and ").replace("||", " or ").replace("!", " not ").strip()
    return bool(eval(python, {"__builtins__": {}}, values))


def _name(kind, row, family, dtype, head_dim, value_dim, variants, max_threads):
    facts = ["flash", kind.name, dtype, f"v{value_dim}", f"p{row.parallel}", f"m{max_threads or 0}"]
    facts += ["scaled"] if kind is COMBINE and variants.scaled_first else []
    facts += [f"mask_{variants.mask}"] if kind is MASK_MAP else []
    if kind.tiled:
        loads = "threadgroup" if family.uses_threadgroup_memory else "direct"
        facts += [
            f"d{head_dim}", f"t{row.traversal}", f"h{row.head_block(max(head_dim, value_dim))}",
            f"r{row.simdgroup_rows}" + (f"x{row.splits}" if row.splits > 1 else ""),
            *([f"parts{row.head_parts}"] if row.head_parts > 1 else []),
            *([f"columns{row.columns}"] if column_shares(kind, row, head_dim, value_dim).parts > 1 else []),
            *(["overlap"] if row.overlaps else []),
            "c" + "".join(row.cached),
            {"simdgroup": loads, "nax": "nax"}.get(row.tiles, f"{row.tiles}{row.stages}"),
            *variants.names(kind),
        ]  # fmt: skip
    return "_".join(facts)
