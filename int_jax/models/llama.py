"""Llama 1 to 3: the plain decoder, from 3.1 on with its own RoPE scaling. The attention may have biases."""

from int_jax.models import hf
from int_jax.models.transformer import Config

NAMES = hf.LLAMA_NAMES | hf.QKV_BIAS_NAMES | {"layer_{}/o_bias_D": "model.layers.{}.self_attn.o_proj.bias"}


def config_from_hf(data: dict) -> Config:
    """The switches of a config.json; what this decoder cannot do is refused with the key and its value."""
    hf.only(data, "hidden_act", "silu")
    hf.only(data, "mlp_bias", False)
    biased = bool(data.get("attention_bias"))
    theta, scaling = hf.rope(data, "linear", "llama3")
    return Config(
        family="llama",
        **hf.sizes(data),
        rope_theta=theta,
        rope_scaling=scaling,
        qkv_bias=biased,
        o_bias=biased,
    )


def config_to_hf(config: Config, token_ids: dict[str, int | None]) -> dict:
    """A config.json that transformers 4 and 5 read alike. token_ids: bos_, eos_ and pad_token_id."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **hf.sizes_to_hf(config),
        **hf.rope_to_hf(config),
        "hidden_act": "silu",
        "attention_bias": config.qkv_bias,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        **token_ids,
    }
