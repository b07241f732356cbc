"""The checks of `lengths` (batch entries of unequal lengths) and `pages` (keys and values in pages of a pool).

They never read the arrays' values: it is the caller's duty that lengths fit and that tables name pages of the pool.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from ..common.errors import wrong

PAGE_MULTIPLE = 8  # rows of a page are a multiple of it, so that a fragment of the matrix unit lies in one page


def check_form(lengths, segments) -> None:
    """Raises ValueError unless `lengths` is an integer array or a pair of such arrays, the queries' one or None."""
    if segments is not None:  # beside pages: without them `ended_segments` has made one of both
        raise wrong("segments", "None beside pages", "both", "Give every sequence a batch entry of its own.")
    for name, array in zip(("q_lengths", "k_lengths"), pair(lengths)):
        integers = isinstance(array, mx.array) and mx.issubdtype(array.dtype, mx.integer)
        integers = integers or (isinstance(array, np.ndarray) and np.issubdtype(array.dtype, np.integer))
        if not integers and not (array is None and name == "q_lengths"):
            got = array.dtype if isinstance(array, (mx.array, np.ndarray)) else type(array).__name__
            raise wrong(f"lengths {name}", "an integer array [B]", got, "Pass mx.array([...]), or a pair of arrays.")


def pair(lengths) -> tuple:
    """(lengths of queries or None, lengths of keys)."""
    if not isinstance(lengths, (tuple, list)):
        return None, lengths
    if len(lengths) != 2:
        raise wrong(
            "lengths", "an integer array, or (of queries, of keys)", f"{len(lengths)} values", "Pass mx.array([...])."
        )
    return tuple(lengths)


def check_pages(pages, page: int, lengths, blocks: bool, dropout) -> None:
    """Raises ValueError unless `pages` is a table of pages of `page` rows, and the options beside it can be served."""
    if not isinstance(pages, mx.array) or pages.dtype != mx.int32 or pages.ndim != 2:
        got = f"{pages.dtype} of shape {pages.shape}" if isinstance(pages, mx.array) else type(pages).__name__
        raise wrong("pages", "int32 [B, n], or [1, n] for all entries", got, "Pass the numbers of pages of the pool.")
    if lengths is None:
        raise wrong("lengths", "the number of keys of every batch entry beside pages", "None", "Pass int32 [B].")
    if page % PAGE_MULTIPLE or not page:
        raise wrong("k", f"pages [N, Hk, P, D] of P rows, a multiple of {PAGE_MULTIPLE}", f"P = {page}", "Take 64.")
    if blocks:
        raise wrong("mask", "None or an array beside pages", "a BlockMask", "Pass a bool array.")
    if dropout:
        raise wrong("dropout", "0 beside pages", dropout, "Pages are for inference: gather keys for training.")


def check_extents(batch: int, lengths, pages) -> None:
    """Raises ValueError unless lengths [B] and pages [B or 1, n] fit the batch."""
    if lengths is not None:
        for name, array in zip(("q_lengths", "k_lengths"), pair(lengths)):
            if array is not None and tuple(array.shape) != (batch,):
                raise wrong(f"lengths {name}", f"shape [B] = [{batch}]", f"{array.shape}", "Give one for each entry.")
    if pages is not None and pages.shape[0] not in (1, batch):
        raise wrong(
            "pages", f"[B, n] or [1, n] with B = {batch} as in q", f"shape {pages.shape}", "Give each entry a row."
        )
