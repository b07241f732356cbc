"""The public functions: attention, and attention over quantized keys and values."""

from __future__ import annotations

import mlx.core as mx

from .autodiff.call import prepared
from .autodiff.learned import numbers_of
from .autodiff.operands import ended_segments
from .backends import backend as backend_of
from .backends import current_backend
from .masks import BlockMask
from .problem.formulas.score import Score, Visible, text
from .problem.latent import code_columns_of, columns_of
from .problem.quantization import quantization_of


def attention(
    q: mx.array,
    k: mx.array,
    v: mx.array | None = None,
    *,
    value_dim: int | None = None,
    scale: float | None = None,
    mask: str | mx.array | BlockMask | None = None,
    causal: bool = False,
    window: tuple[int | None, int | None] | None = None,
    softcap: float | None = None,
    alibi_slopes: mx.array | None = None,
    sinks: mx.array | None = None,
    segments: tuple[mx.array, mx.array] | None = None,
    lengths: mx.array | tuple[mx.array | None, mx.array] | None = None,
    pages: mx.array | None = None,
    dropout: float = 0.0,
    key: mx.array | None = None,
    score: Score | str | None = None,
    visible: Visible | str | None = None,
    return_lse: bool | str = False,
    stream: mx.Stream | mx.Device | None = None,
) -> mx.array | tuple[mx.array, mx.array]:
    """Exact attention, softmax(scale * q k^T) v, in memory linear in the lengths, with gradients.

    Args:
        q: [B, Hq, Lq, D], float32, float16 or bfloat16. Any D of at least 1; multiples of 8 avoid a padded copy.
        k: [B, Hk, Lk, D], q's dtype. Hq must be a multiple of Hk: query head h uses key head h // (Hq // Hk).
        v: [B, Hk, Lk, Dv], q's dtype. Latent attention: None, or k itself; values are then the first columns of keys,
            and forward kernels load keys once for both.
        value_dim: where v is None, the number of those columns.
        scale: multiplies q k^T; finite. None means 1/sqrt(D). An mx.array of one number is a learned scale: q is
            multiplied by it, and its gradient is MLX's.
        mask: None, "causal", a BlockMask, or an array that broadcasts to [B, Hq, Lq, Lk] and is read through its
            strides: bool (True = keep), or a float type that is added to the scores, with a gradient of its own shape;
            -inf there masks; finite values are numbers like any others, the least finite float32 too.
        causal: the same as mask="causal", and combines with the other masks. Aligned to the lower right: query i has
            position i + Lk - Lq among the keys and sees those up to it. Segments align to their own lower right: the
            last query of a segment has the position of its last key.
        window: (left, right): a query sees that many keys before and after its own position; None or -1: no bound.
        softcap: scores become softcap * tanh(scores / softcap), before masks are added; None or 0: no cap. It has no
            gradient: asking for one raises UnsupportedProblem.
        alibi_slopes: [Hq]: adds -slope * |position of i - j|; fixed: a gradient asked of it raises UnsupportedProblem.
        sinks: [Hq]: a score per head that every query sees and that has no value (attention sinks); differentiable.
        segments: (q_ids, k_ids), integers [B, L] or [L]: a query sees only keys of its own segment (packed sequences).
            Ids of more than 32 bits are read to see that they fit.
        lengths: integers [B], the keys of every batch entry; or (of queries or None, of keys). Positions count from
            each entry's own end: its last query has the position of its last key. Queries behind their entry's end give
            zeros (LSE -inf); what lies behind an end, NaN too, reaches nothing. Larger numbers than Lq and Lk count as
            these. Beside segments, positions count within each segment's part that exists.
        pages: int32 [B, n], or [1, n] for all entries: k is a pool [N, Hk, P, D] and v [N, Hk, P, Dv], and key j of
            entry b is row j % P of page pages[b, j // P]; Lk is n * P. Needs lengths; P is a multiple of 8, and 64 fits
            the kernels' blocks. A pool [N, P, Hk, D] is read in place through .swapaxes(1, 2). Entries of the table
            behind the last key are not read. That the others name pages of the pool is the caller's duty: the simulator
            stops at one that does not, a GPU reads what lies there. Forward only; no segments, BlockMask, dropout.
        dropout: probability with which softmax weights are dropped; survivors are scaled by 1 / (1 - dropout).
        key: mx.random key of the dropout, which decides its pattern; not used where dropout is 0.
        score: a Score, or its text: a function of your own of every score, compiled into the kernels, after softcap and
            before anything is added. Its float arrays have gradients (`Score` says which).
        visible: a Visible, or its text: which pairs see each other, compiled into the kernels, beside all other masks
            but a BlockMask.
        return_lse: also return the natural logarithm of each row's sum of exponentials (LSE), differentiable. "split":
            in two parts, the row's largest score and the logarithm of the sum relative to it, whose sum is the LSE.
            Where all scores of a row are shifted far away, as by a finite mask of -1e9, only the parts keep every
            digit; `merge` takes both forms. Gradients belong to functions of the sum of the parts.
        stream: stream or device of the launches.

    Returns:
        [B, Hq, Lq, Dv] in q's dtype; with return_lse also float32 [B, Hq, Lq], with "split" float32 [2, B, Hq, Lq]. A
        query that sees no key gives zeros (LSE -inf; split -inf and 0) and takes part in no gradient. Views are read in
        place if their last axis is contiguous (on CUDA, if no copy is faster). NaN or infinity behind a masked key
        reaches nothing; what is seen acts as in IEEE, unless its weight rounds to 0.

    Raises:
        ValueError: an argument is wrong; the message names it, what was expected, what came and what to do.
        UnsupportedProblem: the chosen backend cannot serve the call. Second derivatives and mx.jvp raise it too.

    mlx_flash.vmap maps any axis of any array into the batch axis: one launch, unless slopes, sinks or dropout differ by
    entry. mlx_flash.export_function exports. No shapeless compilation (shapeless=True): kernels are chosen by shapes.
    mx.compile and mx.checkpoint work around it (the simulator runs at once, and so not inside mx.compile). Scores,
    statistics and their gradients stay float32 whatever the inputs' dtype; results repeat bit for bit.
    Source: FlashAttention-2 (Dao 2023); kernels after metal-flash-attention (Turner 2024).
    """
    arguments = {
        "scale": scale, "mask": mask, "causal": causal, "window": window, "softcap": softcap,
        "alibi_slopes": alibi_slopes, "sinks": sinks, "segments": segments, "lengths": lengths, "pages": pages,
        "dropout": dropout, "key": key, "latent": v is None or v is k,
        "score": None if score is None else text(score, Score),
        "visible": None if visible is None else text(visible, Visible),
    }  # fmt: skip
    if segments is not None and lengths is not None and pages is None and isinstance(q, mx.array):
        arguments = ended_segments(q, arguments, stream)
    if v is None or value_dim is not None:
        v = columns_of(k, v, value_dim)
    if mx.array in (type(scale), type(softcap), type(dropout)):
        q, arguments = numbers_of(q, arguments, stream)
    call = prepared(q, k, v, current_backend(), stream, return_lse, arguments)
    return call.run(q, k, v, arguments)


def quantized_attention(
    q: mx.array,
    k: tuple[mx.array, ...],
    v: tuple[mx.array, ...] | None = None,
    *,
    value_dim: int | None = None,
    group_size: int | None = None,
    bits: int | None = None,
    mode: str = "affine",
    scale: float | None = None,
    mask: str | mx.array | BlockMask | None = None,
    causal: bool = False,
    window: tuple[int | None, int | None] | None = None,
    softcap: float | None = None,
    alibi_slopes: mx.array | None = None,
    sinks: mx.array | None = None,
    segments: tuple[mx.array, mx.array] | None = None,
    lengths: mx.array | tuple[mx.array | None, mx.array] | None = None,
    pages: mx.array | None = None,
    score: Score | str | None = None,
    visible: Visible | str | None = None,
    return_lse: bool | str = False,
    stream: mx.Stream | mx.Device | None = None,
) -> mx.array | tuple[mx.array, mx.array]:
    """`attention` over keys and values as mx.quantize returns them, dequantized as they are read. Forward only.

    Args:
        q: [B, Hq, Lq, D], float32, float16 or bfloat16.
        k: what mx.quantize returns for [B, Hk, Lk, D], as mlx-lm's QuantizedKVCache holds it: (codes, uint32
            [B, Hk, Lk, D * bits / 32], scales [B, Hk, Lk, D / group_size]) and, in mode "affine", biases like scales.
            Scales and biases of mode "affine" have q's dtype. Slices of a larger cache are read in place.
        v: the same for [B, Hk, Lk, Dv].
        mode, bits, group_size: "affine" with 2, 3, 4, 5, 6 or 8 bits and groups of 32, 64 or 128 (default 4 and 64);
            "mxfp4" (4 bits, groups of 32), "mxfp8" (8, 32), "nvfp4" (4, 16; without a global scale).
        value_dim: where v is None, as in `attention`: a multiple of group_size.
        scale, mask, causal, window, softcap, alibi_slopes, sinks, segments, lengths, pages, score, visible, return_lse,
            stream: as in `attention`; every part of k and v is paged alike. What it has beyond these, dropout, belongs
            to training.

    Returns:
        [B, Hq, Lq, Dv] in q's dtype; with return_lse also float32 [B, Hq, Lq], with "split" float32 [2, B, Hq, Lq].

    Raises:
        ValueError: an argument is wrong, or bits, group size or mode have no kernel.
        UnsupportedProblem: a derivative is asked for. mx.vmap is served as in `attention`.

    Kernels on "metal" and "simulator" read a key once for all query heads that share it, as `attention` does; elsewhere
    blocks are dequantized one by one, in memory linear in the lengths.
    """
    arguments = {
        "scale": scale, "mask": mask, "causal": causal, "window": window, "softcap": softcap,
        "alibi_slopes": alibi_slopes, "sinks": sinks, "segments": segments, "lengths": lengths, "pages": pages,
        "latent": v is None or v is k, "score": None if score is None else text(score, Score),
        "visible": None if visible is None else text(visible, Visible),
    }  # fmt: skip
    if segments is not None and lengths is not None and pages is None and isinstance(q, mx.array):
        arguments = ended_segments(q, arguments, stream)
    if v is None or value_dim is not None:
        v = code_columns_of(k, v, value_dim, quantization_of(mode, bits, group_size))
    if mx.array in (type(scale), type(softcap)):
        q, arguments = numbers_of(q, arguments, stream)
    backend = current_backend()
    if not backend.dequantizes:
        backend = backend_of("reference")
    call = prepared(q, k, v, backend, stream, return_lse, arguments, (mode, bits, group_size))
    return call.run(q, k, v, arguments)
