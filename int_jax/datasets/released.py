"""The released scripts' rules for a proposer's outputs, beside ours, and where the two differ.

Their rules (parse_interventions.ipynb, described in our own words): the last tagged block of each output is read as a
Python literal; the first candidate is taken whose text does not hold the answer as a substring; the steps before its
location and its text are joined by blank lines. Ours differ on purpose; `compare` names each way in which they do.
"""

import ast
import re
import textwrap
from typing import NamedTuple

from int_jax import proposers, rollout
from int_jax.datasets import entry
from int_jax.domains import Domain
from int_jax.proposers.parse import parse_intervention
from int_jax.types import Intervention, Task

DIFFERENCES = {
    "aborted": "a location without a number ends their search; ours goes on to the next output",
    "repaired": "we read a block that their two readings of it do not",
    "refused": "they read a block that we do not",
    "empty": "they splice an empty step; we drop it",
    "out_of_range": "they splice at a location outside the attempt (0 keeps all but the last step); we drop it",
    "leak": "the answer stands in the step in another form, or the step boxes something; only we drop it",
    "substring": "the answer's characters stand in the step by chance; only they drop it",
    "another": "the two take different outputs, for one of the reasons above, or different locations",
    "newlines": "a line break within the step is a blank line in theirs; we keep the text as it is written",
}


class Choice(NamedTuple):
    """A location, from 1, and the step's text."""

    location: int
    content: str


def literal(block: str) -> dict | None:
    """Their reading of a block: as a Python literal, then with the content between triple quotes; else None."""
    # "location": Step 3, -> "location": 3,
    block = re.sub(r"[A-Za-z]+ (\d+)(?=\s*[,}])", r"\1", block)
    # \frac -> \\frac, but \neq keeps its \n
    block = textwrap.dedent(re.sub(r"\\(?![nN\"'\\])", r"\\\\", block)).strip()
    # "content": "say "no"", -> "content": """say "no"""",
    quoted = re.sub(
        r"([\"']content[\"']\s*:\s*)([\"'])(.*)\2(\s*[,}])", r'\1"""\3"""\4', block, flags=re.DOTALL
    )
    for text in (block, quoted):
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
        if isinstance(value, dict) and {"content", "location"} <= value.keys():
            return value
    return None


def their_choice(outputs: list[str], answer: str) -> tuple[Choice | None, bool]:
    """The first output that survives their rules, and whether one without a step number ended the search."""
    for output in outputs:
        blocks = re.findall(r"<intervention>(.*?)</intervention>", output, re.DOTALL)
        found = literal(blocks[-1]) if blocks else None
        if found is None:
            continue
        digits = re.search(r"\d+", str(found["location"]))
        # "aborted": a location without a number ends their search.
        if not digits:
            return None, True
        if answer not in str(found["content"]):
            return Choice(int(digits[0]), str(found["content"])), False
    return None, False


def their_guided(attempt: str, one: Choice) -> str:
    """Their guided attempt: Python's slice of the blank-line pieces, whatever the location, then the step."""
    step = re.sub(r"\n+", "\n\n", one.content)
    return step if one.location == 1 else "\n\n".join([*attempt.split("\n\n")[: one.location - 1], step])


class Comparison(NamedTuple):
    """Both guided attempts as text, None where there is none, and the names of DIFFERENCES that apply."""

    theirs: str | None
    ours: str | None
    differences: tuple[str, ...]


def compare(domain: Domain, task: Task, attempt: str, outputs: list[str]) -> Comparison:
    """Their rules and ours on a proposer's outputs for one wrong attempt."""
    theirs, aborted = their_choice(outputs, task.answer)
    trace = entry.attempt(domain, task, attempt)
    candidates = [parse_intervention(output) for output in outputs]
    usable = [one and entry.located(domain, trace, one) for one in candidates]
    faults = [proposers.fault(domain, trace, one) for one in usable]
    first = faults.index(None) if None in faults else None
    ours = None
    chosen = None if first is None else usable[first]
    if chosen is not None:
        patched = rollout.splice(trace, chosen, domain.tokenizer, domain.separator)
        ours = (domain.tokenizer.text(patched.response) + patched.begin).rstrip("\n")
    found = {"aborted"} if aborted else set()
    # What differs counts as far as our own search went.
    until = len(outputs) if first is None else first + 1
    for output, one, fault in zip(outputs[:until], candidates, faults, strict=False):
        found |= _unlike(task, output, one, fault)
    guided = theirs and their_guided(attempt, theirs)
    mine = candidates[first] if first is not None else None
    if theirs and mine and theirs != (mine.step + 1, mine.text):
        found.add("another")
    elif guided and ours and guided.rstrip("\n") != ours:
        found.add("newlines")
    return Comparison(guided, ours, tuple(name for name in DIFFERENCES if name in found))


def _unlike(task: Task, output: str, one: Intervention | None, fault: str | None) -> set[str]:
    """The differences that show in one output."""
    theirs, aborted = their_choice([output], "\0")  # an answer that nothing holds: the form alone
    if aborted:
        return set()
    if (theirs is None) != (one is None):
        return {"repaired" if theirs is None else "refused"}
    if theirs is None:
        return set()
    substring = task.answer in theirs.content
    if fault == "leaked" and not substring:
        return {"leak"}
    if fault is None and substring:
        return {"substring"}
    return {"empty", "out_of_range"} & {fault}
