"""jax's kernels for TPU and GPU as far as they go without the devices' own compilers."""

import jax
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, PartitionSpec

from int_jax.models import Config, kernels

ROWS, PAGES, COUNT, SIZE = 3, 24, 6, 16
CALLS = {"tpu": ("tpu", "tpu_custom_call"), "gpu": ("cuda", "__gpu$xla.gpu.triton")}


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize(("kind", "tokens"), [("tpu", 1), ("tpu", 64), ("gpu", 1)])
def test_writing_and_attending_is_lowered_for_the_device(kind, tokens, dtype):
    """Within a program that is manual over "data" alone, with the heads cut over "model"."""
    sizes = Config("qwen3", 99, 32, 1, 32, 8, 64, 64, 512, dtype=dtype)
    pool, write, attend = (getattr(kernels, f"{kind}_{name}") for name in ("pool", "write", "attend"))

    def step(layer, key_BTNK, value_BTNK, page_BT, place_BT, query_BTHK, table_BP, start_B):
        layer = write(layer, key_BTNK, value_BTNK, page_BT, place_BT)
        return layer, attend(layer, query_BTHK, table_BP, start_B, 0.1, 30.0)

    def replica(*args):
        data = PartitionSpec("data")
        return jax.shard_map(step, in_specs=data, out_specs=data, axis_names={"data"}, check_vma=False)(*args)

    def shape(*sizes, dtype="int32"):
        return jax.ShapeDtypeStruct(sizes, dtype)

    layer = tuple(field[0] for field in jax.eval_shape(lambda: pool(sizes, PAGES, SIZE)))
    new, places = shape(ROWS, tokens, 8, 64, dtype=dtype), shape(ROWS, tokens)
    query = shape(ROWS, tokens, 32, 64, dtype=dtype)
    args = layer, new, new, places, places, query, shape(ROWS, COUNT), shape(ROWS)
    device = AbstractDevice("TPU v5", 1, "tpu") if kind == "tpu" else None
    platform, call = CALLS[kind]
    with jax.sharding.use_abstract_mesh(
        AbstractMesh((1, 4), ("data", "model"), (AxisType.Auto,) * 2, abstract_device=device)
    ):
        lowered = jax.jit(replica).trace(*args).lower(lowering_platforms=(platform,))
    assert call in lowered.as_text()
