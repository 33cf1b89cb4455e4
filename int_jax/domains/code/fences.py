"""Fenced blocks in a response: which text is code, and whether a place in it lies inside a block."""

import re
import textwrap
from typing import NamedTuple

# A line that may open or close a block: ``` or ~~~ or longer, indented as in a list; what follows it names a language.
FENCE = re.compile(r"[ \t]*(?P<mark>`{3,}|~{3,})[ \t]*(?P<label>[^`]*)")
PYTHON = ("python", "py", "python3")


class Block(NamedTuple):
    """A closed block: the first word behind its fence, in small letters, and its lines without common indentation."""

    label: str
    body: str


def mark_after(mark: str, line: str) -> str:
    """The fence that is open after a line, "" where none is; `mark` is the one that was open before it."""
    found = FENCE.fullmatch(line)
    if not mark:
        return found["mark"] if found else ""
    # ``` opens, and ``` or ```` closes; "```python" within a block is text, and so is ~~~ within ```.
    closes = found and not found["label"].strip() and found["mark"].startswith(mark)
    return "" if closes else mark


def blocks(text: str) -> list[Block]:
    """The closed blocks of a text: one that is cut off before its end is none."""
    out: list[Block] = []
    mark, label = "", ""
    body: list[str] = []
    for line in text.split("\n"):
        # A line opens a block, closes it, stands in it, or is prose, which goes.
        after, found = mark_after(mark, line), FENCE.fullmatch(line)
        if not mark and found and after:
            words = found["label"].lower().split()
            label, body = words[0] if words else "", []
        elif mark and not after:
            out.append(Block(label, textwrap.dedent("\n".join(body))))
        elif mark:
            body.append(line)
        mark = after
    return out


def python_blocks(text: str) -> list[str]:
    """The bodies of the blocks of Python; of those without a language where none says so. Sessions (>>>) are none."""
    found = blocks(text)
    chosen = [one for one in found if one.label in PYTHON] or [one for one in found if not one.label]
    return [one.body for one in chosen if one.body.strip() and not one.body.lstrip().startswith(">>>")]


def fenced(code: str) -> str:
    """Code as a block of Python."""
    return f"```python\n{code.strip(chr(10))}\n```"
