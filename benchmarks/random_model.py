"""The benchmarks' model: Qwen3's shape, 4.2 million random weights, in Hugging Face format.

Two of its 256 dimensions are set by hand, so that one model has prompts whose responses end early and prompts whose
responses never do, for every contender alike. The residual stream keeps what the embedding writes there, as no layer
writes to them:

- dimension 0 is +2 in the embedding of the first half of the vocabulary and -2 in that of the second: the head, which
  is tied, draws from the half that the last token is of;
- dimension 1 is 1 in the embedding of the first half, 2.27 in that of STOP, and 0 in that of the second half, so that
  STOP is about as likely as a sixth of the first half together.

A prompt that ends in the second half goes on for as long as it is asked to; one that ends in the first half draws STOP
within 16 tokens in nine responses of ten (tests/test_benchmarks.py draws some).
"""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

VOCAB, DIM, LAYERS, HEADS, KV_HEADS, HEAD_DIM, FFW, MAX_LEN = 4096, 256, 4, 4, 2, 64, 768, 4096
PAD, STOP = 0, 1
HALF = VOCAB // 2


def write(folder: Path, seed: int = 0) -> Path:
    """Write config.json, model.safetensors and a tokenizer of as many entries to `folder`, and return it."""
    rng = np.random.default_rng(seed)

    def normal(*shape, scale=0.02):
        return rng.normal(0, scale, shape).astype(np.float32)

    def outward(width):
        """A matrix into the residual stream that leaves the two dimensions alone."""
        weight = normal(DIM, width)
        weight[:2] = 0
        return weight

    embed = normal(VOCAB, DIM)
    embed[:HALF, 0], embed[HALF:, 0] = 2, -2
    embed[:HALF, 1], embed[HALF:, 1], embed[STOP, 1] = 1, 0, 2.27
    weights = {"model.embed_tokens.weight": embed, "model.norm.weight": np.ones(DIM, np.float32)}
    for layer in range(LAYERS):
        weights |= {
            f"model.layers.{layer}.{name}.weight": value
            for name, value in {
                "input_layernorm": np.ones(DIM, np.float32),
                "post_attention_layernorm": np.ones(DIM, np.float32),
                "self_attn.q_proj": normal(HEADS * HEAD_DIM, DIM),
                "self_attn.k_proj": normal(KV_HEADS * HEAD_DIM, DIM),
                "self_attn.v_proj": normal(KV_HEADS * HEAD_DIM, DIM),
                "self_attn.o_proj": outward(HEADS * HEAD_DIM),
                "self_attn.q_norm": np.ones(HEAD_DIM, np.float32),
                "self_attn.k_norm": np.ones(HEAD_DIM, np.float32),
                "mlp.gate_proj": normal(FFW, DIM),
                "mlp.up_proj": normal(FFW, DIM),
                "mlp.down_proj": outward(FFW),
            }.items()
        }
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": VOCAB,
        "hidden_size": DIM,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "intermediate_size": FFW,
        "max_position_embeddings": MAX_LEN,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": True,
        "pad_token_id": PAD,
        "eos_token_id": STOP,
        "bos_token_id": None,
        "dtype": "float32",
    }
    # A word a token: "t17" is id 17.
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    tokenizer = {
        "version": "1.0",
        "added_tokens": [{"id": i, "content": f"t{i}", "special": True} | plain for i in (PAD, STOP)],
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": {"type": "WordLevel", "vocab": {f"t{i}": i for i in range(VOCAB)}, "unk_token": f"t{PAD}"},
    }  # fmt: skip
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": f"t{PAD}", "eos_token": f"t{STOP}"}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    ids = {"pad_token_id": PAD, "eos_token_id": STOP}
    for name, content in {
        "config.json": config,
        "generation_config.json": ids,
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": settings,
    }.items():
        (folder / name).write_text(json.dumps(content, indent=1) + "\n")
    return folder


def prompt(rng: np.random.Generator, length: int, early: bool = False) -> list[int]:
    """`length` ids; the last one says in which half of the vocabulary the response stays."""
    ids = rng.integers(2, VOCAB, length)
    ids[-1] = rng.integers(2, HALF) if early else rng.integers(HALF, VOCAB)
    return ids.tolist()
