"""Sampling speed against other samplers on the same weights, prompts, seeds and threads.

    make bench                                    (needs the test extra; makes an environment for Tunix)
    python benchmarks/sampling.py --only "uniform 16" --contenders int_jax,floor

Contenders (contenders/) are processes that take turns; the first call of each, with its compilation, is told apart.
Temperature 1 without filters unless the scenario says so (scenarios.py). int_jax and the floors return
log-probabilities, the peers do not. Appends a JSON line a scenario to benchmarks/results/sampling.jsonl, and prints the
table: tokens a second, ratios ours / theirs, and what is aimed at.
"""

import argparse
import dataclasses
import datetime
import json
import subprocess
import sys
import time
from pathlib import Path

import random_model
import scenarios
from turns import ROOT, Spread, Worker, ratios, take_turns

OUT = Path(__file__).with_name("results") / "sampling.jsonl"
QUESTIONS = (
    "Mia has 12 apples. She buys 5 more. How many apples does Mia have now?",
    "Tom has 30 coins. He gives 14 to a friend. Then Tom finds 3 more. How many coins does Tom have now?",
    "What is the capital of France, and which river runs through it?",
    "Write a short poem on the sea.",
)


def commit(tree: Path) -> str:
    """The commit of a tree, "+" behind it where tracked files differ from it."""

    def git(*words) -> str:
        return subprocess.run(
            ["git", "-C", str(tree), *words], check=True, capture_output=True, text=True
        ).stdout

    changed = git("status", "--porcelain", "--untracked-files=no", "int_jax")
    return git("rev-parse", "--short", "HEAD").strip() + ("+" if changed.strip() else "")


def chat_model(folder: Path) -> tuple[Path, list[list[int]]]:
    """The directory of SmolLM2-135M-Instruct, fetched and converted where it is not there, and rendered questions."""
    sys.path.insert(0, str(ROOT))
    from transformers import AutoTokenizer

    from experiments import gguf_model, real

    folder.mkdir(parents=True, exist_ok=True)
    model = folder / "model"
    if not (model / "config.json").exists():  # the last file that is written
        gguf_model.convert(real.fetch(folder), model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    turns = [[{"role": "user", "content": question}] for question in QUESTIONS]
    return model, [
        tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=False) for turn in turns
    ]


def record(out: Path, tree: Path, scenario: str, hellos: dict[str, dict], **figures) -> None:
    """Append a line of what was measured. hellos: what each process said of itself (worker.py)."""
    first = next(iter(hellos.values()))
    line = {
        "date": datetime.datetime.now().isoformat(timespec="minutes"),
        "commit": commit(tree),
        "scenario": scenario,
        "device": first["device"],
        "threads": first["threads"],
        "versions": {name: hello["versions"] for name, hello in hellos.items()},
        **figures,
    }
    with out.open("a") as file:
        file.write(json.dumps(line) + "\n")


@dataclasses.dataclass
class Bench:
    """What is measured with which processes, and where it is written."""

    contenders: list[str]
    python: dict[str, str]
    tree: Path
    threads: int
    models: dict[str, str]
    chat_prompts: list
    out: Path

    def worker(self, name: str) -> Worker:
        return Worker(name, self.python[name], self.tree, self.threads)

    def task(self, scenario) -> dict:
        return scenario.task(self.models, self.chat_prompts)

    def table(self, chosen) -> None:
        workers = {name: self.worker(name) for name in self.contenders}
        for scenario in chosen:
            names = [name for name in scenario.contenders if name in workers]
            task = self.task(scenario)
            found = take_turns(workers, dict.fromkeys(names, task), scenario.rounds)
            figures = {
                name: {
                    "tokens_per_s": dataclasses.asdict(Spread.of(one["rates"])),
                    "first_call_s": one["first"]["seconds"],
                    "programs": one["first"]["programs"],
                    "programs_later": sum(one["programs"]),
                }
                for name, one in found.items()
            }
            print(f"\n{scenario.name}")
            compared = {}
            for name, one in found.items():
                row = f"  {name:10s} {Spread.of(one['rates'])!s:>30s} tokens/s"
                row += (
                    f", first call {one['first']['seconds']:5.1f} s, {one['first']['programs']:3d} programs"
                )
                if name != "int_jax" and "int_jax" in found:
                    ratio = ratios(found["int_jax"]["rates"], one["rates"])
                    compared[name] = dataclasses.asdict(ratio)
                    row += f" | ours / theirs {ratio}"
                    if target := dict(scenario.targets).get(name):
                        row += f", aimed at {target}"
                print(row, flush=True)
            hellos = {name: workers[name].hello for name in names}
            record(
                self.out,
                self.tree,
                scenario.name,
                hellos,
                contenders=figures,
                ratios=compared,
                targets=dict(scenario.targets),
            )
        for worker in workers.values():
            worker.close()

    def small_calls(self) -> None:
        """1 and 16 prompts against 128, by the time that they take."""
        workers = {s.name: self.worker("int_jax") for s in scenarios.SMALL}
        found = take_turns(
            workers, {s.name: self.task(s) for s in scenarios.SMALL}, scenarios.SMALL[0].rounds
        )
        counts = {s.name: s.prompts for s in scenarios.SMALL}
        seconds = {
            counts[name]: [counts[name] * scenarios.SMALL[0].new / rate for rate in one["rates"]]
            for name, one in found.items()
        }
        print("\nsmall calls: seconds")
        figures = {}
        for count, times in seconds.items():
            share = ratios(times, seconds[128])
            figures[count] = {
                "seconds": dataclasses.asdict(Spread.of(times)),
                "share": dataclasses.asdict(share),
            }
            aim = (
                f", aimed at {scenarios.SMALL_TARGETS[count]} at most"
                if count in scenarios.SMALL_TARGETS
                else ""
            )
            print(f"  {count:3d} prompts {Spread.of(times)} s, share of 128: {share}{aim}", flush=True)
        record(
            self.out,
            self.tree,
            "small calls",
            {"int_jax": next(iter(workers.values())).hello},
            prompts=figures,
        )
        for worker in workers.values():
            worker.close()

    def cold_stream(self) -> None:
        """Eight calls unlike one another, from a process that has not begun: wall time and programs compiled."""
        print("\nragged stream of 8 calls, cold")
        tasks, figures, hellos = [self.task(one) for one in scenarios.RAGGED], {}, {}
        for name in self.contenders:
            start = time.perf_counter()
            worker = self.worker(name)
            hellos[name] = worker.hello
            answers = [worker.ask(task=task) for task in tasks]
            wall, programs = time.perf_counter() - start, sum(answer["programs"] for answer in answers)
            worker.close()
            figures[name] = {"wall_s": wall, "programs": programs}
            print(f"  {name:10s} {wall:6.1f} s, {programs:3d} programs", flush=True)
        record(self.out, self.tree, "ragged stream, cold", hellos, contenders=figures)

    def memory(self) -> None:
        """The most that a fresh process held (ru_maxrss), before its first call and after two."""
        print(f"\n{scenarios.MEMORY.name}: most memory of a process, MiB")
        figures, hellos = {}, {}
        idle = scenarios.Scenario("memory, idle", 1, 2, 1, 1, slots=1)
        for name in self.contenders:
            worker = self.worker(name)
            hellos[name] = worker.hello
            before = worker.ask(task=self.task(idle))["peak_mib"]
            worker.ask(task=self.task(scenarios.MEMORY))
            peak = worker.ask(seed=1)["peak_mib"]
            worker.close()
            figures[name] = {"one_token_mib": before, "peak_mib": peak}
            print(f"  {name:10s} {before:7,.0f} after one token, {peak:7,.0f} at the end", flush=True)
        record(self.out, self.tree, scenarios.MEMORY.name, hellos, contenders=figures)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--contenders", default=",".join(scenarios.ALL), help="names of modules in contenders/"
    )
    parser.add_argument(
        "--only", default="", help="scenarios whose name contains one of these, by comma-less | parts"
    )
    parser.add_argument("--threads", type=int, default=0, help="CPUs that each may use, 0 for all")
    parser.add_argument(
        "--peers", default=str(ROOT / "benchmarks/.venv-peers/bin/python"), help="Tunix's interpreter"
    )
    parser.add_argument(
        "--tree", type=Path, default=ROOT, help="whose int_jax is measured: the checkout of any commit"
    )
    parser.add_argument("--models", type=Path, default=ROOT / "runs" / "bench", help="where models are kept")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    contenders = args.contenders.split(",")
    if "tunix" in contenders and not Path(args.peers).exists():
        parser.error(
            f"--peers={args.peers}: no interpreter; `make bench` makes it, or leave out tunix (--contenders)"
        )

    def asked(name: str) -> bool:
        return any(part in name for part in args.only.split("|"))

    extra = {"small calls": Bench.small_calls, "ragged stream": Bench.cold_stream, "memory": Bench.memory}
    chosen = [scenario for scenario in scenarios.TABLE if asked(scenario.name)]
    rest = [function for name, function in extra.items() if asked(name)]
    if not chosen and not rest:
        names = [scenario.name for scenario in scenarios.TABLE] + list(extra)
        parser.error(f"--only={args.only!r} is in no name: {', '.join(names)}")
    models = {"random": str(random_model.write(args.models / "random")), "embedded": str(scenarios.EMBEDDED)}
    chat_prompts = []
    if any(scenario.model == "chat" for scenario in chosen):
        path, chat_prompts = chat_model(args.models / "chat")
        models["chat"] = str(path)
    # From here on, whatever folder a process is started in; not resolved: an environment's interpreter is a link.
    peers = str(Path(args.peers).absolute())
    python = {name: peers if name == "tunix" else sys.executable for name in contenders}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    bench = Bench(contenders, python, args.tree, args.threads, models, chat_prompts, args.out)
    start = time.perf_counter()
    if chosen:
        bench.table(chosen)
    for function in rest:
        function(bench)
    print(f"\n{(time.perf_counter() - start) / 60:.1f} minutes; appended to {args.out}")


if __name__ == "__main__":
    main()
