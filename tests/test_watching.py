"""What the sampler tells of itself while it draws."""

import dataclasses
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_rollouts import Chance
from test_while_it_trains import reinforced
from trees import assert_same

from int_jax import roofline
from int_jax.batching import pack, supervised
from int_jax.domains.arithmetic import Arithmetic
from int_jax.engine import Engine
from int_jax.models import Config, build
from int_jax.report import writers
from int_jax.roofline import Shape, training_flops
from int_jax.sampler import Request, Sampling
from int_jax.sharding import make_mesh
from int_jax.watching import PARTS, Chunk, Meter, Split

MODEL = build(Config("qwen3", 61, 16, 2, 4, 2, 8, 32, 256, qk_norm=True, tied=True))
PARAMS = MODEL.init(jax.random.key(0))


def made(data: int = 1, **sizes) -> Engine:
    return Engine(MODEL, make_mesh(data, 1, jax.devices()[:data]), slots=4 * data, decode_steps=4, **sizes)


def known_as(monkeypatch, engine, **figures) -> None:
    """Let the engine's devices be in the table, with these figures."""
    kind = engine.device.device_kind
    monkeypatch.setitem(
        roofline.DEVICES, kind, dataclasses.replace(roofline.NAMES["h200"], kind=kind, **figures)
    )


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
    known_as(monkeypatch, engine, bandwidth=4e9)
    with Meter(engine, lines.append, every=0.0):
        engine.watch(Chunk(2.0, 1, 1, 8 * 10**9))
    assert lines[0]["useful_bytes"] == 0.5 and len(lines) == 1


# --- updates ---


def test_the_operations_of_training_are_those_of_the_compiled_program():
    """One layer: of a loop the compiler counts one turn alone. It computes the whole square of scores, and what is
    beside the matrices (norms, RoPE, softmax) is little of it."""
    for tied in (True, False):
        config = Config("qwen3", 512, 256, 1, 4, 2, 64, 768, 512, qk_norm=True, tied=tied)
        model = build(config)
        tokens_BT, positions_BT = (jax.ShapeDtypeStruct((2, 256), jnp.int32) for _ in range(2))
        params = jax.eval_shape(model.init, jax.random.key(0))

        def loss(params, tokens_BT, positions_BT, model=model):
            hidden_BTD, _ = model.apply(params, tokens_BT, positions_BT)
            return jnp.square(hidden_BTD @ model.head_DV(params)).sum()

        compiled = jax.jit(jax.grad(loss)).lower(params, tokens_BT, positions_BT).compile()
        counted = training_flops(Shape.of(config), 2 * 256, 2 * 256**2)
        assert compiled.cost_analysis()["flops"] == pytest.approx(counted, rel=0.06)
        assert Shape.of(config).parameters == sum(
            leaf.size
            for name, leaf in params.items()
            if tied or name != "embed_VD"
            for leaf in jax.tree.leaves(leaf)
        )


def packed(*lengths: int):
    return pack([supervised(np.ones(n, np.int32), np.ones(n)) for n in lengths], 16, 2)


def test_an_update_tells_what_it_trained_and_how_long_each_part_took(monkeypatch):
    clock = iter(range(0, 10_000))
    monkeypatch.setattr("time.perf_counter", lambda: float(next(clock)))
    engine, split = made(2), Split()
    known_as(monkeypatch, engine, flops=1e9)
    for _ in range(3):
        next(clock)
    split.lap("save")  # 4 s since it began
    for _ in range(9):
        next(clock)
    split.drew(7.0)  # of 10 s
    split.begin(packed(16, 5, 9))  # 1 s
    split.lap("update")
    split.begin(packed(3))
    split.lap("update")
    line = split.line(engine)
    assert {part: line[f"seconds/{part}"] for part in PARTS} == {
        **{"save": 4.0, "sample": 7.0, "grade": 3.0, "pack": 2.0, "update": 2.0}
    }
    tokens, seen = 16 + 5 + 9 + 3, sum(n * (n + 1) // 2 for n in (16, 5, 9, 3))
    assert line["trained_tokens_per_s"] == tokens / 2.0
    assert line["flops_used"] == training_flops(Shape.of(MODEL.config), tokens, seen) / 2.0 / (2 * 1e9)
    again = split.line(engine)
    assert again["trained_tokens_per_s"] == 0 and again["seconds/sample"] == 0


def test_tokens_that_come_for_an_unknown_time_are_all_sampling():
    split = Split()
    split.drew(0.0)
    assert split.seconds["grade"] == 0 < split.seconds["sample"]
    split.drew(1e9)  # a chunk began before the batch did
    assert split.seconds["grade"] == 0


class Written:
    """A writer of this file's."""

    lines: ClassVar[list] = []

    def __init__(self, series):
        pass

    def write(self, step, mapping):
        self.lines.append((step, dict(mapping)))

    def close(self):
        pass


def test_a_training_is_watched_and_profiled_and_goes_the_same_way(engine, tokenizer, tmp_path, monkeypatch):
    """With a real engine: every part takes time, the trace of the updates that were asked for appears, and neither
    parameters nor the lines from which a run resumes know anything of it."""
    monkeypatch.setattr(writers, "load", lambda name: Written)
    monkeypatch.setattr(Written, "lines", [])
    recorded, start = [], jax.profiler.start_trace
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: (recorded.append(folder), start(folder)))
    params = jax.jit(engine.model.init)(jax.random.key(4))
    tasks = Arithmetic(tokenizer).tasks("train", 3, 6)
    found = {}
    for name, updates in (("plain", 0), ("profiled", 2)):
        knobs = {"profile.first": 1, "profile.updates": updates, "validation.every": 0}
        folder = tmp_path / name
        found[name] = reinforced(engine, Chance(tokenizer), tasks, params, folder, **knobs)[0]
    assert_same(found["plain"], found["profiled"])
    folders = [tmp_path / name / "rl" / "scalars" / "scalars.jsonl" for name in ("plain", "profiled")]
    assert folders[0].read_bytes() == folders[1].read_bytes()
    assert recorded == [str(tmp_path / "profiled" / "rl" / "profile")]
    assert [*(tmp_path / "profiled" / "rl" / "profile").rglob("*.xplane.pb")]
    assert not (tmp_path / "plain" / "rl" / "profile").exists()
    assert [step for step, _ in Written.lines] == [*range(5)] * 2
    for step, line in Written.lines:
        watched = {name: line[f"seconds/{name}"] for name in PARTS}
        assert all(value > 0 or name in ("grade", "save") for name, value in watched.items())
        assert watched["save"] > 0 or step == 0  # checkpoints of the updates before
        assert line["trained_tokens_per_s"] > 0 and "reward" in line and "flops_used" not in line


def test_what_is_watched_is_in_the_page(monkeypatch):
    engine = made()
    known_as(monkeypatch, engine)
    monkeypatch.setattr("int_jax.watching.memory", lambda device: {"memory_gib": 1.0})
    page = (Path(__file__).parents[1] / "docs" / "results.md").read_text()
    section = page.partition("## What is watched\n")[2].partition("\n## ")[0]
    assert {*re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE)} == {*Split().line(engine)}


@pytest.mark.parametrize(
    "told",
    [
        pytest.param({}, id="default"),
        pytest.param({"JAX_COMPILATION_CACHE_DIR": "elsewhere"}, id="told", marks=pytest.mark.slow),
    ],
)
def test_a_second_process_compiles_nothing_again(tiny_dir, tmp_path, told):
    program = (
        "import sys, json, jax, int_jax\n"
        "made = []\n"
        "jax.monitoring.register_event_listener(lambda name, **_: made.append(name))\n"
        "lm = int_jax.load(sys.argv[1])\n"
        "[logp] = lm.score([[1, 2, 3]])\n"
        "hits = made.count('/jax/compilation_cache/cache_hits')\n"
        "print(json.dumps([hits, jax.config.jax_compilation_cache_dir, logp.tolist()]))\n"
    )
    told = {name: str(tmp_path / value) for name, value in told.items()}
    keep = {k: v for k, v in os.environ.items() if not k.startswith("JAX_") and k != "XLA_FLAGS"}
    keep["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
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
@pytest.mark.slow
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
