"""What language models are told of a DEAR MAN conversation; the templates stand in assets/prompts/dearman."""

import functools
from collections.abc import Sequence

from int_jax.domains import PROMPTS, said, template
from int_jax.domains.dearman.bank import SKILLS, Pair
from int_jax.domains.dearman.situations import STATES

DEFINITIONS = {
    "describe": "Strong: facts with an event, a time or a count, without judgement. Weak: vague, or with one of those.",
    "express": "Strong: an own feeling, named in the first person. Weak: implied, or said of the other.",
    "assert": "Strong: a specific request or refusal of one's own. Weak: hinted, or buried in hedges.",
    "reinforce": "Strong: what the other gains by it, without a threat. Weak: vague, or a gain for oneself alone.",
    "negotiate": "Strong: a concrete alternative or trade. Weak: the hope for some solution.",
    "mindful": "No, where the utterance takes a bait, attacks, threatens or leaves the goal.",
    "confident": "No, where it apologises needlessly, hedges or doubts the right to ask.",
}


@functools.cache
def _template(name: str):
    return template(PROMPTS / "dearman" / f"{name}.jinja")


def prompt(name: str, **slots) -> list[dict[str, str]]:
    """A chat of one user turn."""
    return [said("user", _template(name).render(**slots).strip())]


def rating(problem: str, text: str, skill: str, pairs: Sequence[Pair] = ()) -> list[dict[str, str]]:
    """The chat with which a language model is asked to rate an utterance on one skill, with contrasting pairs.

    Raises: ValueError for a skill that there is not.
    """
    if skill not in SKILLS:
        raise ValueError(f"skill is {skill!r}: choose one of {', '.join(SKILLS)}")
    labels = "yes or no" if skill in STATES else "strong, weak or none"
    slots = {"definition": DEFINITIONS[skill], "labels": labels, "pairs": pairs}
    return prompt("rate", problem=problem, text=text, skill=skill.capitalize(), **slots)
