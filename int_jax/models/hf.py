"""What every family shares of the Hugging Face format: how a tensor is laid out, and how config.json is read.

A family file adds `config_from_hf`, `config_to_hf` and NAMES, a table from our parameter paths to tensor names in which
`{}` stands for the layer: {"layer_{}/q_DHK": "model.layers.{}.self_attn.q_proj.weight"}.
"""

import math
import re


def tensor_name(names: dict[str, str], path: str) -> str:
    """tensor_name(NAMES, "layer_3/q_DHK") == "model.layers.3.self_attn.q_proj.weight"."""
    layer = re.match(r"layer_(\d+)/", path)
    if layer is None:
        return names[path]
    return names["layer_{}/" + path[layer.end() :]].format(layer[1])


def _linear(letters: str) -> bool:
    """A matrix from or to the residual stream D, which a file holds as [outputs, inputs]; a lookup V.. is not one."""
    return len(letters) > 1 and "D" in letters and letters[0] != "V"


def _matrix(letters: str, shape) -> tuple[int, int]:
    """(inputs, outputs) of a linear map: `q_DHK` is D -> H x K, `o_HKD` is H x K -> D."""
    inputs = 1 if letters[0] == "D" else len(letters) - 1
    return math.prod(shape[:inputs]), math.prod(shape[inputs:])


def shape_to_hf(letters: str, shape) -> tuple[int, ...]:
    """The shape in a file: linear maps are transposed matrices, embeddings are as here, the rest are vectors."""
    if _linear(letters):
        return _matrix(letters, shape)[::-1]
    return tuple(shape) if letters[0] == "V" else (math.prod(shape),)


def to_hf(letters: str, array):
    """Our array in the layout of a file."""
    if _linear(letters):
        return array.reshape(_matrix(letters, array.shape)).T
    return array.reshape(shape_to_hf(letters, array.shape))


def from_hf(letters: str, array, shape):
    """A file's array in our layout."""
    return (array.T if _linear(letters) else array).reshape(shape)


def need(data: dict, key: str):
    """data[key], or an error that names the key."""
    if data.get(key) is None:
        raise ValueError(f"key {key!r} is missing")
    return data[key]


def only(data: dict, key: str, supported):
    """Refuse a value of `key` other than the supported one; a key that is absent (or null) is fine."""
    if data.get(key) not in (None, supported):
        raise ValueError(f"{key} = {data[key]!r} is not supported, only {supported!r} is")


def plain_rope_theta(data: dict) -> float:
    """The base of unscaled RoPE: in `rope_parameters` as transformers 5 writes it, or in `rope_theta`, as 4 does."""
    for key in ("rope_scaling", "rope_parameters"):
        for field, plain in {"rope_type": "default", "type": "default", "partial_rotary_factor": 1.0}.items():
            value = (data.get(key) or {}).get(field, plain)
            if value != plain:
                raise ValueError(f"{key}.{field} = {value!r} is not supported, only {plain!r} is")
    theta = (data.get("rope_parameters") or {}).get("rope_theta", data.get("rope_theta"))
    if theta is None:
        raise ValueError("key 'rope_theta' is missing, at the top level and in 'rope_parameters'")
    return float(theta)


def no_sliding_window(data: dict) -> None:
    """Refuse layers that attend to a window only."""
    only(data, "use_sliding_window", False)
    for layer, kind in enumerate(data.get("layer_types") or ()):
        if kind != "full_attention":
            raise ValueError(f"layer_types[{layer}] = {kind!r} is not supported, only 'full_attention' is")
