"""The HTML report: headlines, tables, plots and the trace viewer in one file. Its looks live in assets/report/."""

import base64
import dataclasses
import functools
import hashlib
import itertools
import json
import math
import operator
import pathlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence

import jinja2
from markupsafe import Markup

from int_jax import disk
from int_jax.report.cells import (
    CONDITIONS,
    DASH,
    SCRIPTED,
    Policies,
    effect_ratio,
    facts,
    label,
    metrics,
    number,
    percent,
    policies_of,
    rl_runs,
    sections,
    share,
)
from int_jax.report.plots import (
    BOTTOM,
    LEFT,
    PLOT_H,
    PLOT_W,
    RIGHT,
    TOP,
    bar_plot,
    curve_plots,
    pass_plots,
    validation_plot,
)
from int_jax.report.results import plain
from int_jax.rows import GainRow
from int_jax.stages import write_atomically
from int_jax.types import Intervention, Task

ASSETS = pathlib.Path(__file__).parents[1] / "assets" / "report"


@dataclasses.dataclass(frozen=True)
class Attempt:
    """A wrong attempt, ready for display, so that no tokenizer is needed here.

    Attributes:
      pieces: text of each response token. logp: its log-probability (nats).
      step_ends: offsets (exclusive) into `pieces`; what follows the last is the tail (the stop token).
    """

    pieces: list[str]
    logp: list[float]
    step_ends: list[int]

    def steps(self) -> list[str]:
        starts = [0, *self.step_ends[:-1]]
        return ["".join(self.pieces[a:b]) for a, b in zip(starts, self.step_ends, strict=True)]


@dataclasses.dataclass(frozen=True)
class Turn:
    """An own turn of a conversation and the reply to it.

    Attributes:
      pieces, logp: of the own turn's tokens, as of an Attempt.
      reply: what the partner said, "" where nothing. tags: what that told.
      regret: what the turn lost of the score, in expectation; None where that is not known.
    """

    pieces: list[str]
    logp: list[float]
    reply: str = ""
    tags: tuple[str, ...] = ()
    regret: float | None = None


@dataclasses.dataclass(frozen=True)
class Conversation:
    """A wrong attempt whose steps are turns, ready for display. own, other: what the two sides are called.
    score: what it was worth."""

    turns: list[Turn]
    own: str
    other: str
    score: float


@dataclasses.dataclass(frozen=True)
class Example:
    """One attempt's way through the funnel.

    Attributes:
      located, true_error: zero-based step of the proposer's, and of the oracle's, first error; None: cannot tell.
      outcome: "kept", or the reason why it was dropped.
      continuations: (text, passed) of each continuation of the guided attempt; of a conversation the partner's lines
        begin with "> " (`rollout.text_from`), in `gain` too.
      candidates: what the proposer said, {"raw", "fault", ...} each (proposers.Drops.tried).
      gain: paired continuations of a conversation, from the intervention and from the attempt's own turn.
    """

    task: Task
    attempt: Attempt | Conversation
    located: int | None
    true_error: int | None
    intervention: Intervention | None
    outcome: str
    continuations: list[tuple[str, bool]] = dataclasses.field(default_factory=list)
    candidates: list[dict] = dataclasses.field(default_factory=list)
    gain: GainRow | None = None


UNFINISHED = "This run is not finished: the page holds what there is so far. The same command goes on."
RAW_SHOWN = 4_000  # characters of a proposer's output that the page holds; the whole is in the workdir
PROBABILITY_BANDS = (
    (0.9, "0.9 or more"),
    (0.5, "0.5 to 0.9"),
    (0.1, "0.1 to 0.5"),
    (0.01, "0.01 to 0.1"),
    (0.0, "under 0.01"),
)


def _band(logp: float) -> int:
    """The index in PROBABILITY_BANDS of a token's probability."""
    # From the highest down; a probability that is not a number is in none, and gets the last.
    bands = (i for i, (least, _) in enumerate(PROBABILITY_BANDS) if math.exp(logp) >= least)
    return next(bands, len(PROBABILITY_BANDS) - 1)


def _tokens(pieces: Sequence[str], logp: Sequence[float]) -> list[dict]:
    """Tokens as drawn: a newline is visible (↵) and breaks the line only if the step goes on after it."""
    # From the end, since `more` is whether anything but newlines follows in the step.
    drawn, more = [], False
    for piece, value in zip(reversed(pieces), reversed(logp), strict=True):
        body = piece.rstrip("\n")
        ending = ("↵\n" if more else "↵") * (len(piece) - len(body))
        tip = f"p {math.exp(value):.3g}, log p {value:.2f}"
        # "a\nb\n\n" at the end of a step: a↵, a break, b↵↵.
        drawn.append({"text": body.replace("\n", "↵\n") + ending, "band": _band(value), "tip": tip})
        more = more or bool(body)
    return drawn[::-1]


def _view(example: Example) -> dict:
    """What the template shows of an example."""
    attempt, at = example.attempt, example.intervention.step if example.intervention else -1
    if talk := isinstance(attempt, Conversation):
        spliced = 0 <= at < len(attempt.turns)
        shown = _turns(attempt)
        shown["branches"] = _branches(attempt, at, example.gain) if spliced and example.gain else None
    else:
        spliced = 0 <= at < len(attempt.step_ends)
        shown = _steps(attempt, at if spliced else 0)
    return {
        **shown,
        "talk": talk,
        "task": example.task,
        "located": example.located,
        "true_error": example.true_error,
        "intervention": example.intervention,
        "spliced": spliced,
        "outcome": example.outcome,
        "label": "kept" if example.outcome == "kept" else f"dropped: {label(example.outcome)}",
        "continuations": [
            (_said_by_turns(text) if talk else text.strip("\n"), passed)
            for text, passed in example.continuations
        ],
        "solved": sum(passed for _, passed in example.continuations),
        "said": [] if spliced else [_said(candidate) for candidate in example.candidates],
    }


def _steps(attempt: Attempt, kept: int) -> dict:
    """Steps, tail, and the texts of the first `kept` steps."""
    # Steps that end at 5 and 9 of 10 pieces: 0..5, 5..9 and the tail, 9..10.
    bounds = list(zip([0, *attempt.step_ends], [*attempt.step_ends, len(attempt.pieces)], strict=True))
    drawn = [_tokens(attempt.pieces[a:b], attempt.logp[a:b]) for a, b in bounds]
    prefix = [step.rstrip("\n") for step in attempt.steps()[:kept]]
    return {"steps": drawn[:-1], "tail": drawn[-1], "prefix": prefix}


def _turns(attempt: Conversation) -> dict:
    """The turns of a conversation, the names of its sides, and its score."""
    steps = [
        {
            "tokens": _tokens(turn.pieces, turn.logp),
            "reply": turn.reply,
            "tags": turn.tags,
            "regret": "" if turn.regret is None else number(turn.regret, ".2f"),
            # Of a bar as long as the whole score.
            "bar": 100 * min(max(turn.regret or 0.0, 0.0), 1.0),
        }
        for turn in attempt.turns
    ]
    return {
        "steps": steps,
        "own": attempt.own,
        "other": attempt.other,
        "score": number(attempt.score, ".2f"),
        "scripted": any(step["regret"] for step in steps),
    }


def _said_by_turns(text: str) -> list[tuple[bool, str]]:
    """The turns of a conversation from its text (`rollout.text_from`): (whether the partner's, words)."""
    lines = [(line.startswith("> "), line.removeprefix("> ")) for line in text.split("\n") if text]
    grouped = itertools.groupby(lines, key=operator.itemgetter(0))
    return [(theirs, "\n".join(words for _, words in some)) for theirs, some in grouped]


def _branches(talk: Conversation, step: int, row: GainRow) -> dict:
    """Both branches of a conversation, from its own turn `step` and from the intervention in its place: scores of the
    continuations, and the turns of the first of each."""
    # The own turn's continuations go on behind the reply to it, unless that was the last word.
    reply = talk.turns[step].reply if step + 1 < len(talk.turns) else ""
    left, mended = _branch(row.left, row.shown[1]), _branch(row.mended, row.shown[0])
    left["said"] = [*([(True, reply)] if reply else []), *left["said"]]
    return {"gain": f"{row.gain:+.3f}", "left": left, "mended": mended}


def _branch(scores: Sequence[float], text: str) -> dict:
    mean = f"{sum(scores) / len(scores):.3f}" if scores else DASH
    return {"mean": mean, "scores": [f"{score:.2f}" for score in scores], "said": _said_by_turns(text)}


def _said(candidate: Mapping) -> dict[str, str]:
    """A candidate that was not used: its fault, and the end of what the proposer said, where the step should stand."""
    raw, fault = candidate["raw"], label(candidate["fault"])
    cut = f"… {len(raw) - RAW_SHOWN:,} characters before …\n" if len(raw) > RAW_SHOWN else ""
    return {"fault": fault, "raw": cut + raw[-RAW_SHOWN:]}


def _filters(views: Sequence[Mapping]) -> list[tuple[str, str, int]]:
    """(outcome, label, count) of each filter box: all, kept, then the reasons, the most frequent first."""
    counts = Counter((view["outcome"], view["label"]) for view in views)
    # False sorts before True: what was kept, then the reasons, the most frequent first, of equal ones by name.
    order = sorted(counts.items(), key=lambda item: (item[0][0] != "kept", -item[1], item[0]))
    return [("", "all", len(views)), *((outcome, label, count) for (outcome, label), count in order)]


def headlines(results: Mapping) -> list[tuple[str, str]]:
    """(number, what it is): the few numbers that a reader wants first."""
    found = []
    effect, test, funnel = results.get("effect", {}), results.get("eval", {}), results.get("funnel", {})
    if {"prefix_error", "prefix_intervention"} <= effect.keys():
        found.append(
            (effect_ratio(effect), "accuracy with the intervention over accuracy with the own wrong step")
        )
    policies = policies_of(results)
    for name in (name for name, one in policies.items() if one["headline"]):
        for key in metrics(test)[:1]:  # the score where there is one, else pass@1
            if key in test.get(name, {}):
                found.append((percent(test[name][key]["mean"]), f"held-out {key}, {label(name, policies)}"))
    if funnel.get("spliced") and "kept" in funnel:
        found.append(
            (percent(share(funnel["kept"], funnel["spliced"])), "of the spliced interventions were kept")
        )
    return found


COLORS = ("blue", "orange", "green", "grey", "violet")  # of report.css


def styles(policies: Policies) -> str:
    """The stylesheet of the policies' lines and bars.

    Raises: ValueError for a colour or dashes that the stylesheet does not have.
    """
    rules = []
    for name, one in policies.items():
        if one["color"] not in COLORS or not re.fullmatch(r"[\d ]*", one["dash"]):
            raise ValueError(
                f"policy {name!r}: color {one['color']!r} must be one of {', '.join(COLORS)}, and dash "
                f"{one['dash']!r} numbers such as '6 4', or ''"
            )
        color = f"var(--{one['color']})"
        dash = f" .mean.line-{name} {{ stroke-dasharray: {one['dash']}; }}" if one["dash"] else ""
        rules.append(
            f".line-{name} {{ stroke: {color}; }}{dash} .dot.line-{name}, .bar-{name} {{ fill: {color}; }}"
        )
    return "\n".join([*rules, ""])


def _cell(text: str) -> str:
    """A cell whose padding (at its start, and inside an interval) survives in HTML, as spaces as wide as a digit."""
    # " 5.0% [ 1.0,  9.5]": the padding, not the single spaces between.
    return re.sub(r"^ +|(?<=\[) +|(?<=, ) +", lambda found: "\u2007" * len(found[0]), text)


def html(
    results: Mapping, examples: Sequence[Example] = (), curves: Mapping[str, Mapping] | None = None
) -> str:
    """The report: one file that needs nothing but itself. `curves`: RL run -> curves (default: `results["rl"]`).

    Everything is escaped by the template; a content-security policy lets only this page's own script run.
    """
    results = plain(results)
    curves = rl_runs(results) if curves is None else plain(curves)
    script = (ASSETS / "report.js").read_text(encoding="utf-8")
    views = [_view(example) for example in examples]
    policies = policies_of(results)
    line_plots, area_plots = curve_plots(curves, policies)
    effect = {
        key: (row["accuracy"], row["ci95"])
        for key in CONDITIONS
        if (row := results.get("effect", {}).get(key))
    }
    gains = {
        name: (row["mean"], row["ci95"])
        for name, row in results.get("intervention_gain", {}).items()
        if row["traces"]
    }
    sheets = ["report.css", *["conversation.css"] * any(view["talk"] for view in views)]
    style = "".join((ASSETS / name).read_text(encoding="utf-8") for name in sheets)
    config = results.get("config")
    return _template().render(
        style=Markup(style + styles(policies)),
        script=Markup(script),
        # As the page's content-security policy names the only script that may run.
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        facts=facts(results),
        config=json.dumps(config, indent=1) if isinstance(config, Mapping) else "",
        headlines=headlines(results),
        notes=[*([] if results.get("finished", True) else [UNFINISHED]), *results.get("notes", [])],
        sections=sections({**results, "rl": curves}),
        effect_plot=bar_plot("Accuracy of continuations", effect) if effect else None,
        gain_plot=bar_plot("Gain of an intervention, in score", gains) if gains else None,
        pass_plots=pass_plots(results),
        validation_plot=validation_plot(results.get("validation", {}), policies),
        line_plots=line_plots,
        area_plots=area_plots,
        plot={"w": PLOT_W, "h": PLOT_H, "left": LEFT, "right": RIGHT, "top": TOP, "bottom": BOTTOM},
        bands=PROBABILITY_BANDS,
        scripted=SCRIPTED,
        views=views,
        filters=_filters(views),
    )


@functools.cache
def _template() -> jinja2.Template:
    """Compiled once: a page is written again and again while a run trains."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ASSETS),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["cell"] = _cell
    return environment.get_template("report.html")


def write_html(
    path, results: Mapping, examples: Sequence[Example] = (), curves: Mapping[str, Mapping] | None = None
) -> None:
    """`html`, written atomically."""
    write_atomically(disk.place(path), html(results, examples, curves))
