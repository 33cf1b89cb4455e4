"""Compiles attention over pages for real TPU topologies and for an H100, on a host without any of them.

    pip install libtpu
    pip install jax-cuda12-pjrt nvidia-cuda-nvcc-cu12
    python benchmarks/kernel_compile.py

The first line is for TPU, the second for GPU; all in the versions that go with jax.

One layer's step of Qwen3-4B: the new tokens' keys and values onto their pages, then attention, with all heads on one
device and with a quarter of them on each of four. Says how long it takes to compile and what memory it wants beside its
arguments: the pool is donated and must not be among it. Nothing is run.

With --step: the bytes that a whole step accesses besides attention's, by the compiler's count, from 4 and 8 layers.
"""

import argparse
import dataclasses
import importlib.util
import os
import sys
import time
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # no metadata server to ask
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from int_jax import sample
from int_jax.losses import scaled_logits
from int_jax.models import Config, build, kernels, pages
from int_jax.sharding import RULES_DECODE, make_mesh, shardings

QWEN3_4B = Config("qwen3", 151_936, 2560, 1, 32, 8, 128, 9728, 40_960, dtype="bfloat16")
LENGTH = 32_768  # tokens that a table has room for
TOKENS = 4_096  # of the pool, a row; it costs no compiler anything
# What XLA must know of a device that is not there (its GpuTargetConfigProto).
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024  threads_per_warp: 32  threads_per_core_limit: 2048
  shared_memory_per_block: 49152  shared_memory_per_core: 233472  shared_memory_per_block_optin: 232448
  registers_per_core_limit: 65536  registers_per_block_limit: 65536  core_count: 132  fpus_per_core: 128
  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000  l2_cache_size: 52428800  clock_rate_ghz: 1.98  device_memory_size: 84942979072
  cuda_compute_capability { major: 9 minor: 0 }
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


def lowered(kind: str, config, mesh, rows: int, tokens: int, size: int, window: int = 0):
    """A layer's step within a program that is manual over "data" alone, as the engine's are."""
    pool, write, attend = (getattr(kernels, f"{kind}_{name}") for name in ("pool", "write", "attend"))

    def step(layer, key_BTNK, value_BTNK, page_BT, place_BT, query_BTHK, table_BP, start_B):
        layer = write(layer, key_BTNK, value_BTNK, page_BT, place_BT)
        return layer, attend(layer, query_BTHK, table_BP, start_B, config.head_dim**-0.5, None, window)

    def shape(letters: str, *sizes, dtype="int32"):
        cut = "model" if mesh.shape["model"] > 1 else None
        where = PartitionSpec(*(cut if letter in "HNU" else None for letter in letters))
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=NamedSharding(mesh, where))

    heads, dim, dtype = config.kv_heads, config.head_dim, config.dtype
    letters = {"tpu": "WZUI", "gpu": "NWZK"}[kind]
    arrays = jax.eval_shape(lambda: pool(config, rows * TOKENS // size, size))
    layer = tuple(shape(letters, *field[0].shape, dtype=dtype) for field in arrays)
    new = shape("BTNK", rows, tokens, heads, dim, dtype=dtype)
    place = shape("BT", rows, tokens)
    query = shape("BTHK", rows, tokens, config.heads, dim, dtype=dtype)
    table, start = shape("BP", rows, LENGTH // size), shape("B", rows)
    everywhere = PartitionSpec()
    replica = jax.shard_map(
        step, mesh=mesh, in_specs=everywhere, out_specs=everywhere, axis_names={"data"}, check_vma=False
    )
    # The only place where these devices are in context: they cannot run anything.
    with jax.sharding.set_mesh(mesh):
        return jax.jit(replica, donate_argnums=0).lower(layer, new, new, place, place, query, table, start)


def report(name: str, kind: str, config, mesh, rows: int, tokens: int, size: int, window: int = 0):
    start = time.perf_counter()
    try:
        found = lowered(kind, config, mesh, rows, tokens, size, window).compile().memory_analysis()
        said = (
            f"{found.temp_size_in_bytes / 2**20:8.2f} MiB beside {found.argument_size_in_bytes / 2**20:,.0f}"
        )
    except jax.errors.JaxRuntimeError as error:
        said = f"FAILED: {str(error)[:200]}"
    what = f"{config.heads}/{config.kv_heads} heads of {config.head_dim} over {mesh.shape['model']}, {config.dtype}"
    print(
        f"{name:<10} {what:<44} {rows:>4} rows x {tokens:<4} pages of {size:<4} window {window:<4} "
        f"{time.perf_counter() - start:5.1f} s  {said}",
        flush=True,
    )


def step(layers: int, mesh, rows: int) -> tuple[float, float]:
    """Bytes and seconds, by the compiler's estimate, of one step of `rows` rows that hold next to nothing: one page of
    8 tokens, side by side as in the layout without kernels."""
    config = dataclasses.replace(QWEN3_4B, layers=layers)
    model = build(config)

    def placed(tree):
        where = shardings(tree, mesh, RULES_DECODE)
        return jax.tree.map(lambda a, w: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=w), tree, where)

    def low(key):
        return jax.tree.map(lambda leaf: leaf.astype(config.dtype), model.init(key))

    def view():
        pool, table_BP = pages.empty_pages(config, rows + 1, 8), jnp.zeros((rows, 1), jnp.int32)
        return pages.rows_of(config, pool, table_BP, 1, jnp.zeros(rows, jnp.int32), 8)

    def one(params, seen, token_B, length_B, draw, spellings):
        hidden_BTD, seen = model.apply(params, token_B[:, None], length_B[:, None], cache=seen)
        logits_BV = scaled_logits(hidden_BTD[:, 0], model.head_DV(params), draw.temperature_B, None)
        keys = jax.vmap(jax.random.fold_in)(sample.row_keys(draw), length_B)
        return seen, sample.choose(logits_BV, keys, draw, jnp.zeros(rows, jnp.int32), spellings)

    def of(dtype, *more):
        return jax.ShapeDtypeStruct((rows, *more), dtype)

    real, whole, word = of("float32"), of("int32"), of("uint32")
    draw = sample.Draw(real, whole, real, real, of("int32", 8), word, word, word)
    free = sample.Spellings(*(jax.ShapeDtypeStruct((8, 8), "int32") for _ in range(2)))
    params, seen = placed(jax.eval_shape(low, jax.random.key(0))), placed(jax.eval_shape(view))
    with jax.sharding.set_mesh(mesh):
        found = jax.jit(one, donate_argnums=1).lower(params, seen, whole, whole, draw, free).compile()
    cost = found.cost_analysis()
    return cost["bytes accessed"], cost["optimal_seconds"]


def report_step(name: str, mesh, rows: int, layers: int = 36):
    (bytes_4, s_4), (bytes_8, s_8) = (step(count, mesh, rows) for count in (4, 8))
    size = bytes_4 + (bytes_8 - bytes_4) / 4 * (layers - 4)
    seconds = s_4 + (s_8 - s_4) / 4 * (layers - 4)
    print(
        f"{name:<10} a step of {rows} rows without attention's reading: {size / 1e9:.2f} GB, {1e3 * seconds:.2f} ms "
        f"estimated; of a layer {(bytes_8 - bytes_4) / 4e9:.3f} GB, of the rest {(2 * bytes_4 - bytes_8) / 1e9:.2f}",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--topologies", nargs="*", default=["v5p:2x2x1", "v5e:2x2"], help="of four chips each"
    )
    parser.add_argument("--step", action="store_true", help="a whole step's bytes, for TPU")
    args = parser.parse_args()
    if args.step:
        for name in args.topologies:
            devices = topologies.get_topology_desc(platform="tpu", topology_name=name).devices
            for rows in (64, 128):
                report_step(name, make_mesh(1, 1, devices[:1]), rows)
        return
    halves = dataclasses.replace(QWEN3_4B, heads=14, kv_heads=2, head_dim=64)  # Qwen2.5-0.5B's
    for name in args.topologies if importlib.util.find_spec("libtpu") else ():
        devices = topologies.get_topology_desc(platform="tpu", topology_name=name).devices
        one, four = make_mesh(1, 1, devices[:1]), make_mesh(1, 4, devices)
        for mesh in (one, four):
            for rows in (64, 256):
                for size in (128, 32):
                    report(name, "tpu", QWEN3_4B, mesh, rows, 1, size)
        report(name, "tpu", QWEN3_4B, one, 8, 512, 128)
        report(name, "tpu", QWEN3_4B, one, 64, 1, 128, window=1024)
        report(name, "tpu", dataclasses.replace(QWEN3_4B, dtype="float32"), one, 64, 1, 128)
        report(name, "tpu", halves, one, 64, 1, 128)
    try:
        devices = topologies.get_topology_desc(
            platform="cuda", topology_name="1x1x1", topology="1x1x1", target_config=H100
        ).devices
    except NotImplementedError as error:
        print(f"nothing for GPU, its compiler is not installed: {error}")
        return
    one = make_mesh(1, 1, devices[:1])
    for rows in (64, 256):
        for size in (128, 32):
            report("H100", "gpu", QWEN3_4B, one, rows, 1, size)
    report("H100", "gpu", dataclasses.replace(QWEN3_4B, dtype="float32"), one, 64, 1, 128)
    report("H100", "gpu", dataclasses.replace(QWEN3_4B, heads=8, kv_heads=4, head_dim=256), one, 64, 1, 128)
    report("H100", "gpu", halves, one, 64, 1, 128)


if __name__ == "__main__":
    main()
