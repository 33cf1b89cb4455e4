"""Where arrays live: a mesh with axes ("data", "model"), and one table from dimension letters to mesh axes.

A parameter's sharding is read off its name (`q_DHK` -> D over "data", H over "model"). Training shards the
parameters over both axes (fully sharded data parallel x tensor parallel); decoding keeps a whole copy of the weights
along "data", because there a gather per token would cost more than the memory it saves.
"""

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from int_jax import dims

RULES = {"B": "data", "W": "data", "D": "data", "H": "model", "N": "model", "F": "model", "V": "model"}
RULES_DECODE = {"B": "data", "W": "data", "H": "model", "N": "model", "F": "model", "V": "model"}
# What a training keeps between layers is cut over tokens, too (Korthikanti et al., arXiv 2205.05198, "sequence
# parallelism"): the sums over "model" that a layer ends in are then scattered, and gathered again where they are read.
RULES_KEPT = RULES_DECODE | {"T": "model"}


def mesh_sizes(data: int, model: int, devices: int, platform: str = "") -> tuple[int, int]:
    """The sizes of a ("data", "model") mesh over so many devices; one may be -1: what is left. Raises: ValueError."""
    sizes = [data, model]
    if -1 in sizes:
        # data = -1 and model = 2 on 8 devices: -data * model is the known size, 2, and data becomes 4.
        sizes[sizes.index(-1)] = max(1, devices // max(1, -data * model))
    if sizes[0] * sizes[1] != devices:
        raise ValueError(
            f"mesh data={data} x model={model} does not fit {devices} {platform or 'such'} device(s): choose sizes "
            f"whose product is {devices}"
        )
    return sizes[0], sizes[1]


def make_mesh(data: int = -1, model: int = 1, devices=None) -> Mesh:
    """A ("data", "model") mesh over `devices` (all of them by default); see `mesh_sizes`."""
    devices = jax.devices() if devices is None else list(devices)
    sizes = mesh_sizes(data, model, len(devices), devices[0].platform)
    grid = np.asarray(devices).reshape(sizes)
    return Mesh(grid, ("data", "model"), axis_types=(AxisType.Auto, AxisType.Auto))


def submesh(mesh: Mesh, rows: list[bool]) -> Mesh:
    """Those rows of a mesh, along "data", that are named true."""
    return Mesh(mesh.devices[np.asarray(rows)], mesh.axis_names, axis_types=mesh.axis_types)


def on_mesh(tree, mesh: Mesh):
    """Arrays that are whole along "data", on some rows of their mesh alone; nothing is copied."""

    def one(leaf):
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
            return leaf
        where = leaf.sharding
        assert isinstance(where, NamedSharding), where
        parts = [shard.data for shard in leaf.addressable_shards if shard.device in {*mesh.devices.flat}]
        return jax.make_array_from_single_device_arrays(leaf.shape, NamedSharding(mesh, where.spec), parts)

    return jax.tree.map(one, tree)


def spec(letters: str, shape, mesh: Mesh | AbstractMesh, rules: dict) -> PartitionSpec:
    """The partition of an array whose axes are `letters`; an axis that the mesh does not divide is replicated."""
    if len(letters) != len(shape):
        raise ValueError(f"name suffix {letters} has {len(letters)} axes, the array has shape {tuple(shape)}")
    axes, used = [], set()
    for letter, size in zip(letters, shape, strict=True):
        axis = rules.get(letter)
        # A mesh axis cuts one axis of an array at most: of hidden_BTD "data" takes B, and D stays whole. Two key/value
        # heads over a "model" axis of 4 are replicated.
        fits = axis is not None and axis not in used and size % mesh.shape[axis] == 0
        axes.append(axis if fits else None)
        used.add(axes[-1])
    return PartitionSpec(*axes)


def shardings(tree, mesh: Mesh | AbstractMesh, rules: dict):
    """NamedShardings for every leaf of `tree`, read off the last name of its path; unnamed scalars are replicated."""

    def one(path, leaf):
        # Dicts have keys, records names, tuples only numbers: mu/layer_0/q_DHK, a moment of Adam, has the letters DHK,
        # and the third array in keys_BNKS has BNKS.
        names = [str(getattr(k, "key", getattr(k, "name", ""))) for k in path]
        letters = next((dims.suffix(name) for name in reversed(names) if name), "")
        if np.ndim(leaf) == 0:
            return NamedSharding(mesh, PartitionSpec())
        try:
            return NamedSharding(mesh, spec(letters, np.shape(leaf), mesh, rules))
        except ValueError as error:
            raise ValueError(f"parameter {'/'.join(names)}: {error}") from None

    return jax.tree_util.tree_map_with_path(one, tree)


def constrain(value, letters: str, rules: dict = RULES_DECODE):
    """Pin an activation's sharding to the table under the mesh in context; without a mesh it is the identity. Axes that
    `jax.shard_map` has cut by hand are left out."""
    mesh = jax.sharding.get_abstract_mesh()
    free = {axis for axis in mesh.axis_names if axis not in mesh.manual_axes}
    if all(mesh.shape[axis] == 1 for axis in free):
        return value
    rules = {letter: axis for letter, axis in rules.items() if axis in free}
    return jax.lax.with_sharding_constraint(
        value, NamedSharding(mesh, spec(letters, value.shape, mesh, rules))
    )


def constrain_tree(tree, rules: dict):
    """As `constrain`, every leaf by its name."""
    mesh = jax.sharding.get_abstract_mesh()
    if all(size == 1 for size in mesh.shape.values()):
        return tree
    return jax.lax.with_sharding_constraint(tree, shardings(tree, mesh, rules))
