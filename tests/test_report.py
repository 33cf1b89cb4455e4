"""report.py: what is written is what was measured, whole, in order, safe to open, and readable again after a kill."""

import copy
import itertools
import json
import math
import re
import struct
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboardX.proto import event_pb2

from experiments import arms
from int_jax import report, stages
from int_jax.report import cells, page, plots
from int_jax.report.writers import tensorboard
from int_jax.types import Intervention, Task


def measured(mean, low, high):
    return {"mean": mean, "ci95": [low, high], "problems": 640, "samples": 16}


def condition(solved, accuracy, low, high):
    return {"solved": solved, "problems": 640, "accuracy": accuracy, "ci95": [low, high]}


def curve(updates, shift=0.0):
    ramp = np.linspace(0.0, 0.2, updates)
    return {
        "reward": (0.02 + shift + ramp).tolist(),
        "zero_advantage": (0.9 - ramp).tolist(),
        "never": (0.88 - 1.2 * ramp).tolist(),
        "sometimes": (0.1 + ramp).tolist(),
        "always": (0.02 + 0.2 * ramp).tolist(),
        "length": (60 + ramp).tolist(),
        "logp_gap": np.full(updates, 2e-6).tolist(),
    }


RESULTS = {
    "config": {"name": "int.py:tiny", "rl": {"lr": 1e-5}},
    "seed": 7,
    "versions": {"jax": "0.10.0", "python": "3.11.7"},
    "policies": arms.shown(("int_rl", "rl", "rl_matched")),
    "wall_s": {"attempts": 41.2, "rl": 214.7},
    "tokens": {"attempts": 211_482, "rl": 1_402_377},
    "funnel": {
        **{
            "problems": 640,
            "attempts": 2560,
            "wrong": 2531,
            "proposed": 2529,
            "unparsed": 41,
            "out_of_range": 7,
        },
        **{"empty": 122, "leaked": 19, "too_long": 3, "spliced": 2337, "guided": 18712, "kept": 402},
        **{"kept_right": 371, "problems_kept": 233, "a_new_reason": 5},
    },
    "effect": {
        "problem": condition(41, 0.0071, 0.0048, 0.0097),
        "prefix": condition(52, 0.0102, 0.0072, 0.0138),
        "prefix_error": condition(31, 0.0043, 0.0028, 0.0061),
        "prefix_intervention": condition(251, 0.1061, 0.0914, 0.1213),
    },
    "eval": {
        "base": {"pass@1": measured(0.021, 0.013, 0.029), "pass@8": measured(0.093, 0.077, 0.109)},
        "int_rl": {"pass@1": measured(0.142, 0.123, 0.161), "pass@8": measured(0.291, 0.266, 0.316)},
    },
    "eval_train": {
        "base": {"pass@1": measured(0.0007, 0.0, 0.0047), "pass@8": measured(0.006, 0.0018, 0.0102)}
    },
    "gain": {
        "int_rl - rl": {"pass@1": measured(-0.012, -0.033, 0.008), "pass@8": measured(0.05, 0.01, 0.09)}
    },
    "proposers": {"self_verify": {"exact": 1894, "located": 2368, "traces": 2531, "ci95": [0.731, 0.765]}},
    "graders": {
        "decides": "strict",
        "responses": 5120,
        "differ": 3,
        "examples": [
            {"answer": answer, "gold": "\\frac{\\pi}{2}", "strict": "wrong", "tolerant": "correct"}
            for answer in ("90^\\circ", "90^\\circ", "90°")
        ],
    },
    "rl": {"rl": curve(60), "int_rl": curve(50, 0.1)},
    "drift": {
        "nll": {"prefix": 0.112, "intervention": 0.871, "reference": 2.94},
        "entropy": {"base": 0.26, "int": 0.29},
    },
}
POLICIES = report.policies_of(RESULTS)
HOSTILE = '<script>alert("x")</script><img src="https://evil.example/a.png" onerror=alert(1)>\'"&</style>'


def example(outcome="kept", text="Step", located=1, true_error=1, step=1, **changes) -> report.Example:
    pieces = [text, " 1", "\n", "\n", text, " 2", "\n\n", "last", "<|im_end|>"]
    fields = {
        "task": Task("t/1", "arithmetic", f"{text} problem", f"{text} reference", f"{text} answer"),
        "attempt": report.Attempt(pieces, [math.log(p) for p in np.linspace(0.001, 1, 9)], [4, 7, 8]),
        "located": located,
        "true_error": true_error,
        "intervention": Intervention(step, f"{text} mended", source=f"{text} proposer"),
        "outcome": outcome,
        "continuations": [(f"{text} right", True), (f"{text} wrong", False)],
    }
    return report.Example(**{**fields, **changes})


def leaves(value, path=()):
    """(path, value) of each leaf of nested dicts and lists."""
    items = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    )
    return (
        [(path, value)]
        if items is None
        else [leaf for key, item in items for leaf in leaves(item, (*path, key))]
    )


# ---- results.json


def test_results_come_back_and_equal_results_are_equal_bytes(tmp_path):
    def reverse(value):
        return {key: reverse(value[key]) for key in reversed(value)} if isinstance(value, dict) else value

    report.write_results(tmp_path / "a.json", RESULTS)
    report.write_results(tmp_path / "b.json", reverse(RESULTS))
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    back = json.loads((tmp_path / "a.json").read_text())
    assert back == RESULTS
    assert list(back)[:4] == ["config", "seed", "versions", "policies"]
    assert list(back["effect"]) == ["problem", "prefix", "prefix_error", "prefix_intervention"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "b.json"]


def test_pass_keys_are_written_by_k(tmp_path):
    report.write_results(tmp_path / "r.json", {"eval": {"base": {f"pass@{k}": 0.5 for k in (128, 16, 8, 1)}}})
    assert list(json.loads((tmp_path / "r.json").read_text())["eval"]["base"]) == [
        "pass@1",
        "pass@8",
        "pass@16",
        "pass@128",
    ]


@settings(max_examples=60, deadline=None)
@given(
    at=st.sampled_from([path for path, value in leaves(RESULTS) if type(value) in (float, int)]),
    bad=st.sampled_from([math.nan, math.inf, -math.inf, np.float32("nan")]),
)
def test_a_number_that_is_not_finite_is_null_and_shown_as_diverged(tmp_path_factory, at, bad):
    """Whichever number it is: the file is written, and the screen and the page hold all the others."""
    broken = changed(RESULTS, at, bad)
    target = tmp_path_factory.mktemp("r") / "results.json"
    report.write_results(target, broken)
    assert json.loads(target.read_text()) == changed(RESULTS, at, None)
    screen, text = report.tables(broken), report.html(broken)
    assert screen == report.tables(changed(RESULTS, at, None))
    assert max(map(len, screen.splitlines())) <= cells.WIDTH
    words = f"{screen} {Page(text).text}".lower()
    assert not re.search(r"\b(nan|inf|none)\b", words.replace("none 0", "")), at
    unseen = ("config", "seed", "rl")  # a curve with a gap, and what is no result
    assert at[0] in unseen or "ci95" in at or "samples" in at or "diverged" in words


def changed(results, path, value):
    """A copy of `results` with another value at a path."""
    copied = copy.deepcopy(results)
    inner = copied
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return copied


DIVERGED_CURVES = {  # name -> (what of its 20 updates is finite, what its panel says at its end)
    "at its first update": (slice(0), None),
    "after one": (slice(1), "InT + RL: diverged"),
    "at its last update": (slice(19), "InT + RL: diverged"),
    "not at all": (slice(20), "InT + RL"),
}


@pytest.mark.parametrize("name", DIVERGED_CURVES)
def test_a_curve_is_drawn_up_to_where_it_diverged(name):
    known, said = DIVERGED_CURVES[name]
    curve_of = {
        key: [value if i in range(20)[known] else math.nan for i, value in enumerate(values)]
        for key, values in curve(20).items()
    }
    page = Page(report.html({"policies": RESULTS["policies"], "rl": {"rl": curve(20), "int_rl": curve_of}}))
    labels = [said] if said else []
    panels = plots.curve_plots({"rl": curve(20), "int_rl": curve_of}, POLICIES)[0]
    assert {s["label"] for p in panels for s in p["series"]} == {"RL", *labels}
    assert all(len(s["raw"].split()) in (20, known.stop) for p in panels for s in p["series"])
    assert len(plots.curve_plots({"int_rl": curve_of}, POLICIES)[1]) == bool(known.stop)
    drawn = " ".join(a[key] for _, a in page.tags for key in a.keys() & {"points", "d", "x", "y", "cx", "cy"})
    assert "nan" not in drawn and "None" not in drawn


STOPPED = {
    "int": {"why": "diverged", "update": 3},
    "int_rl": {"why": "skipped"},
}


def test_stopped_policies_stand_in_the_tables_and_the_notes_on_top():
    unknown = {"mean": None, "ci95": [None, None], "problems": 640, "samples": 0}
    evals = RESULTS["eval"] | {"int": {"pass@1": unknown, "pass@8": unknown}}
    evals = {name: row for name, row in evals.items() if name != "int_rl"}
    notes = [f"InT diverged at update 3: loss is nan. {HOSTILE}", "InT + RL was skipped " + "x" * 200]
    results = {**RESULTS, "eval": evals, "stopped": STOPPED, "notes": notes}
    screen = report.tables(results)
    assert re.search(r"^ InT +diverged +diverged +diverged", screen, re.MULTILINE)
    assert re.search(r"^ InT \+ RL +skipped +skipped +skipped", screen, re.MULTILINE)
    assert "loss is nan" in screen.partition("FROM ATTEMPTS")[0]
    assert max(map(len, screen.splitlines())) <= cells.WIDTH
    page = Page(report.html(results))
    assert all(said in page.text for said in notes) and page.count("img") == 0


def test_what_was_said_of_a_dropped_attempt_is_shown():
    told = [
        {"raw": "no block " + HOSTILE, "fault": "unparsed", "step": None, "text": ""},
        {"raw": "x" * 5_000 + "the end", "fault": "out_of_range", "step": 9, "text": "y"},
    ]
    dropped = example("unparsed", located=None, intervention=None, continuations=[], candidates=told)
    page = Page(report.html({}, [dropped]))
    assert "candidate 1: unparsed" in page.text and "candidate 2: out of range" in page.text
    assert "no block " + HOSTILE in page.text and page.text.count("x") < 4_100 and "the end" in page.text
    assert "1,007 characters before" in page.text
    assert "candidate" not in Page(report.html({}, [example(candidates=told)])).text  # it was spliced


def test_numpy_is_written_as_numbers_and_other_types_are_refused_by_path(tmp_path):
    report.write_results(
        tmp_path / "r.json", {"a": np.float32(0.5), "b": np.arange(3), "c": (np.int64(1), True, None)}
    )
    assert json.loads((tmp_path / "r.json").read_text()) == {"a": 0.5, "b": [0, 1, 2], "c": [1, True, None]}
    with pytest.raises(TypeError, match=r"results: a\.b\[1\] is a set"):
        report.write_results(tmp_path / "r.json", {"a": {"b": [1, {2}]}})


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    target = tmp_path / "results.json"
    report.write_results(target, {"seed": 1})

    def full_disk(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(stages.os, "fsync", full_disk)
    with pytest.raises(stages.StageError, match=r"results\.json: no space left"):
        report.write_results(target, {"seed": 2})
    assert json.loads(target.read_text()) == {"seed": 1}


# ---- numbers


@pytest.mark.parametrize(
    ("fraction", "text"),
    [
        (0.123, "12.3%"),
        (0, "0.0%"),
        (1, "100.0%"),
        (0.00098, "0.10%"),
        (0.0005, "0.05%"),
        (1e-6, "<0.01%"),
        (0.5, "50.0%"),
    ],
)
def test_percent(fraction, text):
    assert cells.percent(fraction) == text


def test_estimate_and_duration():
    assert cells.estimate(0.123, (0.098, 0.149)) == "12.3% [9.8, 14.9]"
    assert cells.estimate(0.0043, (0.0028, 0.0061)) == "0.43% [0.28, 0.61]"
    assert cells.estimate(1.0, (0.98, 1.0)) == "100.0% [98.0, 100]"
    assert [cells.duration(s) for s in (7.25, 59.96, 492, 3600, 9000)] == [
        *("7.2 s", "60.0 s", "8 min 12 s", "1 h 00 min", "2 h 30 min"),
    ]


@given(st.floats(min_value=1e-12, max_value=1))
def test_what_is_positive_never_reads_as_zero(fraction):
    assert float(cells.percent(fraction).strip("<%")) > 0


def test_effect_ratio_where_the_wrong_step_never_succeeds():
    effect = copy.deepcopy(RESULTS["effect"])
    assert cells.effect_ratio(effect) == "24.7x"
    effect["prefix_error"] = condition(0, 0.0, 0.0, 0.005)
    assert cells.effect_ratio(effect) == "> 21.2x"  # 0.1061 over the interval's end
    effect["prefix_error"] = condition(0, 0.0, 0.0, 0.0)
    assert cells.effect_ratio(effect) == "> 67.9x"  # 0.1061 over one success in 640
    effect["prefix_intervention"] = condition(0, 0.0, 0.0, 0.0)
    assert cells.effect_ratio(effect) == "undefined: neither ever succeeded"


# ---- the screen


def test_tables_hold_every_number():
    screen = report.tables(RESULTS)
    for key, count in (RESULTS["funnel"] | RESULTS["tokens"]).items():
        label = "rl" if key == "rl" else cells.label(key)
        assert re.search(rf"^ +{label} +{count:,}( |$)", screen, re.MULTILINE), key
    squeezed = re.sub(r"(?<=\[) +|(?<=,) +", "", screen)
    for row in RESULTS["effect"].values():
        assert f"{row['solved']}/640" in screen
        assert cells.estimate(row["accuracy"], row["ci95"]).replace(", ", ",") in squeezed
    for split in ("eval", "eval_train"):
        for row in RESULTS[split].values():
            for item in row.values():
                assert cells.estimate(item["mean"], item["ci95"]).replace(", ", ",") in squeezed
    for name, values in RESULTS["drift"].items():
        assert all(f"{value:.3f}" in screen for value in values.values()), name
    for text in (
        "1,894/2,531",
        "2,368/2,531",
        "74.8% [73.1, 76.5]",
        "InT + RL",
        "24.7x",
        "InT + RL - RL",
        "-1.2% [-3.3, 0.8]",
        "89.2% → 70.8%",
        "seed 7",
    ):
        assert text in screen


def test_missing_sections_are_left_out_and_each_can_stand_alone():
    everything = {section.key: section.title.upper() for section in cells.sections(RESULTS)}
    assert list(everything) == [
        *("funnel", "effect", "eval", "gain", "proposers", "graders", "rl", "drift", "cost")
    ]
    assert not cells.sections({})
    needs = {"eval_train": "eval", "tokens": "cost", "wall_s": "cost"}
    for key in RESULTS.keys() - {"config", "seed", "versions", "policies"}:
        screen = report.tables({key: RESULTS[key], "policies": RESULTS["policies"]})
        assert [title for title in everything.values() if title in screen] == [
            everything[needs.get(key, key)]
        ]


def test_rl_of_one_run_may_be_bare():
    assert cells.rl_runs({"rl": curve(3)}) == {"rl": curve(3)}
    assert report.tables({"rl": curve(3)}) == report.tables({"rl": {"rl": curve(3)}})


@settings(max_examples=50, deadline=None)
@given(
    methods=st.lists(
        st.sampled_from(["base", "rl_matched", "int_rl", "a_baseline_with_a_very_long_name"]),
        min_size=1,
        unique=True,
    ),
    values=st.lists(st.floats(0, 1), min_size=3, max_size=3),
    count=st.integers(0, 10**12),
)
def test_tables_fit_the_screen(methods, values, count):
    low, mean, high = sorted(values)
    row = {
        f"pass@{k}": {"mean": mean, "ci95": [low, high], "problems": 1000, "samples": 128} for k in (1, 8, 64)
    }
    evals = dict.fromkeys(methods, row)
    proposers = {
        name: {"exact": 1, "located": 10**6, "traces": 10**6, "ci95": [low, high]} for name in methods
    }
    tokens = {**RESULTS["tokens"], "a_stage_with_a_name" * 5: count}
    results = {**RESULTS, "eval": evals, "eval_train": evals, "proposers": proposers, "tokens": tokens}
    results["funnel"] = {**RESULTS["funnel"], "guided": count}
    results["versions"] = {f"package_{i}": "1.2.3" for i in range(12)}
    assert max(map(len, report.tables(results).splitlines())) <= cells.WIDTH


def test_the_table_over_seeds_holds_every_policy_and_difference():
    rows = {
        "base": {"mean": 0.01, "ci95": [0.002, 0.02], "seeds": [0.0, 0.02]},
        "int_rl - rl_matched": {"mean": -0.05, "ci95": [-0.1, 0.01], "seeds": [-0.11, 0.01]},
    }
    screen = report.seeds_table({"pass@1": rows, "pass@8": rows}, POLICIES)
    for line in (
        r"pass@8 +base +1\.0% .*  0\.0  2\.0",
        r"pass@1 +InT \+ RL - RL matched +-5\.0% .* -11\.0  1\.0",
    ):
        assert re.search(line, screen)
    assert max(map(len, screen.splitlines())) <= cells.WIDTH


# ---- scalars


def tb_frames(logdir) -> list[event_pb2.Event]:
    """The Event messages of the logdir's event files: TFRecord frames (length, its checksum, message, checksum)."""
    found = []
    for path in sorted(logdir.glob("events.*")):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack("<Q", data[at : at + 8])
            found.append(event_pb2.Event.FromString(data[at + 12 : at + 12 + length]))
            at += 12 + length + 4
    return found


def tb_events(logdir) -> list[tuple[int, str, float]]:
    """(step, tag, value) of each scalar in the logdir's event files."""
    return [
        (event.step, value.tag, value.simple_value)
        for event in tb_frames(logdir)
        for value in event.summary.value
    ]


def lines(logdir) -> list[dict]:
    return [json.loads(line) for line in (logdir / "scalars.jsonl").read_text().splitlines()]


def test_scalars_reach_tensorboard_and_the_jsonl(tmp_path):
    with report.Scalars(tmp_path, builds=[tensorboard.build]) as scalars:
        scalars.write(3, {"reward": np.float32(0.5), "length": 61})
        scalars.write(4, {"loss": 1.5})
        scalars.write(5, {"loss": math.nan})
    assert lines(tmp_path) == [
        {"step": 3, "reward": 0.5, "length": 61.0},
        {"step": 4, "loss": 1.5},
        {"step": 5, "loss": None},
    ]
    assert tb_events(tmp_path)[:3] == [(3, "reward", 0.5), (3, "length", 61.0), (4, "loss", 1.5)]


def test_a_line_is_on_disk_before_close(tmp_path):
    scalars = report.Scalars(tmp_path)
    scalars.write(0, {"loss": 1.0})
    assert lines(tmp_path) == [{"step": 0, "loss": 1.0}]
    scalars.close()


@settings(max_examples=15, deadline=None)
@given(
    steps=st.lists(st.integers(0, 9), max_size=12).map(sorted),
    resume=st.none() | st.integers(0, 10),
    torn=st.booleans(),
)
def test_resume_drops_exactly_the_later_lines_and_a_torn_one(tmp_path_factory, steps, resume, torn):
    logdir = tmp_path_factory.mktemp("log")
    written = [json.dumps({"step": step, "n": n}) + "\n" for n, step in enumerate(steps)]
    (logdir / "scalars.jsonl").write_text("".join(written) + ('{"step": 0, "n"' if torn else ""))
    with report.Scalars(logdir, resume_step=resume) as scalars:
        scalars.write(99, {"n": 0})
    kept = [n for n, step in enumerate(steps) if resume is None or step < resume]
    assert [line["n"] for line in lines(logdir)] == [*kept, 0]


def test_a_resumed_run_ends_with_the_bytes_of_an_uninterrupted_one(tmp_path):
    def write(logdir, steps, resume_step=None):
        with report.Scalars(logdir, resume_step) as scalars:
            for step in steps:
                scalars.write(step, {"loss": 1 / (step + 1)})

    write(tmp_path / "whole", range(8))
    write(tmp_path / "killed", range(6))
    write(tmp_path / "killed", range(4, 8), resume_step=4)
    assert (tmp_path / "whole/scalars.jsonl").read_bytes() == (tmp_path / "killed/scalars.jsonl").read_bytes()


def test_tensorboard_is_told_from_which_step_to_forget(tmp_path):
    for resume_step in (None, 4):
        with report.Scalars(tmp_path / str(resume_step), resume_step, [tensorboard.build]) as scalars:
            scalars.write(4, {"loss": 1.0})
    starts = {
        name: [event.step for event in tb_frames(tmp_path / name) if event.HasField("session_log")]
        for name in ("None", "4")
    }
    assert starts == {"None": [], "4": [4]}


def test_a_disk_that_is_full_is_told_once_and_ends_what_writes_to_tensorboard(tmp_path):
    """Not a thread of it, for which the process would wait; and nothing follows when the process ends."""
    program = (
        "import sys, tensorboardX.record_writer as files\n"
        "from int_jax import report, stages\n"
        "from int_jax.report.writers import tensorboard\n"
        "files.open_file = lambda path: open('/dev/full', 'wb')\n"
        "try:\n"
        "    with report.Scalars(sys.argv[1], builds=[tensorboard.build]) as scalars:\n"
        "        [scalars.write(step, {'loss': 1.0}) for step in range(99)]\n"
        "except stages.StageError as error:\n"
        "    sys.exit(str(error))\n"
    )
    done = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True)
    assert done.returncode == 1
    assert re.fullmatch(f"{tmp_path}: no space left on the disk.*\n", done.stderr), done.stderr
    assert len(lines(tmp_path)) == 1


# ---- the page


class Page(HTMLParser):
    """Checks the balance of tags; collects elements, attributes and the text outside script and style."""

    VOID = frozenset({"meta", "br", "img", "link", "input", "hr"})

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.text = [], [], ""
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> at {self.getpos()} closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data):
        self.text += "" if self.open[-1:] in (["script"], ["style"]) else data

    def count(self, tag, **attributes):
        return sum(
            t == tag and all(a.get(k.rstrip("_")) == v for k, v in attributes.items()) for t, a in self.tags
        )


EXAMPLES = [
    example(),
    example("no_success", located=0, step=0, true_error=2),
    example("unparsed", located=None, intervention=None, continuations=[]),
    example("out_of_range", located=9, step=9, true_error=None, continuations=[]),
]


@pytest.mark.parametrize(
    "results",
    [RESULTS, {}, {"rl": curve(1)}, {"eval": RESULTS["eval"]}],
    ids=["full", "empty", "one update", "eval"],
)
@pytest.mark.parametrize("examples", [EXAMPLES, []], ids=["traces", "no traces"])
def test_the_page_is_balanced_and_needs_nothing_else(results, examples):
    text = report.html(results, examples)
    page = Page(text)
    assert not re.search(r"https?://|//[a-z]+\.|@import|url\((?!#)", text)
    assert not [(tag, a) for tag, a in page.tags if a.keys() & {"src", "href", "srcset", "action", "data"}]
    assert page.count("article") == len(examples)
    assert "nan" not in " ".join(
        a[key] for _, a in page.tags for key in a.keys() & {"points", "d", "x", "y", "cx", "cy", "width"}
    )


def test_hostile_text_stays_text():
    results = copy.deepcopy(RESULTS)
    results["config"]["name"] = HOSTILE
    results["versions"][HOSTILE] = HOSTILE
    results["funnel"][HOSTILE] = 1
    results["proposers"][HOSTILE] = results["proposers"]["self_verify"]
    results["eval"][HOSTILE] = results["eval"]["base"]
    hostile = example(outcome=HOSTILE, text=HOSTILE)
    page, plain = (
        Page(report.html(results, [hostile], {HOSTILE: curve(4)})),
        Page(report.html(RESULTS, [example()], {"rl": curve(4)})),
    )
    assert page.count("script") == plain.count("script") == 1
    assert page.count("img") == 0
    assert not [a for _, a in page.tags if any(name.startswith("on") for name in a)]
    for part in ("problem", "reference", "answer", "mended", "proposer", "right", "wrong"):
        assert f"{HOSTILE} {part}" in page.text
    assert page.text.count(HOSTILE) > 12


def test_only_the_pages_own_script_may_run():
    text = report.html(RESULTS, EXAMPLES)
    policy = next(a["content"] for tag, a in Page(text).tags if tag == "meta" and "http-equiv" in a)
    script = re.search(r"<script>(.*)</script>", text, re.DOTALL)[1]
    digest = page.base64.b64encode(page.hashlib.sha256(script.encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def test_the_page_holds_the_tables_numbers():
    text = Page(report.html(RESULTS)).text
    for section in cells.sections(RESULTS):
        assert section.title in text
        for row in section.rows:
            for cell in row[1:]:
                assert " ".join(cell.split()) in " ".join(text.replace("\u2007", " ").split()), (
                    section.key,
                    cell,
                )


def test_steps_marks_and_verdicts():
    right, wrong, nothing, outside = (Page(report.html({}, [item])) for item in EXAMPLES)
    assert right.count("li", class_="step located true") == 1
    assert (wrong.count("li", class_="step located"), wrong.count("li", class_="step true after")) == (1, 1)
    assert "error located in step 1, the oracle says step 3" in " ".join(wrong.text.split())
    assert "no error located" in nothing.text
    assert "No intervention (dropped: unparsed)" in nothing.text
    assert "error located in step 10, out of range" in " ".join(outside.text.split())
    assert "Not spliced (dropped: out of range)" in outside.text
    assert (right.count("li", class_="passed"), right.count("li", class_="failed")) == (1, 1)
    assert ("✓" in right.text, "✗" in right.text, "1 of 2 correct" in right.text) == (True, True, True)
    assert right.text.count("▶ located") == 1
    assert "1 of 3 steps kept" in right.text


def test_filters_count_every_trace_once():
    page = Page(report.html({}, [*EXAMPLES, EXAMPLES[2]]))
    boxes = [a["data-filter"] for tag, a in page.tags if tag == "button" and "data-filter" in a]
    assert boxes == ["", "kept", "unparsed", "no_success", "out_of_range"]
    assert [a["data-outcome"] for tag, a in page.tags if tag == "article"].count("unparsed") == 2


@given(st.lists(st.tuples(st.text("ab\n \r", min_size=1), st.floats(-50, 0)), max_size=12))
def test_drawn_tokens_hold_every_character_once(tokens):
    pieces, logp = [piece for piece, _ in tokens], [value for _, value in tokens]
    drawn = page._tokens(pieces, logp)
    assert [t["text"].replace("↵\n", "\n").replace("↵", "\n") for t in drawn] == pieces
    lines_drawn = "".join(t["text"] for t in drawn).replace("↵", "")
    assert lines_drawn == "".join(pieces).rstrip("\n")  # a line breaks where a step goes on, and only there
    for token, value in zip(drawn, logp, strict=True):
        bounds = [1.0, *(least for least, _ in page.PROBABILITY_BANDS)]
        assert bounds[token["band"] + 1] <= math.exp(value) <= bounds[token["band"]]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=120), st.booleans())
def test_plots_stay_inside_their_box(values, is_share):
    plot = plots.line_plot("reward", {"rl": values, "int_rl": values[:1]}, is_share)
    for series in plot["series"]:
        for point in f"{series['raw']} {series['mean']}".split():
            x, y = map(float, point.split(","))
            assert plots.LEFT <= x <= plots.PLOT_W - plots.RIGHT + 0.1
            assert plots.TOP - 0.1 <= y <= plots.PLOT_H - plots.BOTTOM + 0.1


@given(st.lists(st.floats(plots.TOP, plots.PLOT_H - plots.BOTTOM), min_size=1, max_size=6))
def test_end_labels_do_not_touch_and_stay_beside_the_plot(heights):
    placed = plots._spread(heights)
    assert plots.TOP <= min(placed) <= max(placed) <= plots.PLOT_H - plots.BOTTOM
    assert all(b - a >= 15 - 1e-9 for a, b in itertools.pairwise(sorted(placed)))
    assert sorted(range(len(placed)), key=lambda i: (heights[i], i)) == sorted(
        range(len(placed)), key=placed.__getitem__
    )


@given(st.floats(-1e6, 1e6), st.floats(1e-9, 1e6))
def test_ticks_cover_the_range_with_few_round_steps(low, width):
    made = plots.ticks(low, low + width)
    assert made[0] <= low + 1e-6 * abs(low) + 1e-6 * width
    assert made[-1] >= low + width - 1e-6 * abs(low) - 1e-6 * width
    assert 2 <= len(made) <= 8


def test_smooth_keeps_a_constant_and_the_length():
    np.testing.assert_allclose(plots.smooth(np.full(50, 0.3), 7), 0.3)
    assert plots._window(150) % 2 == 1
    np.testing.assert_array_equal(plots.smooth([1.0, 2.0], plots._window(2)), [1.0, 2.0])


def test_write_html_is_whole_or_absent(tmp_path):
    report.write_html(tmp_path / "report.html", RESULTS, EXAMPLES)
    assert (tmp_path / "report.html").read_text() == report.html(RESULTS, EXAMPLES)
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


# ---- while it trains

VALIDATION = {  # a policy that rose and fell, and one that was evaluated once
    "rl": {
        "batch": [4, 8, 12, 13],
        "pass_at_1": [0.1, 0.5, 0.5, 0.3],
        "pass_at_1_low": [0.0, 0.4, 0.4, 0.2],
        "pass_at_1_high": [0.2, 0.6, 0.7, 0.4],
    },
    "int": {"batch": [2], "pass_at_1": [0.25], "pass_at_1_low": [0.25], "pass_at_1_high": [0.25]},
}


def test_validation_tells_the_best_and_the_last():
    found = {"validation": VALIDATION, "policies": RESULTS["policies"]}
    [section] = cells.sections(found)
    assert section.columns == ["policy", "times", "best", "last"]
    rows = {row[0]: row[1:] for row in section.rows}
    assert rows["RL"] == ["4", "50.0% [40.0, 70.0] after 12", "30.0% [20.0, 40.0] after 13"]
    assert rows["InT"] == ["1", "25.0% [25.0, 25.0] after 2", "25.0% [25.0, 25.0] after 2"]
    assert max(map(len, report.tables(found).splitlines())) <= 100


def test_validation_is_drawn_where_it_was_measured_with_its_interval():
    plot = plots.validation_plot(VALIDATION, {})
    series = {one["style"]: one for one in plot["series"]}
    points = [tuple(map(float, point.split(","))) for point in series["rl"]["raw"].split()]
    axes = plots.Axes(12, 0.0, 1.0)
    assert points == [
        (axes.x(b - 1), axes.y(v)) for b, v in zip((4, 8, 12, 13), (0.1, 0.5, 0.5, 0.3), strict=True)
    ]
    band = [tuple(map(float, point.split(","))) for point in series["rl"]["band"].split()]
    assert [x for x, _ in band] == [x for x, _ in points] + [x for x, _ in reversed(points)]
    assert all(
        high <= y <= low for (_, y), (_, high), (_, low) in zip(points, band, reversed(band), strict=False)
    )
    assert "diverged" not in series["rl"]["label"]
    page = Page(report.html({"policies": RESULTS["policies"], "validation": VALIDATION}))
    assert "Shaded: 95% intervals" in page.text and plots.validation_plot({}, {}) is None


def test_a_page_says_whether_the_run_is_over():
    for finished, said in ((True, False), (False, True)):
        text = Page(report.html({**RESULTS, "finished": finished})).text
        assert (page.UNFINISHED in " ".join(text.split())) == said
    assert page.UNFINISHED not in report.html(RESULTS)
