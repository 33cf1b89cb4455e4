"""What a config asks for, stage by stage: responses drawn, sequences scored and trained; and the hours of it.

How long responses are and how often they are right is not known before a run: `Assumed` has what is taken, by default
InT's figures. What is drawn is counted as the run's stages draw it; the hours are those of the roofline (roofline.py),
with waiting for the longest response at the end of each session, and nothing else that is not matrices or memory: no
compilation, no grading, no checkpoints.
"""

import dataclasses
import functools
import statistics
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from experiments import arms
from int_jax import domains, roofline
from int_jax.intervention_training import sft_steps
from int_jax.roofline import Device, Shape

LIMIT = (
    16_384  # tokens: where a response may have as many, it has the medians of `Assumed`, else in proportion
)
SPREAD = 0.75  # of the logarithm of a length


@dataclasses.dataclass(frozen=True)
class Assumed:
    """What is not known before a run. Lengths are lognormal, cut at the limit of their stage.

    Attributes:
      response, prefix, continuation, check: median tokens where 16,384 are the limit: of a response to a problem, of
        what is kept of an attempt, of what is drawn after that, of each turn of a check.
      problem, reference, intervention: tokens, of all alike.
      hard: share of the problems without a right try. spliced: of the wrong attempts, those that get an intervention.
        mended: of these, those with a right continuation. right: share of the right ones among their continuations.
      signal: share of the policy gradient's groups that have an advantage.
    """

    response: float = 6_000
    prefix: float = 3_500
    continuation: float = 5_500
    check: float = 4_500
    problem: float = 200
    reference: float = 1_300
    intervention: float = 60
    hard: float = 0.9
    spliced: float = 0.91
    mended: float = 0.15
    right: float = 0.28
    signal: float = 0.5

    def __str__(self) -> str:
        return ", ".join(f"{name}={value:g}" for name, value in dataclasses.asdict(self).items())

    def changed(self, changes: Iterable[str]) -> "Assumed":
        """With other values, each given as "response=8000". Raises: ValueError."""
        known, found = dataclasses.asdict(self), {}
        for name, _, value in (change.partition("=") for change in changes):
            if name not in known:
                raise ValueError(f"--assume={name}: what is assumed is {self}")
            try:
                found[name] = float(value)
            except ValueError:
                raise ValueError(f"--assume={name}={value}: must be a number") from None
        return dataclasses.replace(self, **found)


class Length(NamedTuple):
    """Tokens of a response: the mean, the longest, and the mean square over the mean, by which it is read."""

    mean: float
    most: float
    square: float


@functools.cache
def length(median: float, limit: int, scaled: bool = True) -> Length:
    """Of lognormal responses cut at `limit`. scaled: the median holds for a limit of 16,384."""
    normal = statistics.NormalDist()
    quantiles = np.array([normal.inv_cdf((i + 0.5) / 1_000) for i in range(1_000)])
    median *= limit / LIMIT if scaled else 1
    drawn = np.minimum(median * np.exp(SPREAD * quantiles), limit)
    return Length(float(drawn.mean()), float(drawn.max()), float((drawn**2).mean() / drawn.mean()))


# Of responses: what the longer ones see more than the mean one.
SQUARE = length(6_000, LIMIT).square / length(6_000, LIMIT).mean


class Draw(NamedTuple):
    """Responses: `times` sessions of so many requests, of which `samples` have one prompt of `prompt` tokens."""

    stage: str
    requests: float
    prompt: float
    length: Length
    samples: float = 1
    times: float = 1

    @property
    def tokens(self) -> float:
        return self.times * self.requests * self.length.mean


class Read(NamedTuple):
    """Sequences of so many tokens that are scored once, or trained in so many updates."""

    stage: str
    sequences: float
    length: float
    updates: float = 0

    @property
    def tokens(self) -> float:
        return self.sequences * self.length


# Stages ---------------------------------------------------------------------------------------------------------------


def stages(c: ConfigDict, a: Assumed) -> list[Draw | Read]:
    """What the run of one seed does, in its order. An arm counts by the stages that it names; what else it draws does
    not."""
    used, chosen = arms.stages(c.arms), [arms.load(name) for name in c.arms]
    hard = c.problems.train * (a.hard if "train" in c.problems.hard else 1)
    wrong = hard * min(c.attempts.keep, c.attempts.tries)
    guided = wrong * a.spliced
    attempt = length(a.response, c.attempts.sampling.max_new_tokens)
    prefix = length(a.prefix, c.attempts.sampling.max_new_tokens)
    spliced = a.problem + prefix.mean + a.intervention
    rest = length(a.continuation, c.guided.sampling.max_new_tokens)
    found: list[Draw | Read] = []

    def attempts(name: str, problems: float) -> Draw:
        return Draw(name, problems * c.attempts.tries, a.problem, attempt, c.attempts.tries)

    if "attempts" in used or "train" in c.problems.hard:
        found.append(attempts("attempts", c.problems.train))
    if "test" in c.problems.hard:
        found.append(attempts("attempts held out", c.problems.test))
    if "proposals" in used:
        found += proposals(c, a, "proposals", c.proposals.proposer, wrong)
    if "guided" in used:
        tries = expected_tries(c, a)
        found.append(Draw("guided", guided * tries, spliced, rest, tries))
        if c.sft.filter == "gain":
            found.append(Draw("gain", 2 * guided * c.gain.samples, spliced, rest, c.gain.samples))
    updates = {"sft": 0, "rl": 0}  # of one arm
    if "sft" in used:
        kept = max(1, round(guided * (1 if c.sft.filter == "none" else a.mended)))
        updates["sft"] = sft_steps(kept, c.sft.epochs, c.sft.batch)
        often = sum("sft" in arm.stages for arm in chosen)
        found.append(Read("sft", often * c.sft.epochs * kept, spliced, often * updates["sft"]))
    if "rl" in used:
        updates["rl"] = c.rl.updates
        found += policy_gradient(c, a, sum(part.tokens for part in found))
    drawn = length(a.response, c.eval.sampling.max_new_tokens)
    if c.validation.every:
        often = sum(
            -(-updates[section] // c.validation.every)
            for arm in chosen
            for section in updates
            if section in arm.stages
        )
        asked = c.validation.problems * c.validation.samples
        found.append(Draw("validation", asked, a.problem, drawn, c.validation.samples, often))
    if {"proposals", "guided"} <= used:
        from_start = length(a.continuation, c.eval.sampling.max_new_tokens)
        asked = min(c.effect.problems, hard) * c.effect.samples
        found.append(Draw("effect", 4 * asked, spliced, from_start, c.effect.samples))
        some = min(wrong, c.proposals.compare_attempts)
        for name in c.proposals.compare:
            found += proposals(c, a, "compare", name, some)
        asked = 2 * min(some, c.gain.attempts) * (1 + len(c.proposals.compare)) * c.gain.samples
        found += [Draw("gain", asked, spliced, rest, c.gain.samples)] if asked else []
    policies = len(arms.policies(c.arms))
    asked = (c.problems.test + min(c.eval.train_problems, hard)) * c.eval.samples
    found.append(Draw("eval", asked, a.problem, drawn, c.eval.samples, policies))
    read = c.drift.attempts * attempt.mean + (c.drift.guided * spliced if "guided" in used else 0)
    texts = c.drift.attempts + (c.drift.guided if "guided" in used else 0)
    found.append(Read("drift", (policies + 1) * texts, a.problem + read / texts))
    return found


def proposals(c: ConfigDict, a: Assumed, stage: str, proposer: str, attempts: float) -> list[Draw | Read]:
    """What a proposer draws; those that ask no model of the run's, and those of one's own, count nothing."""
    knobs, turns = c.proposals, len(domains.find(c.domain.name).proposal_roles)
    attempt = length(a.response, c.attempts.sampling.max_new_tokens).mean
    informed = a.problem + a.reference
    if proposer == "likelihood_ratio":
        step = length(a.intervention, knobs.sampling.max_new_tokens, scaled=False)
        read = Read(stage, 2 * attempts, informed + attempt)
        return [read, Draw(stage, attempts * knobs.samples, informed + attempt / 2, step, knobs.samples)]
    if proposer != "self_verify":
        return []
    check = length(a.check, knobs.sampling.max_new_tokens)
    found: list[Draw | Read] = []
    if turns > 1:
        found.append(Draw(stage, attempts * (turns - 1), informed, check))
    prompt = min(informed + (turns - 1) * check.mean + a.problem + attempt, knobs.max_prompt)
    return [*found, Draw(stage, attempts * knobs.samples, prompt, check, knobs.samples)]


def expected_tries(c: ConfigDict, a: Assumed) -> float:
    """Continuations of a guided attempt, until a round has a right one where that is enough."""
    knobs = c.guided
    if not knobs.stop_at_success:
        return knobs.tries
    rounds = range(0, knobs.tries, knobs.at_once)
    asked = [min(knobs.at_once, knobs.tries - before) for before in rounds]
    # Of those that can be mended a share of 0.72^8 = 7% is not after 8 tries.
    still = [1 - a.mended * (1 - (1 - a.right) ** before) for before in rounds]
    return sum(share * count for share, count in zip(still, asked, strict=True))


def policy_gradient(c: ConfigDict, a: Assumed, data_tokens: float) -> list[Draw | Read]:
    """Rollouts and updates of all arms. data_tokens: of the stages before, which "RL matched" goes on to spend."""
    knobs, drawn = c.rl, length(a.response, c.rl.max_new_tokens)
    asked, batches = knobs.problems * knobs.group, knobs.updates / (knobs.passes * knobs.minibatches)
    times = batches * sum("rl" in arms.load(name).stages and name != "rl_matched" for name in c.arms)
    if "rl_matched" in c.arms:
        times += data_tokens / (asked * drawn.mean)
    sequence = a.problem + drawn.mean
    found: list[Draw | Read] = [Draw("rl: rollouts", asked, a.problem, drawn, knobs.group, times)]
    if scores(c):
        found.append(Read("rl: scoring", times * asked, sequence))
    trained = times * asked * (1 if knobs.kl else a.signal) * knobs.passes
    return [*found, Read("rl: updates", trained, sequence, times * knobs.passes * knobs.minibatches)]


def scores(c: ConfigDict) -> bool:
    """Whether a batch of the policy gradient is scored before it is trained on."""
    return bool(c.rl.kl or (c.rl.old == "current" and c.rl.passes * c.rl.minibatches > 1))


# Hours ----------------------------------------------------------------------------------------------------------------


def draw_hours(
    part: Draw, device: Device, shape: Shape, data: int, model: int, rows: int, pool: float
) -> float:
    """Hours of a stage that draws.

    Args:
      data, model: replicas, and devices of each. rows: of a replica. pool: tokens that its pages hold.
    """
    held = part.prompt / min(part.samples, rows) + part.length.square / 2
    rows = max(1, min(rows, int(pool / held)))
    asked = part.requests / data
    # All rows run until requests are out, and then one waits for the longest: 32 requests on 128 rows take as many
    # steps as the longest has tokens.
    full = max(asked / rows, 1.0) * part.length.mean
    steps = full + part.length.most - part.length.mean
    read = asked * part.length.mean * (part.prompt + part.length.square / 2)
    once = asked / min(part.samples, asked) * part.prompt
    return (
        part.times
        * float(
            roofline.decode_seconds(device, shape, steps, read, model)
            + roofline.forward_seconds(device, shape, once, once * part.prompt / 2, model=model)
        )
        / 3600
    )


def read_hours(part: Read, device: Device, shape: Shape, devices: int) -> float:
    """Hours of a stage that scores or trains."""
    seen = part.tokens * part.length / 2 * SQUARE
    if part.updates:
        return (
            float(roofline.training_seconds(device, shape, devices, part.tokens, seen, part.updates)) / 3600
        )
    return float(roofline.forward_seconds(device, shape, part.tokens, seen)) / devices / 3600
