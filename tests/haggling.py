"""A conversation small enough to be worked out by hand: a price is bargained down, kind words help now and then."""

import dataclasses
from typing import NamedTuple

from int_jax.domains import said
from int_jax.domains.dialogue import Dialogue
from int_jax.types import Reply, Task

PRICE, TURNS = 9, 4


class State(NamedTuple):
    turn: int = 0
    price: int = PRICE
    charmed: bool = False
    closed: bool = False


@dataclasses.dataclass(frozen=True)
class Seller:
    """Kind words charm it with probability a half; an offer then takes 3 off the price, else 1; a deal ends it."""

    turns: int = TURNS

    def start(self):
        return State()

    def act(self, state, text):
        return next((act for act in ("deal", "offer", "praise") if act in text.casefold()), "chat")

    def acts(self, state):
        return ("offer", "praise", "deal", "chat")

    def outcomes(self, state, act):
        after = state._replace(turn=state.turn + 1)
        if act == "praise":
            return ((0.5, after._replace(charmed=True)), (0.5, after))
        if act == "offer":
            return ((1.0, after._replace(price=state.price - (3 if state.charmed else 1), charmed=False)),)
        return ((1.0, after._replace(closed=act == "deal")),)

    def essence(self, state):
        return state

    def over(self, state):
        if state.closed:
            return "partner"
        return "turns" if state.turn >= self.turns else ""

    def score(self, state):
        return (PRICE - state.price) / PRICE if state.closed else 0.0

    def say(self, before, act, after, luck):
        words = ("well", "hm")[int(2 * luck)]
        text = (
            "sold." if after.closed else f"{words}, {after.price} it is." if act == "offer" else f"{words}."
        )
        return Reply(text, (f"price:{after.price}",), self.over(after))

    def words(self, state, act, luck):
        return {
            "offer": "I offer less.",
            "praise": "I praise your shop.",
            "deal": "A deal.",
            "chat": "Fine day.",
        }[act]


class Haggling(Dialogue):
    name = "haggling"
    other = "seller"
    splits = ("hard_train", "hard_validation", "hard_test")
    passing = 0.2
    proposal_roles = ("checker",)

    def tasks(self, split, seed, count):
        return [
            Task(f"{split}-{seed}-{i}", self.name, f"Buy lamp {i} of {split}.", "Praise, then offer.")
            for i in range(count)
        ]

    def script(self, task):
        return Seller(self.knobs["turns"] if self.knobs["turns"] < TURNS else TURNS)

    def view(self, task, steps, role):
        if role == "solver":
            return [said("user", task.problem)]
        self._check_role(task, role, ("checker",))
        lines = "\n".join(f"[{i}] {step}" for i, step in enumerate(steps, 1))
        return [said("user", f"{task.problem}\nReference: {task.reference}\n{lines}\nWhich turn lost most?")]

    def reply_view(self, task, turns, reply):
        return [said("user", f"You sell lamps. You heard: {turns[-1]} Say in your own words: {reply.text}")]

    def checker_response(self, trace):
        step = self.first_error(trace)
        return "0" if step is None else f"{step + 1}: {self.correction(trace, step)}"

    def novice_turn(self, trace, rng, skill):
        return self.next_turn(trace) if rng.random() < skill else "Fine day."

    def leaks(self, task, text):
        return task.reference in text


def cut_off(trace):
    """The trace as if its first turn had been cut off after three tokens."""
    end = trace.prompt_len + 3
    arrays = {name: getattr(trace, name)[:end] for name in ("tokens", "sampled", "logp")}
    return trace.replace(**arrays, step_ends=(end,), partner=(), stop="length", verdict=None)
