"""Reads the proposer's output format: the last <intervention> block, JSON first, then repairs."""

import ast
import json
import re
import textwrap

from int_jax.types import Intervention

TAG = re.compile(r"(</?intervention>)", re.IGNORECASE)
# A backslash that starts none of these is LaTeX that was not escaped, and is doubled. \n is a line break unless it
# starts a command; \t, \r, \b and \f before a letter are commands (\theta, \rho, \boxed, \frac).
COMMANDS_N = (
    "u|e|eq|eg|ot|otin|otag|abla|i|mid|leq|geq|less|gtr|exists|onumber|ewline|atural|earrow|warrow|sim"
    "|subset|subseteq"
)
# \frac -> \\frac, \neq -> \\neq, \theta -> \\theta; \n, \", \\ and \u00e9 stay
ESCAPE = re.compile(
    rf"\\(?:[\\\"'/]|n(?!(?:{COMMANDS_N})(?![A-Za-z]))|[tr](?![A-Za-z])|u[0-9a-fA-F]{{4}})|\\"
)
# A body that escapes its LaTeX throughout is JSON as it stands: its \n is a line break, whatever letter follows.
ESCAPED = re.compile(r"(?<!\\)(?:\\\\)+(?=[A-Za-z])")
UNESCAPED = re.compile(r"(?<!\\)(?:\\\\)*\\(?![\\\"'/nu])")
# Escaped once too often: \\\\frac in JSON is a line break of LaTeX and the word "frac".
TWICE = re.compile(
    r"(?<!\\)\\\\(?=(?:[dt]?frac|sqrt|cdot|times|le|ge|leq|geq|neq|equiv|pmod|pi|alpha|beta|theta|sum|prod|int|text|infty"
    r"|left|right|in|to|pm|ldots|cdots|mathbb|mathrm|binom)(?![A-Za-z]))"
)
# "location": Step 3 -> "location": 3
LABELLED = re.compile(r"([\"']location[\"']\s*:\s*)[A-Za-z][A-Za-z ]*(\d)")


def _location(value) -> int | None:
    """A location as an integer: 12, "12", "Step 12", "Step-12", "[12]"; None if there is no number."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    digits = re.search(r"(?:(?<![\w-])-)?\d{1,9}", str(value))  # a hyphen after a word is no minus
    return int(digits[0]) if digits else None


def _unfenced(body: str) -> str:
    """The body without a Markdown code fence around it."""
    body = body.strip()
    if body.startswith("```"):
        body = body.partition("\n")[2]
    return body.removesuffix("```")


def _literal(body: str):
    """The block's two-key mapping: as JSON, or as a Python literal."""
    for read in (lambda text: json.loads(text, strict=False), ast.literal_eval):
        try:
            value = read(textwrap.dedent(body).strip())
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            continue
        if isinstance(value, dict):
            return value
    return None


def _fields(body: str) -> dict | None:
    """Last resort, for content with unescaped quotes or line breaks: take both fields by their keys."""
    # {"content": "he said "no" and left", "location": 3}: the content ends where the next key begins or, as the last
    # field, where the mapping ends.
    start = re.search(r"[\"']content[\"']\s*:\s*([\"'])", body)
    location = re.search(r"[\"']location[\"']\s*:\s*([^,}]*)", body)
    if not start or not location:
        return None
    rest, quote = body[start.end() :], start[1]
    ends = rf"{quote}\s*,\s*[\"']location[\"']", rf"{quote}\s*,?\s*\}}\s*\Z"
    end = re.search(ends[0], rest) or re.search(ends[1], rest)
    if not end:
        return None
    # \n is a line break, \" a quote, \\ a backslash: one pass, so that \\n is a backslash and an n.
    content = re.sub(r"\\(.)", lambda m: {"n": "\n"}.get(m[1], m[1]), rest[: end.start()])
    return {"content": content, "location": location[1]}


def parse_intervention(text: str) -> Intervention | None:
    """The last block of a proposer's output as an Intervention; None if there is no readable one.

    The block holds {"location": step number from 1, "content": the step}, with or without a code fence around it.
    Nothing is checked here but the form: a location outside the attempt and an empty content come back as they are
    (`proposers.fault` names them), and an empty content needs no location ("none"). `ids` is ().
    """
    parts = TAG.split(text)  # text, tag, text, tag, ..., text
    # Tags have odd places: a body counts where an opening tag stands before it and a closing one behind.
    bodies = [i + 1 for i in range(1, len(parts) - 2, 2) if "/" not in parts[i] and "/" in parts[i + 2]]
    if not bodies:
        return None
    body = _unfenced(parts[bodies[-1]])
    if not ESCAPED.search(body) or UNESCAPED.search(body):
        body = ESCAPE.sub(lambda m: m[0] if len(m[0]) > 1 else r"\\", body)
    body = LABELLED.sub(r"\1\2", body)
    fields = _literal(body) or _fields(body)
    if not fields or "content" not in fields or "location" not in fields:
        return None
    location, content = _location(fields["location"]), fields["content"]
    if not isinstance(content, str) or (location is None and content.strip()):
        return None
    # An empty content without a location becomes step -1.
    return Intervention((location or 0) - 1, TWICE.sub(r"\\", content).strip(), raw=text)
