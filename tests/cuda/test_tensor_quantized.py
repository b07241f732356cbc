"""Quantized keys and values on tensor cores, on the simulator: what test_quantized.py asks of kernels for Apple GPUs.

One layer serves them on every NVIDIA GPU, narrow and wide as tensor_rows.py says.
"""

import feature_cases
import mlx.core as mx
import pools
import pytest
from arrays import bits
from cases import Case, expected
from feature_cases import Variant
from tensor_rows import small_rows
from watched import kinds, watched

from mlx_flash import attention, quantized_attention
from mlx_flash.kernels import split_kv
from mlx_flash.problem.quantization import quantization_of
from mlx_flash.simulator import mode, schedule

pytestmark = pytest.mark.simulator

PREFILL, TOKEN = 37, 2  # queries: the forward kernel, the decoding kernel
AFFINE, NVFP4 = {"mode": "affine", "bits": 4, "group_size": 64}, {"mode": "nvfp4", "bits": 4, "group_size": 16}


@pytest.fixture(params=["narrow"])
def backend(request):
    """Kernels of small rows, in parts however few the keys; nothing the simulator's checks find passes."""
    with mode("check"), small_rows("mma", request.param) as found:
        yield found


wide = pytest.mark.parametrize("backend", ["wide"], indirect=True)


def values(parts, form: dict, dtype) -> mx.array:
    return quantization_of(**form).dequantized(slice(None), dtype, *parts)


def operands(case: Case, form: dict):
    """q, quantized k and v, and the arrays of the case with their values in the place of k and v."""
    arrays = case.arrays()
    parts = {name: tuple(mx.quantize(arrays[name], **form)) for name in "kv"}
    exact = {name: values(parts[name], form, arrays["q"].dtype) for name in "kv"}
    return arrays["q"], parts["k"], parts["v"], arrays | exact


def affine(bits: int, group_size: int) -> dict:
    return {"mode": "affine", "bits": bits, "group_size": group_size}


@pytest.mark.parametrize(
    "form, queries, head_dim, value_dim, dtype",
    [
        (affine(2, 32), TOKEN, 64, 32, "float16"),
        (affine(3, 32), TOKEN, 96, 64, "bfloat16"),
        (affine(4, 64), PREFILL, 64, 64, "bfloat16"),
        (affine(5, 64), PREFILL, 64, 64, "float16"),
        (affine(6, 64), TOKEN, 64, 64, "float16"),
        (affine(8, 32), TOKEN, 64, 64, "bfloat16"),
        ({"mode": "mxfp4", "bits": 4, "group_size": 32}, TOKEN, 64, 96, "float16"),
        ({"mode": "mxfp8", "bits": 8, "group_size": 32}, PREFILL, 64, 64, "bfloat16"),
        (NVFP4, TOKEN, 80, 16, "bfloat16"),  # rows of an odd number of steps
    ],
)  # fmt: skip
def test_accuracy(backend, form, queries, head_dim, value_dim, dtype):
    case = Case(queries, 331, head_dim, dtype, queries == PREFILL, 4, key_heads=2, value_dim=value_dim)
    q, k, v, arrays = operands(case, form)
    expected(case, arrays).check(O=quantized_attention(q, k, v, scale=case.scale, causal=case.causal, **form))


@wide
def test_wide_rows(backend):
    case = Case(TOKEN, 150, 128, "float16", group=2)
    q, k, v, arrays = operands(case, affine(6, 128))
    expected(case, arrays).check(O=quantized_attention(q, k, v, scale=case.scale, **affine(6, 128)))


def test_several_parts_and_every_schedule(backend, monkeypatch):
    monkeypatch.setattr(split_kv, "unsplit_keys", lambda *_: 0)
    case = Case(3, 643, 64, "float16", True, 2, key_heads=2, batch=2)
    q, k, v, arrays = operands(case, AFFINE)

    def call():
        return quantized_attention(q, k, v, scale=case.scale, causal=True, **AFFINE)

    with watched(backend) as ran:
        want = call()
    assert kinds(ran) == ["decode", "combine"]
    expected(case, arrays).check(O=want)
    for order in (("reversed", 0), ("random", 1)):
        with schedule(*order):
            assert bits(call()) == bits(want), order


def test_a_cache_is_read_in_place(backend):
    """What lies behind its front changes nothing."""
    case = Case(TOKEN, 70, 64, "float16", key_heads=2)
    q, k, v, _ = operands(case, AFFINE)
    want = quantized_attention(q, k, v, causal=True, **AFFINE)
    garbage = {mx.uint32: 0xFFFFFFFF, mx.float16: mx.nan}
    caches = [
        [
            mx.pad(part, [(0, 0), (1, 0), (0, 58), (0, 0)], constant_values=garbage[part.dtype])[:, 1:, :70]
            for part in one
        ]
        for one in (k, v)
    ]
    assert bits(quantized_attention(q, *caches, causal=True, **AFFINE)) == bits(want)


@pytest.mark.parametrize("form", [AFFINE, NVFP4], ids=["affine", "nvfp4"])
@pytest.mark.parametrize("page", [64, 24])
def test_pages(backend, form, page):
    lengths = [150, 17, 64]
    case = Case(TOKEN, 150, 64, "float16", group=2, key_heads=2, batch=3)
    q, k, v, arrays = operands(case, form)
    table = pools.table_of(lengths, page)
    pooled = [[pools.pool_of(part, table, lengths, page, by_rows=one is v) for part in one] for one in (k, v)]
    options = {"lengths": mx.array(lengths), "causal": True, "window": (90, 0), **form}
    want = quantized_attention(q, k, v, **options)
    got = quantized_attention(q, *pooled, pages=table, **options)
    # Blocks are cut at pages, so that sums round in another order.
    assert float(mx.abs(got - want).max()) <= 2 * 2**-11 * float(mx.abs(want).max())


@pytest.mark.parametrize(
    "queries, feature", [(TOKEN, "bool"), (TOKEN, "sinks"), (PREFILL, "additive"), (PREFILL, "blocks")]
)
def test_features_are_those_of_attention(backend, queries, feature):
    """nvfp4's values are exact in every type, so that every bit must be the same; array masks have their map."""
    case = Case(queries, 150, 16, "float16", group=2, key_heads=2, batch=2)
    q, k, v, arrays = operands(case, NVFP4)
    arguments, _ = feature_cases.build(Variant(case, (feature,), window=(90, 0)))
    want = attention(q, arrays["k"], arrays["v"], **arguments)
    assert bits(quantized_attention(q, k, v, **NVFP4, **arguments)) == bits(want)


def test_columns_of_keys_are_values(backend):
    case = Case(TOKEN, 70, 64, "bfloat16", group=4)
    q, k, _, arrays = operands(case, affine(8, 32))
    got = quantized_attention(q, k, value_dim=32, **affine(8, 32))
    want = quantized_attention(q, k, (k[0][..., :8], *(part[..., :1] for part in k[1:])), **affine(8, 32))
    assert bits(got) == bits(want)


@pytest.mark.parametrize(
    "queries, dtype, ran_kernel",
    [(PREFILL, "float16", "forward"), (TOKEN, "float16", "decode"), (TOKEN, "float32", "decode")],
)
def test_what_is_dequantized_first(backend, queries, dtype, ran_kernel):
    """The keys of many queries, and operands that tensor cores do not dequantize: then attention has their values."""
    case = Case(queries, 70, 64, dtype, group=2)
    q, k, v, arrays = operands(case, AFFINE)
    with watched(backend, dequantizes_first=True) as ran:
        got = quantized_attention(q, k, v, causal=True, **AFFINE)
    (one,) = ran
    codes = one.plan.signature.variants.quantization is not None
    assert (one.kind.name, codes) == (ran_kernel, (queries, dtype) == (TOKEN, "float16"))
    if not codes:
        assert bits(got) == bits(attention(q, arrays["k"], arrays["v"], causal=True))
