"""The contract of a proposer (`proposers.Proposer`), held with a small random model on wrong chains of arithmetic."""

import dataclasses
import inspect
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import optax

from int_jax import proposers, rollout
from int_jax.check.domain import trace_of
from int_jax.domains import Domain, arithmetic
from int_jax.engine import Engine
from int_jax.models import Config, build
from int_jax.proposers import Drops, Proposer
from int_jax.sampler import Sampling
from int_jax.sharding import make_mesh
from int_jax.tokenizer import Tokenizer
from int_jax.types import Intervention, Trace

SAMPLING = Sampling(max_new_tokens=24, stop_ids=(2,))


@dataclasses.dataclass(frozen=True)
class Subject:
    """A proposer under check, and what it is asked with."""

    propose: Proposer
    engine: Engine
    params: Any
    domain: Domain
    traces: list[Trace]

    def ask(self, traces: list[Trace], max_prompt: int = 400) -> tuple[list[Intervention | None], Drops]:
        drops = Drops()
        knobs: dict[str, Any] = {"samples": 2, "sampling": SAMPLING, "max_prompt": max_prompt, "drops": drops}
        return self.propose(self.engine, self.params, self.domain, traces, 0, **knobs), drops


def subject(name: str, tokenizer: Tokenizer) -> Subject:
    """The proposer that a text names, with a random model over the embedded model's tokenizer. Raises: ValueError."""
    propose = proposers.load(name)
    model = build(Config("qwen3", tokenizer.vocab, 32, 2, 4, 2, 8, 64, 512, qk_norm=True, tied=True))
    engine = Engine(model, make_mesh(1, 1, jax.devices()[:1]), slots=8, decode_steps=8, score_tokens=1024)
    fresh = engine.init(5, optax.identity()).params
    params = engine.decode_params({**fresh, "embed_VD": fresh["embed_VD"] * 6})  # so that the context matters
    domain = arithmetic.build(tokenizer)
    return Subject(propose, engine, params, domain, traces_of(domain))


def traces_of(domain: Domain, count: int = 12, seed: int = 0) -> list[Trace]:
    """Corrupted attempts at chains of every length; one in twenty is right."""
    rng = np.random.default_rng(seed)
    out = []
    for k in range(count):
        one = arithmetic.chain(rng, 1 + k % 8, 1.5)
        text = "\n\n".join(arithmetic.corrupted(rng, one))
        out.append(trace_of(domain, arithmetic.task(one, f"task{k}"), text).replace(key=(0, k)))
    return out


def check_signature(s: Subject) -> Iterator[str]:
    """propose is called with what `proposers.Proposer` lists, by those names."""
    _, *wanted = inspect.signature(Proposer.__call__).parameters.values()
    given = [p.name for p in wanted if p.kind is p.POSITIONAL_OR_KEYWORD]
    named = {p.name: None for p in wanted if p.kind is p.KEYWORD_ONLY}
    try:
        inspect.signature(s.propose).bind(*given, **named)
    except TypeError as error:
        yield f"propose cannot be called so ({error}): propose({', '.join(given)}, *, {', '.join(named)})"


def check_answers(s: Subject) -> Iterator[str]:
    """Each attempt gets a usable intervention, or None and the reason in drops, whether its prompt fits or not."""
    for max_prompt in (400, 90, 1):  # all fit, some fit, none
        found, drops = s.ask(s.traces, max_prompt)
        where = f"with max_prompt = {max_prompt}"
        if len(found) != len(s.traces):
            yield f"{where} propose gives {len(found)} entries for {len(s.traces)} traces: one each, None included"
            return
        if (none := {i for i, one in enumerate(found) if one is None}) != {*drops}:
            yield f"{where} the traces {sorted(none)} got None, and drops has {sorted(drops)}: note why, for those"
        if other := {*drops.values()} - {*proposers.DROPS}:
            yield f"{where} drops holds {', '.join(map(repr, other))}: choose one of {', '.join(proposers.DROPS)}"
        for i, one in enumerate(found):
            if one is not None:
                yield from _usable(s, s.traces[i], one, f"{where} the intervention for trace {i}")
        yield from _tried(found, drops, where)


def _usable(s: Subject, trace: Trace, one: Intervention, where: str) -> Iterator[str]:
    if not isinstance(one, Intervention) or not one.source:
        yield f"{where} is {one!r:.60}: Intervention(step, text, source=the proposer's name)"
    elif fault := proposers.fault(s.domain, trace, one):
        yield f"{where} is {fault} ({one.text!r:.40}): let `proposers.screen` choose among the candidates"
    elif one.ids and s.domain.tokenizer.decode(one.ids) != one.text + s.domain.separator:
        yield f"{where} has ids that spell {s.domain.tokenizer.decode(one.ids)!r:.40}, not its text and a separator"
    else:
        rollout.splice([trace], [one], s.domain.tokenizer, s.domain.separator)


def _tried(found: list[Intervention | None], drops: Drops, where: str) -> Iterator[str]:
    """`drops.tried` holds every candidate with what it lacks."""
    for i, told in drops.tried.items():
        good = [candidate["text"] for candidate in told if not candidate["fault"]]
        chosen = found[i]
        if (chosen is None) != (not good) or (chosen is not None and chosen.text not in good):
            yield f"{where} drops.tried[{i}] has the usable candidates {good!r:.60}, and {chosen!r:.60} was chosen"


def check_alone(s: Subject) -> Iterator[str]:
    """What an attempt gets does not depend on the attempts beside it, nor on their order."""
    found, drops = s.ask(s.traces)
    # A part, and in another order.
    chosen = (5, 4, 3)
    part, part_drops = s.ask([s.traces[i] for i in chosen])
    if part != [found[i] for i in chosen]:
        yield f"traces {chosen} alone get other interventions: draw from a stream named by the task and the attempt"
    if part_drops != {k: drops[i] for k, i in enumerate(chosen) if i in drops}:
        yield f"traces {chosen} alone are dropped for other reasons"


def check_none(s: Subject) -> Iterator[str]:
    """No attempts get no interventions."""
    if (found := s.ask([])) != ([], {}):
        yield f"propose of no traces gives {found}: []"


CHECKS = (check_signature, check_answers, check_alone, check_none)
