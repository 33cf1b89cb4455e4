"""The report of conversations: of a whole run over haggling.py, with an engine that says one of a few things.

What is seen of a conversation is both sides' words, all of them, each as its own; and what is exact says of what.
"""

import dataclasses
import hashlib
import json
import re
import types

import numpy as np
import pytest
from haggling import Haggling
from hypothesis import given, settings
from hypothesis import strategies as st
from test_knobs import Story, Toy, Watch, configured
from test_report import EXAMPLES, HOSTILE, RESULTS, Page

from experiments import build
from experiments import run as runs
from experiments.configs import default
from experiments.diagnose import Interventions, conversation
from int_jax import report, rollout
from int_jax.check import byte_tokenizer
from int_jax.report import cells, page, plots
from int_jax.rows import GAIN as GAIN_STAGE
from int_jax.rows import GainRow, GuidedRow
from int_jax.sampler import Response
from int_jax.tokenizer import Tokenizer
from int_jax.types import Intervention, Reply

PHRASES = ("I offer less.", "I praise your shop.", "A deal.", "Fine day.", "Fine day.")
HAGGLING = {
    "proposals.proposer": "oracle",
    "proposals.compare": ("random_step", "last_step"),
    "proposals.compare_attempts": 6,
    "gain.attempts": 6,
    "gain.samples": 3,
    "arms": ("int_rl",),
    "attempts.sampling.max_new_tokens": 240,
    "guided.sampling.max_new_tokens": 240,
    "eval.sampling.max_new_tokens": 240,
    "rl.max_new_tokens": 240,
    "train.row_length": 512,
    "export": (),
    "effect.problems": 3,
}


class Talker(Toy):
    """Says one of PHRASES, by a hash of all that was said before."""

    def _draw(self, logp_V, request, sampling) -> Response:
        tokenizer = self.model.tokenizer
        seed = hashlib.blake2b(repr((request, sampling)).encode(), digest_size=8).digest()
        rng = np.random.default_rng(list(seed))
        said = tokenizer.encode(PHRASES[rng.integers(len(PHRASES))])
        tokens = np.array([*request.prompt, *said, tokenizer.end_of_turn], np.int32)
        drawn = np.arange(len(tokens)) >= len(request.prompt)
        return Response(
            tokens, np.where(drawn, -rng.exponential(0.4, len(tokens)), 0).astype(np.float32), "stop"
        )


@pytest.fixture(scope="module")
def letters(tmp_path_factory):
    return byte_tokenizer.save(tmp_path_factory.mktemp("bytes"))


@pytest.fixture(scope="module")
def domain(letters):
    return Haggling(Tokenizer(letters))


@pytest.fixture(scope="module")
def workdir(letters, tmp_path_factory):
    """The folder of a run."""
    with pytest.MonkeyPatch.context() as patch:
        mine = tmp_path_factory.mktemp("mine") / "shop.py"
        mine.write_text("from haggling import Haggling as build\n")
        changes = HAGGLING | {"domain": default.domain(str(mine))}

        def main(_):
            patch.setattr(build, "Engine", Talker)
            runs.main([])

        watch = Watch(patch, letters, tmp_path_factory.mktemp("runs"))
        return watch.run(configured(changes), Story(), reports=True, main=main)


@pytest.fixture(scope="module")
def shown(workdir):
    return (workdir / "report.html").read_text()


def test_a_run_shows_its_conversations_turn_by_turn(workdir, shown):
    results, found = json.loads((workdir / "results.json").read_text()), Page(shown)
    text = " ".join(found.text.split())
    assert results["conversations"] is True and results["funnel"]["wrong"] > 0
    articles = shown.split("<article")[1:]
    assert len(articles) == min(results["funnel"]["wrong"], 60)
    for article in articles:
        # Each step is an own turn of tokens, a reply without any, and its regret.
        assert article.count('<div class="turn own">') == article.count('<div class="turn reply">') > 0
        assert article.count('class="regret"') == article.count('<div class="turn own">')
        for reply in re.findall(r'<div class="turn reply">.*?</div>', article):
            assert "tok" not in reply and ">seller</span>" in reply and "price:" in reply
        assert "<|im_start|>" not in article and cells.SCRIPTED in article
        assert article.count("◆ the lost turn") == article.count("▶ located") == 1  # the oracle proposes
    # The others have their guided continuations.
    assert text.count("Gain of this rewrite") == HAGGLING["gain.attempts"] < len(articles)
    assert len(re.findall(r"\d of \d correct", text)) == len(articles) - HAGGLING["gain.attempts"]
    assert "from 3 pairs of continuations" in text
    assert found.count("div", class_="intervention before") == len(articles)


def test_the_gain_of_a_row_is_the_one_on_the_page(workdir, shown):
    rows = [
        json.loads(line)
        for path in sorted((workdir / "gain_of_oracle").glob("*.jsonl"))
        for line in path.read_text().splitlines()
    ]
    rows = [GainRow(**row) for row in rows if "counts" not in row]
    said = re.findall(r"Gain of this rewrite: <b>([-+]\d\.\d{3})</b>", shown)
    assert rows and sorted(said) == sorted(f"{row.gain:+.3f}" for row in rows)
    assert any(row.gain != 0 for row in rows)
    for row in rows:
        for scores in (row.mended, row.left):
            assert " · ".join(f"{score:.2f}" for score in scores) in shown


def test_tables_say_of_what_they_are_exact(workdir, shown):
    results = json.loads((workdir / "results.json").read_text())
    notes = {section.key: section.note for section in cells.sections(results)}
    assert cells.SCRIPTED in notes["proposers"] and cells.SCRIPTED in notes["funnel"]
    assert cells.SCRIPTED in " ".join(report.tables(results).split())
    assert "What an intervention gains" in shown and "Gain of an intervention, in score" in shown
    mathematics = {section.key: section.note for section in cells.sections(RESULTS)}
    assert not any(cells.SCRIPTED in note for note in mathematics.values())


def test_a_page_without_conversations_has_nothing_of_them():
    text = report.html(RESULTS, EXAMPLES)
    assert "dialogue" not in text and "regret" not in text and cells.SCRIPTED not in text
    # The page as it was before there were conversations. Update it whenever the page of mathematics is meant to change.
    assert hashlib.sha256(text.encode()).hexdigest()[:12] == "334d6202bef3"


# ---- nothing is lost

WORDS = st.text(st.sampled_from("ab >\n<&'\"✓"), min_size=1, max_size=12).filter(str.strip)


def played(domain, own, replies):
    """A conversation of these turns; the last reply ends it."""
    left, script = [*own], [*replies]

    class Told(Haggling):
        def replies(self, traces):
            text = script.pop(0)
            return [Reply(text, (f"tag:{len(script)}",), "" if script else "partner") for _ in traces]

    told = Told(domain.tokenizer)
    return told, rollout.play(told, told.tasks("hard_train", 0, 1)[0], lambda _: left.pop(0))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=4))
def test_every_word_of_both_sides_is_on_the_page(domain, turns):
    told, trace = played(domain, *zip(*turns, strict=True))
    talk = conversation(told, trace)
    assert [turn.reply for turn in talk.turns] == [reply for _, reply in turns]
    assert [turn.tags for turn in talk.turns] == [turn.tags for turn in trace.partner]
    assert ["".join(turn.pieces) for turn in talk.turns] == [
        "".join(domain.tokenizer.pieces([*domain.tokenizer.encode(own), domain.tokenizer.end_of_turn]))
        for own, _ in turns
    ]
    one = report.Example(trace.task, talk, None, None, None, "unparsed")
    text = Page(report.html({}, [one])).text
    for _, reply in turns:
        assert reply in text


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=4))
def test_a_conversations_text_is_cut_into_its_turns_again(domain, turns):
    """Whatever the words look like, nobody's are shown as the other's."""
    told, trace = played(domain, *zip(*turns, strict=True))
    said = page._said_by_turns(rollout.text_from(told, trace, trace.prompt_len))
    assert [theirs for theirs, _ in said] == [False, True] * len(turns)

    assert [words for theirs, words in said if theirs] == [reply for _, reply in turns]
    # An own line may be moved by a space.
    lines = [[line.lstrip() for line in words.strip().split("\n")] for theirs, words in said if not theirs]
    assert lines == [[line.lstrip() for line in own.strip().split("\n")] for own, _ in turns]


# ---- by hand


def talk(text="Well", located=1, step=1, **changes):
    turns = [
        report.Turn([f"{text} own", "<end>"], [-0.1, -3.0], f"{text} reply", (f"{text} tag",), 0.0),
        report.Turn([f"{text} worse", "<end>"], [-0.1, -0.2], f"{text} heard", (), 0.25),
        report.Turn([f"{text} last"], [-0.1], "", (), None),
    ]
    fields = {
        "task": EXAMPLES[0].task,
        "attempt": report.Conversation(turns, f"{text} me", f"{text} them", 0.5),
        "located": located,
        "true_error": 1,
        "intervention": Intervention(step, f"{text} mended", source=f"{text} proposer"),
        "outcome": "kept",
        "continuations": [(f"> {text} aha\n{text} right", True), (f"{text} wrong", False)],
    }
    return report.Example(**{**fields, **changes})


GAIN = GainRow("t/1", (0, 0), (1.0, 0.5), (0.5, 0.5), ("> M1\nM2", "L1\n> L2"))


def test_without_paired_continuations_the_guided_ones_are_shown():
    text = " ".join(Page(report.html({}, [talk()])).text.split())
    assert "1 of 2 correct" in text and "Well them Well aha" in text and "Gain of this rewrite" not in text
    text = " ".join(Page(report.html({}, [talk(gain=GAIN)])).text.split())
    assert "Gain of this rewrite: +0.250" in text and "of 2 correct" not in text
    assert "Mean score 0.500 of 2: 0.50 · 0.50" in text and "Mean score 0.750 of 2: 1.00 · 0.50" in text
    # The own turn's branch begins with the reply that was heard, the intervention's with the one to it.
    assert "Well them Well heard Well me L1 Well them L2" in text and "Well them M1 Well me M2" in text


def test_after_the_last_turn_the_reply_is_drawn_again():
    one = talk(located=2, step=2, gain=GAIN)
    last = dataclasses.replace(one.attempt.turns[-1], reply="goodbye")
    turns = [*one.attempt.turns[:-1], last]
    one = dataclasses.replace(one, attempt=dataclasses.replace(one.attempt, turns=turns))
    assert page._view(one)["branches"]["left"]["said"] == [(False, "L1"), (True, "L2")]


def test_marks_of_turns_and_dropped_proposals():
    right, wrong = Page(report.html({}, [talk()])), Page(report.html({}, [talk(located=0, step=0)]))
    assert right.count("li", class_="step located true") == 1 and "as the oracle says" in right.text
    assert wrong.count("li", class_="step true after") == 1 and "the oracle says turn 2" in wrong.text
    assert right.text.count("regret 0.25") == 1 and right.count("span", style="width: 25.0%") == 1
    said = [{"raw": "no block", "fault": "unparsed"}]
    none = Page(report.html({}, [talk(located=None, intervention=None, outcome="unparsed", candidates=said)]))
    assert "No intervention (dropped: unparsed)" in none.text and "no block" in none.text
    outside = Page(report.html({}, [talk(located=9, step=9, outcome="out_of_range", gain=GAIN)]))
    assert "Not spliced (dropped: out of range)" in outside.text and "out of range" in outside.text
    assert "Gain of this rewrite" not in outside.text


def test_hostile_words_stay_words():
    text = report.html({}, [talk(HOSTILE, gain=GAIN), talk(HOSTILE)])
    found = Page(text)
    assert found.count("script") == 1 and found.count("img") == 0
    assert not [a for _, a in found.tags if any(name.startswith("on") for name in a)]
    for part in ("own", "reply", "tag", "me", "them", "mended", "right", "aha", "proposer"):
        assert f"{HOSTILE} {part}" in found.text
    assert "default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-" in text


# ---- the plot of gains

GAINS = {
    name: {"traces": traces, "left": 0.2, "mended": 0.4, "mean": mean, "ci95": ci95}
    for name, traces, mean, ci95 in (
        ("oracle", 8, 0.2, [0.1, 0.3]),
        ("random_step", 8, -0.05, [-0.2, 0.1]),
        ("last_step", 0, None, [None, None]),
    )
}


@given(st.lists(st.tuples(*[st.floats(-1, 1)] * 3).map(sorted), min_size=1, max_size=4))
def test_bars_begin_at_zero_and_stay_inside(rows):
    plot = plots.bar_plot("gain", {str(i): (row[1], (row[0], row[2])) for i, row in enumerate(rows)})
    right = plot["text_x"] - 10 + 0.1
    for bar, (low, value, _) in zip(plot["bars"], rows, strict=True):
        assert plot["left"] <= bar["start"] and bar["length"] >= 0 and bar["start"] + bar["length"] <= right
        assert plot["left"] - 0.1 <= bar["low"] <= bar["high"] <= right
        at_zero = bar["start"] + (bar["length"] if value < 0 else 0)
        assert at_zero == pytest.approx(plot["zero"], abs=0.11)
        assert bar["low"] <= plot["zero"] if low < 0 else bar["low"] >= plot["zero"]


def test_the_gains_are_drawn_beside_the_effect():
    both = report.html({**RESULTS, "intervention_gain": GAINS})
    section = both.partition('<section id="effect">')[2].partition("</section>")[0]
    assert section.count("<svg") == 2 and "Gain of an intervention, in score" in section
    assert both.count("Gain of an intervention, in score</figcaption>") == 1
    assert "-5.0% [-20.0, 10.0]" in Page(both).text.replace("\u2007", "")
    alone = report.html({"intervention_gain": GAINS})
    assert alone.count("Gain of an intervention, in score</figcaption>") == 1
    bars = page.bar_plot(
        "t", {name: (row["mean"], row["ci95"]) for name, row in GAINS.items() if row["traces"]}
    )
    assert [bar["label"] for bar in bars["bars"]] == ["oracle", "random step"]
    titles = [section.key for section in cells.sections({**RESULTS, "intervention_gain": GAINS})]
    assert titles.index("intervention_gain") == titles.index("effect") + 1


@pytest.mark.parametrize("filter", ["solves", "gain"])
def test_what_the_filter_makes_of_an_attempt_is_told_once_it_is_known(domain, filter):
    """Examples are made before gains are drawn, and shown after."""
    task = domain.tasks("hard_train", 0, 1)[0]
    wrong = [rollout.play(domain, task, lambda trace: "Fine day.").replace(key=(0, k)) for k in range(2)]
    rows = [GainRow(task.id, (0, 0), (1.0,), (0.0,)), GainRow(task.id, (0, 1), (0.0,), (1.0,))]
    lab = types.SimpleNamespace(filter=filter, rows={}, domain=domain)
    found = object.__new__(Interventions)  # what it reads of a lab is not here
    found.lab, found.wrong, found.guided = lab, wrong, [GuidedRow(trace, 2, 0) for trace in wrong]
    before = [dataclasses.replace(EXAMPLES[0], outcome="no success") for _ in wrong]
    assert [one.outcome for one in found.paired(before, "oracle")] == ["no success"] * 2
    lab.rows[GAIN_STAGE] = rows
    after = ["kept", "no gain"] if filter == "gain" else ["no success"] * 2
    shown = found.paired(before, "oracle")
    assert [one.outcome for one in shown] == after and [one.gain for one in shown] == rows
