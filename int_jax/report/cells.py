"""Numbers as text, and the tables of a run. `sections` is the one place that turns numbers into cells: the screen
(`tables`) and the page (page.py) draw the same ones. A section whose numbers are missing is left out.
"""

import re
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from int_jax.report.results import plain, rank

LABELS = {
    "problem": "problem alone",
    "prefix": "prefix before the located step",
    "prefix_error": "prefix + own wrong step",
    "prefix_intervention": "prefix + intervention",
    "out_of_range": "out of range",
    "too_long": "too long",
    "kept_right": "right by the oracle",
    "problems_kept": "problems kept",
}
CONDITIONS = ("problem", "prefix", "prefix_error", "prefix_intervention")
# A funnel count -> the earlier count it is a share of. `guided` may count attempts or continuations, so `kept` is
# measured against what was spliced.
SHARE_OF = {
    "hard": "problems",
    "attempts": "problems",
    "wrong": "attempts",
    "proposed": "wrong",
    "unparsed": "proposed",
    "not_located": "proposed",
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
INDENTED = ("unparsed", "not_located", "out_of_range", "empty", "leaked", "too_long", "kept_right")


# Said wherever a regret or a first error of a conversation is shown.
SCRIPTED = "First error and regret are exact with respect to the script, not clinical or human quality."
DASH = "–"  # there is no such number
DIVERGED = "diverged"  # a number that was not finite: None in results


def number(value: float | None, spec: str) -> str:
    """format(value, spec)."""
    return DIVERGED if value is None else format(value, spec)


def share(part: float | None, whole: float | None) -> float | None:
    """part / whole; None where either is None."""
    return None if part is None or whole is None else part / whole


def percent(fraction: float | None) -> str:
    """0.123 -> "12.3%"; two decimals below 1%; what is positive never reads as zero: 1e-6 -> "<0.01%"."""
    if fraction is None:
        return DIVERGED
    # Half of 0.01%: two decimals would show 0.00%.
    if 0 < fraction < 0.00005:
        return "<0.01%"
    return f"{100 * fraction:.{2 if 0 < fraction < 0.01 else 1}f}%"


Interval = Sequence[float | None]


def estimate(fraction: float | None, ci95: Interval) -> str:
    """A percentage with its interval: "12.3% [9.8, 14.9]"; both with two decimals where they are small."""
    low, high = ci95
    if fraction is None or low is None or high is None:
        return DIVERGED
    decimals = 2 if 0 < fraction < 0.01 and high < 0.09 else 1
    ends = [f"{100 * end:.{decimals}f}".replace("100.0", "100") for end in (low, high)]
    return f"{percent(fraction)} [{', '.join(ends)}]"


def _aligned(estimates: Sequence[tuple[float | None, Interval] | str]) -> list[str]:
    """A column of estimates, padded so that values and both ends of the intervals stand under one another, or words."""
    told = [item if isinstance(item, str) else estimate(*item) for item in estimates]
    # "12.3% [9.8, 14.9]" -> "12.3%", "9.8", "14.9", ""
    cells = [re.split(r" \[|, |\]", text) for text in told if "[" in text]
    if not cells:
        return told
    value, low, high, _ = (max(map(len, part)) for part in zip(*cells, strict=True))
    found = iter(f"{v:>{value}} [{a:>{low}}, {b:>{high}}]" for v, a, b, _ in cells)
    return [next(found) if "[" in text else text for text in told]


def duration(seconds: float | None) -> str:
    """492 -> "8 min 12 s"."""
    if seconds is None:
        return DIVERGED
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


Policies = Mapping[str, Mapping[str, Any]]


def policies_of(results: Mapping) -> Policies:
    """How a run's policies are shown, by name and in order: {"name", "label", "color", "dash", "headline"}."""
    return {one["name"]: one for one in results.get("policies", ())}


def label(key: str, policies: Policies | None = None) -> str:
    """What is shown of a key of `results`, or of a policy."""
    named = (policies or {}).get(key)
    return named["label"] if named else LABELS.get(key, key.replace("_", " "))


def ordered(mapping: Mapping, first: Sequence[str] = ()) -> list[str]:
    """The keys of `mapping`: those of `first` in its order, then the rest in ORDER."""
    return [key for key in first if key in mapping] + sorted(mapping.keys() - set(first), key=rank)


class Section(NamedTuple):
    """One table of finished cells; the columns named in `left` are aligned left, the others right."""

    key: str
    title: str
    columns: list[str]
    rows: list[list[str]]
    note: str = ""
    left: tuple[int, ...] = (0,)


def _funnel(funnel: Mapping[str, int], scripted: bool) -> Section:
    rows = []
    for key in ordered(funnel):
        base = SHARE_OF.get(key, "")
        rate, part = "", share(funnel[key], funnel.get(base) or None)
        if part is not None:
            # More than one of what it is measured by is no share: 32 attempts of a problem are "32.0 per problem".
            many = f"{part:.1f}".rjust(5) + f"  per {base.removesuffix('s')}"
            rate = f"{percent(part):>6} of {label(base)}" if part <= 1 else many
        rows.append([("  " if key in INDENTED else "") + label(key), number(funnel[key], ","), rate])
    note = SCRIPTED if scripted and "kept_right" in funnel else ""
    return Section(
        "funnel", "From attempts to kept interventions", ["stage", "count", "rate"], rows, note, (0, 2)
    )


def _of(part: int | None, whole: int | None) -> str:
    return f"{number(part, ',')}/{number(whole, ',')}"


def effect_ratio(effect: Mapping) -> str:
    """Accuracy of prefix + intervention over prefix + own wrong step: "6.9x".

    Where the wrong step never led to a success, "> x" with the denominator replaced by the upper end of its interval
    or by one success, whichever is larger.
    """
    wrong, mended = effect["prefix_error"], effect["prefix_intervention"]
    if None in (wrong["accuracy"], mended["accuracy"], wrong["problems"], wrong["ci95"][1]):
        return DIVERGED
    if wrong["accuracy"] > 0:
        return f"{mended['accuracy'] / wrong['accuracy']:.1f}x"
    if mended["accuracy"] == 0:
        return "undefined: neither ever succeeded"
    # The accuracy that a single success would have made.
    one_success = 1 / (wrong["problems"] * wrong.get("samples", 1))
    return f"> {mended['accuracy'] / max(wrong['ci95'][1], one_success):.1f}x"


def _effect(effect: Mapping) -> Section:
    keys = ordered(effect, CONDITIONS)
    accuracy = _aligned([(effect[key]["accuracy"], effect[key]["ci95"]) for key in keys])
    rows = [
        [label(key), _of(effect[key]["solved"], effect[key]["problems"]), cell]
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


def metrics(*tables: Mapping) -> list[str]:
    """ "score", in domains that grade, and the "pass@k" keys of eval tables."""
    graded = any("score" in row for table in tables for row in table.values())
    return [*["score"] * graded, *pass_keys(*tables)]


def pass_keys(*tables: Mapping) -> list[str]:
    """All "pass@k" keys of eval tables, by k."""
    return sorted(
        {key for table in tables for row in table.values() for key in row if key.startswith("pass@")},
        key=rank,
    )


def shorten(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _eval(results: Mapping) -> Section:
    splits = {
        name: results[key]
        for name, key in (("held-out", "eval"), ("training", "eval_train"))
        if results.get(key)
    }
    stopped = {name: how["why"] for name, how in results.get("stopped", {}).items()}
    keys = pass_keys(*splits.values())
    # Two columns a set: pass@1 and pass@8, or the largest k there is; one where they are the same.
    shown = list(dict.fromkeys([keys[0], "pass@8" if "pass@8" in keys else keys[-1]]))
    shown = [key for key in metrics(*splits.values()) if key in ("score", *shown)]
    policies = policies_of(results)
    methods = ordered({name: None for table in splits.values() for name in table} | stopped, tuple(policies))
    columns, cells, sizes = [], [], []
    for split, table in splits.items():
        for key in shown:
            columns.append(f"{split} {key}")
            cells.append(
                _aligned([_mean(table.get(name, {}).get(key), stopped.get(name)) for name in methods])
            )
        evaluated = [row for name, row in table.items() if name not in stopped]
        # A dict as an ordered set: policies that were evaluated on as much are told once.
        counts = dict.fromkeys(
            f"{number(row[key]['problems'], ',')} problems, {number(row[key]['samples'], ',')} samples"
            for row in evaluated
            for key in shown
            if key in row
        )
        sizes.append(f"{split}: {' or '.join(counts)}")
    rows = [
        [shorten(label(name, policies), 16), *row]
        for name, row in zip(methods, zip(*cells, strict=True), strict=True)
    ]
    note = ". ".join(sizes) + ". Intervals: 95%, over problems."
    if "rl_matched" in methods:
        note += " RL matched: RL alone, the tokens of InT's data stages added to its budget."
    return Section("eval", "Held-out and training problems", ["method", *columns], rows, note)


def _mean(row: Mapping | None, stopped: str | None = None) -> tuple[float | None, Interval] | str:
    """What a cell of an estimate shows: the word for a policy that was stopped, and a dash where there is none."""
    return stopped or (DASH if row is None else (row["mean"], row["ci95"]))


def difference(name: str, policies: Policies) -> str:
    """ "int_rl - rl" -> "InT + RL - RL"."""
    return " - ".join(label(one, policies) for one in name.split(" - "))


def _measures(found: Mapping[str, Mapping], policies: Policies) -> Section:
    shown = [name for name in ordered(found, tuple(policies)) if policies.get(name, {}).get("headline", True)]
    names = list(dict.fromkeys(name for one in found.values() for name in one))

    def cell(value: float | None) -> str:
        return DASH if value is None else f"{value:.3f}"

    rows = [[label(name), *(cell(found[one].get(name)) for one in shown)] for name in names]
    columns = ["of a conversation", *(label(one, policies) for one in shown)]
    note = (
        "Means over samples, then held-out problems; what has nothing to count is left out of its mean. No part of the "
        "score."
    )
    return Section("measures", "How it speaks", columns, rows, note)


def _intervention_gain(found: Mapping) -> Section:
    keys = ordered(found)
    cells = _aligned([_mean(found[key]) for key in keys])
    rows = [
        [
            key,
            number(found[key]["traces"], ","),
            percent(found[key]["left"]),
            percent(found[key]["mended"]),
            cell,
        ]
        for key, cell in zip(keys, cells, strict=True)
        if found[key]["traces"]
    ]
    columns = ["proposer", "attempts", "own step", "intervention", "gain [95% interval]"]
    note = (
        "Mean score of paired continuations, from the attempt's own step and from the intervention in its place, with "
        "the same random numbers and the same partner."
    )
    return Section("intervention_gain", "What an intervention gains", columns, rows, note)


def _gain(gain: Mapping, policies: Policies) -> Section:
    keys, names = metrics(gain), ordered(gain)
    columns = [_aligned([_mean(gain[name].get(key)) for name in names]) for key in keys]
    rows = [[difference(name, policies), *cells] for name, *cells in zip(names, *columns, strict=True)]
    note = "Held-out problems of this seed; the interval resamples problems, paired."
    titles = ["difference", *(f"{key} [95% interval]" for key in keys)]
    return Section("gain", "What InT adds to RL", titles, rows, note)


def _proposers(proposers: Mapping, scripted: bool) -> Section:
    keys = ordered(proposers)
    accuracy = _aligned(
        [(share(proposers[key]["exact"], proposers[key]["traces"]), proposers[key]["ci95"]) for key in keys]
    )
    rows = [
        [
            key,
            *(_of(proposers[key][part], proposers[key]["traces"]) for part in ("located", "exact")),
            cell,
        ]
        for key, cell in zip(keys, accuracy, strict=True)
    ]
    columns = ["proposer", "gave a step", "exact", "exact [95% interval]"]
    note = (
        "Exact: the oracle's first error. Measured on the model's own failed attempts; never used to filter."
    )
    if found := proposers.get("likelihood_ratio", {}).get("curve"):
        points = ", ".join(f"{row['margin']:g}: {row['exact']:,}/{row['located']:,}" for row in found)
        note += f" likelihood_ratio, exact/located by its margin in nats, nothing dropped: {points}."
    note += f" {SCRIPTED}" if scripted else ""
    return Section("proposers", "Who finds the first error", columns, rows, note)


def _graders(graders: Mapping) -> Section:
    count, differ = graders["responses"], graders["differ"]
    # The same answer to the same gold answer, however many samples gave it, is one line with its number.
    counted = Counter(
        (one["answer"], one["gold"], one["strict"], one["tolerant"]) for one in graders["examples"]
    )
    rows = [
        [shorten(answer, 30), shorten(gold, 30), *told, str(n)]
        for (answer, gold, *told), n in counted.most_common(5)
    ]
    rows = rows or [["none", "", "", "", "0"]]
    part = percent(share(differ, count)) if count != 0 else "none"
    note = f"{number(differ, ',')} of {number(count, ',')} responses of the evaluation ({part})"
    note += f"; {graders['decides']} decides."
    return Section(
        "graders",
        "Where the graders differ",
        ["answer", "gold", "strict", "tolerant", "times"],
        rows,
        note,
        (0, 1, 2, 3),
    )


def rl_runs(results: Mapping) -> dict[str, Mapping]:
    """The RL curves by run; a bare `rl{reward[], ...}` is the run "rl"."""
    curves = results.get("rl", {})
    return {"rl": curves} if "reward" in curves else dict(curves)


def _rl(runs: Mapping[str, Mapping], policies: Policies) -> Section:
    def mean(values: Sequence[float | None]) -> float | None:
        # None is a number that was not finite: a mean over it is none either.
        known = [value for value in values if value is not None]
        return None if len(known) < len(values) else float(np.mean(known))

    def change(curve: Mapping, name: str, show) -> str:
        values = curve.get(name, [])
        # A mean of a tenth: single batches are noisy.
        tenth = max(1, len(values) // 10)
        return f"{show(mean(values[:tenth]))} → {show(mean(values[-tenth:]))}" if len(values) else DASH

    columns = ["run", "batches", "reward", "zero-advantage share", "response tokens"]
    rows = [
        [
            label(name, policies),
            f"{len(runs[name]['reward']):,}",
            change(runs[name], "reward", lambda value: number(value, ".3f")),
            change(runs[name], "zero_advantage", percent),
            change(runs[name], "length", lambda value: number(value, ".1f")),
        ]
        for name in ordered(runs, tuple(policies))
    ]
    return Section("rl", "Policy gradient", columns, rows, "First tenth of the batches → last tenth, means.")


def _validation(found: Mapping[str, Mapping], policies: Policies) -> Section:
    """The best (of equal ones the latest) and the last evaluation of each policy."""

    def cell(curve: Mapping, at: int) -> str:
        low, high = curve["pass_at_1_low"][at], curve["pass_at_1_high"][at]
        return f"{estimate(curve['pass_at_1'][at], (low, high))} after {curve['batch'][at]:,}"

    def best(curve: Mapping) -> int:
        return max(range(len(curve["batch"])), key=lambda at: (curve["pass_at_1"][at], at))

    rows = [
        [
            label(name, policies),
            str(len(found[name]["batch"])),
            *(cell(found[name], at) for at in (best(found[name]), -1)),
        ]
        for name in ordered(found, tuple(policies))
    ]
    note = (
        "pass@1 [95% interval] after so many batches, on problems that are neither trained on nor held out."
    )
    return Section("validation", "While it trained", ["policy", "times", "best", "last"], rows, note)


def _drift(drift: Mapping, policies: Policies) -> Section:
    nll, entropy = drift.get("nll", {}), drift.get("entropy", {})
    rows = [
        [f"NLL of {label(key) if key != 'prefix' else 'prefix'} under base", number(nll[key], ".3f")]
        for key in ordered(nll)
    ]
    rows += [
        [f"next-token entropy of {label(key, policies)}", number(entropy[key], ".3f")]
        for key in ordered(entropy, tuple(policies))
    ]
    return Section("drift", "Distance from the base model", ["", "nats per token"], rows)


def wall_seconds(results: Mapping) -> dict[str, float]:
    """Seconds by stage; a bare number is {"total": number}."""
    wall = results.get("wall_s", {})
    return dict(wall) if isinstance(wall, Mapping) else {"total": float(wall)}


def total(values) -> float | None:
    """The sum; None where a value is None."""
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _cost(results: Mapping) -> Section:
    tokens, wall = results.get("tokens", {}), wall_seconds(results)
    whole, whole_s = total(tokens.values()), wall.pop("total", total(wall.values()))

    def cell(table: Mapping, stage: str, spec: str) -> str:
        return number(table[stage], spec) if stage in table else DASH

    def rate(part: float | None, base: float | None, show) -> str:
        return show(share(part, base)) if base and part is not None else DASH

    rows = [
        [
            label(stage) if stage != "rl" else "rl",
            cell(tokens, stage, ","),
            rate(tokens.get(stage), whole, percent),
            cell(wall, stage, ",.1f"),
            rate(tokens.get(stage), wall.get(stage), "{:,.0f}".format),
        ]
        for stage in ordered({**tokens, **wall})
    ]
    seconds = number(whole_s, ",.1f") if "wall_s" in results else DASH
    rows.append(["total", number(whole, ",") if tokens else DASH, "", seconds, ""])
    return Section("cost", "Cost", ["stage", "tokens", "share", "seconds", "tokens/s"], rows)


def sections(results: Mapping) -> list[Section]:
    """The tables that `results` has numbers for."""
    made, policies = [], policies_of(results)
    scripted = bool(results.get("conversations"))
    if results.get("funnel"):
        made.append(_funnel(results["funnel"], scripted))
    if results.get("effect"):
        made.append(_effect(results["effect"]))
    if any(row["traces"] for row in results.get("intervention_gain", {}).values()):
        made.append(_intervention_gain(results["intervention_gain"]))
    if pass_keys(results.get("eval", {}), results.get("eval_train", {})):
        made.append(_eval(results))
    if results.get("gain"):
        made.append(_gain(results["gain"], policies))
    if results.get("measures"):
        made.append(_measures(results["measures"], policies))
    if results.get("proposers"):
        made.append(_proposers(results["proposers"], scripted))
    if results.get("graders"):
        made.append(_graders(results["graders"]))
    if rl_runs(results):
        made.append(_rl(rl_runs(results), policies))
    if results.get("validation"):
        made.append(_validation(results["validation"], policies))
    if any(results.get("drift", {}).values()):
        made.append(_drift(results["drift"], policies))
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
        shown["wall time"] = duration(wall.get("total", total(wall.values())))
    return {**shown, **{name: str(version) for name, version in results.get("versions", {}).items()}}


WIDTH = 100


def _wrap(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=" ", subsequent_indent=" ", break_on_hyphens=False)


def _draw(section: Section) -> list[str]:
    # The first cell of a row may be any text; the others are short.
    table = [section.columns, *([shorten(row[0], 34), *row[1:]] for row in section.rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    # Three spaces between columns, or two where the table would be wider than the screen.
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


def seeds_table(summary: Mapping[str, Mapping], shown: Policies) -> str:
    """The comparison over seeds: {"pass@1": {policy or "a - b": {"mean", "ci95", "seeds"}}, ...} as text."""
    rows = []
    for metric, policies in plain(summary).items():
        names = ordered(policies, tuple(shown))
        cells = _aligned([_mean(policies[name], policies[name].get("stopped")) for name in names])
        for name, cell in zip(names, cells, strict=True):
            each = "  ".join(
                DASH if mean is None else f"{100 * mean:.1f}" for mean in policies[name]["seeds"]
            )
            rows.append([metric, difference(name, shown), cell, each])
    note = "Held-out problems; the interval resamples seeds, then problems."
    columns = ["", "policy", "mean [95% interval]", "each seed, %"]
    return "\n".join(_draw(Section("seeds", "Over all seeds", columns, rows, note, (0, 1))))


def tables(results: Mapping) -> str:
    """The end-of-run screen: plain text, at most 100 columns, a table for each section that has numbers."""
    results = plain(results)
    items = [
        f"{name} {value}".replace(" ", "\u00a0") for name, value in facts(results).items()
    ]  # lines break between items
    header = [line.replace("\u00a0", " ") for line in _wrap("\u00a0· ".join(["int_jax", *items]))]
    notes = [_wrap(said) for said in results.get("notes", ())]
    return "\n\n".join("\n".join(block) for block in [header, *notes, *map(_draw, sections(results))]) + "\n"
