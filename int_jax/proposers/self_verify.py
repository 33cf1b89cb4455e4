"""The paper's proposer: the model itself, shown the reference, checks its attempt and writes the corrective step.

Where the domain asks for it, a first turn solves the problem with the reference in view; the check is the second turn
of the same conversation (InT's propose_interventions: one answer, then K candidates).
"""

import dataclasses
from typing import Any

from int_jax.domains import Domain
from int_jax.proposers import Drops, room, screen, stream
from int_jax.proposers.parse import parse_intervention
from int_jax.sampler import Progress, Request, Sampler, Sampling, silent
from int_jax.tokenizer import Tokenizer
from int_jax.types import Intervention, Trace


def propose(
    engine: Sampler,
    params: Any,
    domain: Domain,
    traces: list[Trace],
    key: int,
    *,
    samples: int,
    sampling: Sampling,
    max_prompt: int,
    drops: Drops,
    progress: Progress = silent,
    tokenizer: Tokenizer | None = None,
) -> list[Intervention | None]:
    """See `proposers.Proposer`. A conversation that does not fit is noted as "too_long" at the turn where it does not.

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
        # In the order of the requests, `count` for each prompt.
        responses = iter(engine.generate(params, requests, sampling, progress if last else silent))
        return {
            i: [tokenizer.text(next(responses).tokens[len(prompt) :]) for _ in range(count)]
            for i, prompt in prompts.items()
        }

    # The earlier roles answer once, and their answers become turns of the conversation.
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
