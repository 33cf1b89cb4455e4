"""Sampling with a kernel that attends over pages, interpreted, against the rows side by side ("xla")."""

import dataclasses

import jax
import numpy as np
import pytest
from interpreted import interpreted

from int_jax import sample
from int_jax.check import byte_tokenizer
from int_jax.engine import Engine
from int_jax.models import Config, build, kernels, pages
from int_jax.sampler import Request, Sampling, in_order
from int_jax.schedule import Schedule
from int_jax.sharding import make_mesh
from int_jax.tokenizer import Tokenizer

SIZE = 8  # tokens of a page
QWEN3 = Config("qwen3", 0, 32, 2, 4, 2, 16, 48, 256, qk_norm=True)
GEMMA3 = Config(
    "gemma3_text", 0, 32, 2, 4, 2, 128, 48, 256, tied=True, local_rope_theta=100.0, windows=(11, 0), qk_norm=True,
    post_norm=True, zero_centred=True, scaled_embedding=True, activation="gelu_tanh", query_scalar=24.0,
    attention_softcap=20.0, logit_softcap=30.0,
)  # fmt: skip
QWEN2 = Config("qwen2", 0, 32, 2, 4, 1, 32, 48, 256, qkv_bias=True, attention_softcap=20.0)
CASES = {
    "TPU, Qwen 3, four heads on one place": (
        "tpu", dataclasses.replace(QWEN3, layers=1, heads=8, kv_heads=4, head_dim=32),
    ),
    "TPU, Gemma 3": ("tpu", GEMMA3),
    "GPU, Qwen 3": ("gpu", QWEN3),
    "GPU, Qwen 2": ("gpu", QWEN2),
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def small_blocks():
    with pytest.MonkeyPatch.context() as patch, interpreted():
        patch.setattr(kernels, "BLOCK_PAGES", 2)
        patch.setattr(kernels, "QUERIES", 8)
        patch.setattr(kernels, "TILE_TOKENS", 2 * SIZE)
        yield


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return Tokenizer(byte_tokenizer.save(tmp_path_factory.mktemp("bytes")))


def made(config, vocab: int):
    """A model, and parameters under which the context matters."""
    model = build(dataclasses.replace(config, vocab=vocab))
    fresh = jax.jit(model.init)(jax.random.key(3))
    return model, {**fresh, "embed_VD": fresh["embed_VD"] * 50}


def prompts() -> list[tuple[int, ...]]:
    """Of 1 to 33 tokens; some go on from others, in the middle of a page, too."""
    ids = tuple(np.random.default_rng(0).integers(10, 90, 33).tolist())
    return [ids[:1], ids[:5], ids[:21], ids[:21] + ids[:3], ids, ids[5:30]]


REQUESTS = [
    Request(prompt, f"t{i}", sample, begin)
    for i, prompt in enumerate(prompts())
    for sample, begin in enumerate(("", "", "\n\n"))
]
SAMPLING = Sampling(max_new_tokens=20, temperature=0.9, top_p=0.95, stop_ids=tuple(range(60, 70)), seed=5)


def drawn(engine, params, requests, tokenizer, sampling=SAMPLING):
    """The responses, and the session's schedule."""
    session = engine.session(engine.decode_params(params), sampling, tokenizer)
    return in_order(session, requests), session.schedule


def equal(got, wanted):
    """The same tokens, to the last: what differs by rounding here is far from every tie."""
    for one, other in zip(got, wanted, strict=True):
        assert one.tokens.tolist() == other.tokens.tolist() and one.stop == other.stop
        np.testing.assert_allclose(one.logp, other.logp, atol=1e-5)


def make(model, attention, data=1, cut=1, **more) -> Engine:
    mesh = make_mesh(data, cut, jax.devices()[: data * cut])
    return Engine(model, mesh, 4, 8, attention=attention, page=SIZE, **more)


def plain(pool, config) -> tuple[np.ndarray, np.ndarray]:
    """Keys and values of every layer, [L, W, Z, N, K] both, whatever the pool's layout."""
    if isinstance(pool, pages.Pages):
        keys, values = np.stack(pool.keys_WNKZ), np.stack(pool.values_WNZK)
        return np.einsum("lwnkz->lwznk", keys), np.einsum("lwnzk->lwznk", values)
    if isinstance(pool, kernels.GpuPool):
        keys, values = np.stack(pool.keys_NWZK), np.stack(pool.values_NWZK)
        return np.einsum("lnwzk->lwznk", keys), np.einsum("lnwzk->lwznk", values)
    both = np.stack(pool.both_WZUI)
    shape = *both.shape[:3], config.kv_heads, config.head_dim
    return both[:, :, :, 0::2].reshape(shape), both[:, :, :, 1::2].reshape(shape)


SLOW = "TPU, Gemma 3", "GPU, Qwen 2"


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.slow if case in SLOW else ()) for case in CASES]
)
def test_a_kernel_draws_the_same_tokens_and_leaves_the_same_on_the_pages(case, tokenizer):
    """With prompts that share pages, texts to begin with, rows that end at different times, and more requests than
    rows. The schedule is one, so that every page has the same tokens; but page 0, which is scrap."""
    kind, config = CASES[case]
    model, params = made(config, tokenizer.vocab)
    # Few pages: each step of an interpreted kernel goes through all.
    few = [40 * kernels.page_bytes(one, config, SIZE, 1) / 2**30 for one in ("xla", kind)]
    oracle, engine = make(model, "xla", cache_gib=few[0]), make(model, kind, cache_gib=few[1])
    wanted, schedule = drawn(oracle, params, REQUESTS, tokenizer)
    assert {one.stop for one in wanted} == {"stop", "length"} and schedule.shared > schedule.prefilled
    equal(drawn(engine, params, REQUESTS, tokenizer)[0], wanted)
    pools = [one._kept[2] for one in (oracle, engine)]
    for there, here in zip(*(plain(pool, config) for pool in pools), strict=True):
        np.testing.assert_allclose(here[:, 1:], there[:, 1:], atol=2e-5)
        assert np.abs(there[:, 1:]).max() > 0.5
    assert len(engine.programs) < len(oracle.programs)


@pytest.mark.parametrize("kind", ["tpu", "gpu"])
def test_a_prefill_writes_its_real_tokens_and_no_padding(kind):
    """On pages that the rows have, too, and that nothing else will write over."""
    config = dataclasses.replace(QWEN3, layers=1, kv_heads=1, head_dim=128 if kind == "tpu" else 16)
    model, params = made(config, 99)
    pool = getattr(kernels, f"{kind}_pool")(config, 9, SIZE)
    table_BP = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 0]], np.int32)
    start_B, count_B = np.array([3, 0, 7], np.int32), np.array([9, 0, 1], np.int32)
    tokens_BT = np.arange(36, dtype=np.int32).reshape(3, 12)
    after = jax.jit(sample.prefill, static_argnums=(0, 7))(
        model, params, pool, tokens_BT, start_B, count_B, table_BP, 0
    )
    written = {(page, int(place)) for page, place in np.argwhere(plain(after, config)[0][0].any(axis=(2, 3)))}
    wanted = {
        (table_BP[b, t // SIZE], t % SIZE)
        for b in range(3)
        for t in range(start_B[b], (start_B + count_B)[b])
    }
    assert {one for one in written if one[0]} == wanted


@pytest.mark.parametrize("kind", [pytest.param("tpu", marks=pytest.mark.slow), "gpu"])
def test_rows_are_put_back_and_drawn_again_with_the_same_tokens(kind, tokenizer, monkeypatch):
    model, params = made(GEMMA3 if kind == "tpu" else QWEN3, tokenizer.vocab)
    some = REQUESTS[3:15]
    wanted, _ = drawn(make(model, "xla"), params, some, tokenizer)
    page = kernels.page_bytes(kind, model.config, SIZE, 1)
    engine = make(model, kind, cache_gib=12 * page / 2**30, ahead=True)
    # As if responses had been short so far: more is admitted than there are pages for.
    monkeypatch.setattr(Schedule, "_expected", lambda self, row: self.needs(len(row.tokens)))
    got, schedule = drawn(engine, params, some, tokenizer)
    assert schedule.put_back > 0 and schedule.pages == 12
    equal(got, wanted)


@pytest.mark.parametrize(
    ("kind", "heads", "cut"),
    [
        pytest.param("tpu", 2, 2, marks=pytest.mark.slow),
        pytest.param("tpu", 1, 4, marks=pytest.mark.slow),
        ("gpu", 2, 2),
        pytest.param("gpu", 1, 4, marks=pytest.mark.slow),
    ],
)
def test_nor_do_tokens_depend_on_the_mesh(kind, heads, cut, tokenizer):
    """Two replicas, heads cut over "model"; or one head, which each device has whole."""
    config = dataclasses.replace(QWEN3, kv_heads=heads, head_dim=128 if kind == "tpu" else 16)
    model, params = made(config, tokenizer.vocab)
    some = REQUESTS[3:9]
    wanted, _ = drawn(make(model, "xla"), params, some, tokenizer)
    engine = make(model, kind, 2, cut)
    equal(drawn(engine, params, some, tokenizer)[0], wanted)
    # A page is as large as is planned: whole where the heads do not divide.
    pool = engine._kept[2]
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(pool))
    count = engine._kept[1][0].count
    assert held == count * kernels.page_bytes(kind, config, SIZE, cut)
    assert kernels.divides(kind, config, cut) == (heads == 2)


def test_what_is_chosen_is_the_devices_kernel_where_it_can_serve_the_model():
    fine, odd = dataclasses.replace(QWEN3, head_dim=64), dataclasses.replace(QWEN3, head_dim=80)
    for platform, asked, config, kind in [
        ("cpu", "", fine, "xla"),
        ("tpu", "", fine, "tpu"),
        ("gpu", "", fine, "gpu"),
        ("tpu", "xla", fine, "xla"),
        ("cpu", "gpu", fine, "gpu"),
        ("tpu", "", odd, "xla"),
        ("gpu", "", odd, "xla"),
    ]:
        assert kernels.chosen(asked, platform, config) == kind
    with pytest.raises(ValueError, match=r"attention = 'gpu': the GPU kernel takes heads .* have 80"):
        make(build(dataclasses.replace(odd, vocab=9)), "gpu")
    assert Engine(build(dataclasses.replace(fine, vocab=9))).attention == "xla"


@pytest.mark.parametrize(
    ("kind", "dim", "dtype", "size"),
    [
        ("xla", 128, "bfloat16", 32),
        ("tpu", 128, "bfloat16", 128),
        ("gpu", 128, "bfloat16", 128),
        ("gpu", 256, "bfloat16", 128),
        ("gpu", 256, "float32", 64),
    ],
)
def test_a_page_is_as_long_as_suits_the_kernel(kind, dim, dtype, size):
    config = dataclasses.replace(QWEN3, head_dim=dim, dtype=dtype)
    assert kernels.tokens_of_page(kind, config) == size
    if kind == "gpu":
        kernels.gpu_pool(config, 2, size)


@pytest.mark.parametrize("kind", ["xla", "gpu"])
def test_a_prefill_that_gathers_pages_attends_to_so_many_tokens_at_most(tokenizer, kind, monkeypatch):
    """Its scores are of rows x width x what they attend to; the responses are the same."""
    model, params = made(QWEN3, tokenizer.vocab)
    programs, prefill = [], Engine.prefill

    def counted(self, params, pool, tokens_BT, start_B, count_B, table_BP, known):
        programs.append(len(tokens_BT) * (tokens_BT.shape[1] + known * self.page))
        return prefill(self, params, pool, tokens_BT, start_B, count_B, table_BP, known)

    monkeypatch.setattr(Engine, "prefill", counted)
    rng = np.random.default_rng(1)
    requests = [Request(tuple(rng.integers(10, 90, 70).tolist()), f"t{i}", 0) for i in range(16)]
    found = []
    for seen in (10_000, 500):
        sizes = {"slots": 16, "page": SIZE, "attention": kind, "prefill_width": 16, "prefill_seen": seen}
        engine = Engine(model, make_mesh(1, 1, jax.devices()[:1]), decode_steps=4, cache_gib=1e-3, **sizes)
        programs.clear()
        found.append([one.tokens.tolist() for one in engine.generate(params, requests, Sampling(4))])
        assert (max(programs) <= 500) == (seen == 500)
    assert found[0] == found[1]
