"""What the sampler tells of itself while it draws."""

import json
import os
import platform
import subprocess
import sys

import jax
import numpy as np
import pytest

from int_jax.engine import Engine
from int_jax.models import Config, build
from int_jax.sampler import Request, Sampling
from int_jax.sharding import make_mesh
from int_jax.watching import BANDWIDTH, Chunk, Meter

MODEL = build(Config("qwen3", 61, 16, 2, 4, 2, 8, 32, 256, qk_norm=True, tied=True))
PARAMS = MODEL.init(jax.random.key(0))


def made(data: int = 1, **sizes) -> Engine:
    return Engine(MODEL, make_mesh(data, 1, jax.devices()[:data]), slots=4 * data, decode_steps=4, **sizes)


@pytest.mark.parametrize("data", [1, 2])
@pytest.mark.parametrize("ahead", [False, True])
def test_chunks_tell_of_every_token_and_of_what_it_had_to_read(data, ahead):
    """Counted again from the responses: their tokens, and the keys and values before each of them."""
    engine, chunks = made(data, ahead=ahead), []
    engine.watch = chunks.append
    rng = np.random.default_rng(0)
    requests = [Request(tuple(rng.integers(0, 61, 1 + 7 * i).tolist()), "t", i) for i in range(9)]
    drawn = engine.generate(PARAMS, requests, Sampling(max_new_tokens=11, stop_ids=(3, 9)))
    lengths = [(len(request.prompt), len(got.tokens)) for request, got in zip(requests, drawn, strict=True)]
    tokens = sum(end - start for start, end in lengths)
    assert sum(chunk.tokens for chunk in chunks) == tokens == engine.take_drawn()
    # Float32: 2 layers, keys and values of 2 heads of 8. A token at position t reads those of t tokens, its own last
    # one's among them.
    cache = sum(2 * 2 * 2 * 8 * 4 * position for start, end in lengths for position in range(start, end))
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(PARAMS))
    steps, rest = divmod(sum(chunk.needed for chunk in chunks) - cache, weights)
    # Four rows a replica at most, and at least one in each step.
    assert not rest and tokens / 4 <= steps <= tokens
    assert sum(chunk.places for chunk in chunks) == 4 * steps
    assert all(chunk.seconds > 0 for chunk in chunks)


def test_weights_that_a_step_looks_up_are_not_read_whole():
    config = Config("qwen3", 61, 16, 2, 4, 2, 8, 32, 256)
    untied = build(config).init(jax.random.key(0))
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(untied))
    engine = Engine(build(config), make_mesh(1, 1, jax.devices()[:1]))
    assert engine.weight_bytes(untied) == whole - 61 * 16 * 4


def test_a_line_adds_up_chunks_and_the_rest_is_told_at_the_end():
    engine, lines = made(), []
    with Meter(engine, lines.append, every=10.0):
        for _ in range(5):
            engine.watch(Chunk(4.0, 30, 40, 8 * 10**9))
    assert engine.watch is None
    assert [line["seconds"] for line in lines] == [12.0, 8.0]
    assert [line["tokens"] for line in lines] == [90, 60]
    for line in lines:
        assert (line["tokens_per_s"], line["occupancy"], line["useful_gb_s"]) == (7.5, 0.75, 2.0)
        assert line["programs"] == 0 and "useful_bytes" not in line  # a CPU's bandwidth is not known


def test_useful_bytes_are_a_share_of_all_devices_bandwidth(monkeypatch):
    engine, lines = made(2), []
    monkeypatch.setitem(BANDWIDTH, engine.local.devices.flat[0].device_kind, 4e9)
    with Meter(engine, lines.append, every=0.0):
        engine.watch(Chunk(2.0, 1, 1, 8 * 10**9))
    assert lines[0]["useful_bytes"] == 0.5 and len(lines) == 1


@pytest.mark.parametrize("told", [{}, {"JAX_COMPILATION_CACHE_DIR": "elsewhere"}], ids=["default", "told"])
def test_a_second_process_compiles_nothing_again(tiny_dir, tmp_path, told):
    program = (
        "import sys, json, jax, int_jax\n"
        "made = []\n"
        "jax.monitoring.register_event_listener(lambda name, **_: made.append(name))\n"
        "lm = int_jax.load(sys.argv[1])\n"
        "[[trace]] = lm.generate([[1, 2, 3]], max_new_tokens=4)\n"
        "hits = made.count('/jax/compilation_cache/cache_hits')\n"
        "print(json.dumps([hits, jax.config.jax_compilation_cache_dir, trace.tokens.tolist()]))\n"
    )
    told = {name: str(tmp_path / value) for name, value in told.items()}
    keep = {k: v for k, v in os.environ.items() if not k.startswith("JAX_") and k != "XLA_FLAGS"}
    env = {**keep, "JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(tmp_path / "cache"), **told}
    found = [
        json.loads(
            subprocess.run(
                [sys.executable, "-c", program, str(tiny_dir)],
                env=env,
                check=True,
                capture_output=True,
                text=True,
            ).stdout.splitlines()[-1]
        )
        for _ in range(2)
    ]
    (before, folder, first), (after, again, second) = found
    assert (
        folder == again == (str(tmp_path / "elsewhere") if told else str(tmp_path / "cache/int_jax/programs"))
    )
    assert before == 0 < after and first == second


@pytest.mark.parametrize(
    ("told", "faults"), [({}, range(100)), ({"MALLOC_TOP_PAD_": "131072"}, range(1_000, 99_999))]
)
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another malloc")
def test_memory_is_kept_unless_malloc_is_told_otherwise(told, faults):
    """Pages of memory that a second block of 64 MiB takes from the system, in place of one that was freed."""
    program = (
        "import resource, int_jax.lm\n"
        "int_jax.lm.keep_memory()\n"
        "size = 2**26\n"  # not a constant, which would be made once
        "def faults():\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    b'x' * size\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before\n"
        "print(faults(), faults())\n"
    )
    names = ("MALLOC_", "GLIBC_TUNABLES")
    env = {k: v for k, v in os.environ.items() if not k.startswith(names)} | {"JAX_PLATFORMS": "cpu"} | told
    run = [sys.executable, "-c", program]
    said = subprocess.run(run, env=env, check=True, capture_output=True, text=True).stdout
    first, second = map(int, said.split())
    assert first > 1_000 and second in faults
