"""One small surface over a Hugging Face tokenizer directory: encode, decode, chat rendering, stop ids, step ends."""

import functools
import itertools
import json
import os
import re
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # "PyTorch was not found": it is not needed
from transformers import AutoTokenizer

# What a template is asked with. It may trim a message; what escapes it (HTML, JSON) changes the problem.
PROBE = 'Message {}: "is" it\n<1> & \\frac{{a}}{{b}}?'


def probes(roles: tuple[str, ...]) -> list[dict[str, str]]:
    """A conversation of these roles in which each message can be told from the others."""
    return [{"role": role, "content": PROBE.format(i + 1)} for i, role in enumerate(roles)]


def json_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises ValueError, naming the file, where it holds anything else, or nothing."""
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: not JSON ({error}); fix the file, or take it away") from None
    if not isinstance(data, dict):
        raise ValueError(
            f"{file}: holds {str(data)[:20]!r}, and not a JSON object; fix the file, or take it away"
        )
    return data


class Tokenizer:
    """Reads a tokenizer directory with `AutoTokenizer`; ids in, ids out.

    Args:
      path: the directory. chat: what the chat template is told besides the messages, {"enable_thinking": False}.

    Attributes: vocab (ids are below it), pad_id, generation (what generation_config.json says, {} where there is none).
    """

    def __init__(self, path: str | Path, chat: dict[str, Any] | None = None):
        self.path = str(path)
        self.chat = dict(chat or {})
        settings = Path(self.path) / "generation_config.json"
        self.generation = json_object(settings) if settings.is_file() else {}
        self.hf = AutoTokenizer.from_pretrained(self.path)
        if not self.hf.is_fast:
            raise ValueError(
                f"{self.path}: read by {type(self.hf).__name__}, which cannot tell where a control token stands in a "
                "text; add a tokenizer.json"
            )
        self.vocab = 1 + max(self.hf.get_vocab().values())  # len(self.hf) where the ids have no holes
        self.pad_id = self.hf.pad_token_id if self.hf.pad_token_id is not None else 0
        # Some tokenizers (Mistral, Llama 2) put a space before every text that they encode, and take it away when they
        # decode. That is right for a whole text and wrong for a part: parts go behind an anchor, which is cut off.
        spaced = self._first_token("a").startswith(("▁", "Ġ"))
        self._anchor_ids: list[int] = self._ids("\n") if spaced else []
        self._anchor_text = len(self.hf.decode(self._anchor_ids)) if spaced else 0
        self._shapes: dict[str, bool] = {}  # `_in_parts`
        self._opened: set[str] = set()  # `_check_opening`
        self._piece = functools.cache(lambda i: self.decode([i]))  # 10 us an id, of 150k and at each step
        self._next = functools.cache(self._next_of)

    def _ids(self, text: str) -> list[int]:
        return self.hf.encode(text, add_special_tokens=False)

    def _first_token(self, text: str) -> str:
        return next(iter(self.hf.convert_ids_to_tokens(self._ids(text))), "")

    def encode(self, text: str) -> list[int]:
        """Ids of the text as it stands, to be put behind other ids: nothing is added to it.

        It stays text: a control token that it spells ("<|im_end|>") becomes the ordinary tokens of its letters. A token
        that is added but not special (<think>, <tool_call>) is text by the tokenizer's own word, and is kept: a model
        draws it, so that its own text, read back, must give it.
        """
        return [i for part in self._as_text(text) for i in self._part(part)]

    def _part(self, text: str) -> list[int]:
        if not self._anchor_ids:
            return self._ids(text)
        # "\n5" less the ids of "\n": what stands there without the space that the tokenizer puts before a text.
        ids, start = self._ids("\n" + text), len(self._anchor_ids)
        if ids[:start] != self._anchor_ids:
            raise ValueError(f"{self.path}: {text[:20]!r} cannot be encoded apart from a newline before it")
        return ids[start:]

    def _as_text(self, text: str) -> list[str]:
        """The text in parts that hold no control token: one that is spelled is cut behind its first letter.

        The tokenizer itself says where, so that it counts what its normalizer makes of a text, too.
        """
        if self._control_ids.isdisjoint(self._ids(text)):
            return [text]
        found = self.hf(text, add_special_tokens=False, return_offsets_mapping=True)
        cuts = [0]
        for i, (start, end) in zip(found["input_ids"], found["offset_mapping"], strict=True):
            # The unknown token also stands for letters that the vocabulary lacks: these spell no control token.
            unknown = i == self.hf.unk_token_id and text[start:end].strip() != self.hf.unk_token
            if i not in self._control_ids or unknown:
                continue
            if end - start < 2:
                raise ValueError(
                    f"{self.path}: the control token {text[start:end]!r} is a single letter, which no text may hold"
                )
            # "a<|im_end|>b" -> "a<", "|im_end|>b". Each part is looked at again: it may spell another one.
            cuts.append(start + 1)
        if len(cuts) == 1:
            return [text]
        parts = [text[a:b] for a, b in itertools.pairwise([*cuts, len(text)])]
        return [part for piece in parts for part in self._as_text(piece)]

    @functools.cached_property
    def _control_ids(self) -> frozenset[int]:
        """The ids that no text may become: special tokens, stop ids and what the template writes around turns."""
        added = self.hf.added_tokens_decoder
        ids = {i for i, token in added.items() if token.special} | set(self.stop_ids)
        # DeepSeek's <｜User｜> is not special. <think> is no turn's: it stands either in a prompt or in a past turn.
        ids |= self._written(("user",), True) & self._written(("user", "assistant", "user"), False)
        ids |= self._written(("system", "user"), False)
        # A stop id may be a newline, and a role a word of its own: they are text.
        return frozenset(
            i for i in ids if i in added and not re.fullmatch(r"\s+|\w+", added[i].content.strip(" ") or " ")
        )

    def _written(self, roles: tuple[str, ...], opened: bool) -> set[int]:
        """Added tokens in a conversation of these roles; none where the template refuses it, as `render` would say."""
        if self.hf.chat_template is None:
            return set()
        try:
            return (
                set(self._ids(self._probed(roles, opened, self.chat))) & self.hf.added_tokens_decoder.keys()
            )
        except ValueError:
            return set()

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
        Its format is its own: it may trim contents (Llama, Gemma), add a system turn or drop past thoughts (Qwen). It
        may not leave out a message or open no turn; contents stay text (see `encode`), in parts where it wants parts.
        The turn is continued by appending ids to these, never by rendering a part of it (`continue_final_message`),
        which would strip the blank line that ends its last step.

        Args:
          knobs: replace those of `chat`.

        Raises: ValueError where there is no template, or it does not read a knob, refuses the conversation, leaves a
          part of it out, opens no turn or needs the date of today; where the last message is the assistant's.
        """
        if messages[-1]["role"] == "assistant":
            raise ValueError(
                f"render: the last of {len(messages)} messages is the assistant's, whose turn this would open again; "
                "to continue that turn, append its ids to those of the messages before it"
            )
        for message in messages:
            if not isinstance(message["content"], str):
                raise TypeError(
                    f"render: the content of the {message['role']}'s message is {message['content']!r}, and not text"
                )
        knobs = self.chat | knobs
        self._check_opening(knobs)
        first, *rest = self._marked(messages, True, knobs)
        return self._ids(first) + [i for part in rest for i in self._part(part)]

    def reply(self, text: str, last: bool = False) -> list[int]:
        """A user's turn behind an assistant's that ends in `end_of_turn`, as the ids to append; the next assistant's
        turn is opened unless this one is the `last`. What was said before is not rendered again.

        Raises: as `render`; ValueError where the template does not close turns.
        """
        question, answer = probes(("user", "assistant"))
        talk = [question, answer, {"role": "user", "content": text}]
        first, *rest = self._marked(talk, not last, self.chat)
        _, found, behind = first.rpartition(answer["content"])
        if not found:
            raise ValueError(f"{self.template_file}: the chat template changes what an assistant said before")
        ids = self._ids(behind.lstrip()) + [i for part in rest for i in self._part(part)]
        if ids[:1] != [self.end_of_turn]:
            raise ValueError(
                f"{self.template_file}: the chat template closes an assistant's turn by {behind[:20]!r} where another "
                "follows, and by another token at the end of a conversation"
            )
        return ids[1:]

    def _marked(self, messages: list[dict[str, str]], opened: bool, knobs: dict[str, Any]) -> list[str]:
        """The rendered text, cut where a message spells a control token: `encode` says why."""
        in_parts = self._in_parts(tuple(message["role"] for message in messages), opened, knobs)
        # A letter of private use that no message has marks where a control token that is spelled is cut.
        said = {letter for message in messages for letter in message["content"]}
        mark = next(letter for letter in map(chr, range(0xE000, 0xF900)) if letter not in said)
        marked = [m | {"content": mark.join(self._as_text(m["content"]))} for m in messages]
        return self._rendered(marked, opened, knobs, in_parts).split(mark)

    @property
    def template_file(self) -> Path:
        """Where the chat template is, or would be."""
        file, old = (Path(self.path) / name for name in ("chat_template.jinja", "tokenizer_config.json"))
        return file if file.is_file() or self.hf.chat_template is None else old

    def _template(self, knobs: dict[str, Any]) -> str:
        named = self.hf.chat_template
        if named is None:
            raise ValueError(
                f"{self.template_file}: missing, and tokenizer_config.json has no chat_template; "
                "write one, or give prompts as token ids"
            )
        if isinstance(named, dict) and "default" not in named:
            raise ValueError(
                f"{self.path}: the chat templates are named {sorted(named)}, and none is the default; save the one to "
                "use as chat_template.jinja"
            )
        return self.hf.get_chat_template(tools=knobs.get("tools"))

    def _rendered(self, messages, opened: bool, knobs: dict[str, Any], in_parts: bool) -> str:
        template = self._template(knobs)
        for name in knobs:
            if not re.search(rf"\b{re.escape(name)}\b", template):
                raise ValueError(
                    f"{self.template_file}: the chat template does not read {name!r}; take it out of `chat`"
                )
        if in_parts:
            messages = [m | {"content": [{"type": "text", "text": m["content"]}]} for m in messages]
        # A template that asks the clock for the date gets text in its place, which cannot be called: a run that goes
        # on tomorrow must have the same prompts.
        clock = {"strftime_now": "no clock"} if opened else {}
        try:
            return self.hf.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=opened, **clock, **knobs
            )
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
            if "not callable" in str(error) and "strftime_now" in template:
                raise ValueError(
                    f"{self.template_file}: the chat template writes the date of today, so that prompts would change "
                    "from day to day; give it one, such as chat = {'date_string': '26 Jul 2024'}"
                ) from None
            roles = [message["role"] for message in messages]
            raise ValueError(f"{self.template_file}: the chat template refuses {roles}: {error}") from None

    def _in_parts(self, roles: tuple[str, ...], opened: bool, knobs: dict[str, Any]) -> bool:
        """Whether the template reads contents as lists of parts, not as texts; found out by probes, once a shape.

        Raises: ValueError where a message's text is not in what it writes, either way.
        """
        shape = repr((roles, opened, sorted(knobs.items())))
        if shape not in self._shapes:
            # Contents as texts first, then as parts: the first form that loses no message is taken. Where both do, the
            # fault of the first is told.
            faults = []
            for in_parts in (False, True):
                try:
                    text = self._rendered(probes(roles), opened, knobs, in_parts)
                except ValueError as error:
                    faults.append(str(error))
                    continue
                lost = [i for i, probe in enumerate(probes(roles)) if probe["content"] not in text]
                if not lost:
                    self._shapes[shape] = in_parts
                    break
                faults.append(
                    f"{self.template_file}: the chat template leaves out or changes what the {roles[lost[0]]} says in "
                    f"message {lost[0] + 1} of {list(roles)}; make it write every message's content as it stands"
                )
            else:
                raise ValueError(faults[0])
        return self._shapes[shape]

    def _probed(self, roles: tuple[str, ...], opened: bool, knobs: dict[str, Any]) -> str:
        return self._rendered(probes(roles), opened, knobs, self._in_parts(roles, opened, knobs))

    def _check_opening(self, knobs: dict[str, Any]) -> None:
        """Refuse a template that leaves the user's turn open at the end of a prompt, or writes two BOS; once."""
        shape = repr(sorted(knobs.items()))
        if shape in self._opened:
            return
        question, answer = (probe["content"] for probe in probes(("user", "assistant")))
        prompt, closed = (self._probed(("user",), opened, knobs) for opened in (True, False))
        talk = self._probed(("user", "assistant"), False, knobs)
        # "<user>Q<end><assistant>" against "<user>Q<end><assistant>A<end>": what follows Q in the prompt must be what
        # stands between Q and A in the whole talk.
        end = prompt.rpartition(question)[2].rstrip()
        before = talk.partition(question)[2].partition(answer)[0].rstrip()
        # [/INST] closes the user's turn and opens the other. What is opened may go on with a thought on either side:
        # in the prompt (DeepSeek), or in the turn as a whole (Qwen3).
        always = prompt.rstrip() == closed.rstrip()
        if not (end == before if always else end.startswith(before) or before.startswith(end)):
            raise ValueError(
                f"{self.template_file}: the chat template opens no assistant's turn: a prompt ends in {end[-60:]!r}, "
                f"and an answer stands behind {before[-60:]!r}; write the same where add_generation_prompt is set"
            )
        bos = self.hf.bos_token_id
        if bos is not None and self._ids(prompt)[:2] == [bos, bos]:
            raise ValueError(
                f"{self.template_file}: the chat template writes the BOS, {self.hf.bos_token!r}, twice"
            )
        self._opened.add(shape)

    @functools.cached_property
    def _closing(self) -> int | None:
        """The added token with which the template closes an assistant's turn, if it does so."""
        if self.hf.chat_template is None:
            return None
        question, answer = (probe["content"] for probe in probes(("user", "assistant")))
        talk = self._probed(("user", "assistant"), False, self.chat)
        added = self.hf.added_tokens_decoder
        # The first token behind the answer, and the last added one before the question.
        first = next(iter(self._ids(talk.rpartition(answer)[2].lstrip())), None)
        opening = [i for i in self._ids(talk.partition(question)[0]) if i in added][-1:]
        # What opens the user's turn closes no other: where nothing closes the assistant's, the next turn begins.
        closes = first in added and (first not in opening or first == self.hf.eos_token_id)
        return first if closes else None

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
        """Ids that end a response, and are kept in it: the end of the assistant's turn, then every eos of the
        tokenizer, of generation_config.json and of config.json."""
        config = Path(self.path) / "config.json"
        found: list = [self._closing, self.hf.eos_token_id]
        for data in (self.generation, json_object(config) if config.is_file() else {}):
            eos = data.get("eos_token_id")
            ids = eos if isinstance(eos, list) else [] if eos is None else [eos]
            if not all(type(i) is int for i in ids):
                raise ValueError(
                    f"{self.path}: eos_token_id = {eos!r} is neither a token id nor a list of them"
                )
            found += ids
        return tuple(dict.fromkeys(i for i in found if i is not None and i >= 0))  # -1 is none in some files

    def step_ends(self, ids, start: int = 0, separator: str = "\n\n") -> tuple[int, ...]:
        """Token offsets (exclusive) where the steps of ids[start:] end: after the token that completes a separator.

        A token that continues a run of newlines belongs to the separator before it, so joining the steps gives back
        the ids exactly; the last step ends where the ids end. A final stop token belongs to the last step.
        """
        ids = [int(i) for i in ids]
        # Pieces "a", ".\n", "\n", "\n", "b" -> (4, 5): the third completes the separator, the fourth goes on with it.
        # Before each token: the step so far ends in `newlines` line breaks, and text_seen says whether it has more than
        # white space.
        ends: list[int] = []
        newlines, text_seen = 0, False
        for offset in range(start, len(ids)):
            piece = self._piece(ids[offset])
            if ends and ends[-1] == offset and piece and not piece.strip("\n"):
                ends[-1] = offset + 1
                continue
            # Of what came before only the line breaks at its end can be a part of a separator.
            joined = "\n" * newlines + piece
            # Blank lines before the first word end no step.
            if separator in (joined if text_seen else joined.lstrip()):
                ends.append(offset + 1)
                newlines, text_seen = 0, False
                continue
            text_seen = text_seen or bool(piece.strip())
            newlines = (
                newlines + len(piece) if not piece.strip("\n") else len(piece) - len(piece.rstrip("\n"))
            )
        if ids[start:] and (not ends or ends[-1] != len(ids)):
            # A stop token alone behind the last separator is no step of its own.
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
        # So that `_next_of` goes through the tokens that begin alike, and not through a vocabulary of 150,000.
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
        # "\n\n" -> {"\n\n": {id of "\n\n": "", id of "\n": "\n"}, "\n": {id of "\n": ""}}. waiting: rests that were
        # reached, and may not have been looked at.
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
            # A piece that reaches beyond the rest leaves "".
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
        # Pieces "5", ".\n", "\n" -> (1, ".\n\n"): the point goes too, since it shares a token with the separator.
        end = len(ids)
        # Back over the run of newlines, then over the rest of a character that tokens share.
        while end > start and (piece := self._piece(ids[end - 1])) and not piece.strip(separator):
            end -= 1
        if end > start and self._piece(ids[end - 1]).endswith(separator[0]):
            end -= 1
        text = self.decode(ids[end:])
        # A letter whose bytes are shared between tokens decodes to this mark until all of them are there.
        while "\ufffd" in text and end > start:
            end -= 1
            text = self.decode(ids[end:])
        lead = text.rstrip(separator)
        if not text.startswith(lead + separator):
            return len(ids), ""
        # Line breaks beyond the separator are not asked for again.
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
