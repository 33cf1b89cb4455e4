"""Reads the proposer's output format: the last <intervention> block, JSON first, then repairs."""

import ast
import json
import re
import textwrap

from int_jax.types import Intervention

BLOCK = re.compile(r"<intervention>(.*?)</intervention>", re.DOTALL | re.IGNORECASE)


def _location(value) -> int | None:
    """A location as an integer: 12, "12", "Step 12", "Substep 12"; None if there is no number."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    digits = re.search(r"-?\d{1,9}", str(value))
    return int(digits[0]) if digits else None


def _literal(body: str):
    """The block's two-key mapping: as JSON, as JSON with LaTeX backslashes doubled, or as a Python literal."""
    escaped = re.sub(r'\\(?![\\"nrtu/])|\\(?=[nrtu][A-Za-z])', r"\\\\", body)
    relabelled = re.sub(r"([\"']location[\"']\s*:\s*)(?:[A-Za-z]+\s*)+(\d+)", r"\1\2", escaped)
    for text in (body, escaped, relabelled):
        for read in (json.loads, ast.literal_eval):
            try:
                value = read(textwrap.dedent(text).strip())
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                continue
            if isinstance(value, dict):
                return value
    return None


def _fields(body: str) -> dict | None:
    """Last resort, for content with unescaped quotes or line breaks: take both fields by their keys."""
    content = re.search(r"[\"']content[\"']\s*:\s*([\"'])(.*?)\1\s*(?:,\s*[\"']location[\"']|\}\s*$)", body, re.DOTALL)
    location = re.search(r"[\"']location[\"']\s*:\s*([^,}]*)", body)
    return {"content": content[2], "location": location[1]} if content and location else None


def parse_intervention(text: str) -> Intervention | None:
    """The last block of a proposer's output as an Intervention; None if there is no readable one.

    The block holds {"location": step number from 1, "content": the step}. Nothing is checked here but the form: a
    location outside the attempt and an empty content come back as they are (`proposers.fault` names them). `ids` is ().
    """
    blocks = BLOCK.findall(text)
    if not blocks:
        return None
    fields = _literal(blocks[-1]) or _fields(blocks[-1])
    if not fields or "content" not in fields or "location" not in fields:
        return None
    location = _location(fields["location"])
    if location is None or not isinstance(fields["content"], str):
        return None
    return Intervention(location - 1, fields["content"].strip(), raw=text)
