"""Imports go only downwards: a file imports from files that the README's "Where things are" lists above it."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGES = ("int_jax", "experiments")


def listed() -> list[str]:
    """The files and folders of the README's list, in its order: "int_jax.sample", "experiments.configs"."""
    _, _, text = (ROOT / "README.md").read_text().partition("## Where things are")
    found, folder = [], ""
    for line in text.split("```")[1].splitlines():
        indent, names = re.fullmatch(r"( *)(.*?)(?:  +.*)?", line).groups()
        if not indent:
            folder = line.strip("/").split("/")[0].split()[0] if line.strip() else folder
        elif folder in PACKAGES and len(indent) == 2:
            # Two files may share a line: "sample.py  splicing.py   prefill, ...".
            names = re.match(r"(?:[\w/.]+\.py +|[\w/]+/ +)*", line.strip() + " ")
            found += [
                f"{folder}.{name.removesuffix('.py').strip('/').replace('/', '.')}"
                for name in names[0].split()
            ]
    return found


ORDER = {name: place for place, name in enumerate(listed())}


def home(module: str) -> str:
    """The entry of the list that a module belongs to: "int_jax.models.qwen3" is of "int_jax.models"."""
    parts = module.split(".")
    return next((name for n in range(len(parts), 1, -1) if (name := ".".join(parts[:n])) in ORDER), "")


def modules() -> dict[str, pathlib.Path]:
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            found[name] = path
    return found


MODULES = modules()


def imported(path: pathlib.Path) -> set[str]:
    """The modules of ours that a file imports, wherever in it."""
    found, tree = set(), ast.parse(path.read_text())
    for node in ast.walk(tree):  # what is imported for annotations alone is never run
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    ours = {name for name in found if name.split(".")[0] in PACKAGES}
    return {name if name in MODULES else name.rpartition(".")[0] for name in ours}


def upwards(name: str) -> list[str]:
    """What a module imports from its own height or below it in the list; a folder's files may import one another."""
    here = home(name)
    return sorted(
        other
        for other in imported(MODULES[name])
        if home(other) != here and ORDER.get(home(other), -1) >= ORDER[here]
    )


@pytest.mark.parametrize("name", [name for name in MODULES if name not in PACKAGES])
def test_every_file_is_listed_and_imports_from_above_alone(name):
    assert home(name), f"{name} is not in the README's list"
    assert upwards(name) == []
    assert all(home(other) or other in PACKAGES for other in imported(MODULES[name]))


def test_every_entry_of_the_list_is_a_file():
    for name in ORDER:
        path = ROOT / name.replace(".", "/")
        assert path.is_dir() or path.with_suffix(".py").is_file(), name
