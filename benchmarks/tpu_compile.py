"""Compiles the update, the scoring, the prefill and the decoding for real TPU topologies, on a host without a TPU.

    pip install libtpu
    python benchmarks/tpu_compile.py --shape tests/shapes/qwen3_0_6b.json --layers 4 --topology v5p:2x2x2 --data 8
    python benchmarks/tpu_compile.py --config qwen3_4b --devices 32

With --config those of a shipped config of full size (int.py), or of it with another model (--shape), with the sizes
that it takes on so many chips of a v5p, and an error where one does not fit, or where a prefill or a token exchanges
anything between replicas: `make tpu` does that for all of them.

Says whether each program compiles, how long that takes, how much memory of a device XLA wants for it beside what
int_jax/memory.py plans, and what a token exchanges along each axis of the mesh: all collectives within loops. Nothing
is run. `--layers` cuts the model.
"""

import argparse
import contextlib
import dataclasses
import functools
import json
import os
import re
import sys
import time
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # no metadata server to ask
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
from jax.experimental import topologies  # noqa: E402

from experiments import plan  # noqa: E402
from experiments.configs import int as intervention  # noqa: E402
from int_jax import engine, memory, models, sample  # noqa: E402
from int_jax.batching import pack, supervised  # noqa: E402
from int_jax.losses import LossConfig  # noqa: E402
from int_jax.models import flash, kernels  # noqa: E402
from int_jax.session import bucket  # noqa: E402
from int_jax.sharding import RULES, RULES_DECODE, make_mesh, shardings  # noqa: E402

GIB = 2**30
CHUNK = 256  # tokens of a row whose logits exist at one time
STEPS, WIDTH = 16, 512  # tokens that are decoded, and prefilled, of each row
CHIPS = {1: "v5p:2x2x1", 4: "v5p:2x2x1", 8: "v5p:2x2x2", 32: "v5p:2x4x4", 64: "v5p:4x4x4", 256: "v5p:4x8x8"}


def placed(tree, mesh, rules):
    """The tree's shapes with their shardings."""
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        tree,
        shardings(tree, mesh, rules),
    )


def lowered(config, mesh, args) -> dict[str, tuple]:
    """Each program by its name, to be lowered, and the bytes a device that are planned for it."""
    model, tx = models.build(config), optax.adamw(1e-6)
    sizes, data = memory.Sizes(config, mesh), mesh.shape["data"]
    params = jax.eval_shape(model.init, jax.random.key(0))
    state = jax.eval_shape(functools.partial(engine._first, tx), params)
    sequence = supervised(np.ones(args.length, np.int32), np.ones(args.length))
    batch = jax.eval_shape(lambda: pack([sequence] * args.rows, args.length, args.rows))
    update = placed(state, mesh, RULES), placed(batch, mesh, RULES), model, tx
    kernel = flash.chosen(args.attention, "tpu", config)
    training = memory.training("update", sizes, args.rows, args.length, CHUNK, True, (), None, kernel)

    low = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, config.dtype), params)
    low = placed(low, mesh, RULES_DECODE)
    kind = kernels.chosen(args.attention, "tpu", config, mesh.shape["model"])
    page = kernels.tokens_of_page(kind, config)
    # Half of what the rows would have if all were as long as the longest, or what a run would have room for.
    count = min(args.slots // data * -(-args.drawn // page) // 2, args.pool // page) + 1
    pool = engine._empty_pages(model, kind, data * count, page, mesh).eval_shape()
    known = -(-args.drawn // page)
    drawing = memory.sampling("sampling", sizes, args.slots, STEPS, WIDTH, args.drawn - WIDTH, (), kind)
    part = {item.name: item.bytes for item in drawing.items}
    held = part["parameters to sample from"] + count * kernels.page_bytes(
        kind, config, page, mesh.shape["model"]
    )

    def ints(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.int32)

    def rows_of(count: int, cached: int, further: int):
        """Tables, and the pages of them that are put side by side."""
        if kind == "xla":
            return ints(count, cached + further), cached
        return ints(count, max(16, 4 ** int(np.ceil(np.log(cached + further) / np.log(4))))), 0

    chunk = data * max(1, min(args.slots // data, engine.Engine.prefill_tokens // WIDTH))
    table, read = rows_of(chunk, 0, -(-WIDTH // page))
    prefill = model, low, pool, ints(chunk, WIDTH), ints(chunk), ints(chunk), table, read
    seats = args.slots
    rows = sample.Rows(ints(seats), ints(seats), np.ones(seats, bool), ints(seats))
    floats, words = np.ones(seats, np.float32), np.ones(seats, np.uint32)
    draw = sample.Draw(floats, ints(seats), floats, floats, ints(seats, 8), words, words, words)
    free = sample.Spellings(ints(8, 8), ints(8, 8))
    table, read = rows_of(seats, known, -(-STEPS // page))
    decode = (rows, rows, np.ones(seats, bool), ints(seats), draw, table, free, ints(data), read, STEPS)
    filling = part["prefill: attention scores"] + part["prefill: activations"]
    stepping = part["rows side by side"] + part["decode: logits"]
    loss = LossConfig(logit_chunk=CHUNK, remat=True)
    width = bucket(args.drawn)
    scored = max(data, engine.Engine.score_tokens // width // data * data)
    score = model, low, ints(scored, width), jax.ShapeDtypeStruct((), jnp.float32), kernel
    scoring = memory.scoring("score", sizes, args.drawn, ())
    return {
        "update": (lambda: engine._update.lower(*update, loss, kernel), training.bytes),
        "score": (lambda: engine._score.lower(*score), scoring.bytes),
        f"prefill ({kind})": (lambda: engine._prefill.lower(*prefill), held + filling),
        f"decode ({kind})": (lambda: engine._decode.lower(model, low, pool, *decode), held + stepping),
    }


COLLECTIVE = re.compile(
    r"= (\S+|\(.*?\)) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(-start)?\("
)


def devices_of(line: str) -> list[list[int]]:
    """The devices that a collective brings together: {{0,1},{2,3}}, an array of them such as [2,2]<=[4], or axes of a
    mesh of their own, mesh['a'=2,'b'=2] {'b'}, whose devices may stand in another order, device_ids=([2,2]T(1,0))."""
    if listed := re.search(r"(?:replica_groups|source_target_pairs)=\{(\{.*?\})\}", line):
        return [[int(i) for i in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", listed[1])]
    ordered = r"(?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))?"
    if named := re.search(rf"replica_groups=mesh\[([^\]]*)\]{ordered} \{{([^}}]*)\}}", line):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", named[1])}
        axes = [name in re.findall(r"'(\w+)'", named[4]) for name in sizes]
        whole = [int(i) for i in (named[2] or str(np.prod([*sizes.values()]))).split(",")]
        order = [int(i) for i in named[3].split(",")] if named[3] else range(len(whole))
        ids = np.arange(np.prod(whole)).reshape(whole).transpose(order).reshape(*sizes.values())
        ids = np.moveaxis(ids, np.flatnonzero(axes), range(-sum(axes), 0))
        return ids.reshape(-1, np.prod(ids.shape[-sum(axes) :])).tolist()
    found = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line)
    assert found, line
    shape, whole, order = ([int(i) for i in (text or "").split(",") if i] for text in found.groups())
    ids = np.arange(np.prod(whole)).reshape(whole)
    return ids.transpose(order or range(len(whole))).reshape(shape).tolist()


WIDTHS = {"pred": 1, "bf16": 2, "f16": 2, "f32": 4, "s32": 4, "u32": 4, "s8": 1, "u8": 1, "s64": 8, "f64": 8}


def computations(text: str) -> dict[str, list[str]]:
    """The lines of each computation of a compiled program by its name, "ENTRY" for the first that runs."""
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        if begun := re.match(r"(ENTRY )?%?([\w.-]+) .*\{$", line):
            lines = found.setdefault("ENTRY" if begun[1] else begun[2], [])
        else:
            lines.append(line)
    return found


def times(parts: dict[str, list[str]]) -> dict[str, tuple[int, bool]]:
    """How often each computation runs, and whether within a loop. A loop without a number in its condition (the one
    over micro-batches) counts once."""
    found: dict[str, tuple[int, bool]] = {}

    def visit(name: str, count: int, inside: bool) -> None:
        found[name] = found.get(name, (0, False))[0] + count, inside
        for line in parts[name]:
            if loop := re.search(r" while\(.*condition=%?([\w.-]+), body=%?([\w.-]+)", line):
                limits = [
                    int(n) for n in re.findall(r"s32\[\]\S* constant\((\d+)\)", "\n".join(parts[loop[1]]))
                ]
                visit(loop[2], count * max(limits, default=1), True)
            else:
                for called in re.findall(r"(?:calls|true_computation|false_computation)=%?([\w.-]+)", line):
                    visit(called, count, inside)

    visit("ENTRY", 1, False)
    return found


def sent(line: str, among: int) -> float:
    """Bytes that a device sends in a collective among so many devices, in a ring."""
    result, kind, started = COLLECTIVE.search(line).groups()
    arrays = [
        WIDTHS[dtype] * int(np.prod([int(n) for n in shape.split(",") if n]))
        for dtype, shape in re.findall(r"(\w+)\[([\d,]*)\]", result)
        if dtype in WIDTHS
    ]
    # What begins a collective in two parts has its operand beside its result.
    whole = max(arrays, default=0) if started else sum(arrays)
    ring = (among - 1) / among
    share = {
        "all-reduce": 2 * ring,
        "reduce-scatter": ring if started else among - 1,
        "collective-permute": 1,
    }
    return whole * share.get(kind, ring)


def exchanged(text: str, model: int) -> str:
    """The collectives of a compiled program by axis: "model: 9 in loops, 2 outside, 1.2 GB sent". Of a program with a
    loop over micro-batches the bytes are those of one."""
    parts = computations(text)
    found: dict[str, list[float]] = {}
    for name, (count, inside) in times(parts).items():
        for line in parts[name]:
            if not COLLECTIVE.search(line):
                continue
            groups = devices_of(line)
            # Device i stands at place i % model of its replica.
            along = "model" if all(len({i // model for i in group}) == 1 for group in groups) else "data"
            counts = found.setdefault(along, [0, 0, 0])
            counts[inside] += 1
            # Of an all-reduce fused with the slice of each device no more is sent than of a reduce-scatter.
            fused = 0.5 if name.startswith("all-reduce-scatter") else 1
            counts[2] += count * fused * sent(line, len(groups[0]))
    said = (
        f"{axis}: {loops} in loops, {once} outside, {size / 1e9:.3g} GB sent"
        for axis, (once, loops, size) in sorted(found.items())
    )
    return "; ".join(said) or "none"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", type=Path, help="a config.json; tests/shapes has some")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--topology", default="v5p:2x2x2", help="of eight chips: v5e:2x4, v5p:2x2x2, v6e:2x4")
    parser.add_argument("--data", type=int, default=8)
    parser.add_argument("--attention", default="", choices=("", "xla", "tpu"))
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--rows", type=int, default=8, help="rows of a micro-batch")
    parser.add_argument("--length", type=int, default=2048, help="tokens of the longest row")
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--only", choices=("update", "score", "prefill", "decode"))
    parser.add_argument("--config", help="a variant of int.py of full size, whose sizes are taken")
    parser.add_argument("--devices", type=int, default=4, choices=tuple(CHIPS), help="chips, with --config")
    args = parser.parse_args()

    args.shape = args.shape or ROOT / "tests" / "shapes" / f"{args.config or 'qwen3_0_6b'}.json"
    if args.config:
        args.topology = CHIPS[args.devices]
    data = json.loads(args.shape.read_text())
    config = models.family_of(data["model_type"]).config_from_hf(data)
    config = dataclasses.replace(config, dtype=args.dtype, param_dtype="float32")
    devices = topologies.get_topology_desc(platform="tpu", topology_name=args.topology).devices
    args.drawn, args.pool, limit = args.length, sys.maxsize, None
    if args.config:
        devices, machine = devices[: args.devices], plan.named("v5p", args.devices)
        c = plan.fitted(intervention.get_config(args.config), machine, config)
        args.layers, args.slots, args.rows, args.length = (
            config.layers,
            c.slots,
            c.train.rows,
            c.train.row_length,
        )
        args.drawn = plan.PROBLEM + c.attempts.sampling.max_new_tokens
        args.data, limit = args.devices // c.mesh.model, machine.limit
        stages = plan.stages(c, config, plan.mesh_of(c, machine), None, machine.platform)
        args.pool = int(plan.pool_tokens(c, next(one for one in stages if one.name == "attempts"), machine))
    config = dataclasses.replace(config, layers=args.layers)
    model = len(devices) // args.data
    mesh = make_mesh(args.data, model, devices)
    print(
        f"{args.shape.stem}, {args.layers} layers, {args.topology}, data {args.data} x model {model}, {args.rows} "
        f"rows of {args.length} tokens, {args.slots} slots of up to {args.drawn}"
    )
    faults = []
    for name, (program, planned) in lowered(config, mesh, args).items():
        if args.only not in (None, name.split()[0]):
            continue
        start, said = time.process_time(), "unknown: libtpu gives a program that this jaxlib cannot read"
        # The only place where these devices are in context: they cannot run anything.
        exact = "highest" if args.dtype == "float32" else None
        with jax.sharding.set_mesh(mesh), jax.default_matmul_precision(exact):
            compiled = program().compile()
        found = compiled.memory_analysis()
        held = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            said = exchanged(compiled.as_text(), model)
        total = (held + found.temp_size_in_bytes) / GIB
        print(
            f"  {name:<13} {time.process_time() - start:4.0f} s of CPU to compile, {total:.2f} GiB a device (of it "
            f"{found.temp_size_in_bytes / GIB:.3f} made meanwhile), {planned / GIB:.2f} planned; "
            f"exchanged: {said}",
            flush=True,
        )
        if limit and total * GIB > limit:
            faults.append(f"{name} does not fit: {total:.1f} GiB of {limit / GIB:.1f}")
        if name.startswith(("prefill", "decode")) and "data:" in said:
            faults.append(f"{name} exchanges between replicas: {said}")
    if faults:
        sys.exit("\n".join(faults))


if __name__ == "__main__":
    main()
