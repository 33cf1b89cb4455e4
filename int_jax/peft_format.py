"""Adapters (lora.py) as PEFT's directories: adapter_config.json and adapter_model.safetensors, both ways.

PEFT's names are those of the adapted module: A of `layer_3/q_DHK` is
base_model.model.model.layers.3.self_attn.q_proj.lora_A.weight, a matrix [rank, inputs]; B is [outputs, rank].
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from int_jax import disk, hf_format, lora, processes
from int_jax.lora import Lora
from int_jax.models import Config, build, family, hf
from int_jax.tokenizer import json_object

PREFIX = "base_model.model."
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# What changes the function of an adapter and is not done here, with the value at which it does nothing.
UNSUPPORTED = {
    **{"bias": "none", "use_dora": False, "use_rslora": False, "fan_in_fan_out": False, "lora_bias": False},
    **{"rank_pattern": {}, "alpha_pattern": {}, "modules_to_save": None, "layers_to_transform": None},
    **{"trainable_token_indices": None, "target_parameters": None, "layer_replication": None},
    **dict.fromkeys(("use_qalora", "use_bdlora"), False),
    **dict.fromkeys(("alora_invocation_tokens", "arrow_config", "exclude_modules"), None),
    **dict.fromkeys(("kasa_config", "monteclora_config", "velora_config"), None),
}


def modules(config: Config) -> dict[str, str]:
    """PEFT's name of each matrix's module in the family: {"q": "q_proj"}."""
    names = family(config.family).NAMES
    return {
        key: names[f"layer_{{}}/{matrix}"].removesuffix(".weight").rpartition(".")[2]
        for key, matrix in lora.MATRICES.items()
    }


def tensors(config: Config, shapes) -> dict[str, str]:
    """PEFT's name of each adapter's tensor, by our path. shapes: as `lora.shapes` makes them."""
    names, found = family(config.family).NAMES, {}
    for matrix in lora.MATRICES.values():
        for ours, theirs in zip(lora.names(matrix), ("lora_A", "lora_B"), strict=True):
            for layer in (layer for layer, leaves in shapes.items() if ours in leaves):
                module = hf.tensor_name(names, f"{layer}/{matrix}").removesuffix(".weight")
                found[f"{layer}/{ours}"] = f"{PREFIX}{module}.{theirs}.weight"
    return found


def to_peft(path: str, array: np.ndarray) -> np.ndarray:
    """[inputs.., R] as [R, inputs], [R, outputs..] as [outputs, R]."""
    flat = array.reshape(-1, array.shape[-1]) if "_lora_a_" in path else array.reshape(array.shape[0], -1)
    return np.ascontiguousarray(flat.T)


def save(path: str | Path, config: Config, params, base: str | Path) -> None:
    """Write the adapters of `params` as a directory that PEFT reads.

    Where the arrays live on several processes all of them call this, and process 0 writes. Until the last file is there
    the directory has no adapter_config.json, so that nothing loads it.

    Args:
      config: of the model. base: the model that they were trained on, a directory or a hub id, as PEFT is told.

    Raises: ValueError where there are no adapters.
    """
    target = disk.absolute(path)
    adapters, rest = lora.split(params)
    if rest is None:
        raise ValueError(f"{target}: there is nothing to write, the parameters have no adapters (lora.add)")
    flat = hf_format.leaves_by_path(adapters)
    host = {path: to_peft(path, hf_format.on_host(jnp.asarray(leaf))) for path, leaf in flat.items()}
    if processes.is_main_process():
        names = tensors(config, adapters)
        rest = hf_format.leaves_by_path(rest)
        scale = next(float(leaf[0]) for path, leaf in rest.items() if path.endswith(lora.SCALE))
        with disk.room(target, host), disk.draft(target) as draft:
            save_file({names[path]: leaf for path, leaf in host.items()}, draft / WEIGHTS, {"format": "pt"})
            (draft / WEIGHTS).chmod(0o644)
            hf_format.write_json(draft / CONFIG, config_to_peft(config, host, scale, base))
            disk.publish(draft, target, CONFIG)
    processes.barrier(f"{target} is written")


def config_to_peft(config: Config, host: dict[str, np.ndarray], scale: float, base: str | Path) -> dict:
    """adapter_config.json. host: the tensors of the file, by our paths. scale: alpha / rank."""
    [rank] = {leaf.shape[0] for path, leaf in host.items() if "_lora_a_" in path}
    found = {path.rpartition("/")[2] for path in host}
    return {
        **{"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": str(base)},
        # The factor is kept in float32, which has 7 digits.
        **{"r": rank, "lora_alpha": float(f"{scale * rank:.7g}"), "lora_dropout": 0.0, "bias": "none"},
        "target_modules": [
            module for key, module in modules(config).items() if lora.names(lora.MATRICES[key])[0] in found
        ],
        **{"init_lora_weights": True, "inference_mode": True, "fan_in_fan_out": False},
    }


def read_config(path: str | Path, config: Config, dtype: str = "float32") -> Lora:
    """What the adapter_config.json of a directory says. Raises: ValueError for what is not done here."""
    file = Path(path) / CONFIG
    data, known = json_object(file), {name: key for key, name in modules(config).items()}
    try:
        hf.only(data, "peft_type", "LORA")
        for key, value in UNSUPPORTED.items():
            hf.only(data, key, value)
        targets = hf.need(data, "target_modules")
        if isinstance(targets, str) or not {*targets} <= known.keys():
            raise ValueError(
                f"target_modules = {targets!r} is not supported, only some of {sorted(known)} are"
            )
        return Lora(
            hf.need(data, "r"), hf.need(data, "lora_alpha"), tuple(known[one] for one in targets), dtype
        )
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def load(path: str | Path, config: Config, params, dtype: str = "float32"):
    """`params` with the adapters of a PEFT directory, which are host arrays in `dtype`, in place of any they have.

    Raises: FileNotFoundError for a file that is missing; ValueError for an adapter of another kind, and for tensors
      that are not those of its config on this model.
    """
    directory = disk.fetched(disk.place(path))
    for file in (directory / CONFIG, directory / WEIGHTS):
        if not file.is_file():
            raise FileNotFoundError(f"{file}: missing; a PEFT adapter has {CONFIG} and {WEIGHTS}")
    wanted = read_config(directory, config, dtype)
    shapes = lora.shapes(jax.eval_shape(build(config).init, jax.random.key(0)), wanted)
    names = tensors(config, shapes)
    try:
        stored = load_file(directory / WEIGHTS)
    except SafetensorError as error:
        raise ValueError(f"{directory / WEIGHTS}: not a complete safetensors file ({error})") from None
    if odd := sorted(stored.keys() ^ set(names.values())):
        what = "is not part of" if odd[0] in stored else "is missing, but part of"
        raise ValueError(f"{directory / WEIGHTS}: tensor {odd[0]} {what} {CONFIG} on this model")

    def one(path, like) -> np.ndarray:
        key = "/".join(part.key for part in path)
        array, expected = stored[names[key]], to_peft(key, np.empty(like.shape)).shape
        if array.shape != expected:
            raise ValueError(
                f"{directory / WEIGHTS}: tensor {names[key]} (our {key}) has shape {array.shape}, expected {expected}"
            )
        return np.ascontiguousarray(array.T).reshape(like.shape).astype(like.dtype)

    adapters = jax.tree_util.tree_map_with_path(one, shapes)
    frozen = lora.split(params)[1]
    return lora.with_scale(lora.join(params if frozen is None else frozen, adapters), wanted)
