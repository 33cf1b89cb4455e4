"""What every family shares of the Hugging Face format: how a tensor is laid out, and how config.json is read.

A family file adds `config_from_hf`, `config_to_hf` and NAMES, a table from our parameter paths to tensor names in which
`{}` stands for the layer: {"layer_{}/q_DHK": "model.layers.{}.self_attn.q_proj.weight"}.
"""

import math
import re
from typing import Any

import numpy as np

from int_jax.models.transformer import Config, RopeScaling

# The names that Llama gave and the families after it kept.
LLAMA_NAMES = {
    "embed_VD": "model.embed_tokens.weight",
    "head_DV": "lm_head.weight",
    "final_norm_D": "model.norm.weight",
    "layer_{}/attn_norm_D": "model.layers.{}.input_layernorm.weight",
    "layer_{}/q_DHK": "model.layers.{}.self_attn.q_proj.weight",
    "layer_{}/k_DNK": "model.layers.{}.self_attn.k_proj.weight",
    "layer_{}/v_DNK": "model.layers.{}.self_attn.v_proj.weight",
    "layer_{}/o_HKD": "model.layers.{}.self_attn.o_proj.weight",
    "layer_{}/ffw_norm_D": "model.layers.{}.post_attention_layernorm.weight",
    "layer_{}/gate_DF": "model.layers.{}.mlp.gate_proj.weight",
    "layer_{}/up_DF": "model.layers.{}.mlp.up_proj.weight",
    "layer_{}/down_FD": "model.layers.{}.mlp.down_proj.weight",
}
QKV_BIAS_NAMES = {
    "layer_{}/q_bias_HK": "model.layers.{}.self_attn.q_proj.bias",
    "layer_{}/k_bias_NK": "model.layers.{}.self_attn.k_proj.bias",
    "layer_{}/v_bias_NK": "model.layers.{}.self_attn.v_proj.bias",
}
QK_NORM_NAMES = {
    "layer_{}/q_norm_K": "model.layers.{}.self_attn.q_norm.weight",
    "layer_{}/k_norm_K": "model.layers.{}.self_attn.k_norm.weight",
}
# Old Llama files hold RoPE's frequencies, which follow from config.json.
BUFFERS = ".rotary_emb.inv_freq"


def tensor_name(names: dict[str, str], path: str) -> str:
    """tensor_name(NAMES, "layer_3/q_DHK") == "model.layers.3.self_attn.q_proj.weight"."""
    layer = re.match(r"layer_(\d+)/", path)
    if layer is None:
        return names[path]
    return names["layer_{}/" + path[layer.end() :]].format(layer[1])


def _axes(letters: str) -> tuple[tuple[int, ...], ...]:
    """Which of our axes make up each axis of the tensor in a file.

    A linear map from or to the residual stream D is a matrix [outputs, inputs] there: `q_DHK` is [H x K, D], `o_HKD` is
    [D, H x K]. A lookup V.. is as here, the rest are vectors.
    """
    # VD -> ((0,), (1,)); DHK -> ((1, 2), (0,)); HKD -> ((2,), (0, 1)); DV -> ((1,), (0,)); HK -> ((0, 1),).
    every = tuple(range(len(letters)))
    if letters[0] == "V":
        return tuple((axis,) for axis in every)
    if len(letters) == 1 or "D" not in letters:
        return (every,)
    return (every[1:], every[:1]) if letters[0] == "D" else (every[-1:], every[:-1])


def shape_to_hf(letters: str, shape) -> tuple[int, ...]:
    """The shape in a file."""
    return tuple(math.prod(shape[axis] for axis in group) for group in _axes(letters))


def to_hf(letters: str, array):
    """Our array in the layout of a file."""
    # DHK: order [1, 2, 0], so [D, H, K] -> [H, K, D] -> [H x K, D].
    order = [axis for group in _axes(letters) for axis in group]
    return array.transpose(order).reshape(shape_to_hf(letters, array.shape))


def from_hf(letters: str, array, shape):
    """A file's array in our layout, `shape` being ours."""
    # The other way: [H x K, D] -> [H, K, D] -> [D, H, K]. argsort inverts a permutation: [1, 2, 0] -> [2, 0, 1].
    order = [axis for group in _axes(letters) for axis in group]
    return array.reshape([shape[axis] for axis in order]).transpose(np.argsort(order))


def part_from_hf(letters: str, stored, shape, index):
    """Our array's part `index`, read from a file's tensor.

    Args:
      stored: what numpy slices cut: a safetensors slice, or an array. shape: our array's. index: a slice for each of
        our axes, step 1. Of each axis of the file only what the first of our axes in it needs is read.
    """
    bounds = [part.indices(size)[:2] for part, size in zip(index, shape, strict=True)]
    cuts, sizes, inner = [], list(shape), list(index)
    for first, *rest in _axes(letters):
        # Heads 2:4 of q_DHK, K = 64, are rows 128:256 of the file. Only the first axis of a group is a range there: the
        # others are read whole, and cut afterwards (`inner`).
        row = math.prod(shape[axis] for axis in rest)
        start, stop = bounds[first]
        cuts.append(slice(start * row, stop * row))
        sizes[first], inner[first] = stop - start, slice(None)
    return from_hf(letters, stored[tuple(cuts)], sizes)[tuple(inner)]


def need(data: dict, key: str):
    """data[key], or an error that names the key."""
    if data.get(key) is None:
        raise ValueError(f"key {key!r} is missing")
    return data[key]


def only(data: dict, key: str, supported):
    """Refuse a value of `key` other than the supported one; a key that is absent (or null) is fine."""
    if data.get(key) not in (None, supported):
        raise ValueError(f"{key} = {data[key]!r} is not supported, only {supported!r} is")


def sizes(data: dict, tied: bool = False) -> dict[str, Any]:
    """The fields of Config that every family writes alike. tied: the family's default where config.json is silent.

    Refuses what no decoder here can do: quantised weights, experts, RoPE on a part of the head.
    """
    for key in ("quantization_config", "num_experts", "num_local_experts"):
        only(data, key, None)
    only(data, "partial_rotary_factor", 1.0)
    dim, heads = need(data, "hidden_size"), need(data, "num_attention_heads")
    kv_heads = data.get("num_key_value_heads") or heads
    if heads % kv_heads:
        raise ValueError(
            f"num_attention_heads = {heads} is not a multiple of num_key_value_heads = {kv_heads}"
        )
    if not data.get("head_dim") and dim % heads:
        raise ValueError(f"head_dim is missing, and hidden_size = {dim} is not a multiple of {heads} heads")
    tie = data.get("tie_word_embeddings")
    return {
        "vocab": need(data, "vocab_size"),
        "dim": dim,
        "layers": need(data, "num_hidden_layers"),
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": data.get("head_dim") or dim // heads,
        "ffw": need(data, "intermediate_size"),
        "max_len": need(data, "max_position_embeddings"),
        "norm_eps": need(data, "rms_norm_eps"),
        "tied": tied if tie is None else tie,
    }


def sizes_to_hf(config: Config) -> dict[str, Any]:
    """The keys that `sizes` reads."""
    return {
        "vocab_size": config.vocab,
        "hidden_size": config.dim,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.ffw,
        "max_position_embeddings": config.max_len,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied,
        "dtype": config.param_dtype,
    }


TRAINED = "original_max_position_embeddings"
ROPE_FIELDS = {"default": (), "linear": ("factor",)}
ROPE_FIELDS["llama3"] = ("factor", "low_freq_factor", "high_freq_factor", TRAINED)
ROPE_BASE = 10_000.0  # where config.json has none: Llama 1 and 2, and transformers' default in the families after them


def rope(data: dict, *kinds: str, default: float = ROPE_BASE) -> tuple[float, RopeScaling | None]:
    """RoPE's base and scaling, from `rope_theta` and `rope_scaling`, as released models (transformers 4) have them, or
    from `rope_parameters`, as transformers 5 writes them. Where both are there, they must agree.

    A field that is null is absent. What says nothing where it stands falls away: the trained length where the type does
    not use it, and a factor of 1. A factor that its type would not use is refused: one of the two is wrong.

    Args:
      kinds: the scaled types that the family takes, of ROPE_FIELDS. default: the base where config.json has none.
    """
    # From the top level, then each table: a field may be said twice, but not in two ways.
    found: dict[str, Any] = {"rope_theta": data.get("rope_theta")}
    for key in ("rope_scaling", "rope_parameters"):
        for field, value in _rope_table(data, key, kinds).items():
            if found.get(field) not in (None, value):
                raise ValueError(f"{key}.{field} = {value!r}, but {found[field]!r} elsewhere in the file")
            found[field] = value
    theta, kind = found.pop("rope_theta") or default, found.pop("rope_type", "default")
    # Of {"rope_type": "default", "factor": 1} the factor says nothing, of "linear" it does.
    unused = {TRAINED, *(["factor"] if found.get("factor") == 1 else [])} - {*ROPE_FIELDS[kind]}
    found = {field: value for field, value in found.items() if field not in unused}
    if found.keys() != set(ROPE_FIELDS[kind]):
        raise ValueError(
            f"rope_scaling or rope_parameters of type {kind!r} has the fields {sorted(found)}, "
            f"expected {sorted(ROPE_FIELDS[kind])}"
        )
    values = [found[field] for field in ROPE_FIELDS[kind]]
    return float(theta), RopeScaling(kind, *values) if values else None


def _rope_table(data: dict, key: str, kinds) -> dict[str, Any]:
    """data[key] without nulls, with its type as `rope_type`, which old files call `type`; {} where there is none."""
    table = {field: value for field, value in (data.get(key) or {}).items() if value is not None}
    for field in ("type", "rope_type"):
        if table.get(field, "default") not in ("default", *kinds):
            known = " or ".join(map(repr, ("default", *kinds)))
            raise ValueError(f"{key}.{field} = {table[field]!r} is not supported, only {known} is")
    if table.get("partial_rotary_factor", 1.0) != 1.0:
        factor = table["partial_rotary_factor"]
        raise ValueError(f"{key}.partial_rotary_factor = {factor!r} is not supported, only 1.0 is")
    # {"type": "linear", "factor": 2} -> {"rope_type": "linear", "factor": 2}; a `rope_type` of the table's own wins.
    old = table.pop("type", "default")
    table.pop("partial_rotary_factor", None)
    return {"rope_type": old, **table} if table or old != "default" else {}


def scaling_to_hf(scaling: RopeScaling | None) -> dict[str, Any] | None:
    """`rope_scaling` as transformers 4 reads it."""
    if scaling is None:
        return None
    # As many values as the kind has fields: of "linear" the factor alone.
    values = (scaling.factor, scaling.low, scaling.high, scaling.trained)
    return {"rope_type": scaling.kind, **dict(zip(ROPE_FIELDS[scaling.kind], values, strict=False))}


def rope_to_hf(config: Config) -> dict[str, Any]:
    """The keys that `rope` reads, for both generations."""
    scaling = scaling_to_hf(config.rope_scaling)
    # transformers 4 reads rope_theta and rope_scaling, 5 reads rope_parameters.
    both = {"rope_theta": config.rope_theta, **(scaling or {"rope_type": "default"})}
    return {
        "rope_theta": config.rope_theta,
        **({} if scaling is None else {"rope_scaling": scaling}),
        "rope_parameters": both,
    }


KINDS = ("full_attention", "sliding_attention")


def windows(data: dict, sliding, window: int | None) -> tuple[int, ...]:
    """The window of each layer, 0 for none; () where no layer has one.

    Args:
      sliding: which layers attend to a window, where config.json has no `layer_types`. window: in tokens, the
        attending one included.
    """
    # KINDS[False] is full attention, KINDS[True] a window.
    kinds = data.get("layer_types") or [KINDS[bool(s)] for s in sliding]
    if len(kinds) != need(data, "num_hidden_layers"):
        raise ValueError(
            f"layer_types has {len(kinds)} entries for num_hidden_layers = {data['num_hidden_layers']}"
        )
    for layer, kind in enumerate(kinds):
        if kind not in KINDS:
            raise ValueError(f"layer_types[{layer}] = {kind!r} is not supported, only {KINDS} are")
        if kind == KINDS[1] and not window:
            raise ValueError(f"layer_types[{layer}] = {kind!r}, but sliding_window = {window!r}")
    size = {KINDS[0]: 0, KINDS[1]: window or 0}
    return tuple(size[kind] for kind in kinds) if KINDS[1] in kinds else ()


def layer_types(config: Config) -> list[str]:
    """`layer_types` of the windows."""
    return [KINDS[bool(window)] for window in config.windows or (0,) * config.layers]


def upper_windows(data: dict) -> tuple[int, ...]:
    """Qwen's windows: `sliding_window` counts only under `use_sliding_window`, and from layer `max_window_layers` on.

    Where the two are absent they are 4,096 tokens and 28 layers, as for transformers; a window that is null is none.
    """
    window = data.get("sliding_window", 4096) if data.get("use_sliding_window") else None
    first = data.get("max_window_layers", 28) if window else need(data, "num_hidden_layers")
    return windows(data, [layer >= first for layer in range(data["num_hidden_layers"])], window)


def upper_windows_to_hf(config: Config) -> dict[str, Any]:
    """The keys that `upper_windows` reads."""
    types = layer_types(config)
    return {
        "use_sliding_window": bool(config.windows),
        "sliding_window": max(config.windows, default=None),
        # The first layer with a window, or the number of layers where none has one.
        "max_window_layers": [*types, KINDS[1]].index(KINDS[1]),
        "layer_types": types,
    }
