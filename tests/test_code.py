"""The domain of programs with unit tests: problems, steps that respect blocks, verdicts, leaks, and sets by columns."""

import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from int_jax import datasets, domains, rollout
from int_jax.check import byte_tokenizer
from int_jax.check.domain import trace_of
from int_jax.datasets import local
from int_jax.datasets.code_columns import translated
from int_jax.domains.code import SPLITS, problems
from int_jax.domains.code.fences import blocks, fenced, python_blocks
from int_jax.stages import StageError
from int_jax.tokenizer import Tokenizer
from int_jax.types import Intervention, Task

PATIENCE_S = 600.0


@pytest.fixture(scope="module")
def letters(tmp_path_factory):
    return Tokenizer(byte_tokenizer.save(tmp_path_factory.mktemp("bytes")))


@pytest.fixture(scope="module")
def code(letters):
    one = domains.load("code", letters, deadline_s=PATIENCE_S)
    yield one
    one.sandbox.close()


TASK = Task(
    "t1",
    "code",
    "Double `x`.\n\n" + fenced("def f(x):\n    ..."),
    "Add it to itself.\n\n" + fenced("def f(x):\n    return x + x"),
    "assert f(2) == 4\nassert f('a') == 'aa'\n",
)


def verdict(code, text: str, task: Task = TASK, stop: str = "stop"):
    return code.verify(trace_of(code, task, text, stop))


# --- its own problems ---


def test_problems_are_a_function_of_split_and_seed_and_no_two_are_the_same(code):
    tasks = code.tasks("hard_train", 3, 40)
    assert code.tasks("hard_train", 3, 12) == tasks[:12] != code.tasks("hard_train", 4, 12)
    every = [task for split in SPLITS for seed in (0, 1) for task in code.tasks(split, seed, 60)]
    assert len({(split_of(task), task.problem) for task in every}) == len({task.problem for task in every})
    for task in every:
        assert task.id.startswith(split_of(task))
        low, high = (1, 2) if split_of(task) == "train" else code.knobs["changes"]
        assert low <= task.meta["changes"] <= high


def split_of(task: Task) -> str:
    return problems.split_of(task.problem)


def test_references_pass_their_tests_and_no_constant_does(code):
    tasks = [task for split in SPLITS for task in code.tasks(split, 0, 25)]
    assert code.faults(tasks) == [""] * len(tasks)
    for task in tasks:
        results = [line.partition(" == ")[2] for line in task.answer.splitlines()]
        assert len(results) == problems.TESTS and max(map(results.count, results)) <= problems.TESTS // 2
        assert "def solve(" in task.problem and "return" not in task.problem.partition("```")[2]


def test_every_part_of_the_tables_says_and_does_something():
    """Each stands in some problem, with its number filled in, and its code runs."""
    rng = np.random.default_rng(0)
    for numbers in (True, False):
        sources = problems.NUMBERS if numbers else problems.TEXTS
        changes = problems.CHANGES_OF_NUMBERS if numbers else problems.CHANGES_OF_TEXTS
        ends = problems.ENDS_OF_NUMBERS if numbers else problems.ENDS_OF_TEXTS
        for source in sources:
            for change in (*changes, *problems.CHANGES_OF_BOTH):
                for end in (*ends, *problems.ENDS_OF_BOTH):
                    one = problems.Problem(source, (change.drawn(rng),), end.drawn(rng))
                    assert len(one.cases) == problems.TESTS
                    assert not re.search(r"\bK\b", one.statement + one.code)


def test_asking_for_too_much_is_an_error(letters, monkeypatch):
    monkeypatch.setattr("int_jax.domains.MAX_MISSES", 30)
    small = domains.load("code", letters, changes=(1, 1))
    with pytest.raises(
        ValueError, match=r"no 100000 problems in split 'train' with 1 to 2 changes: \d+ were found"
    ):
        monkeypatch.setattr(
            problems,
            "draw",
            lambda rng, count, draw=problems.draw: draw(np.random.default_rng(rng.integers(40)), 1),
        )
        small.tasks("train", 0, 100_000)
    with pytest.raises(ValueError, match="no split 'test': choose one of train, hard_train"):
        small.tasks("test", 0, 1)


# --- views ---


def test_who_sees_what(code):
    [solver] = code.view(TASK, ["a"], "solver")
    assert solver["content"] == f"{TASK.problem}\n\n{code.knobs['instruction']}"
    [teacher] = code.view(TASK, ["a"], "teacher")
    assert TASK.problem in teacher["content"] and TASK.reference in teacher["content"]
    block = fenced("x = '{{ reference }}'")
    [checker] = code.view(TASK, ["a", block], "checker")
    assert f"[1] a\n\n[2] {block}\n" in checker["content"]
    [reflector] = code.view(TASK, ["a", block], "reflector")
    assert f"[1] a\n\n[2] {block}\n" in reflector["content"]
    [hinted] = code.view(TASK, [], "hinted")
    for one in (hinted, reflector):
        assert TASK.reference in one["content"] and code.knobs["instruction"] in one["content"]
    assert all("assert" not in one["content"] for one in (solver, teacher, checker, hinted, reflector))
    with pytest.raises(ValueError, match="no role 'critic'"):
        code.view(TASK, [], "critic")
    with pytest.raises(ValueError, match="task t2 has no reference solution"):
        code.view(Task("t2", "code", "p"), [], "teacher")


# --- blocks and steps ---

BLOCKS = [
    ("```python\na\n```", [("python", "a")]),
    ("x\n```\na\n\nb\n```\ny", [("", "a\n\nb")]),
    ("~~~ Python title\na\n```\n~~~", [("python", "a\n```")]),
    ("````\n```\na\n```\n````", [("", "```\na\n```")]),
    ("1. so\n   ```py\n   if a:\n       b\n   ```", [("py", "if a:\n    b")]),
    ("```python\na", []),
    ("```python\na\n```\n```python\nb", [("python", "a")]),
    ("a ```b``` c\n```d``` e", []),
    ("```\n```", [("", "")]),
    ("```python\na\n``` b\n```", [("python", "a\n``` b")]),
]  # fmt: skip


@pytest.mark.parametrize(("text", "found"), BLOCKS)
def test_blocks(text, found):
    assert blocks(text) == found


def test_which_blocks_are_python():
    text = "\n".join(
        [fenced("a"), "```bash\nls\n```", "```\nout\n```", fenced(">>> a\n1"), fenced("b"), fenced(" ")]
    )
    assert python_blocks(text) == ["a", "b"]
    assert python_blocks("```\nout\n```\n```text\nt\n```") == ["out"]


PIECES = st.sampled_from(
    ["\n", "\n\n", "a", "the b.", "```", "```python\n", "~~~\n", "    ", "x = 1\n", ".\n\n", "é"]
)


@given(st.lists(PIECES, max_size=24).map("".join))
def test_steps_end_outside_of_blocks_and_stay_when_the_response_is_cut(code, text):
    trace = trace_of(code, TASK, text)
    ends = trace.step_ends
    plain = super(type(code), code).steps(trace.tokens, trace.prompt_len)
    assert set(ends) <= set(plain) and ends[-1] == len(trace.tokens)
    opened = [end for end in plain if stands_open(code.tokenizer.text(trace.tokens[trace.prompt_len : end]))]
    assert set(plain) - set(ends) == {end for end in opened if end != ends[-1]}
    for k, end in enumerate(ends[:-1]):
        assert code.steps(trace.tokens[:end], trace.prompt_len) == ends[: k + 1]
    if "```" not in text and "~~~" not in text:
        assert ends == plain


def stands_open(text: str) -> bool:
    """Whether a block is open where the text ends: by counting, a second way."""
    mark = ""
    for line in text.split("\n")[:-1]:
        found = re.match(r"[ \t]*(`{3,}|~{3,})", line)
        if not mark and found and "`" not in line[found.end() :]:
            mark = found[1]
        elif mark and found and found[1].startswith(mark) and not line[found.end() :].strip():
            mark = ""
    return bool(mark)


def test_an_intervention_takes_the_place_of_a_whole_block(code):
    parts = ["Double it.", fenced("def f(x):\n    y = x\n\n    return y"), "Done."]
    trace = trace_of(code, TASK, "\n\n".join(parts))
    assert code.step_texts(trace) == parts
    new = fenced("def f(x):\n\n    return 2 * x")
    [guided] = rollout.splice([trace], [Intervention(1, new)], code.tokenizer, code.separator)
    assert code.step_texts(guided) == [parts[0], new]
    text = code.tokenizer.text(guided.response).rstrip()
    assert verdict(code, f"{text}\n\nDone.").passed and not code.verify(trace).passed


# --- verdicts ---

RIGHT = fenced("def f(x):\n    return 2 * x")
WRONG = fenced("def f(x):\n    return x")


@pytest.mark.parametrize(
    ("text", "stop", "reason"),
    [
        (RIGHT, "stop", "correct"),
        (RIGHT, "length", "correct"),
        (f"So:\n\n{RIGHT}\n\nThis prints:\n```\n4\n```", "stop", "correct"),
        (f"{WRONG}\n\nNo, rather:\n\n{RIGHT}", "stop", "correct"),
        (fenced("def g(x):\n    return x + x") + "\nthen\n" + fenced("f = g"), "stop", "correct"),
        ("```\ndef f(x): return 2 * x\n```", "stop", "correct"),
        (WRONG, "stop", "wrong"),
        (WRONG, "length", "truncated"),
        (f"{RIGHT}\n\n{WRONG}", "stop", "wrong"),
        ("def f(x): return 2 * x", "stop", "no_answer"),
        (RIGHT.removesuffix("```"), "stop", "no_answer"),
        (RIGHT.removesuffix("```"), "length", "truncated"),
        (fenced("def f(x) return"), "stop", "unparsable"),
        (fenced("# " + "x" * 200_000), "stop", "unparsable"),
        (fenced("import os\nos._exit(0)"), "stop", "wrong"),
    ],
)
def test_verdicts(code, text, stop, reason):
    assert verdict(code, text, stop=stop) == (reason == "correct", float(reason == "correct"), reason)


def test_a_program_that_does_not_end_costs_one_verdict(letters):
    quick = domains.load("code", letters, deadline_s=0.5)
    traces = [trace_of(quick, TASK, text) for text in (fenced("while True: pass"), WRONG)]
    assert quick.verify_many(traces)[0] == (False, 0.0, "timeout")
    quick.sandbox.close()


def test_what_the_problem_states_in_code_is_there(code):
    task = Task("t", "code", fenced("import math\ndef area(r): return math.pi * r * r\ndef f(a, b):\n    ..."), "",
                "assert abs(f(2, 1) - 9.42477) < 1e-4\n")  # fmt: skip
    assert verdict(code, fenced("def f(a, b): return area(a) - area(b)"), task).passed
    assert verdict(code, fenced("print(1)"), task).reason == "wrong"  # its stub alone


def test_knobs_of_a_verdict(letters):
    """Each changes what the others leave."""
    half, two = (
        fenced("def f(x): return 4"),
        f"{fenced('def f(x): return g(x)')}\n\n{fenced('def g(x): return 2 * x')}",
    )
    for knobs, score, passed in (
        ({}, 0.0, True),
        ({"score": "share"}, 0.5, True),
        ({"program": "last"}, 0.0, False),
    ):
        one = domains.load("code", letters, deadline_s=PATIENCE_S, **knobs)
        assert verdict(one, half) == (False, score, "wrong")
        assert verdict(one, two).passed is passed
    small = domains.load("code", letters, deadline_s=PATIENCE_S, memory_mib=64)
    large = domains.load("code", letters, deadline_s=PATIENCE_S)
    hungry = fenced("held = bytearray(100 << 20)\ndef f(x): return 2 * x")
    assert (verdict(small, hungry).reason, verdict(large, hungry).reason) == ("wrong", "correct")
    small.sandbox.close()
    silent = domains.load("code", letters, instruction="")
    assert silent.view(TASK, [], "solver")[0]["content"] == TASK.problem


def test_the_answer_is_the_program(code):
    assert code.answer(trace_of(code, TASK, f"{WRONG}\n\n{RIGHT}")) == "\n\n".join(
        python_blocks(WRONG + "\n" + RIGHT)
    )
    assert code.answer(trace_of(code, TASK, "none")) is None
    assert code.solution(Task("t", "code", "p", "def f(x): return 2 * x", "")) == fenced(
        "def f(x): return 2 * x"
    )


def test_tests_that_cannot_be_used_are_an_error(code):
    broken = Task("t9", "code", "p", "", "assert f(")
    with pytest.raises(ValueError, match="task t9: the tests are no Python: SyntaxError"):
        verdict(code, RIGHT, broken)


# --- leaks ---


@pytest.mark.parametrize(
    ("text", "leaks"),
    [
        (RIGHT, True),
        (f"Write it.\n\n{RIGHT}", True),
        (WRONG, False),
        ("Add it to itself.", False),
        ("Use `x + x`.", False),
        ("Write `return x + x`.", True),
        (fenced("return 2 * x"), True),
        (fenced("y = x\nreturn x + y"), True),
        (fenced("def twice(x): return 2 * x"), False),
        ("```\ndef f(x): return x * 2\n```", True),
        ("`def f(x): return x * 2`", True),
        ("`", False),
        (fenced("x" * 200_000), False),
    ],
)
def test_a_step_that_makes_a_passing_program_leaks(code, text, leaks):
    assert code.leaks(TASK, text) is leaks


# --- sets by their columns ---

PROMPT = '''from typing import List
import math


def area(radius: float) -> float:
    return math.pi * radius**2


def rings(radii: List[float]) -> List[float]:
    """ The areas between neighbouring circles.
    >>> rings([1.0, 1.0])
    [0.0]
    """
'''
CHECK = """

METADATA = {'author': 'nobody'}


def check(candidate):
    assert candidate([]) == []
    assert math.fabs(candidate([1.0, 2.0])[0] - area(1.0) * 3) < 1e-6
"""
RINGS = {
    "task_id": "Own/0",
    "prompt": PROMPT,
    "entry_point": "rings",
    "canonical_solution": "    return [area(b) - area(a) for a, b in zip(radii, radii[1:])]\n",
    "test": CHECK,
}
SUM = {
    "task_id": 126,
    "text": "Write a function to add two numbers twice.",
    "code": "def helper(a):\r\n  return a\r\ndef sum(a, b = 0):\r\n  return helper(2 * (a + b))",
    "test_list": ["assert sum(1, 2) == 6", "assert sum(5) == 10"],
    "test_setup_code": "",
    "challenge_test_list": [],
}
ROOT = {
    "task_id": 3,
    "prompt": "Write a function to take a root.",
    "code": "import math\ndef root(x):\n  return math.isqrt(x)",
    "test_imports": ["import math"],
    "test_list": ["assert root(9) == math.sqrt(9)"],
}
SIGNATURE = RINGS | {
    "prompt": "def one(x: int) -> int:",
    "entry_point": "one",
    "canonical_solution": "    return x + 1",
    "test": "def check(candidate):\n    assert candidate(1) == 2\n",
}


def written(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_humaneval_and_mbpp_are_read_by_their_columns(code, tmp_path):
    path = written(tmp_path / "x.jsonl", RINGS, SUM, ROOT, SIGNATURE)
    read = datasets.read(path, "code", refuse=code.faults, needs=("reference_solution",))
    assert (read.report.problems, read.report.left_out) == (4, {})
    rings, total = read.tasks[:2]
    assert rings.meta == {"task_id": "Own/0"} and total.meta == {"task_id": 126}
    assert "Complete the function `rings`." in rings.problem and PROMPT.strip() in rings.problem
    assert total.problem.endswith(fenced("def sum(a, b=0):\n    ..."))
    for task in read.tasks:
        assert verdict(code, code.solution(task), task).passed
        assert not verdict(code, fenced("pass"), task).passed
        assert code.leaks(task, code.solution(task)) and not code.leaks(task, "Think of `zip`.")
    # The body alone is the solution; what the prompt defines need not be written again.
    assert code.leaks(rings, fenced("return [area(b) - area(a) for a, b in zip(radii, radii[1:])]"))
    again = fenced("def rings(r): return [area(b) - area(a) for a, b in zip(r, r[1:])]")
    assert verdict(code, again, rings).passed
    # Its helpers in the tests are the prompt's, whatever the program makes of them.
    cheat = fenced("def area(r): return 0.0\ndef rings(r): return [0.0] * (len(r) - 1)")
    assert verdict(code, cheat, rings).reason == "wrong"
    assert verdict(code, fenced("def other(a, b=0): return 2 * a + 2 * b"), total).reason == "wrong"


def test_a_row_whose_reference_fails_its_tests_is_named(code, tmp_path):
    bad = RINGS | {"canonical_solution": "    return []\n"}
    path = written(
        tmp_path / "x.jsonl", SUM, bad, ROOT | {"test_list": ["assert root(9) == 3", "assert root(8) == 4"]}
    )
    with pytest.raises(StageError) as error:
        datasets.read(path, "code", refuse=code.faults)
    told = str(error.value)
    assert "2 bad rows: 2 unusable problem" in told
    assert re.search(r"x\.jsonl, row 2: its own reference fails its tests \(wrong\): assert math\.fabs", told)
    assert re.search(
        r"x\.jsonl, row 3: its own reference fails its tests \(wrong\): assert root\(8\) == 4", told
    )
    read = datasets.read(path, "code", skip_bad=True, refuse=code.faults)
    assert [task.meta["task_id"] for task in read.tasks] == [126] and len(read.rows) == 1
    assert read.report.rows == 3
    assert len(datasets.read(path, "code").tasks) == 3  # nobody was asked


def test_tests_are_carried_whole(code, tmp_path):
    long = "".join(f"assert f({i}) == {2 * i}  # {'x' * 60}\n" for i in range(2_000))
    assert len(long) > 150_000
    row = {"problem": "Double x.", "answer": long, "reference_solution": "def f(x): return 2 * x"}
    path = written(tmp_path / "x.jsonl", row, RINGS, ROOT)
    first = datasets.read(path, "code", refuse=code.faults).tasks
    assert first[0].answer == long
    folder, _ = local.prepare({"train": path}, tmp_path / "data")
    assert datasets.read(folder, "code").tasks == first
    assert verdict(code, fenced("def f(x): return 2 * x - (x == 1999)"), first[0]).reason == "wrong"


@pytest.mark.parametrize(
    "columns",
    [
        RINGS | {"problem": "own"},
        {name: value for name, value in RINGS.items() if name != "test"},
        RINGS | {"prompt": "def def"},
        RINGS | {"test": None},
        SUM | {"code": "x = 1"},
        SUM | {"test_list": "assert sum(1, 2) == 6"},
        {"problem": "p", "answer": "5"},
    ],
)
def test_other_columns_stay_as_they_are(columns):
    assert translated(columns) == columns
