"""Micro-skills of an interview: counts over its acts and turns, beside the score, never in it.

They say how an interview was led, and with a scripted client how often what it offered was taken up. A figure that has
nothing to count is None.
"""

from collections.abc import Iterable, Sequence

from int_jax.dialogue.script import Moment
from int_jax.domains.therapy.acts import Act
from int_jax.domains.therapy.client import Client, State

SUPPORT = ("reflection", "validation", "summary")
SKILLS = {
    "open_to_closed": "open questions for each closed one",
    "reflections_to_questions": "reflections, validations and summaries for each question",
    "talk_share": "share of all words that are the interviewer's",
    "missed_cues": "hints of the client that the next turn did not take up",
    "advice_first": "advice before the thought was told",
    "repeats": "questions about what was told already, or asked in vain a turn before",
    "interpretations": "beliefs named that were not told",
}


def ratio(count: int, of: int) -> float | None:
    return count / of if of else None


def open_to_closed(acts: Sequence[Act]) -> float | None:
    kinds = [act.kind for act in acts]
    return ratio(kinds.count("open"), kinds.count("closed"))


def reflections_to_questions(acts: Sequence[Act]) -> float | None:
    kinds = [act.kind for act in acts]
    return ratio(sum(kinds.count(kind) for kind in SUPPORT), kinds.count("open") + kinds.count("closed"))


def talk_share(turns: Sequence[str]) -> float | None:
    """turns: own and client's in turn, the own first."""
    words = [len(text.split()) for text in turns]
    return ratio(sum(words[::2]), sum(words))


def missed_cues(client: Client, moments: Sequence[Moment]) -> int:
    """A hint is taken up by a question about what lies next, and by a reflection, a validation or a summary."""
    return sum(
        state.last == "hint"
        and client.hinted(state.heard) != ""
        and act.kind not in (*SUPPORT, "formulation")
        and act.part != client.hinted(state.heard)
        for state, act in seen(moments)
    )


def advice_first(moments: Sequence[Moment]) -> int:
    return sum(act.kind == "advice" and not state.heard[1] for state, act in seen(moments))


def repeats(client: Client, moments: Sequence[Moment]) -> int:
    return sum(
        bool(act.part) and (client.next_place(state.heard, act.part) < 0 or state.last == act.part)
        for state, act in seen(moments)
    )


def seen(moments: Sequence[Moment]) -> Iterable[tuple[State, Act]]:
    """The states before the turns, and the acts."""
    return [(State(*moment.before), Act(*moment.act)) for moment in moments]


def skills(client: Client, moments: Sequence[Moment], turns: Sequence[str]) -> dict[str, float | None]:
    """All of SKILLS of one interview.

    turns: own and client's in turn, the own first.
    """
    acts = [act for _, act in seen(moments)]
    return {
        "open_to_closed": open_to_closed(acts),
        "reflections_to_questions": reflections_to_questions(acts),
        "talk_share": talk_share(turns),
        "missed_cues": missed_cues(client, moments),
        "advice_first": advice_first(moments),
        "repeats": repeats(client, moments),
        "interpretations": sum(act.kind == "interpretation" for act in acts),
    }


def table(found: Sequence[dict[str, float | None]]) -> list[tuple[str, float | None]]:
    """(what it is, its mean over those interviews that have it) for each of SKILLS."""
    rows: list[tuple[str, float | None]] = []
    for name, what in SKILLS.items():
        known = [value for one in found if (value := one[name]) is not None]
        rows.append((what, sum(known) / len(known) if known else None))
    return rows
