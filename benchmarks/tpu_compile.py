"""Compiles the update, the prefill and the decoding step for real TPU topologies, on a host without a TPU.

    pip install libtpu
    python benchmarks/tpu_compile.py --shape tests/shapes/qwen3_0_6b.json --layers 4 --topology v5p:2x2x2 --data 8

Says whether each program compiles, how long that takes, and how much memory of a device XLA wants for it beside what
int_jax/memory.py plans. Nothing is run. `--layers` cuts the model: the time to compile grows with them.
"""

import argparse
import dataclasses
import json
import os
import sys
import time
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # no metadata server to ask
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
from jax.experimental import topologies  # noqa: E402

from int_jax import engine, memory, models, sample  # noqa: E402
from int_jax.batching import pack, supervised  # noqa: E402
from int_jax.losses import LossConfig  # noqa: E402
from int_jax.sharding import RULES, RULES_DECODE, make_mesh, shardings  # noqa: E402
from int_jax.types import State  # noqa: E402

GIB = 2**30
CHUNK = 256  # tokens of a row whose logits exist at one time


def placed(tree, mesh, rules):
    """The tree's shapes with their shardings."""
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        tree,
        shardings(tree, mesh, rules),
    )


def lowered(config, mesh, rows: int, length: int, slots: int):
    """Each program by its name, and the bytes a device that are planned for it."""
    model, tx = models.build(config), optax.adamw(1e-6)
    sizes = memory.Sizes(config, mesh)
    params = jax.eval_shape(model.init, jax.random.key(0))
    state = jax.eval_shape(lambda p: State(jnp.zeros((), jnp.int32), p, tx.init(p)), params)
    batch = jax.eval_shape(
        lambda: pack([supervised(np.ones(length, np.int32), np.ones(length))] * rows, length, rows)
    )
    low = placed(
        jax.eval_shape(lambda p: jax.tree.map(lambda x: x.astype(config.dtype), p), params),
        mesh,
        RULES_DECODE,
    )
    seats = jax.eval_shape(lambda: sample.empty_slots(model, slots, length, 8))
    training = memory.training("update", sizes, rows, length, CHUNK, True, ())
    drawing = memory.sampling("sampling", sizes, slots, 16, length // 2, length // 2 - 16, ())
    weights = sizes.params(config.dtype, RULES_DECODE)
    filling = sum(item.bytes for item in drawing.items if item.name.startswith("prefill"))
    stepping = {"cache", "newest tokens", "decode: logits"}
    stepping = sum(item.bytes for item in drawing.items if item.name in stepping)
    prompts = jax.ShapeDtypeStruct((max(1, slots // 4), length // 2), jnp.int32)
    update = (
        placed(state, mesh, RULES),
        placed(batch, mesh, RULES),
        model,
        tx,
        LossConfig(logit_chunk=CHUNK, remat=True),
    )
    free = sample.Spellings(*(jax.ShapeDtypeStruct((8, 8), jnp.int32) for _ in range(2)))
    owned = jax.ShapeDtypeStruct((slots,), bool)
    decode = model, low, placed(seats, mesh, RULES_DECODE), owned, free, np.int32(1), 16
    with jax.sharding.set_mesh(
        mesh
    ):  # the only place where these devices are in context: they cannot run anything
        return {
            "update": (engine._update.lower(*update), training.bytes),
            "prefill": (engine._prefill.lower(model, low, prompts), weights + filling),
            "decode": (engine._decode.lower(*decode), weights + stepping),
        }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", type=Path, default=ROOT / "tests" / "shapes" / "qwen3_0_6b.json")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--topology", default="v5p:2x2x2", help="of eight chips: v5e:2x4, v5p:2x2x2, v6e:2x4")
    parser.add_argument("--data", type=int, default=8)
    parser.add_argument("--rows", type=int, default=8, help="rows of a micro-batch")
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--only", choices=("update", "prefill", "decode"))
    args = parser.parse_args()

    data = json.loads(args.shape.read_text())
    config = models.family_of(data["model_type"]).config_from_hf(data)
    config = dataclasses.replace(config, layers=args.layers, dtype="bfloat16", param_dtype="float32")
    devices = topologies.get_topology_desc(platform="tpu", topology_name=args.topology).devices
    mesh = make_mesh(args.data, len(devices) // args.data, devices)
    axes = f"data {args.data} x model {len(devices) // args.data}"
    print(f"{args.shape.stem}, {args.layers} layers, {args.topology}, {axes}")
    programs = lowered(config, mesh, args.rows, args.length, args.slots)
    for name in [args.only] if args.only else programs:
        program, planned = programs[name]
        start = time.perf_counter()
        found = program.compile().memory_analysis()
        held = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
        total = (held + found.temp_size_in_bytes) / GIB
        seconds = time.perf_counter() - start
        print(
            f"  {name:<8} {seconds:4.0f} s to compile, {total:.2f} GiB a device, {planned / GIB:.2f} planned",
            flush=True,
        )


if __name__ == "__main__":
    main()
