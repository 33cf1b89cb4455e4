"""int_jax by its public face alone, so that one file measures any commit of it."""

import dataclasses
import functools

import jax  # noqa: F401 (so that the worker counts programs from the start: int_jax imports it when it is first used)

import int_jax


@functools.cache
def load(model: str, dtype: str):
    return int_jax.load(model, dtype=dtype)


def prepare(task: dict):
    """See worker.py."""
    lm = load(task["model"], task["dtype"])
    # An engine that is told how many rows it gets; commits whose engine has no such knob find out by themselves.
    if task["slots"] and "slots" in {field.name for field in dataclasses.fields(lm.engine)}:
        lm = dataclasses.replace(lm, engine=dataclasses.replace(lm.engine, slots=task["slots"]))
    settings = {"samples": task["samples"], "max_new_tokens": task["new"], "stop_ids": task["stops"]}
    settings |= task["filters"]

    def once(seed: int) -> list[int]:
        # Keys and values of prompts are kept between calls: with another first token, an id of the prompt itself,
        # every call prefills its own.
        prompts = [[ids[(seed * 7 + 1) % len(ids)], *ids[1:]] for ids in task["prompts"]]
        groups = lm.generate(prompts, seed=seed, **settings)
        return [len(trace.response) for group in groups for trace in group]

    return once
