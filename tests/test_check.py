"""Every domain and model family keeps its contract, and the checks find what is wrong with one that does not."""

import dataclasses
import pathlib
import re

import pytest

from int_jax import check, domains, models
from int_jax.check import byte_tokenizer
from int_jax.check import domain as contract
from int_jax.check import family as families
from int_jax.check.__main__ import main
from int_jax.domains import TextDomain, said
from int_jax.tokenizer import Tokenizer
from int_jax.types import Task, Verdict

# Problems for domains that have none of their own.
PROBLEMS = [
    Task("m1", "math", "How many pairs of digits sum to $9$?", "Pair $d$ with $9-d$.\n\n$10 / 2 = 5$.", "5"),
    Task("m2", "math", "Simplify $2/8$.", "Divide by $2$: $2/8 = 1/4$.", "\\frac14"),
]


@pytest.fixture(scope="module")
def letters(tmp_path_factory):
    return Tokenizer(byte_tokenizer.save(tmp_path_factory.mktemp("bytes")))


@pytest.fixture(scope="module", params=domains.names())
def subject(request, letters):
    pytest.importorskip("reasoning_gym")
    problems = [] if domains.find(request.param).splits else PROBLEMS
    return contract.subject(request.param, letters, problems)


@pytest.mark.parametrize("one", contract.CHECKS, ids=lambda one: one.__name__)
def test_every_domain_keeps_the_contract(subject, one):
    assert check.faults(one, subject) == []


# --- a domain that breaks it ---


class Sums(TextDomain):
    """A whole domain in a few lines."""

    name = "sums"
    splits = ("hard_train", "hard_validation", "hard_test")

    def tasks(self, split, seed, count):
        first = 100 * self.splits.index(split)
        return [
            Task(
                f"{split}-{k}",
                "sums",
                f"Add {first + k} and 7.",
                f"It is {first + k + 7}.",
                str(first + k + 7),
            )
            for k in range(count)
        ]

    def view(self, task, steps, role):
        lines = [f"S{i} {step}" for i, step in enumerate(steps, 1)]
        told = {"solver": [], "teacher": [task.reference], "checker": lines}
        if role not in told:
            raise ValueError(f"sums has no role {role!r}")
        return [said("user", "\n".join([task.problem, *told[role]]))]


class Lax(Sums):
    def __init__(self, tokenizer, **knobs):
        super().__init__(tokenizer)


class Missing(Sums):
    splits = ("train",)

    def tasks(self, split, seed, count):
        return [Task(f"t{k}", "sums", f"Add {k} and 7.", "", str(k + 7)) for k in range(count)]


class Overlap(Sums):
    def tasks(self, split, seed, count):
        own = super().tasks(split, seed, count)
        return [dataclasses.replace(task, problem=f"Add {k}.") for k, task in enumerate(own)]


class Restless(Sums):
    asked = 0

    def tasks(self, split, seed, count):
        Restless.asked += 1
        return [dataclasses.replace(t, meta={"asked": self.asked}) for t in super().tasks(split, seed, count)]


class Few(Sums):
    def tasks(self, split, seed, count):
        return super().tasks(split, seed, 3)


class SameIds(Sums):
    def tasks(self, split, seed, count):
        return [dataclasses.replace(t, id=f"t{k}") for k, t in enumerate(super().tasks(split, seed, count))]


class NoJson(Sums):
    def tasks(self, split, seed, count):
        return [dataclasses.replace(task, meta={"at": (1, 2)}) for task in super().tasks(split, seed, count)]


class Foreign(Sums):
    def tasks(self, split, seed, count):
        return [dataclasses.replace(task, domain="math") for task in super().tasks(split, seed, count)]


class Shown(Sums):
    def view(self, task, steps, role):
        return [said("user", f"{super().view(task, steps, role)[0]['content']} ({task.answer})")]


class Blind(Sums):
    def view(self, task, steps, role):
        return super().view(dataclasses.replace(task, reference=""), steps, role)


class Stepless(Sums):
    def view(self, task, steps, role):
        return super().view(task, [], role)


class Anyone(Sums):
    def view(self, task, steps, role):
        return super().view(task, steps, role if role in self.proposal_roles else "solver")


class Answered(Sums):
    def view(self, task, steps, role):
        return [*super().view(task, steps, role), said("assistant", "Well,")]


class Strict(Sums):
    def verify(self, trace):
        return Verdict(False, 0.0, "wrong")


class Lenient(Sums):
    def verify(self, trace):
        return Verdict(True, 1.0, "correct")


class Worded(Sums):
    def verify(self, trace):
        found = super().verify(trace)
        return found if found.passed else Verdict(False, 0.0, "bad")


class Infinite(Sums):
    def verify(self, trace):
        found = super().verify(trace)
        return found if found.passed else Verdict(False, float("nan"), "wrong")


class Picky(Sums):
    def faults(self, tasks):
        return ["too hard"] * len(tasks)


class Hasty(Sums):
    def faults(self, tasks):
        return []


class Fragile(Sums):
    def verify(self, trace):
        int(self.answer(trace))
        return super().verify(trace)


class Silent(Sums):
    def leaks(self, task, text):
        return False


class Loud(Sums):
    def leaks(self, task, text):
        return super().leaks(task, text) or None


class Uncounted(Sums):
    def answer(self, trace):
        return None


class Short(Sums):
    def steps(self, tokens, start=0):
        return super().steps(tokens, start)[:-1]


class Backwards(Sums):
    def steps(self, tokens, start=0):
        return super().steps(tokens, start)[::-1]


class Whole(Sums):
    """One step in all, but the last one, once there are three: other steps when the response is cut short."""

    def steps(self, tokens, start=0):
        ends = super().steps(tokens, start)
        return ends if len(ends) < 3 else ends[1:]


class Shouting(Sums):
    def step_texts(self, trace):
        return [text.upper() for text in super().step_texts(trace)]


class Textual(Sums):
    def replies(self, traces):
        return ["go on"] * len(traces)


class Careless(Sums):
    def verify_many(self, traces):
        return [self.verify(trace) for trace in traces if trace.stop == "stop"]


class Hidden(Sums):
    def first_error(self, trace):
        return None if self.verify(trace).passed else 0


class Nervous(Sums):
    oracle = True

    def first_error(self, trace):
        return 0


class Gainful(Sums):
    def regrets(self, trace):
        return [-1.0] * len(trace.step_ends)


class Speechless(Sums):
    oracle = True

    def first_error(self, trace):
        return None if self.verify(trace).passed else 0

    def correction(self, trace, step):
        return ""


@pytest.mark.parametrize(
    ("build", "one", "words"),
    [
        (Lax, "knobs", "no_such_knob=1) is taken"),
        (Missing, "splits", "lacks hard_train, hard_validation, hard_test"),
        (Overlap, "tasks", "the same problem is in split 'hard_train'"),
        (Restless, "tasks", "tasks('hard_train', 0, 6) differs when it is asked again"),
        (Few, "tasks", "tasks('hard_train', 0, 6) gives 3"),
        (SameIds, "tasks", "another problem has this id"),
        (NoJson, "tasks", "is another one after JSON"),
        (Foreign, "tasks", "has the domain 'math', and the domain's name is 'sums'"),
        (Shown, "view", "changes with reference or answer"),
        (Blind, "view", "no role of proposal_roles sees the reference"),
        (Stepless, "view", "does not show the attempt's steps"),
        (Anyone, "view", "view(task, [], 'stranger') is answered"),
        (Answered, "view", "does not end in a message of the user"),
        (Strict, "solution", "verify calls solution('hard_train-0') 'wrong': 'It is 7.\\n\\n\\\\boxed{7}'"),
        (Silent, "solution", "leaks does not see the answer in solution('hard_train-0')"),
        (Uncounted, "solution", "answer finds none in solution"),
        (Lenient, "solution", "verify passes the solution of 'hard_train-1' as one of 'hard_train-0'"),
        (Picky, "faults", "faults says of 'hard_train-0': too hard"),
        (Hasty, "faults", "faults gives 0 entries for 6 tasks"),
        (Lenient, "wrong_responses", "it must not pass"),
        (Worded, "wrong_responses", "reason='bad')"),
        (Infinite, "wrong_responses", "has the score nan"),
        (Fragile, "wrong_responses", "raises TypeError: int() argument must be"),
        (Loud, "wrong_responses", "is None: True or False"),
        (Short, "steps", "increasing offsets in"),
        (Backwards, "steps", "increasing offsets in"),
        (Whole, "steps", "steps of 'one\\n\\n```"),
        (Shouting, "steps", "'ONE', which is not what comes next in the response"),
        (Textual, "reply", "replies gives 'go on': Reply(text, tags"),
        (Careless, "many", "verify_many gives"),
        (Hidden, "oracle", "first_error gives 0, and oracle is False"),
        (Nervous, "oracle", "first_error of the solution of 'hard_train-0' is 0"),
        (Gainful, "oracle", "regrets gives [-1.0"),
        (Speechless, "oracle", "correction(trace, 0) is empty"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_a_check_finds_what_is_wrong(monkeypatch, letters, build, one, words):
    monkeypatch.setattr(domains, "find", lambda name: build)
    if build is Restless:
        monkeypatch.setattr(Restless, "asked", 0)
    found = check.faults(getattr(contract, f"check_{one}"), contract.subject("sums", letters, []))
    assert any(words in fault for fault in found), found
    assert all("\n" not in fault for fault in found)


def test_the_domain_they_break_is_whole(monkeypatch, letters):
    monkeypatch.setattr(domains, "find", lambda name: Sums)
    subject = contract.subject("sums", letters, [])
    assert [fault for one in contract.CHECKS for fault in check.faults(one, subject)] == []


# --- the command ---


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["domain", "chess"], "int_jax: no domain 'chess' in int_jax/domains: choose one of arithmetic"),
        (["domain", "lab/chess.py"], "int_jax: no domain 'lab/chess.py': there is no file"),
        (["domain", "math"], "int_jax: the domain math has no problems of its own .* give --problems FILE"),
        (["proposer", "lab.p"], "int_jax: no proposer 'lab.p': there is no module 'lab' in"),
    ],
)
def test_what_is_not_there_is_said_in_one_line(capsys, arguments, words):
    assert main(arguments) == 1
    out, err = capsys.readouterr()
    assert not out and len(err.splitlines()) == 1
    assert re.match(words, err), err


# --- model families ---


CHEAP = ("config", "refusals", "names")  # weights and logits: tests/test_families.py, of every switch


@pytest.mark.parametrize("name", models.families())
@pytest.mark.parametrize("one", CHEAP)
def test_every_family_keeps_the_contract(name, one):
    assert check.faults(getattr(families, f"check_{one}"), families.subject(name, {})) == []


FAMILY = (pathlib.Path(models.__path__[0]) / "qwen3.py").read_text()


@pytest.mark.parametrize(
    ("old", "new", "one", "words"),
    [
        ("**hf.sizes(data)", '**hf.sizes(data) | {"ffw": 5}', "config", "makes intermediate_size = 37 to ffw = 5"),
        ('"model_type": "qwen3"', '"model_type": "qwen2"', "config", "writes model_type = 'qwen2'"),
        ("rope_theta=theta", "rope_theta=theta * 2", "config", "config_from_hf(config_to_hf(config)) is"),
        ('    hf.only(data, "hidden_act", "silu")\n', "", "refusals", "takes {'hidden_act': 'swish_and_squeeze'}"),
        (" | hf.QK_NORM_NAMES", "", "names", "NAMES has no entry for layer_{}/k_norm_K, layer_{}/q_norm_K"),
        ("hf.QK_NORM_NAMES", '{k: "x.{}" for k in hf.QK_NORM_NAMES}', "names", "several parameters the tensor x.0"),
    ],
    ids=str,
)  # fmt: skip
def test_a_family_of_ones_own_is_checked_from_its_file(tmp_path, old, new, one, words):
    assert old in FAMILY, old
    (tmp_path / "qwen3.py").write_text(FAMILY.replace(old, new))
    subject = families.subject(str(tmp_path / "qwen3.py"), {})
    found = {name: check.faults(getattr(families, f"check_{name}"), subject) for name in CHEAP}
    assert any(words in fault for fault in found[one]), found


@pytest.mark.slow
@pytest.mark.parametrize("theta", ["theta", "theta / 9"])
def test_a_family_of_ones_own_against_pytorch(tmp_path, theta):
    (tmp_path / "qwen3.py").write_text(FAMILY.replace("rope_theta=theta", f"rope_theta={theta}"))
    subject = families.subject(str(tmp_path / "qwen3.py"), {})
    found = check.faults(families.check_logits, subject)
    if theta == "theta":
        assert found == [] and check.faults(families.check_weights, subject) == []
    else:
        assert "log-probabilities differ from transformers' by" in found[0]
