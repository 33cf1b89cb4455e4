"""Every proposer in the package obeys one contract; then what each of them does by itself."""

import jax
import numpy as np
import pytest
from sessions import Batches

from int_jax import check, domains, proposers, rollout
from int_jax.check import proposer as contract
from int_jax.check.byte_tokenizer import save
from int_jax.check.domain import trace_of
from int_jax.check.proposer import traces_of
from int_jax.domains import arithmetic
from int_jax.domains.arithmetic import Arithmetic
from int_jax.proposers import likelihood_ratio
from int_jax.sampler import Request, Response, Sampling
from int_jax.tokenizer import Tokenizer
from int_jax.types import Intervention, Task, Trace

NAMES = [
    name for name in proposers.names() if name != "teacher"
]  # test_teacher.py holds it to the same contract
SAMPLING = Sampling(max_new_tokens=24, stop_ids=(2,))


class TwoTurns(Arithmetic):
    """A domain that asks for a guided solution before the check, as the paper does."""

    proposal_roles = ("teacher", "checker")


@pytest.fixture(scope="module")
def params(engine):
    fresh = jax.device_get(jax.jit(engine.model.init)(jax.random.key(5)))
    return engine.decode_params({**fresh, "embed_VD": fresh["embed_VD"] * 6})  # so that the context matters


def attempt(domain, task, text, k=0) -> Trace:
    return trace_of(domain, task, text).replace(key=(0, k))


@pytest.fixture(scope="module")
def traces(domain):
    return traces_of(domain)


class Scripted:
    """An engine whose model says what `say(prompt text, sample)` says, as text or ids; remembers what it was asked."""

    def __init__(self, tokenizer, say, max_len=10**6):
        self.tokenizer, self.say, self.max_len, self.asked = tokenizer, say, max_len, []

    def session(self, params, sampling, tokenizer=None):
        return Batches(self, params, sampling, tokenizer)

    def generate(self, params, requests: list[Request], sampling, progress=lambda done: None, tokenizer=None):
        self.asked.append((requests, sampling))
        out = []
        for request in requests:
            said = self.say(self.tokenizer.decode(request.prompt), request.sample)
            ids = (
                [*self.tokenizer.encode(said), *self.tokenizer.stop_ids[:1]]
                if isinstance(said, str)
                else said
            )
            tokens = np.array([*request.prompt, *ids], np.int32)
            out.append(Response(tokens, np.zeros(len(tokens), np.float32), "stop"))
            progress(1)
        return out


def propose(
    name, engine, params, domain, traces, samples=2, max_prompt=400, key=0, sampling=SAMPLING, tokenizer=None
):
    drops = proposers.Drops()
    function = proposers.load(name)
    knobs = {"samples": samples, "sampling": sampling, "max_prompt": max_prompt, "drops": drops}
    knobs |= {"tokenizer": tokenizer} if tokenizer else {}
    return function(engine, params, domain, traces, key, **knobs), drops


# --- the contract ---


def test_the_package_holds_what_the_paper_needs():
    assert {"self_verify", "likelihood_ratio", "oracle"} <= set(NAMES)
    with pytest.raises(
        ValueError, match="no proposer 'majority' .*: choose one of " + ", ".join(proposers.names())
    ):
        proposers.load("majority")
    with pytest.raises(ValueError, match="no proposer 'parse'"):
        proposers.load("parse")


@pytest.mark.parametrize("one", contract.CHECKS, ids=lambda one: one.__name__)
@pytest.mark.parametrize("name", NAMES)
def test_every_proposer_keeps_the_contract(name, one, engine, params, domain, traces):
    subject = contract.Subject(proposers.load(name), engine, params, domain, traces)
    assert check.faults(one, subject) == []


@pytest.mark.parametrize("name", NAMES)
def test_an_intervention_says_whose_it_is(name, engine, params, domain, traces):
    found, _ = propose(name, engine, params, domain, traces)
    assert {one.source for one in found if one} <= {name}


# --- oracle ---


def test_the_oracle_is_the_first_error_and_its_correction(domain):
    traces = traces_of(domain, 120, seed=3)
    found, drops = propose("oracle", None, None, domain, traces)
    for i, (one, trace) in enumerate(zip(found, traces, strict=True)):
        step = domain.first_error(trace)
        if step is None:
            assert one is None and drops[i] == "not_located"
        elif domain.leaks(trace.task, domain.correction(trace, step)):
            assert one is None and drops[i] == "leaked"
        else:
            assert one == Intervention(step, domain.correction(trace, step), source="oracle")
    assert {"leaked", "not_located"} == set(drops.values()) and len(drops) < len(traces) / 2


# --- self_verify ---


def right_block(domain, traces):
    """A checker that answers with the oracle's block, found by the attempt in its view."""
    answers = {}
    for trace in traces:
        chain = arithmetic.parse_problem(trace.task.problem)
        view = domain.view(trace.task, domain.step_texts(trace), "checker")[0]["content"]
        answers[view] = arithmetic.checker_response(chain, domain.step_texts(trace))
    return answers


@pytest.mark.parametrize("name", ["random_step", "last_step"])
def test_controls_write_the_oracles_step_elsewhere(domain, traces, name):
    found, drops = propose(name, None, None, domain, traces)
    again, _ = propose(name, None, None, domain, traces[::-1])
    assert again[::-1] == found  # whatever else is asked
    where = set()
    for i, (trace, one) in enumerate(zip(traces, found, strict=True)):
        [tried] = drops.tried[i]
        where.add((tried["step"], len(trace.step_ends)))
        assert tried["text"] == domain.correction(trace, tried["step"])
        assert (one is None) == (drops.get(i) == "leaked")
        if name == "last_step":
            assert tried["step"] == len(trace.step_ends) - 1
    assert name == "last_step" or len({step for step, _ in where}) > 2


def test_a_perfect_checker_is_the_oracle(domain, traces):
    answers = right_block(domain, traces)
    engine = Scripted(
        domain.tokenizer, lambda prompt, k: next(a for view, a in answers.items() if view in prompt)
    )
    found, drops = propose("self_verify", engine, None, domain, traces)
    best, best_drops = propose("oracle", None, None, domain, traces)
    assert [one and (one.step, one.text) for one in found] == [one and (one.step, one.text) for one in best]
    assert [one.raw for one in found if one] == [
        answers[domain.view(t.task, domain.step_texts(t), "checker")[0]["content"]]
        for t, one in zip(traces, found, strict=True)
        if one
    ]
    assert set(drops) == set(best_drops)


def test_later_candidates_are_retries(domain, traces):
    """Trap 5: whatever a candidate lacks costs that candidate alone; the first one that survives is taken."""
    block = '<intervention>{{"location": {}, "content": "{}"}}</intervention>'.format
    said = [
        "nothing",
        block("nowhere", "x"),
        block(99, "x"),
        block(1, ""),
        block(1, "\\\\boxed{1}"),
        block(1, "k5"),
        block(1, "k6"),
    ]
    engine = Scripted(domain.tokenizer, lambda prompt, k: said[k])
    found, drops = propose("self_verify", engine, None, domain, traces[:3], samples=7)
    assert [one.text for one in found] == ["k5"] * 3 and drops == {}
    faults = ["unparsed", "unparsed", "out_of_range", "empty", "leaked", "", ""]
    for told in drops.tried.values():
        assert [(c["raw"], c["fault"]) for c in told] == [*zip(said, faults, strict=True)]
        assert [c["step"] for c in told] == [None, None, 98, 0, 0, 0, 0]
    for samples, reason in ((2, "unparsed"), (5, "unparsed")):
        found, drops = propose("self_verify", engine, None, domain, traces[:3], samples=samples)
        assert found == [None] * 3 and drops == dict.fromkeys(range(3), reason)


def test_the_check_sees_the_whole_conversation(domain, traces):
    """Trap 1: what is asked is the rendered view to its last token, which opens the assistant's turn."""
    engine = Scripted(domain.tokenizer, lambda prompt, k: "no")
    propose("self_verify", engine, None, domain, traces, samples=3, key=77)
    [(requests, sampling)] = engine.asked
    assert sampling.seed == 77
    expected = [
        tuple(domain.tokenizer.render(domain.view(t.task, domain.step_texts(t), "checker")))
        for t in traces
        for _ in range(3)
    ]
    assert [r.prompt for r in requests] == expected
    names = [(r.task, r.sample) for r in requests]
    assert len(set(names)) == len(names)  # each candidate has a random stream of its own


def test_two_turns_keep_the_first_answer_as_the_assistants(tokenizer, traces):
    domain = TwoTurns(tokenizer)

    def say(prompt, k):
        return "no block" if "Attempt:" in prompt else f"guided {prompt.count('add ')}\n\n\\boxed{{1}}"

    engine = Scripted(tokenizer, say)
    propose("self_verify", engine, None, domain, traces, samples=4)
    (first, _), (second, _) = engine.asked
    assert len(first) == len(traces) and len(second) == 4 * len(traces)
    for i, trace in enumerate(traces):
        teacher = domain.view(trace.task, [], "teacher")
        checker = domain.view(trace.task, domain.step_texts(trace), "checker")
        assert first[i].prompt == tuple(tokenizer.render(teacher))
        answer = {"role": "assistant", "content": say(tokenizer.decode(first[i].prompt), 0)}
        for request in second[4 * i : 4 * i + 4]:
            assert request.prompt == tuple(tokenizer.render([*teacher, answer, *checker]))
            assert tokenizer.decode(request.prompt).count("<|im_start|>") == 4
    assert not {(r.task, r.sample) for r in first} & {(r.task, r.sample) for r in second}


@pytest.mark.parametrize("two_turns", [False, True])
def test_a_prompt_that_is_too_long_is_noted_and_never_cut(tokenizer, traces, two_turns):
    """Trap 1: the released code cuts it to its first 30,000 tokens, and the end of the attempt is lost."""
    domain = (TwoTurns if two_turns else Arithmetic)(tokenizer)
    engine = Scripted(tokenizer, lambda prompt, k: "\\boxed{1}")
    propose("self_verify", engine, None, domain, traces, samples=1)
    whole = [r.prompt for r in engine.asked[-1][0]]
    limit = sorted(map(len, whole))[len(whole) // 2]
    engine.asked.clear()
    _, drops = propose("self_verify", engine, None, domain, traces, samples=1, max_prompt=limit)
    long = {i for i, prompt in enumerate(whole) if len(prompt) > limit}
    assert 0 < len(long) < len(whole) and {i for i, reason in drops.items() if reason == "too_long"} == long
    assert [r.prompt for r in engine.asked[-1][0]] == [p for i, p in enumerate(whole) if i not in long]
    assert all(len(r.prompt) <= limit for requests, _ in engine.asked for r in requests)


def test_a_first_turn_that_is_too_long_is_noted_and_not_asked(tokenizer, traces):
    domain = TwoTurns(tokenizer)
    turns = [len(tokenizer.render(domain.view(t.task, [], "teacher"))) for t in traces]
    limit = sorted(turns)[len(turns) // 2]
    engine = Scripted(tokenizer, lambda prompt, k: "\\boxed{1}")
    _, drops = propose("self_verify", engine, None, domain, traces, samples=1, max_prompt=limit)
    (first, _), *_ = engine.asked
    assert [len(r.prompt) for r in first] == [n for n in turns if n <= limit]
    assert 0 < len(first) < len(traces)
    assert all(drops[i] == "too_long" for i, n in enumerate(turns) if n > limit)


@pytest.mark.parametrize("two_turns", [False, True])
def test_prompt_and_response_fit_the_models_positions(tokenizer, traces, two_turns):
    """They would run past them, where the rotary angles were never trained (max_position_embeddings)."""
    domain = (TwoTurns if two_turns else Arithmetic)(tokenizer)
    engine = Scripted(tokenizer, lambda prompt, k: "\\boxed{1}", max_len=120)
    _, drops = propose("self_verify", engine, None, domain, traces, samples=1)
    asked = [r for requests, _ in engine.asked for r in requests]
    assert asked and all(len(r.prompt) + SAMPLING.max_new_tokens <= 120 for r in asked)
    short = Scripted(tokenizer, engine.say)
    _, limited = propose("self_verify", short, None, domain, traces, samples=1, max_prompt=120 - 24)
    assert drops == limited and [r for r, _ in engine.asked] == [r for r, _ in short.asked]
    assert "too_long" in drops.values()


def test_positions_hold_likelihood_ratio_too(monkeypatch, domain, traces):
    engine = located(monkeypatch, domain.tokenizer, 0, "k\n\n")
    lengths = [len(rollout.open_trace(domain, t.task, "teacher").tokens) for t in traces]
    middle = sorted(lengths)[len(lengths) // 2]
    engine.max_len = middle + SAMPLING.max_new_tokens
    found, drops = propose("likelihood_ratio", engine, None, domain, traces)
    [(requests, _)] = engine.asked
    assert requests and all(len(r.prompt) <= middle for r in requests)
    assert drops == {i: "too_long" for i, n in enumerate(lengths) if n > middle} and drops
    assert {i for i, one in enumerate(found) if one is None} == drops.keys()


# --- free text, and a proposer that is another model ---

PROBLEM = Task("m1", "math", "How many pairs of digits sum to $9$?", "$\\frac{10}{2} = 5$.", "5")
ATTEMPT = "Digits: $0..9$.\n\nSo there are\n$9$ of them.\n\nThe answer: \\boxed{4}"
CHECK = r"""### 1. Verification log
[1] "Digits" holds. [2] "$9$ of them" fails.
### 3. Draft
<intervention>{"location": 1, "content": "a draft"}</intervention>
### 5. Intervention
```json
<intervention>
{"location": "Step-2", "content": "Pair $d$ with $9-d$:\n\n$$d \mapsto 9 - d,$$\n\nwhich has no fixed point.",}
</intervention>
```"""


@pytest.fixture(scope="module")
def two_models(tmp_path_factory):
    """The mathematics domain over the policy's tokenizer, and a proposer's tokenizer: other ids, another template."""
    chat = "{% for m in messages %}[{{ m.role }}]{{ m.content }}<|im_end|>{% endfor %}[assistant]"
    policy, other = (tmp_path_factory.mktemp(name) for name in ("policy", "proposer"))
    save(policy), save(other, shift=100, chat=chat)
    return domains.load("math", Tokenizer(policy)), Tokenizer(other)


def test_a_conversation_in_free_text(two_models):
    domain, _ = two_models
    trace = attempt(domain, PROBLEM, ATTEMPT)

    def say(prompt, k):
        return (
            "Guided:\n\n\\boxed{5}"
            if "<|im_start|>user\nNow review" not in prompt
            else CHECK
            if k
            else "no block"
        )

    engine = Scripted(domain.tokenizer, say)
    [one], drops = propose("self_verify", engine, None, domain, [trace], max_prompt=20_000)
    text = "Pair $d$ with $9-d$:\n\n$$d \\mapsto 9 - d,$$\n\nwhich has no fixed point."
    assert one == Intervention(1, text, source="self_verify", raw=CHECK) and drops == {}
    guided = rollout.splice(trace, one, domain.tokenizer)
    assert domain.tokenizer.text(guided.response) + guided.begin == f"Digits: $0..9$.\n\n{text}\n\n"
    for bad, reason in {
        CHECK.replace("Pair $d$", "So $10/2 = 5$: pair $d$"): "leaked",
        CHECK.replace("Step-2", "Step-4"): "out_of_range",
        '<intervention>{"location": "none", "content": ""}</intervention>': "empty",
        CHECK.replace("</intervention>", ""): "unparsed",
    }.items():
        engine = Scripted(domain.tokenizer, lambda prompt, k, bad=bad: bad)
        assert propose("self_verify", engine, None, domain, [trace], max_prompt=20_000) == (
            [None],
            {0: reason},
        )


def test_the_proposer_may_have_another_tokenizer(two_models):
    """What the proposer reads and writes goes through its own tokenizer, the attempt through the policy's."""
    domain, other = two_models
    traces = [attempt(domain, PROBLEM, ATTEMPT, k) for k in range(2)]
    assert domain.tokenizer.encode("Digits") != other.encode("Digits")
    engine = Scripted(other, lambda prompt, k: CHECK if "Now review" in prompt else "Guided.")
    found, drops = propose("self_verify", engine, None, domain, traces, max_prompt=20_000, tokenizer=other)
    assert [one.step for one in found] == [1, 1] and drops == {}
    (first, _), (second, sampling) = engine.asked
    teacher, checker = (
        domain.view(PROBLEM, domain.step_texts(traces[0]), r)[0]["content"] for r in domain.proposal_roles
    )
    assert other.decode(first[0].prompt) == f"[user]{teacher}<|im_end|>[assistant]"
    assert other.decode(second[0].prompt) == (
        f"[user]{teacher}<|im_end|>[assistant]Guided.<|im_end|>[user]{checker}<|im_end|>[assistant]"
    )
    assert sampling.stop_ids == other.stop_ids != domain.tokenizer.stop_ids
    same = propose(
        "self_verify", Scripted(domain.tokenizer, engine.say), None, domain, traces, max_prompt=20_000
    )
    assert same == (found, drops)


def test_likelihood_ratio_needs_the_policys_tokenizer(two_models, tokenizer, engine, params, domain, traces):
    with pytest.raises(ValueError, match=r"the proposer's tokenizer, .* must be the policy's"):
        propose("likelihood_ratio", engine, params, domain, traces, tokenizer=two_models[1])
    alike = [
        propose("likelihood_ratio", engine, params, domain, traces, tokenizer=t) for t in (None, tokenizer)
    ]
    assert alike[0] == alike[1]


# --- likelihood_ratio ---


def test_the_intervention_stands_where_the_step_falls(monkeypatch, engine, params, domain, traces):
    steps = [None if i % 4 == 3 else i % len(trace.step_ends) for i, trace in enumerate(traces)]
    every = [np.where(np.arange(len(t.step_ends)) == s, 9.0, 0.0) for t, s in zip(traces, steps, strict=True)]
    monkeypatch.setattr(likelihood_ratio, "all_falls", lambda e, p, d, traces: every)
    found, drops = propose("likelihood_ratio", engine, params, domain, traces)
    assert len({one.step for one in found if one}) > 2
    for i, (one, step) in enumerate(zip(found, steps, strict=True)):
        assert one is None or one.step == step
        assert (step is None) == (drops.get(i) == "not_located")


def test_an_attempt_in_which_no_step_falls_is_not_located(monkeypatch, domain, traces):
    engine = located(monkeypatch, domain.tokenizer, None, "k\n\n")
    found, drops = propose("likelihood_ratio", engine, None, domain, traces[:3])
    assert found == [None] * 3 and drops == dict.fromkeys(range(3), "not_located")


def located(monkeypatch, tokenizer, step, said):
    """A likelihood_ratio that locates every error at `step`, over a model that says `said`."""
    monkeypatch.setattr(likelihood_ratio, "all_falls", lambda e, p, d, traces: [None] * len(traces))
    monkeypatch.setattr(likelihood_ratio, "location", lambda fall: step)
    return Scripted(tokenizer, lambda prompt, k: said)


def test_the_replacement_is_asked_for_after_the_steps_before_it_with_the_reference_in_view(
    monkeypatch, domain, traces
):
    long = [t for t in traces if len(t.step_ends) > 3]
    engine = located(monkeypatch, domain.tokenizer, 2, "k\n\n")
    found, _ = propose("likelihood_ratio", engine, None, domain, long, samples=2)
    [(requests, sampling)] = engine.asked
    for i, trace in enumerate(long):
        informed = domain.tokenizer.render(domain.view(trace.task, [], "teacher"))
        kept = trace.tokens[trace.prompt_len : trace.step_ends[1]].tolist()
        assert {r.prompt for r in requests[2 * i : 2 * i + 2]} == {(*informed, *kept)}
    assert found == [Intervention(2, "k", source="likelihood_ratio")] * len(long)
    assert sampling.stop == ("\n\n",) and 2 in sampling.stop_ids


@pytest.mark.parametrize("pieces", [["k", "\n\n"], ["k", "\n", "\n"], ["k", "\n\n\n"], ["k\n\n"]])
def test_the_replacement_is_one_step(monkeypatch, domain, traces, pieces):
    """However the blank line is cut into tokens."""
    ids = [i for piece in pieces for i in domain.tokenizer.encode(piece)]
    engine = located(monkeypatch, domain.tokenizer, 0, ids)
    found, drops = propose("likelihood_ratio", engine, None, domain, traces[:4], samples=1)
    assert [one and one.text for one in found] == ["k"] * 4, drops
    as_drawn = (
        "".join(pieces) == "k\n\n"
    )  # a longer run of newlines is not the separator that a splice writes
    assert all(one.ids == (tuple(ids) if as_drawn else ()) for one in found)


def test_every_replacement_of_a_model_is_one_step(engine, params, domain, traces):
    found, _ = propose("likelihood_ratio", engine, params, domain, traces, samples=4)
    assert any(found)
    for one in found:
        assert one is None or "\n\n" not in one.text
