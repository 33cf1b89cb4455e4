"""Qwen2, Qwen2.5 and their distillations: biases on query, key and value; the upper layers may have a window."""

from int_jax.models import hf
from int_jax.models.transformer import Config

NAMES = hf.LLAMA_NAMES | hf.QKV_BIAS_NAMES


def config_from_hf(data: dict) -> Config:
    """The switches of a config.json; what this decoder cannot do is refused with the key and its value."""
    hf.only(data, "hidden_act", "silu")
    theta, _ = hf.rope(data)
    return Config(
        family="qwen2",
        **hf.sizes(data),
        rope_theta=theta,
        windows=hf.upper_windows(data),
        qkv_bias=True,
    )


def config_to_hf(config: Config, token_ids: dict[str, int | None]) -> dict:
    """A config.json that transformers 4 and 5 read alike. token_ids: bos_, eos_ and pad_token_id."""
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        **hf.sizes_to_hf(config),
        **hf.rope_to_hf(config),
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        **hf.upper_windows_to_hf(config),
        **token_ids,
    }
