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
from collections.abc import Iterable, Mapping
from pathlib import Path

from int_jax.domains.authored import Place, load, plain, read

FORMS = 3  # at least, of what is said in several ways
FORM_WORDS = (5, 25)  # of a sentence said aloud
MOST_IDS = 3  # beliefs of a case, emotions of a situation
BRIEF_HISTORY_WORDS, BRIEF_FORM_WORDS = (1, 12), (1, 6)  # of what tiny models read
ADULT = 18
SLOTS = ("beliefs", "emotions", "coping", "behaviours", "rules", "areas")


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
    return load(_ids, Path(folder))


def load_cases(folder: str | Path, allow_risk_cases: bool = False) -> list[Case]:
    """The cases of `folder`/cases, by id. A ValueError lists every fault, a line each."""
    return load(_cases, Path(folder), load_ids(folder), allow_risk_cases)


def load_lexicon(folder: str | Path) -> Lexicon:
    """The short forms of `folder`/lexicon.json: for each of SLOTS and each id; `situation` by area, `thought` by group.

    A belief that is marked as a risk may be left out. A ValueError lists every fault, a line each.
    """
    return load(_lexicon, Path(folder), load_ids(folder))


def _ids(folder: Path, faults: list[str]) -> Ids:
    slots = read(folder / "ids.json", faults).fields(SLOTS)
    risk: set[str] = set()
    words: dict[str, tuple[str, ...]] = {}

    def meanings(place: Place, optional: tuple[str, ...] = ()) -> dict[str, str]:
        found = {}
        for name, entry in place.members("an object from id to meaning").items():
            members = entry.fields(["meaning"], optional)
            found[entry.id(name)] = members["meaning"].text()
            if "risk" in members:
                risk.add(name)
                if members["risk"].value is not True:
                    members["risk"].wrong("is not true", "true, or take it out")
            if "words" in optional:
                others = members["words"].items("a list of words") if "words" in members else []
                said = (name.replace("_", " "), *(word.text() for word in others))
                words[name] = (*words.get(name, ()), *said)
        return found

    beliefs: dict[str, dict[str, str]] = {}
    for group, place in slots.pop("beliefs").members("an object from group to beliefs").items():
        names = meanings(place, ("words", "risk"))
        for other in beliefs:
            for name in names.keys() & beliefs[other].keys():
                place.at(name).fault(f"the id stands in {other}, too", "it in one group")
        beliefs[group] = names
    hidden = {"emotions": ("words",), "rules": ("words",)}
    flat = {slot: meanings(place, hidden.get(slot, ())) for slot, place in slots.items()}
    return Ids(beliefs=beliefs, risk=frozenset(risk), words=words, **flat)


def _cases(folder: Path, ids: Ids, allow_risk_cases: bool, faults: list[str]) -> list[Case]:
    files = sorted((folder / "cases").glob("*.json"))
    if not files:
        faults.append(f"{folder / 'cases'}: there is no case in it; write one, NAME.json")
    said: dict[str, tuple[str, str]] = {}
    cases: dict[str, Case] = {}
    for path in files:
        before, whole = len(faults), read(path, faults)
        case = _CaseFile(whole, ids, allow_risk_cases, said).case()
        if len(faults) > before:
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
        self.whole = whole.named(f"case {self.name}")
        self.ids, self.allow_risk_cases, self.said = ids, allow_risk_cases, said

    def case(self) -> Case:
        fields = self.whole.fields(field.name for field in dataclasses.fields(Case))
        beliefs = self.parts(fields["beliefs"], "beliefs")
        for belief in beliefs:
            if belief.id in self.ids.risk and not self.allow_risk_cases:
                fields["beliefs"].at(belief.id).fault(
                    "it is marked as a risk in ids.json", "a belief that is not"
                )
        return Case(
            id=fields["id"].id(),
            name=fields["name"].text(),
            age=fields["age"].whole(ADULT),
            history=self.public(fields["history"], fields["history"].text()),
            brief_history=self.public(
                fields["brief_history"], fields["brief_history"].simple(*BRIEF_HISTORY_WORDS)
            ),
            beliefs=beliefs,
            rule=self.part(fields["rule"], "rules"),
            coping=self.part(fields["coping"], "coping"),
            situations=self.situations(fields["situations"], beliefs),
        )

    def public(self, place: Place, text: str) -> str:
        for which, words in self.ids.words.items():
            _give_away(place, text, which, words)
        return text

    def situations(self, place: Place, beliefs: tuple[Part, ...]) -> tuple[Situation, ...]:
        items = place.items("a list of situations")
        if isinstance(place.value, list) and not items:
            place.fault("there is none", "at least one situation")
        situations: list[Situation] = []
        for item in items:
            fields = item.fields(field.name for field in dataclasses.fields(Situation))
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
                        _give_away(fields[field].at(number), text, belief.id, words)
            situations.append(situation)
        return tuple(situations)

    def parts(self, place: Place, slot: str) -> tuple[Part, ...]:
        """One to MOST_IDS ids with their forms."""
        members = place.members(f"an object from ids of {slot} to their forms")
        if isinstance(place.value, dict) and not 1 <= len(members) <= MOST_IDS:
            place.fault(f"{len(members)} {slot}", f"1 to {MOST_IDS}")
        known = self.ids.known(slot)
        return tuple(
            Part(member.one_of(known, name), self.forms(member, f"{slot} {name}"))
            for name, member in members.items()
        )

    def part(self, place: Place, slot: str) -> Part:
        fields = place.fields(field.name for field in dataclasses.fields(Part))
        name = fields["id"].one_of(self.ids.known(slot))
        return Part(name, self.forms(fields["forms"], f"{slot} {name}"))

    def forms(self, place: Place, what: str) -> tuple[str, ...]:
        """Sentences said aloud that disclose `what`, and in no case anything else."""
        if what.startswith(("situation", "thought")):
            what = f"{what} of {self.name}"

        def form(place: Place) -> str:
            text = place.words(*FORM_WORDS)
            other, where = self.said.setdefault(plain(text), (what, f"{place.file}: {place.field}"))
            if text and other != what:
                place.fault(f"{text!r} is a form of {other}, too ({where})", "it in other words")
            return text

        return place.texts(FORMS, read=form)


def _give_away(place: Place, text: str, which: str, words: Iterable[str]) -> None:
    for word in words:
        if re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE):
            place.fault(f"{word!r} gives away {which}", "it without that word")


def _lexicon(folder: Path, ids: Ids, faults: list[str]) -> Lexicon:
    wanted = {slot: ids.known(slot) for slot in SLOTS}
    wanted |= {"situation": tuple(ids.areas), "thought": tuple(ids.beliefs)}
    said: dict[str, str] = {}

    def form(place: Place) -> str:
        text, what = place.simple(*BRIEF_FORM_WORDS), place.field.partition("[")[0]
        if text and said.setdefault(text, what) != what:
            place.fault(f"{text!r} is a form of {said[text]}, too", "it in other words")
        return text

    lexicon: Lexicon = {}
    for slot, place in read(folder / "lexicon.json", faults).fields(wanted).items():
        risk = sorted(ids.risk & set(wanted[slot]))
        entries = place.fields([name for name in wanted[slot] if name not in risk], risk)
        lexicon[slot] = {name: entry.texts(FORMS, read=form) for name, entry in entries.items()}
        if slot in ("situation", "thought"):
            for name, texts in lexicon[slot].items():
                for number, text in enumerate(texts):
                    for belief in ids.known("beliefs"):
                        _give_away(entries[name].at(number), text, belief, ids.words[belief])
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
    ids = _ids(options.folder, faults)
    if faults:
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
