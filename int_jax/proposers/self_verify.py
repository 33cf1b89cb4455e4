"""The paper's proposer: the model itself, shown the reference, checks its attempt and writes the corrective step.

Where the domain asks for it, a first turn solves the problem with the reference in view; the check is the second turn
of the same conversation (paper.md 1.4 in InT: n = 1, then K candidates).
"""

import dataclasses

from int_jax.engine import Engine, Request, Sampling
from int_jax.proposers import screen
from int_jax.proposers.parse import parse_intervention
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
    drops: dict[int, str],
    progress=lambda done: None,
) -> list[Intervention | None]:
    """See `proposers`. A conversation longer than `max_prompt` tokens is noted as "too_long", never cut."""
    sampling = dataclasses.replace(sampling, seed=key)
    chats = conversations(engine, params, domain, traces, sampling)
    prompts = [tuple(domain.tokenizer.render(chat)) for chat in chats]
    fits = [i for i, prompt in enumerate(prompts) if len(prompt) <= max_prompt]
    drops.update({i: "too_long" for i in range(len(prompts)) if i not in fits})
    requests = [Request(prompts[i], stream(traces[i], "check"), k) for i in fits for k in range(samples)]
    responses = engine.generate(params, requests, sampling, progress)
    out: list[Intervention | None] = [None] * len(traces)
    for j, i in enumerate(fits):
        texts = [
            domain.tokenizer.text(r.tokens[len(prompts[i]) :])
            for r in responses[j * samples : (j + 1) * samples]
        ]
        candidates = [parse_intervention(text) for text in texts]
        named = [c and dataclasses.replace(c, source="self_verify") for c in candidates]
        out[i] = screen(domain, i, traces[i], named, drops)
    return out


def conversations(engine: Engine, params, domain, traces: list[Trace], sampling: Sampling):
    """The chat that ends in the checker's turn, for each trace."""
    chats: list[list[dict[str, str]]] = [[] for _ in traces]
    for role in domain.proposal_roles:
        for chat, trace in zip(chats, traces, strict=True):
            chat += domain.view(trace.task, domain.step_texts(trace), role)
        if role == domain.proposal_roles[-1]:
            break
        requests = [
            Request(tuple(domain.tokenizer.render(chat)), stream(trace, role), 0)
            for chat, trace in zip(chats, traces, strict=True)
        ]
        for chat, request, response in zip(
            chats, requests, engine.generate(params, requests, sampling), strict=True
        ):
            solution = domain.tokenizer.text(response.tokens[len(request.prompt) :])
            chat.append({"role": "assistant", "content": solution})
    return chats


def stream(trace: Trace, role: str) -> str:
    """The name of a random stream of one attempt, apart from the one the attempt was drawn from."""
    return f"{trace.task.id}/attempt{trace.key[1]}/{role}"
