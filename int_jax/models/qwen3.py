"""Qwen3: query/key norm, no biases, heads whose size is chosen freely; the embedding may be tied to the head, and the
upper layers may have a window."""

from int_jax.models import hf
from int_jax.models.transformer import Config

NAMES = hf.LLAMA_NAMES | hf.QK_NORM_NAMES


def config_from_hf(data: dict) -> Config:
    """The switches of a config.json; what this decoder cannot do is refused with the key and its value."""
    hf.only(data, "hidden_act", "silu")
    hf.only(data, "attention_bias", False)
    hf.need(data, "head_dim")  # 128 for transformers, not hidden_size / heads
    theta, _ = hf.rope(data)
    return Config(
        family="qwen3",
        **hf.sizes(data),
        rope_theta=theta,
        windows=hf.upper_windows(data),
        qk_norm=True,
    )


def config_to_hf(config: Config, token_ids: dict[str, int | None]) -> dict:
    """A config.json that transformers 4 and 5 read alike. token_ids: bos_, eos_ and pad_token_id."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        **hf.sizes_to_hf(config),
        **hf.rope_to_hf(config),
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        **hf.upper_windows_to_hf(config),
        **token_ids,
    }
