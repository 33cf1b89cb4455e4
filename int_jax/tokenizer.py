"""One small surface over a Hugging Face tokenizer directory: encode, decode, chat rendering, stop ids, step ends."""

import functools
import json
import os
import re
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # "PyTorch was not found": it is not needed
from transformers import AutoTokenizer

ANSWER = "An answer."  # stands for an assistant's turn where the template is asked how it closes one


class Tokenizer:
    """Reads a tokenizer directory with `AutoTokenizer`; ids in, ids out.

    Args:
      path: the directory. chat: what the chat template is told besides the messages, {"enable_thinking": False}.

    Attributes: vocab (ids are below it), pad_id.
    """

    def __init__(self, path: str | Path, chat: dict[str, Any] | None = None):
        self.path = str(path)
        self.chat = dict(chat or {})
        self.hf = AutoTokenizer.from_pretrained(self.path)
        self.vocab = 1 + max(self.hf.get_vocab().values())  # len(self.hf) where the ids have no holes
        self.pad_id = self.hf.pad_token_id if self.hf.pad_token_id is not None else 0
        # Some tokenizers (Mistral, Llama 2) put a space before every text that they encode, and take it away when they
        # decode. That is right for a whole text and wrong for a part: parts go behind an anchor, which is cut off.
        spaced = self._first_token("a").startswith(("▁", "Ġ"))
        self._anchor_ids: list[int] = self._ids("\n") if spaced else []
        self._anchor_text = len(self.hf.decode(self._anchor_ids)) if spaced else 0
        self._piece = functools.cache(lambda i: self.decode([i]))  # 10 us an id, of 150k and at each step
        self._next = functools.cache(self._next_of)

    def _ids(self, text: str) -> list[int]:
        return self.hf.encode(text, add_special_tokens=False)

    def _first_token(self, text: str) -> str:
        return next(iter(self.hf.convert_ids_to_tokens(self._ids(text))), "")

    def encode(self, text: str) -> list[int]:
        """Ids of the text as it stands, to be put behind other ids: nothing is added to it."""
        if not self._anchor_ids:
            return self._ids(text)
        ids, start = self._ids("\n" + text), len(self._anchor_ids)
        if ids[:start] != self._anchor_ids:
            raise ValueError(f"{self.path}: {text[:20]!r} cannot be encoded apart from a newline before it")
        return ids[start:]

    def decode(self, ids) -> str:
        """The text of the ids, special tokens included, spaces as they are."""
        return self._text(ids, skip_special_tokens=False)

    def text(self, ids) -> str:
        """The text of a response without its special tokens: what a verifier or a person reads."""
        return self._text(ids, skip_special_tokens=True)

    def _text(self, ids, skip_special_tokens: bool) -> str:
        return self.hf.decode(
            self._anchor_ids + list(map(int, ids)),
            skip_special_tokens=skip_special_tokens,
            clean_up_tokenization_spaces=False,
        )[self._anchor_text :]

    def pieces(self, ids) -> list[str]:
        """The text of each id by itself, for display."""
        return [self._piece(int(i)) for i in ids]

    def render(self, messages: list[dict[str, str]], **knobs) -> list[int]:
        """Chat messages as ids, ending in an open assistant turn.

        The template has the last word on the first token, too: a BOS is there once if it writes one, else not at all.
        The turn is continued by appending ids to these, never by rendering a part of it (`continue_final_message`),
        which would strip the blank line that ends its last step.

        Args:
          knobs: replace those of `chat`.

        Raises: ValueError where there is no template, or it does not read a knob, refuses the conversation or needs
          the date of today; where the last message is the assistant's.
        """
        if messages[-1]["role"] == "assistant":
            raise ValueError(
                f"render: the last of {len(messages)} messages is the assistant's, whose turn this would open again; "
                "to continue that turn, append its ids to those of the messages before it"
            )
        return self._ids(self._rendered(messages, True, self.chat | knobs))

    def _rendered(self, messages, opened: bool, knobs: dict[str, Any]) -> str:
        if self.hf.chat_template is None:
            raise ValueError(
                f"{Path(self.path) / 'chat_template.jinja'}: missing, and tokenizer_config.json has no chat_template; "
                "write one, or give prompts as token ids"
            )
        template = self.hf.get_chat_template()
        for name in knobs:
            if not re.search(rf"\b{re.escape(name)}\b", template):
                raise ValueError(
                    f"{self.path}: the chat template does not read {name!r}; take it out of `chat`"
                )
        # A template that asks the clock for the date gets text in its place, which cannot be called: a run that goes
        # on tomorrow must have the same prompts.
        clock = {"strftime_now": "no clock"} if opened else {}
        try:
            return self.hf.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=opened, **clock, **knobs
            )
        except TemplateError as error:
            roles = [message["role"] for message in messages]
            raise ValueError(f"{self.path}: the chat template refuses {roles}: {error}") from None
        except TypeError as error:
            if "not callable" not in str(error) or "strftime_now" not in template:
                raise
            raise ValueError(
                f"{self.path}: the chat template writes the date of today, so that prompts would change from day to "
                "day; give it one, such as chat = {'date_string': '26 Jul 2024'}"
            ) from None

    @functools.cached_property
    def _closing(self) -> int | None:
        """The special token with which the template closes an assistant's turn, if it does so."""
        if self.hf.chat_template is None:
            return None
        turns = [{"role": "user", "content": "A question?"}, {"role": "assistant", "content": ANSWER}]
        _, _, after = self._rendered(turns, False, self.chat).rpartition(ANSWER)
        first = self._ids(after.lstrip())[:1]
        return first[0] if first and first[0] in self.hf.added_tokens_decoder else None

    @property
    def end_of_turn(self) -> int:
        """The id with which the template closes an assistant's turn: what fine-tuning trains as its end."""
        if self._closing is None:
            raise ValueError(
                f"{self.path}: no special token closes the assistant's turn in the chat template (or there is none), "
                "so there is no end of turn to train"
            )
        return self._closing

    @functools.cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids that end a response, and are kept in it: the end of the assistant's turn, then every eos of the tokenizer
        and of generation_config.json."""
        file = Path(self.path) / "generation_config.json"
        eos = json.loads(file.read_text()).get("eos_token_id") if file.is_file() else None
        ids = (self._closing, self.hf.eos_token_id, *(eos if isinstance(eos, list) else [eos]))
        return tuple(dict.fromkeys(i for i in ids if i is not None))

    def step_ends(self, ids, start: int = 0, separator: str = "\n\n") -> tuple[int, ...]:
        """Token offsets (exclusive) where the steps of ids[start:] end: after the token that completes a separator.

        A token that continues a run of newlines belongs to the separator before it, so joining the steps gives back
        the ids exactly; the last step ends where the ids end. A final stop token belongs to the last step.
        """
        ids = [int(i) for i in ids]
        ends: list[int] = []
        newlines, text_seen = 0, False
        for offset in range(start, len(ids)):
            piece = self._piece(ids[offset])
            if ends and ends[-1] == offset and piece and not piece.strip("\n"):
                ends[-1] = offset + 1
                continue
            joined = "\n" * newlines + piece
            if separator in (joined if text_seen else joined.lstrip()):
                ends.append(offset + 1)
                newlines, text_seen = 0, False
                continue
            text_seen = text_seen or bool(piece.strip())
            newlines = (
                newlines + len(piece) if not piece.strip("\n") else len(piece) - len(piece.rstrip("\n"))
            )
        if ids[start:] and (not ends or ends[-1] != len(ids)):
            only_stop = len(ids) - (ends[-1] if ends else start) == 1 and ids[-1] in self.stop_ids
            if only_stop and ends:
                ends[-1] = len(ids)
            else:
                ends.append(len(ids))
        return tuple(ends)

    # The tokens of a separator depend on what follows it: GPT-2 writes a blank line in one token before a digit and in
    # two before a letter, so the one that stands says what may come next. Where text is cut behind a separator, its
    # tokens are taken off and drawn again by the policy, among those that begin with its text ("token healing").

    @functools.cached_property
    def _by_first(self) -> dict[str, list[tuple[str, int]]]:
        """The text and id of every token that text can become, by its first character."""
        found: dict[str, list[tuple[str, int]]] = {}
        for token in range(self.vocab):
            piece = self._piece(token)
            if piece and token not in self.hf.added_tokens_decoder:
                found.setdefault(piece[0], []).append((piece, token))
        return found

    def spellings(self, text: str) -> dict[str, dict[int, str]]:
        """Every way in which tokens can begin with `text`.

        Returns: for each rest of the text that may be left to spell, the ids that can come next and the rest that each
        leaves, "" where the text is complete; a last token may reach beyond it.
        """
        found: dict[str, dict[int, str]] = {}
        waiting = [text]
        while waiting:
            if (rest := waiting.pop()) in found or not rest:
                continue
            found[rest] = self._next(rest)
            waiting += found[rest].values()
        return found

    def _next_of(self, rest: str) -> dict[int, str]:
        return {
            token: rest[len(piece) :]
            for piece, token in self._by_first.get(rest[0], ())
            if rest.startswith(piece) or piece.startswith(rest)
        }

    def covering(self, ids, characters: int) -> int:
        """How many of the first ids hold so many characters; all of them where they hold fewer."""
        return next((n for n in range(len(ids)) if len(self.decode(ids[:n])) >= characters), len(ids))

    def reopen(self, ids, start: int = 0, separator: str = "\n\n") -> tuple[int, str]:
        """What of ids[start:] stands whatever comes next, and the text with which the next tokens then have to begin.

        Returns: (end, text). Where the ids end in a separator that tokens can spell in more ways than one, ids[end:]
        are its tokens, and the text is that of the separator with what stands before it in its first token. Otherwise
        (len(ids), "").
        """
        ids = [int(i) for i in ids]
        end = len(ids)
        # Back over the run of newlines, then over the rest of a character that tokens share.
        while end > start and (piece := self._piece(ids[end - 1])) and not piece.strip(separator):
            end -= 1
        if end > start and self._piece(ids[end - 1]).endswith(separator[0]):
            end -= 1
        text = self.decode(ids[end:])
        while "\ufffd" in text and end > start:
            end -= 1
            text = self.decode(ids[end:])
        lead = text.rstrip(separator)
        if not text.startswith(lead + separator):
            return len(ids), ""
        begin = lead + separator
        allowed = [len(tokens) for tokens in self.spellings(begin).values()]
        if max(allowed) == 1 or not min(allowed):  # one way only, or a piece that no plain token begins with
            return len(ids), ""
        return end, begin

    def stop_length(self, ids, strings: tuple[str, ...], seen: int = 0, skip: int = 0) -> int | None:
        """How many ids there are up to the one that completes one of the strings; None if none is complete.

        Args:
          seen: the first ids that are known to complete none. skip: characters at the beginning that do not count.
        """
        ids = [int(i) for i in ids]
        # A string of n characters reaches over n tokens at most.
        first = max(seen - max(map(len, strings)), self.covering(ids, skip))
        if not any(one in self.decode(ids[first:]) for one in strings):
            return None
        ends = range(first + 1, len(ids) + 1)
        return next(n for n in ends if any(one in self.decode(ids[first:n]) for one in strings))
