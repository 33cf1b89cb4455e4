"""Fields of the files that a person may edit: each is checked, and a fault says its place, what it is, and the fix."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class Item:
    """One object of a file; what is wrong with a field is put down under its place, and the field reads as empty."""

    def __init__(
        self, place: str, value: Any, faults: list[str], fields: Sequence[str], optional: Sequence[str] = ()
    ):
        self.place, self.faults, self.before = place, faults, len(faults)
        self.value: dict = value if isinstance(value, dict) else {}
        if not isinstance(value, dict):
            faults.append(f"{place}: is {value!r:.60}: make it an object with {', '.join(fields)}")
            return
        for field in fields:
            if field not in value and field not in optional:
                self.fault(field, "is missing", f"an item has {', '.join(fields)}")
        for field in value:
            if field not in fields:
                self.fault(field, "is not known", f"take it out, or name it one of {', '.join(fields)}")

    @property
    def good(self) -> bool:
        return len(self.faults) == self.before

    def fault(self, field: str, what: str, fix: str) -> None:
        self.faults.append(f"{self.place}: {field} {what}: {fix}")

    def text(self, field: str, empty: bool = False) -> str:
        value = self.value.get(field, "")
        good = isinstance(value, str) and (empty or bool(value.strip()))
        if field in self.value and not good:
            self.fault(field, f"is {value!r:.60}", "write a text" + ("" if empty else " that is not empty"))
        return value if good else ""

    def texts(self, field: str, low: int, high: int) -> tuple[str, ...]:
        value = self.value.get(field, [])
        if field not in self.value:
            return ()
        if not isinstance(value, list) or not all(isinstance(one, str) and one.strip() for one in value):
            self.fault(field, f"is {value!r:.60}", "write a list of texts that are not empty")
            return ()
        if not low <= len(value) <= high:
            self.fault(field, f"has {len(value)} texts", f"write {low} to {high}")
        for one, count in Counter(value).items():
            if count > 1:
                self.fault(field, f"has {one!r:.60} {count} times", "write it once")
        return tuple(value)

    def choice(self, field: str, choices: Sequence[str]) -> str:
        value = self.value.get(field, "")
        if field in self.value and value not in choices:
            self.fault(field, f"is {value!r:.60}", f"choose one of {', '.join(choices)}")
        return value

    def whole(self, field: str, low: int, high: int) -> int:
        value = self.value.get(field, low)
        if type(value) is not int or not low <= value <= high:
            self.fault(field, f"is {value!r:.60}", f"write a whole number from {low} to {high}")
        return value

    def words(self, field: str, text: str, limits: tuple[int, int]) -> None:
        low, high = limits
        if text and not low <= (count := len(text.split())) <= high:
            self.fault(
                field, f"has {count} words", f"write {low} to {high}" if low < high else f"write {low}"
            )

    def plain(self, field: str, text: str) -> None:
        if odd := re.search(r"[^a-z ]", text):
            self.fault(field, f"has {odd.group()!r}", "write words of the letters a to z, without signs")


def parsed(text: str, place: str, faults: list[str], line: int = 1) -> Any:
    """The JSON of a text whose first line is the file's line `line`; None, and a fault, where it is none."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"line {line + error.lineno - 1}, column {error.colno}"
        faults.append(f"{place}: {where} is no JSON ({error.msg}): mind the quotes and commas before it")
        return None


def read(path: Path, faults: list[str]) -> str:
    """The text of a file; "", and a fault, where it is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        faults.append(f"{path}: byte {error.start + 1} is not UTF-8: save the file as UTF-8")
        return ""
