"""The rules that rate an utterance: what must not change a rating, what may move it one way only, the labelled half
that was never tuned on, repairs, and speed."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from int_jax.domains.dearman import rater
from int_jax.domains.dearman import wording as words
from int_jax.domains.dearman.rater import ASSERT, DESCRIBE, EXPRESS, NEGOTIATE, NONE, STRONG, WEAK, rate
from int_jax.domains.dearman.repair import FAULTS, repair, rewrite
from int_jax.domains.dearman.situations import STRATEGIES, load_gold, load_situations

SITUATIONS = {one.id: one for one in load_situations()}
TEXTS = [(one.text, SITUATIONS[one.situation]) for one in load_gold() if one.half == "a"]
SAID = st.sampled_from(TEXTS)
HEDGES = (
    "I guess, sort of.",
    "I don't know.",
    "Maybe, perhaps, kind of.",
    "No rush.",
    "Never mind, it's nothing.",
)
JUDGEMENTS = ("You are lazy.", "You're so selfish.", "You are rude and careless.", "You are a liar.")


@given(SAID, st.sampled_from(HEDGES), st.booleans())
def test_a_hedge_never_raises_confidence(said, hedge, first):
    text, situation = said
    hedged = f"{hedge} {text}" if first else f"{text} {hedge}"
    assert rate(hedged, situation).confident <= rate(text, situation).confident
    assert not rate(hedged, situation).confident


@given(SAID, st.sampled_from(JUDGEMENTS), st.booleans())
def test_a_judgement_never_raises_describe_and_is_never_mindful(said, judgement, first):
    text, situation = said
    judged = rate(f"{judgement} {text}" if first else f"{text} {judgement}", situation)
    assert judged.strengths[DESCRIBE] <= rate(text, situation).strengths[DESCRIBE]
    assert not judged.mindful and judged.harsh >= 1


@given(
    SAID,
    st.sampled_from(["It happened twice this month.", "That was on Monday.", "I counted it three times."]),
)
def test_an_anchor_never_lowers_describe(said, anchor):
    text, situation = said
    after = rate(f"{text} {anchor}", situation)
    assert after.strengths[DESCRIBE] >= rate(text, situation).strengths[DESCRIBE]


@given(SAID, st.sampled_from(["I am sad.", "I feel hurt.", "I was worried."]))
def test_a_feeling_makes_express_strong(said, feeling):
    assert rate(f"{said[0]} {feeling}", said[1]).strengths[EXPRESS] == STRONG


@given(SAID, st.sampled_from([str.upper, str.lower, str.title, str.swapcase]))
def test_case_changes_nothing(said, turned):
    text, situation = said
    one, other = rate(text, situation), rate(turned(text), situation)
    assert one == other


@given(SAID, st.sampled_from([" ", "  ", "\n", " \t "]))
def test_white_space_changes_no_label(said, blank):
    text, situation = said
    spaced = f"{blank}{text.replace(' ', blank)}{blank}"
    one, other = rate(text, situation), rate(spaced, situation)
    assert one.labels == other.labels and one.heard == other.heard and one.harsh == other.harsh
    assert [(a.code, text[a.start : a.end].split()) for a in one.findings] == [
        (b.code, spaced[b.start : b.end].split()) for b in other.findings
    ]


@given(st.text(max_size=200))
def test_any_text_is_rated(text):
    rating = rate(text)
    assert all(0 <= one.start <= one.end <= len(text) and one.reason for one in rating.findings)
    assert rating.labels.keys() == {*STRATEGIES, "mindful", "confident"}
    assert len(rating.heard) <= 2


@pytest.mark.parametrize("insult", ["lazy", "selfish", "a liar", "careless"])
def test_what_is_denied_or_quoted_is_no_attack(insult):
    assert not rate(f"You are {insult}.").mindful
    for text in (
        f"I'm not saying that you are {insult}.",
        f"I don't think you are {insult}.",
        f"You are not {insult}.",
        f'My mother said "you are {insult}" to me.',
        f"I never said you are {insult}.",
    ):
        assert rate(text).mindful, text
    assert not rate(f"I'm not angry, but you are {insult}.").mindful


@pytest.mark.parametrize(
    ("text", "strategy", "strength"),
    [
        ("You came late three times this month.", DESCRIBE, STRONG),
        ("you came late three times this month", DESCRIBE, STRONG),
        ("You always come late.", DESCRIBE, WEAK),
        ("It has been like that for a while.", DESCRIBE, WEAK),
        ("You came late three times, you are so lazy.", DESCRIBE, WEAK),
        ("You came late on Monday. It has been like that for a while.", DESCRIBE, STRONG),
        ("You did that on purpose on Monday.", DESCRIBE, WEAK),
        ("Come at five on Friday, please.", DESCRIBE, NONE),
        ("I'm exhausted.", EXPRESS, STRONG),
        ("I feel that you are late.", EXPRESS, WEAK),
        ("I'm not angry.", EXPRESS, NONE),
        ("Please pay the bill.", ASSERT, STRONG),
        ("I won't drive tomorrow.", ASSERT, STRONG),
        ("Maybe you could sort of pay?", ASSERT, WEAK),
        ("It would be nice if somebody paid.", ASSERT, WEAK),
        ("Let's swap: you take Friday, and I take Sunday.", NEGOTIATE, STRONG),
        ("We'll find some way.", NEGOTIATE, WEAK),
        ("", ASSERT, NONE),
    ],
)
def test_strategies(text, strategy, strength):
    assert rate(text).strengths[strategy] == strength


def test_an_apology_that_is_due_is_confident():
    assert rate("I'm sorry that I shouted on Monday. Please pay the bill.").confident
    assert not rate("I'm so sorry. Please pay the bill.").confident


def test_findings_stand_in_their_places():
    text = "Well,  I guess you are lazy; please  PAY  the bill, or else!"
    found = {(one.code, text[one.start : one.end]) for one in rate(text).findings}
    assert found >= {
        ("hedge", "I guess"),
        ("judgement", "you are lazy"),
        ("ask", "please  PAY"),
        ("threat", "or else"),
    }


def test_two_strategies_are_heard():
    text = "You came late twice. I am sad. Please come at five."
    assert rate(text).heard == ((DESCRIBE, STRONG), (EXPRESS, STRONG))
    assert rate("Please come at five. I am sad. You came late twice.").heard == (
        (EXPRESS, STRONG),
        (ASSERT, STRONG),
    )


# --- repairs ---


@given(SAID)
def test_a_rewrite_has_no_fault_of_composure(said):
    text, situation = said
    rating = rate(rewrite(text, situation), situation)
    assert rating.mindful and rating.confident and any(rating.strengths)


@given(SAID)
def test_a_repair_never_makes_a_skill_worse(said):
    text, situation = said
    before = rate(text, situation)
    for one in before.findings:
        if one.code in FAULTS:
            after = rate(repair(text, one, situation), situation)
            count = [f.code for f in after.findings].count(one.code)
            assert count <= [f.code for f in before.findings].count(one.code)
            assert after.mindful >= before.mindful and after.confident >= before.confident
        else:
            assert repair(text, one, situation) == text


def test_repairs_by_hand():
    one = SITUATIONS["car_brother"]
    assert rewrite("You always bring it back empty.", one) == "You bring it back empty, twice this month."
    assert rewrite("Sorry, please bring my car back.", one) == "Please bring my car back."
    assert rewrite("Please bring it back. Or else you'll regret it.", one) == "Please bring it back."
    assert rewrite("you are lazy", one, "brief") == "please bring my car back on time"
    assert rewrite("it is too much", one, "brief") == "i feel stressed"


# --- the labels ---


def test_the_rules_agree_with_the_labels_of_the_half_that_they_were_not_tuned_on():
    for skill, (_, _, macro) in rater.agreement("b").items():
        assert macro >= BOUNDS[skill], skill


# A bit under what was measured once, when the rules were done: raise them with better rules, never by tuning on half b.
BOUNDS = {
    "describe": 0.9,
    "express": 0.92,
    "assert": 0.86,
    "reinforce": 0.66,
    "negotiate": 0.64,
    "mindful": 0.73,
    "confident": 0.94,
}


def test_sentences_of_every_situation_do_what_they_are_for():
    for one in SITUATIONS.values():
        for wording in words.WORDINGS:
            for strategy in range(5):
                for text in words.variants(one, strategy, wording):
                    rating = rate(text, one)
                    assert rating.strengths[strategy] == STRONG, text
                    assert rating.mindful and rating.confident, text


def test_speed():
    start = time.process_time()
    for text, situation in TEXTS:
        rate.__wrapped__(text, situation)
    assert len(TEXTS) / (time.process_time() - start) >= 2000
