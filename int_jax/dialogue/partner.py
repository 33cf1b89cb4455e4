"""Partners: who replies to the policy's turns. A script decides what happens; who words it may be another.

A partner is pure: what it says is a function of the state before the turn, the turns so far, and a key that names its
random stream, (task id, number of the own turn). So a conversation that forks at a turn goes on from the same partner.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from int_jax.dialogue.script import Script, State, choose, luck_of
from int_jax.sampler import Request, Sampler, Sampling
from int_jax.tokenizer import Tokenizer
from int_jax.types import Reply

Key = tuple[str, int]


class Asked(NamedTuple):
    """What a partner is asked: to reply to the last of `turns`.

    Attributes:
      script, state: who it is, and in which state before that turn. turns: all so far, own and partner's in turn.
      key: (task id, number of the own turn).
      messages(reply): the chat with which a language model is asked to word a scripted reply. It tells who speaks, what
        was said, and what is to be said now; what is not said yet it cannot tell, so it cannot leak.
    """

    script: Script
    state: State
    turns: tuple[str, ...]
    key: Key
    messages: Callable[[Reply], list[dict[str, str]]]


class Partner(Protocol):
    """Who replies.

    Attributes:
      slow: whether that takes so long that other conversations go on meanwhile.
    """

    slow: bool

    def __call__(self, asked: Sequence[Asked]) -> list[tuple[Reply, State]]:
        """To each: what it says, and its state from then on."""


class Scripted:
    """The script's own words."""

    slow = False

    def __call__(self, asked: Sequence[Asked]) -> list[tuple[Reply, State]]:
        return [self._reply(*one[:4]) for one in asked]

    def _reply(self, script: Script, state: State, turns: tuple[str, ...], key: Key) -> tuple[Reply, State]:
        task, number = key
        act = script.act(state, turns[-1])
        after = choose(script.outcomes(state, act), luck_of(task, number))
        return script.say(state, act, after, luck_of(task, number, "words")), after


class Model:
    """A language model words what the script says; it is asked for all replies together.

    Its wording is in the trace, but changes no state: what was told is what the script told.

    Args:
      sampling: how it is drawn; the stop ids are the tokenizer's.
    """

    slow = True

    def __init__(self, engine: Sampler, params: Any, tokenizer: Tokenizer, sampling: Sampling):
        self.engine, self.params, self.tokenizer = engine, params, tokenizer
        self.sampling = sampling
        self.scripted = Scripted()

    def __call__(self, asked: Sequence[Asked]) -> list[tuple[Reply, State]]:
        found = self.scripted(asked)
        requests, places = [], []
        for i, (one, (reply, _)) in enumerate(zip(asked, found, strict=True)):
            prompt = tuple(self.tokenizer.render(one.messages(reply))) if reply.text else ()
            # What has no room keeps the script's words.
            if 0 < len(prompt) <= self.engine.max_len - self.sampling.max_new_tokens:
                task, number = one.key
                requests.append(Request(prompt, f"{task}/partner", number))
                places.append(i)
        for i, request, response in zip(
            places,
            requests,
            self.engine.generate(self.params, requests, self.sampling, tokenizer=self.tokenizer),
            strict=True,
        ):
            reply, state = found[i]
            text = " ".join(self.tokenizer.text(response.tokens[len(request.prompt) :]).split())
            found[i] = reply._replace(text=text or reply.text), state
        return found


class Person:
    """Somebody who is asked: what they say takes the place of the script's words, and tells nothing for sure.

    Args:
      ask(turns): the reply to the last of these turns, own and partner's in turn; "" ends the conversation.
    """

    slow = True

    def __init__(self, ask: Callable[[Sequence[str]], str]):
        self.ask = ask

    def __call__(self, asked: Sequence[Asked]) -> list[tuple[Reply, State]]:
        said = []
        for one, (reply, state) in zip(asked, Scripted()(asked), strict=True):
            text = self.ask(one.turns).strip()
            said.append((Reply(text, (), reply.stop if text else "partner"), state))
        return said
