"""Attention of a row over itself by the kernels that come with jax: nothing as large as a square of tokens exists, and
what stands behind a query, or before its window, is not computed. What other segments of a packed row leave out is.

    TPU  jax.experimental.pallas.ops.tpu.splash_attention: segments, windows, soft caps, shared key/value heads
    GPU  jax.experimental.pallas.ops.gpu.attention (Triton): segments alone, and a key/value head for each query head

cuDNN has one, too, but takes no segments by what jax makes public.
"""

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.gpu import attention as gpu
from jax.experimental.pallas.ops.tpu import splash_attention as tpu
from jax.sharding import PartitionSpec

from int_jax.dims import check

BLOCK = 512  # queries, and keys, of a row that a TPU core has under way
GPU_BLOCK = 64  # the same of a program on GPU
LEAST = 128  # tokens to which a row is padded
CONTEXT = "context"  # the name under which a checkpoint policy may keep what attention gives


def chosen(asked: str, platform: str, config) -> str:
    """ "tpu" or "gpu", the kernel, or "xla", none of them (transformer.long_attention).

    asked: "xla", or anything else for the platform's kernel where it can serve the model.
    """
    dim = config.head_dim
    if asked == "xla" or platform not in ("tpu", "gpu") or config.dtype == "float16":
        return "xla"
    # Triton knows neither window nor cap, and loads heads of powers of two.
    if platform == "gpu" and (any(config.windows) or config.attention_softcap or dim < 16 or dim & (dim - 1)):
        return "xla"
    return platform


def _splash(query_BHTK, key_BNTK, value_BNTK, segments_BT, window: int, cap: float | None):
    heads, length = query_BHTK.shape[1:3]
    masks = tpu.splash_attention_mask
    shape = length, length
    mask = masks.LocalMask(shape, (window - 1, 0), 0) if window else masks.CausalMask(shape)
    block = next(size for size in (BLOCK, BLOCK // 2, LEAST) if length % size == 0)
    forward = (block,) * 3
    sizes = tpu.splash_attention_kernel.BlockSizes(*forward, *forward, block_q_dq=block, block_kv_dq=block)
    kernel = tpu.splash_attention_kernel.make_splash_mha(
        masks.MultiHeadMask([mask] * heads),
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=1,
        attn_logits_soft_cap=cap,
        residual_checkpoint_name=CONTEXT,
    )
    segments = tpu.splash_attention_kernel.SegmentIds(segments_BT, segments_BT)
    return jax.vmap(kernel)(query_BHTK, key_BNTK, value_BNTK, segments)


def _tpu(query_BTHK, key_BTNK, value_BTNK, segments_BT, scale: float, cap: float | None, window: int):
    query, key, value = (jnp.swapaxes(array, 1, 2) for array in (query_BTHK * scale, key_BTNK, value_BTNK))
    return jnp.swapaxes(_splash(query, key, value, segments_BT, window, cap), 1, 2)


def _gpu(query_BTHK, key_BTNK, value_BTNK, segments_BT, scale: float, cap: float | None, window: int):
    assert cap is None and not window, "chosen() takes this kernel for neither"
    # It takes a key/value head for each query head.
    shared = query_BTHK.shape[2] // key_BTNK.shape[2]
    key_BTHK, value_BTHK = (jnp.repeat(array, shared, axis=2) for array in (key_BTNK, value_BTNK))
    sizes = ("block_q", "block_k", "block_q_dkv", "block_kv_dkv", "block_q_dq", "block_kv_dq")
    blocks = gpu.BlockSizes(**dict.fromkeys(sizes, GPU_BLOCK))
    return gpu.mha(query_BTHK, key_BTHK, value_BTHK, segments_BT, scale, True, blocks)


KERNELS = {"tpu": _tpu, "gpu": _gpu}


@check
def attend(
    kind: str,
    query_BTHK,
    key_BTNK,
    value_BTNK,
    segments_BT,
    scale: float,
    cap: float | None = None,
    window: int = 0,
):
    """softmax(scale q k^T) v of each token over those of its segment that stand before it, and itself.

    Args:
      kind: "tpu" or "gpu". segments_BT: int32; a segment's tokens stand side by side.
      cap: a soft cap of the scores. window: a token sees only so many of the last ones, its own included; 0: all.

    Returns: heads_BTHK.
    """
    rows, length, heads, _ = query_BTHK.shape
    kv_heads, pad = key_BTNK.shape[2], -length % LEAST

    def own(query_BTHK, key_BTNK, value_BTNK, segments_BT):
        return KERNELS[kind](query_BTHK, key_BTNK, value_BTNK, segments_BT, scale, cap, window)

    # Padding is a segment of its own, behind all others.
    padded = [
        jnp.pad(array, [(0, 0), (0, pad)] + [(0, 0)] * (array.ndim - 2), constant_values=fill)
        for array, fill in ((query_BTHK, 0), (key_BTNK, 0), (value_BTNK, 0), (segments_BT, -1))
    ]
    mesh = jax.sharding.get_abstract_mesh()
    free = set(mesh.axis_names) - set(mesh.manual_axes)
    if free:  # the compiler cannot cut a kernel: each device has its own rows and heads
        sizes = {axis: mesh.shape[axis] for axis in free}
        model = sizes.get("model", 1)
        # 8 key/value heads over 16 devices: each head on two of them.
        if kv_heads % model and model % kv_heads == 0 and heads % model == 0:
            padded[1:3] = (jnp.repeat(array, model // kv_heads, axis=2) for array in padded[1:3])
        by_rows = "data" if "data" in free and rows % sizes["data"] == 0 else None
        by_heads = "model" if "model" in free and padded[1].shape[2] % model == 0 else None
        there = PartitionSpec(by_rows, None, by_heads)
        own = jax.shard_map(
            own,
            in_specs=(there, there, there, PartitionSpec(by_rows)),
            out_specs=there,
            axis_names=free,
            check_vma=False,  # the kernels do not say over which axes what they make differs
        )
    return own(*padded)[:, :length]
