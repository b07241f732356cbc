"""Every model that mlx-lm's own tests build, with and without patch(): `python bench/mlx_lm_models.py`.

Small models of random weights, in float32: a batch of two prompts of 17 tokens in two parts, then 4 greedy tokens, and
the prompts once more without a cache. Writes bench/results/mlx_lm_models.json: the calls served, the reasons of the
others, whether the tokens are the same, and by how much the logits differ, of the largest magnitude or 1; `broken`: by
how much they would if attention were wrong by 5 %. The tests come with mlx-lm's source distribution, which pip fetches;
MLX_FLASH_MLX_LM_TESTS names their folder instead.
"""

import dataclasses
import importlib
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import unittest
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm import __version__ as MLX_LM
from mlx_lm.models.cache import make_prompt_cache

import mlx_flash
from mlx_flash import use_backend
from mlx_flash.integrations import serve as serving

RESULTS = Path(__file__).parent / "results" / "mlx_lm_models.json"
SHARPER = 1.5  # attention's weights: a new model's scores are so small that it would hardly show what attention does
MANY = 20e6  # parameters: some tests build models of the usual size, whose outputs they never compute
VOCABULARY = 512
FEW = {"intermediate_size": 256}
SMALLER = {  # those, with other sizes than a small vocabulary
    "cohere": {"hidden_size": 256, "num_attention_heads": 8, "num_key_value_heads": 4, **FEW},
    "cohere2": {
        "hidden_size": 256,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 32,
        "num_hidden_layers": 4,
        **FEW,
    },  # its fourth layer sees everything
    "gpt_neox": {"hidden_size": 256, "num_attention_heads": 8},
    "gpt_oss": {"hidden_size": 256, "num_local_experts": 4, **FEW},
    "gptj": {"n_embd": 256, "n_head": 4, "rotary_dim": 16},
    "jamba": {"mamba_expand": 2},
    "nanochat": {"hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 4, **FEW},
    "phi": {"hidden_size": 256, "num_attention_heads": 8, "num_key_value_heads": 8, **FEW},
    "phi3": {"hidden_size": 256, "num_attention_heads": 8, "num_key_value_heads": 8, **FEW},
    "qwen": {"hidden_size": 256, "num_attention_heads": 8, "kv_channels": 32, **FEW},
}
ATTENTION = ("attn", "attention", "q_proj", "qkv")  # in names of weights
LAYERS = ("num_hidden_layers", "n_layer", "n_layers")


class Unavailable(RuntimeError):
    """mlx-lm's tests are not here, and cannot be fetched."""


def tests() -> Path:
    """The folder of mlx-lm's tests, of the installed version."""
    named = os.environ.get("MLX_FLASH_MLX_LM_TESTS")
    if named:
        return Path(named)
    scratch = Path(tempfile.mkdtemp())
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary=:all:"]
    command += ["--dest", str(scratch), f"mlx-lm=={MLX_LM}"]
    done = subprocess.run(command, capture_output=True, text=True)
    archives = list(scratch.glob("*.tar.gz"))
    if not archives:
        raise Unavailable(f"mlx-lm {MLX_LM}'s source distribution cannot be fetched: {done.stderr.strip()[-200:]}")
    with tarfile.open(archives[0]) as archive:
        archive.extractall(scratch, filter="data")
    return next(scratch.glob("mlx_lm-*/tests"))


def family_of(model) -> str:
    return type(model).__module__.rpartition(".")[2]


def parameters(model) -> int:
    return sum(array.size for _, array in tree_flatten(model.parameters()))


def prepared(model):
    """The model, smaller if it is large, in float32, with larger weights in its attention."""
    changes = dict(SMALLER.get(family_of(model), {}))
    if changes or (parameters(model) > MANY and hasattr(model, "args")):
        changes = {name: 2 for name in LAYERS if changes and hasattr(model.args, name)} | changes
        changes |= {"vocab_size": VOCABULARY} if hasattr(model.args, "vocab_size") else {}
        if "num_hidden_layers" in changes and getattr(model.args, "layer_types", None):
            changes["layer_types"] = model.args.layer_types[: changes["num_hidden_layers"]]  # a cache is made for each
        model = type(model)(dataclasses.replace(model.args, **changes))
    assert parameters(model) < 20 * MANY, f"{family_of(model)} belongs in SMALLER"
    mx.random.seed(0)
    drawn = []
    for name, array in tree_flatten(model.parameters()):
        if mx.issubdtype(array.dtype, mx.floating):
            inside, array = any(word in name for word in ATTENTION), array.astype(mx.float32)
            if (inside or array.ndim > 1) and not array.any():  # zeros of a new model could hide what is wrong
                array = mx.random.normal(array.shape) * (1 if inside else 0.02)
            elif inside and array.ndim > 1:
                array = array * SHARPER
        drawn.append((name, array))
    model.load_weights(drawn, strict=False)
    return model.eval()


def run(model, prompts: mx.array) -> tuple[mx.array, mx.array]:
    """Logits, all in a row, and greedy tokens."""
    cache, tokens = make_prompt_cache(model), []
    outputs = [model(prompts[:, :9], cache=cache), model(prompts[:, 9:], cache=cache)]
    for _ in range(4):
        tokens.append(outputs[-1][:, -1].argmax(-1)[:, None])
        outputs.append(model(tokens[-1], cache=cache))
    outputs.append(model(prompts))
    logits = mx.concatenate([output.astype(mx.float32).flatten() for output in outputs])
    mx.eval(logits, tokens)
    return logits, mx.concatenate(tokens, 1)


def distance(one: mx.array, other: mx.array) -> float:
    return mx.abs(one - other).max().item() / max(1.0, mx.abs(other).max().item())


def compare(model, vocabulary: int) -> dict:
    """A row of the table but for its name."""
    prompts = mx.array(np.random.default_rng(0).integers(2, min(vocabulary, VOCABULARY) - 1, (2, 17)))
    try:
        want, tokens = run(model, prompts)
    except Exception as error:  # it cannot run here: not for us to judge
        return {"alone": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
    if not mx.isfinite(want).all():
        return {"alone": "logits that are not finite"}
    with mlx_flash.patch() as report:
        got, ours = run(model, prompts)
    row = {"served": dict(report.served), "built_in": dict(report.built_in)}
    row |= {"same_tokens": mx.array_equal(ours, tokens).item(), "difference": distance(got, want)}
    right = serving.attention

    def wrong(*qkv, **options):  # no factor: many models norm what attention gives them
        out = right(*qkv, **options)
        return out + 0.05 * out[..., ::-1]

    serving.attention = wrong
    try:
        with mlx_flash.patch():
            row["broken"] = distance(run(model, prompts)[0], want)
    finally:
        serving.attention = right
    return row


def rows() -> list[dict]:
    """One for each model that the tests build."""
    sys.path.insert(0, str(tests()))
    module, found, failures = importlib.import_module("test_models"), [], []

    def runner(self, model, model_type, vocab_size, num_layers):
        try:
            found.append({"family": family_of(model), **compare(prepared(model), vocab_size)})
        except Exception as error:  # the test would keep it to itself
            failures.append(error)
            raise
        print(json.dumps(found[-1]), flush=True)

    cases, before = module.TestModels, module.TestModels.model_test_runner
    cases.model_test_runner = runner
    try:
        with use_backend("reference"):
            for test in unittest.defaultTestLoader.loadTestsFromTestCase(cases):
                test.run(unittest.TestResult())  # some need a GPU, or more than a model: not for us to judge
                if failures:
                    raise failures[0]
    finally:
        cases.model_test_runner = before
        sys.path.pop(0)
    return found


def main():
    measured = rows()
    text = json.dumps({"mlx": mx.__version__, "mlx_lm": MLX_LM, "models": measured}, indent=1)
    RESULTS.write_text(text + "\n")


if __name__ == "__main__":
    main()
