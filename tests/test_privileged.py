"""What a policy is shown that the problem does not tell: marked, no more than asked for, never where it is measured."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_knobs import Story, Toy, Watch, configured

from experiments import arms
from experiments.configs import int as intervention
from int_jax import privileged, rollout
from int_jax.batching import intervention_weights, response_weights
from int_jax.domains import TextDomain
from int_jax.rows import AttemptRow
from int_jax.types import Intervention, Task, Verdict

TASK = Task("t", "arithmetic", "Start with 7, add 5, times 3.", "12, 36", "36")


# --- marks ---


def test_each_way_in_leaves_its_mark_and_what_follows_keeps_it(domain):
    solver = rollout.open_trace(domain, TASK)
    given_ = privileged.demonstration(domain, solver, domain.tokenizer.encode("7 + 5 = 12"), "reference")
    attempt = given_.replace(privileged=(), sampled=np.arange(len(given_.tokens)) >= solver.prompt_len)
    guided = rollout.splice(attempt, Intervention(0, "7 + 5 = 13"), domain.tokenizer)
    marks = {
        "the problem alone": (solver, ()),
        "with a hint": (rollout.open_trace(domain, TASK, "hinted"), ("hint",)),
        "with the reference": (rollout.open_trace(domain, TASK, "reflector", ["7 + 5 = 13"]), ("reference",)),
        "with the reference, as a proposer": (rollout.open_trace(domain, TASK, "teacher"), ("reference",)),
        "a given response": (given_, ("reference",)),
        "a splice": (guided, ("intervention",)),
        "a splice into what saw a hint": (
            rollout.splice(attempt.replace(privileged=("hint",)), Intervention(0, "x"), domain.tokenizer),
            ("hint", "intervention"),
        ),
        "two splices": (
            rollout.splice(guided, Intervention(0, "7 + 5 = 14"), domain.tokenizer),
            ("intervention",),
        ),
        "continued": (guided.extend(guided.tokens, guided.logp), ("intervention",)),
    }
    assert {name: trace.privileged for name, (trace, _) in marks.items()} == {
        name: mark for name, (_, mark) in marks.items()
    }


@pytest.mark.parametrize("mark", ["hint", "reference", "intervention"])
def test_no_score_is_counted_over_what_was_shown_more(domain, mark):
    trace = rollout.open_trace(domain, TASK).replace(verdict=Verdict(True, 1.0, "correct"))
    assert AttemptRow.of(TASK, [trace], 4).correct == 1
    with pytest.raises(
        ValueError, match=f"attempts, task t: the policy was shown the {mark}; measure it from"
    ):
        AttemptRow.of(TASK, [trace.replace(privileged=(mark,))], 4)


# --- how much ---


class Texts(TextDomain):
    name = "texts"


@given(st.text(alphabet="ab \n", max_size=40), st.sampled_from([0.1, 0.25, 0.5, 1.0]))
def test_a_hint_is_a_beginning_and_no_longer_than_asked(reference, share):
    task = Task("t", "texts", "p", reference, "a")
    domain = object.__new__(Texts)
    found = domain.hint(task, share)
    assert reference.startswith(found) or reference.lstrip().startswith(found)
    assert len(found) <= share * len(reference)
    assert share < 1 or found == reference.strip()  # the whole of it, where that is asked for


def test_an_arithmetic_hint_is_whole_values(domain):
    task = Task("t", "arithmetic", "p", "12, 36, 40, 41, 50, 60, 61, 70", "70")
    hints = {share: domain.hint(task, share) for share in (0.1, 0.25, 0.3, 0.5)}
    assert hints == {0.1: "", 0.25: "12, 36", 0.3: "12, 36", 0.5: "12, 36, 40, 41"}
    one = privileged.hint(domain, task, 0.25)
    assert (one.id, one.reference, one.answer) == ("t/hinted", "12, 36", "70")
    assert privileged.hint(domain, task, 0.1) is None
    [message] = domain.view(one, [], "hinted")
    assert message["content"] == "p\nReference:\nS1 12\nS2 36"


# --- a response that was given ---


@pytest.mark.parametrize("ended", [False, True])
def test_a_demonstration_is_trained_whole_and_ends_once(domain, ended):
    prompt, end = rollout.open_trace(domain, TASK), domain.tokenizer.end_of_turn
    ids = domain.tokenizer.encode("12, 36\n\n\\boxed{36}")
    trace = privileged.demonstration(domain, prompt, [*ids, *([end] if ended else [])], "reference")
    assert trace.tokens.tolist() == [*prompt.tokens.tolist(), *ids, end]
    assert not trace.sampled.any() and trace.stop == "stop" and domain.verify(trace).passed
    assert response_weights(trace).tolist() == [0.0] * len(prompt.tokens) + [1.0] * (len(ids) + 1)
    with pytest.raises(ValueError, match="no intervention was spliced"):
        intervention_weights(trace)


# --- a whole run of all arms ---


@pytest.fixture(scope="module")
def asked(tiny_dir, tmp_path_factory):
    """What a run of all arms asks the sampler, as (the stream's last word, its name, the prompt); what it does."""
    requests: list[tuple[str, str, tuple]] = []
    plain = Toy.generate

    def generate(self, params, some, *rest, **named):
        requests.extend((re.sub(r"\d", "", r.task.split("/")[-1]), r.task, r.prompt) for r in some)
        return plain(self, params, some, *rest, **named)

    patch = pytest.MonkeyPatch()
    patch.setattr(Toy, "generate", generate)
    methods = intervention.methods()
    config = configured(
        {
            "arms": methods.arms,
            "attempts.keep_right": methods.attempts.keep_right,
            "guided.keep": True,
            "attempts.tries": 6,
            "problems.train": 12,
            "rl.updates": 12,
            "problems.hard": ("train",),
            "domain.knobs.lengths": (4, 8),
            "export": (),
        }
    )
    workdir = Watch(patch, tiny_dir, tmp_path_factory.mktemp("arms")).run(config, story := Story())
    patch.undo()
    return requests, story, workdir


def test_nothing_privileged_reaches_a_policy_that_is_measured(asked, tokenizer):
    """The attempts of the first round and every evaluation, of every arm's policies, see the problem alone."""
    requests, _, _ = asked
    kinds = {kind for kind, _, _ in requests}
    assert {"attempts", "eval", "guided", "rewrites", "update", "round"} <= kinds
    for _, name, prompt in (one for one in requests if one[0] in ("eval", "attempts")):
        text = tokenizer.text(prompt)
        problem = re.search(r"Start with [^.]*\.", text)[0]
        assert [*prompt] == tokenizer.render([{"role": "user", "content": problem}]), name


def test_a_hint_in_a_prompt_is_a_quarter_of_the_reference_at_most(asked, tokenizer):
    requests, _, _ = asked
    groups = {(name, prompt) for kind, name, prompt in requests if kind == "update"}
    hinted = {prompt for name, prompt in groups if "/hinted/" in name}
    assert hinted
    for prompt in hinted:
        text = tokenizer.text(prompt)
        length = len(re.findall("add|take|times", re.search(r"Start with [^.]*\.", text)[0]))
        assert 0 < len(re.findall(r"S\d+ \d+", text)) <= length / 4
    assert not any("Reference" in tokenizer.text(prompt) for name, prompt in groups if "/hinted/" not in name)


def test_every_arm_makes_its_policies_or_says_why_not(asked):
    _, story, workdir = asked
    made = {path.parent.name for path in workdir.glob("*/scalars")}
    policies = [name for name in arms.policies(arms.names()) if name != "base"]
    assert {*policies} <= made
    assert [kind for kind, _ in story.items][-1] == "results"
