"""What domains of conversations have in common: a script a task, turns as steps, and exact errors with respect to it.

A domain derives from `Dialogue`, and says with `script(task)` who the partner is and with `view` who sees what. A step
is an own turn with the reply to it. The state of the conversation is nowhere kept: it follows from the own turns, so a
trace that was cut, spliced or read from a file goes on as if it had never stopped.
"""

import abc
import functools
import json
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from int_jax.dialogue import oracle
from int_jax.dialogue.oracle import TOLERANCE, Oracle
from int_jax.dialogue.partner import Asked, Partner, Scripted
from int_jax.dialogue.script import Moment, Script, State, luck_of, replay
from int_jax.domains import TextDomain
from int_jax.knobs import Knob
from int_jax.tokenizer import Tokenizer
from int_jax.types import Reply, Task, Trace, Verdict


class Dialogue(TextDomain, abc.ABC):
    """A domain of conversations, but for its `name`, `tasks`, `view` and `script`.

    Attributes:
      partner: who replies, the script in its own words as it stands. passing: the score with which a conversation
        passes.
    """

    separator = ""
    oracle = graded = True
    passing: float = 0.8
    REWARDS: ClassVar[tuple[str, ...]] = ("no_regret",)
    KNOBS: ClassVar[dict[str, Knob]] = {
        "turns": Knob(8, "own turns of a conversation at most", at_least=1),
        "turn_tokens": Knob(64, "tokens of an own turn at most", at_least=1),
    }

    def __init__(self, tokenizer: Tokenizer, **knobs: Any):
        super().__init__(tokenizer, **knobs)
        self.turn_tokens = self.knobs["turn_tokens"]
        self.partner: Partner = Scripted()

    @property
    def slow_partner(self) -> bool:  # type: ignore[override]
        return self.partner.slow

    # What a domain says ---------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def view(self, task: Task, steps: list[str], role: str) -> list[dict[str, str]]:
        """See `domains.Domain`; the role "teacher" is `informed`."""

    @abc.abstractmethod
    def script(self, task: Task) -> Script:
        """The partner of a task, and what a conversation with it is worth: hashable, equal for equal partners."""

    def reply_view(self, task: Task, turns: Sequence[str], reply: Reply) -> list[dict[str, str]]:
        """The chat with which a language model is asked to say `reply` in its own words; see `partner.Asked`."""
        raise ValueError(f"{self.name} has no prompt for a language model as the partner")

    @abc.abstractmethod
    def checker_response(self, trace: Trace) -> str:
        """What a perfect checker answers, with respect to the script: ends in the intervention at the first error."""

    @abc.abstractmethod
    def novice_turn(self, trace: Trace, rng: np.random.Generator, skill: float) -> str:
        """What a scripted beginner says next in an open trace, for training data and as a baseline. skill: the share of
        turns that are good."""

    def informed(self, task: Task) -> list[dict[str, str]]:
        """The view of the "teacher", who speaks in the policy's place and knows the reference."""
        *before, last = self.view(task, [], "solver")
        return [*before, {**last, "content": f"{last['content']}\nReference:\n{task.reference}"}]

    # The conversation so far ----------------------------------------------------------------------------------------

    def own_turns(self, trace: Trace) -> list[str]:
        """The texts of the own turns."""
        starts = trace.step_starts()
        heard = {turn.end: turn.start for turn in trace.partner}
        # A step without a reply is the own turn alone.
        ends = [heard.get(end, end) for end in trace.step_ends]
        return [self.tokenizer.text(trace.tokens[a:b]).strip() for a, b in zip(starts, ends, strict=True)]

    def turns(self, trace: Trace) -> list[str]:
        """All turns, own and partner's in turn."""
        replies = [turn.text for turn in trace.partner]
        own = self.own_turns(trace)
        return [text for pair in zip(own, replies, strict=False) for text in pair] + own[len(replies) :]

    def step_texts(self, trace: Trace) -> list[str]:
        """Of each step the own turn, and the reply in a line below it."""
        replies = [turn.text for turn in trace.partner]
        return [
            f"{text}\n{self.other}: {replies[i]}" if i < len(replies) else text
            for i, text in enumerate(self.own_turns(trace))
        ]

    def steps(self, tokens: Any, start: int = 0) -> tuple[int, ...]:
        """One turn: whoever holds a conversation knows where others end (`Trace.step_ends`)."""
        return (len(tokens),) if len(tokens) > start else ()

    # The script -----------------------------------------------------------------------------------------------------

    def oracle_of(self, script: Script) -> Oracle:
        """What is best in a script."""
        return oracle.oracle_of(script)

    def moments(self, trace: Trace) -> list[Moment]:
        """What each own turn did. One that was cut off, or ended in another token than the template's, is no turn:
        nobody heard it."""
        own = self.own_turns(trace)
        return replay(self.script(trace.task), trace.task.id, own[:-1] if self.cut_off(trace) else own)

    def cut_off(self, trace: Trace) -> bool:
        """Whether the last own turn was cut off, or ended in another token than the template's."""
        said = len(trace.step_ends) > len(trace.partner)
        return said and int(trace.tokens[-1]) != self.tokenizer.end_of_turn

    def state(self, trace: Trace) -> State:
        """Behind the last turn that was heard."""
        moments = self.moments(trace)
        return moments[-1].after if moments else self.script(trace.task).start()

    def replies(self, traces: list[Trace]) -> list[Reply]:
        """The partner's; a turn that was cut off, or ended in another token than the template's, gets none."""
        said = [Reply()] * len(traces)
        asked, places = [], []
        for i, trace in enumerate(traces):
            script, turns = self.script(trace.task), tuple(self.turns(trace))
            moments = replay(script, trace.task.id, turns[:-1:2])
            state = moments[-1].after if moments else script.start()
            if int(trace.tokens[-1]) != self.tokenizer.end_of_turn or script.over(state):
                continue
            view = functools.partial(self.reply_view, trace.task, turns)
            asked.append(Asked(script, state, turns, (trace.task.id, len(turns) // 2), view))
            places.append(i)
        for i, (reply, _) in zip(places, self.partner(asked), strict=True):
            said[i] = reply
        return said

    def verify(self, trace: Trace) -> Verdict:
        """The score, graded; it passes with `passing`. A conversation that did not come to its end is "truncated"."""
        moments, script = self.moments(trace), self.script(trace.task)
        if not moments or not script.over(moments[-1].after):
            return Verdict(False, 0.0, "truncated" if trace.stop == "length" else "no_answer")
        score = script.score(moments[-1].after)
        passed = score >= self.passing - 1e-9
        return Verdict(passed, score, "correct" if passed else "wrong")

    def reward(self, trace: Trace, part: str) -> float:
        """no_regret: the share of the turns that lost nothing."""
        if part == "no_regret":
            lost = self.regrets(trace)
            return sum(regret <= TOLERANCE for regret in lost) / max(len(lost), 1)
        return super().reward(trace, part)

    def regrets(self, trace: Trace) -> list[float]:
        """What each own turn lost of the score, in expectation; one that was cut off, all that was left to gain."""
        found = self.oracle_of(self.script(trace.task))
        left = [found.value(self.state(trace))] if self.cut_off(trace) else []
        return [*found.regrets(self.moments(trace)), *left]

    def measures(self, trace: Trace) -> dict[str, float | None]:
        """turns: own ones. regret: what a turn lost on average, in score. first_error: its turn, counted from 1."""
        lost, step = self.regrets(trace), self.first_error(trace)
        return {
            "turns": float(len(lost)),
            "regret": float(np.mean(lost)) if lost else None,
            "first_error": None if step is None else step + 1.0,
        }

    def first_error(self, trace: Trace) -> int | None:
        return next((i for i, lost in enumerate(self.regrets(trace)) if lost > TOLERANCE), None)

    def correction(self, trace: Trace, step: int) -> str:
        """A best act in the state before that turn, in the script's words."""
        moments, turns = self.moments(trace), len(trace.step_ends)
        if not 0 <= step < len(moments) + self.cut_off(trace):
            raise ValueError(f"task {trace.task.id}: turn {step} of a conversation of {turns} (0-based)")
        before = moments[step].before if step < len(moments) else self.state(trace)
        return self._best_words(trace.task, before, step)

    def block(self, trace: Trace) -> str:
        """What a perfect checker's answer ends in: the first error, counted from 1, and the turn that should stand
        there; 0 and nothing where there is none."""
        step = self.first_error(trace)
        found = (0, "") if step is None else (step + 1, self.correction(trace, step))
        answer = json.dumps(dict(zip(("location", "content"), found, strict=True)), ensure_ascii=False)
        return f"<intervention>{answer}</intervention>"

    def next_turn(self, trace: Trace) -> str:
        """A best act, in the script's words."""
        return self._best_words(trace.task, self.state(trace), len(trace.step_ends) - self.cut_off(trace))

    def _best_words(self, task: Task, state: State, turn: int) -> str:
        script = self.script(task)
        return script.words(state, self.oracle_of(script).best(state), luck_of(task.id, turn, "rewrite"))

    def solution(self, task: Task) -> str:
        """There is none that could be said at once. Raises ValueError, naming what there is."""
        raise ValueError(f"{self.name}: a conversation is solved turn by turn; ask next_turn(trace)")

    def reference_response(self, task: Task) -> str:
        """See `solution`."""
        return self.solution(task)

    def answer(self, trace: Trace) -> str | None:
        """The last own turn, where the conversation came to its end."""
        moments = self.moments(trace)
        if not moments or not self.script(trace.task).over(moments[-1].after):
            return None
        return self.own_turns(trace)[len(moments) - 1]
