"""Latent attention: values are the first columns of keys, which forward kernels load for both."""

from dataclasses import replace

import bounds
import mlx.core as mx
import pytest
from arrays import bits
from cases import Case, expected
from machines import each_simulated_family
from problems import make_problem
from refusals import refused_call as refused

from mlx_flash import attention, quantized_attention, use_backend
from mlx_flash.kernels.apple import TABLE, prove
from mlx_flash.kernels.config import FULL
from mlx_flash.kernels.devices import FAMILIES
from mlx_flash.kernels.plan import fitted_row
from mlx_flash.problem.kinds import DECODE
from mlx_flash.simulator import mode, profile

CASE = Case(3, 150, 40, "float16", True, group=6, value_dim=24, batch=2)


def latent(case: Case) -> dict[str, mx.array]:
    arrays = case.arrays()
    return arrays | {"v": arrays["k"][..., : case.value_dim or case.head_dim]}


@pytest.mark.parametrize("queries", [3, 50])
@pytest.mark.parametrize("dims", [(40, 24), (33, 27), (64, 64)], ids=str)
def test_columns_of_keys_are_values(backend, dims, queries):
    """The call says so by v=None, and by v is k."""
    case = replace(CASE, query_length=queries, head_dim=dims[0], value_dim=dims[1])
    arrays = latent(case)
    q, k = arrays["q"], arrays["k"]
    out = attention(q, k, value_dim=dims[1], causal=True, scale=case.scale)
    expected(case, arrays).check(O=out)
    if dims[0] == dims[1]:
        assert bits(attention(q, k, k, causal=True, scale=case.scale)) == bits(out)


def test_gradients_add_up(backend):
    """The gradients of keys and of values add up in k, to the bit, since no decoding splits the keys."""
    arrays = latent(replace(CASE, query_length=40))
    q, k, d_o = (arrays[name] for name in ("q", "k", "d_o"))
    got = mx.vjp(lambda q, k: attention(q, k, value_dim=24, causal=True), [q, k], [d_o])[1]
    d_q, d_k, d_v = mx.vjp(lambda *x: attention(*x, causal=True), [q, k, arrays["v"]], [d_o])[1]
    assert bits(got[0]) == bits(d_q)
    assert bits(got[1]) == bits(d_k + mx.pad(d_v, [(0, 0)] * 3 + [(0, 16)]))


def loaded(q, k, **options) -> dict[str, float]:
    """How often keys, and values, were read by a call over one key head."""
    with mode("check"), profile() as counted:
        mx.eval(attention(q, k, **options))
    launch = next(one for one in counted.launches if "K" in one["buffers"])
    return {name: launch["buffers"][name]["loaded"] / k.nbytes for name in ("K", "V") if name in launch["buffers"]}


@each_simulated_family
@pytest.mark.parametrize("dtype, times", [("float16", 1), ("float32", 2)])
def test_128_heads_read_keys_once_as_keys_and_once_as_values(family, dtype, times):
    """DeepSeek's shape, whose values are 512 of 576 columns. The operands apart are read four times and more."""
    q = mx.random.normal((1, 128, 1, 576), key=mx.random.key(0)).astype(getattr(mx, dtype))
    k = mx.random.normal((1, 1, 70, 576), key=mx.random.key(1)).astype(getattr(mx, dtype))
    with use_backend("simulator", family):
        assert loaded(q, k, value_dim=512) == {"K": times * (576 + 512) / 576}
        if dtype == "float16":
            apart = loaded(q, k, v=k + 0)
            assert apart["K"] >= 4 and apart["V"] >= 4


@each_simulated_family
@pytest.mark.parametrize("heads", [24, 72, 130])
def test_heads_that_fill_no_threadgroup(family, heads):
    """Blocks of 64 rows, of 128, and of 128 and the rest; every head as it is alone."""
    q = mx.random.normal((1, heads, 1, 48), key=mx.random.key(0)).astype(mx.float16)
    k = mx.random.normal((1, 1, 130, 48), key=mx.random.key(1)).astype(mx.float16)
    with use_backend("simulator", family):
        out = attention(q, k, value_dim=40)
        few = attention(q[:, -8:], k, value_dim=40)
    unit = bounds.ulp(float(mx.abs(few).max()), "float16")
    assert float(mx.abs(out[:, -8:] - few).max()) <= bounds.REORDERED * unit


@each_simulated_family
def test_pages_and_lengths(family):
    """A pool without values, of unequal lengths."""
    case = replace(CASE, key_length=128)
    q, k = (case.arrays()[name] for name in "qk")
    lengths, table = mx.array([128, 37]), mx.array([[0, 2], [3, -1]], mx.int32)
    pool = mx.concatenate([k.reshape(2, 1, 2, 64, 40).swapaxes(1, 2).flatten(0, 1)[mx.array([0, 3, 1, 2])]])
    with use_backend("simulator", family):
        want = attention(q, k, k[..., :24], lengths=lengths, causal=True)
        got = attention(q, pool, value_dim=24, pages=table, lengths=lengths, causal=True)
    unit = bounds.ulp(float(mx.abs(want).max()), "float16")
    assert float(mx.abs(want - got).max()) <= bounds.REORDERED * unit


def test_quantized_keys(backend):
    form = {"mode": "affine", "bits": 8, "group_size": 32}
    case = replace(CASE, head_dim=96, value_dim=64)
    q, k = (case.arrays()[name] for name in "qk")
    parts = mx.quantize(k, **form)
    values = [parts[0][..., :16], parts[1][..., :2], parts[2][..., :2]]
    want = quantized_attention(q, parts, values, causal=True, **form)
    got = quantized_attention(q, parts, value_dim=64, causal=True, **form)
    assert float(mx.abs(want - got).max()) <= bounds.REORDERED * bounds.ulp(float(mx.abs(want).max()), "float16")


def test_rows_are_legal():
    """They are as legal as the rows of the table that they are made from."""

    def problem_signature(dtype: str, width: int):
        made = make_problem(1, 128, 1, 1, 64, width, width, dtype).signature
        return replace(made, variants=replace(made.variants, latent=True))

    for (kind, precision, name), rows in TABLE.items():
        for family in FAMILIES.values():
            if kind is DECODE and family.table == name:
                for row in rows:
                    if row.tiles == "simdgroup":
                        signature = problem_signature("float32" if precision == FULL else "float16", row.max_head)
                        shared = replace(family, uses_threadgroup_memory=True)
                        prove(kind, precision, shared, fitted_row(kind, signature, row))


def test_bad_columns(reference):
    q, k = (CASE.arrays()[name] for name in "qk")
    parts = mx.quantize(mx.zeros((2, 1, 150, 64), mx.float16), group_size=32, bits=4)
    refused(lambda: attention(q, k), ["v", "None beside value_dim", "NoneType"])
    for wrong in (0, 41, 2.5, True, "24"):
        refused(lambda wrong=wrong: attention(q, k, value_dim=wrong), ["value_dim", "from 1 to k's 40 columns", "v"])
    refused(lambda: attention(q, k, k, value_dim=24), ["value_dim", "None where v is given", "24"])
    refused(
        lambda: quantized_attention(q[..., :32], parts, value_dim=40, group_size=32, bits=4),
        ["value_dim", "a multiple of 32", "40"],
    )
