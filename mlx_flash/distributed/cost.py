"""Bytes that context parallelism sends and holds: the rule of the methods, and of how many heads are gathered."""

from __future__ import annotations

from ..problem.problem import Problem

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
METHODS = ("exact", "reduce", "auto")
SHARE = 0.25  # of this rank's own q, k, v and output that a gathered group of heads may need


def _row_bytes(problem: Problem) -> dict[str, int]:
    """Bytes of one row of the sequence, all heads and batch entries, by operand."""
    size, batch = BYTES[problem.dtype], problem.batch
    keys, queries = batch * problem.key_heads, batch * problem.query_heads
    return {
        "Q": size * queries * problem.head_dim, "K": size * keys * problem.head_dim,
        "V": size * keys * problem.value_dim, "dO": size * queries * problem.value_dim, "L and delta": 12 * queries,
    }  # fmt: skip


def bytes_sent(problem: Problem, ranks: int, method: str) -> dict[str, int]:
    """Bytes that one rank sends, forward and backward. `problem`: of this rank's rows.

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
    """ "auto": the method that sends fewer bytes in the backward pass, "exact" where both send as many."""
    if method != "auto":
        return method
    sent = {one: bytes_sent(problem, ranks, one)["backward"] for one in ("exact", "reduce")}
    return "reduce" if sent["reduce"] < sent["exact"] else "exact"


def key_heads_at_once(problem: Problem, ranks: int) -> int:
    """The largest number of key heads whose gathered operands, of the backward pass, need at most SHARE of this rank's
    own operands and output; at least one."""
    row, heads = _row_bytes(problem), problem.key_heads
    own = row["Q"] + row["K"] + row["V"] + row["dO"]  # gathered, these are the same rows of every rank
    for count in range(heads, 1, -1):
        if heads % count == 0 and own * ranks * count / heads <= SHARE * own:
            return count
    return 1


def own_bytes(problem: Problem) -> int:
    """The bytes that a rank holds of a training step whatever the others do: operands, results, statistics and
    gradients."""
    row = _row_bytes(problem)
    return problem.query_length * (2 * (row["Q"] + row["K"] + row["V"] + row["dO"]) + row["L and delta"])


def transient_bytes(problem: Problem, ranks: int, heads: int, method: str) -> int:
    """The most that a rank holds besides in the backward pass, where `heads` key heads are gathered at once.

    Each group stands twice, as it came and in the sequence's order, and the group after it may be on its way; results
    stand twice, as parts and as a whole. "reduce" has K and V in place of all operands, but its parts of dK and dV in
    float32: of two pieces, their sum, the sum over ranks, and the operands in float32.
    """
    row, groups = _row_bytes(problem), min(2, problem.key_heads // heads)
    gathered = row["K"] + row["V"]
    bytes_of_row = 2 * (sum(row.values()) if method == "exact" else gathered)
    if method == "reduce":
        bytes_of_row += 5 * 4 * (gathered // BYTES[problem.dtype])
    parts = row["Q"] + gathered + row["dO"]
    in_flight = ranks * bytes_of_row * groups * heads // problem.key_heads
    return problem.query_length * (parts + in_flight) if ranks > 1 else 0
