"""The mathematics domain: what each role sees, where steps end, what is solved, what gives the answer away."""

import re

import jinja2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from int_jax import domains, rollout
from int_jax.check.byte_tokenizer import save
from int_jax.domains import TextDomain, math
from int_jax.domains.math import commonplace, statements
from int_jax.proposers import fault
from int_jax.proposers.parse import parse_intervention
from int_jax.tokenizer import Tokenizer
from int_jax.types import Intervention, Task, Trace, Verdict

TASK = Task(
    "t1",
    "math",
    "How many {{ pairs }} of {% digits %} sum to\n\n$9$?",
    "Ten digits pair up: $0+9$, $1+8$, ...\n\nSo $\\frac{10}{2} = 5$.",
    "5",
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return Tokenizer(save(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(scope="module")
def domain(tokenizer):
    return domains.load("math", tokenizer)


def attempt(domain, text, task=TASK, stop="stop", pieces=None) -> Trace:
    """A trace whose response is the text, as if sampled."""
    prompt = domain.tokenizer.render(domain.view(task, [], "solver"))
    ids = [i for piece in pieces or [text] for i in domain.tokenizer.encode(piece)]
    tokens = np.array(prompt + ids + list(domain.tokenizer.stop_ids)[: stop == "stop"], np.int32)
    zeros = np.zeros(len(tokens), np.float32)
    ends = domain.steps(tokens, len(prompt))
    return Trace(
        task, tokens, len(prompt), np.arange(len(tokens)) >= len(prompt), zeros, step_ends=ends, stop=stop
    )


# --- views ---


def test_the_solver_sees_the_bare_problem(domain):
    assert domain.view(TASK, [], "solver") == [{"role": "user", "content": TASK.problem}]


def test_who_sees_what(domain):
    steps = ["First {{ step }}.", "Second,\non two lines."]
    teacher, checker = (domain.view(TASK, steps, role)[0]["content"] for role in domain.proposal_roles)
    assert TASK.problem in teacher and TASK.reference in teacher  # as written: no template within
    assert not any(step in teacher for step in steps)
    assert "[1] First {{ step }}.\n" in checker and "[2] Second,\non two lines.\n" in checker
    assert "2 steps" in checker and "the final answer, 5," in checker
    assert parse_intervention(checker).step == 0  # the form it is shown is the form that is read
    with pytest.raises(ValueError, match="math has no role 'judge': choose solver, teacher, checker, hinted"):
        domain.view(TASK, [], "judge")


def test_a_task_without_a_reference_is_named(domain):
    task = Task("t8", "math", "p", " ", "5")
    assert domain.view(task, [], "solver")[0]["content"] == "p"
    for role in domain.proposal_roles:
        with pytest.raises(ValueError, match="task t8 has no reference solution"):
            domain.view(task, ["x"], role)


def test_hundreds_of_steps_are_numbered_one_by_one(domain):
    r"""A number for each of step_ends, in order, none like a heading of the student's own."""
    text = "\n\n".join(f"Step {i % 7}: item\n[{i}] of ${i}$." if i % 3 else "---" for i in range(400))
    trace = attempt(domain, text)
    steps = domain.step_texts(trace)
    assert len(steps) == len(trace.step_ends) == 400
    shown = (
        domain.view(TASK, steps, "checker")[0]["content"]
        .partition("## Attempt")[2]
        .partition("## Your task")[0]
    )
    assert re.findall(r"(?:\A|\n\n)\[(\d+)\] ", shown) == [str(i) for i in range(1, 401)]
    assert shown.strip() == "\n\n".join(f"[{i}] {step}" for i, step in enumerate(steps, 1))


def test_templates_of_ones_own(tokenizer, tmp_path):
    (tmp_path / "teacher.jinja").write_text("T {{ problem }}|{{ reference }}|{{ answer }}")
    (tmp_path / "checker.jinja").write_text("C {{ steps | join(';') }}")
    own = domains.load("math", tokenizer, prompts=str(tmp_path))
    assert own.view(TASK, [], "teacher")[0]["content"] == f"T {TASK.problem}|{TASK.reference}|5"
    assert own.view(TASK, ["a", "b"], "checker")[0]["content"] == "C a;b"
    (tmp_path / "checker.jinja").write_text("{{ attempt }}")
    with pytest.raises(jinja2.UndefinedError, match="'attempt' is undefined"):
        domains.load("math", tokenizer, prompts=str(tmp_path)).view(TASK, [], "checker")
    (tmp_path / "checker.jinja").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"checker\.jinja: no such template; config.domain.knobs.prompts"
    ):
        domains.load("math", tokenizer, prompts=str(tmp_path))


def test_knobs_and_problems_are_asked_for_by_name(tokenizer, domain):
    with pytest.raises(
        ValueError,
        match="math has no knob 'colour': it has grader, answer, prompts, system, instruction, examples, separator",
    ):
        domains.load("math", tokenizer, colour=1)
    with pytest.raises(ValueError, match=r"math\.grader = 'lax': must be one of strict, tolerant"):
        domains.load("math", tokenizer, grader="lax")
    with pytest.raises(ValueError, match=r"set config.problems.train_file and config.problems.test_file"):
        domain.tasks("train", 0, 3)
    assert not domain.oracle and domain.splits == ()


# --- steps ---

PIECES = st.sampled_from(
    [
        "So",
        " x = 2",
        ".",
        "\n",
        "\n\n",
        ".\n\n",
        "\n\n\n",
        "$$\ny\n$$",
        "é",
        "√",
        "- item",
        "<|im_end|>",
        "\\boxed{4}",
    ]
)


def test_steps_round_trip(domain):
    @settings(max_examples=150, deadline=None)
    @given(st.lists(PIECES, max_size=14))
    def run(pieces):
        trace = attempt(domain, "", pieces=["So", *pieces])
        spans = list(zip(trace.step_starts(), trace.step_ends, strict=True))
        assert np.concatenate([trace.tokens[a:b] for a, b in spans]).tolist() == trace.response.tolist()
        assert len(domain.step_texts(trace)) == len(spans)
        whole = "".join(domain.tokenizer.decode(trace.tokens[a:b]) for a, b in spans)
        assert whole == domain.tokenizer.decode(trace.response)
        for a, b in spans[:-1]:
            assert re.search(r"\n\n+\Z", domain.tokenizer.decode(trace.tokens[a:b]))

    run()


@pytest.mark.parametrize("text", ["One.\n\nTwo $y$:\n\n$$z$$\n\nThree.", "One.\n\n- a\n- b", "One"])
def test_an_intervention_of_several_paragraphs_keeps_its_text(domain, text):
    """It is spliced as one step, as written. In what is continued from there each of its paragraphs is a step, the
    steps before it are where they were, and it ends where a step ends: a later location finds the same cuts."""
    trace = attempt(domain, "A.\n\nB.\n\nC \\boxed{4}")
    got = rollout.splice(trace, Intervention(1, text), domain.tokenizer)
    assert domain.tokenizer.decode(got.tokens[got.spliced :]) + got.begin == text + "\n\n"
    assert got.step_ends == (trace.step_ends[0], len(got.tokens))
    begun = np.concatenate([got.tokens, domain.tokenizer.encode(got.begin)]).astype(int)
    longer = np.concatenate([begun, domain.tokenizer.encode("So on.\n\nEnd \\boxed{5}")])
    ends = domain.steps(longer, got.prompt_len)
    assert ends[0] == trace.step_ends[0] and len(begun) in ends
    assert ends.index(len(begun)) == len(text.split("\n\n"))
    again = domain.steps(begun, got.prompt_len)
    assert again == ends[: len(again)]


# --- grading ---

ANSWERS = [
    ("so \\boxed{5}", "stop", "correct"),
    ("so \\boxed{4}, no: \\boxed{5}", "stop", "correct"),
    ("so \\boxed{4}", "stop", "wrong"),
    ("so 5", "stop", "no_answer"),
    ("so \\boxed{5} and then", "length", "correct"),
    ("so \\boxed{4} and then", "length", "truncated"),
    ("so \\boxed{", "length", "truncated"),
    ("so \\boxed{x=10/2}", "stop", "correct"),
    ("so \\boxed{5°}", "stop", "unparsable"),
]


def test_verdicts_together_and_alone(domain, tokenizer):
    traces = [attempt(domain, text, stop=stop) for text, stop, _ in ANSWERS]
    reasons = [reason for *_, reason in ANSWERS]
    together = domain.verify_many(traces)
    assert [v.reason for v in together] == reasons
    assert [v.passed for v in together] == [reason == "correct" for reason in reasons]
    assert domain.verify(traces[-1]) == together[-1] and rollout.verdicts(domain, traces) == together
    tolerant = domains.load("math", tokenizer, grader="tolerant").verify_many(traces)
    assert [v.reason for v in tolerant] == [*reasons[:-1], "correct"]
    rate, [one] = domain.disagreements(traces)
    assert rate == 1 / len(traces)
    assert (one.row, one.answer, one.gold) == (len(traces) - 1, "5°", "5")
    assert (one.strict.reason, one.tolerant.reason) == ("unparsable", "correct")
    assert domain.verify_many([]) == [] and domain.disagreements([]) == (0.0, [])


def test_an_answer_stands_where_the_knob_says(tokenizer):
    """Verdict, majority vote, disagreements and leaks look in the same place."""
    text = "so \\boxed{4}, but\n#### 60°\nand the answer is 6"
    for answer, found, gold in [("boxed", "4", "4"), ("hashes", "60°", "60"), ("phrase", "6", "6")]:
        domain = domains.load("math", tokenizer, answer=answer, grader="tolerant")
        trace = attempt(domain, text, Task("t", "math", "p", "r", gold))
        assert domain.answer(trace) == found and domain.verify(trace).reason == "correct"
        assert domain.disagreements([trace])[0] == (answer == "hashes")
    task = Task("t", "math", "p", "r", "7")
    for answer, leaking in [("boxed", False), ("hashes", True)]:
        assert domains.load("math", tokenizer, answer=answer).leaks(task, "so\n#### 60°") == leaking
    with pytest.raises(ValueError, match="answer"):
        domains.load("math", tokenizer, answer="last")


def test_a_task_without_an_answer_is_named(domain):
    with pytest.raises(ValueError, match="task t9 has no answer to grade against: ' '"):
        domain.verify(attempt(domain, "\\boxed{5}", Task("t9", "math", "p", "r", " ")))


def test_a_batch_of_rollouts_goes_to_the_graders_at_once(domain, monkeypatch):
    """One call for all the traces: a call each would leave all workers but one idle."""
    sizes, verify_batch = [], math.verify_batch

    def counted(pairs, *choices):
        sizes.append(len(pairs))
        return verify_batch(pairs, *choices)

    monkeypatch.setattr(math, "verify_batch", counted)
    rollout.verdicts(domain, [attempt(domain, "\\boxed{5}")] * 6)
    assert sizes == [6]


def test_a_domain_that_grades_one_by_one():
    class Plain(TextDomain):
        name = "plain"

        def verify(self, trace):
            return Verdict(trace == "right", 1.0, "correct" if trace == "right" else "wrong")

    traces = ["right", "left"]
    plain = Plain(tokenizer=None)
    assert rollout.verdicts(plain, traces) == [plain.verify(trace) for trace in traces]


# --- leaks ---

LEAKS = {
    "2": [
        "Then $f(1) = 2$.",
        "so x = 2.",
        "12 / 6 = 2",
        "which is 2.",
        "Therefore the answer is $2$",
        "$1+1 = 2 = 4/2$",
        "If we add them, $x = 2$",
        "we get exactly 2.",
        "$2 = x$",
        "x = 2.0",
        "\\boxed{7}",
        "\\boxed {7}",
        "\\fbox{7}",
        "\\boxed 7",
        "\\framebox{7}",
        "\\boxed{7",
        "an intermediate $g(3) = 2$, which has nothing to do with it",
    ],
    "\\frac{1}{2}": [
        "the probability is 0.5",
        "it gives $\\frac12$",
        "about 50\\% of them",
        "1/2 of the area",
        "$\\dfrac{2}{4}$",
    ],
    "1234": ["there are 1234 of them", "1,234 in all", "$n \\le 1234$"],
    "1023": ["$S = 2^{10}-1$", "$2^{10}-1$ pairs"],
    "-3": ["$x = -3$"],
    "0": ["$x - 3 = 0$"],
    "\\frac{\\sqrt{3}}{2}": ["$\\sin 60^\\circ = \\frac{\\sqrt 3}{2}$"],
    "(1,2)": ["$(1, 2)$ works", "$x = 1, y = 2$"],
    "x^2+1": ["so $f(x) = 1 + x^2$"],
    "180^\\circ": ["the sum is $\\pi$", "the angle is 180°"],
    "\\text{Evelyn}": ["So Evelyn is fastest"],
    "No": ["the answer is no"],
    "B": ["hence option (B)"],
}
KEEPS = {
    "2": [
        "so 12 and x^2 and a_2 and 2x and step 2 remain",
        "by step 2, $x^2+2x$ has $12$ roots",
        "Let $n = 2$. Then the sum is odd.",
        "For n = 2 the claim fails, so try n = 3.",
        "$n \\le 2$ is needed",
        "the 2 sides are equal",
        "$x$ is 2-adic, and $y$ is $2$ mod 3",
        "the value is 2 more than before",
        "x = 2y + 3, x = 25 and $x = 2^k$",
    ],
    "\\frac{1}{2}": [
        "$\\frac{1}{2}x + 3$",
        "the area $\\frac{1}{2} \\cdot b h$",
        "$\\frac{1}{20}$, 0.55 and 1/23",
    ],
    "1234": ["11234 and 12345 and 1,2345"],
    "2023": ["in base 2023 we have"],  # the problem names it
    "3": ["$x - 3 = 0$"],
    "-3": ["$x - 3 = 0$"],
    "\\frac{\\sqrt{3}}{2}": ["$\\sqrt{3}$ and 2"],
    "(1,2)": ["$x=1$ gives"],
    "\\pi": ["$\\pi r^2$"],
    "x^2+1": ["let $g(x)=x+1$"],
    "No": ["no solution is known"],
    "B": ["Let B be a set"],
}


def given_task(answer):
    return Task("t", "math", "What about 2023?", "", answer)


@pytest.mark.parametrize("answer", LEAKS)
def test_what_gives_the_answer_away(domain, answer):
    assert [text for text in LEAKS[answer] if not domain.leaks(given_task(answer), text)] == []


@pytest.mark.parametrize("answer", KEEPS)
def test_what_does_not(domain, answer):
    """The released filter drops each of these that holds the answer as a substring (trap 4)."""
    assert [text for text in KEEPS[answer] if domain.leaks(given_task(answer), text)] == []


def test_commonplace_answers():
    told = {
        answer: commonplace(given_task(answer))
        for answer in ("2", "-99", "$7$", "100", "2,023", "2023", "1/2", "x")
    }
    assert told == {
        "2": True,
        "-99": True,
        "$7$": True,
        "100": False,
        "2,023": True,
        "2023": True,
        "1/2": False,
        "x": False,
    }


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="$=\\{}()[].,;: \n12x+-*/^_\\pilet", max_size=60), st.booleans())
def test_statements_never_fail(text, anywhere):
    assert all(side == side.strip() and side for side in statements(text, anywhere))


@pytest.mark.parametrize(
    "text", ["=a" + "+a" * 20_000 + " =", "$" * 20_001, "1" * 20_000, "\\frac" * 9_000, "let x" * 9_000]
)
def test_a_long_step_takes_linear_time(text):
    """What backtracks needs hours."""
    assert all(statements(text, True))


def test_a_leaking_candidate_is_dropped_as_such(domain):
    trace = attempt(domain, "A.\n\nB.\n\nC \\boxed{4}")
    candidates = [
        Intervention(1, "So there are $10/2 = 5$ pairs."),
        Intervention(1, "Pair each digit with $9 - d$."),
    ]
    assert [fault(domain, trace, one) for one in candidates] == ["leaked", None]
