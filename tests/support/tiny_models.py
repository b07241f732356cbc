"""mlx-lm's model classes, small and with random weights, and the tokens that they generate greedily."""

import importlib

import bounds
import mlx.core as mx
from mlx_lm.generate import generate_step

SHARED = {
    "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 64, "num_attention_heads": 4, "head_dim": 32,
    "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "vocab_size": 64, "tie_word_embeddings": False,
}  # fmt: skip
MODELS = {
    "llama": {},
    "qwen3": {"max_position_embeddings": 512, "rope_theta": 10000.0},
    # The model itself caps its scores, and calls no attention function.
    "gemma2": {},
    "gemma3_text": {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 256, "sliding_window": 8,
                    "sliding_window_pattern": 2},
    "gpt_oss": {"num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": 8, "rope_theta": 10000,
                "layer_types": ["sliding_attention", "full_attention"]},
    # Its own scores arrive as an additive mask; values and keys have different head dimensions.
    "deepseek_v3": {"kv_lora_rank": 32, "q_lora_rank": None, "qk_rope_head_dim": 16, "v_head_dim": 24,
                    "qk_nope_head_dim": 32, "num_key_value_heads": 4},
}  # fmt: skip
SHARPER = 4.0  # scales the scores of a new model, which are so small that attention would hardly matter
PROMPT = mx.array([(7 * i * i + i) % 64 for i in range(21)])


def tiny(name: str, **changes):
    """A model of two layers; the weights depend on the name only."""
    module = importlib.import_module(f"mlx_lm.models.{name}")
    mx.random.seed(3)
    model = module.Model(module.ModelArgs.from_dict(SHARED | MODELS[name] | {"model_type": name} | changes))
    for attention in (layer.self_attn for layer in model.layers):
        attention.q_proj.weight *= SHARPER
        attention.o_proj.weight *= SHARPER
        if name == "gpt_oss":  # zero in a new model
            attention.sinks = mx.random.normal((4,))
    mx.eval(model.parameters())
    return model


def generated(model, count: int = 8, **options) -> tuple[list[int], mx.array]:
    """mlx-lm's greedy tokens for the prompt, and the log probabilities [count, vocabulary]."""
    tokens, logprobs = zip(*generate_step(PROMPT, model, max_tokens=count, **options))
    return list(tokens), mx.stack(logprobs)


def close(got: mx.array, want: mx.array):
    """Compares within the tolerance for a float32 model."""
    assert got.shape == want.shape and got.dtype == want.dtype
    difference = mx.abs(got - want).max().item()
    limit = bounds.MODEL_LOGITS * max(1, mx.abs(want).max().item())
    assert difference <= limit, f"{difference} exceeds {limit}"
