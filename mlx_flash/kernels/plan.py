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
from ..problem.variants import MOST_BUFFERS
from .apple import lookup, splits_dk_dv
from .config import TileConfig, precision_of
from .devices import Family, Tuned
from .launch import Launch, launch
from .neural import PRODUCT_COLUMNS
from .nvidia import mma_rows, sharing_cores
from .registers import max_threads
from .source import Kernel, build
from .split_kv import count_of, decoding_config, gqa_rows, keys_are_unshared, rule_of
from .tile_layers import LAYERS

LAUNCHES = 256  # that one plan keeps
# Rows of a threadgroup in latent attention, and where nothing is cached, in 16 bits. Every block of keys is copied to
# threadgroup memory once as keys and once as values. Copied once for both it would need all columns there: of 576 no
# more than 24 keys fit in 32 KiB, and blocks of 24 in the place of 64 page O 2.7 times as often, which moves 13.6 KB a
# key more, for 1 KB saved.
LATENT_ROWS, MANY_LATENT_ROWS = 64, 128
LATENT_HEAD = 32  # columns of a head block where a simdgroup owns more rows: as many accumulators in flight


@dataclass(frozen=True)
class Plan:
    """`signature`: head dimensions already multiples of 8. `rows`: in decoding, the rows of a threadgroup. `readable`:
    the kernel's text keeps comments and names, to be looked at.

    `resources`: a cache for this kernel: launches, compiled code by the backend's name, and in decoding the rules
    of the parts, by the number of queries.
    """

    kind: KernelKind
    signature: Signature
    family: Family
    rows: int = 0
    readable: bool = False
    resources: dict = field(default_factory=lambda: {"launches": {}}, compare=False, repr=False)

    @property
    def head_dim(self) -> int:
        """The dimension that picks the row: the larger of q's and v's."""
        return max(self.signature.head_dim, self.signature.value_dim)

    @cached_property
    def effective_family(self) -> Family:
        found = effective_family(self.signature, self.family)
        # Where simdgroups read keys directly, each would read them for itself.
        return replace(found, uses_threadgroup_memory=True) if self.latent and found.apple else found

    @property
    def latent(self) -> bool:
        """Decoding whose values are columns of keys: one key head for all query heads, and so many rows."""
        return self.kind is DECODE and self.signature.variants.latent

    @cached_property
    def table_row(self) -> TileConfig:
        return lookup(self.kind, self.signature.dtype, self.effective_family, self.head_dim)

    @cached_property
    def row(self) -> TileConfig:
        """The table's row with blocks of keys that are no longer than a page, since no block lies in two, and with the
        many rows of latent attention."""
        row, page = self.table_row, self.signature.variants.page
        if self.latent and row.tiles == "simdgroup":
            row = self._latent_row(row)
        return row.with_pages(page) if page else row

    def _latent_row(self, row: TileConfig) -> TileConfig:
        """The row with those of latent attention; more simdgroups than it has now would need too many registers."""
        if row.cached or self.signature.dtype == "float32" or 0 < self.rows <= LATENT_ROWS:
            return replace(row, parallel=max(row.parallel, LATENT_ROWS))
        head = min(row.head, LATENT_HEAD)
        return replace(row, parallel=MANY_LATENT_ROWS, simdgroup_rows=2 * row.simdgroup_rows, head=head)

    @cached_property
    def config(self) -> TileConfig:
        """The table's row, as the signature needs it."""
        if self.kind is DECODE:
            return decoding_config(self.row, self.rows, self.effective_family)
        signature, family = self.signature, self.effective_family
        if not signature.variants.block:
            return self.row
        row = self.row.with_blocks(signature.variants.block, PRODUCT_COLUMNS if self.row.tiles == "nax" else None)
        return sharing_cores(self.kind, row, family, signature.head_dim, signature.value_dim)

    @cached_property
    def text_family(self) -> Family:
        """The family as the kernel's text uses it: a simdgroup that shares no block of keys with another reads them
        directly, unless they have to be dequantized."""
        stays = self.latent or self.signature.variants.quantization is not None
        if stays or not keys_are_unshared(self.kind, self.config):
            return self.effective_family
        return replace(self.effective_family, uses_threadgroup_memory=False)

    @cached_property
    def max_threads(self) -> int | None:
        return max_threads(self.kind, self.config, precision_of(self.signature.dtype), self.family, self.head_dim)

    @cached_property
    def kernel(self) -> Kernel:
        signature = self.signature
        return build(
            self.kind, self.config, self.text_family, signature.dtype, signature.head_dim, signature.value_dim,
            signature.variants.text, self.max_threads, self.readable,
        )  # fmt: skip

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


@lru_cache(maxsize=1024)
def plan(kind: KernelKind, signature: Signature, family: Family, rows: int = 0) -> Plan:
    return Plan(kind, signature, family, rows)


def plan_of(kind: KernelKind, problem: Problem, family: Family) -> Plan:
    """The plan that serves a problem: in decoding its rows are as many as the problem has, up to the table's."""
    if kind is not DECODE:
        return plan(kind, problem.signature, family)
    most = plan(kind, problem.signature, family).row
    fragment = LAYERS[most.tiles].fragment_rows
    return plan(kind, problem.signature, family, min(most.parallel, -(-gqa_rows(problem) // fragment) * fragment))


def effective_family(signature: Signature, family: Family) -> Family:
    """The family as the signature uses it. Quantized operands are dequantized in threadgroup memory on every family;
    Hopper falls back to mma.sync where a tile of a block mask is smaller than a warpgroup, M5 to 8x8 matrices where a
    page is shorter than a block of keys. Tuned rows are for none of these."""
    if signature.variants.quantization is not None:
        return replace(family, uses_threadgroup_memory=True, tensor="", tuned=Tuned())
    block, page = signature.variants.block, signature.variants.page
    family = replace(family, tuned=Tuned()) if (block or page) and family.tuned.rows else family
    if family.tensor == "nax" and page and page % PRODUCT_COLUMNS:
        return replace(family, tensor="")
    return replace(family, tensor="sm80") if block and block % mma_rows(family) else family


def delta_inside(signature: Signature, family: Family | None, queries: int) -> bool:
    """Is delta made by the kernel of dQ? A launch less, for which those of dK and dV wait for dQ, and an argument more
    than those have."""
    return family is not None and queries < family.delta_apart and signature.variants.buffers < MOST_BUFFERS


def key_value_kinds(signature: Signature, family: Family | None) -> tuple[KernelKind, ...]:
    """The kernels that make dK and dV: one, or one each where registers hold one accumulator. `family`: None on a
    backend that runs no kernels."""
    if family is None:
        return (BACKWARD_KEY_VALUE,)
    head_dim = max(signature.head_dim, signature.value_dim)
    split = splits_dk_dv(signature.dtype, effective_family(signature, family), head_dim)
    return (BACKWARD_KEY, BACKWARD_VALUE) if split else (BACKWARD_KEY_VALUE,)
