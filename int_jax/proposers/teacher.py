"""A teacher behind an OpenAI-compatible interface (/chat/completions) checks attempts and writes corrective steps.

It is told what `self_verify` tells the model itself: the domain's views of the same roles, in the same turns. Each
candidate in `Drops.tried` also has "tokens": those of prompt and answer that the interface counted for it, the turns
before it with the first one.
"""

import hashlib
import os
from collections.abc import Callable
from concurrent import futures
from typing import Any, NamedTuple

from int_jax.domains import Domain
from int_jax.http_json import Server
from int_jax.proposers import Drops, screen, stream
from int_jax.proposers.parse import parse_intervention
from int_jax.sampler import Progress, Sampling, ScoringSampler, silent
from int_jax.tokenizer import Tokenizer
from int_jax.types import Intervention, Trace

Chat = list[dict[str, str]]


class Answer(NamedTuple):
    text: str
    tokens: int


def propose(
    engine: ScoringSampler,
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
    url: str = "",
    model: str = "",
    key_variable: str = "",
    at_once: int = 16,
) -> list[Intervention | None]:
    """See `proposers.Proposer`. No model here is asked; prompts are measured by the policy's tokenizer.

    Args:
      url: what /chat/completions stands behind, "https://api.example.com/v1". model: its name there. key_variable: the
        environment variable with the key, "" where none is needed. at_once: requests under way at a time, at most.

    Raises: ValueError where the teacher is not named, its key is missing, or `sampling` has filters that the interface
      does not know.
    """
    if found := list(faults(url, model, key_variable, sampling.top_k, sampling.min_p)):
        raise ValueError("\n".join(f"teacher: {one}" for one in found))
    server = Server(url, os.environ[key_variable] if key_variable else "")

    def ask(chat: Chat, name: str, sample: int) -> Answer:
        # A seed makes answers alike, as far as the interface keeps it.
        digest = hashlib.blake2b(repr((key, name, sample)).encode(), digest_size=4).digest()
        body = {
            "model": model,
            "messages": chat,
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": int.from_bytes(digest, "little") >> 1,
        }
        told = server.ask("/chat/completions", body)
        # Where it declines to answer, or has only thought when it was cut off, there is no content.
        text = told["choices"][0]["message"].get("content") or ""
        return Answer(text, int(told.get("usage", {}).get("total_tokens", 0)))

    def checked(index: int) -> tuple[list[Answer], int] | None:
        """The candidates for a trace, and the tokens of the turns before them; None where it is too long."""
        trace, chat, before = traces[index], [], 0
        for role in domain.proposal_roles:
            chat += domain.view(trace.task, domain.step_texts(trace), role)
            if len(domain.tokenizer.render(chat)) > max_prompt:
                return None
            if role == domain.proposal_roles[-1]:
                return [ask(chat, stream(trace, "check"), k) for k in range(samples)], before
            answer = ask(chat, stream(trace, role), 0)
            chat.append({"role": "assistant", "content": answer.text})
            before += answer.tokens
        raise AssertionError("a domain has a role that checks")

    out: list[Intervention | None] = []
    for index, found in enumerate(_side_by_side(checked, len(traces), at_once)):
        if found is None:
            drops[index] = "too_long"
            out.append(None)
            continue
        answers, before = found
        out.append(screen(domain, index, traces[index], [named(one.text) for one in answers], drops))
        for k, (told, answer) in enumerate(zip(drops.tried[index], answers, strict=True)):
            told["tokens"] = answer.tokens + (0 if k else before)
        progress(samples)
    return out


def faults(url: str, model: str, key_variable: str, top_k: int, min_p: float):
    """What keeps a teacher from being asked."""
    for name, value in (("url", url), ("model", model)):
        if not value:
            yield f"{name} is empty: say where the teacher is (url) and what it is called there (model)"
    if key_variable and not os.environ.get(key_variable):
        yield f"key_variable = {key_variable!r}: there is no such variable in the environment, or it is empty; set it"
    if top_k or min_p:
        yield f"the interface knows neither top-k nor min-p: set top_k={top_k} and min_p={min_p} to 0"


def _side_by_side(work: Callable, count: int, at_once: int) -> list:
    """work(0), work(1) ... in order, by threads; what fails first is raised, and what has not begun is not begun."""
    with futures.ThreadPoolExecutor(at_once) as pool:
        running = [pool.submit(work, index) for index in range(count)]
        try:
            return [one.result() for one in running]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def named(answer: str) -> Intervention | str:
    """The intervention of an answer, or the answer itself where it holds none."""
    one = parse_intervention(answer)
    return answer if one is None else Intervention(one.step, one.text, source="teacher", raw=one.raw)
