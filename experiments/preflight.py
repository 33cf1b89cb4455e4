"""What is refused before a run starts, and would otherwise be refused hours later, or do nothing for hours."""

import math
from collections.abc import Iterator

from ml_collections import ConfigDict

from experiments import arms, plan
from experiments.configs import default
from int_jax import domains, hf_format, memory, policy_gradient, proposers, rollout, samplers
from int_jax.knobs import Knob
from int_jax.lab import Lab
from int_jax.lm import directory
from int_jax.proposers import teacher
from int_jax.report import writers
from int_jax.stages import StageError
from int_jax.types import Task


def check(config: ConfigDict) -> None:
    """Refuse now what a stage would refuse when it comes to it, hours later. Raises: ValueError, all faults in it."""
    default.check(config)
    found = [f"config.{one}" for one in clashes(config)]
    if found:
        raise ValueError("\n".join(found))


EXACT = ("oracle", "random_step", "last_step")  # proposers that ask the domain for the right step


def clashes(c: ConfigDict) -> Iterator[str]:
    """Knobs that are good alone and not together: what is wrong with them, and what to set."""
    p, domain = c.problems, domains.find(c.domain.name)
    for name in dict.fromkeys((c.proposals.proposer, *c.proposals.compare)):
        try:
            proposers.load(name)
        except ValueError as error:
            yield f"proposals: {error}"
    yield from sampler_clashes(c)
    if "teacher" in (c.proposals.proposer, *c.proposals.compare):
        t, drawn = c.proposals.teacher, c.proposals.sampling
        for one in teacher.faults(t.url, t.model, t.key_variable, drawn.top_k, drawn.min_p):
            yield f"proposals.teacher: {one}"
    for name in c.writers:
        try:
            writers.load(name)
        except ValueError as error:
            yield f"writers = {c.writers}: {error}"
    for name in c.arms:
        try:
            arms.load(name)
        except ValueError as error:
            yield f"arms: {error}"
            return
    stages, made = arms.stages(c.arms), arms.policies(c.arms)
    for name in c.arms:
        for needed in (one for one in arms.load(name).needs if one not in made):
            yield f"arms = {c.arms}: the arm {name!r} goes on from {needed!r}, which none of them makes; add its arm"
    makers: dict[str, str] = {}
    for name in c.arms:
        yield from arm_clashes(c, name, domain)
        for policy in arms.load(name).policies:
            if (other := makers.setdefault(policy, name)) != name:
                yield f"arms: {name!r} and {other!r} both make {policy!r}; rename the policy of one of them"
    if max(c.eval.ks) > c.eval.samples:
        yield f"eval.ks = {c.eval.ks} needs as many samples, and eval.samples = {c.eval.samples}: set one of them"
    if c.mesh.data == c.mesh.model == -1:
        yield "mesh.data = config.mesh.model = -1: one of the two takes what the other leaves; set the other"
    for name in (name for name in c.export if name not in made):
        yield f"export = {c.export}: arms = {c.arms} make no policy {name!r}, only {', '.join(made)}; set export"
    yield from checkpoint_clashes(c)
    yield from validation_clashes(c)
    yield from lora_clashes(c)
    yield from policy_gradient_clashes(c)
    if c.rl.pool == "kept" and "guided" not in stages:
        yield f"rl.pool = 'kept': arms = {c.arms} keep no problems, as nothing is filtered; set rl.pool to hard"
    if c.enter.source and (p.train_file or c.inputs.attempts):
        yield (
            f"enter.source = {c.enter.source!r} brings problems and attempts, beside problems.train_file = "
            f"{p.train_file!r} and inputs.attempts = {c.inputs.attempts!r}; set either"
        )
    if "proposals" not in stages:
        return
    if not (c.sft.prefix or c.sft.intervention):
        yield "sft.prefix = config.sft.intervention = 0: no token is trained; set one of them above 0"
    if c.sft.end_of_turn and not domain.separator:
        yield (
            f"sft.end_of_turn: an intervention of the domain {c.domain.name} is a turn, whose end is trained anyhow; "
            "set it to False"
        )
    if not domain.oracle:
        known = f"the domain {c.domain.name} does not know where an attempt's first error is"
        if c.proposals.proposer in EXACT:
            yield f"proposals.proposer = {c.proposals.proposer!r}: {known}; set proposals.proposer to self_verify"
        if c.proposals.compare:
            yield f"proposals.compare = {c.proposals.compare}: {known}, so nothing can be compared; set it to ()"


def arm_clashes(c: ConfigDict, name: str, domain) -> Iterator[str]:
    """What an arm needs of the domain and of other knobs, and does not find."""
    arm, known = arms.load(name), f"arms: {name!r} needs"
    for role in arm.roles:
        if role not in domain.roles:
            yield (
                f"{known} the role {role!r}, which the domain {c.domain.name} does not know; leave the arm out, or let "
                f"the domain's view answer it and name it in its roles = {domain.roles}"
            )
    if arm.oracle and not domain.oracle:
        yield (
            f"{known} a domain that knows where an attempt's first error is, and {c.domain.name} does not; leave the "
            "arm out"
        )
    for knob, least in arm.at_least.items():
        section, field = knob.split(".")
        if c[section][field] < least:
            yield f"{known} {knob} of at least {least}, and it is {c[section][field]}; set it so"


def sampler_clashes(c: ConfigDict) -> Iterator[str]:
    """A server that cannot be asked, or to which a trained policy has no way."""
    kind, knobs = c.sampler.kind, c.sampler
    if not kind:
        for name in (name for name in ("url", "weights") if knobs[name]):
            yield f"sampler.{name} = {knobs[name]!r}: sampler.kind = '' asks no server; set it, or leave that empty"
        return
    try:
        samplers.load(kind)
    except ValueError as error:
        yield f"sampler.kind: {error}"
    if not knobs.url:
        yield f"sampler.kind = {kind!r} and sampler.url = '': say where the server is"
    if not knobs.weights:
        yield (
            f"sampler.kind = {kind!r} and sampler.weights = '': the policies that are trained do not reach the server, "
            "which is to draw from them; name a folder that both see"
        )


def checkpoint_clashes(c: ConfigDict) -> Iterator[str]:
    """Checkpoints that would be kept and never stand, or that nothing tells apart."""
    for section, batch in {"sft": 1, "rl": c.rl.passes * c.rl.minibatches}.items():
        knobs = c[section]
        step = math.lcm(knobs.checkpoint_every, batch)  # where checkpoints stand at whole multiples
        if knobs.keep_every % step:
            yield (
                f"{section}.keep_every = {knobs.keep_every}: there is a checkpoint every "
                f"{section}.checkpoint_every = {knobs.checkpoint_every} updates, at the end of a batch of {batch}; set "
                f"it to a multiple of {step}"
            )
        if knobs.keep_best and not c.validation.every:
            yield (
                f"{section}.keep_best = {knobs.keep_best}: nothing tells which checkpoint is best with "
                "validation.every = 0; set that to a divisor of the updates between checkpoints"
            )
        elif knobs.keep_best and knobs.checkpoint_every % c.validation.every:
            yield (
                f"{section}.keep_best = {knobs.keep_best}: with {section}.checkpoint_every = {knobs.checkpoint_every} "
                f"and validation.every = {c.validation.every} there are checkpoints that were not evaluated; set the "
                "first to a multiple of the second"
            )


def validation_clashes(c: ConfigDict) -> Iterator[str]:
    """Problems to choose by that are those to report, and knobs of problems that are not asked for."""
    p, v = c.problems, c.validation
    from_domain = not (v.file or p.train_file or c.enter.source)
    if v.every and from_domain and p.test_split == "hard_validation" and not p.test_file:
        yield (
            "validation.every: the validation problems are those of problems.test_split = 'hard_validation', which are "
            "reported in the end; set that to hard_test, or give validation.file"
        )
    if v.file and not v.every:
        yield f"validation.file = {v.file!r} is not read with validation.every = 0; set one of them"


def lora_clashes(c: ConfigDict) -> Iterator[str]:
    """Knobs of adapters that are not asked for."""
    if not c.lora.rank:
        for name in ("alpha", "matrices"):
            if c.lora[name] != (usual := default.TABLE["lora"][name].value):
                yield (
                    f"lora.{name} = {c.lora[name]!r} changes nothing with lora.rank = 0: set that to the adapters' "
                    f"rank, or lora.{name} = {usual!r}"
                )


def policy_gradient_clashes(c: ConfigDict) -> Iterator[str]:
    """Knobs of the policy gradient that would change nothing beside the others, or that no batch can follow."""
    rl, domain = c.rl, domains.find(c.domain.name)
    updates, samples = rl.passes * rl.minibatches, rl.problems * rl.group
    if rl.old == "current" and updates == 1:
        for name in ("clip", "clip_low", "clip_high", "ratio"):
            if rl[name] != default.TABLE["rl"][name].value:
                yield (
                    f"rl.{name} = {rl[name]!r} changes nothing: the one update on a batch (rl.passes = rl.minibatches "
                    "= 1) has the ratio 1 everywhere; set one of them above 1, or rl.old = 'sampler'"
                )
    if rl.old == "sampler" and rl.importance_cap:
        yield (
            f"rl.importance_cap = {rl.importance_cap} changes nothing: with rl.old = 'sampler' the ratio itself is "
            "taken to the sampler; set rl.old = 'current', or rl.importance_cap = 0"
        )
    if rl.lag and rl.old == "current" and not rl.importance_cap:
        yield (
            f"rl.lag = {rl.lag}: tokens that older policies drew would count as the present one's; weigh them with "
            "rl.importance_cap (2, say), or take the ratio to what drew them with rl.old = 'sampler'"
        )
    if rl.updates % updates:
        yield (
            f"rl.updates = {rl.updates} is no whole number of batches of rl.passes x rl.minibatches = {updates} "
            f"updates; set it to {-(-rl.updates // updates) * updates}"
        )
    if rl.minibatches > samples:
        yield (
            f"rl.minibatches = {rl.minibatches} is more than rl.problems x rl.group = {samples} samples of a batch; "
            "set it to that at most"
        )
    yield from reward_clashes(rl, domain)


def reward_clashes(rl: ConfigDict, domain) -> Iterator[str]:
    """What is wrong with the parts of the reward and their weights."""
    rewards, known = rl.rewards.to_dict(), (*policy_gradient.PARTS, *domain.REWARDS)
    weights = Knob(1.0, "of a part of the reward")
    for name, weight in rewards.items():
        if name not in known:
            yield f"rl.rewards has no part {name!r}: the domain {domain.name} has {', '.join(known)}"
        elif not weights.allows(weight) or not weight:
            yield f"rl.rewards.{name} = {weight!r}: must be a number other than 0; leave the part out for 0"
        elif len(rewards) == 1 and weight > 0 and weight != 1 and rl.advantage in ("mean_std", "batch"):
            yield (
                f"rl.rewards.{name} = {weight} changes nothing: rl.advantage = {rl.advantage!r} divides by the "
                "standard deviation, and there is no other part to weigh it against; set it to 1.0"
            )
    if not rewards:
        yield "rl.rewards = {} rewards nothing: set it to {'score': 1.0}, the domain's verdict"
    if ("overlong" in rewards) != (rl.overlong > 0):
        yield (
            f"rl.overlong = {rl.overlong} tokens and rl.rewards = {rewards} go together: give the part 'overlong' a "
            "weight and rl.overlong a number of tokens, or neither"
        )
    if rl.overlong > rl.max_new_tokens:
        yield (
            f"rl.overlong = {rl.overlong} is more than rl.max_new_tokens = {rl.max_new_tokens}, the longest response; "
            "set it below"
        )


def draws_proposals(c: ConfigDict) -> bool:
    """Whether a model here is asked for interventions: oracle and teacher ask none, and they may come from a file."""
    asked = {*c.proposals.compare} | (set() if c.inputs.proposals else {c.proposals.proposer})
    return "proposals" in arms.stages(c.arms) and bool(asked - {"oracle", "teacher"})


def check_lengths(c: ConfigDict, lab: Lab, test: list[Task]) -> None:
    """Refuse problems without a place for a response, in the model's positions or in a row of training, and proposals
    that no problem leaves room for, before anything is sampled. Raises: StageError."""
    positions = lab.engine.max_len
    drawn = c.attempts.sampling.max_new_tokens if "attempts" in arms.stages(c.arms) else 0
    answer = max(c.rl.max_new_tokens, drawn)
    trained = {task.id for task in lab.tasks}
    for task in [*lab.tasks, *test]:
        prompt = rollout.open_trace(lab.domain, task).prompt_len
        if prompt >= positions:
            raise StageError(
                f"the prompt of task {task.id} has {prompt} tokens, and the model has {positions} positions: leave the "
                "problem out, or set config.model to a model with more"
            )
        if task.id in trained and min(prompt + answer, positions) > c.train.row_length:
            raise StageError(
                f"config.train.row_length = {c.train.row_length} is too short: the prompt of task {task.id} has "
                f"{prompt} tokens and a response up to {answer}"
            )
    if lab.tasks and draws_proposals(c):
        check_proposals(lab)


def check_proposals(lab: Lab) -> None:
    """Refuse a room for the proposer's prompts in which no problem has place, even without its attempt."""
    asked = lab.proposer_lm or lab
    tokenizer = lab.proposer_lm.tokenizer if lab.proposer_lm else lab.domain.tokenizer
    knobs = lab.knobs["proposals"]
    room = proposers.room(asked.engine, knobs["sampling"], knobs["max_prompt"])
    first = lab.domain.proposal_roles[0]
    shortest = min(len(tokenizer.render(lab.domain.view(task, [], first))) for task in lab.tasks)
    if shortest > room:
        raise StageError(
            f"config.proposals.max_prompt = {knobs['max_prompt']} and proposals.sampling.max_new_tokens = "
            f"{knobs['sampling'].max_new_tokens} leave {room} of the proposer's {asked.engine.max_len} "
            f"positions for a prompt, and the shortest of {len(lab.tasks)} has {shortest} tokens before its attempt: "
            "every attempt would be dropped as too long; set max_prompt higher or max_new_tokens lower"
        )


def check_positions(c: ConfigDict) -> None:
    """Refuse a proposal that takes all positions of the model, whose config.json is read. Raises: ValueError."""
    name, own_family = (c.proposals.model, "") if c.proposals.model else (c.model, c.family)
    positions = hf_format.read_config(directory(name), c.dtype, own_family).max_len
    new = c.proposals.sampling.max_new_tokens
    if draws_proposals(c) and new >= positions:
        raise ValueError(
            f"config.proposals.sampling.max_new_tokens = {new} leaves no room for a prompt: {name} has {positions} "
            f"positions, so every attempt would be dropped as too long; set it well below {positions}"
        )


def planned(config: ConfigDict, mesh) -> str:
    """The memory plan as text. Raises: ValueError, naming the knob to turn, where a stage does not fit."""
    data = mesh.shape["data"]
    if config.slots % data:
        raise ValueError(
            f"config.slots = {config.slots} is not a multiple of the mesh's data axis, {data}: set it to "
            f"{-(-config.slots // data) * data}, or config.mesh.data to a divisor of it"
        )
    platform = mesh.devices.flat[0].platform
    if config.attention not in ("", "xla", platform):
        raise ValueError(
            f"config.attention = {config.attention!r} is a kernel for other devices than these, {platform}: leave it "
            "empty, or set it to xla"
        )
    check_positions(config)
    limit = plan.at_hand(config).limit
    model, other = plan.models(config)
    stages = plan.stages(config, model, mesh, other, platform)
    memory.refuse(stages, limit, platform)
    return f"{plan.sizes_of(config, mesh, platform)}\n{memory.table(stages, limit)}"
