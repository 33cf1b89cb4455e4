"""Keys and values on pages, and rows of them side by side.

A pool has pages of some tokens each; a row's table says on which pages its keys and values lie, one after another. Page
0 is scrap: what belongs nowhere is written there, and nothing reads it.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from int_jax.dims import check, suffix


class Pages(NamedTuple):
    """A pool: tuples of L arrays.

    Keys end in the position and values in the head, as in `View`.
    """

    keys_WNKZ: tuple
    values_WNZK: tuple


class View(NamedTuple):
    """The keys and values of some rows side by side, with room for new tokens behind: tuples of L arrays.

    Keys end in the position and values in the head, so that both products of a decoding step read memory in order:
    on CPU 2.6x (S = 96) to 5.3x (S = 256) as fast as with [B, S, N, K] for both. Rows stand at different positions,
    so writing each new token behind its row's last one would be a scatter a layer and step. Here all rows write at one
    index, and `file` moves what has gathered to the pages.

    Attributes:
      start_B: known tokens of each row: places 0 .. start - 1 hold its first tokens, those up to the new ones nothing.
      new_C: int32, 0, 1, 2 ...: the last C places are for new tokens; the i-th holds the row's token start + i.
      count: new tokens so far.
    """

    keys_BNKS: tuple
    values_BNSK: tuple
    start_B: Any
    new_C: Any
    count: Any

    def taking(self, count_B) -> "View":
        """See `Paged.taking`: it keeps the others, too, until `filed` leaves them out."""
        return self

    def after(self, layers, count: int) -> "View":
        """It after `count` more tokens; (keys, values) of each layer."""
        keys, values = zip(*layers, strict=True)
        return self._replace(keys_BNKS=keys, values_BNSK=values, count=self.count + count)


class Paged(NamedTuple):
    """Rows of a pool that a kernel reads and writes in place (kernels.py).

    Attributes:
      pool: kernels.TpuPool or GpuPool. table_BP: pages of each row, with room for its new tokens.
      count_B: how many of the tokens that come next are real: none of a row that does not run. The others go to the
        scrap page.
    """

    pool: Any
    table_BP: Any
    count_B: Any

    def taking(self, count_B) -> "Paged":
        """It, where only the first `count_B` of the next tokens are real."""
        return self._replace(count_B=count_B.astype(jnp.int32))

    def after(self, layers, count: int) -> "Paged":
        """It after `count` more tokens; the arrays of each layer."""
        return self._replace(pool=type(self.pool)(*zip(*layers, strict=True)))


def empty_pages(config, pages: int, size: int) -> Pages:
    """Pages of `size` tokens with nothing on them."""
    heads, dim = config.kv_heads, config.head_dim
    keys, values = (pages, heads, dim, size), (pages, heads, size, dim)
    return Pages(*(tuple(jnp.zeros(s, config.dtype) for _ in range(config.layers)) for s in (keys, values)))


def rows_of(pool, table_BP, known: int, start_B, room: int) -> View | Paged:
    """Some rows of a pool, as a model reads and extends them: their first `start_B` tokens, which `known` pages of each
    hold at most, and room for so many new ones. Of a kernel's pool nothing is copied, and `known` says nothing."""
    if isinstance(pool, Pages):
        return view(pool, table_BP[:, :known], start_B, room)
    return Paged(pool, table_BP, jnp.zeros_like(start_B))


def filed(pool, rows: View | Paged, table_BP, count_B):
    """The pool with the first `count_B` of the new tokens of each row on its pages; a kernel's has them already."""
    return rows.pool if isinstance(rows, Paged) else file(pool, rows, table_BP, count_B)


@check
def view(pool: Pages, table_BP, start_B, room: int) -> View:
    """Rows taken from their pages, with room for so many new tokens."""
    rows, pages = table_BP.shape
    _, heads, dim, size = pool.keys_WNKZ[0].shape

    def keys(pool_WNKZ):
        row_BNKS = jnp.einsum("BPNKZ->BNKPZ", pool_WNKZ[table_BP]).reshape(rows, heads, dim, pages * size)
        return jnp.pad(row_BNKS, [(0, 0)] * 3 + [(0, room)])

    def values(pool_WNZK):
        row_BNSK = jnp.einsum("BPNZK->BNPZK", pool_WNZK[table_BP]).reshape(rows, heads, pages * size, dim)
        return jnp.pad(row_BNSK, [(0, 0)] * 2 + [(0, room), (0, 0)])

    return View(
        tuple(map(keys, pool.keys_WNKZ)),
        tuple(map(values, pool.values_WNZK)),
        start_B,
        jnp.arange(room),
        jnp.int32(0),
    )


def places(table_BP, position_BT, real_BT, size: int):
    """The page and the place on it of each token at `position_BT`; on the scrap page for those that are not real."""
    index_BT = jnp.minimum(position_BT // size, table_BP.shape[1] - 1)
    page_BT = jnp.where(real_BT, jnp.take_along_axis(table_BP, index_BT, axis=1), 0)
    return page_BT, position_BT % size


def file(pool: Pages, rows: View, table_BP, count_B) -> Pages:
    """What rows have side by side, back onto their pages: the first `count_B` of their new tokens."""
    size, base = pool.keys_WNKZ[0].shape[3], rows.values_BNSK[0].shape[2] - len(rows.new_C)
    new_BT = jnp.broadcast_to(rows.new_C[None], (len(count_B), len(rows.new_C)))
    position_BT = rows.start_B[:, None] + new_BT
    page_BT, place_BT = places(table_BP, position_BT, new_BT < count_B[:, None], size)

    def keys(pool_WNKZ, row_BNKS):
        new_BTNK = jnp.einsum("BNKT->BTNK", row_BNKS[..., base:])
        return pool_WNKZ.at[page_BT, :, :, place_BT].set(new_BTNK)

    def values(pool_WNZK, row_BNSK):
        new_BTNK = jnp.einsum("BNTK->BTNK", row_BNSK[:, :, base:])
        return pool_WNZK.at[page_BT, :, place_BT].set(new_BTNK)

    return Pages(
        tuple(map(keys, pool.keys_WNKZ, rows.keys_BNKS)),
        tuple(map(values, pool.values_WNZK, rows.values_BNSK)),
    )


def copy(pool, from_B, to_B):
    """The pool with some pages copied onto others; 0 onto 0 where there are fewer than B. Of any layout that has its
    pages on the axis W."""
    return jax.tree_util.tree_map_with_path(
        lambda path, array: _copied(array, suffix(path[0].name).index("W"), from_B, to_B), pool
    )


def _copied(array, axis: int, from_B, to_B):
    where = (slice(None),) * axis
    return array.at[(*where, to_B)].set(array[(*where, from_B)])
