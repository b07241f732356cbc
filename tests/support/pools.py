"""Keys and values in pages, made from contiguous arrays: pages in random order, NaN wherever there is no key."""

import mlx.core as mx
import numpy as np


def garbage(dtype: mx.Dtype):
    return 0xFFFFFFFF if dtype == mx.uint32 else 255 if dtype == mx.uint8 else float("nan")


def table_of(lengths: list[int], page: int, entries: int | None = None, seed: int = 0) -> mx.array:
    """int32 [B, n]: a page for every run of `page` keys, in random order; -1 behind an entry's last page."""
    needed = [-(-length // page) for length in lengths]
    order = iter(np.random.default_rng(seed).permutation(sum(needed)))
    table = np.full((len(lengths), entries or max(needed)), -1, np.int32)
    for row, count in zip(table, needed):
        row[:count] = [next(order) for _ in range(count)]
    return mx.array(table)


def pool_of(array: mx.array, table: mx.array, lengths: list[int], page: int, by_rows: bool = False) -> mx.array:
    """[N, heads, page, columns] with the existing keys of [B, heads, length, columns]; one page belongs to no sequence.

    by_rows: the result is a view of an array [N, page, heads, columns].
    """
    exact = array.astype(mx.float32) if array.dtype not in (mx.uint32, mx.uint8) else array
    values, kind = np.array(exact), np.array(exact[:0]).dtype
    pages = int(np.array(table).max()) + 2
    pool = np.full((pages, array.shape[1], page, array.shape[3]), garbage(array.dtype), kind)
    for b, length in enumerate(lengths):
        for j in range(-(-length // page)):
            part = values[b, :, j * page : min((j + 1) * page, length)]
            pool[int(table[b, j]), :, : part.shape[1]] = part
    found = mx.array(pool).astype(array.dtype)
    if by_rows:
        found = mx.contiguous(found.swapaxes(1, 2)).swapaxes(1, 2)
    mx.eval(found)
    return found
