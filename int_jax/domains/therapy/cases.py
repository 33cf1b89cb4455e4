"""The simulated clients: the closed sets of ids, the cases, and a short wording of both for tiny models.

    python -m int_jax.domains.therapy.cases int_jax/assets/therapy

says what is wrong in any file of a folder. People write these files by hand, so nothing is filled in or skipped: a
fault names the file, the case, the field, and what to write there. A folder has ids.json, lexicon.json and
cases/NAME.json. A part of a case is said in one of several forms: sentences of the client that mean the same.
"""

import argparse
import dataclasses
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from int_jax.domains.therapy.authored import Place, plain, read, shown

FORM_WORDS = (5, 25)  # of a sentence said aloud
MOST_IDS = 3  # beliefs of a case, emotions of a situation
BRIEF_HISTORY_WORDS, BRIEF_FORM_WORDS = 12, 6  # at most, of what tiny models read
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


def _raised(reader: Callable[..., Any], folder: Path, *rest: Any) -> Any:
    faults: list[str] = []
    value = reader(folder, *rest, faults)
    if faults:
        raise ValueError("\n".join(faults))
    return value


def _ids(folder: Path, faults: list[str]) -> Ids | None:
    """The closed sets, or None with the faults noted."""
    whole = read(folder, "ids.json", faults)
    if whole is None:
        return None
    slots = whole.fields(SLOTS)
    risk: set[str] = set()
    words: dict[str, tuple[str, ...]] = {}

    def meanings(place: Place, optional: tuple[str, ...] = ()) -> dict[str, str]:
        found = {}
        for name, entry in place.members("an object from id to meaning").items():
            if not ID.fullmatch(name):
                entry.fault(f"the id {name!r} has other letters than a to z and _", "a lower-case id")
            members = entry.fields(["meaning"], optional)
            found[name] = members["meaning"].text() if members else ""
            if "risk" in members:
                risk.add(name)
                if members["risk"].value is not True:
                    members["risk"].fault(
                        f"{shown(members['risk'].value)} is not true", "true, or take it out"
                    )
            if "words" in optional:
                others = members["words"].items("a list of words") if "words" in members else []
                words[name] = (
                    *words.get(name, ()),
                    name.replace("_", " "),
                    *(word.text() for word in others),
                )
        return found

    beliefs: dict[str, dict[str, str]] = {}
    if slots:
        for group, place in slots.pop("beliefs").members("an object from group to beliefs").items():
            names = meanings(place, ("words", "risk"))
            for other in beliefs:
                for name in names.keys() & beliefs[other].keys():
                    place.at(name).fault(f"the id stands in {other}, too", "it in one group")
            beliefs[group] = names
    hidden = {"emotions": ("words",), "rules": ("words",)}
    flat = {slot: meanings(place, hidden.get(slot, ())) for slot, place in slots.items()}
    if faults:
        return None
    return Ids(beliefs=beliefs, risk=frozenset(risk), words=words, **flat)


def _cases(folder: Path, ids: Ids, allow_risk_cases: bool, faults: list[str]) -> list[Case]:
    files = sorted((folder / "cases").glob("*.json"))
    if not files:
        faults.append(f"cases: there is no case in {folder / 'cases'}; write one, cases/NAME.json")
    said: dict[str, tuple[str, str]] = {}
    cases: dict[str, Case] = {}
    for path in files:
        whole = read(folder, f"cases/{path.name}", faults)
        case = whole and _CaseFile(whole, ids, allow_risk_cases, said).case()
        if not whole or not case:
            continue
        if case.id in cases:
            whole.at("id").fault(
                f"{case.id!r} is the id of another file, too", f"{path.stem}, this file's name"
            )
        elif case.id != path.stem:
            whole.at("id").fault(f"{case.id!r} is not the file's name", path.stem)
        cases[case.id] = case
    return [cases[name] for name in sorted(cases)]


class _CaseFile:
    """A case while it is read. `said` is of all files: what a form discloses, and where it stands, by its words."""

    def __init__(self, whole: Place, ids: Ids, allow_risk_cases: bool, said: dict[str, tuple[str, str]]):
        self.name = whole.value.get("id") if isinstance(whole.value, dict) else "without id"
        self.whole = Place(whole.value, f"{whole.file}: case {self.name}", "", whole.faults)
        self.ids, self.allow_risk_cases, self.said = ids, allow_risk_cases, said

    def case(self) -> Case | None:
        """The case, or None with the faults noted."""
        before = len(self.whole.faults)
        fields = self.whole.fields(field.name for field in dataclasses.fields(Case))
        if not fields:
            return None
        name = fields["id"].text()
        if name and not ID.fullmatch(name):
            fields["id"].fault(f"{name!r} has other letters than a to z and _", "a lower-case first name")
        age = fields["age"].value
        if type(age) is not int or age < ADULT:
            fields["age"].fault(
                f"{shown(age)} is no age of an adult in years", f"a whole number from {ADULT}"
            )
        beliefs = self.parts(fields["beliefs"], "beliefs")
        for belief in beliefs:
            if belief.id in self.ids.risk and not self.allow_risk_cases:
                fields["beliefs"].at(belief.id).fault(
                    "it is marked as a risk in ids.json", "a belief that is not"
                )
        case = Case(
            id=name,
            name=fields["name"].text(),
            age=age,
            history=self.public(fields["history"]),
            brief_history=self.public(fields["brief_history"]),
            beliefs=beliefs,
            rule=self.part(fields["rule"], "rules"),
            coping=self.part(fields["coping"], "coping"),
            situations=self.situations(fields["situations"], beliefs),
        )
        if case.brief_history:
            _hold_brief(fields["brief_history"], case.brief_history, BRIEF_HISTORY_WORDS)
        return case if len(self.whole.faults) == before else None

    def public(self, place: Place) -> str:
        text = place.text()
        for which, words in self.ids.words.items():
            place.gives_nothing_away(text, which, words)
        return text

    def situations(self, place: Place, beliefs: tuple[Part, ...]) -> tuple[Situation, ...]:
        items = place.items("a list of situations")
        if isinstance(place.value, list) and not items:
            place.fault("there is none", "at least one situation")
        situations: list[Situation] = []
        for item in items:
            fields = item.fields(field.name for field in dataclasses.fields(Situation))
            if not fields:
                continue
            which = fields["id"].text()
            situation = Situation(
                id=which,
                area=fields["area"].one_of(self.ids.areas),
                situation=self.forms(fields["situation"], f"situation {which}"),
                thought=self.forms(fields["thought"], f"thought {which}"),
                emotions=self.parts(fields["emotions"], "emotions"),
                behaviour=self.part(fields["behaviour"], "behaviours"),
            )
            for field in ("id", "area"):
                value = getattr(situation, field)
                if value and value in [getattr(other, field) for other in situations]:
                    found = f"{value!r} is that of another situation"
                    fields[field].fault(found, "one that no other situation of the case has")
            for field in ("situation", "thought"):
                for number, text in enumerate(getattr(situation, field)):
                    for belief in beliefs:  # what is heard early must not say what is heard last
                        words = self.ids.words.get(belief.id, ())
                        fields[field].at(number).gives_nothing_away(text, belief.id, words)
            situations.append(situation)
        return tuple(situations)

    def parts(self, place: Place, slot: str) -> tuple[Part, ...]:
        """One to MOST_IDS ids with their forms."""
        members = place.members(f"an object from ids of {slot} to their forms")
        if isinstance(place.value, dict) and not 1 <= len(members) <= MOST_IDS:
            place.fault(f"{len(members)} {slot}", f"1 to {MOST_IDS}")
        for name, member in members.items():
            if name not in self.ids.known(slot):
                member.fault(f"{name!r} is no id of ids.json", f"one of {', '.join(self.ids.known(slot))}")
        return tuple(Part(name, self.forms(member, f"{slot} {name}")) for name, member in members.items())

    def part(self, place: Place, slot: str) -> Part:
        fields = place.fields(field.name for field in dataclasses.fields(Part))
        if not fields:
            return Part("", ())
        name = fields["id"].one_of(self.ids.known(slot))
        return Part(name, self.forms(fields["forms"], f"{slot} {name}"))

    def forms(self, place: Place, what: str) -> tuple[str, ...]:
        """Sentences said aloud that disclose `what`, and in no case anything else."""
        if what.startswith(("situation", "thought")):
            what = f"{what} of {self.name}"

        def check(form: Place, text: str) -> None:
            low, high = FORM_WORDS
            if not low <= len(text.split()) <= high:
                form.fault(f"{text!r} has {len(text.split())} words", f"a sentence of {low} to {high}")
            other, where = self.said.setdefault(plain(text), (what, f"{form.file}: {form.field}"))
            if other != what:
                form.fault(f"{text!r} is a form of {other}, too ({where})", "it in other words")

        return place.forms(check)


def _hold_brief(place: Place, text: str, most: int) -> None:
    if not BRIEF.fullmatch(text) or len(text.split()) > most:
        place.fault(
            f"{text!r} is too long or not plain", f"at most {most} words of a to z, with one space between"
        )


def _lexicon(folder: Path, ids: Ids, faults: list[str]) -> Lexicon:
    whole = read(folder, "lexicon.json", faults)
    if whole is None:
        return {}
    wanted = {slot: ids.known(slot) for slot in SLOTS}
    wanted |= {"situation": tuple(ids.areas), "thought": tuple(ids.beliefs)}
    said: dict[str, str] = {}

    def check(form: Place, text: str) -> None:
        _hold_brief(form, text, BRIEF_FORM_WORDS)
        what = form.field.partition("[")[0]
        if said.setdefault(text, what) != what:
            form.fault(f"{text!r} is a form of {said[text]}, too", "it in other words")

    lexicon: Lexicon = {}
    for slot, place in whole.fields(wanted).items():
        risk = sorted(ids.risk & set(wanted[slot]))
        entries = place.fields([name for name in wanted[slot] if name not in risk], risk)
        lexicon[slot] = {name: entry.forms(check) for name, entry in entries.items()}
        if slot in ("situation", "thought"):
            for name, texts in lexicon[slot].items():
                for number, text in enumerate(texts):
                    for belief in ids.known("beliefs"):
                        entries[name].at(number).gives_nothing_away(text, belief, ids.words[belief])
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
        faults.append("ids.json: what the other files are held to; write it without fault, and they are read")
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
