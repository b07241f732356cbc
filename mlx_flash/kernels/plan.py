"""How one kind of kernel serves one signature on one GPU family: its table row, Metal text and launches."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache

from ..problem.kinds import (
    BACKWARD_KEY,
    BACKWARD_KEY_VALUE,
    BACKWARD_MASK,
    BACKWARD_VALUE,
    DECODE,
    MASK_MAP,
    KernelKind,
)
from ..problem.problem import Problem, Signature
from ..problem.variants import MOST_BUFFERS, Variants
from .config import TileConfig, precision_of
from .devices import DEQUANTIZING, Family, Tuned
from .launch import Launch, launch
from .lookup import lookup, splits_dk_dv
from .neural import PRODUCT_COLUMNS
from .nvidia import mma_rows, sharing_cores
from .registers import max_threads
from .source import Kernel, build
from .split_kv import count_of, decoding_config, gqa_rows, keys_are_unshared, rule_of
from .tile_layers import LAYERS

LAUNCHES = 256  # kept by one plan
# Rows of a threadgroup in latent attention, and where nothing is cached, in 16 bits. Every block of keys is copied to
# threadgroup memory once as keys and once as values. Copied once for both it would need all columns there: of 576 no
# more than 24 keys fit in 32 KiB, and blocks of 24 in the place of 64 page O 2.7 times as often, which moves 13.6 KB a
# key more, for 1 KB saved.
LATENT_ROWS, MANY_LATENT_ROWS = 64, 128
LATENT_HEAD = 32  # columns of a head block where a simdgroup owns more rows: as many accumulators in flight


@dataclass(frozen=True)
class Plan:
    """One kind of kernel for one signature on one GPU family; `plan` makes it.

    `signature`: its head dimensions are multiples of 8. `rows`: rows of a threadgroup in decoding, 0 for other kinds.
    The fields that follow from these: `effective_family`, the family as the signature uses it; `table_row`, and
    `config`, the same row fitted to the signature; `text_family`, the family as the text uses it; `max_threads`, the
    attribute of M1 and M2; `kernel`, the text.

    `resources` is a cache for this kernel: launches, compiled code by the backend's name, and in decoding the rules of
    the parts, by the number of queries.
    """

    kind: KernelKind
    signature: Signature
    family: Family
    rows: int
    effective_family: Family
    table_row: TileConfig
    config: TileConfig
    text_family: Family
    max_threads: int | None
    kernel: Kernel
    resources: dict = field(default_factory=lambda: {"launches": {}}, compare=False, repr=False)

    @property
    def head_dim(self) -> int:
        return _head_dim(self.signature)

    @cached_property
    def casts(self) -> bool:
        """Whether outputs are float32 because the kernel pages an accumulator, while attention's are not."""
        return bool(self.config.paged(self.kind)) and self.signature.dtype != "float32"

    def launch(self, problem: Problem) -> Launch:
        """The launch for these lengths. Launches are kept by the lengths they follow: those of queries do not follow
        the keys, and in decoding only the number of parts does, so that a growing cache finds the same one again."""
        last = self.resources.get("last")
        if last is not None and last[0] is problem:
            return last[1]
        kind, rule, parts, length = self.kind, None, 1, problem.query_length
        if kind.over_keys:
            length = problem.key_length
        elif kind is DECODE:
            rule = self.resources.get(length)
            if rule is None:
                rule = self.resources[length] = rule_of(problem, self.config, self.family)
            parts = count_of(problem, rule, self.config)
        key = (problem.batch, length, problem.mask_shape if kind in (BACKWARD_MASK, MASK_MAP) else parts)
        launches = self.resources["launches"]
        found = launches.get(key)
        if found is None:
            if len(launches) >= LAUNCHES:
                launches.clear()
            split = rule and rule._replace(count=parts)
            found = launches[key] = launch(kind, self.config, self.kernel, problem, split)
        self.resources["last"] = (problem, found)
        return found


def plan_of(kind: KernelKind, problem: Problem, family: Family) -> Plan:
    """The plan that serves a problem."""
    return plan(kind, problem.signature, family, decoding_rows(problem, family) if kind is DECODE else 0)


@lru_cache(maxsize=1024)
def plan(
    kind: KernelKind,
    signature: Signature,
    family: Family,
    rows: int = 0,
    readable: bool = False,
    config: TileConfig | None = None,
) -> Plan:
    """The plan of a kernel, step by step from the tables to the text.

    `rows`: of a threadgroup, in decoding. `readable`: the text keeps comments and names, for people. `config`: measured
    in place of the one that follows from the table.
    """
    head_dim = _head_dim(signature)
    effective = effective_family(kind, signature, family)
    table_row = lookup(kind, signature.dtype, effective, head_dim)
    config = config or fitted_config(kind, signature, effective, table_row, rows)
    text_family = effective
    # A simdgroup that shares no block of keys with another reads keys directly, unless they have to be dequantized.
    copied = _is_latent(kind, signature) or signature.variants.quantization is not None
    if keys_are_unshared(kind, config) and not copied:
        text_family = replace(effective, uses_threadgroup_memory=False)
    threads = max_threads(kind, config, precision_of(signature.dtype), family, head_dim)
    kernel = build(
        kind, config, text_family, signature.dtype, signature.head_dim, signature.value_dim, signature.variants.text,
        threads, readable,
    )  # fmt: skip
    return Plan(kind, signature, family, rows, effective, table_row, config, text_family, threads, kernel)


def effective_family(kind: KernelKind, signature: Signature, family: Family) -> Family:
    """The family as a kernel of the signature uses it.

    Quantized operands are dequantized in threadgroup memory on every family, by mma.sync's layer on NVIDIA GPUs, and
    latent decoding shares its blocks there, since every simdgroup would read the keys for itself. Hopper falls back to
    mma.sync where a tile of a block mask is smaller than a warpgroup, M5 to 8x8 matrices where a page is shorter than a
    block of keys. Tuned rows are for none of these but latent decoding.
    """
    block, page = signature.variants.block, signature.variants.page
    if signature.variants.quantization is not None:
        tensor = "" if family.apple else DEQUANTIZING
        return replace(family, uses_threadgroup_memory=True, tensor=tensor, tuned=Tuned())
    family = replace(family, tuned=Tuned()) if (block or page) and family.tuned.rows else family
    if family.tensor == "nax" and page and page % PRODUCT_COLUMNS:
        family = replace(family, tensor="")
    elif block and block % mma_rows(family):
        family = replace(family, tensor="sm80")
    latent = _is_latent(kind, signature) and family.apple
    return replace(family, uses_threadgroup_memory=True) if latent else family


def fitted_config(
    kind: KernelKind, signature: Signature, family: Family, table_row: TileConfig, rows: int
) -> TileConfig:
    """The table's row as the signature needs it. `family`: the effective one."""
    row, block = fitted_row(kind, signature, table_row, rows), signature.variants.block
    if kind is DECODE:
        return decoding_config(row, rows, family)
    if not block:
        return row
    row = row.with_blocks(block, PRODUCT_COLUMNS if row.tiles == "nax" else None)
    return sharing_cores(kind, row, family, signature.head_dim, signature.value_dim)


def fitted_row(kind: KernelKind, signature: Signature, row: TileConfig, rows: int = 0) -> TileConfig:
    """The table's row for plain scores where they are, with the many rows of latent decoding, and with blocks of keys
    that are no longer than a page, since no block lies in two. `rows`: of a threadgroup, 0 for as many as there may be.
    """
    row = row.for_scores(plain=replace(signature.variants, causal=False) == Variants())
    if _is_latent(kind, signature) and row.tiles == "simdgroup":
        if row.cached or signature.dtype == "float32" or 0 < rows <= LATENT_ROWS:
            row = replace(row, parallel=max(row.parallel, LATENT_ROWS))
        else:  # by more simdgroups than the row has, all of them would need too many registers
            head = min(row.head, LATENT_HEAD)
            row = replace(row, parallel=MANY_LATENT_ROWS, simdgroup_rows=2 * row.simdgroup_rows, head=head)
    return row.with_pages(signature.variants.page) if signature.variants.page else row


def decoding_rows(problem: Problem, family: Family) -> int:
    """Rows of a threadgroup in decoding: as many as the problem has, in whole fragments, up to the table's."""
    signature = problem.signature
    found = lookup(DECODE, signature.dtype, effective_family(DECODE, signature, family), _head_dim(signature))
    most, fragment = fitted_row(DECODE, signature, found), LAYERS[found.tiles].fragment_rows
    return min(most.parallel, -(-gqa_rows(problem) // fragment) * fragment)


def delta_inside(signature: Signature, family: Family | None, queries: int) -> bool:
    """Whether the kernel of dQ computes delta: one launch less, for which the kernels of dK and dV wait for dQ. It
    takes one argument more than they do."""
    return family is not None and queries < family.separate_delta and signature.variants.buffers < MOST_BUFFERS


def reads_codes(signature: Signature, family: Family) -> bool:
    """Whether tensor cores decode quantized keys and values. `signature`: with the format of these."""
    row = lookup(DECODE, signature.dtype, effective_family(DECODE, signature, family), _head_dim(signature))
    return row.tiles == DEQUANTIZING


def key_value_kinds(signature: Signature, family: Family | None) -> tuple[KernelKind, ...]:
    """The kernels that compute dK and dV: one for both, or one each where registers hold one accumulator. `family`:
    None on a backend without kernels."""
    if family is None:
        return (BACKWARD_KEY_VALUE,)
    effective = effective_family(BACKWARD_KEY_VALUE, signature, family)
    split = splits_dk_dv(signature.dtype, effective, _head_dim(signature))
    return (BACKWARD_KEY, BACKWARD_VALUE) if split else (BACKWARD_KEY_VALUE,)


def _head_dim(signature: Signature) -> int:
    """The dimension that picks the row: the larger of q's and v's."""
    return max(signature.head_dim, signature.value_dim)


def _is_latent(kind: KernelKind, signature: Signature) -> bool:
    """Decoding whose values are columns of keys: one key head for all query heads, and this many rows."""
    return kind is DECODE and signature.variants.latent
