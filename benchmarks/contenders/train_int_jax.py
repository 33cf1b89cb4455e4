"""int_jax: batches packed as a run packs them, `Engine.update`, and for an iteration of GRPO its sampler."""

import dataclasses

import jax
import numpy as np
import optax

import int_jax
from contenders.batches import advantages
from int_jax.batching import pack, reinforced, supervised
from int_jax.losses import LossConfig


def prepare(task: dict):
    """See training.py."""
    lm, tx = int_jax.load(task["model"], dtype=task["dtype"]), optax.adamw(task["rate"], weight_decay=0.0)
    state = lm.engine.state(lm.params, tx)
    config = LossConfig(logit_chunk=task["length"])

    def update(sequences) -> float:
        nonlocal state
        batch = pack(sequences, task["length"], task["rows"])
        state, metrics = lm.engine.update(state, batch, tx, config)
        return float(jax.block_until_ready((state, metrics))[1]["loss"])

    def supervised_once(seed: int, whole: bool = False):
        loss = update([supervised(ids, np.arange(len(ids)) > 0) for ids in task["sequences"]])
        return loss if whole else [len(ids) for ids in task["sequences"]]

    def grpo_once(seed: int) -> list[int]:
        now = dataclasses.replace(lm, params=state.params)
        settings = {"samples": task["samples"], "max_new_tokens": task["new"], "stop_ids": []}
        groups = now.generate(task["prompts"], seed=seed, **settings)
        traces = [trace for group in groups for trace in group]
        weights = advantages(np.stack([trace.response for trace in traces]), task["samples"])
        update([reinforced(*pair) for pair in zip(traces, weights, strict=True)])
        return [len(trace.response) for trace in traces]

    return supervised_once if "sequences" in task else grpo_once
