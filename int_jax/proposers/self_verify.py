"""The paper's proposer: the model itself, shown the reference, checks its attempt and writes the corrective step.

Where the domain asks for it, a first turn solves the problem with the reference in view; the check is the second turn
of the same conversation (InT's propose_interventions: one answer, then K candidates).
"""

import dataclasses

from int_jax.engine import Engine, Request, Sampling
from int_jax.proposers import Drops, room, screen
from int_jax.proposers.parse import parse_intervention
from int_jax.tokenizer import Tokenizer
from int_jax.types import Intervention, Trace


def propose(
    engine: Engine,
    params,
    domain,
    traces: list[Trace],
    key: int,
    *,
    samples: int,
    sampling: Sampling,
    max_prompt: int,
    drops: Drops,
    progress=lambda done: None,
    tokenizer: Tokenizer | None = None,
) -> list[Intervention | None]:
    """See `proposers`. A conversation that does not fit is noted as "too_long" at the turn where it does not.

    With another `tokenizer` than the domain's, attempts are read through the domain's, prompts and responses written
    and read through this one, and a response ends with its stop ids.
    """
    stops = sampling.stop_ids if tokenizer is None else tokenizer.stop_ids
    tokenizer = domain.tokenizer if tokenizer is None else tokenizer
    sampling = dataclasses.replace(sampling, seed=key, stop_ids=stops)
    longest = room(engine, sampling, max_prompt)
    chats: dict[int, list[dict[str, str]]] = {i: [] for i in range(len(traces))}

    def asked(role: str, count: int) -> dict[int, list[str]]:
        """Adds the role's turn to each chat, drops the chats that are too long, and draws `count` answers to others."""
        prompts = {}
        for i, chat in chats.items():
            chat += domain.view(traces[i].task, domain.step_texts(traces[i]), role)
            prompts[i] = tuple(tokenizer.render(chat))
        for i in [i for i, prompt in prompts.items() if len(prompt) > longest]:
            drops[i] = "too_long"
            del prompts[i], chats[i]
        last = role == domain.proposal_roles[-1]
        requests = [
            Request(prompt, stream(traces[i], "check" if last else role), k)
            for i, prompt in prompts.items()
            for k in range(count)
        ]
        shown = progress if last else lambda done: None
        responses = iter(engine.generate(params, requests, sampling, shown))
        return {
            i: [tokenizer.text(next(responses).tokens[len(prompt) :]) for _ in range(count)]
            for i, prompt in prompts.items()
        }

    for role in domain.proposal_roles[:-1]:
        for i, (answer,) in asked(role, 1).items():
            chats[i].append({"role": "assistant", "content": answer})
    out: list[Intervention | None] = [None] * len(traces)
    for i, answers in asked(domain.proposal_roles[-1], samples).items():
        candidates = [named(answer) for answer in answers]
        out[i] = screen(domain, i, traces[i], candidates, drops)
    return out


def named(answer: str) -> Intervention | str:
    """The intervention of an answer, or the answer itself where it holds none."""
    one = parse_intervention(answer)
    return answer if one is None else dataclasses.replace(one, source="self_verify")


def stream(trace: Trace, role: str) -> str:
    """The name of a random stream of one attempt, apart from the one the attempt was drawn from."""
    return f"{trace.task.id}/attempt{trace.key[1]}/{role}"
