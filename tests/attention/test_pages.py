"""Keys and values in pages: read in place, in either layout, once; the same result as of contiguous keys."""

import bounds
import mlx.core as mx
import numpy as np
import pools
import pytest
from arrays import bits
from cases import Case
from feature_cases import Variant, build
from machines import across_backends, each_simulated_family
from refusals import refused_call as refused

from mlx_flash import BlockMask, UnsupportedProblem, attention, merge, quantized_attention, use_backend, vmap
from mlx_flash.simulator import mode, profile

KEYS = [130, 17, 300]
CASE = Case(5, 300, 16, "float16", group=2, key_heads=2, batch=3)
LAYOUTS = [False, True]


def paged(case: Case, keys, page: int, by_rows=False, arrays=None):
    """q, the pools of k and v, and the keywords that name their pages."""
    arrays = arrays or case.arrays()
    table = pools.table_of(keys, page, -(-case.key_length // page))
    k, v = (pools.pool_of(arrays[name], table, keys, page, by_rows) for name in "kv")
    return arrays["q"], k, v, {"pages": table, "lengths": mx.array(keys)}


def same(got, want, what: str):
    """Within a rounding of the result: blocks of other lengths sum in another order."""
    error = float(mx.where(got == want, 0, mx.abs(got.astype(mx.float32) - want.astype(mx.float32))).max())
    unit = bounds.ulp(float(mx.where(mx.isinf(want), 0, mx.abs(want)).max()), str(want.dtype).rpartition(".")[2])
    assert error <= bounds.REORDERED * unit, f"{what}: {error / unit} units in the last place"


@pytest.mark.parametrize("by_rows", LAYOUTS)
@pytest.mark.parametrize("queries", [1, 5, 40])
def test_pages_of_a_block_give_the_bits_of_contiguous_keys(backend, queries, by_rows):
    """Pages of 64 hold whole blocks of decoding: the same sums in the same order. A forward kernel's blocks may be
    longer than a page."""
    case = Case(queries, 300, 16, "float16", group=2, key_heads=2, batch=3)
    arrays = case.arrays()
    want = attention(*(arrays[name] for name in "qkv"), lengths=mx.array(KEYS), causal=True, return_lse=True)
    q, k, v, where = paged(case, KEYS, 64, by_rows)
    got = attention(q, k, v, causal=True, return_lse=True, **where)
    if queries <= 8 or backend.name == "reference":
        assert [bits(one) for one in got] == [bits(one) for one in want]
    for one, other, name in zip(got, want, ("O", "LSE")):
        same(one, other, name)


@pytest.mark.parametrize(
    "backend, case", across_backends([(page, queries) for page in (8, 16, 40, 128) for queries in (2, 40)]),
    indirect=["backend"],
)  # fmt: skip
def test_pages_of_any_length(backend, case):
    page, queries = case
    case = Case(queries, 300, 24, "float32", group=2, key_heads=2, batch=3)
    arrays = case.arrays()
    options = {"causal": True, "window": (77, 0), "sinks": mx.linspace(-1, 1, 4)}
    own = mx.array([queries, 1, queries - 1])
    want = attention(*(arrays[name] for name in "qkv"), lengths=(own, mx.array(KEYS)), **options)
    q, k, v, where = paged(case, KEYS, page)
    got = attention(q, k, v, pages=where["pages"], lengths=(own, where["lengths"]), **options)
    same(got, want, f"pages of {page}")


FEATURES = ("window", "bool", "additive", "softcap", "alibi", "sinks")


@pytest.mark.parametrize(
    "backend, case", across_backends([(name, 40 if n % 2 else 3) for n, name in enumerate(FEATURES)]),
    indirect=["backend"],
)  # fmt: skip
def test_masks_of_rows_in_pages(backend, case):
    """Arrays have a column for each key that the table has room for."""
    name, queries = case
    case = Case(queries, 320, 16, group=2, key_heads=2, batch=3)
    arguments = build(Variant(case, (name,), window=(100, 3)))[0] | {"causal": True}
    arrays = case.arrays()
    want = attention(*(arrays[one] for one in "qkv"), lengths=mx.array(KEYS), **arguments)
    q, k, v, where = paged(case, KEYS, 64)
    same(attention(q, k, v, **where, **arguments), want, name)


@pytest.mark.parametrize("lengths", [(16, 64), pytest.param((32, 128), marks=pytest.mark.slow)], ids=str)
@pytest.mark.parametrize("queries, by_rows", [(1, False), (8, True), (40, True)])
@each_simulated_family
def test_only_keys_that_exist_are_read(family, by_rows, queries, lengths):
    """Each block of rows reads them once: the bytes of K and V are those of the keys, whatever the size of the
    table."""
    case = Case(queries, 512, 16, "float16", group=2, key_heads=2, batch=3)
    for page in lengths:
        q, k, v, where = paged(case, KEYS, page, by_rows)
        with use_backend("simulator", family), mode("check"), profile() as counted:
            mx.eval(attention(q, k, v, **where))
        launch = next(one for one in counted.launches if "K" in one["buffers"])
        loaded = {name: buffer["loaded"] for name, buffer in launch["buffers"].items()}
        once = sum(KEYS) * 2 * 16 * 2
        times = loaded["K"] // once
        assert loaded["K"] == loaded["V"] == times * once and times >= 1, (loaded, once)
        if queries == 1:
            assert times == 1


@each_simulated_family
def test_pages_outside_the_pool_stop_the_simulator(family):
    q, k, v, where = paged(CASE, KEYS, 64)
    where["pages"] = where["pages"] + 100 * (where["pages"] == where["pages"][0, 0])
    with use_backend("simulator", family), mode("check"), pytest.raises(Exception, match="K"):
        mx.eval(attention(q, k, v, **where))


def test_a_shared_prefix_is_one_row_of_pages(backend):
    """pages [1, n] for all entries, and the rest of each merged with it (cascade)."""
    case = Case(1, 128, 16, "float16", group=2, key_heads=2, batch=3)
    arrays = case.arrays()
    k, v = (mx.concatenate([mx.broadcast_to(arrays[name][:1], arrays[name].shape), arrays[name]], 2) for name in "kv")
    keys = [40, 128, 1]
    want = attention(arrays["q"], k, v, lengths=mx.array(keys) + 128)
    q, k, v, where = paged(case, keys, 64)
    prefix = pools.table_of([128], 64)
    shared = [pools.pool_of(arrays[name][:1], prefix, [128], 64) for name in "kv"]
    parts = [
        attention(q, *shared, pages=prefix, lengths=mx.full((3,), 128, mx.int32), return_lse=True),
        attention(q, k, v, return_lse=True, **where),
    ]
    same(merge(*zip(*parts))[0], want, "cascade")


FORMS = [
    {"mode": "affine", "bits": 4, "group_size": 64}, {"mode": "nvfp4", "bits": 4, "group_size": 16},
]  # fmt: skip


@pytest.mark.parametrize("queries", [2, 40])
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form["mode"])
def test_quantized_pages(backend, form, queries):
    case = Case(queries, 300, 64, "float16", group=2, key_heads=2, batch=3)
    arrays = case.arrays()
    parts = [mx.quantize(arrays[name], **form) for name in "kv"]
    want = quantized_attention(arrays["q"], *parts, lengths=mx.array(KEYS), causal=True, **form)
    table = pools.table_of(KEYS, 64)
    k, v = ([pools.pool_of(part, table, KEYS, 64, by_rows=n == 1) for n, part in enumerate(one)] for one in parts)
    got = quantized_attention(arrays["q"], k, v, pages=table, lengths=mx.array(KEYS), causal=True, **form)
    same(got, want, str(form))


def test_slices_of_larger_tables_and_pools(backend):
    """They are not copied, and nothing outside of them is read."""
    q, k, v, where = paged(CASE, KEYS, 64)
    want = attention(q, k, v, causal=True, **where)
    table = mx.pad(where["pages"], [(1, 1), (2, 3)], constant_values=-7)[1:-1, 2:-3]
    wide = [mx.pad(one, [(0, 2), (1, 0), (0, 0), (0, 8)], constant_values=mx.nan)[:, 1:, :, :16] for one in (k, v)]
    assert bits(attention(q, *wide, causal=True, lengths=where["lengths"], pages=table)) == bits(want)


TABLE_VIEWS = {
    "every-second": lambda table: mx.stack([table, mx.full(table.shape, -7, mx.int32)], 2).flatten(1)[:, ::2],
    "transposed": lambda table: mx.contiguous(table.T).T,
    "reversed": lambda table: mx.contiguous(table[:, ::-1])[:, ::-1],
}


@pytest.mark.parametrize("backend, view", across_backends(TABLE_VIEWS), indirect=["backend"])
def test_tables_whose_entries_lie_apart(backend, view):
    q, k, v, where = paged(CASE, KEYS, 64)
    want = attention(q, k, v, causal=True, **where)
    table = TABLE_VIEWS[view](where["pages"])
    assert table.tolist() == where["pages"].tolist()
    assert bits(attention(q, k, v, causal=True, lengths=where["lengths"], pages=table)) == bits(want)


@pytest.mark.parametrize("backend, entries", across_backends([1, 2]), indirect=["backend"])
def test_tables_of_few_pages(backend, entries):
    """So few that MLX would pass them as constants. Lengths beyond the room of a table end there."""
    case = Case(5, 128, 16, "float16", group=2, key_heads=2, batch=entries)
    keys, arrays = [128, 70][:entries], case.arrays()
    want = attention(*(arrays[name] for name in "qkv"), lengths=mx.array(keys), causal=True)
    q, k, v, where = paged(case, keys, 64)
    assert where["pages"].size <= 4
    assert bits(attention(q, k, v, causal=True, **where)) == bits(want)
    beyond = mx.array([128 + 50, 70][:entries])
    assert bits(attention(q, k, v, causal=True, pages=where["pages"], lengths=beyond)) == bits(want)


def test_mapped_tables(reference):
    """Queries, lengths and tables of several batches over one pool."""
    q, k, v, where = paged(CASE, KEYS, 64)

    def call(q, pages, lengths):
        return attention(q, k, v, causal=True, pages=pages, lengths=lengths)

    order = mx.array([2, 0, 1])
    both = [mx.stack([one, one[order]]) for one in (q, where["pages"], where["lengths"])]
    want = mx.stack([call(*(one[n] for one in both)) for n in range(2)])
    assert bits(vmap(call)(*both)) == bits(want)
    pool = mx.stack([k, k * 2])
    got = vmap(lambda k: attention(q, k, v, causal=True, **where))(pool)
    assert bits(got) == bits(mx.stack([attention(q, one, v, causal=True, **where) for one in (k, k * 2)]))


def test_no_keys(backend):
    q, k, v, where = paged(CASE, KEYS, 64)
    where["lengths"] = mx.zeros((3,), mx.int32)
    for table, pool in ((where["pages"], k), (where["pages"][:, :0], k), (where["pages"], k[:0])):
        out, lse = attention(q, pool, pool, pages=table, lengths=where["lengths"], return_lse=True)
        assert not np.array(out).any() and np.isneginf(np.array(lse)).all()


def test_no_gradient_through_pages(backend):
    q, k, v, where = paged(CASE, KEYS, 64)
    with pytest.raises(UnsupportedProblem, match="through pages"):
        mx.grad(lambda q: attention(q, k, v, **where).sum())(q)


def test_bad_pages(reference):
    q, k, v, where = paged(CASE, KEYS, 64)
    table, lengths = where["pages"], where["lengths"]

    def call(k=k, v=v, **changed):
        return attention(q, k, v, **{**where, **changed})

    refused(lambda: attention(q, k, v, pages=table), ["lengths", "beside pages", "None"])
    refused(lambda: call(pages=table.astype(mx.int64)), ["pages", "int32 [B, n]", "int64"])
    refused(lambda: call(pages=table[0]), ["pages", "[B, n]", "(5,)"])
    refused(lambda: call(pages=table.tolist()), ["pages", "int32", "list"])
    refused(lambda: call(pages=table[:2]), ["pages", "B = 3", "(2, 5)"])
    refused(lambda: call(lengths=lengths[:1]), ["lengths", "[B] = [3]", "(1,)"])
    refused(lambda: call(k[:, :, :12], v[:, :, :12]), ["k", "a multiple of 8", "P = 12", "64"])
    refused(lambda: call(v=v[1:]), ["v", "as in k"])
    refused(lambda: call(v=v[:, :, 8:]), ["v", "as in k"])
    refused(lambda: call(mask=BlockMask.from_array(np.ones((5, 320), bool), block=64)), ["mask", "BlockMask"])
    refused(lambda: call(dropout=0.5, key=mx.random.key(0)), ["dropout", "beside pages", "0.5"])
    ids = (mx.zeros((5,), mx.int32), mx.zeros((320,), mx.int32))
    refused(lambda: call(segments=ids), ["segments", "None beside pages"])
