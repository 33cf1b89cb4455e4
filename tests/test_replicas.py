"""Replicas: what lies along "data" draws by itself. Read in the compiled programs, and shown by its tokens."""

import itertools
import re

import jax
import numpy as np
import pytest

from int_jax.engine import Engine
from int_jax.models import Config, build
from int_jax.sampler import Request, Sampling
from int_jax.sharding import make_mesh

COLLECTIVES = "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-broadcast"
PERMUTES = "collective-permute", "ragged-all-to-all"


def config(vocab: int) -> Config:
    # Four key/value heads: "model" cuts them in all of these meshes.
    return Config("qwen3", vocab, 32, 2, 4, 4, 8, 64, 256, qk_norm=True, tied=True)


def made(vocab: int, data: int, model: int, **sizes) -> Engine:
    mesh = make_mesh(data, model, jax.devices()[: data * model])
    return Engine(build(config(vocab)), mesh, slots=4 * data, decode_steps=8, **sizes)


@pytest.fixture(scope="module")
def params():
    """Those of each size of the vocabulary; the context matters."""
    fresh = {vocab: build(config(vocab)).init(jax.random.key(3)) for vocab in (264, 301, 512)}
    return {vocab: {**one, "embed_VD": one["embed_VD"] * 10} for vocab, one in fresh.items()}


RNG = np.random.default_rng(0)
# Of 90 tokens whole pages are shared, and a part of one: a page is copied.
LONG = [int(token) for token in RNG.integers(0, 264, 90)]
REQUESTS = [Request((*LONG[:80], *LONG[: i % 3]), f"task-{i % 3}", i) for i in range(9)]
REQUESTS += [Request(tuple(LONG[i : i + 5]), "short", i) for i in range(14)]
FILTERED = Sampling(max_new_tokens=20, temperature=0.9, top_k=50, top_p=0.95, stop_ids=(7, 23), seed=5)
# Meshes add up in another order: a number that lies within rounding of the bound of two tokens may draw either. With
# few likely tokens there are few such bounds.
PLAIN = Sampling(max_new_tokens=20, temperature=0.5, stop_ids=(7, 23), seed=5)


def groups(line: str) -> list[list[int]]:
    """The devices of each group of a collective: {{0,1},{2,3}}, or an array of them such as [2,2]<=[4]."""
    if listed := re.search(r"replica_groups=\{(.*?)\}[,\s]", line):
        return [[int(i) for i in group.split(",")] for group in re.findall(r"\{?([\d,]+)\}?", listed[1])]
    shape, dims, order = re.search(
        r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line
    ).groups()
    whole = [int(i) for i in dims.split(",")]
    ids = np.arange(np.prod(whole)).reshape(whole)
    ids = ids.transpose([int(i) for i in order.split(",")]) if order else ids
    return ids.reshape([int(i) for i in shape.split(",")]).tolist()


def computations(text: str) -> dict[str, list[str]]:
    """The lines of each computation of a compiled program."""
    found: dict[str, list[str]] = {}
    name = ""
    for line in text.splitlines():
        if begun := re.match(r"(?:ENTRY )?%?([\w.-]+) .*\{$", line):
            found[name := begun[1]] = []
        elif name:
            found[name].append(line)
    return found


def is_one(line: str, kinds) -> bool:
    return bool(re.search(rf"= .*\b({'|'.join(kinds)})(-start)?\(", line))


def programs(engine: Engine, params, sampling: Sampling, monkeypatch) -> dict[str, list[str]]:
    """The text of each program that draws those requests."""
    texts: dict[str, list[str]] = {}
    call = engine._call

    def listening(function, *args, mesh=None, **kwargs):
        if function.__name__ in ("_prefill", "_copy", "_decode"):
            with jax.sharding.set_mesh(mesh):
                text = function.lower(*args, **kwargs).compile().as_text()
            texts.setdefault(function.__name__, []).append(text)
        return call(function, *args, mesh=mesh, **kwargs)

    monkeypatch.setattr(engine, "_call", listening)
    engine.generate(engine.decode_params(params), REQUESTS, sampling)
    return texts


@pytest.mark.parametrize(
    "vocab, data, model",
    [
        (301, 2, 2),
        (512, 2, 4),
        pytest.param(264, 2, 2, marks=pytest.mark.slow),
        pytest.param(512, 4, 2, marks=pytest.mark.slow),
    ],
)
def test_nothing_is_exchanged_along_data(params, vocab, data, model, monkeypatch):
    """Also where no axis of "model" divides the vocabulary, or its parts are no whole bins."""
    texts = programs(made(vocab, data, model), params[vocab], FILTERED, monkeypatch)
    assert set(texts) == {"_prefill", "_copy", "_decode"}
    mine = [{*range(first, first + model)} for first in range(0, data * model, model)]
    met = 0
    for line in itertools.chain(*(text.splitlines() for some in texts.values() for text in some)):
        # On CPU all devices meet in one of these, whoever exchanges: replicas do unequal numbers of steps.
        assert not is_one(line, PERMUTES), line
        if is_one(line, COLLECTIVES):
            met += 1
            assert all(any({*group} <= devices for devices in mine) for group in groups(line)), line
    assert met  # along "model" there are some: they are found


@pytest.mark.parametrize("vocab, data, model", [(264, 2, 2), (512, 2, 4)])
def test_the_thresholds_of_filters_exchange_nothing_a_pass(params, vocab, data, model, monkeypatch):
    for text in programs(made(vocab, data, model), params[vocab], FILTERED, monkeypatch)["_decode"]:
        parts = computations(text)
        bodies = [
            re.search(r"body=%?([\w.-]+)", line)[1]
            for line in itertools.chain(*parts.values())
            if " while(" in line and '"known_trip_count":{"n":"32"}' in line
        ]
        assert len(bodies) >= 2  # top-k and top-p
        for body in bodies:
            assert not any(is_one(line, COLLECTIVES + PERMUTES) for line in parts[body])


@pytest.mark.parametrize("sampling", [FILTERED, PLAIN], ids=["filtered", "plain"])
@pytest.mark.parametrize(
    "vocab, data, model",
    [
        *((264, 2, 2), (301, 2, 2), (512, 2, 4), (512, 8, 1)),
        pytest.param(512, 4, 2, marks=pytest.mark.slow),
    ],
)
def test_tokens_do_not_depend_on_the_mesh(params, vocab, data, model, sampling):
    def drawn(engine):
        got = engine.generate(engine.decode_params(params[vocab]), REQUESTS, sampling)
        return [response.tokens.tolist() for response in got]

    assert drawn(made(vocab, data, model)) == drawn(made(vocab, 1, 1))
