"""What a run leaves to be read: results.json, TensorBoard scalars, the end-of-run tables, the HTML report.

Pure host code. Numbers come from `results` (keys: design, section 5; fractions in [0, 1], times in seconds) and are
shown as they are: a section whose numbers are missing is left out. `sections` is the one place that turns numbers into
cells; the screen (`tables`) and the page (`html`) draw the same cells. The page's looks live in `assets/report/`.
"""

import base64
import dataclasses
import hashlib
import itertools
import json
import math
import os
import pathlib
import re
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jinja2
import numpy as np
import tensorboardX
from markupsafe import Markup

from int_jax.types import Intervention, Task

ASSETS = pathlib.Path(__file__).parent / "assets" / "report"

# Every known key, in the order in which it is written and shown; unknown keys follow, by name.
ORDER = (
    *("config", "seed", "versions", "wall_s", "tokens", "funnel", "effect"),
    *(
        "problems",
        "hard",
        "attempts",
        "wrong",
        "proposals",
        "propose",
        "proposed",
        "unparsed",
        "out_of_range",
        "empty",
    ),
    *("leaked", "too_long", "spliced", "guided", "kept", "kept_right", "problems_kept"),
    *("problem", "prefix", "prefix_error", "prefix_intervention", "intervention", "reference"),
    *(
        "base",
        "sft",
        "rl",
        "rl_matched",
        "int",
        "int_rl",
        "eval",
        "eval_train",
        "proposers",
        "drift",
        "nll",
        "entropy",
    ),
    *("solved", "exact", "located", "traces", "mean", "accuracy", "ci95", "samples"),
    *("reward", "zero_advantage", "never", "sometimes", "always", "length", "logp_gap"),
)
LABELS = {
    "base": "base",
    "rl": "RL",
    "rl_matched": "RL matched",
    "int": "InT",
    "int_rl": "InT + RL",
    "problem": "problem alone",
    "prefix": "prefix before the located step",
    "prefix_error": "prefix + own wrong step",
    "prefix_intervention": "prefix + intervention",
    "out_of_range": "out of range",
    "too_long": "too long",
    "kept_right": "right by the oracle",
    "problems_kept": "problems kept",
}
METHODS = ("base", "rl", "rl_matched", "int", "int_rl")
CONDITIONS = ("problem", "prefix", "prefix_error", "prefix_intervention")
# A funnel count -> the earlier count it is a share of. `guided` may count attempts or continuations, so `kept` is
# measured against what was spliced.
SHARE_OF = {
    "hard": "problems",
    "attempts": "problems",
    "wrong": "attempts",
    "proposed": "wrong",
    "unparsed": "proposed",
    "out_of_range": "proposed",
    "empty": "proposed",
    "leaked": "proposed",
    "too_long": "proposed",
    "spliced": "proposed",
    "guided": "spliced",
    "kept": "spliced",
    "kept_right": "kept",
    "problems_kept": "problems",
}
INDENTED = ("unparsed", "out_of_range", "empty", "leaked", "too_long", "kept_right")


# ---- results.json


def _rank(key: str) -> tuple:
    """Known keys in ORDER, then the others by name, numbers in them by size (pass@8 before pass@16)."""
    natural = [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", key)]
    return (ORDER.index(key) if key in ORDER else len(ORDER), natural)


def _plain(value: Any, path: str) -> Any:
    """`value` as JSON types with keys in order; NaN, infinity and foreign types raise, naming the key path."""
    if isinstance(value, (np.generic, np.ndarray)):
        value = value.tolist()
    if isinstance(value, Mapping):
        if foreign := [key for key in value if not isinstance(key, str)]:
            raise TypeError(
                f"results: {path or 'the top level'} has the key {foreign[0]!r}; keys must be strings"
            )
        return {key: _plain(value[key], f"{path}.{key}" if path else key) for key in sorted(value, key=_rank)}
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{path}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(
            f"results: {path} is {value}; JSON cannot hold it, so mend the number or leave the key out"
        )
    if value is not None and not isinstance(value, (str, int, float)):
        raise TypeError(f"results: {path} is a {type(value).__name__}; use numbers, strings, lists and dicts")
    return value


def _write(path, text: str) -> None:
    """All of `text` appears at `path`, or none of it: a temporary neighbour, fsync, rename."""
    path = pathlib.Path(path)
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_results(path, results: Mapping) -> None:
    """Write results.json atomically, keys in a fixed order, so that equal results are equal bytes."""
    _write(path, json.dumps(_plain(results, ""), indent=1, allow_nan=False, ensure_ascii=False) + "\n")


# ---- scalars


class Scalars:
    """Scalars of one stage (one step axis): TensorBoard events, and the same lines in `logdir/scalars.jsonl`.

    `resume_step=k` forgets what an interrupted run wrote at step k and later, in both. A last line torn by a kill is
    always dropped. A value that is not finite is null in the JSONL, whose lines hold no times: a resumed run ends
    with the bytes of an uninterrupted one.
    """

    def __init__(self, logdir, resume_step: int | None = None):
        self.path = pathlib.Path(logdir) / "scalars.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            _write(self.path, _kept_lines(self.path.read_text(encoding="utf-8"), resume_step))
        self._lines = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 (closed by close)
        self._events = tensorboardX.SummaryWriter(str(logdir), purge_step=resume_step, flush_secs=10)

    def write(self, step: int, mapping: Mapping[str, float], prefix: str = "") -> None:
        """Log `mapping` at `step`; `prefix` ("rl") groups the tags ("rl/reward")."""
        values = {f"{prefix}/{name}" if prefix else name: float(value) for name, value in mapping.items()}
        for tag, value in values.items():
            self._events.add_scalar(tag, value, int(step))
        finite = {tag: value if math.isfinite(value) else None for tag, value in values.items()}
        self._lines.write(json.dumps({"step": int(step), **finite}) + "\n")
        self._lines.flush()

    def close(self) -> None:
        self._lines.close()
        self._events.close()

    def __enter__(self) -> "Scalars":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def _kept_lines(text: str, resume_step: int | None) -> str:
    """The whole lines of a JSONL whose step is before `resume_step` (None: all of them)."""
    whole = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return "".join(line for line in whole if resume_step is None or json.loads(line)["step"] < resume_step)


# ---- numbers as text


def percent(fraction: float) -> str:
    """0.123 -> "12.3%"; two decimals below 1%; what is positive never reads as zero: 1e-6 -> "<0.01%"."""
    if 0 < fraction < 0.00005:
        return "<0.01%"
    return f"{100 * fraction:.{2 if 0 < fraction < 0.01 else 1}f}%"


def estimate(fraction: float, ci95: Sequence[float]) -> str:
    """A percentage with its interval: "12.3% [9.8, 14.9]"; both with two decimals where they are small."""
    decimals = 2 if 0 < fraction < 0.01 and ci95[1] < 0.09 else 1
    ends = [f"{100 * end:.{decimals}f}".replace("100.0", "100") for end in ci95]
    return f"{percent(fraction)} [{', '.join(ends)}]"


def _aligned(estimates: Sequence[tuple[float, Sequence[float]] | None]) -> list[str]:
    """A column of estimates, padded so that values and both ends of the intervals stand under one another."""
    cells = [re.split(r" \[|, |\]", estimate(*item)) if item else ["", "", "", ""] for item in estimates]
    value, low, high, _ = (max(map(len, part)) for part in zip(*cells, strict=True))
    return [f"{v:>{value}} [{a:>{low}}, {b:>{high}}]" if v else "–" for v, a, b, _ in cells]


def duration(seconds: float) -> str:
    """492 -> "8 min 12 s"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _label(key: str) -> str:
    return LABELS.get(key, key.replace("_", " "))


def _ordered(mapping: Mapping, first: Sequence[str] = ()) -> list[str]:
    """The keys of `mapping`: those of `first` in its order, then the rest in ORDER."""
    return [key for key in first if key in mapping] + sorted(mapping.keys() - set(first), key=_rank)


# ---- sections: the tables' cells


class Section(NamedTuple):
    """One table of finished cells; the columns named in `left` are aligned left, the others right."""

    key: str
    title: str
    columns: list[str]
    rows: list[list[str]]
    note: str = ""
    left: tuple[int, ...] = (0,)


def _funnel(funnel: Mapping[str, int]) -> Section:
    rows = []
    for key in _ordered(funnel):
        base = SHARE_OF.get(key, "")
        rate = ""
        if funnel.get(base):
            share = funnel[key] / funnel[base]
            many = f"{share:.1f}".rjust(5) + f"  per {base.removesuffix('s')}"
            rate = f"{percent(share):>6} of {_label(base)}" if share <= 1 else many
        rows.append([("  " if key in INDENTED else "") + _label(key), f"{funnel[key]:,}", rate])
    return Section(
        "funnel", "From attempts to kept interventions", ["stage", "count", "rate"], rows, left=(0, 2)
    )


def effect_ratio(effect: Mapping) -> str:
    """Accuracy of prefix + intervention over prefix + own wrong step: "6.9x".

    Where the wrong step never led to a success, "> x" with the denominator replaced by the upper end of its interval
    or by one success, whichever is larger.
    """
    wrong, mended = effect["prefix_error"], effect["prefix_intervention"]
    if wrong["accuracy"] > 0:
        return f"{mended['accuracy'] / wrong['accuracy']:.1f}x"
    if mended["accuracy"] == 0:
        return "undefined: neither ever succeeded"
    one_success = 1 / (wrong["problems"] * wrong.get("samples", 1))
    return f"> {mended['accuracy'] / max(wrong['ci95'][1], one_success):.1f}x"


def _effect(effect: Mapping) -> Section:
    keys = _ordered(effect, CONDITIONS)
    accuracy = _aligned([(effect[key]["accuracy"], effect[key]["ci95"]) for key in keys])
    rows = [
        [_label(key), f"{effect[key]['solved']:,}/{effect[key]['problems']:,}", cell]
        for key, cell in zip(keys, accuracy, strict=True)
    ]
    note = ""
    if {"prefix_error", "prefix_intervention"} <= effect.keys():
        note = f"Accuracy with the intervention over accuracy with the own wrong step: {effect_ratio(effect)}"
    return Section(
        "effect",
        "What one step is worth",
        ["continued from", "solved", "accuracy [95% interval]"],
        rows,
        note,
    )


def _pass_keys(*tables: Mapping) -> list[str]:
    """All "pass@k" keys of eval tables, by k."""
    return sorted(
        {key for table in tables for row in table.values() for key in row if key.startswith("pass@")},
        key=_rank,
    )


def _shorten(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _eval(results: Mapping) -> Section:
    splits = {
        name: results[key]
        for name, key in (("hard-test", "eval"), ("hard-train", "eval_train"))
        if key in results
    }
    keys = _pass_keys(*splits.values())
    shown = list(dict.fromkeys([keys[0], "pass@8" if "pass@8" in keys else keys[-1]]))
    methods = _ordered({name: None for table in splits.values() for name in table}, METHODS)
    columns, cells, sizes = [], [], []
    for split, table in splits.items():
        for key in shown:
            found = [table.get(name, {}).get(key) for name in methods]
            columns.append(f"{split} {key}")
            cells.append(_aligned([(item["mean"], item["ci95"]) if item else None for item in found]))
        counts = sorted(
            {
                (row[key]["problems"], row[key]["samples"])
                for row in table.values()
                for key in row
                if key in shown
            }
        )
        sizes.append(
            f"{split}: "
            + " or ".join(f"{problems:,} problems x {samples:,} samples" for problems, samples in counts)
        )
    rows = [
        [_shorten(_label(name), 12), *row]
        for name, row in zip(methods, zip(*cells, strict=True), strict=True)
    ]
    note = ". ".join(sizes) + ". Intervals: 95%, over problems."
    if "rl_matched" in methods:
        note += " RL matched: RL alone, the tokens of InT's data stages added to its budget."
    return Section("eval", "Hard problems, held out and trained on", ["method", *columns], rows, note)


def _proposers(proposers: Mapping) -> Section:
    keys = _ordered(proposers)
    accuracy = _aligned(
        [(proposers[key]["exact"] / proposers[key]["traces"], proposers[key]["ci95"]) for key in keys]
    )
    rows = [
        [
            key,
            *(f"{proposers[key][part]:,}/{proposers[key]['traces']:,}" for part in ("located", "exact")),
            cell,
        ]
        for key, cell in zip(keys, accuracy, strict=True)
    ]
    columns = ["proposer", "gave a step", "exact", "exact [95% interval]"]
    note = (
        "Exact: the oracle's first error. Measured on the model's own failed attempts; never used to filter."
    )
    return Section("proposers", "Who finds the first error", columns, rows, note)


def rl_runs(results: Mapping) -> dict[str, Mapping]:
    """The RL curves by run; a bare `rl{reward[], ...}` is the run "rl"."""
    curves = results.get("rl", {})
    return {"rl": curves} if "reward" in curves else dict(curves)


def _rl(runs: Mapping[str, Mapping]) -> Section:
    def change(curve: Mapping, name: str, show) -> str:
        values = curve.get(name, [])
        tenth = max(1, len(values) // 10)
        return f"{show(np.mean(values[:tenth]))} → {show(np.mean(values[-tenth:]))}" if len(values) else "–"

    columns = ["run", "updates", "reward", "zero-advantage share", "response tokens"]
    rows = [
        [
            _label(name),
            f"{len(runs[name]['reward']):,}",
            change(runs[name], "reward", "{:.3f}".format),
            change(runs[name], "zero_advantage", percent),
            change(runs[name], "length", "{:.1f}".format),
        ]
        for name in _ordered(runs, METHODS)
    ]
    return Section("rl", "Policy gradient", columns, rows, "First tenth of the updates → last tenth, means.")


def _drift(drift: Mapping) -> Section:
    nll, entropy = drift.get("nll", {}), drift.get("entropy", {})
    rows = [
        [f"NLL of {_label(key) if key != 'prefix' else 'prefix'} under base", f"{nll[key]:.3f}"]
        for key in _ordered(nll)
    ]
    rows += [
        [f"next-token entropy of {_label(key)}", f"{entropy[key]:.3f}"] for key in _ordered(entropy, METHODS)
    ]
    return Section("drift", "Distance from the base model", ["", "nats per token"], rows)


def wall_seconds(results: Mapping) -> dict[str, float]:
    """Seconds by stage; a bare number is {"total": number}."""
    wall = results.get("wall_s", {})
    return dict(wall) if isinstance(wall, Mapping) else {"total": float(wall)}


def _cost(results: Mapping) -> Section:
    tokens, wall = results.get("tokens", {}), wall_seconds(results)
    total, total_s = sum(tokens.values()), wall.pop("total", sum(wall.values()))
    rows = []
    for stage in _ordered({**tokens, **wall}):
        count, seconds = tokens.get(stage), wall.get(stage)
        rows.append(
            [
                _label(stage) if stage != "rl" else "rl",
                f"{count:,}" if count is not None else "–",
                percent(count / total) if count is not None and total else "–",
                f"{seconds:,.1f}" if seconds is not None else "–",
                f"{count / seconds:,.0f}" if count is not None and seconds else "–",
            ]
        )
    rows.append(
        ["total", f"{total:,}" if tokens else "–", "", f"{total_s:,.1f}" if "wall_s" in results else "–", ""]
    )
    return Section("cost", "Cost", ["stage", "tokens", "share", "seconds", "tokens/s"], rows)


def sections(results: Mapping) -> list[Section]:
    """The tables that `results` has numbers for."""
    made = []
    if results.get("funnel"):
        made.append(_funnel(results["funnel"]))
    if results.get("effect"):
        made.append(_effect(results["effect"]))
    if _pass_keys(results.get("eval", {}), results.get("eval_train", {})):
        made.append(_eval(results))
    if results.get("proposers"):
        made.append(_proposers(results["proposers"]))
    if rl_runs(results):
        made.append(_rl(rl_runs(results)))
    if any(results.get("drift", {}).values()):
        made.append(_drift(results["drift"]))
    if results.get("tokens") or "wall_s" in results:
        made.append(_cost(results))
    return made


def facts(results: Mapping) -> dict[str, str]:
    """What the header says of a run: config, seed, wall time, versions."""
    config = results.get("config")
    shown = {"config": config["name"] if isinstance(config, Mapping) else config} if config else {}
    if "seed" in results:
        shown["seed"] = str(results["seed"])
    if wall := wall_seconds(results):
        shown["wall time"] = duration(wall.get("total", sum(wall.values())))
    return {**shown, **{name: str(version) for name, version in results.get("versions", {}).items()}}


# ---- the screen

WIDTH = 100


def _wrap(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=" ", subsequent_indent=" ", break_on_hyphens=False)


def _draw(section: Section) -> list[str]:
    table = [section.columns, *([_shorten(row[0], 34), *row[1:]] for row in section.rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    gap = "  " if sum(widths) + 3 * (len(widths) - 1) + 1 > WIDTH else "   "
    aligned = [
        [
            cell.ljust(w) if i in section.left else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        for row in table
    ]
    lines = [" " + gap.join(row) for row in aligned]
    rule = " " + "─" * (sum(widths) + len(gap) * (len(widths) - 1))
    note = _wrap(section.note) if section.note else []
    return [" " + section.title.upper(), *(line.rstrip() for line in [lines[0], rule, *lines[1:]]), *note]


def seeds_table(summary: Mapping[str, Mapping]) -> str:
    """The comparison over seeds: {"pass@1": {policy or "a - b": {"mean", "ci95", "seeds"}}, ...} as text."""
    rows = []
    for metric, policies in summary.items():
        cells = _aligned([(row["mean"], row["ci95"]) for row in policies.values()])
        for (name, row), cell in zip(policies.items(), cells, strict=True):
            label = " - ".join(_label(part) for part in name.split(" - "))
            rows.append([metric, label, cell, "  ".join(f"{100 * mean:.1f}" for mean in row["seeds"])])
    note = "Held-out problems; the interval resamples seeds, then problems."
    columns = ["", "policy", "mean [95% interval]", "each seed, %"]
    return "\n".join(_draw(Section("seeds", "Over all seeds", columns, rows, note, (0, 1))))


def tables(results: Mapping) -> str:
    """The end-of-run screen: plain text, at most 100 columns, a table for each section that has numbers."""
    items = [
        f"{name} {value}".replace(" ", "\u00a0") for name, value in facts(results).items()
    ]  # lines break between items
    header = [line.replace("\u00a0", " ") for line in _wrap("\u00a0· ".join(["int_jax", *items]))]
    return "\n\n".join("\n".join(block) for block in [header, *map(_draw, sections(results))]) + "\n"


# ---- plots: geometry here, drawing in assets/report/plots.html

BARS_W = 520
PLOT_W, PLOT_H, LEFT, RIGHT, TOP, BOTTOM = 520, 240, 46, 96, 10, 34
SHARE_TICKS = (0.0, 0.25, 0.5, 0.75, 1.0)


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round values (1, 2 or 5 times a power of ten apart) from `low` to the first at or above `high`."""
    raw = (high - low) / count if high - low > 1e-30 else 1.0
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, max(last, first + 1) + 1)]


class Axes(NamedTuple):
    """Update indices 0..x_top and values low..high inside the plot's margins."""

    x_top: int
    low: float
    high: float

    def x(self, value: float) -> float:
        return round(LEFT + (PLOT_W - LEFT - RIGHT) * value / max(self.x_top, 1), 1)

    def y(self, value: float) -> float:
        return round(
            PLOT_H - BOTTOM - (PLOT_H - TOP - BOTTOM) * (value - self.low) / (self.high - self.low), 1
        )

    def points(self, values: Sequence[float], backwards: bool = False) -> str:
        points = [f"{self.x(i)},{self.y(v)}" for i, v in enumerate(values)]
        return " ".join(reversed(points) if backwards else points)

    def frame(self, y_ticks: Sequence[float], show=lambda v: f"{v:g}") -> dict:
        whole = [t for t in ticks(0, self.x_top) if t == int(t) and t <= self.x_top]
        return {
            "x_ticks": [(self.x(t), f"{int(t):,}") for t in whole],
            "y_ticks": [(self.y(t), show(t)) for t in y_ticks],
        }


def smooth(values: Sequence[float], window: int) -> np.ndarray:
    """Centred moving mean over `window` (odd) values, over those that exist at the ends."""
    kernel = np.ones(window)
    return np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")


def _window(length: int) -> int:
    """Five per cent of a curve, odd; 1 for short curves."""
    return 2 * (length // 40) + 1


def _spread(heights: Sequence[float], gap: float = 15) -> list[float]:
    """Heights of end labels: at least `gap` apart, in the same order, above the plot's floor."""
    placed = [float(height) for height in heights]
    order = sorted(range(len(placed)), key=lambda i: placed[i])
    for above, below in itertools.pairwise(order):
        placed[below] = max(placed[below], placed[above] + gap)
    ceiling: float = PLOT_H - BOTTOM
    for i in reversed(order):
        placed[i] = min(placed[i], ceiling)
        ceiling = placed[i] - gap
    return placed


def line_plot(title: str, runs: Mapping[str, Sequence[float]], share: bool = False) -> dict:
    """One panel: every run's curve, thin, and its moving mean, bold, labelled at its end."""
    values = [v for curve in runs.values() for v in curve]
    y_ticks = SHARE_TICKS if share else ticks(min(0.0, *values), max(*values, 0.0))
    axes = Axes(max(map(len, runs.values())) - 1, y_ticks[0], y_ticks[-1])
    means = {name: smooth(curve, _window(len(curve))).tolist() for name, curve in runs.items()}
    ends = [axes.y(mean[-1]) for mean in means.values()]
    series = [
        {
            **{
                "style": name,
                "label": _label(name),
                "x": axes.x(len(curve) - 1),
                "y": end,
                "label_y": height,
            },
            **{"raw": axes.points(curve), "mean": axes.points(means[name])},
        }
        for (name, curve), end, height in zip(runs.items(), ends, _spread(ends), strict=True)
    ]
    return {"title": title, "series": series, **axes.frame(y_ticks, percent_tick if share else "{:g}".format)}


def percent_tick(value: float) -> str:
    return f"{100 * value:.0f}%"


def area_plot(title: str, curve: Mapping[str, Sequence[float]]) -> dict:
    """One run's never / sometimes / always shares, stacked from the bottom, as moving means."""
    names = ("always", "sometimes", "never")  # from the bottom
    shares = np.array([smooth(curve[name], _window(len(curve[name]))) for name in names])
    axes = Axes(shares.shape[1] - 1, 0.0, 1.0)
    tops = np.cumsum(shares, axis=0)
    floors = tops - shares
    ends = [axes.y(middle) for middle in ((tops + floors)[:, -1] / 2).tolist()]
    areas = [
        {
            "name": name,
            "points": f"{axes.points(top)} {axes.points(floor, backwards=True)}",
            "label_y": height,
        }
        for name, top, floor, height in zip(names, tops.tolist(), floors.tolist(), _spread(ends), strict=True)
    ]
    return {"title": title, "areas": areas, "x": axes.x(axes.x_top), **axes.frame(SHARE_TICKS, percent_tick)}


def bar_plot(title: str, rows: Mapping[str, tuple[float, Sequence[float]]]) -> dict:
    """Horizontal bars with interval whiskers and the numbers at the end; `rows`: name -> (value, ci95)."""
    top = max([ci95[1] for _, ci95 in rows.values()] + [value for value, _ in rows.values()] + [1e-9])
    left = 16 + 7 * max(len(_label(name)) for name in rows)
    room = BARS_W - 150 - left

    def x(value: float) -> float:
        return round(left + room * value / top, 1)

    bars = [
        {
            "label": _label(name),
            "style": name,
            "x": x(value),
            "low": x(ci95[0]),
            "high": x(ci95[1]),
            "text": estimate(value, ci95),
        }
        for name, (value, ci95) in rows.items()
    ]
    return {
        "title": title,
        "bars": bars,
        "left": left,
        "text_x": left + room + 10,
        "width": BARS_W,
        "height": 26 * len(bars) + 6,
    }


CURVES = {  # the key of a curve -> its panel's title, whether it is a share
    "reward": ("Reward, mean of the batch", False),
    "zero_advantage": ("Zero-advantage share of groups", True),
    "length": ("Response length, tokens", False),
    "logp_gap": ("Sampler against trainer, gap of log p, nats", False),
}


def curve_plots(curves: Mapping[str, Mapping]) -> tuple[list[dict], list[dict]]:
    """Line panels (all runs in one) and area panels (a panel a run) of the RL runs."""
    names = _ordered(curves, METHODS)
    lines = []
    for key, (title, share) in CURVES.items():
        if runs := {name: curves[name][key] for name in names if len(curves[name].get(key, []))}:
            lines.append(line_plot(title, runs, share))
    areas = [
        area_plot(f"{_label(name)}: groups solved never, sometimes, always", curves[name])
        for name in names
        if len(curves[name].get("never", []))
    ]
    return lines, areas


def pass_plots(results: Mapping) -> list[dict]:
    """A bar panel for each split and k."""
    plots = []
    for split, table in (
        ("hard-test", results.get("eval", {})),
        ("hard-train", results.get("eval_train", {})),
    ):
        for key in _pass_keys(table):
            found = {name: table[name][key] for name in _ordered(table, METHODS) if key in table[name]}
            plots.append(
                bar_plot(f"{split} {key}", {name: (row["mean"], row["ci95"]) for name, row in found.items()})
            )
    return plots


# ---- the trace viewer


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
class Example:
    """One attempt's way through the funnel.

    Attributes:
      located, true_error: zero-based step of the proposer's, and of the oracle's, first error; None: cannot tell.
      outcome: "kept", or the reason why it was dropped.
      continuations: (text, passed) of each continuation of the guided attempt.
    """

    task: Task
    attempt: Attempt
    located: int | None
    true_error: int | None
    intervention: Intervention | None
    outcome: str
    continuations: list[tuple[str, bool]] = dataclasses.field(default_factory=list)


PROBABILITY_BANDS = (
    (0.9, "0.9 or more"),
    (0.5, "0.5 to 0.9"),
    (0.1, "0.1 to 0.5"),
    (0.01, "0.01 to 0.1"),
    (0.0, "under 0.01"),
)


def _band(logp: float) -> int:
    """The index in PROBABILITY_BANDS of a token's probability."""
    return next(i for i, (least, _) in enumerate(PROBABILITY_BANDS) if math.exp(logp) >= least)


def _tokens(pieces: Sequence[str], logp: Sequence[float]) -> list[dict]:
    """Tokens as drawn: a newline is visible (↵) and breaks the line only if the step goes on after it."""
    drawn, more = [], False
    for piece, value in zip(reversed(pieces), reversed(logp), strict=True):
        body = piece.rstrip("\n")
        ending = ("↵\n" if more else "↵") * (len(piece) - len(body))
        tip = f"p {math.exp(value):.3g}, log p {value:.2f}"
        drawn.append({"text": body.replace("\n", "↵\n") + ending, "band": _band(value), "tip": tip})
        more = more or bool(body)
    return drawn[::-1]


def _view(example: Example) -> dict:
    """What the template shows of an example."""
    attempt, count = example.attempt, len(example.attempt.step_ends)
    bounds = list(zip([0, *attempt.step_ends], [*attempt.step_ends, len(attempt.pieces)], strict=True))
    drawn = [_tokens(attempt.pieces[a:b], attempt.logp[a:b]) for a, b in bounds]
    at = example.intervention.step if example.intervention else None
    spliced = at is not None and 0 <= at < count
    prefix = attempt.steps()[:at] if spliced else []
    return {
        "task": example.task,
        "steps": drawn[:-1],
        "tail": drawn[-1],
        "located": example.located,
        "true_error": example.true_error,
        "intervention": example.intervention,
        "spliced": spliced,
        "prefix": [step.rstrip("\n") for step in prefix],
        "outcome": example.outcome,
        "label": "kept" if example.outcome == "kept" else f"dropped: {_label(example.outcome)}",
        "continuations": [(text.strip("\n"), passed) for text, passed in example.continuations],
        "solved": sum(passed for _, passed in example.continuations),
    }


def _filters(views: Sequence[Mapping]) -> list[tuple[str, str, int]]:
    """(outcome, label, count) of each filter box: all, kept, then the reasons, the most frequent first."""
    counts = Counter((view["outcome"], view["label"]) for view in views)
    order = sorted(counts.items(), key=lambda item: (item[0][0] != "kept", -item[1], item[0]))
    return [("", "all", len(views)), *((outcome, label, count) for (outcome, label), count in order)]


# ---- the page


def headlines(results: Mapping) -> list[tuple[str, str]]:
    """(number, what it is): the few numbers that a reader wants first."""
    found = []
    effect, test, funnel = results.get("effect", {}), results.get("eval", {}), results.get("funnel", {})
    if {"prefix_error", "prefix_intervention"} <= effect.keys():
        found.append(
            (effect_ratio(effect), "accuracy with the intervention over accuracy with the own wrong step")
        )
    for name in METHODS:
        if name in ("base", "rl", "int_rl") and "pass@1" in test.get(name, {}):
            found.append((percent(test[name]["pass@1"]["mean"]), f"hard-test pass@1, {_label(name)}"))
    if funnel.get("spliced") and "kept" in funnel:
        found.append((percent(funnel["kept"] / funnel["spliced"]), "of the spliced interventions were kept"))
    return found


def _cell(text: str) -> str:
    """A cell whose padding (at its start, and inside an interval) survives in HTML, as spaces as wide as a digit."""
    return re.sub(r"^ +|(?<=\[) +|(?<=, ) +", lambda found: "\u2007" * len(found[0]), text)


def html(
    results: Mapping, examples: Sequence[Example] = (), curves: Mapping[str, Mapping] | None = None
) -> str:
    """The report: one file that needs nothing but itself. `curves`: RL run -> curves (default: `results["rl"]`).

    Everything is escaped by the template; a content-security policy lets only this page's own script run.
    """
    curves = rl_runs(results) if curves is None else curves
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ASSETS),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["cell"] = _cell
    script = (ASSETS / "report.js").read_text(encoding="utf-8")
    views = [_view(example) for example in examples]
    line_plots, area_plots = curve_plots(curves)
    effect = {
        key: (row["accuracy"], row["ci95"])
        for key in CONDITIONS
        if (row := results.get("effect", {}).get(key))
    }
    config = results.get("config")
    return environment.get_template("report.html").render(
        style=Markup((ASSETS / "report.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        facts=facts(results),
        config=json.dumps(_plain(config, "config"), indent=1) if isinstance(config, Mapping) else "",
        headlines=headlines(results),
        sections=sections({**results, "rl": curves}),
        effect_plot=bar_plot("Accuracy of continuations", effect) if effect else None,
        pass_plots=pass_plots(results),
        line_plots=line_plots,
        area_plots=area_plots,
        plot={"w": PLOT_W, "h": PLOT_H, "left": LEFT, "right": RIGHT, "top": TOP, "bottom": BOTTOM},
        bands=PROBABILITY_BANDS,
        views=views,
        filters=_filters(views),
    )


def write_html(
    path, results: Mapping, examples: Sequence[Example] = (), curves: Mapping[str, Mapping] | None = None
) -> None:
    """`html`, written atomically."""
    _write(path, html(results, examples, curves))
