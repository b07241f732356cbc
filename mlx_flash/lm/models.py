"""Language models to try: from a folder, or small and random. mlx-lm is imported when it is first needed."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx

from ..common.errors import CommandError, need, wrong
from ..common.scalars import shown, whole

TINY = {
    "model_type": "llama", "hidden_size": 256, "num_hidden_layers": 2, "intermediate_size": 512, "vocab_size": 256,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "rms_norm_eps": 1e-5, "max_position_embeddings":
    8192, "tie_word_embeddings": False,
}  # fmt: skip
TINY_WORDS = "a random Llama, 2 layers, 4 query heads over 2 key/value heads, head dimension 64, float32"


def mlx_lm(part: str = ""):
    """The package mlx_lm, or one of its modules. Raises CommandError when it is missing or cannot be imported."""
    module = need(f"mlx_lm{part and '.'}{part}", "lm", "lm")
    if not part and not hasattr(module, "stream_generate"):  # left behind by a broken installation
        raise CommandError("lm needs mlx_lm, of which only parts are installed: pip install --force-reinstall mlx-lm")
    return module


def tiny_model(seed: int = 0, layers: int = 2):
    """(model, tokenizer) as from ``mlx_lm.load``: a small Llama with random weights, and a token for each byte.

    It needs no download. The text it generates is noise, and the same for the same seed.

    Args:
        seed: of the weights, a whole number of at least 0. MLX's global random state is seeded with it.
        layers: the number of layers, each of 4 query heads over 2 key/value heads of dimension 64, in float32.

    Raises:
        CommandError: mlx-lm is not installed. ValueError: a seed or a number of layers that is none.
    """
    for name, number, least in (("seed", seed, 0), ("layers", layers, 1)):
        if whole(number) is None or not least <= whole(number) < 2**32:
            raise wrong(name, f"a whole number from {least} to 2^32", shown(number), "Pass an int.", "lm.tiny_model")
    llama, utils = mlx_lm("models.llama"), mlx_lm("tokenizer_utils")
    mx.random.seed(whole(seed))
    model = llama.Model(llama.ModelArgs.from_dict(TINY | {"num_hidden_layers": whole(layers)}))
    for layer in model.layers:  # larger scores: as drawn, all keys would get nearly the same weight
        layer.self_attn.q_proj.weight *= 4
    mx.eval(model.parameters())
    model.eval()
    return model, utils.TokenizerWrapper(_byte_tokenizer())


def _byte_tokenizer():
    tokenizers, transformers = need("tokenizers", "lm", "lm"), need("transformers", "lm", "lm")
    level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    vocabulary = {character: n for n, character in enumerate(sorted(level.alphabet()))}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = level, tokenizers.decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def check_model(model, function: str) -> None:
    """Raises ValueError, in the name of a function, unless the model has layers, as mlx-lm's have."""
    if not callable(model) or not hasattr(model, "layers"):
        remedy = "Pass the first result of mlx_lm.load."
        raise wrong("model", "a model of mlx-lm", type(model).__name__, remedy, function)


def load(path: str):
    """(model, tokenizer) from the folder of a model. Raises CommandError where the folder holds none."""
    lm, folder = mlx_lm(), Path(path)
    if not folder.exists():
        raise CommandError(f"--model {path}: no such folder. Download the model first, nothing is fetched here")
    if not folder.is_dir():
        raise CommandError(f"--model {path}: this is a file, expected a model's folder")
    for pattern in ("config.json", "model*.safetensors"):
        if not any(folder.glob(pattern)):
            raise CommandError(f"--model {path}: the folder holds no {pattern}, so mlx-lm cannot load it as a model")
    try:
        return lm.load(str(folder))
    except Exception as error:  # another package may raise anything on broken files
        raise CommandError(f"--model {path}: mlx-lm cannot load it ({described(error)})") from error


def described(error: Exception) -> str:
    """One line that describes an exception of another package."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
