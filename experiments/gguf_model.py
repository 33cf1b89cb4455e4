"""A GGUF file of the Llama family as a model directory in Hugging Face format, its weights dequantised to float32.

GGUF is the file format of llama.cpp: metadata, tokenizer and chat template stand in one file with the weights, which
may be quantised in blocks. What this reader does not know is refused with the key and its value.
"""

import json
import re
from pathlib import Path

import numpy as np
from gguf import GGUFReader, dequantize
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",  # missing where the head is tied to the embedding
    "blk.{}.attn_norm.weight": "model.layers.{}.input_layernorm.weight",
    "blk.{}.attn_q.weight": "model.layers.{}.self_attn.q_proj.weight",
    "blk.{}.attn_k.weight": "model.layers.{}.self_attn.k_proj.weight",
    "blk.{}.attn_v.weight": "model.layers.{}.self_attn.v_proj.weight",
    "blk.{}.attn_output.weight": "model.layers.{}.self_attn.o_proj.weight",
    "blk.{}.ffn_norm.weight": "model.layers.{}.post_attention_layernorm.weight",
    "blk.{}.ffn_gate.weight": "model.layers.{}.mlp.gate_proj.weight",
    "blk.{}.ffn_up.weight": "model.layers.{}.mlp.up_proj.weight",
    "blk.{}.ffn_down.weight": "model.layers.{}.mlp.down_proj.weight",
}
# How a text is cut before byte-pair merges: each digit alone, then GPT-2's words.
DIGITS_ALONE = ("smollm",)
NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4  # kinds of tokens in tokenizer.ggml.token_type
UNREAD = ("rope.scaling", "expert", "rope.freqs")  # what would change the model, and is not read here


def convert(source: Path, target: Path) -> None:
    """Write `target`: config.json, generation_config.json, model.safetensors, tokenizer and chat template.

    Raises: ValueError for what this reader does not know, naming the file and the key or tensor.
    """
    reader = GGUFReader(source)
    data = {name: field.contents() for name, field in reader.fields.items()}
    config = model_config(source, data)
    weights = {}
    for tensor in reader.tensors:
        name = hf_name(source, tensor.name)
        weight = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        heads = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}.get(
            tensor.name.split(".")[-2]
        )
        weights[name] = unpermuted(weight, config[heads]) if heads else weight
    layers = range(config["num_hidden_layers"])
    expected = {one.format(layer) for one in NAMES.values() for layer in layers} - {"lm_head.weight"}
    if missing := sorted(expected - weights.keys()):
        raise ValueError(f"{source}: {len(missing)} tensors are missing, such as the one of {missing[0]}")
    config["tie_word_embeddings"] = "lm_head.weight" not in weights
    target.mkdir(parents=True, exist_ok=True)
    save_tokenizer(source, data, target)
    save_file(weights, target / "model.safetensors", {"format": "pt"})
    ids = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    for name, content in {"generation_config.json": ids, "config.json": config}.items():
        (target / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def model_config(source: Path, data: dict) -> dict:
    """config.json from the metadata. Raises: ValueError for another architecture, scaled RoPE or experts."""
    if data.get("general.architecture") != "llama":
        raise ValueError(
            f"{source}: general.architecture = {data.get('general.architecture')!r}: only 'llama' is read"
        )
    for key in data:
        if key.removeprefix("llama.").startswith(UNREAD):
            raise ValueError(f"{source}: {key} = {data[key]!r} is not read here")

    def need(key: str):
        if key not in data:
            raise ValueError(f"{source}: the metadata have no {key}")
        return data[key]

    heads, width = need("llama.attention.head_count"), need("llama.embedding_length")
    head_dim = data.get("llama.attention.key_length", width // heads)
    if data.get("llama.rope.dimension_count", head_dim) != head_dim:
        raise ValueError(
            f"{source}: llama.rope.dimension_count = {data['llama.rope.dimension_count']}: RoPE on a part of a head "
            f"of {head_dim} is not read here"
        )
    eos = need("tokenizer.ggml.eos_token_id")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(need("tokenizer.ggml.tokens")),
        "hidden_size": width,
        "num_hidden_layers": need("llama.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": data.get("llama.attention.head_count_kv", heads),
        "head_dim": head_dim,
        "intermediate_size": need("llama.feed_forward_length"),
        "max_position_embeddings": need("llama.context_length"),
        # The file has float32, in which 1e-5 reads 9.999999747378752e-06.
        "rms_norm_eps": float(str(np.float32(need("llama.attention.layer_norm_rms_epsilon")))),
        "rope_theta": float(data.get("llama.rope.freq_base", 10_000.0)),
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "dtype": "float32",
        "bos_token_id": data.get("tokenizer.ggml.bos_token_id", eos),
        "eos_token_id": eos,
        "pad_token_id": data.get("tokenizer.ggml.padding_token_id", eos),
    }


def hf_name(source: Path, name: str) -> str:
    """hf_name(..., "blk.3.attn_q.weight") == "model.layers.3.self_attn.q_proj.weight"."""
    layer = re.match(r"blk\.(\d+)\.", name)
    # blk.3.attn_q.weight -> blk.{}.attn_q.weight
    known = NAMES.get(re.sub(r"\Ablk\.\d+\.", "blk.{}.", name))
    if known is None:
        raise ValueError(f"{source}: the tensor {name} is none of a plain Llama's")
    return known.format(layer[1]) if layer else known


def unpermuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """The rows of a query or key matrix [heads x head_dim, D] in Hugging Face's order.

    RoPE turns pairs of a head's values. GGUF has the two of a pair side by side, Hugging Face half a head apart: row
    2 i + j of a head there is row i + j head_dim / 2 here.
    """
    rows, width = weight.shape
    # [heads, pairs, 2, D]: a head's rows 0 1 2 3 become 0 2 1 3.
    pairs = weight.reshape(heads, rows // heads // 2, 2, width)
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(rows, width))


def save_tokenizer(source: Path, data: dict, target: Path) -> None:
    """Write the byte-level BPE tokenizer with its control tokens and the chat template.

    The BPE model has no unknown token: a byte without an entry is left out of a text, as it is in the model's own
    tokenizer, and never becomes a control token.
    """
    kind, pre = data.get("tokenizer.ggml.model"), data.get("tokenizer.ggml.pre")
    if kind != "gpt2" or pre not in DIGITS_ALONE:
        raise ValueError(
            f"{source}: tokenizer.ggml.model = {kind!r} with tokenizer.ggml.pre = {pre!r}: only 'gpt2' with "
            f"{' or '.join(map(repr, DIGITS_ALONE))} is read"
        )
    if not data.get("tokenizer.chat_template"):
        raise ValueError(f"{source}: the metadata have no tokenizer.chat_template")
    tokens, kinds = data["tokenizer.ggml.tokens"], data["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in data["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(BPE({token: i for i, token in enumerate(tokens)}, merges))
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [
            AddedToken(token, normalized=False, special=True)
            for token, one in zip(tokens, kinds, strict=True)
            if one in (UNKNOWN, CONTROL)
        ]
    )
    tokenizer.add_tokens(
        [
            AddedToken(token, normalized=False)
            for token, one in zip(tokens, kinds, strict=True)
            if one == USER_DEFINED
        ]
    )
    named = {
        f"{role}_token": tokens[data[f"tokenizer.ggml.{name}_token_id"]]
        for role, name in {"bos": "bos", "eos": "eos", "pad": "padding"}.items()
        if f"tokenizer.ggml.{name}_token_id" in data
    }
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        clean_up_tokenization_spaces=False,
        model_max_length=data["llama.context_length"],
        **named,
    )
    fast.chat_template = data["tokenizer.chat_template"]
    fast.save_pretrained(target)
