"""int_jax's graders in their pool of processes."""

from answers import pairs

from int_jax.verify import verify_batch


def prepare(task: dict):
    """See worker.py; here a task is kind, golds, samples, rounds and grader, and each answer counts as a token."""
    given = [pairs(task["kind"], task["golds"], task["samples"], seed) for seed in range(task["rounds"] + 1)]

    def once(seed: int) -> list[int]:
        return [len(verify_batch(given[seed], task["grader"]))]

    return once
