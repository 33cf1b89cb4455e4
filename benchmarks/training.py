"""Training speed against others on the same weights, batches and threads: updates of SFT, iterations of GRPO.

    make bench                                    (needs the test extra; makes an environment for Tunix)
    python benchmarks/training.py --only "GRPO" --contenders train_int_jax,train_floor

The random model of sampling.py, float32, AdamW; contenders (contenders/train_*.py) are processes that take turns. An
iteration of GRPO draws a batch at temperature 1, scores it by its odd ids on the host, and makes one update. A batch is
one micro-batch, but for int_jax's packed rows in SFT, of which four are one. What counts is tokens a second: of the
batch in SFT, of the responses in GRPO. int_jax counts entropies, ratios and norms beside it, Tunix the norm of the
gradient and ratios. Appends a JSON line a scenario to benchmarks/results/training.jsonl.
"""

import argparse
import dataclasses
import sys
from pathlib import Path

import numpy as np
import random_model
from sampling import record
from turns import ROOT, Spread, Worker, ratios, take_turns

OUT = Path(__file__).with_name("results") / "training.jsonl"
CONTENDERS = ("train_int_jax", "train_tunix", "train_pytorch", "train_floor")
ROUNDS = 7


def targets(tunix: float, pytorch: float, floor: float) -> dict[str, float]:
    return {"train_tunix": tunix, "train_pytorch": pytorch, "train_floor": floor}


@dataclasses.dataclass(frozen=True)
class Scenario:
    """One row of the table.

    Attributes:
      lengths: of the sequences of an update. prompts, samples: of an iteration of GRPO, in place of `lengths`; of 16
        ids each, with responses of 128. targets: ratio ours / theirs.
    """

    name: str
    lengths: tuple[int, ...] = ()
    prompts: int = 0
    samples: int = 8
    targets: dict[str, float] = dataclasses.field(default_factory=dict)

    def task(self, model: str) -> dict:
        """As contenders take it: model (a directory), dtype, rate (of learning), rows and length of a micro-batch of
        int_jax's, and sequences (ids), or prompts (ids, of one length), samples and new (tokens of each). Their
        `once(seed)` is one update or iteration; of SFT `once(seed, True)` gives the loss that it had."""
        rng = np.random.default_rng(0)
        task = {"model": model, "dtype": "float32", "rate": 1e-5}
        if self.lengths:
            sequences = [random_model.prompt(rng, length) for length in self.lengths]
            return task | {"sequences": sequences, "length": max(self.lengths), "rows": 4}
        prompts = [random_model.prompt(rng, 16) for _ in range(self.prompts)]
        rows = self.prompts * self.samples
        return task | {"prompts": prompts, "samples": self.samples, "new": 128, "length": 144, "rows": rows}


SCENARIOS = (
    Scenario("SFT, 4 x 128 tokens", (128,) * 4, targets=targets(1.5, 1.0, 0.85)),
    Scenario("SFT, 4 x 512 tokens", (512,) * 4, targets=targets(3.0, 1.1, 0.85)),
    Scenario("SFT, 16 of 32 to 512 tokens", tuple(range(32, 513, 32)), targets=targets(3.0, 1.1, 0.85)),
    Scenario("GRPO, 2 x 8 of 128 tokens", prompts=2, targets=targets(2.0, 1.4, 0.85)),
    Scenario("GRPO, 8 x 8 of 128 tokens", prompts=8, targets=targets(2.0, 1.4, 0.85)),
)  # fmt: skip


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--contenders", default=",".join(CONTENDERS), help="names of modules in contenders/")
    parser.add_argument("--only", default="", help="scenarios whose name contains it")
    parser.add_argument("--threads", type=int, default=0, help="CPUs that each may use, 0 for all")
    parser.add_argument(
        "--peers", default=str(ROOT / "benchmarks/.venv-peers/bin/python"), help="Tunix's interpreter"
    )
    parser.add_argument("--tree", type=Path, default=ROOT, help="whose int_jax is measured")
    parser.add_argument(
        "--models", type=Path, default=ROOT / "runs" / "bench", help="where the model is kept"
    )
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    names = args.contenders.split(",")
    if "train_tunix" in names and not Path(args.peers).exists():
        parser.error(f"--peers={args.peers}: no interpreter; `make bench` makes it, or leave out train_tunix")
    chosen = [scenario for scenario in SCENARIOS if args.only in scenario.name]
    if not chosen:
        parser.error(f"--only={args.only!r} is in no name: {', '.join(one.name for one in SCENARIOS)}")
    model = str(random_model.write(args.models / "random"))
    python = {name: args.peers if name == "train_tunix" else sys.executable for name in names}
    for scenario in chosen:
        workers = {
            name: Worker(name, Path(python[name]).absolute(), args.tree, args.threads) for name in names
        }
        found = take_turns(workers, dict.fromkeys(names, scenario.task(model)), ROUNDS)
        print(f"\n{scenario.name}: tokens a second")
        figures, compared = {}, {}
        for name, one in found.items():
            first, rates = one["first"], Spread.of(one["rates"])
            figures[name] = {
                "tokens_per_s": dataclasses.asdict(rates),
                "first_call_s": first["seconds"],
                "programs": first["programs"],
                "programs_later": sum(one["programs"]),
                "peak_mib": one["peak_mib"],
            }
            said = f"  {name.removeprefix('train_'):8s} {rates!s:>26s}, first call {first['seconds']:5.1f} s"
            said += f", {one['peak_mib']:5,.0f} MiB"
            if name != "train_int_jax" and "train_int_jax" in found:
                ratio = ratios(found["train_int_jax"]["rates"], one["rates"])
                compared[name] = dataclasses.asdict(ratio)
                said += f" | ours / theirs {ratio}, aimed at {scenario.targets[name]}"
            print(said, flush=True)
        hellos = {name: worker.hello for name, worker in workers.items()}
        record(
            args.out, args.tree, scenario.name, hellos,
            contenders=figures, ratios=compared, targets=scenario.targets,
        )  # fmt: skip
        for worker in workers.values():
            worker.close()


if __name__ == "__main__":
    main()
