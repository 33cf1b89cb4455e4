"""The reasoning-gym domain: which problems, whose score, and that no answer stops or fools a run."""

import os
import re
import signal

import numpy as np
import pytest

import int_jax
from int_jax import domains, rollout, types
from int_jax.domains import reasoning_gym
from int_jax.domains.reasoning_gym import REFERENCES, SPLITS, worker
from int_jax.domains.reasoning_gym.process import DEADLINE_S, Process, shared
from int_jax.sampler import Sampling
from int_jax.tokenizer import Tokenizer
from int_jax.types import REASONS, Intervention, Reply, Task, Trace

pytest.importorskip("reasoning_gym")

# A default scorer, numbers, eval, partial scores, a generator that depends on the hash seed.
NAMES = ("gsm_symbolic", "chain_sum", "spiral_matrix", "caesar_cipher", "isomorphic_strings")


class Letters:
    """A tokenizer of single characters: any text, and the domain's own logic at its plainest."""

    stop_ids = (1,)

    def encode(self, text):
        return [ord(c) + 2 for c in text]

    def decode(self, ids):
        return "".join("" if i == 1 else chr(i - 2) for i in map(int, ids))

    text = decode

    def render(self, messages):
        return self.encode("".join(f"<{m['role']}>{m['content']}" for m in messages) + "<assistant>")

    def _piece(self, i):
        return self.decode([i])

    covering = Tokenizer.covering

    def reopen(self, ids, start=0, separator="\n\n"):
        return len(ids), ""  # of single characters a separator has one spelling

    step_ends = Tokenizer.step_ends


@pytest.fixture(scope="module", autouse=True)
def patient():
    """A score takes milliseconds, and on a busy machine may take more than its ten seconds."""
    shared(DEADLINE_S).deadline_s = 600.0


@pytest.fixture(scope="module")
def domain():
    one = domains.load("reasoning_gym", Letters(), tasks={name: {} for name in NAMES})
    yield one
    one.process.close()


@pytest.fixture(scope="module")
def some(domain) -> dict[str, Task]:
    """A problem of each data set, and one that is scored by sympy."""
    sympy = domains.load("reasoning_gym", Letters(), tasks={"puzzle24": {}})
    tasks = domain.tasks("train", 0, len(NAMES)) + sympy.tasks("train", 0, 1)
    return {task.meta["name"]: task for task in tasks}


def answered(domain, task: Task, text: str, stop: str = "stop") -> Trace:
    trace = rollout.append(
        rollout.open_trace(domain, task), domain.tokenizer.encode(text) + [1] * (stop == "stop")
    )
    return trace.replace(step_ends=domain.steps(trace.tokens, trace.prompt_len), stop=stop)


# --- problems ---


def test_tasks_are_distinct_in_turn_and_a_function_of_split_and_seed(domain, some):
    tasks = domain.tasks("hard_train", 3, 20)
    assert [t.meta["name"] for t in tasks] == list(NAMES) * 4
    assert len({t.problem for t in tasks}) == len({t.id for t in tasks}) == 20
    assert domain.tasks("hard_train", 3, 12) == tasks[:12] != domain.tasks("hard_train", 4, 12)
    for task in tasks:
        assert types.from_json(types.Task, types.to_json(task)) == task and task.domain == "reasoning_gym"
        assert task.problem.endswith(domain.knobs["instruction"])


def test_small_spaces_are_dealt_out_without_overlap_and_end_in_an_error(monkeypatch):
    """Forty problems in all, whatever the seed: what one split has, no other has, and asking for more is an error."""
    monkeypatch.setattr(reasoning_gym, "MAX_MISSES", 512)
    small = domains.load("reasoning_gym", Letters(), tasks={"count_bits": {"min_n": 1, "max_n": 40}})
    owned = {}
    for split in SPLITS:
        with pytest.raises(
            ValueError, match=rf"1000 problems of split '{split}' .*no more than \d+"
        ) as error:
            small.tasks(split, 0, 1000)
        count = int(re.search(r"no more than (\d+)", str(error.value))[1])
        owned[split] = {t.problem for t in small.tasks(split, 5, count)}
        assert len(owned[split]) == count > 0
    assert sum(map(len, owned.values())) == len(set().union(*owned.values())) == 40


def test_a_problem_is_made_again_in_any_process(domain, some):
    """Also by generators that iterate over sets: the worker's hash seed is fixed, whatever the caller's is."""
    fresh = Process()
    for task in some.values():
        whole = {key: task.meta[key] for key in ("name", "config", "seed", "index")}
        assert fresh.request("recall", **whole, expected=task.meta["digest"]) == {"same": True}
    fresh.close()


def test_what_cannot_be_is_refused_by_name():
    for knobs, match in (
        ({"task": {}}, "no knob 'task': it has tasks, instruction, with_reference"),
        ({"tasks": {}}, "names no data set"),
        ({"tasks": {"chain_sums": {}}}, "data set 'chain_sums' is none of the package's: choose from ab, "),
        ({"tasks": {"time_intervals": {}}}, "'time_intervals' depends on today's date"),
        ({"tasks": {"coin_flip": {}}}, "passes 0 for every problem"),
        (
            {"tasks": {"chain_sum": {}}, "with_reference": True},
            r"'chain_sum' has no worked answer .*gsm_symbolic",
        ),
    ):
        with pytest.raises(ValueError, match=match):
            domains.load("reasoning_gym", Letters(), **knobs)
    for config in ({"min_terms": 0}, {"no_such": 1}):
        with pytest.raises(ValueError, match=rf"'chain_sum' makes no problems with .*{next(iter(config))}"):
            domains.load("reasoning_gym", Letters(), tasks={"chain_sum": config}).tasks("train", 0, 1)


def test_unknown_roles_and_splits(domain, some):
    with pytest.raises(ValueError, match="no split 'test': choose one of train, hard_train"):
        domain.tasks("test", 0, 1)
    with pytest.raises(ValueError, match="no role 'critic'"):
        domain.view(some["chain_sum"], [], "critic")


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install reasoning-gym"):
        domains.load("reasoning_gym", Letters(), deadline_s=99.0)


# --- references and views ---


def test_references_lead_to_the_answer(domain):
    """For each data set of the table: its last line has every number and word of the answer."""
    worked = domains.load(
        "reasoning_gym", Letters(), tasks={name: {} for name in REFERENCES}, with_reference=True
    )
    for task in worked.tasks("train", 1, 4 * len(REFERENCES)):
        last = task.reference.splitlines()[-1]
        for word in re.findall(r"[0-9a-z.-]+", re.sub(r"\\d?frac", "", task.answer)):
            assert word in last, (task.meta["name"], task.answer, task.reference)
        [teacher] = worked.view(task, ["a", "$\\b$"], "teacher")
        assert task.problem in teacher["content"] and task.reference in teacher["content"]
        [checker] = worked.view(task, ["a", "$\\b$ {{ reference }}"], "checker")
        assert "[1] a\n\n[2] $\\b$ {{ reference }}\n" in checker["content"]
        [solver] = worked.view(task, ["a"], "solver")
        assert solver["content"] == task.problem


def test_the_checkers_example_is_in_the_format_that_is_parsed(domain):
    example = int_jax.parse_intervention(domain.prompts["checker"].render(steps=[]).split("If no step")[0])
    assert (example.step, example.text) == (2, "the new step")


@pytest.mark.parametrize("role", ["teacher", "checker"])
def test_int_on_a_problem_without_a_reference_is_an_error(domain, some, role):
    with pytest.raises(
        ValueError, match=r"task chain_sum-.*no worked answer .*RL only; InT can use base_conversion"
    ):
        domain.view(some["chain_sum"], ["a"], role)


# --- verdicts ---


@pytest.mark.parametrize("name", [*NAMES, "puzzle24"])
def test_the_package_scores_the_last_box(domain, some, name):
    task = some[name]
    right = answered(domain, task, f"\\boxed{{nothing}}\n\nso \\boxed{{ {task.answer}\n}}")
    assert domain.verify(right) == (True, 1.0, "correct")
    assert domain.verify(right.replace(stop="length")).reason == "correct"
    wrong = answered(domain, task, f"\\boxed{{{task.answer}}}\n\n\\boxed{{zzz}}")
    assert not domain.verify(wrong).passed


def test_verdicts_and_partial_scores(domain, some):
    task = some["caesar_cipher"]
    partial = domain.verify(answered(domain, task, f"\\boxed{{{task.answer} and more}}"))
    assert partial.reason == "wrong" and 0 < partial.score < 1 and not partial.passed
    for text, stop, verdict in (
        (task.answer, "stop", (False, 0.0, "no_answer")),
        ("\\boxed{ }", "stop", (False, 0.0, "no_answer")),
        (task.answer, "length", (False, 0.0, "truncated")),
        (f"\\boxed{{{task.answer}", "length", (False, 0.0, "truncated")),
        (f"\\boxed{{{task.answer} and more}}", "length", (False, partial.score, "truncated")),
        (f"\\boxed{{{task.answer * 5000}}}", "stop", (False, 0.0, "unparsable")),
    ):
        assert domain.verify(answered(domain, task, text, stop)) == verdict, text[:80]


# --- hostile answers ---

FILE = "written_by_an_answer"


@pytest.mark.parametrize("name", ["puzzle24", "spiral_matrix"])
def test_an_answer_is_not_run_as_code(domain, some, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    domain.process.close()  # its next process starts in the folder
    assert domain.verify(answered(domain, some[name], f"\\boxed{{{some[name].answer}}}")).passed
    pids = domain.process.pids()
    for answer in (
        f'__import__("os").system("touch {FILE}")',
        f"open('{FILE}', 'w')",
        f"[open('{FILE}', 'w') for x in '1']",
        f"eval(bytes([111,112,101,110]))('{FILE}','w')",
        "exit(0)",
        "ｅｘｅｃ(1)",
    ):
        verdict = domain.verify(answered(domain, some[name], f"\\boxed{{{answer}}}"))
        assert verdict == (False, 0.0, "unparsable"), answer
    assert list(tmp_path.iterdir()) == [] and domain.process.pids() == pids


@pytest.mark.parametrize(
    ("name", "answer", "may"),
    [
        ("simple_integration", "-34*x**8/15 - 5*sqrt(x)/4 + log(2*x) + C", True),
        ("simple_integration", "x.evalf(3)", False),
        ("countdown", "(94*4 - 61)/6", True),
        ("n_queens", "[['_', 'Q'], ['Q', '_']]", True),
        ("n_queens", "print('Q')", False),
        ("complex_arithmetic", "1 + 2i", True),
        ("complex_arithmetic", "NaN", False),
        ("gsm_symbolic", "open('x')", True),
    ],
)
def test_which_answers_a_scorer_gets_to_see(name, answer, may):
    assert worker.harmless(name, answer) is may


def test_an_answer_that_does_not_end_costs_one_verdict(domain, some):
    quick = domains.load("reasoning_gym", Letters(), tasks={"puzzle24": {}}, deadline_s=601.0)
    bomb, right = (
        answered(quick, some["puzzle24"], f"\\boxed{{{a}}}") for a in ("9**9**9**9", some["puzzle24"].answer)
    )
    assert quick.verify(right).passed
    quick.process.deadline_s = (
        0.5  # of a computation without an end: however busy the machine, the same verdict
    )
    assert quick.verify(bomb) == (False, 0.0, "timeout")
    quick.process.deadline_s = 600.0
    assert quick.verify(right).passed
    [running] = quick.process._staff
    os.killpg(running.process.pid, signal.SIGKILL)
    running.process.wait()
    assert quick.verify(right).passed
    quick.process.close()


def test_a_scorer_that_throws_says_unparsable(domain):
    primes = domains.load("reasoning_gym", Letters(), tasks={"prime_factorization": {}})
    [task] = primes.tasks("train", 0, 1)
    assert primes.verify(answered(primes, task, "\\boxed{two}")) == (False, 0.0, "unparsable")


def test_a_task_that_the_package_no_longer_makes_is_an_error(domain, some):
    task = some["chain_sum"]
    other = types.from_json(types.Task, {**types.to_json(task), "meta": {**task.meta, "digest": "0" * 16}})
    with pytest.raises(
        RuntimeError, match=r"task chain_sum-.*makes another problem here; install the version"
    ):
        domain.verify(answered(domain, other, "\\boxed{1}"))


# --- steps and leaks ---


def test_steps_come_back_and_interventions_splice(domain, some):
    trace = answered(domain, some["gsm_symbolic"], "One.\n\nTwo,\nand more.\n\n\n\\boxed{3}")
    assert domain.step_texts(trace) == ["One.", "Two,\nand more.", "\\boxed{3}"]
    spans = zip(trace.step_starts(), trace.step_ends, strict=True)
    assert np.concatenate([trace.tokens[a:b] for a, b in spans]).tolist() == trace.response.tolist()
    [guided] = rollout.splice([trace], [Intervention(1, "Better.")], domain.tokenizer, domain.separator)
    assert domain.tokenizer.text(guided.response) == "One.\n\nBetter.\n\n" and domain.replies([guided]) == [
        Reply()
    ]


@pytest.mark.parametrize(
    ("answer", "text", "leaks"),
    [
        ("12", "so we get 6 x 2 = 12.", True),
        ("12", "12 is the number we start from, then 5", False),
        ("12", "it is 112", False),
        ("1200", "in all 1,200", True),
        ("-3.50", "x = -3.5", True),
        ("12", "\\boxed{9}", True),
        ("Friday", "It falls on a friday.", True),
        ("up up left", "go  up up\nleft", True),
        ("A", "ABC", False),
        ("", "anything", False),
        ("C++ (x", "it is C++ (x", True),
    ],
)
def test_leaks(domain, answer, text, leaks):
    assert domain.leaks(Task("t", "reasoning_gym", "p", "r", answer), text) is leaks


# --- a real model ---


@pytest.mark.slow
def test_a_real_model_attempts_real_problems(tiny_dir):
    """It solves none of them: its vocabulary is arithmetic. But each attempt is judged, with a reason."""
    lm = int_jax.load(tiny_dir)
    knobs = {"tasks": {"basic_arithmetic": {"max_terms": 2}, "count_bits": {}}, "instruction": ""}
    domain = domains.load("reasoning_gym", lm.tokenizer, **knobs)
    prompts = [rollout.open_trace(domain, task) for task in domain.tasks("hard_train", 0, 4)]
    sampling = Sampling(max_new_tokens=24, stop_ids=lm.tokenizer.stop_ids)
    groups = rollout.continue_traces(
        lm.engine,
        lm.engine.decode_params(lm.params),
        domain,
        prompts,
        2,
        sampling,
        rollout.Stream("attempts"),
    )
    for trace in (trace for group in groups for trace in group):
        assert trace.verdict.reason in REASONS and trace.verdict.passed == (trace.verdict.score == 1)
        assert trace.sampled.sum() == len(trace.response) > 0 and trace.step_ends[-1] == len(trace.tokens)
    domain.process.close()
