"""The domain `dearman`: its tasks, who sees what, and what a perfect checker answers."""

import functools
from collections.abc import Sequence
from typing import Any, ClassVar, cast

import numpy as np

from int_jax import types
from int_jax.dialogue.oracle import Oracle
from int_jax.domains import said
from int_jax.domains.dearman import novice, prompts
from int_jax.domains.dearman import wording as words
from int_jax.domains.dearman.counterpart import (
    MOODS,
    OPENINGS,
    RESISTANCE,
    TURNS,
    Act,
    Counterpart,
    State,
)
from int_jax.domains.dearman.opposite import FIRST, Opposite
from int_jax.domains.dearman.rater import WEAK
from int_jax.domains.dearman.situations import (
    DIFFICULTIES,
    STRATEGIES,
    TYPES,
    Situation,
    load_situations,
    own_situation,
)
from int_jax.domains.dialogue import Dialogue
from int_jax.knobs import Knob
from int_jax.tokenizer import Tokenizer
from int_jax.types import Reply, Task, Trace

__all__ = ["DearMan", "build", "own_situation"]

NAME = "dearman"
SPLITS: tuple[str, ...] = ("hard_train", "hard_validation", "hard_test")
# What the reference ends in: it is for the checker's eyes, and no intervention may repeat it.
NEEDS = {
    "brief": "they need {count} good turns and stay {mood}",
    "full": "The counterpart starts with a resistance of {count} and is {mood}; it agrees to nothing before the "
    "facts were described and the request was made.",
}


RULES = {
    "brief": "start at {count} . no good before you have heard it all",
    "full": "The resistance is {count} at first and falls with what is said plainly. An agreement fits only when the "
    "facts were described, the request was made and the resistance is near 0; a bargain only after the request.",
}


@functools.cache
def situations() -> dict[str, Situation]:
    """The package's, by their ids."""
    return {one.id: one for one in load_situations()}


def split_of(name: str) -> str:
    """The split that a situation of the package belongs to: of five of one difficulty three are for training."""
    peers = sorted(one.id for one in situations().values() if one.difficulty == situations()[name].difficulty)
    return SPLITS[max(0, peers.index(name) % 5 - 2)]


class DearMan(Dialogue):
    """The domain, over a tokenizer. See `domains.Domain`."""

    name = NAME
    own, other = "you", "they"
    splits = SPLITS
    proposal_roles = ("checker",)
    REWARDS: ClassVar[tuple[str, ...]] = (*Dialogue.REWARDS, "composed")
    KNOBS: ClassVar[dict[str, Knob]] = {
        **Dialogue.KNOBS,
        "turns": Knob(TURNS, "own turns of a conversation at most", at_least=1, at_most=TURNS),
        "wording": Knob("full", "natural English, or few simple words", choices=words.WORDINGS),
        "difficulty": Knob(DIFFICULTIES, "of the situations, 1 to 5", at_least=1, at_most=5, order="range"),
        "plays": Knob(
            "speaker", "whom the policy plays; the other one is scripted", choices=("speaker", "counterpart")
        ),
        "passing": Knob(0.8, "the score with which a conversation passes", above=0, at_most=1),
    }

    def __init__(self, tokenizer: Tokenizer, **knobs: Any):
        super().__init__(tokenizer, **knobs)
        self.wording: str = self.knobs["wording"]
        self.passing = self.knobs["passing"]
        self.speaks: bool = self.knobs["plays"] == "speaker"

    # Tasks ------------------------------------------------------------------------------------------------------------

    def tasks(self, split: str, seed: int, count: int) -> list[Task]:
        """`count` distinct tasks: situations of the split, each with a mood and a first line of the counterpart.

        Raises: ValueError for a split that there is not, or where there are not so many.
        """
        if split not in SPLITS:
            raise ValueError(f"dearman has no split {split!r}: choose one of {', '.join(SPLITS)}")
        low, high = self.knobs["difficulty"]
        chosen = [
            one
            for one in situations().values()
            if low <= one.difficulty <= high and split_of(one.id) == split
        ]
        rng = np.random.default_rng([seed, SPLITS.index(split)])

        def draw(number: str) -> Task:
            one = chosen[int(rng.integers(len(chosen)))]
            return self.task(one, f"{split}-{seed}-{number}", rng)

        way_out = "ask for fewer, or for more difficulties"
        return self._distinct(count, draw, split, f"difficulties {low} to {high}", way_out)

    def task(self, situation: Situation, name: str, rng: np.random.Generator) -> Task:
        """A conversation about a situation, a person's own too (`own_situation`), with a mood and a first line."""
        mood = MOODS[int(rng.integers(len(MOODS)))]
        opening = OPENINGS[int(rng.integers(len(OPENINGS)))]
        script = Counterpart(
            situation.difficulty, mood, situation, opening, self.wording, self.knobs["turns"]
        )
        line = script.line(opening, float(rng.random()))
        meta = {
            "situation": situation.id,
            "mood": mood,
            "opening": opening,
            "difficulty": situation.difficulty,
        }
        if situations().get(situation.id) != situation:
            meta["own"] = types.to_json(situation)
        return Task(name, NAME, self._problem(script, line), self._reference(script), meta=meta)

    def situation(self, task: Task) -> Situation:
        """What a task is about. Raises: ValueError where its situation is not known."""
        if own := task.meta.get("own"):
            return types.from_json(Situation, own)
        name = task.meta.get("situation")
        if name not in situations():
            raise ValueError(f"task {task.id} is about {name!r}, which is no situation of {NAME}")
        return situations()[name]

    def script(self, task: Task) -> Counterpart | Opposite:
        counterpart = self.counterpart(task)
        return counterpart if self.speaks else Opposite(counterpart)

    def oracle_of(self, script: Any) -> Oracle:
        """Values do not depend on the situation's words: one oracle for all of a difficulty and mood."""
        return super().oracle_of(script.bare())

    def counterpart(self, task: Task) -> Counterpart:
        """The counterpart of a task, whoever plays it."""
        situation, meta = self.situation(task), task.meta
        return Counterpart(
            situation.difficulty, meta["mood"], situation, meta["opening"], self.wording, self.knobs["turns"]
        )

    def _problem(self, script: Counterpart, line: str) -> str:
        one = script.situation
        assert one is not None
        if not self.speaks:
            return self._problem_of_counterpart(script, line)
        if self.wording == "brief":
            slots = words.parts(one, "brief")
            relation = one.relation.lower().replace("-", " ")
            return f"{relation} {script.mood} . {slots['facts']} . you want {slots['goal']} . they say {line}"
        return (
            f"You talk to your {one.relation}, who seems {script.mood}.\n"
            f"What happened: {one.facts}\nWhat you want to say in the end: {one.goal}\nThey begin: {line}"
        )

    def _problem_of_counterpart(self, script: Counterpart, line: str) -> str:
        one = script.situation
        assert one is not None
        said = script.words(script.start(), FIRST, 0.0)
        if self.wording == "brief":
            relation = one.relation.lower().replace("-", " ")
            return f"you are the {relation} {script.mood} . you told them {line} . they say {said}"
        return (
            f"You are the {one.relation} of the person who talks to you, and you are {script.mood}.\n"
            f"They want to say in the end: {one.goal}\nYou began: {line}\nThey say: {said}"
        )

    def _reference(self, script: Counterpart) -> str:
        one = script.situation
        assert one is not None
        if not self.speaks:
            return RULES[self.wording].format(count=RESISTANCE[script.difficulty])
        turns = [f"{skill} : {words.variants(one, i, self.wording)[0]}" for i, skill in enumerate(STRATEGIES)]
        needs = NEEDS[self.wording].format(count=RESISTANCE[script.difficulty], mood=script.mood)
        return "\n".join([*turns, needs])

    # Who sees what ----------------------------------------------------------------------------------------------------

    def view(self, task: Task, steps: list[str], role: str) -> list[dict[str, str]]:
        """solver: what the person knows. teacher: also the reference. checker: also the numbered turns."""
        if role == "solver":
            name, brief = "solver" if self.speaks else "counterpart", self.wording == "brief"
            return [said("user", task.problem)] if brief else prompts.prompt(name, problem=task.problem)
        self._check_role(task, role, (*self.proposal_roles, "teacher"))
        if role == "teacher":
            return self.informed(task)
        if self.wording == "brief":
            lines = "\n".join(f"[{i}] {step}" for i, step in enumerate(steps, 1))
            return [said("user", f"{task.problem}\n{task.reference}\n{lines}")]
        name = "checker" if self.speaks else "counterpart_checker"
        return prompts.prompt(name, problem=task.problem, reference=task.reference, steps=steps)

    def reply_view(self, task: Task, turns: Sequence[str], reply: Reply) -> list[dict[str, str]]:
        """The facts and the goal as the person told them, what was said, and what is said now; no reference."""
        if not self.speaks:
            return super().reply_view(task, turns, reply)
        one = self.situation(task)
        kind = reply.tags[0] if reply.tags else ""
        slots = {"relation": one.relation, "facts": one.facts, "goal": one.goal}
        return prompts.prompt("partner", turns=turns, text=reply.text, kind=kind, **slots)

    def leaks(self, task: Task, text: str) -> bool:
        """An intervention may say what the person could say, and nothing of what the counterpart needs."""
        needs = " ".join(task.reference.rpartition("\n")[2].casefold().split()).rstrip(".")
        spoken = " ".join(text.casefold().split())
        return bool(needs) and any(part.strip() in spoken for part in needs.split(";") if part.strip())

    def checker_response(self, trace: Trace) -> str:
        """What a perfect checker answers: of the turns up to the first that loses something what it does, and the turn
        that should stand there; location 0 and nothing where no turn does. Perfect with respect to the script."""
        wrong = self.first_error(trace)
        lines = []
        for i, one in enumerate(self.moments(trace)):
            if wrong is not None and i > wrong:
                break
            if not self.speaks:
                lines.append(f"[{i + 1}] {one.act} {'loses' if i == wrong else 'ok'}")
                continue
            act = cast(Act, one.act)
            skills = " ".join(
                STRATEGIES[skill] if strength > WEAK else f"weak {STRATEGIES[skill]}"
                for skill, strength in act.heard
            )
            faults = "" if act.mindful else " not mindful"
            faults += "" if act.confident else " not confident"
            lines.append(f"[{i + 1}] {skills or 'none'}{faults} {'loses' if i == wrong else 'ok'}")
        if wrong == len(self.moments(trace)):
            lines.append(f"[{wrong + 1}] cut off loses")
        return "\n".join([*lines, self.block(trace)])

    # What is said -----------------------------------------------------------------------------------------------------

    def reward(self, trace: Trace, part: str) -> float:
        """composed: the share of the own turns that were mindful and confident, 0 for a counterpart; see `Dialogue`."""
        if part == "composed" and not self.speaks:
            return 0.0
        if part == "composed":
            acts = self._acts(trace)
            return sum(act.mindful and act.confident for act in acts) / max(len(acts), 1)
        return super().reward(trace, part)

    def measures(self, trace: Trace) -> dict[str, float | None]:
        """Also the shares of the own turns that are mindful, confident, and strong in each strategy."""
        found = super().measures(trace)
        acts = self._acts(trace) if self.speaks else []
        if not acts:
            return found
        said = [dict(act.heard) for act in acts]
        shares = {name: [one.get(skill, 0) > WEAK for one in said] for skill, name in enumerate(STRATEGIES)}
        shares |= {"mindful": [act.mindful for act in acts], "confident": [act.confident for act in acts]}
        return {**found, **{name: sum(values) / len(acts) for name, values in shares.items()}}

    def novice_turn(self, trace: Trace, rng: np.random.Generator, skill: float = novice.SKILL) -> str:
        """What a scripted beginner says next in an open trace; as the counterpart, a line of any type."""
        if not self.speaks:
            return self.counterpart(trace.task).line(str(rng.choice(TYPES)), float(rng.random()))
        return novice.say(self.counterpart(trace.task), cast(State, self.state(trace)), rng, skill)

    def _acts(self, trace: Trace) -> list[Act]:
        return [cast(Act, one.act) for one in self.moments(trace)]


build = DearMan
