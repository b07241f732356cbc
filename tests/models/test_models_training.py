"""LoRA with mlx-lm's own trainer under patch(): every loss is the unpatched run's."""

import bounds
import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from machines import CUDA, METAL, SIMULATED, label
from mlx.utils import tree_flatten
from mlx_lm.tuner import trainer
from mlx_lm.tuner.utils import linear_to_lora_layers
from tiny_models import PROMPT, close, tiny

import mlx_flash
from mlx_flash import use_backend
from mlx_flash.simulator import mode

pytestmark = pytest.mark.training

STEPS = 100
TEXTS = [([(7 * i * i + length) % 64 for i in range(length)], 0) for length in range(20, 36)]
SMALL = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
LORA = {"rank": 4, "scale": 2.0, "dropout": 0.0}


class Losses(trainer.TrainingCallback):
    def __init__(self):
        self.losses = []

    def on_train_loss_report(self, train_info):
        self.losses.append(train_info["train_loss"])


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Losses of a run whose batches and adapters depend on nothing but its arguments."""

    def run(name: str, checkpoint=False, steps=STEPS, dora=False, accumulated=1, **changes) -> np.ndarray:
        model = tiny(name, **changes)
        model.freeze()
        mx.random.seed(5)
        np.random.seed(5)
        linear_to_lora_layers(model, len(model.layers), LORA, use_dora=dora)
        layer = type(model.layers[0])
        monkeypatch.setattr(layer, "__call__", layer.__call__)  # the trainer replaces it for good
        options = trainer.TrainingArgs(
            batch_size=2, iters=steps, steps_per_report=1, max_seq_length=40, grad_checkpoint=checkpoint,
            grad_accumulation_steps=accumulated, adapter_file=tmp_path / "adapters.safetensors",
        )  # fmt: skip
        seen = Losses()
        trainer.train(model, optim.Adam(1e-3), TEXTS, args=options, training_callback=seen)
        monkeypatch.undo()
        assert len(seen.losses) == steps
        return np.array(seen.losses)

    return run


@pytest.fixture
def compiling():
    """Switches mx.compile, which the trainer uses, off and on: the simulator computes at once."""

    def switch(on: bool):
        (mx.enable_compile if on else mx.disable_compile)()

    switch(False)
    yield switch
    switch(True)


def compare(train, name: str, compiling, *runs: tuple[bool, bool], **changes):
    """runs: (with checkpoints, compiled), each patched; MLX's own run is neither."""
    want = train(name, **changes)
    assert want[-10:].mean() < want[:10].mean() - 1, "it learns"
    for checkpoint, compiled in runs:
        compiling(compiled)
        with mlx_flash.patch() as report:
            got = train(name, checkpoint, **changes)
        assert report.ours >= 1 and not report.built_in, str(report)
        assert np.abs(got - want).max() <= bounds.LOSS


def test_lora(reference, train, compiling):
    compare(train, "llama", compiling, (False, False), (True, True), **SMALL)


# A hundred steps on the simulator wait for `pytest -m ""`.
@pytest.mark.parametrize(
    "choice",
    [*(pytest.param(one, marks=pytest.mark.slow) for one in SIMULATED[1:]), *METAL, *CUDA],
    ids=label,
)
def test_lora_on_kernels(choice, train, compiling):
    with use_backend(*choice), mode("fast"):  # checked kernels: test_the_gradients_of_a_model
        compare(train, "llama", compiling, (False, False), (True, False), **SMALL)


@pytest.mark.parametrize(
    "name", ["llama", *(pytest.param(name, marks=pytest.mark.slow) for name in ("gemma3_text", "deepseek_v3"))]
)
def test_dora_with_checkpoints_and_accumulated_gradients(reference, train, name):
    options = {"steps": 6, "dora": True, "accumulated": 2}
    want = train(name, **options)
    with mlx_flash.patch() as report:
        got = train(name, True, **options)
    assert report.ours and not report.built_in and want[-1] != want[0]
    assert np.abs(got - want).max() <= bounds.LOSS


def test_lora_with_windows_and_sinks(reference, train, compiling):
    compare(train, "gpt_oss", compiling, (False, False))


def test_the_gradients_of_a_model(backend):
    made, tokens = tiny("llama"), PROMPT[None]

    def loss(made):
        return nn.losses.cross_entropy(made(tokens[:, :-1]), tokens[:, 1:]).mean()

    want = dict(tree_flatten(nn.value_and_grad(made, loss)(made)[1]))
    with mlx_flash.patch() as report:
        got = dict(tree_flatten(nn.value_and_grad(made, loss)(made)[1]))
        mx.eval(got)
    assert report.ours == 2
    for name, gradient in want.items():
        close(got[name], gradient)
