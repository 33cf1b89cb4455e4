"""The simulated clients: the closed sets of ids, the cases, and a short wording of both for tiny models.

    python -m int_jax.domains.therapy.cases int_jax/assets/therapy

says what is wrong in any file of a folder. People write these files by hand, so nothing is filled in or skipped: a
fault names the file, the case, the field, and what to write there. A folder has ids.json, lexicon.json and
cases/NAME.json. A part of a case is said in one of several forms: sentences of the client that mean the same.
"""

import argparse
import dataclasses
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

FORMS = 3  # at least, of each part
FORM_WORDS = (5, 25)  # of a sentence said aloud
BRIEF_WORDS = {"history": 12, "form": 6}  # at most, of what tiny models read
ADULT = 18
SLOTS = ("beliefs", "emotions", "coping", "behaviours", "rules", "areas")
BRIEF = re.compile(r"[a-z]+( [a-z]+)*")
ID = re.compile(r"[a-z]+(_[a-z]+)*")


@dataclasses.dataclass(frozen=True)
class Ids:
    """The closed sets: each id with its meaning in one line; beliefs by their group."""

    beliefs: Mapping[str, Mapping[str, str]]
    emotions: Mapping[str, str]
    coping: Mapping[str, str]
    behaviours: Mapping[str, str]
    rules: Mapping[str, str]
    areas: Mapping[str, str]
    risk: frozenset[str]  # beliefs that no case may have unless risk cases are allowed
    words: Mapping[str, tuple[str, ...]]  # of a belief, an emotion or a rule: the words that give it away

    def known(self, slot: str) -> tuple[str, ...]:
        """The ids of one of SLOTS."""
        if slot == "beliefs":
            return tuple(name for group in self.beliefs.values() for name in group)
        return tuple(getattr(self, slot))

    def group(self, belief: str) -> str:
        """The group of a belief; a KeyError if there is no such belief."""
        return {name: group for group, names in self.beliefs.items() for name in names}[belief]


@dataclasses.dataclass(frozen=True)
class Part:
    """What a client can disclose: an id of a closed set, and the forms in which the client says it."""

    id: str
    forms: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Situation:
    """What happened, the thought that came with it, what the client felt (1 to 3 emotions) and did."""

    id: str
    area: str
    situation: tuple[str, ...]
    thought: tuple[str, ...]
    emotions: tuple[Part, ...]
    behaviour: Part


@dataclasses.dataclass(frozen=True)
class Case:
    """A client. Public are `name`, `age` and the two histories; the rest is to be found out."""

    id: str
    name: str
    age: int
    history: str
    brief_history: str
    beliefs: tuple[Part, ...]
    rule: Part
    coping: Part
    situations: tuple[Situation, ...]


Lexicon = dict[str, dict[str, tuple[str, ...]]]


def load_ids(folder: str | Path) -> Ids:
    """The closed sets of `folder`/ids.json. A ValueError lists every fault, a line each."""
    return _raised(_ids, Path(folder))


def load_cases(folder: str | Path, allow_risk_cases: bool = False) -> list[Case]:
    """The cases of `folder`/cases, by id. A ValueError lists every fault, a line each."""
    return _raised(_cases, Path(folder), load_ids(folder), allow_risk_cases)


def load_lexicon(folder: str | Path) -> Lexicon:
    """The short forms of `folder`/lexicon.json: for each of SLOTS and each id; `situation` by area, `thought` by group.

    A belief that is marked as a risk may be left out. A ValueError lists every fault, a line each.
    """
    return _raised(_lexicon, Path(folder), load_ids(folder))


def _raised(read: Callable[..., Any], folder: Path, *rest: Any) -> Any:
    faults: list[str] = []
    value = read(folder, *rest, faults)
    if faults:
        raise ValueError("\n".join(faults))
    return value


class _Place:
    """A value of a file while it is read: where it stands, and the list in which its faults are noted.

    A value of the wrong kind is noted once and then read as an empty one, so that the rest of its file is read, too.
    """

    def __init__(self, value: Any, file: str, field: str, faults: list[str]):
        self.value, self.file, self.field, self.faults = value, file, field, faults

    def fault(self, found: str, instead: str) -> None:
        field = f" {self.field}:" if self.field else ""
        self.faults.append(f"{self.file}:{field} {found}; write {instead}")

    def at(self, key: str | int, value: Any) -> "_Place":
        name = f"[{key}]" if isinstance(key, int) else f".{key}" if self.field else key
        return _Place(value, self.file, self.field + name, self.faults)

    def object(self, fields: Iterable[str], optional: Iterable[str] = ()) -> dict[str, "_Place"]:
        """Its members by name: all `fields`, those of `optional` that are there, and no others."""
        known = (*fields, *optional)
        members = self.members("an object with " + ", ".join(fields))
        for name in members.keys() - set(known):
            members[name].fault("there is no such field", f"one of {', '.join(known)}, or take it out")
        for name in set(fields) - members.keys():
            self.at(name, None).fault("it is missing", "it")
        return {name: members[name] for name in known if name in members}

    def members(self, what: str) -> dict[str, "_Place"]:
        if not isinstance(self.value, dict):
            self.fault(f"{_shown(self.value)} is no object", what)
            return {}
        return {name: self.at(name, value) for name, value in self.value.items()}

    def items(self, what: str) -> list["_Place"]:
        if not isinstance(self.value, list):
            self.fault(f"{_shown(self.value)} is no list", what)
            return []
        return [self.at(number, value) for number, value in enumerate(self.value)]

    def text(self) -> str:
        if not isinstance(self.value, str) or not self.value.strip():
            self.fault(f"{_shown(self.value)} is no text", "a text in quotes that is not empty")
            return ""
        return self.value

    def one_of(self, known: Iterable[str]) -> str:
        name = self.text()
        if name and name not in known:
            self.fault(f"{name!r} is no id of ids.json", f"one of {', '.join(known)}")
        return name

    def counted(self, number: int, low: int, high: int, what: str) -> None:
        if not low <= number <= high:
            self.fault(f"{number} {what}", f"{low} to {high}" if low < high else f"{low}")

    def forms(self, check: Callable[["_Place", str], None]) -> tuple[str, ...]:
        """At least FORMS texts that differ, each of them held to `check`."""
        places = self.items(f"{FORMS} forms in a list")
        texts = [place.text() for place in places]
        if isinstance(self.value, list) and len(places) < FORMS:
            self.fault(
                f"{len(places)} of {FORMS} forms", f"at least {FORMS} that say the same in other words"
            )
        for number, (place, text) in enumerate(zip(places, texts, strict=True)):
            if text and _plain(text) in map(_plain, texts[:number]):
                place.fault(f"{text!r} stands there twice", "it in other words")
            if text:
                check(place, text)
        return tuple(texts)


def _shown(value: Any) -> str:
    return repr(value) if len(repr(value)) <= 60 else repr(value)[:57] + "..."


def _plain(text: str) -> str:
    return " ".join(re.findall(r"[\w']+", text.lower()))


def _read(folder: Path, file: str, faults: list[str]) -> _Place | None:
    """A file's JSON, or None with the fault noted."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        for name in {name for name in names if names.count(name) > 1}:
            faults.append(f"{file}: {name}: it stands twice in one object; write it once")
        return dict(pairs)

    try:
        text = (folder / file).read_text(encoding="utf-8")
        return _Place(json.loads(text, object_pairs_hook=unique), file, "", faults)
    except FileNotFoundError:
        faults.append(f"{file}: there is no such file in {folder}; write it, or name another folder")
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        faults.append(f"{file}: it is no JSON ({error}); write JSON in UTF-8 there")
    return None


def _ids(folder: Path, faults: list[str]) -> Ids | None:
    whole = _read(folder, "ids.json", faults)
    if whole is None:
        return None
    slots = whole.object(SLOTS)
    risk: set[str] = set()
    words: dict[str, tuple[str, ...]] = {}

    def meanings(slot: str, place: _Place) -> dict[str, str]:
        found = {}
        for name, entry in place.members("an object from id to meaning").items():
            if not ID.fullmatch(name):
                entry.fault(f"the id {name!r} has other letters than a to z and _", "a lower-case id")
            members = entry.object(["meaning"], ["risk", "words"])
            found[name] = members["meaning"].text() if "meaning" in members else ""
            if "risk" in members and members["risk"].value is not True:
                members["risk"].fault(f"{_shown(members['risk'].value)} is not true", "true, or take it out")
            if "risk" in members:
                risk.add(name)
            if slot in ("beliefs", "emotions", "rules"):
                others = members["words"].items("a list of words") if "words" in members else []
                words[name] = (
                    *words.get(name, ()),
                    name.replace("_", " "),
                    *(word.text() for word in others),
                )
        return found

    beliefs: dict[str, dict[str, str]] = {}
    flat: dict[str, dict[str, str]] = {}
    for slot, place in slots.items():
        if slot != "beliefs":
            flat[slot] = meanings(slot, place)
            continue
        for group, members in place.members("an object from group to beliefs").items():
            beliefs[group] = meanings(slot, members)
            for name in beliefs[group]:
                twice = [other for other in beliefs if other != group and name in beliefs[other]]
                if twice:
                    members.at(name, None).fault(f"the id stands in {twice[0]}, too", "it in one group")
    if faults:
        return None
    return Ids(beliefs=beliefs, risk=frozenset(risk), words=words, **flat)


def _cases(folder: Path, ids: Ids, allow_risk_cases: bool, faults: list[str]) -> list[Case]:
    files = sorted((folder / "cases").glob("*.json"))
    if not files:
        faults.append(f"cases: there is no case in {folder / 'cases'}; write one, cases/NAME.json")
    said: dict[
        str, tuple[str, str]
    ] = {}  # a form, without its punctuation: what it discloses, and where it stands
    cases: dict[str, Case] = {}
    for path in files:
        whole = _read(folder, f"cases/{path.name}", faults)
        if whole is None:
            continue
        case = _case(whole, ids, allow_risk_cases, said)
        if case is None:
            continue
        if case.id in cases:
            whole.at("id", None).fault(
                f"case {case.id} stands in another file, too", f"{path.stem}, the file's name"
            )
        elif case.id != path.stem:
            whole.at("id", None).fault(f"{case.id!r} is not the file's name", path.stem)
        cases[case.id] = case
    return [cases[name] for name in sorted(cases)]


def _case(whole: _Place, ids: Ids, allow_risk_cases: bool, said: dict[str, tuple[str, str]]) -> Case | None:
    """A case, or None if a fault of it was noted. `said` gathers the forms of all cases."""
    before = len(whole.faults)
    if isinstance(whole.value, dict):
        whole.file += f": case {whole.value.get('id')}"
    fields = whole.object([field.name for field in dataclasses.fields(Case)])
    if len(whole.faults) > before:
        return None  # without its fields every other fault would be a consequence

    def spoken(what: str) -> Callable[[_Place, str], None]:
        def check(place: _Place, text: str) -> None:
            place.counted(len(text.split()), *FORM_WORDS, "words in a sentence said aloud")
            other, where = said.setdefault(_plain(text), (what, f"{place.file}: {place.field}"))
            if other != what:
                place.fault(f"{text!r} is also a form of {other} ({where})", "it in other words")

        return check

    def parts(place: _Place, slot: str) -> tuple[Part, ...]:
        members = place.members(f"an object from an id of {slot} to its forms")
        place.counted(len(members), 1, 3, slot)
        for name, member in members.items():
            _Place(name, member.file, member.field, member.faults).one_of(ids.known(slot))
        return tuple(Part(name, member.forms(spoken(f"{slot} {name}"))) for name, member in members.items())

    def part(place: _Place, slot: str) -> Part:
        members = place.object(["id", "forms"])
        if len(members) < 2:
            return Part("", ())
        name = members["id"].one_of(ids.known(slot))
        return Part(name, members["forms"].forms(spoken(f"{slot} {name}")))

    name = fields["id"].text()
    if name and not ID.fullmatch(name):
        fields["id"].fault(f"{name!r} has other letters than a to z and _", "a lower-case first name")
    age = fields["age"].value
    if type(age) is not int or age < ADULT:
        fields["age"].fault(f"{_shown(age)} is no age of an adult in years", f"a whole number from {ADULT}")
    beliefs = parts(fields["beliefs"], "beliefs")
    for belief in beliefs:
        if belief.id in ids.risk and not allow_risk_cases:
            fields["beliefs"].at(belief.id, None).fault(
                "it is marked as a risk in ids.json", "a belief that is not"
            )
    history = fields["history"].text()
    for which, words in ids.words.items():
        _gives_away(fields["history"], history, which, words)
    brief = fields["brief_history"].text()
    if brief and (not BRIEF.fullmatch(brief) or len(brief.split()) > BRIEF_WORDS["history"]):
        most = BRIEF_WORDS["history"]
        fields["brief_history"].fault(
            f"{brief!r} is too long or not plain", f"at most {most} words of a to z"
        )

    situations = []
    for place in fields["situations"].items("a list of situations"):
        inner = place.object([field.name for field in dataclasses.fields(Situation)])
        if len(inner) < len(dataclasses.fields(Situation)):
            continue
        which = inner["id"].text()
        heard = {
            field: inner[field].forms(spoken(f"the {field} {name} {which}"))
            for field in ("situation", "thought")
        }
        for field, texts in heard.items():
            for number, text in enumerate(texts):
                for belief in beliefs:
                    words = ids.words.get(belief.id, ())
                    _gives_away(inner[field].at(number, None), text, belief.id, words)
        situations.append(
            Situation(
                id=which,
                area=inner["area"].one_of(ids.areas),
                emotions=parts(inner["emotions"], "emotions"),
                behaviour=part(inner["behaviour"], "behaviours"),
                **heard,
            )
        )
        for field in ("id", "area"):
            if [getattr(one, field) for one in situations].count(getattr(situations[-1], field)) > 1:
                inner[field].fault(f"{inner[field].value!r} is that of another situation", "one of its own")
    if isinstance(fields["situations"].value, list) and not fields["situations"].value:
        fields["situations"].fault("there is none", "at least one situation")
    case = Case(
        id=name,
        name=fields["name"].text(),
        age=age,
        history=history,
        brief_history=brief,
        beliefs=beliefs,
        rule=part(fields["rule"], "rules"),
        coping=part(fields["coping"], "coping"),
        situations=tuple(situations),
    )
    return case if len(whole.faults) == before else None


def _gives_away(place: _Place, text: str, which: str, words: Iterable[str]) -> None:
    for word in words:
        if re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE):
            place.fault(f"{word!r} gives away {which}", "it without that word")


def _lexicon(folder: Path, ids: Ids, faults: list[str]) -> Lexicon:
    whole = _read(folder, "lexicon.json", faults)
    if whole is None:
        return {}
    wanted = {slot: ids.known(slot) for slot in SLOTS} | {
        "situation": tuple(ids.areas),
        "thought": tuple(ids.beliefs),
    }
    said: dict[str, str] = {}

    def brief(what: str) -> Callable[[_Place, str], None]:
        def check(place: _Place, text: str) -> None:
            if not BRIEF.fullmatch(text) or len(text.split()) > BRIEF_WORDS["form"]:
                most = BRIEF_WORDS["form"]
                place.fault(f"{text!r} is too long or not plain", f"at most {most} words of a to z")
            if said.setdefault(text, what) != what:
                place.fault(f"{text!r} is also a form of {said[text]}", "it in other words")

        return check

    lexicon: Lexicon = {}
    for slot, place in whole.object(wanted).items():
        risk = ids.risk if slot == "beliefs" else frozenset()
        entries = place.object([name for name in wanted[slot] if name not in risk], risk)
        lexicon[slot] = {name: entry.forms(brief(f"{slot} {name}")) for name, entry in entries.items()}
    return lexicon


def main(arguments: list[str] | None = None) -> int:
    """Print how much a folder holds, or the faults of all its files; the exit status says which."""
    parser = argparse.ArgumentParser(prog="python -m int_jax.domains.therapy.cases")
    parser.add_argument("folder", type=Path, help="has ids.json, lexicon.json and cases/NAME.json")
    parser.add_argument(
        "--allow-risk-cases", action="store_true", help="also take beliefs that are marked as a risk"
    )
    options = parser.parse_args(arguments)
    faults: list[str] = []
    cases: list[Case] = []
    ids = _ids(options.folder, faults)
    if ids is None:
        faults.append("ids.json: the other files are not read; write it first")
    else:
        cases = _cases(options.folder, ids, options.allow_risk_cases, faults)
        _lexicon(options.folder, ids, faults)
    if faults:
        print("\n".join(faults))
        return 1
    print(f"{len(cases)} cases, {sum(len(case.situations) for case in cases)} situations: no fault")
    return 0


if __name__ == "__main__":
    sys.exit(main())
