"""docs/results.md against what runs write: every key and every tag is in it, and it has none that no run writes.

The runs are those of test_knobs.py: whole ones, over an engine without a model.
"""

import json
import re
from pathlib import Path

import pytest
from test_knobs import RL, Story, configured, watch  # noqa: F401 (watch is a fixture)

from int_jax.domains.arithmetic import Arithmetic
from int_jax.types import Verdict
from int_jax.verify import Disagreement

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "results.md").read_text()
EVERYTHING = {
    "validation.every": 1,
    "proposals.compare": ("oracle", "likelihood_ratio"),
    "gain.attempts": 2,
    "gain.samples": 1,
    "rl.rewards": {"score": 1.0, "right_steps": 0.5},
    "rl.kl": 0.1,
    "rl.lag": 1,
    "rl.importance_cap": 2.0,
}
DIVERGES = RL | {"rl.learning_rate": 1e38, "rl.clip_norm": 1e38, "rl.updates": 3}


def rows(title: str) -> list[str]:
    """The first cells of the table under a heading, without their marks."""
    section = PAGE.partition(f"## {title}\n")[2].partition("\n## ")[0]
    return re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE)


def pattern(row: str) -> re.Pattern:
    """ "eval.<policy>.mean" as an expression: what stands in <> is one part of a key, whatever it is."""
    return re.compile(
        "".join(r"[^.]+" if part[0] == "<" else re.escape(part) for part in re.findall(r"<[^>]+>|[^<]+", row))
    )


KEYS = {"results.json": rows("results.json"), "scalars": rows("Scalars")}


def paths(value, prefix: str = ""):
    """Every key of nested results, joined by points; "config" and what lists hold are not gone into."""
    if not isinstance(value, dict) or prefix == "config":
        yield prefix
        return
    for key, inner in value.items():
        yield from paths(inner, f"{prefix}.{key}" if prefix else key)


@pytest.fixture(scope="module")
def written(watch):  # noqa: F811
    """Keys of results.json, and tags, that a run with everything in it and one that diverges write."""
    differ = Disagreement(0, "1", "2", Verdict(True, 1.0, "correct"), Verdict(False, 0.0, "wrong"))
    keys, tags = set(), set()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Arithmetic, "graders", ("strict", "tolerant"), raising=False)
        patch.setattr(Arithmetic, "disagreements", lambda self, traces: (1, [differ]), raising=False)
        for context in (EVERYTHING, DIVERGES):
            workdir = watch.run(configured(context), Story(), reports=True)
            keys |= {*paths(json.loads((workdir / "results.json").read_text()))}
            for path in workdir.glob("*/scalars/scalars.jsonl"):
                tags |= {tag for line in path.read_text().splitlines() for tag in json.loads(line)}
    return {"results.json": keys, "scalars": tags}


@pytest.mark.parametrize("what", KEYS)
def test_what_is_written_is_in_the_page(written, what):
    known = [pattern(row) for row in KEYS[what]]
    assert sorted(key for key in written[what] if not any(one.fullmatch(key) for one in known)) == []


@pytest.mark.parametrize("what", KEYS)
def test_what_is_in_the_page_is_written(written, what):
    assert KEYS[what]
    assert [row for row in KEYS[what] if not any(map(pattern(row).fullmatch, written[what]))] == []


def test_each_is_named_once_with_a_meaning():
    for found in KEYS.values():
        assert len({*found}) == len(found)
    table = [line for line in PAGE.splitlines() if line.startswith("| `")]
    assert all(
        len(cells) == 5 and all(cell.strip() for cell in cells[1:-1])
        for cells in (re.split(r"(?<!\\)\|", line) for line in table)
    )
