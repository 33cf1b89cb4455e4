"""Prints docs/knobs.md: every knob with its default, what it may be, its unit and where its value comes from.

python -m experiments.knobs > docs/knobs.md
"""

from collections.abc import Iterator

from experiments.configs import default
from int_jax import domains
from int_jax.knobs import Knob

INTRODUCTION = """# Knobs

Printed by `python -m experiments.knobs` from [`experiments/configs/default.py`](../experiments/configs/default.py) and
from the domains. Any knob can be changed on the command line, `--config.rl.updates=100`, a tuple as
`--config.eval.ks='(1, 8)'`, a dictionary as `--config.chat='{"enable_thinking": False}'`. A value that is not allowed
is refused before anything is computed.

Those marked *machine* say where and how a run works, and no result depends on them but for rounding: they may change
between two starts of a run. All others are its *science*: with another value it is another run.
"""


def rows(table: dict, prefix: str) -> Iterator[tuple[str, Knob]]:
    """The knobs of a table and of the tables in it, by their full names."""
    for name, one in table.items():
        if isinstance(one, Knob):
            yield prefix + name, one
        else:
            yield from rows(one, f"{prefix}{name}.")


def section(title: str, found: list[tuple[str, Knob]]) -> str:
    lines = [f"## {title}", "", "| knob | default | may be | what it is | source |", "|---|---|---|---|---|"]
    for name, one in found:
        may_be = f"{one.rule}: {one.why}" if one.why else one.rule
        what = f"*machine*: {one.unit}" if one.machine else one.unit
        cells = (f"`{name}`", f"`{one.value!r}`", may_be, what, one.source)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def document() -> str:
    """The whole page."""
    alone = {name: one for name, one in default.TABLE.items() if isinstance(one, Knob)}
    groups = {name: one for name, one in default.TABLE.items() if name not in alone}
    sections = [section("The run", [*rows(alone, "")])]
    sections += [section(name, [*rows(table, f"{name}.")]) for name, table in groups.items()]
    sections += [
        section(f"domain.knobs of {name}", [*rows(domains.find(name).KNOBS, "domain.knobs.")])
        for name in domains.names()
    ]
    return "\n".join([INTRODUCTION, *sections])


if __name__ == "__main__":
    print(document(), end="")
