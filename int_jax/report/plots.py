"""Plots as geometry; assets/report/plots.html draws them."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from int_jax.report.cells import (
    DIVERGED,
    Interval,
    Policies,
    estimate,
    label,
    metrics,
    ordered,
    policies_of,
)

BARS_W = 520
PLOT_W, PLOT_H, LEFT, RIGHT, TOP, BOTTOM = 520, 240, 46, 96, 10, 34
SHARE_TICKS = (0.0, 0.25, 0.5, 0.75, 1.0)


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round values (1, 2 or 5 times a power of ten apart) from `low` to the first at or above `high`."""
    # 0 to 7: 1.75 a tick, so steps of 2, from 0 to 8. 1e-9: a bound that is a tick but for rounding counts as one.
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
        # In SVG y grows downwards.
        return round(
            PLOT_H - BOTTOM - (PLOT_H - TOP - BOTTOM) * (value - self.low) / (self.high - self.low), 1
        )

    def points(self, values: Sequence[float] | np.ndarray, backwards: bool = False) -> str:
        points = [f"{self.x(i)},{self.y(v)}" for i, v in enumerate(values) if math.isfinite(v)]
        return " ".join(reversed(points) if backwards else points)

    def frame(self, y_ticks: Sequence[float], show=lambda v: f"{v:g}") -> dict:
        # An axis of updates has no half ones.
        whole = [t for t in ticks(0, self.x_top) if t == int(t) and t <= self.x_top]
        return {
            "x_ticks": [(self.x(t), f"{int(t):,}") for t in whole],
            "y_ticks": [(self.y(t), show(t)) for t in y_ticks],
        }


def numbers(curve: Sequence[float | None]) -> np.ndarray:
    """A curve as floats: NaN where it diverged."""
    return np.array([math.nan if value is None else value for value in curve], float)


def last(values: Sequence[float] | np.ndarray) -> int:
    """The index of the last number of a curve that is finite."""
    return int(np.flatnonzero(np.isfinite(values))[-1])


def smooth(values: Sequence[float] | np.ndarray, window: int) -> np.ndarray:
    """Centred moving mean over `window` (odd) values, over those that exist and are finite; NaN where a value is."""
    # Convolving `known` counts what each window holds: fewer at the ends and beside gaps.
    kernel, known = np.ones(window), np.isfinite(values)
    sums = np.convolve(np.where(known, values, 0.0), kernel, "same")
    return np.where(known, sums / np.maximum(np.convolve(known, kernel, "same"), 1.0), math.nan)


def _window(length: int) -> int:
    """Five per cent of a curve, odd; 1 for short curves."""
    # 100 points: 5; under 40: 1.
    return 2 * (length // 40) + 1


def _spread(heights: Sequence[float], gap: float = 15) -> list[float]:
    """Heights of end labels: at least `gap` apart, in the same order, above the plot's floor."""
    placed = [float(height) for height in heights]
    # Down the page, each `gap` below the one above; then up from the floor, which pushes back what went through it.
    # Gap 15 and floor 206: 190, 195, 200 -> 190, 205, 220 -> 176, 191, 206.
    order = sorted(range(len(placed)), key=lambda i: placed[i])
    for above, below in itertools.pairwise(order):
        placed[below] = max(placed[below], placed[above] + gap)
    ceiling: float = PLOT_H - BOTTOM
    for i in reversed(order):
        placed[i] = min(placed[i], ceiling)
        ceiling = placed[i] - gap
    return placed


def line_plot(
    title: str,
    runs: Mapping[str, Sequence[float] | np.ndarray],
    share: bool = False,
    policies: Policies | None = None,
    bands: Mapping[str, tuple[np.ndarray, np.ndarray]] | None = None,
) -> dict:
    """One panel: every run's curve, thin, and its moving mean, bold, labelled at its end; behind them intervals.

    A curve has a finite number. Where it ends in others it is drawn to the last finite one, and its label says so.
    bands: (lows, highs) of a run, finite where its curve is.
    """
    bands = bands or {}
    every = [*runs.values(), *(end for band in bands.values() for end in band)]
    values = [v for curve in every for v in curve if math.isfinite(v)]
    y_ticks = SHARE_TICKS if share else ticks(min(0.0, *values), max(*values, 0.0))
    axes = Axes(max(map(len, runs.values())) - 1, y_ticks[0], y_ticks[-1])
    means = {name: smooth(curve, _window(len(curve))).tolist() for name, curve in runs.items()}
    ends = [axes.y(mean[last(mean)]) for mean in means.values()]
    series = [
        {
            **{
                "style": name,
                "label": label(name, policies) + ("" if math.isfinite(curve[-1]) else f": {DIVERGED}"),
                "x": axes.x(last(curve)),
                "y": end,
                "label_y": height,
            },
            **{"raw": axes.points(curve), "mean": axes.points(means[name])},
            "band": band(axes, *bands[name]) if name in bands else "",
        }
        for (name, curve), end, height in zip(runs.items(), ends, _spread(ends), strict=True)
    ]
    return {"title": title, "series": series, **axes.frame(y_ticks, percent_tick if share else "{:g}".format)}


def band(axes: Axes, lows: np.ndarray, highs: np.ndarray) -> str:
    return f"{axes.points(highs)} {axes.points(lows, backwards=True)}"


def percent_tick(value: float) -> str:
    return f"{100 * value:.0f}%"


def area_plot(title: str, curve: Mapping[str, np.ndarray]) -> dict:
    """One run's never / sometimes / always shares, stacked from the bottom, as moving means."""
    names = ("always", "sometimes", "never")  # from the bottom
    shares = np.array([smooth(curve[name], _window(len(curve[name]))) for name in names])
    axes = Axes(shares.shape[1] - 1, 0.0, 1.0)
    # [3, updates]: each area lies between its floor and its top.
    tops = np.cumsum(shares, axis=0)
    floors = tops - shares
    ends = [axes.y(middle) for middle in ((tops + floors)[:, -1] / 2).tolist()]
    areas = [
        {
            "name": name,
            # A polygon: along the top to the right, back along the floor.
            "points": f"{axes.points(top)} {axes.points(floor, backwards=True)}",
            "label_y": height,
        }
        for name, top, floor, height in zip(names, tops.tolist(), floors.tolist(), _spread(ends), strict=True)
    ]
    return {"title": title, "areas": areas, "x": axes.x(axes.x_top), **axes.frame(SHARE_TICKS, percent_tick)}


def _known(value: float | None, ci95: Interval) -> tuple[float, float, float]:
    """(value, low, high), zeros where one of them is not known."""
    low, high = ci95
    return (0.0, 0.0, 0.0) if value is None or low is None or high is None else (value, low, high)


def bar_plot(
    title: str, rows: Mapping[str, tuple[float | None, Interval]], policies: Policies | None = None
) -> dict:
    """Horizontal bars from zero with interval whiskers and the numbers at the end, no bar where a number is None.

    rows: name -> (value, ci95).
    """
    told = {name: estimate(*row) for name, row in rows.items()}
    drawn = {name: _known(*row) for name, row in rows.items()}
    top = max(max(value, high, 1e-9) for value, _, high in drawn.values())
    bottom = min(0.0, *(min(value, low) for value, low, _ in drawn.values()))
    # Pixels: about 7 a letter.
    left = 16 + 7 * max(len(label(name, policies)) for name in rows)
    # 150 pixels to the right for the numbers.
    room = BARS_W - 150 - left

    def x(value: float) -> float:
        return round(left + room * (value - bottom) / (top - bottom), 1)

    zero = x(0.0) if bottom < 0 else left
    bars = [
        {
            "label": label(name, policies),
            "style": name,
            "start": min(zero, x(value)),
            "length": round(abs(x(value) - zero), 1),
            "low": x(low),
            "high": x(high),
            "text": told[name],
        }
        for name, (value, low, high) in drawn.items()
    ]
    return {
        "title": title,
        "bars": bars,
        "left": left,
        "zero": zero,
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


def curve_plots(curves: Mapping[str, Mapping], policies: Policies) -> tuple[list[dict], list[dict]]:
    """Line panels (all runs in one) and area panels (a panel a run) of the RL runs."""
    lines, areas = [], []
    for key, (title, share) in CURVES.items():
        found = {name: numbers(curves[name].get(key, [])) for name in ordered(curves, tuple(policies))}
        if runs := {name: curve for name, curve in found.items() if np.isfinite(curve).any()}:
            lines.append(line_plot(title, runs, share, policies))
    for name in ordered(curves, tuple(policies)):
        shares = {key: numbers(curves[name].get(key, [])) for key in ("never", "sometimes", "always")}
        known = np.isfinite(np.stack([*shares.values()])).all(axis=0)
        # argmin of booleans is the first False.
        whole = len(known) if known.all() else int(known.argmin())  # batches before the first gap
        if whole:
            title = f"{label(name, policies)}: groups solved never, sometimes, always"
            areas.append(area_plot(title, {key: curve[:whole] for key, curve in shares.items()}))
    return lines, areas


def validation_plot(found: Mapping[str, Mapping], policies: Policies) -> dict | None:
    """pass@1 on the validation problems while policies were trained, with its intervals; None where there is none."""
    if not found:
        return None

    def spread(curve: Mapping, key: str) -> np.ndarray:
        # Evaluated after batches 10 and 20: places 9 and 19 of 20, the others without a value.
        values = np.full(curve["batch"][-1], math.nan)
        values[np.array(curve["batch"]) - 1] = curve[key]
        return values

    names = ordered(found, tuple(policies))
    runs = {name: spread(found[name], "pass_at_1") for name in names}
    bands = {
        name: (spread(found[name], "pass_at_1_low"), spread(found[name], "pass_at_1_high")) for name in names
    }
    return line_plot("pass@1 on the validation problems", runs, True, policies, bands)


def pass_plots(results: Mapping) -> list[dict]:
    """A bar panel for each split and k."""
    plots, policies = [], policies_of(results)
    for split, table in (
        ("held-out", results.get("eval", {})),
        ("training", results.get("eval_train", {})),
    ):
        for key in metrics(table):
            found = {name: table[name][key] for name in ordered(table, tuple(policies)) if key in table[name]}
            rows = {name: (row["mean"], row["ci95"]) for name, row in found.items()}
            plots.append(bar_plot(f"{split} {key}", rows, policies))
    return plots
