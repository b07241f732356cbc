"""BlockMask: its blocks, lists and bitmaps against the mask element by element, and the work that is done for them."""

import re

import mlx.core as mx
import numpy as np
import pytest
from feature_cases import tiles
from launches import by_step, launched
from machines import each_simulated_family

from mlx_flash import BlockMask, attention, use_backend
from mlx_flash.problem.kinds import BACKWARD_MASK, TRAINING
from mlx_flash.simulator import mode

EMPTY, FULL = 0, 1
DRAW = np.random.default_rng(11)
LAYERS = np.stack([tiles(DRAW, 100, 140) for _ in range(6)]).reshape(2, 3, 100, 140)


def state(part: np.ndarray) -> str:
    return "full" if part.all() else "partial" if part.any() else "empty"


@pytest.mark.parametrize("block", [32, 64, 128])
def test_states_and_elements(block):
    mask = BlockMask.from_array(LAYERS, block=block)
    assert mask.shape == (2, 3, 100, 140) and mask.block == block
    seen = set()
    for b, h in np.ndindex(2, 3):
        assert np.array_equal(mask.visible(b, h), LAYERS[b, h])
        for r, c in np.ndindex(*mask.map.shape[2:]):
            part = LAYERS[b, h, r * block : (r + 1) * block, c * block : (c + 1) * block]
            got = {EMPTY: "empty", FULL: "full"}.get(int(mask.map[b, h, r, c]), "partial")
            assert got == state(part), (b, h, r, c)
            seen.add(got)
    assert seen == ({"empty", "full", "partial"} if block == 32 else seen)
    assert mask.visited == (mask.map != EMPTY).mean()


def test_lists_of_visited_blocks():
    """The lists are by row for queries and by column for keys: column * 2 + (1 if full), in order, and their
    lengths."""
    mask = BlockMask.from_array(LAYERS, block=32)
    arrays = {name: np.array(array) for name, array in mask.arrays.items()}
    for suffix, map in (("", mask.map), ("_t", mask.map.swapaxes(2, 3))):
        lists, counts = arrays[f"block_lists{suffix}"], arrays[f"block_counts{suffix}"]
        assert lists.dtype == counts.dtype == np.int32 and lists.shape[:3] == counts.shape == map.shape[:3]
        for place in np.ndindex(*map.shape[:3]):
            want = [2 * c + (map[place][c] == FULL) for c in range(map.shape[3]) if map[place][c] != EMPTY]
            assert counts[place] == len(want) and lists[place][: len(want)].tolist() == want
    assert np.array_equal(arrays["block_map"], mask.map)


def test_equal_blocks_share_a_bitmap():
    causal = BlockMask.causal(1024, 1024, block=64)
    assert len(causal.bitmaps) == 1, "every block of the diagonal is the same"
    assert np.array_equal(causal.bitmaps[0], np.tri(64, dtype=np.uint8))
    assert causal.visited == 17 / 32


def test_layers_in_memory_are_those_of_the_batch_and_the_heads():
    """Whatever batch and number of heads the mask was used for before."""
    mask = BlockMask.from_array(LAYERS[:1, :1], block=32)
    for batch, heads in ((2, 4), (3, 4), (2, 5), (2, 4)):
        found = mask.layers(batch, heads, repeats=True)
        assert {array.shape[:2] for name, array in found.items() if name != "block_bitmaps"} == {(batch, heads)}
        assert all(
            np.array_equal(array[0, 0], mask.arrays[name][0, 0]) for name, array in found.items() if array.ndim > 3
        )


def written_out(query_length: int, key_length: int, sees) -> np.ndarray:
    """sees(own position of the query, key), one pair at a time."""
    table = [[sees(i + key_length - query_length, j) for j in range(key_length)] for i in range(query_length)]
    return np.array(table, bool)


READY_MADE = {
    "causal": (lambda: BlockMask.causal(50, 70, block=32), (50, 70), lambda p, j: j <= p),
    "causal-tall": (lambda: BlockMask.causal(70, 50, block=32), (70, 50), lambda p, j: j <= p),
    "window": (lambda: BlockMask.window(50, 70, 9, 4, block=32), (50, 70), lambda p, j: p - 9 <= j <= p + 4),
    "window-left": (lambda: BlockMask.window(70, 50, 9, None, block=32), (70, 50), lambda p, j: p - 9 <= j),
    "prefix": (lambda: BlockMask.prefix(50, 70, 40, block=32), (50, 70), lambda p, j: j <= p or j < 40),
    "dilated": (lambda: BlockMask.dilated(50, 70, 7, block=32), (50, 70), lambda p, j: j <= p and (p - j) % 7 == 0),
    "document": (
        lambda: BlockMask.document([33, 17, 20], block=32), (70, 70),
        lambda p, j: j <= p and sum(p >= end for end in (33, 50)) == sum(j >= end for end in (33, 50)),
    ),
    "document-both-ways": (
        lambda: BlockMask.document([33, 37], causal=False, block=32), (70, 70), lambda p, j: (p < 33) == (j < 33),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", READY_MADE)
def test_ready_made(name):
    build, lengths, sees = READY_MADE[name]
    mask = build()
    assert mask.shape == (1, 1, *lengths)
    assert np.array_equal(mask.visible(), written_out(*lengths, sees))


def test_predicates():
    """Shared, per head, and per batch and head; each evaluated in strips, never as a whole."""
    tallest = 0

    def sees(b, h, i, j):
        nonlocal tallest
        tallest = max(tallest, i.shape[0])
        return (i + b) % (h + 2) == j % (h + 2)

    mask = BlockMask.from_predicate(sees, 100, 140, batch=2, heads=3, block=32)
    i, j = np.arange(100)[:, None], np.arange(140)
    for b, h in np.ndindex(2, 3):
        assert np.array_equal(mask.visible(b, h), (i + b) % (h + 2) == j % (h + 2))
    assert tallest == 32
    assert BlockMask.from_predicate(lambda b, h, i, j: (j >= h) & (i >= 0), 5, 5, heads=2).shape == (1, 2, 5, 5)
    assert BlockMask.from_predicate(lambda i, j: j >= 2, 5, 5).visible().tolist() == [[False] * 2 + [True] * 3] * 5


STEPS_WITH_BLOCKS = [step for step in TRAINING if step.matmuls and step is not BACKWARD_MASK]


@each_simulated_family
def test_exactly_the_blocks_that_are_not_empty_are_visited(family):
    """Random blocks, the two heads apart: work is to the dense work as the visited blocks are to all."""
    states = DRAW.random((2, 8, 8)) < 0.4
    keep = states.repeat(32, 1).repeat(32, 2) & (DRAW.random((2, 256, 256)) < 0.9)
    mask, q = BlockMask.from_array(keep, block=32), mx.zeros((1, 2, 256, 16))
    assert mask.visited == states.mean()
    with use_backend("simulator", family), mode("check"), launched() as profiled:
        mx.eval(mx.vjp(lambda *x: attention(*x, mask=mask), [q, q, q], [q])[1])
    found = by_step(profiled)
    for step in STEPS_WITH_BLOCKS:
        assert found[step.name] == step.matmuls * int(states.sum()) * (32 // 8) ** 2 * (16 // 8), step


@pytest.mark.parametrize("partial", [False, True])
@each_simulated_family
def test_full_blocks_are_not_tested_per_element(family, partial):
    """Full blocks read no byte of the bitmaps; partial blocks read some."""
    q = mx.zeros((1, 1, 128, 16))
    mask = BlockMask.from_predicate(
        lambda i, j: (i // 32 >= j // 32) & ((i != j) | (not partial)), 128, 128, block=32
    )  # fmt: skip
    with use_backend("simulator", family), mode("check"), launched() as profiled:
        mx.eval(mx.vjp(lambda *x: attention(*x, mask=mask), [q, q, q], [q])[1])
    buffers = [launch["buffers"] for launch in profiled.launches if "block_bitmaps" in launch["buffers"]]
    assert len(buffers) == 3
    assert all((read["block_bitmaps"]["loaded"] > 0) == partial for read in buffers)


def test_counts_of_numpy_and_mlx():
    for one in (np.int64, np.array, mx.array):
        causal = BlockMask.causal(one(64), one(70), block=one(32))
        assert causal.shape == (1, 1, 64, 70) and type(causal.block) is int
        assert np.array_equal(causal.visible(), BlockMask.causal(64, 70, block=32).visible())
        layered = BlockMask.from_predicate(lambda b, h, i, j: i >= j, one(9), one(9), batch=one(2), heads=one(1))
        assert layered.shape == (2, 1, 9, 9)
        near = BlockMask.window(one(9), one(9), one(3), one(-1), block=32)
        assert np.array_equal(near.visible(), BlockMask.window(9, 9, 3, None, block=32).visible())
        assert np.array_equal(BlockMask.prefix(one(9), one(9), one(3)).visible(), BlockMask.prefix(9, 9, 3).visible())
        assert np.array_equal(BlockMask.dilated(one(9), one(9), one(2)).visible(), BlockMask.dilated(9, 9, 2).visible())
    for lengths in (np.array([30, 34]), mx.array([30, 34]), [mx.array(30), np.uint8(34)], (30, 34)):
        assert np.array_equal(BlockMask.document(lengths).visible(), BlockMask.document([30, 34]).visible())


def test_its_repr_says_what_it_is():
    mask = BlockMask.causal(64, 64, block=32)
    assert repr(mask) == "BlockMask(shape=(1, 1, 64, 64), block=32, visited=75.0%)"


@pytest.mark.long
@pytest.mark.parametrize("side", [200, 3000])
def test_plot(tmp_path, side):
    """Small masks by element, large ones by block; a PNG where `path` says."""
    mask = BlockMask.document([side // 2, side - side // 2], block=64)
    path = tmp_path / "mask.png"
    figure = mask.plot(str(path))
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and path.stat().st_size > 5000
    (axes,) = figure.axes
    assert f"{side} x {side}, blocks of 64: {mask.visited:.1%} visited" == axes.get_title()
    (image,) = axes.images
    shown = np.array(image.get_array())
    assert shown.shape == ((side, side) if side <= 1024 else mask.map.shape[2:])
    whole = mask.map.shape[2] * 64  # blocks are drawn at their places, cut off at the end
    assert tuple(image.get_extent()) == ((0, side, side, 0) if side <= 1024 else (0, whole, whole, 0))
    assert axes.get_xlim() == (0, side) and axes.get_ylim() == (side, 0)
    if side <= 1024:
        assert np.array_equal(np.isin(shown, (1, 3)), mask.visible()), "seen elements, and no others, are dark"


@pytest.mark.long
@pytest.mark.parametrize("layer", [(0, 2), (1, 0)], ids=str)
def test_a_plot_of_any_layer(layer):
    batch, head = layer
    (image,) = BlockMask.from_array(LAYERS, block=32).plot(batch=batch, head=head).axes[0].images
    assert np.array_equal(np.isin(np.array(image.get_array()), (1, 3)), LAYERS[layer])


def traced(mask):
    return mx.array(BlockMask.from_array(mask).map)


traced.runs_no_kernels = True  # so that it is traced on a pretended Mac too
WRONG = {
    "query-length": (lambda: BlockMask.causal(0, 5), "query_length", "a whole number of at least 1", "0"),
    "key-length": (lambda: BlockMask.causal(5, 2.5), "key_length", "a whole number of at least 1", "2.5"),
    "batch": (lambda: BlockMask.from_predicate(None, 5, 5, batch=0), "batch", "a whole number of at least 1", "0"),
    "heads": (lambda: BlockMask.from_predicate(None, 5, 5, heads=-1), "heads", "a whole number of at least 1", "-1"),
    "mlx-3875-block": (lambda: BlockMask.causal(5, 5, block=48), "block", "a positive multiple of 32", "48"),
    "block-zero": (lambda: BlockMask.causal(5, 5, block=0), "block", "a positive multiple of 32", "0"),
    "numbers": (lambda: BlockMask.from_predicate(lambda i, j: i - j, 5, 5), "predicate", "a bool array", "int64"),
    "shape": (
        lambda: BlockMask.from_predicate(lambda i, j: np.ones((3, 5), bool), 5, 5), "predicate",
        "a result that broadcasts to (5, 5)", "shape (3, 5)",
    ),
    "array-of-numbers": (lambda: BlockMask.from_array(np.ones((5, 5))), "mask", "a bool array of 2 to 4", "float64"),
    "array-traced": (
        lambda: mx.compile(traced)(mx.ones((5, 5), mx.bool_)), "mask",
        "an array whose values are known", "an array of shape (5, 5)",
    ),
    "array-of-one-axis": (lambda: BlockMask.from_array([True]), "mask", "a bool array of 2 to 4 axes", "shape (1,)"),
    "left": (lambda: BlockMask.window(5, 5, -2, 0), "left", "a whole number of at least 0", "-2"),
    "right": (lambda: BlockMask.window(5, 5, 1, 0.5), "right", "a whole number of at least 0", "0.5"),
    "prefix": (lambda: BlockMask.prefix(5, 5, -3), "prefix", "a whole number of at least 0", "-3"),
    "lengths": (lambda: BlockMask.document([3, -2]), "lengths", "a whole number of at least 0", "-2"),
    "no-lengths": (lambda: BlockMask.document(3.5), "lengths", "a whole number of at least 0", "3.5"),
    "empty-lengths": (lambda: BlockMask.document([]), "lengths", "a whole number of at least 0", "[]"),
    "bool": (lambda: BlockMask.causal(True, 5), "query_length", "a whole number of at least 1", "True"),
    "array": (
        lambda: BlockMask.causal(mx.array([5, 5]), 5), "query_length", "a whole number", "an array of shape (2,)",
    ),
    "huge": (lambda: BlockMask.causal(2**31, 2**31), "query_length, key_length", "at most", "2147483648 x 2147483648"),
    "huge-documents": (lambda: BlockMask.document([2**62] * 4), "query_length, key_length", "at most", str(2**64)),
    "no-function": (lambda: BlockMask.from_predicate(3, 5, 5), "predicate", "a function of positions", "3"),
    "step": (lambda: BlockMask.dilated(5, 5, 0), "step", "a whole number of at least 1", "0"),
}  # fmt: skip


def test_numbers_beyond_every_key():
    assert (BlockMask.dilated(5, 5, 2**70).visible() == np.eye(5, dtype=bool)).all()
    assert BlockMask.window(5, 5, 2**70, 2**70).visible().all() and BlockMask.prefix(5, 5, 2**70).visible().all()


@pytest.mark.parametrize("name", WRONG)
def test_wrong_blocks(name):
    build, argument, expected, got = WRONG[name]
    pattern = r"\[mlx_flash\.BlockMask\] {}: expected {}.*, got .*{}.*\. \w+".format(
        *map(re.escape, (argument, expected, got))
    )
    with pytest.raises(ValueError, match=pattern):
        build()
