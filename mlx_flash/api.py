"""The public functions: `attention`, and `quantized_attention` over keys and values as mx.quantize returns them.

Their docstrings name every option in short. In detail:

mask
    A bool array keeps where it is True. A float array is added to the scores and has a gradient of its own shape; -inf
    in it masks, and finite values are numbers like any others, the least finite float32 too. Arrays of any strides are
    read in place.
causal, window
    Aligned to the lower right: query i has position i + Lk - Lq among the keys. Segments align to their own lower
    right: the last query of a segment has the position of its last key.
softcap, alibi_slopes
    Fixed numbers: a gradient asked of them raises UnsupportedProblem. The cap comes before masks are added; 0 is none.
scale
    An mx.array of one number is a learned scale: q is multiplied by it, and its gradient is MLX's.
segments
    Ids of more than 32 bits are read to see that they fit.
lengths
    Positions count from each batch entry's own end: its last query has the position of its last key. Queries behind
    their entry's end give zeros (LSE -inf). Nothing behind an end reaches a result, NaN included. Numbers larger than
    Lq and Lk count as these. Beside segments, positions count within each segment's part that exists.
pages
    Key j of batch entry b is row j % P of page pages[b, j // P], so that Lk is n * P. Needs lengths; P is a multiple of
    8, and 64 fits the kernels' blocks. A pool [N, P, Hk, D] is read in place through .swapaxes(1, 2). Entries of the
    table behind the last key are not read. The others must name pages of the pool: the simulator stops at one that does
    not, a GPU reads what lies there. Forward only; no segments, BlockMask or dropout.
value_dim
    Latent attention: where v is None, or k itself, values are columns of keys, which kernels load once for both.
dropout, key
    Weights that survive are scaled by 1 / (1 - dropout). The key alone decides the pattern.
score, visible
    `Score` replaces scores after the softcap, before anything is added; its class says which of its arrays have
    gradients. `Visible` combines with all masks but a BlockMask.
return_lse
    "split" gives the row's largest score and the logarithm of the sum relative to it, whose sum is the LSE. Where all
    scores of a row are shifted far away, as by a finite mask of -1e9, only the parts keep every digit; `merge` takes
    both forms. Gradients belong to functions of the sum of the parts.
scratch
    Bytes that the backward pass may take to keep weights and their gradients, in the type of q, between its kernels:
    five products of matrices in the place of seven. Heads take turns, as many at a time as it suffices for. Nothing is
    kept where not even one key head fits, beyond 256 columns, and on M5's accelerators. In float16 on Apple GPUs dK
    then loses gradients of scores below 6e-8, so that nothing is kept unless asked for.

mx.grad, mx.compile and mx.checkpoint work around both functions (the simulator runs at once, and so not inside
mx.compile). mlx_flash.vmap maps any axis of any array into the batch axis: one launch, unless slopes, sinks or dropout
differ by entry. mlx_flash.export_function exports. There is no shapeless compilation (shapeless=True), since kernels
are chosen by shapes. Scores, statistics and their gradients are float32 whatever the dtype of q, k and v, and results
repeat bit for bit. Views are read in place if their last axis is contiguous (on CUDA, if no copy is faster). NaN or
infinity behind a masked key reaches nothing; what is seen acts as in IEEE arithmetic, unless its weight rounds to 0.
"""

from __future__ import annotations

import mlx.core as mx

from .autodiff.call import plain_call, prepared
from .autodiff.learned import numbers_of
from .autodiff.operands import ended_segments, without_ended
from .backends import backend as backend_of
from .backends import current_backend
from .problem.formulas.score import Score, Visible, text
from .problem.latent import code_columns_of, columns_of
from .problem.masks import BlockMask
from .problem.quantization import quantization_of


def attention(
    q: mx.array, k: mx.array, v: mx.array | None = None, *, value_dim: int | None = None,
    scale: float | None = None,
    mask: str | mx.array | BlockMask | None = None,
    causal: bool = False, window: tuple[int | None, int | None] | None = None,
    softcap: float | None = None, alibi_slopes: mx.array | None = None, sinks: mx.array | None = None,
    segments: tuple[mx.array, mx.array] | None = None,
    lengths: mx.array | tuple[mx.array | None, mx.array] | None = None,
    pages: mx.array | None = None,
    dropout: float = 0.0, key: mx.array | None = None,
    score: Score | str | None = None, visible: Visible | str | None = None,
    return_lse: bool | str = False,
    scratch: int | None = None, stream: mx.Stream | mx.Device | None = None,
) -> mx.array | tuple[mx.array, mx.array]:  # fmt: skip
    """Exact attention, softmax(scale * q k^T) v, in memory linear in the lengths, with gradients.

    Args:
        q: [B, Hq, Lq, D], float32, float16 or bfloat16. D of any size; multiples of 8 avoid a padded copy.
        k: [B, Hk, Lk, D] in q's dtype. Query head h uses key head h // (Hq // Hk).
        v: [B, Hk, Lk, Dv] in q's dtype; or None: the first `value_dim` columns of k (latent attention).
        scale: a finite number, or an array of one (a learned scale); None: 1/sqrt(D).
        mask: "causal", a BlockMask, or an array for [B, Hq, Lq, Lk], broadcast: bool (True = keep), or added floats.
        causal: query i sees keys up to its own position, i + Lk - Lq; combines with every other mask.
        window: (left, right): keys seen before and after the own position; None or -1: no bound.
        softcap: scores become softcap * tanh(scores / softcap).
        alibi_slopes: [Hq]: adds -slope * |distance| to the scores.
        sinks: [Hq]: a score per head that every query sees and that has no value, with a gradient.
        segments: (q_ids, k_ids), integers [B, L] or [L]: a query sees only keys of its own segment.
        lengths: integers [B], the keys that exist in each batch entry; or (of queries or None, of keys).
        pages: int32 [B or 1, n], a table: k [N, Hk, P, D] and v are pools of pages. Needs lengths; forward only.
        dropout, key: the probability with which weights are dropped, and the mx.random key of the pattern.
        score, visible: a Score and a Visible, or their texts: your own function of scores, your own mask.
        return_lse: also return the natural logarithm of each row's sum of exponentials; "split": in two parts.
        scratch, stream: bytes for faster gradients (None: what suits the GPU); stream or device of the launches.

    Returns: [B, Hq, Lq, Dv] in q's dtype; with return_lse also float32 [B, Hq, Lq], with "split" [2, B, Hq, Lq]. A
        query that sees no key gives zeros, an LSE of -inf (split: -inf and 0), and no gradient.
    Raises: ValueError (which argument, what was expected, what came, what to do). UnsupportedProblem where the backend
        cannot serve the call, and for second derivatives and mx.jvp.
    Details: help(mlx_flash.api). Sources: FlashAttention-2 (Dao 2023); metal-flash-attention (Turner 2024).
    """
    # The calls of generation, whose host time counts: to look at every option would take a fifth of it.
    if type(v) is mx.array and type(dropout) is float and dropout == 0 and return_lse is False and (
        value_dim is mask is window is softcap is alibi_slopes is sinks is segments is lengths is pages is key
        is score is visible is scratch is stream is None
    ):  # fmt: skip
        found = plain_call(q, k, v, scale, causal, current_backend())
        if found is not None:
            return found[0].run_plain(q, k, v, found[1])
    options = {
        "scale": scale, "mask": mask, "causal": causal, "window": window, "softcap": softcap, "sinks": sinks,
        "alibi_slopes": alibi_slopes, "segments": segments, "lengths": lengths, "pages": pages, "dropout": dropout,
        "key": key, "score": score, "visible": visible, "latent": v is None or v is k, "scratch": scratch,
    }  # fmt: skip
    q, options = _resolved(q, options, stream)
    v = columns_of(k, v, value_dim) if v is None or value_dim is not None else v
    result = prepared(q, k, v, current_backend(stream), stream, return_lse, options).run(q, k, v, options)
    return _finished(result, sinks, lengths, options, stream)


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

    On backends without such kernels the blocks are dequantized one by one, in memory linear in the lengths.

    Args:
        q: [B, Hq, Lq, D], float32, float16 or bfloat16.
        k: the tuple that mx.quantize returns for [B, Hk, Lk, D], as mlx-lm's QuantizedKVCache holds it: codes, uint32
            [B, Hk, Lk, D * bits / 32], scales [B, Hk, Lk, D / group_size], and in mode "affine" biases like the scales,
            both in q's dtype. Slices of a larger cache are read in place.
        v: the same for [B, Hk, Lk, Dv]; or None: the first `value_dim` columns of k, whole groups.
        mode, bits, group_size: "affine" with 2, 3, 4, 5, 6 or 8 bits and groups of 32, 64 or 128 (default 4 and 64);
            "mxfp4" (4 bits, groups of 32), "mxfp8" (8, 32), "nvfp4" (4, 16; without a global scale). There
            is no "fp8", e4m3 with a scale for each head: bench/README.md says why.
        scale, ..., stream: as in `attention`; there is no dropout. Every part of k and v is paged alike.

    Returns: as `attention`.
    Raises: ValueError as `attention`, and for a mode, bits or group size without a kernel. UnsupportedProblem for
        derivatives.
    """
    options = {
        "scale": scale, "mask": mask, "causal": causal, "window": window, "softcap": softcap, "sinks": sinks,
        "alibi_slopes": alibi_slopes, "segments": segments, "lengths": lengths, "pages": pages, "score": score,
        "visible": visible, "latent": v is None or v is k,
    }  # fmt: skip
    q, options = _resolved(q, options, stream)
    if v is None or value_dim is not None:
        v = code_columns_of(k, v, value_dim, quantization_of(mode, bits, group_size))
    backend = current_backend(stream)
    backend = backend if backend.dequantizes else backend_of("reference")
    result = prepared(q, k, v, backend, stream, return_lse, options, (mode, bits, group_size)).run(q, k, v, options)
    return _finished(result, sinks, lengths, options, stream)


def _resolved(q, options: dict, stream) -> tuple[mx.array, dict]:
    """q and the options as the checks take them: texts as Score and Visible, lengths beside segments as part of these,
    and numbers in place of arrays of one."""
    if options["score"] is not None or options["visible"] is not None:
        texts = {"score": text(options["score"], Score), "visible": text(options["visible"], Visible)}
        options = options | texts
    both = options["segments"] is not None and options["lengths"] is not None
    if both and options["pages"] is None and isinstance(q, mx.array):
        options = ended_segments(q, options, stream)
    if mx.array in (type(options["scale"]), type(options["softcap"]), type(options.get("dropout"))):
        q, options = numbers_of(q, options, stream)
    return q, options


def _finished(result, sinks, lengths, options: dict, stream):
    """The result of a call: its lengths may have become segments, which do not end what queries see of sinks."""
    ended = sinks is not None and lengths is not None and options["lengths"] is None
    return without_ended(result, lengths, stream) if ended else result
