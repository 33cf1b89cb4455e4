"""Reading JSON files that people write by hand: every fault is noted with its place and what to write there.

Nothing is filled in or skipped. A reader goes through a whole file and gathers its faults, so that who wrote the file
learns of all of them at once.
"""

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

FORMS = 3  # at least, of what is said in several ways


class Place:
    """A value of a file: where it stands, and the list in which its faults are noted while it is read.

    A value of the wrong kind is noted once and then read as an empty one, so that the rest of its file is read, too.
    """

    def __init__(self, value: Any, file: str, field: str, faults: list[str]):
        self.value, self.file, self.field, self.faults = value, file, field, faults

    def fault(self, found: str, instead: str) -> None:
        field = f" {self.field}:" if self.field else ""
        self.faults.append(f"{self.file}:{field} {found}; write {instead}")

    def at(self, key: str | int, value: Any = None) -> "Place":
        name = f"[{key}]" if isinstance(key, int) else f".{key}" if self.field else key
        return Place(value, self.file, self.field + name, self.faults)

    def members(self, what: str) -> dict[str, "Place"]:
        if not isinstance(self.value, dict):
            self.fault(f"{shown(self.value)} is no object", what)
            return {}
        return {name: self.at(name, value) for name, value in self.value.items()}

    def fields(self, wanted: Iterable[str], optional: Iterable[str] = ()) -> dict[str, "Place"]:
        """Its members by name: all that are wanted, those of `optional` that are there, and no others.

        If one that is wanted is missing, {}: what depends on it would only repeat the fault.
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
        return {} if missing else {name: members[name] for name in known if name in members}

    def items(self, what: str) -> list["Place"]:
        if not isinstance(self.value, list):
            self.fault(f"{shown(self.value)} is no list", what)
            return []
        return [self.at(number, value) for number, value in enumerate(self.value)]

    def text(self) -> str:
        if not isinstance(self.value, str) or not self.value.strip():
            self.fault(f"{shown(self.value)} is no text", "a text in quotes that is not empty")
            return ""
        return self.value

    def one_of(self, known: Iterable[str]) -> str:
        name = self.text()
        if name and name not in known:
            self.fault(f"{name!r} is no id of ids.json", f"one of {', '.join(known)}")
        return name

    def forms(self, check: Callable[["Place", str], None]) -> tuple[str, ...]:
        """At least FORMS texts that differ, each of them held to `check`."""
        places = self.items(f"{FORMS} forms in a list")
        if isinstance(self.value, list) and len(places) < FORMS:
            self.fault(
                f"{len(places)} of {FORMS} forms", f"at least {FORMS} that say the same in other words"
            )
        texts: list[str] = []
        for place in places:
            text = place.text()
            if text and plain(text) in map(plain, texts):
                place.fault(f"{text!r} stands there twice", "it in other words")
            elif text:
                check(place, text)
            texts.append(text)
        return tuple(texts)

    def gives_nothing_away(self, text: str, which: str, words: Iterable[str]) -> None:
        for word in words:
            if re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE):
                self.fault(f"{word!r} gives away {which}", "it without that word")


def shown(value: Any) -> str:
    return repr(value) if len(repr(value)) <= 60 else repr(value)[:57] + "..."


def plain(text: str) -> str:
    """Its words alone: two forms that differ in signs or capitals are one."""
    return " ".join(re.findall(r"[\w']+", text.lower()))


def read(folder: Path, file: str, faults: list[str]) -> Place | None:
    """A file's JSON, or None with the fault noted."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        for name in dict.fromkeys(name for name in names if names.count(name) > 1):
            faults.append(f"{file}: {name}: it stands twice in one object; write it once")
        return dict(pairs)

    try:
        text = (folder / file).read_text(encoding="utf-8")
        return Place(json.loads(text, object_pairs_hook=unique), file, "", faults)
    except FileNotFoundError:
        faults.append(f"{file}: there is no such file in {folder}; write it, or name another folder")
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        faults.append(f"{file}: it is no JSON ({error}); write JSON in UTF-8 there")
    return None
