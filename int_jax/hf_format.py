"""Models as Hugging Face directories: config.json, safetensors and tokenizer files, onto a mesh and back.

What a family's config.json and tensor names mean stands in `models/`; here is how the files are read and written.
"""

import contextlib
import dataclasses
import functools
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from int_jax import dims, disk, processes
from int_jax.models import Config, build, family, family_of, hf
from int_jax.sharding import RULES, make_mesh, shardings
from int_jax.tokenizer import Tokenizer, json_object

PREFIX = "model."  # before the names of all tensors but the head's
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
TOKENIZER_FILES = (  # patterns: a tokenizer of each kind, its templates (the folder has the named ones), its old files
    *("tokenizer.*", "tokenizer_config.json", "tekken.json", "spiece.model", "sentencepiece.bpe.model"),
    *("vocab.*", "merges.txt", "special_tokens_map.json", "added_tokens.json"),
    *("chat_template.*", "additional_chat_templates"),
)
DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}  # here: in a file's header
SHARD_BYTES = 4 << 30


# Reading ----------------------------------------------------------------------------------------------------


class Weight(NamedTuple):
    """One parameter: its path and shape here, its shape in a file."""

    path: str
    letters: str
    shape: tuple[int, ...]
    hf_shape: tuple[int, ...]


class Header(NamedTuple):
    """What a safetensors file says of one tensor, which has this name there."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str


def leaves_by_path(tree) -> dict[str, Any]:
    """The leaves of a nested dict by path: {"layer_0/q_DHK": ...}."""
    return {
        "/".join(key.key for key in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _weights(config: Config, like) -> dict[str, Weight]:
    """The tensors a file of this model must hold, by their names there."""
    names = family(config.family).NAMES
    out = {}
    for path, leaf in leaves_by_path(like).items():
        letters = dims.suffix(path)
        out[hf.tensor_name(names, path)] = Weight(
            path, letters, leaf.shape, hf.shape_to_hf(letters, leaf.shape)
        )
    return out


def read_config(path: str | Path, dtype: str = "float32", own_family: str = "") -> Config:
    """The Config of a model directory, with `dtype` for compute and parameters; `own_family`: see `load`."""
    directory = Path(path)
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory}: there is no such directory (looked in {Path.cwd()})")
    file = directory / "config.json"
    if not file.is_file():
        raise FileNotFoundError(
            f"{file}: missing; a model directory holds config.json and {SINGLE} (or {INDEX})"
        )
    if dtype not in DTYPES:
        raise ValueError(f"dtype = {dtype!r} is not one of {sorted(DTYPES)}")
    data = json_object(file)
    try:
        module = family(own_family) if own_family else family_of(hf.need(data, "model_type"))
        config = module.config_from_hf(data)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    if own_family:
        config = dataclasses.replace(config, family=own_family)
    return dataclasses.replace(config, dtype=dtype, param_dtype=dtype)


def _headers(directory: Path, weights: dict[str, Weight]) -> dict[str, Header]:
    """Every tensor of a model directory, single file or shards, from the files' headers alone.

    By the name that the model expects: a file written from the decoder alone has no "model." before its names, one
    from a wrapped model has two, and transformers reads them alike. A single file counts before an index, as there.
    """
    expected = {name.removeprefix(PREFIX): name for name in weights}
    if (directory / SINGLE).is_file():
        files = [directory / SINGLE]
    elif (directory / INDEX).is_file():
        try:
            shards = json.loads((directory / INDEX).read_text())["weight_map"].values()
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ValueError(f"{directory / INDEX}: not an index with a weight_map ({error!r})") from None
        files = [directory / name for name in sorted(set(shards))]
    else:
        raise FileNotFoundError(f"{directory}: neither {SINGLE} nor {INDEX} is there")
    headers: dict[str, Header] = {}
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"{file}: missing, but named by {directory / INDEX}")
        try:
            with safe_open(file, "np") as reader:
                for stored in reader.keys():  # noqa: SIM118 (it is not a dict)
                    tensor = reader.get_slice(stored)
                    # "layers.0...", "model.layers.0...", "model.model.layers.0..." -> "layers.0..."
                    bare = re.sub(rf"^({re.escape(PREFIX)})+", "", stored)
                    name = expected.get(bare, stored)
                    if name in headers:
                        other = headers[name]
                        raise ValueError(f"{file}: tensor {stored} is in {other.file} too, as {other.name}")
                    headers[name] = Header(file, stored, tuple(tensor.get_shape()), tensor.get_dtype())
        except SafetensorError as error:
            raise ValueError(f"{file}: not a complete safetensors file ({error})") from None
    return headers


def _compare(directory: Path, weights: dict[str, Weight], headers: dict[str, Header]) -> None:
    """Refuse files that do not hold exactly these tensors, but for buffers that follow from config.json."""
    where = directory / (SINGLE if (directory / SINGLE).is_file() else INDEX)
    faults = []
    for name in weights.keys() - headers.keys():
        faults.append(f"{where}: tensor {name} is missing, expected shape {weights[name].hf_shape}")
    for name in headers.keys() - weights.keys():
        if name.endswith(hf.BUFFERS):
            continue
        found = headers[name]
        faults.append(
            f"{found.file}: tensor {found.name} of shape {found.shape} is not part of the model in config.json"
        )
    for name in weights.keys() & headers.keys():
        weight, found = weights[name], headers[name]
        if found.shape != weight.hf_shape:
            faults.append(
                f"{found.file}: tensor {found.name} (our {weight.path}) has shape {found.shape}, "
                f"expected {weight.hf_shape}"
            )
        if found.dtype not in DTYPES.values():
            faults.append(
                f"{found.file}: tensor {found.name} has dtype {found.dtype}, expected one of {[*DTYPES.values()]}"
            )
    if faults:
        more = f"\n... and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise ValueError("\n".join(sorted(faults)[:5]) + more)


def load(
    path: str | Path,
    mesh=None,
    dtype: str = "float32",
    rules: dict | None = None,
    own_family: str = "",
) -> tuple[Config, Any]:
    """A model in Hugging Face format, on the mesh.

    Every header is checked before the first tensor is read; then each goes from its file to its devices, one by one. A
    process reads the parts that its own devices hold, each once: its memory stays near one tensor's parts. A tied
    model's embedding may stand under the head's name, alone or as a copy.

    Args:
      path: the directory. mesh: all devices along "data" by default. dtype: that of the parameters and of the compute.
      rules: the sharding table, `sharding.RULES` by default. own_family: the dotted name or the file of the model's
        family (modules.py), where it is none of the package's; "": by the model_type in config.json.

    Returns: (Config, params).

    Raises: ValueError for a config, a tensor or a file that is not as it must be, and for parameters that are not
      finite, in the file or in `dtype`.
    """
    directory = Path(path)
    config = read_config(directory, dtype, own_family)
    like = jax.eval_shape(build(config).init, jax.random.key(0))
    weights = _weights(config, like)
    embed, head = (family(config.family).NAMES[path] for path in ("embed_VD", "head_DV"))
    headers = _headers(directory, {head: weights[embed]} | weights)
    if config.tied and head in headers and embed not in headers:
        headers[embed] = headers.pop(head)
    copied = {head: weights[embed]} if config.tied and head in headers else {}
    _compare(directory, weights | copied, headers)
    mesh = make_mesh() if mesh is None else mesh
    where = leaves_by_path(shardings(like, mesh, RULES if rules is None else rules))
    with contextlib.ExitStack() as stack:
        files = {h.file for h in headers.values()}
        readers = {file: stack.enter_context(safe_open(file, "np")) for file in files}

        def read(name: str, weight: Weight, index) -> np.ndarray:
            stored = readers[headers[name].file].get_slice(headers[name].name)
            return hf.part_from_hf(weight.letters, stored, weight.shape, index)

        def part(name: str, weight: Weight, index) -> np.ndarray:
            array = read(name, weight, index)
            if copied and name == embed and not np.array_equal(array, read(head, weight, index)):
                raise ValueError(
                    f"{headers[head].file}: {head} differs from {name}, yet config.json ties the two: set "
                    f"tie_word_embeddings to false there, or take {head} out"
                )
            with np.errstate(over="ignore"):
                placed = array.astype(dtype, copy=False)
            if not _finite(placed):
                raise ValueError(_not_finite(headers[name], array, dtype))
            return placed

        params = {
            weight.path: _assembled(weight.shape, where[weight.path], functools.partial(part, name, weight))
            for name, weight in weights.items()
        }
    return config, jax.tree.unflatten(
        jax.tree.structure(like), [params[path] for path in leaves_by_path(like)]
    )


# The bits of a half-precision number from which on, but for its sign, it is not finite: numpy asks each more slowly.
INFINITE = {"bfloat16": 0x7F80, "float16": 0x7C00}


def _finite(array: np.ndarray) -> bool:
    """Whether all of it is, in blocks of rows: what is written down on the way stays in the processor's cache."""
    limit = INFINITE.get(str(array.dtype))
    rows = max(1, (1 << 17) // max(1, math.prod(array.shape[1:])))
    for start in range(0, len(array), rows):
        block = array[start : start + rows]
        bad = (
            not np.isfinite(block).all() if limit is None else (block.view(np.uint16) & 0x7FFF).max() >= limit
        )
        if bad:
            return False
    return True


def _not_finite(header: Header, array: np.ndarray, dtype: str) -> str:
    """What is wrong with a part of a tensor that is not finite as `dtype`."""
    wide = array.astype(np.float32)
    bad = int((~np.isfinite(wide)).sum())
    where = f"{header.file}: tensor {header.name}"
    if bad:
        return (
            f"{where} holds {bad} values that are NaN or infinite, of {wide.size} that were read here: the model "
            "diverged, or the file is damaged; take another checkpoint"
        )
    with np.errstate(over="ignore"):
        count = int((~np.isfinite(wide.astype(dtype).astype(np.float32))).sum())
    return (
        f"{where} holds {count} values beyond {dtype}, of {wide.size} that were read here (the largest is "
        f"{np.abs(wide).max():.3g}): set dtype to 'bfloat16' or 'float32'"
    )


def _assembled(shape, sharding, read) -> jax.Array:
    """The array whose part `index`, a slice for each axis, is read(index), called once for equal parts."""
    parts: dict[tuple, np.ndarray] = {}

    def part(index):
        # Slices compare by their bounds: slice(None) and slice(0, 8) are one part of 8, which is read once.
        bounds = tuple(cut.indices(size)[:2] for cut, size in zip(index, shape, strict=True))
        if bounds not in parts:
            parts[bounds] = read(index)
        return parts[bounds]

    # Waiting frees the host's copy before the next tensor is read.
    return jax.block_until_ready(jax.make_array_from_callback(shape, sharding, part))


# Writing ----------------------------------------------------------------------------------------------------


def save(
    path: str | Path,
    config: Config,
    params,
    tokenizer_path: str | Path | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a model directory that `load`, transformers and vLLM read: config.json, weights, tokenizer.

    All of it is written beside `path` and then renamed. In a directory that exists, other files (a model card) stay,
    and from the first change to the last there is no config.json, so that nothing loads it. Where the arrays live on
    several processes all of them call this: tensor by tensor they are gathered, and process 0 writes.

    Args:
      params: jax arrays of any supported dtype, written as they are.
      tokenizer_path: a directory whose tokenizer files (and generation_config.json) are copied.
      shard_bytes: above it the weights are cut into several files with an index.
    """
    target = disk.absolute(path)
    if target.exists() and not target.is_dir():
        raise NotADirectoryError(f"{target}: a model is saved as a directory, and this is a file")
    weights = _weights(config, jax.eval_shape(build(config).init, jax.random.key(0)))
    flat = leaves_by_path(params)
    wanted = {weight.path: weight.shape for weight in weights.values()}
    found = {key: leaf.shape for key, leaf in flat.items()}
    if wanted != found:
        wrong = sorted(set(wanted.items()) ^ set(found.items()))[:5]
        raise ValueError(f"{target}: the parameters are not those of config, which differ at {wrong}")
    if not processes.is_main_process():
        for weight in weights.values():
            on_host(flat[weight.path])
    else:
        _write(target, config, weights, flat, tokenizer_path, shard_bytes)
    processes.barrier(f"{target} is written")


def on_host(array) -> np.ndarray:
    """The whole array, from all devices of all processes, which must call this together."""
    if not array.is_fully_addressable:
        return multihost_utils.process_allgather(array, tiled=True)
    whole = np.empty(array.shape, array.dtype)
    for shard in array.addressable_shards:
        if shard.replica_id == 0:
            # np.asarray caches the host copy on the array; copy first, so that the cache dies with the copy.
            whole[shard.index] = jnp.copy(shard.data)
    return whole


def _write(
    target: Path,
    config: Config,
    weights: dict[str, Weight],
    flat: dict[str, Any],
    tokenizer_path: str | Path | None,
    shard_bytes: int,
) -> None:
    with disk.room(target, flat), disk.draft(target) as draft:
        _write_weights(draft, weights, flat, shard_bytes)
        _write_configs(
            draft, dataclasses.replace(config, param_dtype=str(flat["embed_VD"].dtype)), tokenizer_path
        )
        tokenizer = _tokenizer_files(target) if tokenizer_path is not None else []
        old = [*target.glob("model*.safetensors"), target / INDEX, *tokenizer]
        disk.publish(draft, target, "config.json", old)


def _write_weights(directory: Path, weights: dict[str, Weight], flat: dict, shard_bytes: int) -> None:
    """Host memory: one file's tensors, and one tensor more."""
    shards: list[list[str]] = [[]]
    room = shard_bytes
    for name, weight in weights.items():
        size = flat[weight.path].nbytes
        # Sizes 3, 3, 2 into files of 5: [3], [3, 2]. A tensor larger than a file has one of its own.
        if size > room and shards[-1]:
            shards.append([])
            room = shard_bytes
        shards[-1].append(name)
        room -= size
    files = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    files = [SINGLE] if len(shards) == 1 else files

    def array(name: str) -> np.ndarray:
        weight = weights[name]
        # safetensors writes the buffer as it lies in memory: a transposed view would come back scrambled.
        return np.ascontiguousarray(hf.to_hf(weight.letters, on_host(flat[weight.path])))

    for file, names in zip(files, shards, strict=True):
        save_file({name: array(name) for name in names}, directory / file, {"format": "pt"})
        (directory / file).chmod(0o644)
    if len(shards) > 1:
        total = sum(flat[weight.path].nbytes for weight in weights.values())
        where = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        write_json(directory / INDEX, {"metadata": {"total_size": total}, "weight_map": where})


def _write_configs(directory: Path, config: Config, tokenizer_path: str | Path | None) -> None:
    token_ids: dict[str, Any] = {}
    generation: dict[str, Any] = {}
    if tokenizer_path is not None:
        tokenizer = Tokenizer(tokenizer_path)
        token_ids, generation = _token_ids(tokenizer, config.vocab), tokenizer.generation
        for source in _tokenizer_files(Path(tokenizer_path)):
            if source.is_dir():
                shutil.copytree(source, directory / source.name, copy_function=shutil.copyfile)
            else:
                shutil.copyfile(source, directory / source.name)
    write_json(directory / "generation_config.json", generation | token_ids)
    write_json(directory / "config.json", family(config.family).config_to_hf(config, token_ids))


def _tokenizer_files(directory: Path) -> list[Path]:
    return [path for pattern in TOKENIZER_FILES for path in directory.glob(pattern)]


def _token_ids(tokenizer: Tokenizer, vocab: int) -> dict[str, Any]:
    """bos_, eos_ (every stop id) and pad_token_id, as far as the model has a row for them: for an id beyond its
    embedding, which a tokenizer's class may add, PyTorch refuses to make one."""
    hf = tokenizer.hf
    stops = [i for i in tokenizer.stop_ids if i < vocab]
    bos, pad = (i if i is not None and i < vocab else None for i in (hf.bos_token_id, hf.pad_token_id))
    eos = stops if len(stops) > 1 else next(iter(stops), None)
    return {"bos_token_id": bos, "eos_token_id": eos, "pad_token_id": pad}


def write_json(file: Path, data: dict) -> None:
    file.write_text(json.dumps(data, indent=2) + "\n")
