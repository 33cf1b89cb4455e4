"""Gemma 3, the text model: layers with a window and a RoPE base of their own, norms on both sides of each half layer.

Norm weights are stored around zero, the embedding is scaled and tied. A config may carry Gemma 2's soft caps (released
Gemma 3 has none). That of the scores, `attn_logit_softcapping`, is applied here; transformers 5 reads the key and
applies it in Gemma 2 alone.
"""

from int_jax.models import hf
from int_jax.models.transformer import Config

NAMES = (
    hf.LLAMA_NAMES
    | hf.QK_NORM_NAMES
    | {
        "layer_{}/attn_post_norm_D": "model.layers.{}.post_attention_layernorm.weight",
        "layer_{}/ffw_norm_D": "model.layers.{}.pre_feedforward_layernorm.weight",
        "layer_{}/ffw_post_norm_D": "model.layers.{}.post_feedforward_layernorm.weight",
    }
)
PATTERN = 6  # every sixth layer attends to all tokens, where config.json is silent


def config_from_hf(data: dict) -> Config:
    """The switches of a config.json; what this decoder cannot do is refused with the key and its value."""
    hf.only(data, "hidden_activation", "gelu_pytorch_tanh")
    hf.only(data, "attention_bias", False)
    hf.only(data, "use_bidirectional_attention", False)
    hf.need(data, "head_dim")  # 256 for transformers, not hidden_size / heads
    sizes = hf.sizes(data, tied=True)
    pattern = data.get("sliding_window_pattern") or data.get("_sliding_window_pattern") or PATTERN
    # Pattern 6: layers 5, 11, 17 ... attend to all tokens.
    sliding = [bool((layer + 1) % pattern) for layer in range(sizes["layers"])]
    far, near = rope_of_both(data)
    theta, scaling = hf.rope(far, "linear", default=1_000_000.0)
    local_theta, _ = hf.rope(near)
    return Config(
        family="gemma3_text",
        **sizes,
        rope_theta=theta,
        rope_scaling=scaling,
        local_rope_theta=local_theta,
        windows=hf.windows(data, sliding, data.get("sliding_window")),
        qk_norm=True,
        post_norm=True,
        zero_centred=True,
        scaled_embedding=True,
        activation="gelu_tanh",
        query_scalar=hf.need(data, "query_pre_attn_scalar"),
        attention_softcap=data.get("attn_logit_softcapping"),
        logit_softcap=data.get("final_logit_softcapping"),
    )


def rope_of_both(data: dict) -> tuple[dict, dict]:
    """What `hf.rope` reads, for the layers without and with a window: transformers 5 has a table of each kind in
    `rope_parameters`; in transformers 4 `rope_scaling` is of the first, and `rope_local_base_freq` of the second."""
    tables = dict(data.get("rope_parameters") or {})
    # full_attention and sliding_attention; what is left afterwards is unknown.
    far, near = (tables.pop(kind, None) for kind in hf.KINDS)
    if tables:
        raise ValueError(f"rope_parameters: found {sorted(tables)}, expected {[*hf.KINDS]}")
    return (
        {key: data.get(key) for key in ("rope_theta", "rope_scaling")} | {"rope_parameters": far},
        {"rope_theta": data.get("rope_local_base_freq"), "rope_parameters": near},
    )


def config_to_hf(config: Config, token_ids: dict[str, int | None]) -> dict:
    """A config.json that transformers 4 and 5 read alike. token_ids: bos_, eos_ and pad_token_id."""
    far = hf.rope_to_hf(config)
    local = {"rope_theta": config.local_rope_theta, "rope_type": "default"}
    return {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        **hf.sizes_to_hf(config),
        **far,
        "rope_parameters": {hf.KINDS[0]: far["rope_parameters"], hf.KINDS[1]: local},
        "rope_local_base_freq": config.local_rope_theta,
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "query_pre_attn_scalar": config.query_scalar,
        "sliding_window": max(config.windows, default=None),
        "layer_types": hf.layer_types(config),
        "attn_logit_softcapping": config.attention_softcap,
        "final_logit_softcapping": config.logit_softcap,
        **token_ids,
    }
