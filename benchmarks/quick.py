"""The working tree against its parent commit in two minutes: what lost more than 15%?

    make bench-quick
    python benchmarks/quick.py --base v1.0

The parent commit is HEAD's where int_jax is as HEAD has it, and HEAD where it was changed since. It is checked out in a
temporary folder; both trees are measured by this tree's benchmarks, in processes that take turns. Exit code 1 where
something lost more.
"""

import argparse
import contextlib
import subprocess
import sys
import tempfile
from pathlib import Path

import random_model
import scenarios
from turns import ROOT, Spread, Worker, ratios, take_turns

MOST = 0.15  # of its speed that a scenario may lose
GRADING = {"kind": "latex", "golds": 50, "samples": 8, "rounds": scenarios.QUICK_ROUNDS, "grader": "strict"}


def git(tree: Path, *words: str) -> str:
    return subprocess.run(["git", "-C", str(tree), *words], check=True, capture_output=True, text=True).stdout


def parent(tree: Path) -> str:
    """The commit that a working tree is compared with."""
    changed = git(tree, "status", "--porcelain", "--untracked-files=all", "int_jax").strip()
    return git(tree, "rev-parse", "HEAD" if changed else "HEAD~1").strip()


def lost(new: list[float], old: list[float], most: float = MOST) -> bool:
    """Whether the speed fell by more than `most`, by the median of the rounds' ratios."""
    return ratios(new, old).median < 1 - most


@contextlib.contextmanager
def checkout(tree: Path, commit: str):
    """The commit in a temporary folder, which goes afterwards."""
    with tempfile.TemporaryDirectory(prefix="bench-base-") as folder:
        there = Path(folder) / "tree"
        git(tree, "worktree", "add", "--detach", str(there), commit)
        try:
            yield there
        finally:
            git(tree, "worktree", "remove", "--force", str(there))


def compare(contender: str, trees: dict[str, Path], tasks: dict[str, dict], threads: int) -> list[str]:
    """Print a line for each task, and return the names of those that lost. trees: those of "new" and "old"."""
    workers = {side: Worker(contender, sys.executable, tree, threads) for side, tree in trees.items()}
    slower = []
    for name, task in tasks.items():
        found = take_turns(workers, dict.fromkeys(trees, task), scenarios.QUICK_ROUNDS)
        new, old = found["new"]["rates"], found["old"]["rates"]
        first = {side: one["first"] for side, one in found.items()}
        speeds = f"{Spread.of(new).median:8,.0f} / {Spread.of(old).median:8,.0f} a second, ratio {ratios(new, old)}"
        calls = f"first call {first['new']['seconds']:.1f} / {first['old']['seconds']:.1f} s"
        programs = f"programs {first['new']['programs']} / {first['old']['programs']}"
        print(f"  {name:24s} {speeds}; {calls}, {programs}{'  LOST' * lost(new, old)}", flush=True)
        if lost(new, old):
            slower.append(name)
    for worker in workers.values():
        worker.close()
    return slower


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", default="", help="the commit to compare with, by default the parent")
    parser.add_argument("--threads", type=int, default=0, help="CPUs that each may use, 0 for all")
    args = parser.parse_args()
    base = args.base or parent(ROOT)
    print(f"the working tree / {git(ROOT, 'log', '-1', '--format=%h %s', base).strip()}")
    with tempfile.TemporaryDirectory(prefix="bench-model-") as folder, checkout(ROOT, base) as old:
        models = {"random": str(random_model.write(Path(folder)))}
        tasks = {one.name: one.task(models, []) for one in scenarios.QUICK}
        trees = {"new": ROOT, "old": old}
        slower = compare("int_jax", trees, tasks, args.threads)
        slower += compare("grade_int_jax", trees, {"grading, latex": GRADING}, args.threads)
    if slower:
        sys.exit(f"lost more than {MOST:.0%}: {', '.join(slower)}")
    print(f"nothing lost more than {MOST:.0%}")


if __name__ == "__main__":
    main()
