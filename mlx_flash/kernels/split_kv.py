"""Decoding: few queries, whose heads share one tile, and keys in parts that are worked on at once (split-KV).

The rule of the parts: as many as give each core the threadgroups its family wants if the batch has one entry, but none
of fewer than LEAST keys, and at most MOST; one, if the family's threadgroups serve so few keys alone. The batch has no
say, although a large one fills the GPU with fewer parts: parts decide how sums round, and a sequence must get the same
bits whatever it is batched with (joining parts of LEAST keys adds about a hundredth to the bytes of a step). Keys that
causality and the window hide from every query are in no part. Not yet timed on a Mac; the families of NVIDIA were tuned
on an H200.
"""

from __future__ import annotations

from ..problem.problem import Problem
from .config import TileConfig
from .devices import Family

QUERIES = 8  # at most: what one fragment of a tile holds
LEAST, MOST = 256, 128  # keys of a part; parts


def decodes(problem: Problem) -> bool:
    """Does the decoding kernel serve the call, or the forward kernel? Asked of backends that have both."""
    return problem.query_length <= QUERIES and not problem.variants.dropout


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


def serves_alone(problem: Problem, family: Family) -> bool:
    """Is one part faster than several that have to be joined?"""
    return keys_seen(problem) * (problem.head_dim + problem.value_dim) <= family.split_kv_threshold


def part_length(problem: Problem, config: TileConfig, family: Family) -> int:
    """Keys of one part, a multiple of the block the kernel walks by."""
    blocks = -(-gqa_rows(problem) // config.parallel)
    wanted = -(-family.cores * family.threadgroups // (problem.key_heads * blocks))
    seen = keys_seen(problem)
    parts = 1 if serves_alone(problem, family) else max(1, min(wanted, seen // LEAST, MOST))
    return max(1, -(-seen // (parts * config.traversal))) * config.traversal


def split_keys(problem: Problem, config: TileConfig, family: Family) -> tuple[int, int]:
    """(keys of a part, number of parts)."""
    length = part_length(problem, config, family)
    return length, max(1, -(-keys_seen(problem) // length))
