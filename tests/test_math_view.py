"""What the mathematics domain shows: the system turn, the instruction, worked examples, and steps of any separator."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from int_jax import domains, rollout
from int_jax.check.byte_tokenizer import save
from int_jax.domains import said
from int_jax.tokenizer import Tokenizer
from int_jax.types import Intervention, Task, Trace

TASK = Task("t1", "math", "What is {2}+2?", "2+2 is 4.\n\nSo 4.", "4")
EXAMPLES = [
    {"problem": "What is 1+1?", "solution": "1+1 = 2\n\n\\boxed{2}"},
    {"problem": "What is {3}+3?", "solution": "3+3 = 6\n\n\\boxed{6}"},
]
TAUGHT = {"problem": "What is 5+5?", "answer": "10", "reference_solution": "It is 10.", "solution": "Ten."}
REVIEWED = TAUGHT | {"attempt": "5+5 = 9\n\n\nSo \\boxed{9}\n", "review": "Step 1 is wrong."}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return Tokenizer(save(tmp_path_factory.mktemp("tokenizer")))


def lines(path, rows) -> str:
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return str(path)


def prompts(folder, rows=()) -> str:
    """A folder of templates, with worked examples of the proposer where there are some."""
    (folder / "teacher.jinja").write_text("T {{ problem }}|{{ reference }}|{{ answer }}|{{ apart }}")
    (folder / "checker.jinja").write_text("C {{ steps | join(';') }}|{{ answer }}")
    if rows:
        lines(folder / "examples.jsonl", rows)
    return str(folder)


def test_without_knobs_the_views_are_the_paper_s(tokenizer):
    domain = domains.load("math", tokenizer)
    assert domain.view(TASK, [], "solver") == [said("user", TASK.problem)]
    (teacher,) = domain.view(TASK, [], "teacher")
    assert "Write short steps in your own words, with a blank line between them, and" in teacher["content"]
    assert len(domain.view(TASK, ["x"], "checker")) == 1 and domain.separator == "\n\n"


@pytest.mark.parametrize("name", ["examples.jsonl", "examples.json"])
def test_what_the_solver_is_shown_turn_by_turn(tokenizer, tmp_path, name):
    text = json.dumps(EXAMPLES) if name.endswith("json") else "\n\n".join(map(json.dumps, EXAMPLES)) + "\n"
    (tmp_path / name).write_text("\ufeff" + text, encoding="utf-8")
    knobs = {"system": "Be brief.", "instruction": "Q: {problem} Box it: {}."}
    domain = domains.load("math", tokenizer, examples=str(tmp_path / name), **knobs)
    turns = domain.view(TASK, [], "solver")
    assert turns == [
        said("system", "Be brief."),
        said("user", "Q: What is 1+1? Box it: {}."),
        said("assistant", EXAMPLES[0]["solution"]),
        said("user", "Q: What is {3}+3? Box it: {}."),
        said("assistant", EXAMPLES[1]["solution"]),
        said("user", "Q: What is {2}+2? Box it: {}."),
    ]
    shown = "".join(turn["content"] for turn in turns)
    assert TASK.reference not in shown and "4" not in shown  # nothing of the task but its problem
    assert rollout.open_trace(domain, TASK).tokens.tolist() == tokenizer.render(turns)


@pytest.mark.parametrize(("row", "turns"), [(TAUGHT, 2), (REVIEWED, 4)])
def test_what_the_proposer_is_shown_turn_by_turn(tokenizer, tmp_path, row, turns):
    domain = domains.load(
        "math", tokenizer, prompts=prompts(tmp_path, [row]), system="S", instruction="no{problem}"
    )
    told = [
        said("user", "T What is 5+5?|It is 10.|10|a blank line"),
        said("assistant", "Ten."),
        said("user", "C 5+5 = 9;So \\boxed{9}|10"),
        said("assistant", "Step 1 is wrong."),
    ]
    asked = said("user", f"T {TASK.problem}|{TASK.reference}|4|a blank line")
    assert domain.view(TASK, [], "teacher") == [said("system", "S"), *told[:turns], asked]
    assert domain.view(TASK, ["a", "b"], "checker") == [said("user", "C a;b|4")]  # in the same conversation
    assert domain.view(TASK, [], "solver") == [said("system", "S"), said("user", "no" + TASK.problem)]


@pytest.mark.parametrize("knob", ["examples", "prompts"])
def test_a_problem_of_the_run_is_no_worked_example(tokenizer, tmp_path, knob):
    """Whatever its case and white space; for any role: the solver would be shown the answer."""
    same = "  what is\n{2}+2?"
    rows = (
        [EXAMPLES[0], {"problem": same, "solution": "4"}]
        if knob == "examples"
        else [TAUGHT | {"problem": same}]
    )
    value = lines(tmp_path / "e.jsonl", rows) if knob == "examples" else prompts(tmp_path, rows)
    domain = domains.load("math", tokenizer, **{knob: value})
    for role in ("solver", "teacher", "checker"):
        with pytest.raises(
            ValueError, match=rf"task t1 is a worked example, .*jsonl, row {len(rows)}: take it out"
        ):
            domain.view(TASK, ["x"], role)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("", "there is no worked example"),
        ("{", "a JSON object on each line"),
        ('"problem"', "row 1 is 'problem': a worked example has problem, solution"),
        ('\n{"problem": "p"}', "row 2 has the columns problem: a worked example has problem, solution"),
        ('{"problem": "p", "solution": "s", "answer": "1"}', "has the columns problem, solution, answer"),
        ('{"problem": "p", "solution": " "}', "solution is ' ', and must be a text"),
        ('{"problem": 3, "solution": "s"}', "problem is 3, and must be a text"),
        (
            '{"problem": "p q", "solution": "s"}\n{"problem": "P  q", "solution": "t"}',
            "row 2: the same problem",
        ),
    ],
)
def test_examples_that_cannot_be_used_are_named(tokenizer, tmp_path, rows, words):
    (tmp_path / "e.jsonl").write_text(rows)
    with pytest.raises(ValueError, match=r"e\.jsonl") as caught:
        domains.load("math", tokenizer, examples=str(tmp_path / "e.jsonl"))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"separator": ""}, ["math.separator = ''", "one or more line breaks"]),
        ({"separator": "\\n"}, ["math.separator = '\\\\n'", "$'\\n'"]),  # a shell that does not read it
        ({"separator": "\n \n"}, ["one or more line breaks"]),
        ({"separator": 2}, ["math.separator = 2", "a text"]),
        ({"instruction": "Box it."}, ["math.instruction = 'Box it.'", "{problem} once"]),
        ({"instruction": "{problem} {problem}"}, ["{problem} once"]),
        ({"system": None}, ["math.system = None", "a text"]),
        ({"examples": "no/such.jsonl"}, ["no/such.jsonl: no such file of worked examples"]),
    ],
)
def test_bad_knobs_are_named_with_the_fix(tokenizer, knobs, words):
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        domains.load("math", tokenizer, **knobs)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_review_without_its_attempt_is_refused(tokenizer, tmp_path):
    with pytest.raises(ValueError, match=r"a worked example has .*, and may have attempt and review"):
        domains.load("math", tokenizer, prompts=prompts(tmp_path, [TAUGHT | {"review": "r"}]))


# --- separators ---

PIECES = st.sampled_from(
    ["So", " x = 2", ".", "\n", "\n\n", ".\n", "\n\n\n", "é", "- item", " ", "<|im_end|>"]
)
APART = {"\n": "a line break", "\n\n": "a blank line", "\n\n\n": "2 blank lines"}


def attempt(domain, pieces) -> Trace:
    prompt = domain.tokenizer.render(domain.view(TASK, [], "solver"))
    ids = [i for piece in pieces for i in domain.tokenizer.encode(piece)]
    tokens = np.array([*prompt, *ids], np.int32)
    drawn = np.arange(len(tokens)) >= len(prompt)
    ends = domain.steps(tokens, len(prompt))
    return Trace(
        TASK, tokens, len(prompt), drawn, np.zeros(len(tokens), np.float32), step_ends=ends, stop="length"
    )


@pytest.mark.parametrize("separator", list(APART))
def test_steps_of_any_separator_give_back_the_ids(tokenizer, separator):
    domain = domains.load("math", tokenizer, separator=separator)

    @settings(max_examples=80, deadline=None)
    @given(st.lists(PIECES, max_size=14))
    def run(pieces):
        trace = attempt(domain, ["So", *pieces])
        spans = list(zip(trace.step_starts(), trace.step_ends, strict=True))
        assert [i for a, b in spans for i in trace.tokens[a:b].tolist()] == trace.response.tolist()
        texts = [domain.tokenizer.decode(trace.tokens[a:b]) for a, b in spans]
        assert "".join(texts) == domain.tokenizer.decode(trace.response)
        assert all(text.endswith(separator) for text in texts[:-1])
        for text in texts[:-1]:  # no step holds a separator but at its end
            assert separator not in text.strip()  # white space alone is no step: it begins the next one
        for step in range(len(spans)):  # cut anywhere: what is before keeps its ids and its steps
            cut = rollout.truncate(trace, rollout.cut_at(trace, step))
            assert domain.steps(cut.tokens, cut.prompt_len) == trace.step_ends[:step]

    run()


@pytest.mark.parametrize("separator", list(APART))
def test_the_steps_are_the_ones_between_separators(tokenizer, tmp_path, separator):
    domain = domains.load("math", tokenizer, separator=separator, prompts=prompts(tmp_path))
    trace = attempt(domain, [separator.join(["1+1 = 2", "2+1 = 3", "\\boxed{3}"])])
    assert domain.step_texts(trace) == ["1+1 = 2", "2+1 = 3", "\\boxed{3}"]
    assert domain.view(TASK, [], "teacher")[0]["content"].endswith(f"|{APART[separator]}")
    (patched,) = rollout.splice([trace], [Intervention(1, "2+2 = 4")], tokenizer, separator)
    assert domain.step_texts(patched) == ["1+1 = 2", "2+2 = 4"]
    assert tokenizer.text(patched.response).startswith("1+1 = 2" + separator + "2+2 = 4")


def test_a_blank_line_is_one_step_end_where_a_line_break_is_enough(tokenizer):
    domain = domains.load("math", tokenizer, separator="\n")
    assert domain.step_texts(attempt(domain, ["a\n\nb\n", "\n", "c"])) == ["a", "b", "c"]
