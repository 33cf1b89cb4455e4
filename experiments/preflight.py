"""What is refused before a run starts, and would otherwise be refused hours later."""

import functools

import jax
from ml_collections import ConfigDict

from experiments import plan
from experiments.data_stages import Run
from experiments.training import policy_gradient
from int_jax import memory, proposers, rollout
from int_jax.engine import Sampling
from int_jax.stages import StageError
from int_jax.types import Task

BASELINES = ("rl", "rl_matched")  # what InT + RL is compared with
CHOICES = {
    "arms": ("int_rl", "rl"),
    "export": ("base", "int", "int_rl", *BASELINES),
    "problems.hard": ("train", "test"),
    "rl.pool": ("kept", "hard"),
}


def check(config: ConfigDict) -> None:
    """Refuse now what a stage would refuse when it comes to it, hours later. Raises: ValueError."""
    for knob, known in CHOICES.items():
        value = functools.reduce(getattr, knob.split("."), config)
        for one in (value,) if isinstance(value, str) else value:
            if one not in known:
                raise ValueError(f"config.{knob} = {value!r}: {one!r} is none of {', '.join(known)}")
    for name in (config.proposals.proposer, *config.proposals.compare):
        proposers.load(name)
    for name in ("attempts", "proposals", "guided", "eval"):
        Sampling(**config[name].sampling)
    policy_gradient(config)
    if max(config.eval.ks) > config.eval.samples:
        raise ValueError(
            f"config.eval.ks = {config.eval.ks} needs as many samples, and eval.samples = {config.eval.samples}"
        )


def check_lengths(run: Run, tasks: list[Task]) -> None:
    """Refuse rows too short for what may be sampled and trained, before anything is sampled. Raises: StageError."""
    c = run.config
    answer = max(c.rl.max_new_tokens, c.attempts.sampling.max_new_tokens if "int_rl" in c.arms else 0)
    for task in tasks:
        prompt = rollout.opened(run.domain, task).prompt_len
        if prompt + answer > c.train.row_length:
            raise StageError(
                f"config.train.row_length = {c.train.row_length} is too short: the prompt of task {task.id} has "
                f"{prompt} tokens and a response up to {answer}"
            )


def planned(config: ConfigDict, mesh) -> str:
    """The memory plan as text. Raises: ValueError, naming the knob to turn, where a stage does not fit."""
    limit = memory.device_bytes(jax.local_devices()[0]) or round(config.device_gib * memory.GIB) or None
    stages = plan.planned(config, mesh)
    memory.refuse(stages, limit)
    return memory.table(stages, limit)
