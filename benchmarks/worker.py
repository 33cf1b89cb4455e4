"""A process in which one contender draws; it is told what to do in JSON lines, and answers each with one.

    python benchmarks/worker.py CONTENDER [THREADS]

CONTENDER names a module in contenders/: its `prepare(task)` loads what the task names and gives `once(seed)`, which
draws one batch and returns how many tokens each response has. A task: model (a directory), dtype, prompts (ids),
samples (of each), new (tokens at most), stops (ids), filters ({"top_k": ...}), slots (rows, 0: the contender's
default), cache (positions of the cache where the contender is told, 0: as needed).

Says {"versions", "device", "threads"}, then answers {"task": {...}} with {"seconds", "tokens", "programs", "peak_mib"}
of the first call, compilation included, and {"seed": n} with the same of one more call of the same task.
"""

import importlib
import importlib.metadata
import json
import os
import resource
import sys
import time

NAMES = ("int_jax", "jax", "torch", "transformers", "google-tunix", "math-verify")


def main(contender: str, threads: str = "") -> None:
    cpus = sorted(os.sched_getaffinity(0))
    # Before jax and torch come: both count the CPUs that they may use when they start their threads.
    os.sched_setaffinity(0, cpus[: int(threads or len(cpus))])
    # What a library prints goes to the errors; the answers have the pipe for themselves.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    module = importlib.import_module(f"contenders.{contender}")
    programs = [0]
    device = "cpu"
    if "jax" in sys.modules:
        import jax

        def count(event, *_, **__):
            programs[0] += event == "/jax/core/compile/backend_compile_duration"

        jax.monitoring.register_event_duration_secs_listener(count)
        device = jax.devices()[0].device_kind

    def say(**answer):
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    installed = {d.metadata["Name"] for d in importlib.metadata.distributions()}
    versions = {name: importlib.metadata.version(name) for name in NAMES if name in installed}
    say(versions=versions, device=device, threads=len(os.sched_getaffinity(0)))
    once = None
    for line in sys.stdin:
        told = json.loads(line)
        before, start = programs[0], time.perf_counter()
        if "task" in told:
            once = module.prepare(told["task"])
            start = time.perf_counter()
        tokens = once(told.get("seed", 0))
        seconds = time.perf_counter() - start
        say(
            seconds=seconds,
            tokens=sum(tokens),
            programs=programs[0] - before,
            peak_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
