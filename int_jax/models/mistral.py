"""Mistral 7B and its kin: the plain decoder; in version 0.1 every layer attends to a window of 4,096 tokens."""

from int_jax.models import hf
from int_jax.models.transformer import Config

NAMES = hf.LLAMA_NAMES


def config_from_hf(data: dict) -> Config:
    """The switches of a config.json; what this decoder cannot do is refused with the key and its value.

    `sliding_window` null is no window; absent it is 4,096 tokens, as for transformers.
    """
    hf.only(data, "hidden_act", "silu")
    hf.only(data, "layer_types", None)
    sizes = hf.sizes(data)
    window = data.get("sliding_window", 4096)
    theta, _ = hf.rope(data)
    return Config(
        family="mistral",
        **sizes,
        rope_theta=theta,
        windows=hf.windows(data, [window is not None] * sizes["layers"], window),
    )


def config_to_hf(config: Config, token_ids: dict[str, int | None]) -> dict:
    """A config.json that transformers 4 and 5 read alike. token_ids: bos_, eos_ and pad_token_id."""
    return {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        **hf.sizes_to_hf(config),
        **hf.rope_to_hf(config),
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "sliding_window": max(config.windows, default=None),
        **token_ids,
    }
