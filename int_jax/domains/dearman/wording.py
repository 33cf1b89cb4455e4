"""How a skill sounds in a situation: a sentence for each of the five strategies, brief or in full.

Brief sentences are of the situation's few simple words; in full they are built of its facts, goal, benefit and offer. A
situation of a person's own names no feeling, benefit and offer; general ones stand for them.
"""

import re

from int_jax.domains.dearman.lexicon import ANCHOR, FACT
from int_jax.domains.dearman.situations import STRATEGIES, Situation

WORDINGS = ("brief", "full")
# What stands for what a situation of a person's own does not say.
FEEL, BENEFIT, OFFER = "upset", "fewer talks like this one", "we try it for two weeks and then talk again"
BRIEF = {
    "describe": ("{facts}",),
    "express": ("i feel {feel}", "i am {feel}"),
    "assert": ("please {goal}", "i want you to {goal}"),
    "reinforce": ("it means {benefit}", "for you it means {benefit}"),
    "negotiate": ("my offer is {offer}", "how about this {offer}"),
}
FULL = {
    "describe": ("{facts}", "Here is what happened. {facts}", "I noted it down. {facts}"),
    "express": (
        "I feel {feel} about it.",
        "I am {feel}, to be open with you.",
        "I'm {feel} each time it happens.",
    ),
    "assert": ("{goal}", "My request is plain. {goal}", "So this is my point. {goal}"),
    "reinforce": ("If you do that, it means {benefit}.", "This is what it means for you: {benefit}."),
    "negotiate": ("My offer is {offer}.", "What I can offer is {offer}."),
}


def spoken(situation: Situation) -> str:
    """The first of the facts that is placed in time, said to the other: "My brother borrowed" is "You borrowed"."""
    sentences = re.split(r"(?<=[.!?])\s+", situation.facts.strip())
    placed = [one for one in sentences if ANCHOR.search(one.lower())] or sentences
    chosen = next((one for one in placed if FACT.search(one.lower())), placed[0])
    last = re.escape(situation.relation.split()[-1])
    other = rf"\b(?:(?:my|our) (?:\w+ )?{last}|the {re.escape(situation.relation)})"
    text = re.sub(rf"{other}'s\b", "your", chosen, flags=re.IGNORECASE)
    text = re.sub(rf"{other}\b", "you", text, flags=re.IGNORECASE)
    if text != chosen:
        for third, second in (
            (r"\byou was\b", "you were"),
            (r"\byou has\b", "you have"),
            (r"\b(?:he|she)\b", "you"),
            (r"\bhis\b", "your"),
            (r"\bher (?=(?:to|in|for|that|at|on)\b)", "you "),
            (r"\bher (?=\w)", "your "),
            (r"\bhim\b", "you"),
        ):
            text = re.sub(third, second, text, flags=re.IGNORECASE)
    text = text[0].upper() + text[1:]
    return text if text[-1] in ".!?" else f"{text}."


def request(situation: Situation) -> str:
    """The goal as a sentence."""
    goal = situation.goal.strip().rstrip(".")
    if not re.match(r"(?i)(?:i|please|my)\b", goal):
        goal = f"I want this: {goal}"
    return f"{goal[0].upper()}{goal[1:]}."


def parts(situation: Situation, wording: str) -> dict[str, str]:
    """The slots of BRIEF or FULL."""
    brief = situation.brief
    if wording == "brief":
        if brief is None:
            raise ValueError(f'situation {situation.id} has no brief texts: say it in full (wording="full")')
        return {name: getattr(brief, name) for name in ("facts", "goal", "feel", "benefit", "offer")}
    found = (brief.feel, brief.benefit, brief.offer) if brief else (FEEL, BENEFIT, OFFER)
    feel, benefit, offer = (re.sub(r"\bi\b", "I", one) for one in found)
    return {
        "facts": spoken(situation),
        "goal": request(situation),
        "feel": feel,
        "benefit": benefit,
        "offer": offer,
    }


def variants(situation: Situation, strategy: int, wording: str) -> list[str]:
    """The sentences that do one of STRATEGIES well."""
    slots = parts(situation, wording)
    lines = (BRIEF if wording == "brief" else FULL)[STRATEGIES[strategy]]
    return [line.format(**slots) for line in lines]


def joined(sentences: list[str], wording: str) -> str:
    """Sentences as one turn."""
    return " . ".join(sentences) if wording == "brief" else " ".join(sentences)
