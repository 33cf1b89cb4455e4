"""Reading JSON files that people write by hand: every fault is noted with its file, its place, and what to write there.

Nothing is filled in or skipped. A reader goes through a whole file and notes its faults in a list, so that who wrote
the file learns of all of them at once: `load` raises them.
"""

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

ID = re.compile(r"[a-z0-9]+(_[a-z0-9]+)*")
SIMPLE = re.compile(r"[a-z]+( [a-z]+)*")


class Place:
    """A value of a file: where it stands, and the list in which its faults are noted while it is read.

    A value of the wrong kind is noted once and then read as an empty one, so that the rest of its file is read, too.
    """

    def __init__(self, value: Any, file: str, field: str, faults: list[str]):
        self.value, self.file, self.field, self.faults = value, file, field, faults

    def fault(self, found: str, instead: str) -> None:
        field = f" {self.field}:" if self.field else ""
        self.faults.append(f"{self.file}:{field} {found}; write {instead}")

    def wrong(self, what: str, instead: str) -> None:
        """Notes that its value is `what`."""
        self.fault(f"{self.value!r:.60} {what}", instead)

    def at(self, key: str | int, value: Any = None) -> "Place":
        name = f"[{key}]" if isinstance(key, int) else f".{key}" if self.field else key
        return Place(value, self.file, self.field + name, self.faults)

    def named(self, name: str) -> "Place":
        """The same value as an item of its file: fields are then counted from it."""
        return Place(self.value, f"{self.file}: {name}", "", self.faults)

    def members(self, what: str) -> dict[str, "Place"]:
        if not isinstance(self.value, dict):
            self.wrong("is no object", what)
            return {}
        return {name: self.at(name, value) for name, value in self.value.items()}

    def fields(self, wanted: Iterable[str], optional: Iterable[str] = ()) -> dict[str, "Place"]:
        """Its members by name: all that are wanted, those of `optional` that are there, and no others.

        One that is missing is noted here, and no fault of it is noted again.
        """
        wanted = tuple(wanted)
        known = (*wanted, *optional)
        members = self.members("an object with " + ", ".join(wanted))
        for name, member in members.items():
            if name not in known:
                member.fault("there is no such field", f"one of {', '.join(known)}, or take it out")
        missing = [name for name in wanted if name not in members]
        if isinstance(self.value, dict):
            for name in missing:
                self.at(name).fault("it is missing", f"it beside {', '.join(members) or 'the others'}")
        silent = {name: Place(None, self.file, "", []) for name in missing}
        return {name: (members | silent)[name] for name in known if name in members or name in silent}

    def items(self, what: str) -> list["Place"]:
        if not isinstance(self.value, list):
            self.wrong("is no list", what)
            return []
        return [self.at(number, value) for number, value in enumerate(self.value)]

    def text(self, empty: bool = False) -> str:
        if not isinstance(self.value, str) or not (empty or self.value.strip()):
            self.wrong("is no text", f"a text in quotes{'' if empty else ' that is not empty'}")
            return ""
        return self.value

    def words(self, low: int, high: int) -> str:
        """A text of so many words."""
        text = self.text()
        if text and not low <= (count := len(text.split())) <= high:
            self.fault(f"{text!r} has {count} words", f"{span(low, high)} words")
        return text

    def simple(self, low: int, high: int) -> str:
        """A text of so many words of the letters a to z, one space between them."""
        text = self.words(low, high)
        if text and not SIMPLE.fullmatch(text):
            self.wrong("is not plain", "words of a to z, with one space between and no signs")
        return text

    def texts(
        self, low: int, high: int | None = None, read: Callable[["Place"], str] = text
    ) -> tuple[str, ...]:
        """So many texts, which differ in more than signs and capitals, each of them as `read` gives it."""
        places = self.items(f"{span(low, high)} texts in a list")
        if isinstance(self.value, list) and not low <= len(places) <= (high or len(places)):
            self.fault(f"{len(places)} texts", f"{span(low, high)}, each in other words")
        found: dict[str, str] = {}
        texts = tuple(map(read, places))
        for place, text in zip(places, texts, strict=True):
            if text and found.setdefault(plain(text), place.field) != place.field:
                place.fault(f"{text!r:.60} stands there twice", "it once, or in other words")
        return texts

    def one_of(self, known: Iterable[str], name: str | None = None) -> str:
        """Its text, or its own `name`, which is one of some."""
        known = tuple(known)
        found = self.text(empty="" in known) if name is None else name
        if found and found not in known:
            self.fault(f"{found!r:.60} is not known", f"one of {', '.join(filter(None, known))}")
        return found

    def id(self, name: str | None = None) -> str:
        """Its text, or its own `name`, as an id."""
        found = self.text() if name is None else name
        if found and not ID.fullmatch(found):
            self.fault(
                f"the id {found!r:.60} has other signs than a to z, 0 to 9 and _ between them", "it in these"
            )
        return found

    def whole(self, low: int, high: int | None = None) -> int:
        if type(self.value) is not int or not low <= self.value <= (high or self.value):
            self.wrong("does not fit", f"a whole number, {span(low, high)}")
            return low
        return self.value


def span(low: int, high: int | None = None) -> str:
    return f"at least {low}" if high is None else f"{low} to {high}" if low < high else f"{low}"


def plain(text: str) -> str:
    """Its words alone: two texts that differ in signs or capitals are one."""
    return " ".join(re.findall(r"[\w']+", text.lower()))


def load(reader: Callable[..., Any], *arguments: Any) -> Any:
    """reader(*arguments, faults). Raises: ValueError, a line a fault, where it notes any in that list."""
    faults: list[str] = []
    found = reader(*arguments, faults)
    if faults:
        raise ValueError("\n".join(faults))
    return found


def read(path: Path, faults: list[str]) -> Place:
    """A file's JSON; one that cannot be read is noted here, and no fault of it is noted again."""
    return _parsed(_text(path, faults), path, faults)


def rows(path: Path, faults: list[str], least: int = 1) -> list[Place]:
    """The objects of a JSON list, or of JSON lines (.jsonl), some at `least`; each is named by its id if it has one."""
    before = len(faults)
    if path.suffix == ".jsonl":
        lines = enumerate((_text(path, faults) or "").split("\n"), 1)
        places = [_parsed(line, path, faults, i).named(f"line {i}") for i, line in lines if line.strip()]
    else:
        items = enumerate(read(path, faults).items("a list of objects"), 1)
        places = [place.named(f"item {i}") for i, place in items]
    if len(places) < least and len(faults) == before:
        faults.append(f"{path}: there are {len(places)} objects in it; write at least {least}")
    known: dict[str, Place] = {}
    for i, place in enumerate(places):
        name = place.value.get("id") if isinstance(place.value, dict) else None
        if isinstance(name, str) and name in known:
            place.at("id").fault(f"{name!r} is the id of another, too", "one of its own")
        elif isinstance(name, str) and name:
            places[i] = known[name] = Place(place.value, f"{path}: {name}", "", faults)
    return places


def _text(path: Path, faults: list[str]) -> str | None:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        faults.append(f"{path}: there is no such file; write it, or name another one")
    except UnicodeDecodeError as error:
        faults.append(f"{path}: byte {error.start + 1} is not UTF-8; write the file in UTF-8")
    return None


def _parsed(text: str | None, path: Path, faults: list[str], line: int = 1) -> Place:
    """The JSON of a text whose first line is the file's line `line`."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        for name in dict.fromkeys(name for name in names if names.count(name) > 1):
            faults.append(f"{path}: {name}: it stands twice in one object; write it once")
        return dict(pairs)

    try:
        if text is not None:
            return Place(json.loads(text, object_pairs_hook=unique), str(path), "", faults)
    except json.JSONDecodeError as error:
        where = f"line {line + error.lineno - 1}, column {error.colno}"
        faults.append(
            f"{path}: {where} is no JSON ({error.msg}); write it anew, and mind quotes and commas before it"
        )
    return Place(None, str(path), "", [])
