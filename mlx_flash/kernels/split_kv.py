"""Decoding: few queries, whose heads share one tile, and keys that many simdgroups work on at once (split-KV).

Keys are split twice. A threadgroup walks along one part of them, and combine.metal joins the parts; within a part,
simdgroups that own the same rows walk along slices of it and join them in threadgroup memory, which costs no launch.
The rule of the parts: as many as give each core the simdgroups its family wants if the batch has one entry, but none
of fewer than LEAST keys, and at most MOST; one, if the family's threadgroups serve so few keys alone. The kernel
applies it to each row's own number of keys. The batch has no say, nor have the other rows, although a large batch fills
the GPU with fewer parts: parts decide how sums round, and a sequence must get the same bits whatever it is batched with
(joining parts of LEAST keys adds about a hundredth to the bytes of a step). Keys that causality and the window hide
from every query are in no part. Not yet timed on a Mac; the families of NVIDIA were tuned on an H200.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from ..problem.kinds import ACCUMULATORS, DECODE, KernelKind
from ..problem.problem import Problem
from .config import TileConfig
from .devices import FAMILIES, Family
from .tile_layers import LAYERS

QUERIES = 32  # at most: drafts of speculative decoding, whose GQA rows are few
LEAST, MOST = 256, 512  # keys of a part; parts
SPLITS = 4  # simdgroups that split the keys of a part
UNSHARED_TRAVERSAL = 32  # keys of a block that a simdgroup of M1 or M2 reads for itself
SIMDGROUPS = 32  # of each core of an Apple GPU


class Parts(NamedTuple):
    """How the kernel splits a row of n keys: one part where n <= `unsplit`, else as many as hold `least` keys each, but
    no more than `most`. `count`: parts of the row that has most of them, and of the launch; 0 in a rule that no lengths
    were asked of."""

    unsplit: int
    least: int
    most: int
    count: int = 0


def decodes(problem: Problem) -> bool:
    """Does the decoding kernel serve the call, or the forward kernel? Asked of backends that have both."""
    variants = problem.variants
    return problem.query_length <= QUERIES and not variants.dropout and not variants.pieces


def describe(problem: Problem, decoding: bool, backend: str, parts: int) -> str:
    """Which kernels make O and L, in words, and why. `decoding`: the backend has the decoding kernel."""
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
    """Keys from the first that any query sees on, by its window: the last query's own key is the last. keys_of in
    mask.metal says the same."""
    keys, window = problem.key_length, problem.variants.window
    if window is None or problem.variants.shifts:  # shifts are known to the kernel only
        return keys
    return keys - max(0, keys - problem.query_length - window[0])


def unsplit_keys(problem: Problem, family: Family) -> int:
    """Keys up to which one part is faster than several that have to be joined."""
    return family.split_kv_threshold // (problem.head_dim + problem.value_dim)


def decoding_config(row: TileConfig, rows: int, family: Family) -> TileConfig:
    """The table's row for a threadgroup of `rows` rows, with the simdgroups that split its keys: one where
    the accumulator is paged, to the only place there is for it, and where several simdgroups copy blocks to threadgroup
    memory together, since these walk along the same keys."""
    found = row.shrink_to(rows)
    together = family.uses_threadgroup_memory and found.parallel > found.simdgroup_rows
    if LAYERS[row.tiles].producer_warps or together or not set(row.cached) & ACCUMULATORS:
        return found
    # The row is for blocks that are shared, if the family has such. Read directly, wide runs lie along the head
    # dimension, and addresses take registers of which a shorter block leaves more.
    if FAMILIES[family.name].uses_threadgroup_memory:
        found = replace(found, traversal=min(found.traversal, UNSHARED_TRAVERSAL), head=2 * found.head)
    return replace(found, splits=SPLITS)


def keys_are_unshared(kind: KernelKind, config: TileConfig) -> bool:
    """Does every simdgroup read keys of its own? `config`: as `decoding_config` made it, for 8x8 matrices."""
    shares = config.parallel > config.simdgroup_rows
    return kind is DECODE and config.tiles == "simdgroup" and (config.splits > 1 or not shares)


def rule_of(problem: Problem, config: TileConfig, family: Family) -> Parts:
    """The rule for all problems with this number of queries. `config`: as `decoding_config` made it."""
    blocks = -(-gqa_rows(problem) // config.parallel)
    threadgroups = family.threadgroups or -(-SIMDGROUPS * 32 // config.threads)
    most = min(MOST, -(-family.cores * threadgroups // (problem.key_heads * blocks)))
    return Parts(unsplit_keys(problem, family), LEAST, most)


def count_of(problem: Problem, rule: Parts, config: TileConfig) -> int:
    """Parts of the launch for a problem."""
    variants = problem.signature.variants
    seen = problem.key_length if variants.window is None else keys_seen(problem)
    # Where only the kernel knows how many keys a row has, rounding may leave some rows more parts than the longest.
    if variants.lengths or (variants.window and variants.shifts):
        return parts_wanted(seen, rule)
    return -(-seen // part_length(seen, rule, config))


def parts_wanted(keys: int, rule: Parts) -> int:
    """Parts of a row before their lengths are rounded up, which may leave fewer."""
    if keys <= rule.unsplit or keys < 2 * rule.least:
        return 1
    parts = keys // rule.least
    return parts if parts < rule.most else rule.most


def part_length(keys: int, rule: Parts, config: TileConfig) -> int:
    """Keys of one part, a whole number of blocks for each simdgroup; part_length in decode.metal says the same."""
    unit = config.traversal * config.splits
    return -(-keys // (parts_wanted(keys, rule) * unit)) * unit
