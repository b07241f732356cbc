"""What context parallelism sends and holds, in bytes: the rule of the methods, and of how many heads are gathered."""

from __future__ import annotations

from ..problem.problem import Problem

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
SHARE = 0.5  # of this rank's own q, k, v and output that a gathered group of heads may need


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

    A ring passes what it gathers on P - 1 times; a sum over P ranks sends each element 2 (P - 1) / P times.
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
