"""One model in its full size with random weights: generate, one SFT update, one RL update; time and memory.

    python benchmarks/full_size.py --shape tests/shapes/qwen3_4b.json

Compute in bfloat16, trained weights and optimizer in float32. Each part runs twice and the second time counts: the
first one compiles. Appends a line to benchmarks/full_size.jsonl, with date, device and versions; `--shape` is any
config.json.
"""

import argparse
import dataclasses
import datetime
import json
import platform
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402

from int_jax import batching, models, policy_gradient  # noqa: E402
from int_jax.engine import Engine  # noqa: E402
from int_jax.losses import LossConfig  # noqa: E402
from int_jax.policy_gradient import PolicyGradient  # noqa: E402
from int_jax.sampler import Request, Sampling  # noqa: E402
from int_jax.sharding import make_mesh  # noqa: E402
from int_jax.types import Task, Trace, Verdict  # noqa: E402


def peak_gib() -> float | None:
    """The most memory that the first device has held so far; None where it does not tell."""
    stats = jax.local_devices()[0].memory_stats() or {}
    peak = stats.get("peak_bytes_in_use")
    return None if peak is None else round(peak / 2**30, 2)


def timed(name: str, line: dict, once) -> None:
    """Run `once` twice; the second time goes to the line, with the peak of memory up to here."""
    for _ in range(2):
        start = time.perf_counter()
        once()
        seconds = time.perf_counter() - start
    line[name] = {"seconds": round(seconds, 3), "peak_gib": peak_gib()}
    print(name, json.dumps(line[name]), flush=True)


def rl_batch(knobs: PolicyGradient, vocab: int, length: int, rows: int, rng: np.random.Generator):
    """The batch of one group of `rows` traces of `length` tokens, half of them right."""
    tokens = rng.integers(0, vocab, (rows, length)).astype(np.int32)
    drawn = np.arange(length) >= length // 8
    logp = np.where(drawn, -np.log(vocab), 0).astype(np.float32)
    verdicts = [Verdict(bool(i % 2), float(i % 2), "correct" if i % 2 else "wrong") for i in range(rows)]
    task = Task("t", "", "")
    group = [
        Trace(task, ids, length // 8, drawn, logp, verdict=verdict)
        for ids, verdict in zip(tokens, verdicts, strict=True)
    ]
    rewards = np.array([[verdict.score for verdict in verdicts]])
    sequences = policy_gradient.weigh(None, [group], knobs.advantages([group], rewards), knobs)
    return policy_gradient.pack(sequences, knobs, length, 1)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", type=Path, default=ROOT / "tests" / "shapes" / "qwen3_4b.json")
    parser.add_argument("--rows", type=int, default=64, help="responses drawn at once")
    parser.add_argument("--new", type=int, default=1024, help="tokens of each response")
    parser.add_argument("--prompt", type=int, default=256, help="tokens of the prompt, one for all rows")
    parser.add_argument("--length", type=int, default=4096, help="tokens of a trained sequence")
    parser.add_argument("--sequences", type=int, default=2, help="sequences of an update, one a micro-batch")
    parser.add_argument("--model", type=int, default=1, help='devices along the mesh axis "model"')
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "full_size.jsonl")
    args = parser.parse_args()

    data = json.loads(args.shape.read_text())
    config = models.family_of(data["model_type"]).config_from_hf(data)
    config = dataclasses.replace(config, dtype="bfloat16", param_dtype="float32")
    engine = Engine(models.build(config), make_mesh(model=args.model), slots=args.rows, decode_steps=64)
    tx = optax.adamw(1e-6)
    state = engine.init(0, tx)
    line = {
        "date": datetime.date.today().isoformat(),
        "shape": args.shape.stem,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "versions": {"jax": jax.__version__, "python": platform.python_version()},
        "sizes": {k: getattr(args, k) for k in ("rows", "new", "prompt", "length", "sequences")},
    }
    rng = np.random.default_rng(0)
    params = engine.decode_params(state.params)
    prompt = tuple(rng.integers(0, config.vocab, args.prompt).tolist())
    requests = [Request(prompt, "benchmark", k) for k in range(args.rows)]

    def generate():
        engine.generate(params, requests, Sampling(args.new))

    timed("generate", line, generate)
    line["generate"]["tokens_per_s"] = round(args.rows * args.new / line["generate"]["seconds"])
    params = None  # the copy to sample from

    held = [state]
    loss = LossConfig(logit_chunk=512, remat=True)
    ids = rng.integers(0, config.vocab, (args.sequences, args.length))
    sequences = [batching.supervised(row, np.arange(args.length) >= args.prompt) for row in ids]
    knobs = PolicyGradient(1, args.sequences, loss=loss)
    batches = {
        "sft": batching.pack(sequences, args.length, 1),
        "rl": rl_batch(knobs, config.vocab, args.length, args.sequences, rng),
    }
    for name, batch in batches.items():

        def update(batch=batch):
            held[0], metrics = engine.update(held[0], batch, tx, loss)
            jax.block_until_ready(metrics)

        timed(name, line, update)
        line[name]["tokens_per_s"] = round(args.sequences * args.length / line[name]["seconds"])
    with args.out.open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps(line, indent=1))


if __name__ == "__main__":
    main()
