"""The arithmetic domain: its problems, what each role sees, and its oracle, against evaluators written here."""

import dataclasses
import itertools
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from int_jax import domains
from int_jax.domains import arithmetic
from int_jax.domains.arithmetic import (
    MAX_VALUE,
    SPLITS,
    Chain,
    chain,
    checker_response,
    corrupted,
    parse_problem,
)
from int_jax.proposers.parse import parse_intervention
from int_jax.rollout import splice
from int_jax.tokenizer import Tokenizer
from int_jax.types import Intervention, Reply, Task, Trace

SEEDS = st.integers(0, 2**32 - 1)
LENGTHS = st.integers(1, 8)


@pytest.fixture(scope="module")
def domain(tiny_dir):
    return domains.load("arithmetic", Tokenizer(tiny_dir))


@st.composite
def chains(draw) -> Chain:
    rng = np.random.default_rng(draw(SEEDS))
    length = draw(LENGTHS)
    return chain(rng, length, draw(st.sampled_from([0.0, 1.5, 6.0])), draw(st.integers(0, length)))


def running_values(problem: str) -> list[int]:
    """The values a problem's words lead to, read off the text alone."""
    words = re.findall(r"[a-z]+|\d+", problem.removeprefix("Start with "))
    value, values = int(words[0]), []
    for word, operand in zip(words[1::2], map(int, words[2::2]), strict=True):
        value = {"add": value + operand, "take": value - operand, "times": value * operand}[word]
        values.append(value)
    return values


def first_wrong(problem: str, steps: list[str]) -> int | None:
    """The first step that does not end in the value due there; brute force, from the problem's words."""
    due = running_values(problem)
    for index, step in enumerate(steps):
        ends_in = re.search(r"(\d+)\D*$", step)
        if index > len(due) or not ends_in or int(ends_in[1]) != due[min(index, len(due) - 1)]:
            return index
    return None


def attempt(domain, task: Task, text: str, stop: str = "stop") -> Trace:
    """A trace whose response is the text, as if sampled."""
    prompt = domain.tokenizer.render(domain.view(task, [], "solver"))
    ids = domain.tokenizer.encode(text) + (list(domain.tokenizer.stop_ids) if stop == "stop" else [])
    tokens = np.array(prompt + ids, np.int32)
    sampled = np.arange(len(tokens)) >= len(prompt)
    ends = domain.steps(tokens, len(prompt))
    return Trace(
        task, tokens, len(prompt), sampled, np.zeros(len(tokens), np.float32), step_ends=ends, stop=stop
    )


# --- problems ---


@settings(max_examples=200, deadline=None)
@given(chains())
def test_a_chain_stays_within_bounds_and_its_problem_says_it(one):
    assert 1 <= one.start <= 9 and all(0 <= v <= MAX_VALUE for v in one.values)
    assert all(op in "+-x" and 1 <= k <= 9 for op, k in one.operations)
    assert parse_problem(one.problem) == one
    assert one.values == running_values(one.problem) and one.reference == ", ".join(map(str, one.values))
    assert len(one.steps) == len(one.operations) + 1 and first_wrong(one.problem, one.steps) is None


@settings(max_examples=100, deadline=None)
@given(SEEDS, LENGTHS, st.data())
def test_a_hard_chain_holds_as_many_rare_operations_as_asked(seed, length, data):
    rare = data.draw(st.integers(0, length))
    one = chain(np.random.default_rng(seed), length, 1e3, rare)  # so steep that no rare one comes by itself
    assert len(one.operations) == length
    assert sum(k >= 7 for _, k in one.operations) == rare


@pytest.mark.parametrize(
    "text", ["", "Start with 7.", "Start with 7, add 5", "start with 7, add 5.", "Start with 7, divide 5."]
)
def test_what_is_no_problem_is_refused_with_its_text(text):
    with pytest.raises(ValueError, match="not an arithmetic problem: " + re.escape(repr(text))):
        parse_problem(text)


@pytest.fixture(scope="module")
def everything(domain):
    return {(split, seed): domain.tasks(split, seed, 60) for split in SPLITS for seed in (0, 1)}


def test_no_problem_is_in_two_splits(everything):
    owner = {}
    for (split, _), tasks in everything.items():
        for task in tasks:
            assert owner.setdefault(task.problem, split) == split == arithmetic.split_of(task.problem)


def test_problems_are_dealt_as_documented():
    rng = np.random.default_rng(0)
    owners = [arithmetic.split_of(chain(rng, 6, 1.0).problem) for _ in range(2000)]
    shares = [owners.count(split) / len(owners) for split in SPLITS]
    np.testing.assert_allclose(shares, [1 / 2, 1 / 6, 1 / 6, 1 / 6], atol=0.04)


def test_a_split_holds_distinct_well_formed_tasks(everything):
    for (split, seed), tasks in everything.items():
        assert len({t.problem for t in tasks}) == len({t.id for t in tasks}) == len(tasks) == 60
        for task in tasks:
            values = running_values(task.problem)
            assert (task.domain, task.answer, task.meta["steps"]) == (
                "arithmetic",
                str(values[-1]),
                len(values),
            )
            assert [int(v) for v in task.reference.split(", ")] == values
            rare = len(re.findall(r" [789]\b", task.problem.split(",", 1)[1]))
            assert 2 <= len(values) <= 8 if split == "train" else 5 <= len(values) <= 8 and rare >= 2, (
                split,
                seed,
            )


def test_tasks_are_a_function_of_split_and_seed_and_more_of_them_begin_with_fewer(domain, everything):
    for (split, seed), tasks in everything.items():
        assert domain.tasks(split, seed, 25) == tasks[:25]
    for split in SPLITS:
        assert {t.problem for t in everything[split, 0]} != {t.problem for t in everything[split, 1]}


def test_knobs_change_the_hard_splits(tiny_dir):
    easy = domains.load("arithmetic", Tokenizer(tiny_dir), lengths=(3, 4), rare=(1, 1))
    for task in easy.tasks("hard_test", 0, 30):
        assert 3 <= task.meta["steps"] <= 4


def test_more_problems_than_there_are_is_an_error_that_counts_them(domain, monkeypatch):
    monkeypatch.setattr("int_jax.domains.MAX_MISSES", 500)
    short = domains.load("arithmetic", domain.tokenizer, lengths=(1, 1), rare=(0, 0))
    with pytest.raises(
        ValueError, match=r"no 10000 problems in split 'hard_test' with lengths 1 to 1: (\d+) "
    ) as e:
        short.tasks("hard_test", 0, 10_000)
    found = int(re.search(r": (\d+) were found", str(e.value))[1])
    assert len(short.tasks("hard_test", 0, found)) == found > 0


# --- what each role sees ---


@settings(max_examples=50, deadline=None)
@given(SEEDS, st.text(min_size=1), st.lists(st.text(min_size=1), min_size=1))
def test_the_solver_sees_nothing_but_the_problem(domain, seed, secret, steps):
    """Non-interference: whatever else there is, its view is a function of the problem's text."""
    task = arithmetic.task(chain(np.random.default_rng(seed), 4), "t")
    other = Task("elsewhere", "x", task.problem, secret, secret, {"hint": secret})
    view = domain.view(task, [], "solver")
    assert view == domain.view(other, steps, "solver") == [{"role": "user", "content": task.problem}]


@settings(max_examples=50, deadline=None)
@given(SEEDS)
def test_the_teacher_sees_the_reference_and_the_checker_the_attempt_too(domain, seed):
    rng = np.random.default_rng(seed)
    one = chain(rng, 5, 1.0)
    task, steps = arithmetic.task(one, "t"), corrupted(rng, one)
    [teacher], [checker] = domain.view(task, steps, "teacher"), domain.view(task, steps, "checker")
    numbered = [f"S{i} {v}" for i, v in enumerate(one.values, 1)]
    assert teacher["content"].split("\n") == [task.problem, "Reference:", *numbered]
    attempt = [f"S{i} {s}" for i, s in enumerate(steps, 1)]
    assert checker["content"] == teacher["content"] + "\nAttempt:\n" + "\n".join(attempt)
    assert teacher == domain.view(task, [], "teacher")[0]  # the attempt is not in it


def test_unknown_names_are_refused_with_the_choices(domain):
    task = domain.tasks("train", 0, 1)[0]
    with pytest.raises(ValueError, match=r"no role 'critic': choose solver, teacher, checker, hinted"):
        domain.view(task, [], "critic")
    with pytest.raises(
        ValueError, match=r"no split 'test': choose one of train, hard_train, hard_validation, hard_test"
    ):
        domain.tasks("test", 0, 1)
    with pytest.raises(ValueError, match=r"no knob 'length': it has exponent, lengths, rare"):
        domains.load("arithmetic", domain.tokenizer, length=3)
    with pytest.raises(ValueError, match=r"no domain 'aritmetic' .*: choose one of arithmetic"):
        domains.load("aritmetic", domain.tokenizer)


# --- steps ---


@settings(max_examples=60, deadline=None)
@given(chains())
def test_steps_come_back_in_bytes_and_ids(domain, one):
    """Trap 10: joining the steps gives back the response exactly, as text and as ids."""
    text = "\n\n".join(one.steps)
    trace = attempt(domain, arithmetic.task(one, "t"), text)
    ids = trace.response.tolist()
    spans = [trace.tokens[a:b].tolist() for a, b in zip(trace.step_starts(), trace.step_ends, strict=True)]
    assert list(itertools.chain(*spans)) == ids and ids[:-1] == domain.tokenizer.encode(text)
    assert domain.tokenizer.text(ids) == text and domain.step_texts(trace) == one.steps
    assert spans[:-1] == [domain.tokenizer.encode(s + "\n\n") for s in one.steps[:-1]]


# --- the oracle ---


@settings(max_examples=200, deadline=None)
@given(chains(), SEEDS)
def test_first_error_equals_brute_force(domain, one, seed):
    steps = corrupted(np.random.default_rng(seed), one)
    trace = attempt(domain, arithmetic.task(one, "t"), "\n\n".join(steps))
    assert domain.first_error(trace) == first_wrong(one.problem, steps)
    right = steps[-1] == f"\\boxed{{{one.values[-1]}}}"
    assert domain.verify(trace).passed == right


@settings(max_examples=60, deadline=None)
@given(
    chains(), st.lists(st.sampled_from(["7 + 5 = 12", "so", "12", "\\boxed{3}", "1234567", "."]), max_size=12)
)
def test_first_error_of_steps_of_any_kind(domain, one, steps):
    trace = attempt(domain, arithmetic.task(one, "t"), "\n\n".join(steps))
    found = domain.first_error(trace)
    texts = domain.step_texts(trace)
    assert found == first_wrong(one.problem, texts)
    for step in range(len(trace.step_ends)):
        assert domain.correction(trace, step) in one.steps


def test_an_attempt_that_stops_early_or_goes_on_too_long(domain):
    one = Chain(7, (("+", 5), ("x", 3)))
    task = arithmetic.task(one, "t")
    for count in range(1, 4):
        assert domain.first_error(attempt(domain, task, "\n\n".join(one.steps[:count]))) is None
    assert domain.first_error(attempt(domain, task, "\n\n".join([*one.steps, "\\boxed{36}"]))) == 3


def test_corrupted_attempts_are_mostly_wrong():
    rng = np.random.default_rng(0)
    wrong, located = 0, set()
    for _ in range(600):
        one = chain(rng, int(rng.integers(1, 9)), 1.5)
        steps = corrupted(rng, one)
        assert re.fullmatch(r"\\boxed\{\d+\}", steps[-1]) and len(steps) <= len(one.steps)
        index = first_wrong(one.problem, steps)
        wrong += index is not None
        located.add(index)
    assert 0.9 < wrong / 600 < 1 and located == {
        None,
        *range(9),
    }  # some right ones, and an error at every step


@settings(max_examples=60, deadline=None)
@given(chains(), SEEDS)
def test_the_correction_makes_the_located_step_right(domain, one, seed):
    """Spliced in, the attempt has no error up to there; and it is what the problem's own solution says."""
    trace = attempt(
        domain, arithmetic.task(one, "t"), "\n\n".join(corrupted(np.random.default_rng(seed), one))
    )
    wrong = domain.first_error(trace)
    if wrong is None:
        return
    right = domain.correction(trace, wrong)
    fixed = splice(trace, Intervention(wrong, right), domain.tokenizer)
    assert domain.first_error(fixed) is None and domain.step_texts(fixed)[-1] == right == one.steps[wrong]


@settings(max_examples=200, deadline=None)
@given(chains(), SEEDS)
def test_a_perfect_checkers_answer_reads_back(one, seed):
    steps = corrupted(np.random.default_rng(seed), one)
    answer, wrong = checker_response(one, steps), first_wrong(one.problem, steps)
    read = parse_intervention(answer)
    if wrong is None:
        assert (read.step, read.text) == (-1, "")
        logged = len(steps)
    else:
        assert (read.step, read.text) == (wrong, one.steps[wrong])
        logged = wrong + 1
    log = answer.split("\n")[:-1]
    due = [*one.values, one.values[-1]]
    assert [int(line.split()[1]) for line in log] == due[:logged]
    words = ["ok"] * logged if wrong is None else ["ok"] * wrong + ["wrong"]
    assert [line.split()[-1] for line in log] == words


@settings(max_examples=60, deadline=None)
@given(chains(), st.data())
def test_each_step_can_be_the_wrong_one(one, data):
    """The boxed answer, too: its backslash comes through the proposer's format."""
    wrong = data.draw(st.integers(0, len(one.operations)) | st.just(len(one.operations)))
    steps = list(one.steps)
    steps[wrong] = steps[wrong].replace(str(one.values[min(wrong, len(one.values) - 1)]), "100")
    read = parse_intervention(checker_response(one, steps))
    assert (
        (read.step, read.text)
        == (wrong, one.steps[wrong])
        == (first_wrong(one.problem, steps), one.steps[wrong])
    )


# --- verdicts and leaks ---

ONE = Chain(7, (("+", 5), ("x", 3)))  # 12, 36


@pytest.mark.parametrize(
    ("text", "stop", "reason"),
    [
        ("7 + 5 = 12\n\n12 x 3 = 36\n\n\\boxed{36}", "stop", "correct"),
        (
            "\\boxed{36}",
            "length",
            "correct",
        ),  # a box that verifies counts even if the turn was cut, as in InT's release
        ("\\boxed{3}\n\n\\boxed{ 36 }", "stop", "correct"),  # the last box, whatever the steps say
        ("\\boxed{36}\n\n\\boxed{37}", "stop", "wrong"),
        ("\\boxed{036}", "stop", "wrong"),
        ("\\boxed{}", "stop", "wrong"),
        ("\\boxed{36", "stop", "no_answer"),
        ("36", "stop", "no_answer"),
        ("", "stop", "no_answer"),
        ("\\boxed{35}", "length", "truncated"),
        ("7 + 5 =", "length", "truncated"),
    ],
)
def test_verdicts(domain, text, stop, reason):
    verdict = domain.verify(attempt(domain, arithmetic.task(ONE, "t"), text, stop))
    assert verdict == (reason == "correct", float(reason == "correct"), reason)


def test_only_the_response_is_judged(domain):
    """A box in the problem is no answer."""
    task = dataclasses.replace(arithmetic.task(ONE, "t"), problem="Start with 7, add 5. \\boxed{36}")
    assert domain.verify(attempt(domain, task, "7 + 5 = 12")).reason == "no_answer"


@pytest.mark.parametrize(
    ("text", "leaks"),
    [
        *[("12 x 3 = 36", True), ("\\boxed{36}", True), ("\\boxed{1}", True), ("so 36.", True)],
        *[("7 + 5 = 12", False), ("36 - 30 = 6", False), ("136", False), ("", False), ("none", False)],
    ],
)
def test_leaks(domain, text, leaks):
    assert domain.leaks(arithmetic.task(ONE, "t"), text) is leaks


def test_its_partner_is_silent(domain):
    assert domain.replies([attempt(domain, arithmetic.task(ONE, "t"), "\\boxed{36}")]) == [Reply()]


def test_every_row_of_a_batch_of_the_embedded_models_recipe_is_trained(tiny_dir):
    """In a process of its own, since the script has flags."""
    code = f"""
import numpy as np
from experiments import pretrain
from int_jax.domains.arithmetic import Arithmetic
from int_jax.tokenizer import Tokenizer
chat = Tokenizer({str(tiny_dir)!r})
for step in range(3):
    batch = pretrain.batch_at(chat, Arithmetic(chat), 0, step, [])
    used = batch.ce_MBT[: int(batch.micro)]
    assert used.sum() == batch.ce_MBT.sum() == batch.ce_total > 1000, step
    assert (np.abs(batch.ce_MBT).sum((1, 2)) > 0).sum() == batch.micro >= 4, step
"""
    root = pathlib.Path(__file__).resolve().parents[1]
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True)
