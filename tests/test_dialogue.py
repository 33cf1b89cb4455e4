"""Conversations: turns, replies, cuts and continuations, what is trained, and what is exact."""

import dataclasses
import json

import jax
import numpy as np
import optax
import pytest
from haggling import Haggling, Seller
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments import diagnose
from int_jax import batching, check, domains, rollout, types
from int_jax import intervention_training as method
from int_jax.check import byte_tokenizer
from int_jax.check import domain as contract
from int_jax.dialogue import partner
from int_jax.dialogue.oracle import Oracle
from int_jax.dialogue.script import luck_of, replay
from int_jax.engine import Engine
from int_jax.models import Config, build
from int_jax.sampler import Sampling
from int_jax.sharding import make_mesh
from int_jax.tokenizer import Tokenizer
from int_jax.types import Intervention, Reply, Verdict

TURN = st.sampled_from(["I offer less.", "I praise your shop.", "A deal.", "Fine day.", "hm"])


@pytest.fixture(scope="module")
def letters(tmp_path_factory):
    return Tokenizer(byte_tokenizer.save(tmp_path_factory.mktemp("bytes")))


@pytest.fixture(scope="module")
def domain(letters):
    return Haggling(letters)


@pytest.fixture(scope="module")
def task(domain):
    return domain.tasks("hard_train", 0, 1)[0]


def said(domain, task, turns):
    """A conversation of these own turns, and greetings after them."""
    left = [*turns]
    return rollout.play(domain, task, lambda trace: left.pop(0) if left else "Fine day.")


# --- turns ---


@settings(max_examples=30, deadline=None)
@given(st.lists(TURN, min_size=1, max_size=6))
def test_a_trace_holds_all_turns_and_marks_the_partners(domain, task, turns):
    trace = said(domain, task, turns)
    own = domain.own_turns(trace)
    assert own == [*turns, *["Fine day."] * 9][: len(own)]
    assert len(trace.step_ends) == len(own) == len(trace.partner)  # the seller has the last word
    assert domain.turns(trace)[1::2] == [turn.text for turn in trace.partner]
    whole = domain.tokenizer.decode(trace.response)
    rebuilt = "".join(
        f"{text}<|im_end|>\n<|im_start|>user\n{reply.text}<|im_end|>\n<|im_start|>assistant\n"
        for text, reply in zip(own, trace.partner, strict=True)
    )
    assert whole == rebuilt.removesuffix(
        "<|im_start|>assistant\n"
    )  # as the template writes it; no turn after the last
    for turn in trace.partner:
        assert not trace.own[turn.start : turn.end].any()
    assert trace.own.sum() + sum(turn.end - turn.start for turn in trace.partner) == len(trace.response)
    assert types.from_bytes(types.Trace, types.to_bytes([trace]))[0].partner == trace.partner
    assert trace.stop == ("partner" if "A deal." in own else "turns")


def test_a_reply_is_what_the_template_renders(letters):
    talk = [
        {"role": "user", "content": "Q"},
        {"role": "assistant", "content": "A"},
        {"role": "user", "content": "R"},
    ]
    whole = letters.render(talk)
    before = [*letters.render(talk[:1]), *letters.encode("A"), letters.end_of_turn]
    assert before + letters.reply("R") == whole
    spelled = "a <|im_end|> b"
    assert letters.reply(spelled).count(letters.end_of_turn) == 1  # text stays text
    assert spelled in letters.decode(letters.reply(spelled))


@settings(max_examples=30, deadline=None)
@given(st.lists(TURN, min_size=2, max_size=4), st.data())
def test_a_conversation_that_is_said_again_replays_and_other_words_change_what_follows(
    domain, task, turns, data
):
    trace = said(domain, task, turns)
    step = data.draw(st.integers(0, len(trace.step_ends) - 1))
    own = domain.own_turns(trace)
    again = rollout.splice(trace, Intervention(step, own[step]), domain.tokenizer, "")
    assert again.stop == "" and again.spliced == rollout.cut_at(trace, step)
    replied = rollout.append_reply(domain, again, domain.replies([again])[0])
    np.testing.assert_array_equal(replied.tokens, trace.tokens[: trace.step_ends[step]])
    assert replied.partner == trace.partner[: step + 1]
    other = rollout.splice(trace, Intervention(step, "Something else."), domain.tokenizer, "")
    np.testing.assert_array_equal(other.tokens[: again.spliced], trace.tokens[: again.spliced])
    assert domain.own_turns(other) == [*own[:step], "Something else."]


@pytest.mark.parametrize("end", [[], [0]], ids=["cut off", "another token"])
def test_a_turn_that_nobody_heard_is_none_and_loses_what_was_left(domain, task, end):
    """A deal that was not said to its end is no deal: it does not count for the score, and is what should be mended."""
    trace = said(domain, task, ["I offer less.", "A deal."])
    bare = trace.replace(partner=trace.partner[:1])
    tokens = np.array([*trace.tokens[: trace.partner[1].start - 1], *end], np.int32)
    cut = bare.replace(tokens=tokens, step_ends=(trace.step_ends[0], len(tokens)), stop="length")
    assert trace.judged.score > 0 and domain.verify(trace) == trace.judged
    assert domain.verify(cut) == Verdict(False, 0.0, "truncated") and domain.answer(cut) is None
    assert domain.moments(cut) == domain.moments(trace)[:1] and domain.replies([cut]) == [Reply()]
    left = domain.oracle_of(domain.script(task)).value(domain.state(cut))
    assert domain.regrets(cut) == [*domain.regrets(bare)[:1], left] and left > 0
    assert domain.first_error(cut) == next(i for i, lost in enumerate(domain.regrets(cut)) if lost > 0.02)
    one = Intervention(1, domain.correction(cut, 1))
    mended = rollout.splice(cut, one, domain.tokenizer, "")
    assert domain.own_turns(mended) == [domain.own_turns(trace)[0], one.text]
    assert domain.regrets(mended)[1] < 1e-9
    with pytest.raises(ValueError, match=f"task {task.id}: turn 2 of a conversation of 2"):
        domain.correction(cut, 2)


def test_the_effect_of_a_last_turn_is_measured_from_a_trace_that_is_open(letters):
    """A formulation ends an interview: there is no reply, and the token that ends it goes. Offsets are Python's own:
    numpy's neither repeat a list nor go into JSON."""
    interview = domains.load("therapy", letters, wording="brief")
    trace = rollout.play(interview, interview.tasks("hard_train", 0, 1)[0], interview.next_turn)
    for step in range(len(trace.step_ends)):
        found = diagnose.conditions(interview, trace, Intervention(step, "what happened"), trace)
        assert len(found["prefix"].step_ends) == step
        again = found["prefix_error"]
        assert not again.stop and len(again.step_ends) == step + 1
        assert json.loads(json.dumps(again.step_ends)) == [*again.step_ends]
    assert len(again.tokens) == len(trace.tokens) - 1


def test_partner_turns_are_never_trained(domain, task):
    trace = said(domain, task, ["I praise your shop.", "I offer less."])
    spliced = rollout.splice(trace, Intervention(1, "A deal."), domain.tokenizer, "")
    for each, weights in (
        (spliced, batching.intervention_weights(spliced)),
        (trace, batching.response_weights(trace)),
        (trace, batching.intervention_weights(trace.replace(spliced=int(trace.step_ends[0])), suffix=1.0)),
    ):
        np.testing.assert_array_equal(weights > 0, each.own)


def test_partner_tokens_have_no_gradient(domain, task, small):
    """The loss of a conversation does not change with the log-probabilities of what the partner said."""
    engine, params, tx = small
    trace = said(domain, task, ["I praise your shop.", "I offer less."])
    weights = batching.response_weights(trace)
    batch = batching.pack([batching.supervised(trace.tokens, weights)], 1024, 1)
    heavier = weights.copy()
    heavier[trace.partner[0].start] = 1.0
    other = batching.pack([batching.supervised(trace.tokens, heavier)], 1024, 1)._replace(
        ce_total=batch.ce_total
    )
    grads = [engine.update(engine.state(params, tx), each, tx)[1] for each in (batch, other)]
    assert grads[0]["loss"] != grads[1]["loss"]  # they would count, if they were weighed
    logp, _ = engine.score(engine.decode_params(params), [trace.tokens])
    expected = -(logp[0] * trace.own).sum() / trace.own.sum()
    np.testing.assert_allclose(float(grads[0]["loss"]), expected, rtol=1e-5)


# --- drawn ---


@pytest.fixture(scope="module")
def small(letters):
    model = build(Config("qwen3", letters.vocab, 32, 2, 4, 2, 8, 64, 2048, qk_norm=True, tied=True))
    mesh = make_mesh(1, 1, jax.devices()[:1])
    # Decoding is compiled for so many pages at a time: few large ones are few programs.
    engine = Engine(model, mesh, slots=16, page=128, decode_steps=4, score_tokens=1024)
    # Any weights do, and to compile `init` takes longer than most of these tests.
    rng, shapes = np.random.default_rng(3), jax.eval_shape(engine.model.init, jax.random.key(0))
    params = jax.tree.map(lambda leaf: np.asarray(rng.normal(0, 0.3, leaf.shape), leaf.dtype), shapes)
    return engine, jax.device_put(params), optax.sgd(1e-3)


class Patient(Haggling):
    """Whatever token ends a turn of the model's, the seller has something to say to it."""

    def replies(self, traces):
        end = self.tokenizer.end_of_turn
        return super().replies([t.replace(tokens=np.array([*t.tokens[:-1], end], np.int32)) for t in traces])


# Half of the bytes end a turn: random models end theirs after a few letters.
ENDS = tuple(range(5, 261, 2))
WHOLE = Sampling(max_new_tokens=600, seed=5, stop_ids=ENDS)


def drawn(engine, params, domain, traces, samples=3, sampling=WHOLE):
    return rollout.continue_traces(engine, engine.decode_params(params), domain, traces, samples, sampling)


def opened(domain, count=3):
    return [rollout.open_trace(domain, task) for task in domain.tasks("hard_train", 0, count)]


def test_a_drawn_conversation_is_a_played_one(small, letters):
    """Turn after turn, with no token that the policy or its partner did not say."""
    engine, params, _ = small
    domain = Patient(letters, turn_tokens=6)
    for trace in (one for group in drawn(engine, params, domain, opened(domain)) for one in group):
        assert trace.stop == "turns" and len(trace.partner) == len(trace.step_ends) == 4
        own = np.split(trace.sampled, [*trace.step_ends[:-1]])
        assert all(0 < part.sum() <= 6 for part in own)
        np.testing.assert_array_equal(trace.sampled, trace.own)
        name, script = trace.task.id, domain.script(trace.task)
        replies = [
            script.say(*moment, luck_of(name, i, "words")).text
            for i, moment in enumerate(domain.moments(trace))
        ]
        assert [turn.text for turn in trace.partner] == replies
        assert trace.judged == domain.verify(trace)


def test_twenty_turns_are_prefilled_once(letters, small, monkeypatch):
    """What was said stands on the row's pages: a reply costs its own tokens, and nobody reads the past again."""
    engine, params, _ = small
    domain = Patient(letters, turn_tokens=4)
    monkeypatch.setattr(domain, "script", lambda task: Seller(20))
    sessions, begin = [], engine.session

    def session(*given):
        one = begin(*given)
        sessions.append((one, one.schedule, one.schedule.prefilled))
        return one

    monkeypatch.setattr(engine, "session", session)
    whole = dataclasses.replace(WHOLE, max_new_tokens=1500)
    # No other test asks for this split: no page holds a part of the prompt yet.
    alone = rollout.open_trace(domain, domain.tasks("hard_test", 7, 1)[0])
    [[trace]] = drawn(engine, params, domain, [alone], 1, whole)
    assert len(trace.partner) == 20 and trace.stop == "turns"
    # All but the last word, which nothing is drawn behind; a token that is drawn needs no prefill, but the one that
    # ends a turn goes in with the reply, and the last one of a prompt with what is drawn.
    heard = trace.partner[-2].end
    given = heard - int(trace.sampled[:heard].sum())
    [(one, first, before)] = sessions
    assert one.schedule.prefilled - before * (one.schedule is first) == given + 19 - 20


@pytest.mark.parametrize("limit", [40, 100, 200])
def test_a_conversation_has_a_limit_of_tokens(small, letters, limit):
    engine, params, _ = small
    domain = Patient(letters, turn_tokens=6)
    sampling = dataclasses.replace(WHOLE, max_new_tokens=limit)
    [[trace]] = drawn(engine, params, domain, opened(domain, 1), 1, sampling)
    [[whole]] = drawn(engine, params, domain, opened(domain, 1), 1)
    assert trace.stop == ("length" if len(whole.response) > limit else "turns")
    assert len(trace.response) <= limit  # replies and all: a row of training holds no more
    if trace.stop == "turns":
        np.testing.assert_array_equal(trace.tokens, whole.tokens)
    else:
        np.testing.assert_array_equal(trace.tokens, whole.tokens[: len(trace.tokens)])


def test_a_forked_conversation_meets_the_same_partner(small, letters):
    """The same words bring the same replies; from a splice on both branches share the partner's luck."""
    engine, params, _ = small
    domain = Patient(letters, turn_tokens=6)
    [[trace]] = drawn(engine, params, domain, opened(domain, 1), 1)
    for step in range(4):
        fork = rollout.splice(trace, Intervention(step, "I praise your shop."), letters, "")
        for one in drawn(engine, params, domain, [fork], 2)[0]:
            assert one.tokens[: fork.spliced].tolist() == trace.tokens[: fork.spliced].tolist()
            assert domain.own_turns(one)[step] == "I praise your shop." and one.spliced == fork.spliced
            assert one.partner[:step] == trace.partner[:step]
            assert domain.moments(one)[step].after.charmed == (luck_of(trace.task.id, step) < 0.5)
        # The attempt's own turn, continued from where it stood.
        back = rollout.reopen(trace, trace.step_ends[step], letters, "")
        [[again]] = drawn(engine, params, domain, [back], 1)
        end = trace.step_ends[step]
        assert again.tokens[:end].tolist() == trace.tokens[:end].tolist() and len(again.partner) == 4


class Thinking(partner.Scripted):
    slow = True

    def __init__(self):
        self.asked = 0

    def __call__(self, asked):
        self.asked += len(asked)
        return super().__call__(asked)


def test_a_slow_partner_changes_no_token(small, letters):
    engine, params, _ = small
    domain, slow = Patient(letters, turn_tokens=6), Patient(letters, turn_tokens=6)
    slow.partner = Thinking()
    fast = [types.to_bytes(group) for group in drawn(engine, params, domain, opened(domain))]
    assert fast == [types.to_bytes(group) for group in drawn(engine, params, slow, opened(domain))]
    assert slow.partner.asked == 4 * 9


class Failing(Thinking):
    def __call__(self, asked):
        raise ConnectionError("the partner hung up")


def test_what_a_partner_raises_reaches_the_caller(small, letters):
    engine, params, _ = small
    domain = Patient(letters, turn_tokens=6)
    domain.partner = Failing()
    with pytest.raises(ConnectionError, match="hung up"):
        drawn(engine, params, domain, opened(domain, 1))


def test_gains_are_of_pairs_that_share_their_luck(small, letters):
    """An intervention in the words of the attempt's own turn gains nothing, to the last digit; another gains what the
    scores of its continuations say."""
    engine, params, _ = small
    domain = Patient(letters, turn_tokens=6)
    domain.verify = lambda trace: Verdict(
        False, int(trace.sampled.sum()) / 64, "wrong"
    )  # of what was drawn: it varies
    decoding = engine.decode_params(params)
    wrong = [group[0] for group in drawn(engine, params, domain, opened(domain), 1)]
    # As the policy may say it: bytes that are text of their own.
    steps = [1, 2, 3]
    for texts in (["I offer less."] * 3, ["A deal.", "I praise you.", "hm"]):
        own = [
            rollout.splice(trace, Intervention(step, text), letters, "")
            for trace, step, text in zip(wrong, steps, texts, strict=True)
        ]
        attempts = [group[0] for group in drawn(engine, params, domain, own, 1)]
        attempts = [a.replace(key=t.key) for a, t in zip(attempts, wrong, strict=True)]
        again = [
            rollout.splice(trace, Intervention(step, text), letters, "")
            for trace, step, text in zip(attempts, steps, texts, strict=True)
        ]
        left = method.own_steps(again, attempts, domain)
        for row in method.gains(engine, decoding, domain, again, left, 3, WHOLE):
            assert row.mended == row.left and row.gain == 0 and len(row.mended) == 3
        other = [rollout.splice(t, Intervention(1, "I offer less."), letters, "") for t in attempts]
        left = method.own_steps(other, attempts, domain)
        rows = method.gains(engine, decoding, domain, other, left, 3, WHOLE)
        for row, trace, cut in zip(rows, other, left, strict=True):
            # The same streams as of any continuation of that name.
            [mended], [kept] = (
                rollout.continue_traces(engine, decoding, domain, [one], 3, WHOLE, method.PAIRED)
                for one in (trace, cut)
            )
            assert row.mended == tuple(one.judged.score for one in mended)
            assert row.left == tuple(one.judged.score for one in kept)
            assert row.gain == pytest.approx(np.mean(row.mended) - np.mean(row.left))
            assert row.shown[0].startswith("> ") and row.id == (trace.task.id, *trace.key)


# --- other partners ---


def test_a_model_words_what_the_script_says(small, letters):
    engine, params, _ = small
    domain, scripted = Haggling(letters), Haggling(letters)
    domain.partner = partner.Model(engine, engine.decode_params(params), letters, Sampling(8, stop_ids=ENDS))
    [task] = domain.tasks("hard_train", 0, 1)
    ours, theirs = said(domain, task, ["I offer less."]), said(scripted, task, ["I offer less."])
    assert [one.tags for one in ours.partner] == [one.tags for one in theirs.partner]
    assert all(a.text != b.text for a, b in zip(ours.partner, theirs.partner, strict=True))
    assert ours.judged == theirs.judged and said(domain, task, ["I offer less."]).partner == ours.partner
    other = said(domain, task, ["I offer less.", "I praise your shop."])
    assert other.partner[0].text == ours.partner[0].text and other.partner[1].tags == ("price:8",)


def test_a_person_may_be_the_partner(letters):
    domain = Haggling(letters)
    lines, heard = ["Never!", "Well...", ""], []
    domain.partner = partner.Person(lambda turns: heard.append(turns) or lines.pop(0))
    [task] = domain.tasks("hard_train", 0, 1)
    trace = said(domain, task, ["I offer less."])
    assert [turn.text for turn in trace.partner] == ["Never!", "Well..."] and trace.stop == "partner"
    assert heard[1] == ("I offer less.", "Never!", "Fine day.")


# --- what is exact ---


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["offer", "praise", "deal", "chat"]), max_size=4))
def test_no_turn_gains_on_the_best_ones(acts):
    oracle = Oracle(Seller())
    moments = replay(Seller(), "t", acts)
    regrets = oracle.regrets(moments)
    assert all(lost >= 0 for lost in regrets)
    assert all(oracle.value(one.before) >= oracle.worth(one.before, one.act) - 1e-12 for one in moments)


def test_equal_partners_are_worked_out_once(letters):
    """By whichever domain, and however often."""
    one, other = Haggling(letters), Haggling(letters, turns=3)
    assert one.oracle_of(Seller()) is Haggling(letters).oracle_of(Seller())
    assert one.oracle_of(Seller()) is not other.oracle_of(other.script(other.tasks("hard_train", 0, 1)[0]))


def test_values_by_hand():
    oracle, start = Oracle(Seller()), Seller().start()
    # Praise that works, two offers: 3 + 1; praise that does not, two offers: 2. On average 3, as three offers; a deal.
    assert oracle.value(start) == pytest.approx(3 / 9)
    assert oracle.worth(start, "deal") == 0 and oracle.worth(start, "chat") == pytest.approx(2 / 9)
    assert Oracle(Seller(2)).best(Seller(2).start()) == "offer"


@pytest.mark.parametrize("acts", [(), ("praise",), ("offer", "praise"), ("chat", "chat", "offer")])
def test_values_are_the_means_of_played_conversations(acts):
    script = Seller()
    oracle = Oracle(script)
    state = ([script.start()] + [one.after for one in replay(script, "t", acts)])[-1]
    rng, scores = np.random.default_rng(0), []
    for _ in range(4000):
        now = state
        while not script.over(now):
            outcomes = script.outcomes(now, oracle.best(now))
            now = outcomes[rng.choice(len(outcomes), p=[p for p, _ in outcomes])][1]
        scores.append(script.score(now))
    assert abs(np.mean(scores) - oracle.value(state)) < 4 * np.std(scores) / len(scores) ** 0.5 + 1e-9


@settings(max_examples=40, deadline=None)
@given(st.lists(TURN, min_size=1, max_size=4))
def test_the_first_error_is_mended_by_its_correction(domain, task, turns):
    trace = said(domain, task, turns)
    step = domain.first_error(trace)
    if step is not None:
        one = Intervention(step, domain.correction(trace, step))
        assert domain.first_error(rollout.splice(trace, one, domain.tokenizer, "")) is None


def test_luck_is_spread_evenly():
    found = [
        luck_of(f"task{i}", turn, what) for i in range(200) for turn in range(5) for what in ("", "words")
    ]
    assert min(found) >= 0 and max(found) < 1 and len({*found}) == len(found)
    counts, _ = np.histogram(found, 10, (0, 1))
    assert counts.min() > 150 and counts.max() < 250


# --- a domain of one's own ---


@pytest.mark.parametrize("one", contract.CHECKS, ids=lambda one: one.__name__)
def test_a_conversation_keeps_the_contract_of_domains(letters, monkeypatch, one):
    monkeypatch.setattr(contract.domains, "find", lambda name: Haggling)
    assert check.faults(one, contract.subject("haggling", letters, [])) == []
