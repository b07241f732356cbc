"""Few queries against many keys: the decoding kernels' results, and which calls they serve."""

import itertools
from dataclasses import replace

import feature_cases
import mlx.core as mx
import numpy as np
import pytest
from arrays import bits
from cases import Case
from decoding_checks import LENGTH_CASES, VARIANTS, check, check_blind_rows, check_hidden_parts, shaped
from launches import launched
from machines import across_backends, each_simulated_family
from problems import make_problem

from mlx_flash import BlockMask, attention, explain, use_backend
from mlx_flash.kernels import split_kv as decoding
from mlx_flash.kernels.apple import TABLE
from mlx_flash.kernels.config import FULL
from mlx_flash.kernels.devices import FAMILIES, family_of, machine_of
from mlx_flash.kernels.lookup import lookup
from mlx_flash.kernels.plan import plan_of
from mlx_flash.problem.kinds import DECODE
from mlx_flash.problem.problem import Problem
from mlx_flash.problem.quantization import Quantization
from mlx_flash.simulator import mode, profile, schedule

BEYOND = 520  # a head dimension past the last row of the table
DTYPES = ("float32", "float16", "bfloat16")
GROUPS, LENGTHS, KEYS = (1, 2, 4, 8, 12), (1, 2, 3, 4, 5, 7, 8), (600, 1301, 1, 7, 63)
WIDTHS = ((33, None), (77, 40), (80, None), (96, 64), (128, 192), (192, 128), (512, None))  # of q and k, of v


def widths_and_types() -> list[Case]:
    """Every width in every type; groups, queries and keys alternate, out of step with each other."""
    turns = [itertools.cycle(values) for values in (GROUPS, LENGTHS, KEYS)]
    found = []
    for index, ((head_dim, value_dim), dtype) in enumerate(itertools.product(WIDTHS, DTYPES)):
        group, queries, keys = map(next, turns)
        keys = 4099 if keys == 1301 and group * queries <= 8 else keys
        found.append(Case(queries, keys, head_dim, dtype, index % 2 == 0, group, "plain", value_dim, 1 + index % 2, 2))
    return found


def rows_of_the_table() -> list:
    """(family, Case) for each row of the decoding table, at the largest head dimension it serves."""
    found, turns = [], itertools.cycle(itertools.product((3, 8, 12), (2, 8, 1)))
    for (step, precision, family), rows in TABLE.items():
        for index, row in enumerate(rows if step is DECODE else ()):
            dtype = "float32" if precision == FULL else ("float16", "bfloat16")[index % 2]
            group, queries = next(turns)
            group = (
                3 if row is rows[-1] else group
            )  # 12 heads of 520 float32 columns round to 2.2e-6, on the reference too
            width = BEYOND if row is rows[-1] else row.max_head
            assert lookup(DECODE, dtype, FAMILIES[family], width) is row
            found.append((("simulator", family), Case(queries, 643, width, dtype, index % 2 == 0, group)))
    return found


def waits(index: int) -> bool:
    """Two of the three types of each width run in the full run only; which two alternates."""
    return index % 3 != index // 3 % 3


@pytest.mark.parametrize("backend, case", across_backends(widths_and_types(), waits), indirect=["backend"])
def test_widths_and_types(backend, case):
    check(case)


@pytest.mark.all_values
@pytest.mark.parametrize("backend, case", rows_of_the_table(), indirect=["backend"], ids=str)
def test_every_row_of_the_table(backend, case):
    check(case)


@each_simulated_family
def test_groups_queries_and_keys(family):
    """Few kernels, many shapes: fewer keys than queries, partly filled fragments, several blocks of packed rows."""
    with use_backend("simulator", family):
        for case in LENGTH_CASES:
            check(case)


@pytest.mark.parametrize("backend, case", across_backends(VARIANTS), indirect=["backend"])
def test_features_and_their_gradients(backend, case):
    feature_cases.check(VARIANTS[case])


def launches(family: str, *arrays, checks="check", recorded=profile, **options) -> list[dict]:
    with use_backend("simulator", family), mode(checks), recorded() as counted:
        mx.eval(attention(*arrays, **options))
    return counted.launches


def names(found) -> list[str]:
    return [launch["kernel"].split("_float")[0].removeprefix("flash_") for launch in found]


@each_simulated_family
def test_more_parts_than_a_simdgroup_has_lanes(family):
    """Lanes weigh a second part each when parts are combined."""
    case = Case(1, 17000, 16, causal=True)
    asked = {"key_length": 17000, "query_heads": 1, "key_heads": 1, "head_dim": 16, "value_dim": 16, "batch": 1}
    assert parts(family, **asked)[0] > 32
    with use_backend("simulator", family):
        check(case)


@pytest.mark.simulator
def test_kernel_choice():
    """The expected kernel runs, and explain names the same one."""
    key, diagonal = mx.random.key(0), BlockMask.causal(8, 600, block=32)
    calls = [
        (shaped(4, 1, 600), {}, ["decode", "combine"]),
        (shaped(4, 1, 255), {}, ["decode"]),
        (shaped(4, 8, 600), {"mask": diagonal}, ["decode", "combine"]),
        (shaped(4, 8, 600), {"window": (100, 0)}, ["decode"]),
        (shaped(4, 32, 600), {}, ["decode", "combine"]),
        (shaped(4, 33, 600), {}, ["forward"]),
        (shaped(4, 1, 600), {"dropout": 0.5, "key": key}, ["forward"]),
    ]
    for arrays, options, want in calls:
        assert names(launches("apple9", *arrays, recorded=launched, **options)) == want
        told = explain(*arrays, backend="simulator", family="apple9", **options)
        assert [step.name for step in told.kernels if step.name in ("decode", "combine", "forward")] == want
        assert told.forward.split(":")[0] == want[0] and told.forward in str(told)
    assert "2 parts" in explain(*shaped(4, 1, 600), backend="simulator").forward
    assert "no decoding on reference" in explain(*shaped(4, 1, 600), backend="reference").forward


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16], ids=str)
@pytest.mark.parametrize("group, queries", [(1, 1), (8, 1), (4, 2), (12, 2)])
@each_simulated_family
def test_keys_and_values_are_read_once_a_group(family, group, queries, dtype):
    """Bytes are counted for each key head: query heads of a group do not read keys and values again. Rows beyond a
    block do, and so does each simdgroup of a block where operands are read directly, which the first level of cache
    serves."""
    arrays = shaped(group, queries, 600, 16, dtype)
    decode = launches(family, *arrays)[0]
    told = explain(*arrays, backend="simulator", family=family).kernels[0]
    blocks = -(-group * queries // told.blocks[0])
    assert blocks == 1 or group * queries > (32 if told.uses_threadgroup_memory else 16)
    for name in "KV":
        assert decode["buffers"][name]["loaded"] == blocks * arrays[1].nbytes
    many = mx.repeat(arrays[0], -(-33 // queries), axis=2)
    ordinary = launches(family, many, *arrays[1:])[0]
    assert names([ordinary]) == ["forward"] and ordinary["buffers"]["K"]["loaded"] >= group * arrays[1].nbytes


@pytest.mark.parametrize("group, queries", [(1, 9), (2, 20), (1, 32), (32, 1)])
@each_simulated_family
def test_up_to_32_queries_read_keys_once_a_block_of_rows(family, group, queries):
    """Drafts of speculative decoding, and many heads over one."""
    arrays = shaped(group, queries, 1024, dtype=mx.float16, key_heads=1)
    rows = 32 if FAMILIES[family].uses_threadgroup_memory else 16
    decode, _ = launches(family, *arrays)
    assert [decode["buffers"][name]["loaded"] for name in "KV"] == [-(-group * queries // rows) * arrays[1].nbytes] * 2


@pytest.mark.parametrize("heads, key_heads, keys", [(32, 8, 4096), (8, 8, 2048), (4, 1, 32768)])
@each_simulated_family
def test_every_core_has_work(family, heads, key_heads, keys):
    """One sequence: at least 16 simdgroups for each core, where there are keys enough."""
    shapes = [(1, heads, 1, 64), *[(1, key_heads, keys, 64)] * 2]
    decode = launches(family, *[mx.zeros(shape, mx.float16) for shape in shapes], checks="fast")[0]
    assert decode["threads"] >= 16 * 32 * FAMILIES[family].cores


@each_simulated_family
def test_only_keys_in_reach_are_read(family):
    """A window's keys and no other; blocks that are empty for every head of a group are not read."""
    arrays = shaped(4, 2, 600)
    row = 2 * 16 * 4  # bytes of a key, or value, of both key heads
    (decode,) = launches(family, *arrays, window=(100, 0), causal=True)
    assert decode["buffers"]["K"]["loaded"] == 102 * row
    diagonal = np.zeros((8, 2, 600), bool)
    diagonal[1, :, 40:70], diagonal[6, :, 599:] = True, True
    found = launches(family, *arrays, mask=BlockMask.from_array(diagonal, block=32))[0]
    assert found["buffers"]["K"]["loaded"] == (64 + 24) * row // 2
    ids = mx.array((np.arange(600) // 200 % 2).astype(np.int32))
    found = launches(family, *arrays, segments=(mx.ones((2,), mx.int32), ids))[0]
    assert 200 * row <= found["buffers"]["K"]["loaded"] <= (200 + 128) * row


ORDERS = [("reversed", 0), ("random", 1)]


@pytest.mark.parametrize("name", ["array-mask", "block-mask", "bool"])
@each_simulated_family
def test_every_schedule_gives_the_same_bits(family, name):
    """Nothing is reported, every bit is the same, and several threadgroups and simdgroups take part."""
    arguments, _ = feature_cases.build(VARIANTS[name])
    arrays = [VARIANTS[name].case.arrays()[tensor] for tensor in "qkv"]

    def once(*order):
        with use_backend("simulator", family), mode("check"), schedule(*order), launched() as counted:
            found = [bits(array) for array in attention(*arrays, **arguments)]
        assert all(launch["threadgroups"] > 1 and launch["threads"] > 32 for launch in counted.launches)
        return found

    want = once("forward")
    assert once("forward") == want
    assert [order for order in ORDERS if once(*order) != want] == []


def test_fully_masked_splits_change_no_bit(kernels):
    """Keys of the middle parts are hidden, by every kind of mask: O and L as if these parts did not exist."""
    check_hidden_parts()


@pytest.mark.parametrize("name", ["bool", "additive", "blocks", "segments", "window"])
def test_fully_masked_rows(kernels, name):
    """Zeros and -inf to the bit; other rows of the same group and its tile are untouched."""
    check_blind_rows(name)


def problem(**changes) -> Problem:
    usual = {
        "query_heads": 32,
        "key_heads": 8,
        "query_length": 1,
        "key_length": 4096,
        "head_dim": 128,
        "value_dim": 128,
    }
    return make_problem(**usual | {"dtype": "float16", "scale": 1.0} | changes)


def parts(family="apple9", cores=None, **changes) -> tuple[int, int]:
    chosen, asked = FAMILIES[family], problem(**changes)
    chosen = replace(chosen, cores=cores) if cores else chosen
    row = plan_of(DECODE, asked, chosen).config
    rule = decoding.rule_of(asked, row, chosen)
    return decoding.count_of(asked, rule, row), decoding.part_length(decoding.keys_seen(asked), rule, row)


def test_number_of_splits():
    """The parts fill the cores, none is too short, there are not too many, and no key is left out."""
    assert parts() == (8, 512)  # 10 are wanted, 32 simdgroups on each of 10 cores over 8 key heads of 4 each
    assert parts(cores=40)[0] == 4096 // decoding.LEAST == 16
    assert parts(batch=16) == parts(batch=1000) == parts()  # a row's bits must not depend on its batch
    assert parts(key_length=100)[0] == 1 and parts(key_length=511)[0] == 1 and parts(key_length=512)[0] == 2
    assert parts(cores=80, key_heads=1, key_length=10**6)[0] <= decoding.MOST
    assert parts(query_length=8)[0] < parts()[0]  # two blocks of rows each
    assert parts(query_length=5) == parts(query_length=8)  # the last rows of five queries have a block of their own
    assert parts(query_length=32, query_heads=8)[0] < parts(query_length=16, query_heads=8)[0]  # the same
    assert parts(variants={"window": (1000, 0)}, key_length=10**6)[0] == parts(key_length=1001)[0] == 2
    # On an H200 one threadgroup has read 2048 keys and values of 128 columns before two launches have begun.
    assert parts("sm90", key_length=2048)[0] == 1 and parts("sm90", key_length=2049) == (7, 320)
    assert parts("sm90", head_dim=256, value_dim=256, key_length=1025)[0] > 1
    assert parts("sm90", key_length=32768) == (32, 1024)  # 2 x 132 threadgroups over 8 key heads, in whole blocks
    for keys in (1, 63, 257, 4097, 99999):
        count, length = parts(key_length=keys)
        assert length % 64 == 0 and (count - 1) * length < keys <= count * length


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_keys_that_no_simdgroup_shares_are_read_directly(dtype, head_dim):
    """This holds on M1 and on M3: threadgroup memory is for blocks that are shared or dequantized."""

    def told(family="apple7", **changes):
        asked = problem(dtype=dtype, head_dim=head_dim, value_dim=head_dim, **changes)
        return plan_of(DECODE, asked, FAMILIES[family]).text_family.uses_threadgroup_memory

    assert not told() and not told(query_length=2) and told(query_length=3)  # rows of four heads each
    assert told(variants={"quantization": Quantization("affine", 4, 64)})
    assert not told("apple9") and not told("apple9", query_length=32)


def test_cores_of_a_machine():
    assert machine_of("applegpu_g13g") == FAMILIES["apple7"] == family_of("applegpu_g13s")
    assert machine_of("applegpu_g13s").cores == 32 and machine_of("applegpu_g14d").cores == 80
    assert machine_of("applegpu_g16p").cores == 5 and machine_of("unheard of").cores == 8
