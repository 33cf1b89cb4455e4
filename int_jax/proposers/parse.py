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
    "u|e|eq|eg|ot|otin|abla|i|mid|leq|geq|less|gtr|exists|onumber|ewline|atural|earrow|warrow|subseteq"
)
ESCAPE = re.compile(
    rf"\\(?:[\\\"'/]|n(?!(?:{COMMANDS_N})(?![A-Za-z]))|[tr](?![A-Za-z])|u[0-9a-fA-F]{{4}})|\\"
)
LABELLED = re.compile(r"([\"']location[\"']\s*:\s*)[A-Za-z][A-Za-z ]*(\d)")


def _location(value) -> int | None:
    """A location as an integer: 12, "12", "Step 12", "Substep 12"; None if there is no number."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    digits = re.search(r"-?\d{1,9}", str(value))
    return int(digits[0]) if digits else None


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
    start = re.search(r"[\"']content[\"']\s*:\s*([\"'])", body)
    location = re.search(r"[\"']location[\"']\s*:\s*([^,}]*)", body)
    if not start or not location:
        return None
    rest, quote = body[start.end() :], start[1]
    end = re.search(rf"{quote}\s*,\s*[\"']location[\"']", rest) or re.search(rf"{quote}\s*\}}\s*\Z", rest)
    if not end:
        return None
    content = re.sub(r"\\(.)", lambda m: {"n": "\n"}.get(m[1], m[1]), rest[: end.start()])
    return {"content": content, "location": location[1]}


def parse_intervention(text: str) -> Intervention | None:
    """The last block of a proposer's output as an Intervention; None if there is no readable one.

    The block holds {"location": step number from 1, "content": the step}. Nothing is checked here but the form: a
    location outside the attempt and an empty content come back as they are (`proposers.fault` names them). `ids` is ().
    """
    parts = TAG.split(text)  # text, tag, text, tag, ..., text
    bodies = [i + 1 for i in range(1, len(parts) - 2, 2) if "/" not in parts[i] and "/" in parts[i + 2]]
    if not bodies:
        return None
    escaped = ESCAPE.sub(lambda m: m[0] if len(m[0]) > 1 else r"\\", parts[bodies[-1]])
    body = LABELLED.sub(r"\1\2", escaped)
    fields = _literal(body) or _fields(body)
    if not fields or "content" not in fields or "location" not in fields:
        return None
    location = _location(fields["location"])
    if location is None or not isinstance(fields["content"], str):
        return None
    return Intervention(location - 1, fields["content"].strip(), raw=text)
