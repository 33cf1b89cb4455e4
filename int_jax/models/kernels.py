"""Attention over pages of keys and values by the kernels that come with jax, for TPU and GPU.

A pool has W pages of Z tokens each; a row's table says on which pages its tokens lie, one page after another. Page 0 is
scrap: padding is written there, and table entries behind a row's last page are 0. A kernel reads the pages that a row
has, not the longest row's, and copies nothing. "A layer" is the tuple of one layer's arrays, one of each field of the
pool: `attend` sees in it the keys that `write` has put there before, those of its own queries among them.

    TPU  jax.experimental.pallas.ops.tpu.ragged_paged_attention: decoding and chunks of a prefill
    GPU  jax.experimental.pallas.ops.gpu.paged_attention (Triton): decoding alone; a prefill gathers its pages

cuDNN has paged attention, too, but not for this: jax keeps it private (`jax._src.cudnn`), and it wants a pool with
exactly rows x pages of a row, so that rows could not share pages.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.gpu import paged_attention as gpu
from jax.experimental.pallas.ops.tpu import ragged_paged_attention as tpu
from jax.sharding import PartitionSpec

from int_jax.dims import check, suffix

LANES = (
    128  # what the TPU kernel wants a head to have: it loads keys and values by strides of whole registers
)
BLOCK_BYTES = 2**21  # of keys and values that the TPU kernel has under way: 0.8 us of a v5p's bandwidth
BLOCK_PAGES = 32  # each is a copy of its own, written out in the kernel
QUERIES = 32  # at a time; most entries of jax's table of tuned sizes say so
TABLE_BYTES = 2**19  # of the 1 MiB of scalar memory that a TPU core has: 256 tables of 1,024 pages do not fit
TILE_BYTES = 2**16  # of keys, and as many of values: with twice that a program exceeds the 227 KiB of an H100
TILE_TOKENS = 128
SPLITS = 16  # programs that share a row on GPU, at most: jax's default


class TpuPool(NamedTuple):
    """Keys and values by turns along U: tuples of L arrays.

    Heads of less than 128 values share a place: with 64, heads 0 and 1 are one "head" of 128, and so on. The axis U is
    cut over "model" only where each device gets whole pairs: where `divides` says so, not by its size.
    """

    both_WZUI: tuple


class GpuPool(NamedTuple):
    """Tuples of L arrays."""

    keys_NWZK: tuple
    values_NWZK: tuple


def kernel_heads(config) -> tuple[int, int]:
    """Key/value heads as the TPU kernel sees them, and how many of the model's share one: 8 of 64 are (4, 2)."""
    fold = max(1, LANES // config.head_dim)
    return config.kv_heads // fold, fold


def page_size(pool) -> int:
    """Tokens of a page."""
    return pool[0][0].shape[suffix(pool._fields[0]).index("Z")]


def chosen(asked: str, platform: str, config, model: int = 1) -> str:
    """ "tpu" or "gpu", the kernel that attends, or "xla", which takes a row's pages side by side (pages.py).

    Args:
      asked: one of the three, or "": the platform's kernel where it can serve the model. model: devices over which the
        heads are cut.

    Raises: ValueError where a kernel that is asked for by name cannot serve the model.
    """
    kind = asked or (platform if platform in ("tpu", "gpu") else "xla")
    why = "" if kind == "xla" else fits(kind, config, model)
    if asked and why:
        raise ValueError(f"attention = {asked!r}: {why}")
    return "xla" if why else kind


def tokens_of_page(kind: str, config) -> int:
    """What a page has, where nobody says otherwise."""
    # xla copies pages; of 128 tokens a kernel loads 256 KiB of each pair of heads at a time.
    return {"xla": 32, "tpu": 128, "gpu": min(128, _most_tokens(config))}[kind]


def divides(kind: str, config, model: int) -> bool:
    """Whether each of so many devices has key/value heads of its own on its pages; else each has all."""
    return (kernel_heads(config)[0] if kind == "tpu" else config.kv_heads) % model == 0


def page_bytes(kind: str, config, size: int, model: int) -> int:
    """Bytes a device of one page of `size` tokens, in all layers."""
    heads = config.kv_heads // (model if divides(kind, config, model) else 1)
    return 2 * config.layers * heads * config.head_dim * size * jnp.dtype(config.dtype).itemsize


def fits(kind: str, config, model: int = 1) -> str:
    """Why the kernel cannot serve a model whose heads are cut over so many devices; "" where it can.

    kind: "tpu" or "gpu". Page sizes are the pools' affair.
    """
    dim, heads = config.head_dim, config.kv_heads
    width = jnp.dtype(config.dtype).itemsize
    if config.dtype not in ("bfloat16", "float32"):
        why = f"takes bfloat16 and float32, and the model computes in {config.dtype}"
    elif kind == "gpu" and (dim < 16 or dim & (dim - 1)):
        why = f"takes heads whose size is a power of two, at least 16, and the model's have {dim}"
    elif kind == "gpu" and any(config.windows):
        why = f"knows no sliding window, and the model has windows of {max(config.windows)}"
    elif kind == "tpu" and (dim > LANES or LANES % dim):
        why = f"takes heads of {LANES} values (or 64, 32, 16), and the model's have {dim}"
    elif kind == "tpu" and heads % kernel_heads(config)[1]:
        fold = kernel_heads(config)[1]
        why = f"takes {fold} heads of {dim} as one of {LANES}, and the model has {heads} key/value heads"
    elif kind == "tpu" and not _tiles(_local(kernel_heads(config)[0], model), width):
        mine = _local(kernel_heads(config)[0], model)
        why = f"takes 1, 2, 4 or a multiple of 8 key/value heads a device, and the model has {mine}"
    else:
        return ""
    return f'the {kind.upper()} kernel {why}: take attention="xla"'


def _local(heads: int, model: int) -> int:
    return heads if heads % model else heads // model


def _tiles(heads: int, width: int) -> bool:
    """Whether keys and values of so many heads fill whole tiles; 32 bits of a column are one unit."""
    units, rest = divmod(2 * heads * width, 4)
    return not rest and (units in (1, 2, 4, 8) or units % 8 == 0)


def tpu_pool(config, pages: int, size: int, model: int = 1) -> TpuPool:
    """Pages of `size` tokens with zeros on them. model: devices over which the heads are cut."""
    if why := fits("tpu", config, model):
        raise ValueError(why)
    heads, fold = kernel_heads(config)
    shape = pages, size, 2 * heads, fold * config.head_dim
    return TpuPool(tuple(jnp.zeros(shape, config.dtype) for _ in range(config.layers)))


def _most_tokens(config) -> int:
    """Tokens of a page that the GPU kernel loads as one."""
    return TILE_BYTES // (config.head_dim * jnp.dtype(config.dtype).itemsize)


def gpu_pool(config, pages: int, size: int, model: int = 1) -> GpuPool:
    """Pages of `size` tokens with zeros on them. model: devices over which the heads are cut."""
    if why := fits("gpu", config, model):
        raise ValueError(why)
    most = _most_tokens(config)
    if size & (size - 1) or size > most:
        raise ValueError(
            f"pages of {size} tokens: the GPU kernel takes powers of two up to {most} for heads of "
            f"{config.head_dim} in {config.dtype}"
        )
    shape = config.kv_heads, pages, size, config.head_dim
    keys, values = (tuple(jnp.zeros(shape, config.dtype) for _ in range(config.layers)) for _ in "kv")
    return GpuPool(keys, values)


@check
def tpu_write(layer, key_BTNK, value_BTNK, page_BT, place_BT):
    """The layer with token (b, t) at place `place_BT` of page `page_BT`."""
    (both_WZUI,) = layer
    # Per token N x (key, value) x K: as rows of 128 that is the order of the pool, also where heads share a row.
    shape = *page_BT.shape, both_WZUI.shape[2] // 2, both_WZUI.shape[3]
    both = jnp.stack([key_BTNK.reshape(shape), value_BTNK.reshape(shape)], axis=3)
    return (both_WZUI.at[page_BT, place_BT].set(both.reshape(*page_BT.shape, *both_WZUI.shape[2:])),)


@check
def gpu_write(layer, key_BTNK, value_BTNK, page_BT, place_BT):
    """The layer with token (b, t) at place `place_BT` of page `page_BT`."""
    return tuple(
        pool_NWZK.at[:, page_BT, place_BT].set(jnp.einsum("BTNK->NBTK", new_BTNK))
        for pool_NWZK, new_BTNK in zip(layer, (key_BTNK, value_BTNK), strict=True)
    )


@check
def tpu_attend(layer, query_BTHK, table_BP, start_B, scale, cap=None, window=0):
    """softmax(scale q k^T) v of queries at positions `start_B` + t over the row's positions up to their own.

    Args:
      layer: of a TpuPool; the keys and values of these T tokens are in it. start_B: int32.
      cap: a soft cap of the scores. window: sees only so many of the last tokens, its own included; 0: all.

    Returns: heads_BTHK; finite, and no more than that, for queries behind a row's last token.
    """
    (both_WZUI,) = layer
    size, width = both_WZUI.shape[1], both_WZUI.dtype.itemsize
    if window:
        table_BP, start_B = narrowed(table_BP, start_B, query_BTHK.shape[1], window, size)
    count = table_BP.shape[1]

    def attend(query_BTHK, layer, table_BP, start_B):
        (both_WZUI,) = layer
        rows, length, heads, dim = query_BTHK.shape
        combined = both_WZUI.shape[2]
        query = _spread(query_BTHK.reshape(-1, heads, dim), combined // 2, LANES // dim)
        # As the kernel does it: many heads are cut into blocks of 8 registers' rows.
        tile = 8 * 4 // width
        block = size * (tile if combined % tile == 0 else combined) * LANES * width
        out = tpu.ragged_paged_attention(
            query,
            both_WZUI,
            start_B + length,
            table_BP,
            jnp.arange(rows + 1, dtype=jnp.int32) * length,
            jnp.full(1, rows, jnp.int32),
            sm_scale=scale,
            soft_cap=cap,
            sliding_window=window or None,
            num_kv_pages_per_block=min(count, BLOCK_PAGES, max(1, BLOCK_BYTES // block)),
            num_queries_per_block=min(QUERIES, rows * length),
        )
        return _gather(out, combined // 2, dim).reshape(query_BTHK.shape)

    whole = functools.partial(_over_model, attend, layer=layer, axis=2, heads=both_WZUI.shape[2] // 2)
    # Rows of a table are padded to 128 entries of 4 bytes.
    most = max(1, TABLE_BYTES // (-(-count // 128) * 512))
    parts = [slice(first, first + most) for first in range(0, len(start_B), most)]
    return jnp.concatenate([whole(query_BTHK[at], rest=(table_BP[at], start_B[at])) for at in parts])


@check
def gpu_attend(layer, query_BTHK, table_BP, start_B, scale, cap=None, window=0):
    """As `tpu_attend`, of one token a row and without a window."""
    rows, length, _, dim = query_BTHK.shape
    if length != 1:
        raise ValueError(
            f"gpu_attend: the GPU kernel takes one query a row, and these are {length}: a prefill gathers its pages "
            "and takes transformer.attention"
        )
    if window:
        raise ValueError(
            f'gpu_attend: the GPU kernel knows no window, and this is {window}: take attention="xla"'
        )
    kv_heads, _, size, _ = layer[0].shape
    tile = min(TILE_TOKENS, TILE_BYTES // (dim * layer[0].dtype.itemsize))
    block = max(1, tile // size)
    # Enough programs for all processors, and none with more than 4,096 tokens. 64 rows x 8 heads with tables for 32,768
    # tokens: 8 a row. One row alone: 16.
    count = table_BP.shape[1]
    wanted = max(1024 // (rows * kv_heads), count * size // 4096)
    splits = max(1, min(SPLITS, wanted, -(-count // block)))
    table_BP = jnp.pad(table_BP, [(0, 0), (0, -count % (splits * block))])

    def attend(query_BTHK, layer, table_BP, start_B):
        out_BHK = gpu.paged_attention(
            # The kernel has no scale of its own.
            query_BTHK[:, 0] * scale,
            *layer,
            table_BP,
            start_B + 1,
            pages_per_compute_block=block,
            k_splits=splits,
            attn_logits_soft_cap=cap,
        )
        return out_BHK[:, None]

    return _over_model(attend, query_BTHK, layer=layer, axis=0, heads=kv_heads, rest=(table_BP, start_B))


@check
def gpu_rows(layer, table_BP):
    """Keys and values of rows side by side, [B, N, K, S] and [B, N, S, K], as `transformer.attention` takes them."""
    keys_NBPZK, values_NBPZK = (pool_NWZK[:, table_BP] for pool_NWZK in layer)
    heads, rows, pages, size, dim = keys_NBPZK.shape
    keys_BNKS = jnp.einsum("NBPZK->BNKPZ", keys_NBPZK).reshape(rows, heads, dim, pages * size)
    return keys_BNKS, jnp.einsum("NBPZK->BNPZK", values_NBPZK).reshape(rows, heads, pages * size, dim)


WRITE = {TpuPool: tpu_write, GpuPool: gpu_write}
ATTEND = {TpuPool: tpu_attend, GpuPool: gpu_attend}


def narrowed(table_BP, start_B, length: int, window: int, size: int):
    """The part of a table that `length` queries with a window see, and their start in it.

    Pages of 4, window 3, one query at position 9: it sees 7, 8, 9, pages 1 and 2; in their table it stands at 5.
    """
    first_B = jnp.maximum(start_B - window + 1, 0) // size
    # window + length - 1 tokens, which start anywhere on their first page.
    seen = min(table_BP.shape[1], (window + length - 3) // size + 2)
    index_BP = first_B[:, None] + jnp.arange(seen)[None]
    # Behind the table's end there is nothing that a row has: those keys stand after its queries.
    part_BP = jnp.take_along_axis(table_BP, jnp.minimum(index_BP, table_BP.shape[1] - 1), axis=1)
    return part_BP, start_B - first_B * size


def _spread(query_XHK, heads: int, fold: int):
    """Queries for heads that share a place: of [k0 k1] the first's are [q 0] and the second's [0 q]."""
    count, queries, dim = query_XHK.shape
    query = query_XHK.reshape(count, heads, fold, -1, 1, dim)
    mine = jnp.eye(fold, dtype=query.dtype).reshape(1, 1, fold, 1, fold, 1)
    return (query * mine).reshape(count, queries, fold * dim)


def _gather(out_XHK, heads: int, dim: int):
    """Of [v0 v1] each head's own part."""
    count, queries, lanes = out_XHK.shape
    fold = lanes // dim
    out = out_XHK.reshape(count, heads, fold, -1, fold, dim)
    return jnp.einsum("xnfqfk->xnfqk", out).reshape(count, queries, dim)


def _over_model(attend, query_BTHK, layer, axis: int, heads: int, rest):
    """`attend` on each device's own heads: the compiler cannot cut a kernel.

    All axes of the mesh in context that are not manual yet become so. Where "model" does not divide the key/value
    heads every device computes all of them.
    """
    mesh = jax.sharding.get_abstract_mesh()
    free = set(mesh.axis_names) - set(mesh.manual_axes)
    if not free:
        return attend(query_BTHK, layer, *rest)
    cut = "model" if "model" in free and heads % mesh.shape["model"] == 0 else None
    queries, pool = PartitionSpec(None, None, cut), PartitionSpec(*[None] * axis, cut)
    return jax.shard_map(
        attend,
        in_specs=(queries, pool, *(PartitionSpec() for _ in rest)),
        out_specs=queries,
        axis_names=free,
        # The kernels do not say over which axes what they make differs.
        check_vma=False,
    )(query_BTHK, layer, *rest)
