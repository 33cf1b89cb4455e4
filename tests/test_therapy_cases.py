"""The simulated clients: the shipped files keep what is promised of them, and every fault of a file is told."""

import collections
import dataclasses
import itertools
import json
import pathlib
import re
import shutil
import time

import pytest

import int_jax
from int_jax.domains.therapy import cases

SHIPPED = pathlib.Path(int_jax.__file__).parent / "assets" / "therapy"
SMALL_WORDS = """
a an and as at be but for had he her his
i i'd i'm in is it me my not of on or she so that the their them they to was with
"""
NUMBERS = ["One two three four five.", "Six seven eight nine ten.", "Ten nine eight six five."]
WORRIED = ["I was worried all day long.", "My mind went round and round.", "I had no rest that day."]


@pytest.fixture
def folder(tmp_path):
    return pathlib.Path(shutil.copytree(SHIPPED, tmp_path / "therapy"))


@pytest.fixture(scope="module")
def shipped():
    return cases.load_cases(SHIPPED)


def disclosed(case):
    """Every part of a case as (slot, id, forms)."""
    yield from (("beliefs", part.id, part.forms) for part in case.beliefs)
    yield "rules", case.rule.id, case.rule.forms
    yield "coping", case.coping.id, case.coping.forms
    for one in case.situations:
        yield "areas", one.area, one.situation
        yield "thought", one.id, one.thought
        yield from (("emotions", part.id, part.forms) for part in one.emotions)
        yield "behaviours", one.behaviour.id, one.behaviour.forms


def test_every_id_has_its_cases(shipped):
    ids = cases.load_ids(SHIPPED)
    used = collections.Counter((slot, name) for case in shipped for slot, name, _ in disclosed(case))
    assert len(shipped) >= 30
    for slot in cases.SLOTS:
        for name in ids.known(slot):
            least = 0 if name in ids.risk else 2 if slot == "beliefs" else 4
            assert used[slot, name] >= least, f"{slot} {name}"


def test_cases_are_told_apart(shipped):
    beliefs = [frozenset(part.id for part in case.beliefs) for case in shipped]
    assert len(set(beliefs)) == len(shipped)
    assert (
        len({case.history for case in shipped})
        == len({case.brief_history for case in shipped})
        == len(shipped)
    )
    assert all(3 <= len(case.situations) <= 4 for case in shipped)


def test_no_shipped_case_or_wording_is_of_a_risk(shipped):
    ids = cases.load_ids(SHIPPED)
    assert ids.risk == {"undeserving_of_life"}
    assert not ids.risk & {part.id for case in shipped for part in case.beliefs}
    assert not ids.risk & cases.load_lexicon(SHIPPED)["beliefs"].keys()


def test_the_forms_of_a_part_are_in_different_words(shipped):
    def words(text):
        return set(re.findall(r"[\w']+", text.lower())) - set(SMALL_WORDS.split())

    for case in shipped:
        for slot, name, forms in disclosed(case):
            for one, other in itertools.combinations(forms, 2):
                shared = words(one) & words(other)
                assert 2 * len(shared) < len(words(one) | words(other)), f"{case.id}, {slot} {name}: {shared}"


def test_the_short_wording_needs_few_words(shipped):
    forms = [
        text for slot in cases.load_lexicon(SHIPPED).values() for forms in slot.values() for text in forms
    ]
    words = {word for text in forms for word in text.split()}
    assert len(words) <= 350
    assert len(words | {word for case in shipped for word in case.brief_history.split()}) <= 400


def test_a_case_is_as_its_file_says(shipped):
    case = shipped[0]
    file = json.loads((SHIPPED / "cases" / f"{case.id}.json").read_text(encoding="utf-8"))
    rest = {"beliefs": file.pop("beliefs"), "situations": file.pop("situations")}
    read = json.loads(json.dumps(dataclasses.asdict(case)))
    assert {name: read[name] for name in file} == file
    assert {part["id"]: part["forms"] for part in read["beliefs"]} == rest["beliefs"]
    for one, other in zip(read["situations"], rest["situations"], strict=True):
        emotions = {part["id"]: part["forms"] for part in one["emotions"]}
        assert one | {"emotions": emotions} == other


def test_the_group_of_a_belief():
    ids = cases.load_ids(SHIPPED)
    assert [ids.group(name) for name in ("needy", "alone", "bad")] == ["helpless", "unlovable", "worthless"]
    with pytest.raises(KeyError):
        ids.group("sad")


def test_reading_is_fast():
    start = time.process_time()
    cases.load_cases(SHIPPED)
    cases.load_lexicon(SHIPPED)
    assert time.process_time() - start < 1


# A broken case: what is put where in the file of amara, and what is said of it after "cases/amara.json: case amara: ".
# DROP takes the field out.
DROP = object()
AMARA = [
    ("age", DROP, "age: it is missing; write it beside id, name, history"),
    ("split", "train", "split: there is no such field; write one of id, name, age"),
    ("age", "52", "age: '52' does not fit; write a whole number, at least 18"),
    ("age", True, "age: True does not fit"),
    ("age", 52.5, "age: 52.5 does not fit"),
    ("age", 17, "age: 17 does not fit"),
    ("name", "", "name: '' is no text; write a text in quotes that is not empty"),
    ("name", " ", "name: ' ' is no text"),
    ("history", ["A nurse."], "history: ['A nurse.'] is no text"),
    ("history", "She is a Failure.", "history: 'failure' gives away failure; write it without that word"),
    ("history", "He failed an exam.", "history: 'failed' gives away failure; write it without that word"),
    ("history", "He is anxious.", "history: 'anxious' gives away anxious"),
    ("history", "A perfectionist.", "history: 'perfectionist' gives away perfection"),
    ("brief_history", "a needy man", "brief_history: 'needy' gives away needy"),
    ("brief_history", "A nurse", "brief_history: 'A nurse' is not plain; write words of a to z"),
    ("brief_history", "a " * 12 + "nurse", "a nurse' has 13 words; write 1 to 12 words"),
    ("beliefs", [], "beliefs: [] is no object; write an object from ids of beliefs to their forms"),
    ("beliefs", {}, "beliefs: 0 beliefs; write 1 to 3"),
    ("beliefs.clumsy", ["I am clumsy, and I know it.", "My hands drop every thing.", "Things break when I come."],
     "beliefs.clumsy: 'clumsy' is not known; write one of incompetent, helpless"),
    ("beliefs.undeserving_of_life", NUMBERS,
     "beliefs.undeserving_of_life: it is marked as a risk in ids.json; write a belief that is not"),
    ("rule", "perfection", "rule: 'perfection' is no object; write an object with id, forms"),
    ("rule.id", "neatness", "rule.id: 'neatness' is not known; write one of perfection, approval"),
    ("rule.forms", DROP, "rule.forms: it is missing; write it beside id"),
    ("coping.id", "avoidance", "coping.id: 'avoidance' is not known; write one of avoid, please"),
    ("coping.forms", "I work.", "coping.forms: 'I work.' is no list; write at least 3 texts in a list"),
    ("coping.forms", ["I work until I drop asleep.", "There is always more to do."],
     "coping.forms: 2 texts; write at least 3, each in other words"),
    ("coping.forms.2", None, "coping.forms[2]: None is no text"),
    ("coping.forms.2", "I work.", "coping.forms[2]: 'I work.' has 2 words; write 5 to 25 words"),
    ("coping.forms.2", "work " * 26, "has 26 words; write 5 to 25 words"),
    ("coping.forms.2", "I stay on after every shift, and do the lists again from the TOP!",
     "stands there twice; write it once, or in other words"),
    ("coping.forms.2", "I simply don't have what it takes to do this job right.",
     "is a form of beliefs incompetent, too (cases/amara.json: case amara: beliefs.incompetent[0]); write it in other"),
    ("situations", [], "situations: there is none; write at least one situation"),
    ("situations", {}, "situations: {} is no list; write a list of situations"),
    ("situations.0.thought", DROP, "situations[0].thought: it is missing; write it beside id, area"),
    ("situations.1.area", "garden", "situations[1].area: 'garden' is not known; write one of work, study"),
    ("situations.1.area", "work", "situations[1].area: 'work' is that of another situation; write one that"),
    ("situations.1.id", "handover", "situations[1].id: 'handover' is that of another situation; write one that"),
    ("situations.0.thought.1", "They see now that I'm incompetent.",
     "situations[0].thought[1]: 'incompetent' gives away incompetent; write it without that word"),
    ("situations.0.situation.1", "My incompetence came out at handover.",
     "situations[0].situation[1]: 'incompetence' gives away incompetent"),
    ("situations.0.emotions", {}, "situations[0].emotions: 0 emotions; write 1 to 3"),
    ("situations.0.emotions.worried", WORRIED,
     "situations[0].emotions.worried: 'worried' is not known; write one of anxious"),
    ("situations.0.behaviour.id", "cried", "situations[0].behaviour.id: 'cried' is not known; write one of"),
    ("id", "amara jones", "id: the id 'amara jones' has other signs than a to z, 0 to 9 and _ between them"),
]  # fmt: skip


def put(file, field, value):
    """Write `value` at `field` of a JSON file, as in "situations.0.area"."""
    whole = json.loads(file.read_text(encoding="utf-8"))
    *way, last = [int(name) if name.isdigit() else name for name in field.split(".")]
    place = whole
    for name in way:
        place = place[name]
    if value is DROP:
        del place[last]
    else:
        place[last] = value
    file.write_text(json.dumps(whole), encoding="utf-8")


def faults(load, folder, **options):
    """The lines of what is raised, files as they are named in the folder."""
    with pytest.raises(ValueError) as raised:
        load(folder, **options)
    return str(raised.value).replace(f"{folder}/", "").splitlines()


@pytest.mark.parametrize(
    ("field", "value", "said"), AMARA, ids=[f"{row[0]}-{n}" for n, row in enumerate(AMARA)]
)
def test_a_fault_of_a_case_is_told_with_its_place_and_its_mend(folder, field, value, said):
    put(folder / "cases" / "amara.json", field, value)
    [fault] = faults(cases.load_cases, folder)
    place = "amara jones" if value == "amara jones" else "amara"
    assert fault.startswith(f"cases/amara.json: case {place}: {field.partition('.')[0]}")
    assert said in fault


def test_each_field_that_an_empty_object_lacks_is_told(folder):
    put(folder / "cases" / "amara.json", "rule", {})
    place = "cases/amara.json: case amara: rule"
    rest = "it is missing; write it beside the others"
    assert faults(cases.load_cases, folder) == [f"{place}.id: {rest}", f"{place}.forms: {rest}"]
    (folder / "cases" / "amara.json").write_text("{}")
    assert len(faults(cases.load_cases, folder)) == len(dataclasses.fields(cases.Case))


def test_a_risk_is_read_where_it_is_allowed(folder):
    put(folder / "cases" / "amara.json", "beliefs.undeserving_of_life", NUMBERS)
    read = {case.id: case for case in cases.load_cases(folder, allow_risk_cases=True)}
    assert [part.id for part in read["amara"].beliefs] == ["incompetent", "undeserving_of_life"]


def test_two_cases_have_not_one_id_nor_one_form_for_two_things(folder):
    put(folder / "cases" / "mei.json", "id", "amara")
    told = "cases/mei.json: id: 'amara' is the id of another file, too; write mei, this file's name"
    assert faults(cases.load_cases, folder) == [told]
    put(folder / "cases" / "mei.json", "id", "may")
    assert faults(cases.load_cases, folder) == ["cases/mei.json: id: 'may' is not the file's name; write mei"]
    put(folder / "cases" / "mei.json", "id", "mei")
    put(
        folder / "cases" / "mei.json",
        "rule.forms.0",
        "I stay on after every shift and do the lists again from the top.",
    )
    [fault] = faults(cases.load_cases, folder)
    assert "rule.forms[0]" in fault
    assert "is a form of coping overwork, too (cases/amara.json: case amara: coping.forms[0])" in fault


def test_a_situation_is_that_of_one_case(folder):
    taken = json.loads((folder / "cases" / "amara.json").read_text(encoding="utf-8"))["situations"][0][
        "situation"
    ][0]
    put(folder / "cases" / "mei.json", "situations.0.id", "handover")
    put(folder / "cases" / "mei.json", "situations.0.situation.0", taken.upper().replace(",", ""))
    [fault] = faults(cases.load_cases, folder)
    assert "case mei: situations[0].situation[0]" in fault
    assert (
        "is a form of situation handover of amara, too (cases/amara.json: case amara: situations[0].sit"
        in fault
    )


def test_one_form_may_say_one_thing_in_two_cases(folder):
    put(
        folder / "cases" / "mei.json",
        "coping.forms.0",
        "I stay on after every shift and do the lists again from the top.",
    )
    assert len(cases.load_cases(folder)) == len(cases.load_cases(SHIPPED))


# What is no JSON that can be read: a change of the text, and what is said.
@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            '"age": 52,',
            '"age": 52',
            "cases/amara.json: line 5, column 3 is no JSON (Expecting ',' delimiter)",
        ),
        (
            '"age": 52,',
            '"age": 52, "age": 53,',
            "cases/amara.json: age: it stands twice in one object; write it once",
        ),
        (
            '"anxious": [',
            '"ashamed": [',
            "cases/amara.json: ashamed: it stands twice in one object; write it once",
        ),
    ],
)
def test_what_json_would_swallow_is_told(folder, old, new, said):
    file = folder / "cases" / "amara.json"
    file.write_text(file.read_text(encoding="utf-8").replace(old, new, 1), encoding="utf-8")
    assert said in faults(cases.load_cases, folder)[0]


def test_a_case_of_another_kind_or_encoding_is_told(folder):
    (folder / "cases" / "amara.json").write_text("[]")
    told = "cases/amara.json: case without id: [] is no object; write an object with id, name, age"
    assert faults(cases.load_cases, folder)[0].startswith(told)
    (folder / "cases" / "amara.json").write_bytes('{"id": "Tomáš"}'.encode("iso8859-2"))
    assert "byte 12 is not UTF-8; write the file in UTF-8" in faults(cases.load_cases, folder)[0]


@pytest.mark.parametrize(
    ("file", "field", "value", "said"),
    [
        ("ids", "areas", DROP, "ids.json: areas: it is missing; write it beside beliefs, emotions"),
        ("ids", "tones", {}, "ids.json: tones: there is no such field; write one of beliefs, emotions"),
        ("ids", "areas.work", "a job", "ids.json: areas.work: 'a job' is no object; write an object with meaning"),
        ("ids", "areas.work.meaning", "", "ids.json: areas.work.meaning: '' is no text"),
        ("ids", "areas.My work", {"meaning": "a job"}, "ids.json: areas.My work: the id 'My work' has other signs"),
        ("ids", "areas.work.risk", True, "ids.json: areas.work.risk: there is no such field; write one of meaning"),
        ("ids", "beliefs.worthless.bad.risk", False, "beliefs.worthless.bad.risk: False is not true; write true"),
        ("ids", "beliefs.worthless.bad.words", "evil", "worthless.bad.words: 'evil' is no list; write a list of"),
        ("ids", "beliefs.worthless.needy", {"meaning": "I need."}, "worthless.needy: the id stands in helpless, too"),
        ("lexicon", "areas", DROP, "lexicon.json: areas: it is missing; write it beside beliefs, emotions"),
        ("lexicon", "emotions.sad", DROP, "lexicon.json: emotions.sad: it is missing; write it beside anxious, angry"),
        ("lexicon", "emotions.glad", [], "lexicon.json: emotions.glad: there is no such field; write one of anxious"),
        ("lexicon", "emotions.sad", ["i felt sad"], "lexicon.json: emotions.sad: 1 texts; write at least 3"),
        ("lexicon", "emotions.sad.0", "i felt sad!", "emotions.sad[0]: 'i felt sad!' is not plain; write words"),
        ("lexicon", "emotions.sad.0", "i felt so very sad that day", "'i felt so very sad that day' has 7 words"),
        ("lexicon", "rules.control.0", "i felt sad", "rules.control[0]: 'i felt sad' is a form of emotions.sad, too"),
        ("lexicon", "thought.helpless.0", "i am stuck here", "thought.helpless[0]: 'stuck' gives away trapped"),
        ("lexicon", "situation.work.0", "i am stuck here", "situation.work[0]: 'stuck' gives away trapped"),
    ],
)  # fmt: skip
def test_a_fault_of_the_ids_or_of_the_short_wording_is_told(folder, file, field, value, said):
    put(folder / f"{file}.json", field, value)
    [fault] = faults(cases.load_lexicon if file == "lexicon" else cases.load_ids, folder)
    assert said in fault


def test_a_risk_may_have_a_short_wording(folder):
    put(folder / "lexicon.json", "beliefs.undeserving_of_life", ["one two", "two three", "three one"])
    assert "undeserving_of_life" in cases.load_lexicon(folder)["beliefs"]


def test_files_that_are_not_there(folder):
    (folder / "lexicon.json").unlink()
    told = "lexicon.json: there is no such file; write it, or name another one"
    assert faults(cases.load_lexicon, folder) == [told]
    shutil.rmtree(folder / "cases")
    assert faults(cases.load_cases, folder) == ["cases: there is no case in it; write one, NAME.json"]


def test_the_command_counts_or_tells_the_faults_of_all_files(folder, capsys):
    assert cases.main([str(SHIPPED)]) == 0
    assert re.fullmatch(r"\d\d cases, \d\d+ situations: no fault\n", capsys.readouterr().out)
    put(folder / "cases" / "amara.json", "age", 7)
    put(folder / "cases" / "mei.json", "rule.id", "neatness")
    put(folder / "cases" / "mei.json", "situations.2.area", "garden")
    put(folder / "lexicon.json", "emotions.sad", [])
    assert cases.main([str(folder)]) == 1
    lines = capsys.readouterr().out.replace(f"{folder}/", "").splitlines()
    assert [line.partition(";")[0] for line in lines] == [
        "cases/amara.json: case amara: age: 7 does not fit",
        "cases/mei.json: case mei: rule.id: 'neatness' is not known",
        "cases/mei.json: case mei: situations[2].area: 'garden' is not known",
        "lexicon.json: emotions.sad: 0 texts",
    ]


def test_the_command_reads_nothing_by_broken_ids(folder, capsys):
    put(folder / "ids.json", "areas.work", None)
    put(folder / "cases" / "amara.json", "age", 7)
    assert cases.main([str(folder)]) == 1
    told = "ids.json: what the other files are held to; write it without fault, and they are read"
    assert capsys.readouterr().out.splitlines()[-1] == told
