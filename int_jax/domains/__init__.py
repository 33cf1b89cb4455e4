"""Domains: where problems come from, who sees what, where a step ends, and what counts as solved.

A domain is a module here with `build(tokenizer, **knobs)`; its name in a config is the module's name. It offers:

    KNOBS                      what may be set of it: a table of knobs (`knobs.Knob`); build.KNOBS is the same
    name, separator            its name; the text that ends a step
    proposal_roles             roles a self-verifying proposer plays in turn: ("checker",) or ("teacher", "checker")
    tasks(split, seed, count)  -> list[Task]
    view(task, steps, role)    -> chat messages: the one place that decides what a role sees
    steps(tokens, start)       -> step_ends, token offsets
    step_texts(trace)          -> the text of each step
    answer(trace)              -> the answer that a response gives, None if it gives none: what a majority vote counts
    verify(trace)              -> Verdict
    verify_many(traces)        -> list[Verdict], the same: where grading many side by side is faster
    leaks(task, text)          -> whether a step gives the final answer away
    REWARDS, reward(trace, part) -> names of parts of the reward beside those of every domain, and such a part
    reply(trace)               -> a partner's turn as token ids, [] if the partner is silent
    first_error(trace)         -> index of the first wrong step, and
    correction(trace, step)    -> the right step: only where an oracle exists

`view` numbers an attempt's steps from 1, one number for each of `step_ends`; a proposer's location is such a number. An
attempt may have hundreds of them, and headings of its own ("Step 3"), so the number must not look like one. Nothing is
left out of a view to make it fit: what is too long for a prompt is counted and skipped by the proposer.
"""

import importlib
import json
import pkgutil
from pathlib import Path
from typing import ClassVar

import jinja2

from int_jax.knobs import Knob, check, defaults
from int_jax.tokenizer import Tokenizer
from int_jax.types import normalised
from int_jax.verify import last_boxed

PROMPTS = Path(__file__).parents[1] / "assets" / "prompts"  # a folder a domain, a template a role


def names() -> list[str]:
    """The domains there are."""
    return [module.name for module in pkgutil.iter_modules(__path__)]


def find(name: str):
    """The `build` of int_jax/domains/<name>.py: the domain before it has a tokenizer."""
    if name not in names():
        raise ValueError(f"no domain {name!r} in int_jax/domains: choose one of {', '.join(names())}")
    return importlib.import_module(f"{__name__}.{name}").build


def load(name: str, tokenizer, **knobs):
    """The domain in int_jax/domains/<name>.py, over a tokenizer; knobs that are not given have their defaults."""
    return find(name)(tokenizer, **knobs)


class SilentPartner:
    """What domains of free text have in common: steps that end in line breaks, a boxed answer, a partner who is silent.

    Raises: ValueError for a knob that is not in KNOBS, or has a value that it may not have.
    """

    name: str
    KNOBS: ClassVar[dict[str, Knob]]
    REWARDS: ClassVar[tuple[str, ...]] = ()
    separator = "\n\n"

    def __init__(self, tokenizer: Tokenizer, **knobs):
        self.tokenizer = tokenizer
        self.knobs = defaults(self.KNOBS) | knobs
        check(self.KNOBS, self.knobs, self.name)

    def steps(self, tokens, start: int = 0) -> tuple[int, ...]:
        return self.tokenizer.step_ends(tokens, start, self.separator)

    def step_texts(self, trace) -> list[str]:
        """The text of each step, without separator and special tokens."""
        spans = zip(trace.step_starts(), trace.step_ends, strict=True)
        return [self.tokenizer.text(trace.tokens[a:b]).strip("\n") for a, b in spans]

    def answer(self, trace) -> str | None:
        """The content of the response's last box."""
        return last_boxed(self.tokenizer.text(trace.response))

    def reply(self, trace) -> list[int]:
        return []

    def reward(self, trace, part: str) -> float:
        raise ValueError(f"the domain {self.name} has no part {part!r} of a reward: it has {self.REWARDS}")


def template(path: Path) -> jinja2.Template:
    """A prompt template; one that names what it is not given raises jinja2.UndefinedError when it is rendered."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such template; config.domain.knobs.prompts names the folder it is in"
        )
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False
    )
    return environment.from_string(path.read_text(encoding="utf-8"))


def said(role: str, content: str) -> dict[str, str]:
    """A chat message."""
    return {"role": role, "content": content}


def worked_examples(
    path: Path, columns: tuple[str, ...] = ("problem", "solution"), extra: tuple[str, ...] = ()
) -> list[dict[str, str]]:
    """The worked examples in a JSONL file, or in a JSON file that is a list; each also has its "place", file and row.

    Args:
      columns: texts that each row has. extra: more columns, of which a row has all or none.

    Raises: FileNotFoundError; ValueError, naming the row, for one that has not these columns, or another's problem.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of worked examples")
    text = path.read_text(encoding="utf-8-sig")
    try:
        if path.suffix == ".json":
            rows = list(enumerate(json.loads(text), 1))
        else:
            rows = [(i, json.loads(line)) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
    except (ValueError, TypeError, RecursionError) as error:
        kind = "a JSON list" if path.suffix == ".json" else "a JSON object on each line"
        raise ValueError(f"{path}: worked examples are {kind} ({error})") from None
    if not rows:
        raise ValueError(f"{path}: there is no worked example in it")
    found: dict[str, dict[str, str]] = {}
    for number, row in rows:
        place = f"{path}, row {number}"
        if not isinstance(row, dict) or row.keys() not in (set(columns), {*columns, *extra}):
            has = f"has the columns {', '.join(row)}" if isinstance(row, dict) else f"is {row!r:.60}"
            more = f", and may have {' and '.join(extra)}" if extra else ""
            raise ValueError(f"{place} {has}: a worked example has {', '.join(columns)}{more}")
        for name, value in row.items():
            if not isinstance(value, str) or not value.strip():
                raise ValueError(f"{place}: {name} is {value!r:.60}, and must be a text that is not empty")
        first = found.setdefault(normalised(row["problem"]), {**row, "place": place})
        if first["place"] != place:
            raise ValueError(f"{place}: the same problem as in {first['place']}")
    return list(found.values())
