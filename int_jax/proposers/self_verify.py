"""The paper's proposer: the model itself, shown the reference, checks its attempt and writes the corrective step.

Where the domain asks for it, a first turn solves the problem with the reference in view; the check is the second turn
of the same conversation (InT's propose_interventions: one answer, then K candidates).
"""

import dataclasses
from collections.abc import Iterable
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
    roles = domain.proposal_roles
    session = engine.session(params, sampling, tokenizer)
    chats: dict[int, list[dict[str, str]]] = {i: [] for i in range(len(traces))}
    asked: list[
        tuple[int, int, int, int]
    ] = []  # of each request: trace, turn, candidate, length of its prompt
    answers: dict[int, dict[int, str]] = {}  # to the last turn, by trace and candidate

    def ask(turns: Iterable[tuple[int, int]]) -> None:
        """Add to each trace's chat the role of the turn, and queue what is not too long."""
        requests: list[Request] = []
        for i, turn in turns:
            # The earlier roles answer once, and their answers become turns of the conversation.
            last = turn == len(roles) - 1
            name, count = ("check", samples) if last else (roles[turn], 1)
            chats[i] += domain.view(traces[i].task, domain.step_texts(traces[i]), roles[turn])
            prompt = tuple(tokenizer.render(chats[i]))
            if len(prompt) > longest:
                drops[i] = "too_long"
                continue
            requests += [Request(prompt, stream(traces[i], name), k) for k in range(count)]
            asked.extend((i, turn, k, len(prompt)) for k in range(count))
        session.add(requests)

    ask((i, 0) for i in chats)
    # A conversation's next turn waits for its own last one, not for those of others.
    while session:
        again, finished = [], 0
        for number, response in session.take():
            i, turn, k, start = asked[number]
            answer = tokenizer.text(response.tokens[start:])
            if turn < len(roles) - 1:
                chats[i].append({"role": "assistant", "content": answer})
                again.append((i, turn + 1))
            else:
                answers.setdefault(i, {})[k] = answer
                finished += 1
        progress(finished)
        ask(again)
    out: list[Intervention | None] = [None] * len(traces)
    for i in sorted(answers):
        candidates = [named(answers[i][k]) for k in range(samples)]
        out[i] = screen(domain, i, traces[i], candidates, drops)
    return out


def named(answer: str) -> Intervention | str:
    """The intervention of an answer, or the answer itself where it holds none."""
    one = parse_intervention(answer)
    return answer if one is None else dataclasses.replace(one, source="self_verify")
