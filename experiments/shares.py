"""One job's share of a run's data (`run.py --share=I/N`): its shards of every stage that needs no trained policy.

A job goes through the stages as the run does, and makes its own shards of each (`Workdir.rows`). Where others' shards
are missing it goes no further along that way. The run that trains finds all of them, and makes what is left: the effect
of an intervention and the drift, which are one shard each, and what trained policies draw.
"""

import contextlib
from collections.abc import Callable

from ml_collections import ConfigDict

from experiments import arms, build
from experiments.diagnose import INTERVENED, Interventions, compared, intervention_gains
from experiments.evaluate import held_out, policy_rows, sets
from int_jax.lab import Lab, Stopped
from int_jax.rows import GAIN, GUIDED
from int_jax.sampler import Sampling
from int_jax.stages import Awaited
from int_jax.types import Task


def make(config: ConfigDict, lab: Lab, test: list[Task], sampling: Sampling) -> list[str]:
    """Make this job's shards of all stages, as far as the shards of others are there.

    Args:
      test: problems to evaluate on, before hard ones are chosen. sampling: of the evaluation.

    Returns: what further shards of this job wait for, a text a stage; none where nothing is left to it.
    """
    awaited: list[str] = []

    def tried(stage: Callable):
        """What a stage gives; None where it is not there yet, and more is made of it."""
        try:
            return stage()
        except Awaited as error:
            awaited.append(str(error))
            return None

    held = tried(lambda: held_out(config, lab, test))
    hard = tried(lab.hard)
    if hard:
        tried(lambda: through_arms(config, lab))
        if {*INTERVENED} <= lab.rows.keys():
            compare(config, lab, tried)
    if held is not None and hard is not None and pool_is_known(config, lab):
        # Nothing is made of it but the run's own tables, as of all that is asked for within `suppress` here.
        with contextlib.suppress(Awaited):
            c = config.eval
            policy_rows(lab, "base", sets(config, lab, held), c.samples, sampling, c.shard)
    return awaited


def through_arms(config: ConfigDict, lab: Lab) -> None:
    """The stages of all arms up to their first trainings; none behind one that waits, whose problems (`Lab.pool`) might
    be others without it."""
    for arm in arms.ordered(config.arms):
        with contextlib.suppress(Stopped):
            arm.train(lab)


def compare(config: ConfigDict, lab: Lab, tried: Callable) -> None:
    """The proposals of the run's other proposers, and the paired continuations of all of them, as run.measure asks for
    them, each apart: none waits for another."""
    p, found = config.proposals, Interventions(lab)
    for name in dict.fromkeys([p.proposer, *p.compare]):
        others = {name: build.proposer(config, name)} if name in p.compare else {}

        def proposals(others=others):
            return compared(lab, found, p.proposer, others, p.compare_attempts)

        if name == "likelihood_ratio":  # its interventions are not continued
            with contextlib.suppress(Awaited):
                proposals()
        elif rows := tried(proposals):
            with contextlib.suppress(Awaited):
                intervention_gains(lab, found, {name: rows[name]}, config.gain.attempts)


def pool_is_known(config: ConfigDict, lab: Lab) -> bool:
    """Whether `Lab.pool` gives already what it gives at the end of the run."""
    if lab.knobs["rl"]["tasks"] == "hard" or "guided" not in arms.stages(config.arms) or not lab.hard():
        return True
    return GUIDED in lab.rows and (lab.filter != "gain" or GAIN in lab.rows)
