"""Bytes that context parallelism sends and holds, from which the method and the number of gathered heads follow."""

from __future__ import annotations

from ..problem.problem import Problem

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
METHODS = ("exact", "reduce", "auto")
SHARE = 0.5  # memory for a gathered group of heads, relative to what a rank holds of a training step anyway


def _row_bytes(problem: Problem) -> dict[str, int]:
    """Bytes of one row of the sequence, of all heads and batch entries, by operand."""
    size, batch = BYTES[problem.dtype], problem.batch
    keys, queries = batch * problem.key_heads, batch * problem.query_heads
    return {
        "Q": size * queries * problem.head_dim, "K": size * keys * problem.head_dim,
        "V": size * keys * problem.value_dim, "dO": size * queries * problem.value_dim, "L and delta": 12 * queries,
    }  # fmt: skip


def bytes_sent(problem: Problem, ranks: int, method: str) -> dict[str, int]:
    """Bytes that one rank sends, forward and backward. `problem`: the rows of one rank.

    A ring passes each gathered shard on P - 1 times; a sum over P ranks sends each element 2 (P - 1) / P times.
    """
    rows, row = problem.query_length, _row_bytes(problem)
    gathered = row["K"] + row["V"]
    if method == "exact":
        backward = sum(row.values()) * (ranks - 1)
    else:
        elements = gathered // BYTES[problem.dtype]
        backward = gathered * (ranks - 1) + 2 * (ranks - 1) * 4 * elements
    return {"forward": rows * gathered * (ranks - 1), "backward": rows * backward}


def chosen_method(problem: Problem, ranks: int, method: str) -> str:
    """The method; for "auto" the one that sends fewer bytes in the backward pass, or "exact" where they are equal."""
    if method != "auto":
        return method
    sent = {one: bytes_sent(problem, ranks, one)["backward"] for one in ("exact", "reduce")}
    return "reduce" if sent["reduce"] < sent["exact"] else "exact"


def key_heads_at_once(problem: Problem, ranks: int, method: str = "exact", heads: int | None = None) -> tuple[int, int]:
    """The numbers of heads to gather at once, counted in key heads: of keys, for O and dQ, and of queries, for dK and
    dV; with "reduce" the second one is that of the whole backward pass. `heads`: the user's choice.

    Gathered keys and values take at most as many bytes as this rank's output. Where all of them do, they are gathered
    at once whatever the choice, since heads in several groups would hold the output twice at the end, and dQ. In the
    backward pass gathered arrays take at most SHARE of `own_bytes`. At least one head is gathered.
    """
    row, count = _row_bytes(problem), problem.key_heads
    counts = [one for one in range(count, 0, -1) if count % one == 0]
    most, keys = SHARE * own_bytes(problem), ranks * (row["K"] + row["V"])
    of_keys = next((one for one in counts if keys * one <= row["dO"] * count), 1)
    if heads is not None:
        return (of_keys if of_keys == count else heads), heads
    pairs = [(of_keys, one) for one in counts]
    return next((pair for pair in pairs if transient_bytes(problem, ranks, pair, method) <= most), (of_keys, 1))


def own_bytes(problem: Problem) -> int:
    """The bytes that a rank holds of a training step in any case: operands, results, statistics and gradients."""
    row = _row_bytes(problem)
    return problem.query_length * (2 * (row["Q"] + row["K"] + row["V"] + row["dO"]) + row["L and delta"])


def transient_bytes(problem: Problem, ranks: int, heads: tuple[int, int], method: str) -> int:
    """The most bytes that a rank holds besides `own_bytes` in the backward pass. `heads`: as `key_heads_at_once` gives
    them.

    "exact" gathers queries for dK and dV, and then keys for dQ; kernels read both in place, and only the statistics are
    reordered. "reduce" holds K and V as gathered and in order, and in float32 the operands, the partial dK and dV of
    two pieces, their sum, and the sum over ranks. Results of several launches exist twice for a moment, in parts and
    whole.
    """
    if ranks == 1:
        return 0
    row, count = _row_bytes(problem), problem.key_heads
    of_keys, of_queries = heads if method == "exact" else (heads[1], heads[1])
    keys, queries = row["K"] + row["V"], row["Q"] + row["dO"]

    def copies(at_once: int) -> int:  # some heads of several entries are copied to be sent
        return ranks + int(problem.batch > 1 and at_once < count)

    if method == "exact":
        gathered = of_queries / count * (copies(of_queries) * queries + 2 * ranks * row["L and delta"])
        gathered = max(gathered, of_keys / count * copies(of_keys) * keys)
    else:
        gathered = of_keys / count * ranks * (2 * keys + 5 * 4 * (keys // BYTES[problem.dtype]))
    most = max(gathered, row["Q"] if of_keys < count else 0) + max(row["K"], row["V"])
    return int(problem.query_length * (most + 16 * problem.batch * ranks))  # and the rows' positions
