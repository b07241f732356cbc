"""The gallery: every mask and score is what its definition says, on every backend, and masks visit no empty block."""

import bounds
import feature_cases
import gallery_facts
import mlx.core as mx
import numpy as np
import pytest
from cases import Case
from feature_cases import Variant
from gallery_facts import MASKS, SCORES
from machines import across_backends
from oracle_variants import Facts

from mlx_flash import attention, gallery
from mlx_flash.cli.gallery import examples
from mlx_flash.cli.main import main
from mlx_flash.cli.probe import trial
from mlx_flash.kernels.devices import FAMILIES
from mlx_flash.problem.kinds import BACKWARD_KEY_VALUE, BACKWARD_QUERY, DECODE, FORWARD
from mlx_flash.problem.problem import signature_of


def test_everything_is_tested_and_drawn():
    for module, tested in ((gallery.masks, MASKS), (gallery.scores, SCORES)):
        public = {
            name for name, one in vars(module).items()
            if callable(one) and one.__module__ == module.__name__ and name[0] != "_" and name != "t5_buckets"
        }  # fmt: skip
        assert public <= {name.split("-")[0] for name in tested} | {"document"}
        drawn = examples()
        assert all(any(one.startswith(name) for one in drawn) for name in public)


@pytest.mark.long
def test_the_command_draws_and_counts(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    some = {name: examples()[name] for name in ("window", "alibi")}
    monkeypatch.setattr("mlx_flash.cli.gallery.examples", lambda: some)
    assert main(["gallery", "--out", str(tmp_path / "pictures")]) == 0
    assert all((tmp_path / "pictures" / f"{name}.png").read_bytes().startswith(b"\x89PNG") for name in some)
    assert "43.8% of the blocks of 32 visited" in capsys.readouterr().out
    (tmp_path / "file").write_text("")
    assert main(["gallery", "--out", str(tmp_path / "file" / "folder")]) == 2


@pytest.mark.parametrize("name", MASKS)
def test_masks_are_their_definitions(name):
    text, queries, keys, _ = MASKS[name]
    want = gallery_facts.table(name)
    mask = text.block_mask(queries, keys)
    assert np.array_equal(mask.visible(), want) and want.any() and not want.all()


@pytest.mark.parametrize(
    "text, length", [(gallery.masks.neighbourhood((56, 56), 7, block=64), 3136),
                     (gallery.masks.neighbourhood((8, 16, 16), (3, 5, 5), block=128), 2048)], ids=["2d", "3d"],
)  # fmt: skip
def test_visited_blocks_are_those_with_something_visible(text, length):
    """NATTEN's 7 x 7 of 56 x 56, and a video: the definition by arrays."""
    mask, block = text.block_mask(length, length), text.block
    shape, kernel = ((56, 56), (7, 7)) if length == 3136 else ((8, 16, 16), (3, 5, 5))
    seen = np.ones((length, length), bool)
    for axis, (size, width) in enumerate(zip(shape, kernel)):
        at = np.unravel_index(np.arange(length), shape)[axis]
        start = np.clip(at - width // 2, 0, size - width)[:, None]
        seen &= (at >= start) & (at < start + width)
    side = -(-length // block)
    padded = np.zeros((side * block, side * block), bool)
    padded[:length, :length] = seen
    holds = padded.reshape(side, block, side, block).any((1, 3))
    assert np.array_equal(mask.map[0, 0] > 0, holds) and holds.mean() < 0.5


KERNELS = ("neighbourhood-2-dilated", "swin_window-shifted", "draft_tree", "image_intervals")


def mask_cases() -> list:
    """Kernels of a few masks, each a text of its own; the others' wait for `pytest -m ""`."""
    found = across_backends(MASKS)
    waits = [one.values[0][0] != "reference" and one.values[1] not in KERNELS for one in found]
    return [pytest.param(*one.values, id=one.id, marks=[pytest.mark.slow] * wait) for one, wait in zip(found, waits)]


@pytest.mark.parametrize("backend, name", mask_cases(), indirect=["backend"])
def test_attention_under_masks(backend, name):
    text, queries, keys, _ = MASKS[name]
    variant = Variant(Case(queries, keys, 16, group=2), ("lse",))
    facts = Facts(keep=gallery_facts.table(name)[None, None])
    feature_cases.check_arguments(variant, {"visible": text, "return_lse": True}, facts)


def score_cases() -> list:
    found = across_backends(SCORES)
    waits = [one.values[0][0] != "reference" and one.values[1] not in ("t5_bias", "kerple") for one in found]
    return [pytest.param(*one.values, id=one.id, marks=[pytest.mark.slow] * wait) for one, wait in zip(found, waits)]


@pytest.mark.parametrize("name", SCORES)
def test_a_probe_has_numbers_for_every_score(name):
    """A kernel's first use on a Mac is tried with made-up arrays: without numbers nothing would be compared."""
    q = mx.zeros((1, 2, 1, 16))
    signature = signature_of(q, q, q, score=SCORES[name][0])
    for kind in (FORWARD, DECODE, BACKWARD_QUERY, BACKWARD_KEY_VALUE):
        *_, want = trial.task(kind, signature, FAMILIES["apple7"], 8)
        assert all(mx.isfinite(one).all() for one in want), kind


@pytest.mark.parametrize("backend, name", score_cases(), indirect=["backend"])
def test_attention_with_scores(backend, name):
    variant = Variant(Case(40, gallery_facts.LENGTH, 16, group=2), ("lse",))
    facts = Facts(score=gallery_facts.PairByPair(name))
    feature_cases.check_arguments(variant, {"score": SCORES[name][0], "return_lse": True}, facts)


LEARNED = {
    "softcap": (gallery.scores.softcap, (1.5,)),
    "log_length": (gallery.scores.log_length, (3.5,)),
    "distance_penalty": (gallery.scores.distance_penalty, (0.2, 0.7)),
}


@pytest.mark.parametrize("name", LEARNED)
def test_numbers_are_learned_where_they_are_arrays(backend, name):
    """Against differences of the same function with plain numbers, which it takes too; keys at distance 0 as well."""
    function, numbers = LEARNED[name]
    q, k, v, w = mx.random.normal((4, 1, 2, 9, 16), key=mx.random.key(0))

    def loss(*numbers):
        return (attention(q, k, v, score=function(*numbers)) * w).sum()

    places = tuple(range(len(numbers)))
    gradients = mx.grad(loss, places)(*(mx.full((1,), number) for number in numbers))
    for place, gradient in zip(places, gradients if len(places) > 1 else [gradients]):
        steps = [[n + sign * 1e-2 * (at == place) for at, n in enumerate(numbers)] for sign in (-1, 1)]
        below, above = (loss(*moved).item() for moved in steps)
        slope = (above - below) / 2e-2
        assert gradient.shape == (1,) and abs(gradient.item() - slope) < bounds.SLOPE * max(1, abs(slope))


@pytest.mark.parametrize("wrong", [None, "1", [1.0], mx.ones(2), True], ids=str)
def test_numbers_that_are_none(wrong):
    with pytest.raises(ValueError, match="gallery. cap: expected a number, or an array of a single one"):
        gallery.scores.softcap(wrong)
