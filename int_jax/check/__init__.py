"""Whether a module keeps the contract of its kind: `python -m int_jax.check domain lab/chess.py`.

A check is a function of what it looks at (`domain.Subject` and its like) that yields faults: a line each, with what is
wrong, where, and what would be right. The tests of this repository run the same checks over every module of a kind.
"""

import traceback
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # mypy holds the package's own modules to their protocols
    from int_jax.domains import Domain, arithmetic, code, dearman, math, reasoning_gym, therapy
    from int_jax.engine import Engine
    from int_jax.proposers import Proposer, last_step, likelihood_ratio, oracle, random_step, self_verify
    from int_jax.report import Series, Writer
    from int_jax.report.writers import tensorboard, trackio, wandb
    from int_jax.sampler import ScoringSampler

    DOMAINS: list[type[Domain]] = [
        arithmetic.build,
        code.build,
        dearman.build,
        math.build,
        reasoning_gym.build,
        therapy.build,
    ]
    PROPOSERS: list[Proposer] = [
        last_step.propose,
        likelihood_ratio.propose,
        oracle.propose,
        random_step.propose,
        self_verify.propose,
    ]
    SAMPLERS: list[type[ScoringSampler]] = [Engine]
    WRITERS: list[Callable[[Series], Writer]] = [tensorboard.build, trackio.build, wandb.build]

Check = Callable[[Any], Iterator[str]]


class Skipped(Exception):
    """A check that cannot be made here; the message says what is missing for it."""


def faults(check: Check, subject: Any) -> list[str]:
    """What a check finds. An error that the module itself raises is a fault like any other, and ends the check.

    Raises: Skipped.
    """
    found: list[str] = []
    try:
        # extend keeps what was found before the check raised.
        found.extend(check(subject))
    except Skipped:
        raise
    except Exception as error:
        found.append(f"raises {told(error)}")
    return found


def told(error: Exception) -> str:
    """An error in one line, with the place that raised it."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {' '.join(str(error).split())} ({where.filename}, line {where.lineno})"


def promise(check: Check) -> str:
    """What a check holds a module to, in words: the first line of its docstring."""
    return (check.__doc__ or check.__name__).strip().splitlines()[0]
