"""Qwen3: query/key norm, no biases, heads whose size is chosen freely; the embedding may be tied to the head."""

from int_jax.models import hf
from int_jax.models.transformer import Config

NAMES = {
    "embed_VD": "model.embed_tokens.weight",
    "head_DV": "lm_head.weight",
    "final_norm_D": "model.norm.weight",
    "layer_{}/attn_norm_D": "model.layers.{}.input_layernorm.weight",
    "layer_{}/q_DHK": "model.layers.{}.self_attn.q_proj.weight",
    "layer_{}/k_DNK": "model.layers.{}.self_attn.k_proj.weight",
    "layer_{}/v_DNK": "model.layers.{}.self_attn.v_proj.weight",
    "layer_{}/o_HKD": "model.layers.{}.self_attn.o_proj.weight",
    "layer_{}/q_norm_K": "model.layers.{}.self_attn.q_norm.weight",
    "layer_{}/k_norm_K": "model.layers.{}.self_attn.k_norm.weight",
    "layer_{}/ffw_norm_D": "model.layers.{}.post_attention_layernorm.weight",
    "layer_{}/gate_DF": "model.layers.{}.mlp.gate_proj.weight",
    "layer_{}/up_DF": "model.layers.{}.mlp.up_proj.weight",
    "layer_{}/down_FD": "model.layers.{}.mlp.down_proj.weight",
}


def config_from_hf(data: dict) -> Config:
    """The switches of a config.json; what this decoder cannot do is refused with the key and its value."""
    hf.only(data, "hidden_act", "silu")
    hf.only(data, "attention_bias", False)
    hf.no_sliding_window(data)
    return Config(
        family="qwen3",
        vocab=hf.need(data, "vocab_size"),
        dim=hf.need(data, "hidden_size"),
        layers=hf.need(data, "num_hidden_layers"),
        heads=hf.need(data, "num_attention_heads"),
        kv_heads=hf.need(data, "num_key_value_heads"),
        head_dim=hf.need(data, "head_dim"),
        ffw=hf.need(data, "intermediate_size"),
        max_len=hf.need(data, "max_position_embeddings"),
        rope_theta=hf.plain_rope_theta(data),
        norm_eps=hf.need(data, "rms_norm_eps"),
        qk_norm=True,
        tied=hf.need(data, "tie_word_embeddings"),
    )


def config_to_hf(config: Config, token_ids: dict[str, int | None]) -> dict:
    """A config.json that transformers 4 and 5 read alike. token_ids: bos_, eos_ and pad_token_id."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": config.vocab,
        "hidden_size": config.dim,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.ffw,
        "max_position_embeddings": config.max_len,
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_theta": config.rope_theta, "rope_type": "default"},
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "use_sliding_window": False,
        "dtype": config.param_dtype,
        **token_ids,
    }
