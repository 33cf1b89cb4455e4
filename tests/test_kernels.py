"""Attention over pages: jax's kernels for TPU and GPU, interpreted, against a softmax over plain rows in float64."""

import dataclasses
import functools

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from interpreted import interpreted
from jax.sharding import NamedSharding, PartitionSpec

from int_jax.models import Config, kernels
from int_jax.sharding import make_mesh

SIZE, PAGES, COUNT, ROWS = 8, 24, 6, 3  # tokens of a page, pages of the pool and of a table, rows
SHARED = 2  # the first pages of the first two rows may be the same
SCALE = 0.3


@pytest.fixture(scope="module", autouse=True)
def small_blocks():
    """The kernels interpreted, and in parts even over these tables: two pages, two queries and two rows at a time."""
    with pytest.MonkeyPatch.context() as patch, interpreted():
        patch.setattr(kernels, "BLOCK_PAGES", 2)
        patch.setattr(kernels, "QUERIES", 2)
        patch.setattr(kernels, "TABLE_BYTES", 1024)
        patch.setattr(kernels, "TILE_TOKENS", 16)
        yield


def config(heads, kv_heads, dim, dtype="float32", **more) -> Config:
    return Config("qwen3", 99, 32, 1, heads, kv_heads, dim, 64, 512, dtype=dtype, **more)


@dataclasses.dataclass
class Rows:
    """Plain rows, and where they lie on pages."""

    query_BTHK: np.ndarray
    key_BSNK: np.ndarray
    value_BSNK: np.ndarray
    table_BP: np.ndarray
    start_B: np.ndarray

    @property
    def tokens(self) -> int:
        return self.query_BTHK.shape[1]


def rows(config: Config, tokens: int, seed: int, starts, shared: bool) -> Rows:
    random = np.random.default_rng(seed)
    normal = lambda *shape: random.normal(size=shape).astype(config.dtype)
    sizes = ROWS, COUNT * SIZE, config.kv_heads, config.head_dim
    key_BSNK, value_BSNK = normal(*sizes), normal(*sizes)
    # Page 0 is scrap. A row has the pages that its tokens need, and zeros behind them.
    table_BP = random.permutation(np.arange(1, PAGES))[: ROWS * COUNT].reshape(ROWS, COUNT).astype(np.int32)
    if shared:
        table_BP[1, :SHARED] = table_BP[0, :SHARED]
        for array in (key_BSNK, value_BSNK):
            array[1, : SHARED * SIZE] = array[0, : SHARED * SIZE]
    start_B = np.asarray(starts, np.int32)
    needed_B = -(-(start_B + tokens) // SIZE)
    table_BP[np.arange(COUNT)[None] >= needed_B[:, None]] = 0
    query_BTHK = normal(ROWS, tokens, config.heads, config.head_dim)
    return Rows(query_BTHK, key_BSNK, value_BSNK, table_BP, start_B)


def filled(kind: str, config: Config, of: Rows, rest: float = 0.0) -> tuple:
    """A layer with these rows on its pages; everything else on them is `rest`."""
    make, write = (getattr(kernels, f"{kind}_{name}") for name in ("pool", "write"))
    layer = tuple(jnp.full_like(array[0], rest) for array in make(config, PAGES, SIZE))
    place_BS = np.broadcast_to(np.arange(COUNT * SIZE)[None], (ROWS, COUNT * SIZE))
    page_BS = np.take_along_axis(of.table_BP, place_BS // SIZE, axis=1)
    # Only what a row has; the others write to the scrap page, as padding does.
    page_BS = np.where(place_BS < (of.start_B + of.tokens)[:, None], page_BS, 0)
    return write(layer, jnp.asarray(of.key_BSNK), jnp.asarray(of.value_BSNK), page_BS, place_BS % SIZE)


@functools.cache
def compiled(kind: str, cap, window: int):
    """Once a kind and setting: a hypothesis test calls it with one shape many times."""
    attend = getattr(kernels, f"{kind}_attend")
    return jax.jit(functools.partial(attend, scale=SCALE, cap=cap, window=window))


def expected(of: Rows, cap, window: int) -> np.ndarray:
    """softmax(scale q k^T) v in float64, one query at a time."""
    out = np.zeros(of.query_BTHK.shape)
    group = of.query_BTHK.shape[2] // of.key_BSNK.shape[2]
    for row, t, head in np.ndindex(*out.shape[:3]):
        last = of.start_B[row] + t
        seen = slice(max(0, last - window + 1) if window else 0, last + 1)
        key_SK, value_SK = (a[row, seen, head // group].astype(float) for a in (of.key_BSNK, of.value_BSNK))
        score_S = SCALE * key_SK @ of.query_BTHK[row, t, head].astype(float)
        if cap is not None:
            score_S = cap * np.tanh(score_S / cap)
        weight_S = np.exp(score_S - score_S.max())
        out[row, t, head] = weight_S @ value_SK / weight_S.sum()
    return out


CASES = {
    "decoding": ("tpu", config(4, 2, 128), 1, None, 0),
    "a chunk": ("tpu", config(2, 1, 128), 3, None, 0),
    "a window": ("tpu", config(4, 2, 128), 1, None, 11),
    "a chunk, two heads on one place, a window, a cap": ("tpu", config(4, 2, 64), 3, 2.0, 5),
    "four heads on one place": ("tpu", config(8, 4, 32), 1, None, 0),
    "bfloat16": ("tpu", config(6, 2, 128, "bfloat16"), 1, None, 0),
    "GPU": ("gpu", config(4, 2, 64), 1, None, 0),
    "GPU, a cap": ("gpu", config(4, 1, 16), 1, 2.0, 0),
    "GPU, bfloat16": ("gpu", config(6, 2, 32, "bfloat16"), 1, None, 0),
}


def starts(tokens: int):
    return st.lists(st.integers(0, COUNT * SIZE - tokens), min_size=ROWS, max_size=ROWS)


@pytest.mark.parametrize("case", CASES)
@given(st.data())
@settings(max_examples=12)
def test_it_is_the_softmax_over_the_rows_own_tokens(case, data):
    kind, sizes, tokens, cap, window = CASES[case]
    shared = data.draw(st.booleans())
    # Rows that share a prefix have it whole.
    of = rows(sizes, tokens, data.draw(st.integers(0, 99)), data.draw(starts(tokens)), False)
    if shared:
        first = np.maximum(of.start_B, [SHARED * SIZE, SHARED * SIZE, 0])
        of = rows(sizes, tokens, data.draw(st.integers(0, 99)), first, True)
    layer = filled(kind, sizes, of)
    got = compiled(kind, cap, window)(layer, jnp.asarray(of.query_BTHK), of.table_BP, of.start_B)
    assert got.dtype == sizes.dtype and got.shape == of.query_BTHK.shape
    # The GPU kernel keeps the sums of its parts in bfloat16 where the queries are.
    exact = {"float32": 2e-5, "bfloat16": 2e-2}[sizes.dtype]
    np.testing.assert_allclose(np.asarray(got, float), expected(of, cap, window), rtol=exact, atol=exact)


@pytest.mark.parametrize("case", ["decoding", "a chunk, two heads on one place, a window, a cap", "GPU"])
def test_nothing_else_on_the_pages_matters_and_no_other_row(case):
    kind, sizes, tokens, cap, window = CASES[case]
    of = rows(sizes, tokens, 0, [3, 17, 40], False)
    call = compiled(kind, cap, window)
    plain = call(filled(kind, sizes, of), jnp.asarray(of.query_BTHK), of.table_BP, of.start_B)
    # Large but finite, as the memory of another row may be.
    other = call(filled(kind, sizes, of, rest=1e9), jnp.asarray(of.query_BTHK), of.table_BP, of.start_B)
    np.testing.assert_array_equal(plain, other)
    turn = [2, 0, 1]
    turned = call(
        filled(kind, sizes, of), jnp.asarray(of.query_BTHK[turn]), of.table_BP[turn], of.start_B[turn]
    )
    np.testing.assert_array_equal(plain[jnp.asarray(turn)], turned)


@pytest.mark.parametrize("kind", ["tpu", "gpu"])
def test_padding_and_idle_rows_are_finite(kind):
    """A chunk longer than the row has room for; a row with no page at all."""
    sizes, tokens = config(2, 1, 128), 3 if kind == "tpu" else 1
    of = rows(sizes, tokens, 0, [0, 20, COUNT * SIZE - tokens], False)
    of.table_BP[0] = 0
    start_B = of.start_B + np.asarray([0, 0, 2 if kind == "tpu" else 0], np.int32)
    layer = filled(kind, sizes, of, rest=1e9)
    got = compiled(kind, None, 0)(layer, jnp.asarray(of.query_BTHK), of.table_BP, start_B)
    assert np.isfinite(np.asarray(got)).all()


@pytest.mark.parametrize("model", [2, 4])
@pytest.mark.parametrize("kind", ["tpu", "gpu"])
@pytest.mark.usefixtures("optimized")
def test_heads_are_cut_over_model(kind, model):
    """Inside a program that is manual over "data" alone, as the engine's are: the same bits, no collective where the
    key/value heads divide, and all heads everywhere where they do not."""
    sizes, tokens = config(4, 2, 128), 1
    of = rows(sizes, tokens, 0, [3, 17, 40], False)
    layer = filled(kind, sizes, of)
    want = compiled(kind, None, 0)(layer, jnp.asarray(of.query_BTHK), of.table_BP, of.start_B)
    mesh = make_mesh(8 // model, model)
    # A row of replicas in front, cut over "data": each draws the same.
    many = jax.tree.map(
        lambda x: jnp.stack([x] * (8 // model)), (layer, of.query_BTHK, of.table_BP, of.start_B)
    )

    def replica(args):
        layer, *rest = jax.tree.map(lambda x: x[0], args)
        return getattr(kernels, f"{kind}_attend")(layer, *rest, SCALE)[None]

    data = PartitionSpec("data")
    cut = jax.shard_map(
        replica, mesh=mesh, in_specs=data, out_specs=data, axis_names={"data"}, check_vma=False
    )
    # As the engine places them: four devices cannot share two heads.
    whole = "model" if model == 2 else None
    pool = {"tpu": PartitionSpec("data", None, None, whole), "gpu": PartitionSpec("data", whole)}[kind]
    where = pool, PartitionSpec("data", None, None, whole), data, data
    placed = [jax.device_put(x, NamedSharding(mesh, spec)) for x, spec in zip(many, where, strict=True)]
    program = jax.jit(cut).lower(placed).compile()
    got = program(placed)
    for replicas in got:
        np.testing.assert_array_equal(replicas, want)
    text = program.as_text()
    assert not any(word in text for word in ("all-reduce", "all-gather", "all-to-all", "collective-permute"))


@pytest.mark.parametrize(
    ("length", "window", "size"), [(1, 1, 4), (1, 7, 4), (1, 8, 4), (1, 9, 4), (5, 3, 2), (2, 9, 1)]
)
@given(st.lists(st.integers(0, 60), min_size=4, max_size=4))
@settings(max_examples=20)
def test_a_narrowed_table_has_what_a_window_sees(length, window, size, starts):
    start_B = np.asarray(starts, np.int32)
    count = -(-(60 + length) // size)
    table_BP = np.arange(len(starts) * count, dtype=np.int32).reshape(-1, count)
    part_BP, new_B = kernels.narrowed(table_BP, start_B, length, window, size)
    assert part_BP.shape[1] <= -(-(window + length - 1) // size) + 1
    for row, (old, new) in enumerate(zip(start_B, new_B, strict=True)):
        for back in range(min(window, old + 1)):
            for t in (0, length - 1):
                place, there = old + t - back, int(new) + t - back
                if place >= 0 and back < window:
                    assert part_BP[row, there // size] == table_BP[row, place // size]
                    assert there % size == place % size


@pytest.mark.parametrize(
    ("kind", "sizes", "model", "why"),
    [
        ("tpu", config(32, 8, 128, "bfloat16"), 1, ""),
        ("tpu", config(32, 8, 128, "bfloat16"), 8, ""),
        ("tpu", config(32, 8, 128), 16, ""),  # does not divide: all heads everywhere
        ("tpu", config(14, 2, 64, "bfloat16"), 1, ""),
        ("tpu", config(9, 3, 64, "bfloat16"), 1, "2 heads of 64 as one of 128, and the model has 3"),
        (
            "tpu",
            config(4, 1, 256, "bfloat16"),
            1,
            "heads of 128 values (or 64, 32, 16), and the model's have 256",
        ),
        ("tpu", config(32, 8, 80, "bfloat16"), 1, "heads of 128 values"),
        ("tpu", config(24, 6, 128, "bfloat16"), 1, "1, 2, 4 or a multiple of 8 key/value heads a device"),
        ("tpu", config(24, 6, 128, "bfloat16"), 3, ""),
        ("tpu", config(4, 2, 128, "float16"), 1, "bfloat16 and float32"),
        ("gpu", config(32, 8, 128, "bfloat16"), 1, ""),
        ("gpu", config(9, 3, 64), 3, ""),
        ("gpu", config(4, 1, 256, "bfloat16"), 1, ""),
        ("gpu", config(32, 8, 80, "bfloat16"), 1, "a power of two, at least 16, and the model's have 80"),
        (
            "gpu",
            config(4, 1, 256, windows=(512, 0)),
            1,
            "no sliding window, and the model has windows of 512",
        ),
    ],
)
def test_what_a_kernel_can_serve(kind, sizes, model, why):
    said = kernels.fits(kind, sizes, model)
    assert why in said if why else not said
    if why:
        assert 'take attention="xla"' in said
        with pytest.raises(ValueError, match=f"the {kind.upper()} kernel"):
            getattr(kernels, f"{kind}_pool")(sizes, 4, 16)


def test_what_the_gpu_kernel_refuses():
    with pytest.raises(ValueError, match="pages of 48 tokens: the GPU kernel takes powers of two up to 128"):
        kernels.gpu_pool(config(4, 2, 128), 4, 48)
    with pytest.raises(ValueError, match="pages of 256 tokens"):
        kernels.gpu_pool(config(4, 2, 128), 4, 256)
    layer = tuple(array[0] for array in kernels.gpu_pool(config(4, 2, 128), 4, 16))
    query, table_BP, start_B = (
        jnp.zeros((1, 2, 4, 128)),
        jnp.zeros((1, 2), jnp.int32),
        jnp.zeros(1, jnp.int32),
    )
    with pytest.raises(ValueError, match="takes one query a row, and these are 2"):
        kernels.gpu_attend(layer, query, table_BP, start_B, SCALE)
    with pytest.raises(ValueError, match="knows no window, and this is 4"):
        kernels.gpu_attend(layer, query[:, :1], table_BP, start_B, SCALE, window=4)
