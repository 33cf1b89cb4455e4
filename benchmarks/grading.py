"""Answers graded a second: plain numbers and LaTeX, int_jax's pool of processes and math-verify in one.

    python benchmarks/grading.py

Eight answers to each gold, other golds in every round, so that nothing is known from the round before. Appends a JSON
line for each kind to benchmarks/results/grading.jsonl.
"""

import argparse
import dataclasses
import sys
from pathlib import Path

from sampling import record
from turns import ROOT, Spread, Worker, ratios, take_turns

OUT = Path(__file__).with_name("results") / "grading.jsonl"
# kind: (golds, graders, answers a second of "strict" that are aimed at)
KINDS = {"number": (2_500, ("strict",), 0), "latex": (250, ("strict", "tolerant"), 1_300)}
SAMPLES, ROUNDS = 8, 5


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tree", type=Path, default=ROOT, help="whose int_jax is measured")
    parser.add_argument("--threads", type=int, default=0, help="CPUs that each may use, 0 for all")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    for kind, (golds, graders, target) in KINDS.items():
        task = {"kind": kind, "golds": golds, "samples": SAMPLES, "rounds": ROUNDS}
        tasks = {f"int_jax {grader}": task | {"grader": grader} for grader in graders} | {"math-verify": task}
        workers = {
            name: Worker(
                "grade_math_verify" if name == "math-verify" else "grade_int_jax",
                sys.executable,
                args.tree,
                args.threads,
            )
            for name in tasks
        }
        found = take_turns(workers, tasks, ROUNDS)
        print(
            f"\n{golds * SAMPLES:,} answers, {kind}" + (f"; aimed at {target:,} a second" if target else "")
        )
        figures = {name: dataclasses.asdict(Spread.of(one["rates"])) for name, one in found.items()}
        compared = {name: ratios(one["rates"], found["math-verify"]["rates"]) for name, one in found.items()}
        for name, one in found.items():
            print(f"  {name:18s} {Spread.of(one['rates'])} a second, {compared[name]} times math-verify")
        hellos = {name: worker.hello for name, worker in workers.items()}
        record(args.out, args.tree, f"grading, {kind}", hellos, answers_per_s=figures, target=target)
        for worker in workers.values():
            worker.close()


if __name__ == "__main__":
    main()
