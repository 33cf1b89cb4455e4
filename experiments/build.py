"""A config as the objects it describes: models, and the lab of one seed."""

import dataclasses
import functools
import importlib.metadata
import sys
from pathlib import Path

import jax
from ml_collections import ConfigDict

import int_jax
from experiments import plan
from experiments.configs import default
from experiments.preflight import check, planned
from experiments.progress import show
from int_jax import domains, losses, proposers, samplers
from int_jax.batching import intervention_weights
from int_jax.domains import Domain
from int_jax.engine import Engine
from int_jax.lab import Lab, Store
from int_jax.lm import LM, keep_memory
from int_jax.policy_gradient import PolicyGradient, by_group
from int_jax.sampler import Sampling
from int_jax.sharding import make_mesh
from int_jax.stages import Share, Workdir
from int_jax.types import Task

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "numpy")


@functools.cache
def versions() -> dict[str, str]:
    """What the numbers of a run may depend on."""
    return {name: importlib.metadata.version(name) for name in PACKAGES} | {
        "python": sys.version.split()[0],
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }


def workdir(config: ConfigDict, seed: int, folder: Path, share: Share | None = None) -> Workdir:
    """The folder of the run of one seed. Raises: StageError where it holds another run."""
    machine = default.machine_knobs(config.domain.name)
    return Workdir(folder, {**config.to_dict(), "seed": seed}, versions(), machine, share)


def fitted(config: ConfigDict) -> ConfigDict:
    """The config, looked through, with what fits on these devices in place of 0. Raises: ValueError."""
    check(config)
    return plan.fitted(config, plan.at_hand(config), *plan.models(config))


def models(config: ConfigDict) -> tuple[LM, LM | None]:
    """The policy, and the proposer's model or None, of a config that was fitted, once its memory plan has been looked
    through."""
    if jax.default_backend() == "cpu":
        keep_memory()
    mesh = make_mesh(config.mesh.data, config.mesh.model)
    show(planned(config, mesh))
    # Where adapters are trained the base model is kept once, as it is sampled from.
    trained = None if config.lora.rank else config.param_dtype
    lm = served(config, mesh, loaded(config, mesh, config.model, trained))
    domains.load(config.domain.name, lm.tokenizer, **config.domain.knobs.to_dict())
    other = config.proposals.model
    return lm, loaded(config, mesh, other, None, config.proposals.chat, "") if other else None


def loaded(
    config: ConfigDict,
    mesh,
    name: str,
    param_dtype: str | None = None,
    chat: ConfigDict | None = None,
    family: str | None = None,
) -> LM:
    """A model with an engine of the config's size; by default with the policy's chat template and family."""
    chat = config.chat if chat is None else chat
    family = config.family if family is None else family
    lm = int_jax.load(name, mesh, config.dtype, param_dtype, chat.to_dict(), family)
    return dataclasses.replace(lm, engine=Engine(lm.model, mesh, **sampler_knobs(config)))


def sampler_knobs(config: ConfigDict) -> dict:
    """What an engine is told of its sampler."""
    return {name: config[name] for name in ("slots", "decode_steps", "attention", "cache_gib")}


def served(config: ConfigDict, mesh, lm: LM) -> LM:
    """The policy with its responses drawn by the config's server, where it names one."""
    c = config.sampler
    if not c.kind:
        return lm
    made = samplers.load(c.kind)(
        c.url,
        weights=c.weights,
        config=lm.model.config if c.weights else None,
        scorer=lm.engine,
        at_once=c.at_once,
    )
    engine = samplers.ServedEngine(lm.model, mesh, **sampler_knobs(config), sampler=made)
    return dataclasses.replace(lm, engine=engine)


def sampling(knobs, domain: Domain, seed: int) -> Sampling:
    return Sampling(**knobs, stop_ids=domain.tokenizer.stop_ids, seed=seed)


def proposer(config: ConfigDict, name: str) -> proposers.Proposer:
    """The proposer of that name; the teacher with where it is asked."""
    found = proposers.load(name)
    return functools.partial(found, **config.proposals.teacher) if name == "teacher" else found


def policy_gradient(config: ConfigDict) -> PolicyGradient:
    """The knobs of a config. Raises: ValueError, naming the knob and its choices."""
    c, packing = config.rl, config.train
    batch = (
        "problems",
        "group",
        "normalise",
        "kl",
        "old",
        "passes",
        "minibatches",
        "lag",
        "refill",
        "overlong",
    )
    loss = ("clip", "clip_low", "clip_high", "ratio", "importance_cap")
    return PolicyGradient(
        **{name: c[name] for name in batch},
        advantages=by_group(c.advantage),
        rewards=c.rewards.to_dict(),
        loss=losses.LossConfig(
            **{name: c[name] for name in loss}, logit_chunk=packing.logit_chunk, remat=packing.remat
        ),
    )


def lab(
    config: ConfigDict,
    seed: int,
    lm: LM,
    proposer_lm: LM | None,
    domain: Domain,
    tasks: list[Task],
    store: Store,
) -> Lab:
    """The lab of one seed."""
    c, rows = config, {"row_length": config.train.row_length, "rows": config.train.rows}

    def drawn(knobs) -> Sampling:
        return sampling(knobs, domain, seed)

    def trained(section) -> dict:
        return {name: section[name] for name in ("learning_rate", "weight_decay", "clip_norm")} | rows

    knobs = {
        "attempts": {
            "samples": c.attempts.tries,
            "keep": c.attempts.keep,
            "keep_right": c.attempts.keep_right,
            "sampling": drawn(c.attempts.sampling),
        },
        "proposals": {
            "propose": proposer(c, c.proposals.proposer),
            "samples": c.proposals.samples,
            "sampling": drawn(c.proposals.sampling),
            "max_prompt": c.proposals.max_prompt,
        },
        "guided": {
            "tries": c.guided.tries,
            "sampling": drawn(c.guided.sampling),
            "stop_at_success": c.guided.stop_at_success,
            "at_once": c.guided.at_once,
            "keep": c.guided.keep,
        },
        "gain": {"samples": c.gain.samples, "sampling": drawn(c.guided.sampling)},
        "sft": {
            **trained(c.sft),
            "epochs": c.sft.epochs,
            "batch_size": c.sft.batch,
            "warmup": c.sft.warmup,
            "weigh": functools.partial(
                intervention_weights, prefix=c.sft.prefix, intervention=c.sft.intervention
            ),
            "end_of_turn": domain.tokenizer.end_of_turn if c.sft.end_of_turn else None,
            "loss": losses.LossConfig(logit_chunk=c.train.logit_chunk, remat=c.train.remat),
        },
        "rl": {
            **trained(c.rl),
            "knobs": policy_gradient(c),
            "sampling": drawn({"temperature": c.rl.temperature, "max_new_tokens": c.rl.max_new_tokens}),
            "updates": c.rl.updates,
            "tasks": c.rl.pool,
        },
    }
    return Lab(
        lm.engine,
        lm.params,
        domain,
        tasks,
        knobs,
        seed,
        unsolved="train" in c.problems.hard,
        filter=c.sft.filter,
        proposer_lm=proposer_lm,
        store=store,
        tell=lambda said: show(f"\n{said}\n"),
        lora=default.adapters(c),
    )
