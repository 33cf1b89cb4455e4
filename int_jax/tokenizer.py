"""One small surface over a Hugging Face tokenizer directory: encode, decode, chat rendering, stop ids, step ends."""

from pathlib import Path

from transformers import AutoTokenizer


class Tokenizer:
    """Reads a tokenizer directory (or hub id) with `AutoTokenizer`; ids in, ids out.

    Attributes: vocab (ids are below it), pad_id, stop_ids (generation ends with any of these; the id is kept).
    """

    def __init__(self, path: str | Path):
        self.path = str(path)
        self.hf = AutoTokenizer.from_pretrained(self.path)
        self.vocab = len(self.hf)
        self.pad_id = self.hf.pad_token_id if self.hf.pad_token_id is not None else 0
        self.stop_ids: tuple[int, ...] = (self.hf.eos_token_id,) if self.hf.eos_token_id is not None else ()

    def encode(self, text: str) -> list[int]:
        """Ids of the text as it stands: nothing is added to it."""
        return self.hf.encode(text, add_special_tokens=False)

    def decode(self, ids) -> str:
        """The text of the ids, special tokens included, spaces as they are."""
        return self.hf.decode(
            list(map(int, ids)), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )

    def text(self, ids) -> str:
        """The text of a response without its special tokens: what a verifier or a person reads."""
        return self.hf.decode(
            list(map(int, ids)), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    def pieces(self, ids) -> list[str]:
        """The text of each id by itself, for display."""
        return [self.decode([i]) for i in ids]

    def render(self, messages: list[dict[str, str]]) -> list[int]:
        """Chat messages as ids, ending in an open assistant turn."""
        text = self.hf.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return self.encode(text)

    def ending_with(self, text: str) -> tuple[int, ...]:
        """The ids whose own text ends with `text`: stop ids that end a response after a separator."""
        return tuple(i for i in range(self.vocab) if self.decode([i]).endswith(text))

    def step_ends(self, ids, start: int = 0, separator: str = "\n\n") -> tuple[int, ...]:
        """Token offsets (exclusive) where the steps of ids[start:] end: after the token that completes a separator.

        A token that continues a run of newlines belongs to the separator before it, so joining the steps gives back
        the ids exactly; the last step ends where the ids end. A final stop token belongs to the last step.
        """
        ids = [int(i) for i in ids]
        ends: list[int] = []
        newlines, text_seen = 0, False
        for offset in range(start, len(ids)):
            piece = self.decode([ids[offset]])
            if ends and ends[-1] == offset and piece and not piece.strip("\n"):
                ends[-1] = offset + 1
                continue
            head, found, _ = ("\n" * newlines + piece).partition(separator)
            if found and (text_seen or head.strip()):
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
