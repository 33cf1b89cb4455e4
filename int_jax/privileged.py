"""What a policy is shown that the problem does not tell: for data and training alone, never where it is measured.

There are three ways in. A role of the domain sees more than the problem (`rollout.open_trace`): the reference, or with
`hint` a beginning of it. A response is given, not drawn (`demonstration`). A step is put into an attempt
(`rollout.splice`). Each marks its trace, in `Trace.privileged`; what follows in the trace inherits the mark, what was
given is not `sampled`, and `refuse` stands before every count that is a policy's score.
"""

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from int_jax.types import Task, Trace

if TYPE_CHECKING:
    from int_jax.domains import Domain

REFERENCE, HINT, INTERVENTION = "reference", "hint", "intervention"

# Roles of a domain that a policy may be asked to play for training data, besides those of proposers: "hinted" solves
# the problem with a beginning of the reference in view; "reflector" sees the reference and its own wrong attempt, and
# rewrites the whole of it.
ROLES: tuple[str, ...] = ("hinted", "reflector")


def shown(role: str) -> tuple[str, ...]:
    """What a role sees besides the problem. Only the solver sees nothing more."""
    # Any other role, the proposers' too, has the reference in view.
    return {"solver": (), "hinted": (HINT,)}.get(role, (REFERENCE,))


def joined(before: tuple[str, ...], one: str) -> tuple[str, ...]:
    return before if one in before else (*before, one)


def hint(domain: "Domain", task: Task, share: float) -> Task | None:
    """The task for the role "hinted": its reference is only the beginning that may be shown, at most `share` of it, and
    its id names random streams of its own. None where so little of the reference says nothing."""
    beginning = domain.hint(task, share)
    return dataclasses.replace(task, id=f"{task.id}/hinted", reference=beginning) if beginning else None


def demonstration(domain: "Domain", prompt: Trace, response: Iterable[int], *said: str) -> Trace:
    """A whole response that the policy did not draw from this prompt, and the end-of-turn token behind it.

    Args:
      prompt: an open trace that holds the prompt alone. response: token ids. said: what the response was made from,
        such as REFERENCE.
    """
    ids = [*response]
    # A response that was drawn ends in it already.
    if ids[-1:] != [domain.tokenizer.end_of_turn]:
        ids.append(domain.tokenizer.end_of_turn)
    tokens = np.concatenate([prompt.tokens, np.asarray(ids, np.int32)])
    return prompt.replace(
        tokens=tokens,
        sampled=np.zeros(len(tokens), bool),
        logp=np.zeros(len(tokens), np.float32),
        step_ends=domain.steps(tokens, prompt.prompt_len),
        stop="stop",
        privileged=(*prompt.privileged, *said),
        begin="",
    )


def refuse(traces: Iterable[Trace], what: str) -> None:
    """Raises: ValueError where one of the traces saw more than its problem: it says nothing about the policy alone."""
    for trace in traces:
        if trace.privileged:
            raise ValueError(
                f"{what}, task {trace.task.id}: the policy was shown the {' and the '.join(trace.privileged)}; "
                "measure it from rollout.open_trace(domain, task), the problem alone"
            )
