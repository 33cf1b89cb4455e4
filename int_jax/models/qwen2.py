"""Qwen2, Qwen2.5 and their distillations: biases on query, key and value; the upper layers may have a window."""

from int_jax.models import hf
from int_jax.models.transformer import Config

NAMES = hf.LLAMA_NAMES | hf.QKV_BIAS_NAMES


def config_from_hf(data: dict) -> Config:
    """The switches of a config.json; what this decoder cannot do is refused with the key and its value.

    `sliding_window` counts only under `use_sliding_window`, and then from layer `max_window_layers` on.
    """
    hf.only(data, "hidden_act", "silu")
    sizes = hf.sizes(data)
    window = hf.need(data, "sliding_window") if data.get("use_sliding_window") else None
    first = hf.need(data, "max_window_layers") if window else sizes["layers"]
    theta, _ = hf.rope(data)
    return Config(
        family="qwen2",
        **sizes,
        rope_theta=theta,
        windows=hf.windows(data, [layer >= first for layer in range(sizes["layers"])], window),
        qkv_bias=True,
    )


def config_to_hf(config: Config, token_ids: dict[str, int | None]) -> dict:
    """A config.json that transformers 4 and 5 read alike. token_ids: bos_, eos_ and pad_token_id."""
    types = hf.layer_types(config)
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        **hf.sizes_to_hf(config),
        **hf.rope_to_hf(config),
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "use_sliding_window": bool(config.windows),
        "sliding_window": max(config.windows, default=None),
        "max_window_layers": [*types, hf.KINDS[1]].index(hf.KINDS[1]),
        "layer_types": types,
        **token_ids,
    }
