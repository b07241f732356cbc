"""Split-KV for decoding: few queries, whose heads share one tile, and keys that many simdgroups process at once.

Keys are split twice. A threadgroup traverses one part of them, and combine.metal joins the parts. Within a part,
simdgroups that own the same rows traverse slices of it, or on NVIDIA's tensor cores slices of each block, and join
their results in threadgroup memory, which costs no launch.

The number of parts gives each core the simdgroups that its family wants for a batch of one, with at least LEAST keys in
a part and at most MOST parts; few keys, as the family says, stay in one part. The kernel applies the rule to each row's
own number of keys. Batch size and other rows have no influence, although a large batch would fill the GPU with fewer
parts: parts decide how sums round, and a sequence must get the same bits in every batch (joining parts of LEAST keys
adds about 1 % to the bytes of a step). Keys that causality and the window hide from every query are in no part.

Not yet timed on a Mac; the families of NVIDIA were tuned on an H200.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from ..problem.kinds import ACCUMULATORS, DECODE, KernelKind
from ..problem.problem import Problem
from .config import TileConfig
from .devices import FAMILIES, Family
from .tile_layers import LAYERS

QUERIES = 32  # the most queries that decoding serves: drafts of speculative decoding
LEAST, MOST = 256, 512  # fewest keys of a part, most parts
SPLITS = 4  # simdgroups that split the keys of a part
UNSHARED_TRAVERSAL = 32  # keys of a block that one simdgroup of M1 or M2 reads alone
SLICE = 32  # keys of a block that one of several consumer warps multiplies
SIMDGROUPS = 32  # per core of an Apple GPU


class Parts(NamedTuple):
    """How the kernel splits a row of n keys: one part where n <= `unsplit`, else as many as hold `least` keys each, but
    no more than `most`. `count`: parts of the launch, which are those of the longest row; 0 before lengths are
    known."""

    unsplit: int
    least: int
    most: int
    count: int = 0


def decodes(problem: Problem) -> bool:
    """Whether the decoding kernel serves the call rather than the forward kernel, on a backend that has both."""
    variants = problem.variants
    return problem.query_length <= QUERIES and not variants.dropout and not variants.pieces


def describe(problem: Problem, decoding: bool, backend: str, parts: int) -> str:
    """A sentence for `explain`: which kernels compute O and L, and why. `decoding`: the backend has the kernel."""
    if decoding and decodes(problem):
        joined = f"in {parts} parts that combine joins" if parts > 1 else "in one part"
        return f"decode: {gqa_rows(problem)} queries share a key head, keys {joined}"
    if problem.query_length > QUERIES:
        return f"forward: {problem.query_length} queries, more than the {QUERIES} of decoding"
    return "forward: decoding has no dropout" if decoding else f"forward: no decoding on {backend}"


def gqa_rows(problem: Problem) -> int:
    """Queries that share one key head: the rows of the decoding kernel's query operand."""
    return problem.signature.group * problem.query_length


def keys_seen(problem: Problem) -> int:
    """The number of keys from the first one that the window shows to any query. keys_of in mask.metal computes the
    same."""
    keys, window = problem.key_length, problem.variants.window
    if window is None or problem.variants.shifts:  # only the kernel knows the shifts
        return keys
    return keys - max(0, keys - problem.query_length - window[0])


def unsplit_keys(problem: Problem, family: Family) -> int:
    """The number of keys up to which one part is faster than several that have to be joined."""
    return family.split_kv_threshold // (problem.head_dim + problem.value_dim)


def decoding_config(row: TileConfig, rows: int, family: Family) -> TileConfig:
    """The table's row for a threadgroup of `rows` rows, with the number of simdgroups that split its keys.

    It is one where the accumulator is paged, since there is one output buffer for it, and where several simdgroups copy
    blocks to threadgroup memory together, since they traverse the same keys. On NVIDIA's tensor cores simdgroups share
    each block instead, which stays as long as it is, and with it the parts of the keys.
    """
    found = row.shrink_to(rows)
    alone = found.parallel == found.simdgroup_rows
    if LAYERS[row.tiles].producer_warps:
        slices = found.traversal // SLICE if alone and found.traversal % SLICE == 0 else 1
        return replace(found, traversal=found.traversal // slices, splits=slices)
    if (family.uses_threadgroup_memory and not alone) or not set(row.cached) & ACCUMULATORS:
        return found
    # The rows of such a family are for blocks in threadgroup memory. Read directly, wide loads go along the head
    # dimension, and a shorter block leaves registers for their addresses.
    if FAMILIES[family.name].uses_threadgroup_memory:
        found = replace(found, traversal=min(found.traversal, UNSHARED_TRAVERSAL), head=2 * found.head)
    return replace(found, splits=SPLITS)


def keys_are_unshared(kind: KernelKind, config: TileConfig) -> bool:
    """Whether no two simdgroups read the same keys. `config`: as `decoding_config` made it, for 8x8 matrices."""
    shares = config.parallel > config.simdgroup_rows
    return kind is DECODE and config.tiles == "simdgroup" and (config.splits > 1 or not shares)


def rule_of(problem: Problem, config: TileConfig, family: Family) -> Parts:
    """The rule of the parts for all problems with this number of queries. `config`: as `decoding_config` made it."""
    blocks = -(-gqa_rows(problem) // config.parallel)
    threadgroups = family.threadgroups or -(-SIMDGROUPS * 32 // config.threads)
    most = min(MOST, -(-family.cores * threadgroups // (problem.key_heads * blocks)))
    return Parts(unsplit_keys(problem, family), LEAST, most)


def count_of(problem: Problem, rule: Parts, config: TileConfig) -> int:
    """The number of parts of a problem's launch."""
    variants = problem.signature.variants
    seen = problem.key_length if variants.window is None else keys_seen(problem)
    # Only the kernel knows the rows' lengths here, and rounding may give a shorter row more parts than the longest has.
    if variants.lengths or (variants.window and variants.shifts):
        return parts_wanted(seen, rule)
    return -(-seen // part_length(seen, rule, config))


def parts_wanted(keys: int, rule: Parts) -> int:
    """The number of parts of a row before their lengths are rounded up, which may leave fewer."""
    if keys <= rule.unsplit or keys < 2 * rule.least:
        return 1
    parts = keys // rule.least
    return parts if parts < rule.most else rule.most


def part_length(keys: int, rule: Parts, config: TileConfig) -> int:
    """The keys of one part, whole blocks for each simdgroup; part_length in decode.metal computes the same."""
    unit = config.traversal * config.splits
    return -(-keys // (parts_wanted(keys, rule) * unit)) * unit
