"""What is said of installing int_jax works: it is installed by path, since PyPI has no distribution of that name."""

import json
import pathlib
import re
import shlex
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
CONSTRAINTS = [
    Requirement(line)
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if not line.startswith("#")
]
# On PyPI, and in none of the extras: jax[tpu] and jax[cuda12] bring them, and compiling needs nothing else.
ALONE = {"libtpu", "jax-cuda12-pjrt", "nvidia-cuda-nvcc-cu12"}

KNOWN = ALONE | {
    canonicalize_name(Requirement(one).name)
    for some in (PROJECT["dependencies"], *EXTRAS.values())
    for one in some
}
# A line to type, up to what ends it in a text or a string: `pip install -c constraints.txt -e .`
LINE = re.compile(r"pip install((?: +(?:'[^'\n]*'|[^\s`'\";:()]+))+)")


def faults(arguments: list[str]) -> list[str]:
    """What cannot work of the words behind "pip install"."""
    found, words = [], iter(arguments)
    for word in words:
        if word in ("-q", "-qq"):
            continue
        if word == "-c":
            file = next(words, "")
            found += [] if (ROOT / file).is_file() else [f"there is no file {file!r}"]
        elif word == "-e":
            place, extras = re.fullmatch(r"([^\[]*)(?:\[(.*)\])?", next(words, "")).groups()
            if place not in (".", "int_jax"):  # the checkout, or its folder in a notebook that clones it
                found.append(f"-e {place!r} is no checkout")
            found += [f"no extra {one!r}" for one in (extras or "").split(",") if one not in {"", *EXTRAS}]
        elif word.startswith("-"):
            found.append(f"option {word!r}")
        elif canonicalize_name(re.split(r"[\[=<>~!]", word)[0]) not in KNOWN:
            found.append(f"{word!r} is no dependency of this project")
    return found


def test_faults_are_found():
    cannot = ["int_jax", "'int_jax[hub]'", "-e .[hubs]", "-e ..", "-c versions.txt -e .", "-U numpy", "numpi"]
    for words in cannot:
        assert faults(shlex.split(words)), words
    for words in (
        "-e .",
        "-e '.[hub,gpu]'",
        "-c constraints.txt -e .",
        "-q -e int_jax",
        "reasoning_gym",
        "jax[tpu]",
    ):
        assert not faults(shlex.split(words)), words


def texts():
    for pattern in ("*.md", "docs/*.md", "notebooks/*.ipynb", "*/**/*.py", "pyproject.toml"):
        for path in sorted(ROOT.glob(pattern)):
            parts = path.relative_to(ROOT).parts
            # Environments begin with a dot, wherever they are: benchmarks/.venv-peers.
            if not any(part.startswith(".") for part in parts) and parts[0] not in ("tests", "build", "runs"):
                yield path


def test_install_lines_work():
    seen, wrong = 0, []
    for path in texts():
        text = path.read_text()
        if path.suffix == ".ipynb":
            text = "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"])
        for line in LINE.findall(text):
            seen += 1
            wrong += [
                f"{path.relative_to(ROOT)}: pip install{line}: {why}" for why in faults(shlex.split(line))
            ]
    assert seen >= 5 and not wrong, wrong


def test_constraints_are_exact_and_name_every_runtime_dependency():
    for one in CONSTRAINTS:
        assert [spec.operator for spec in one.specifier] == ["=="], one
    pinned = {canonicalize_name(one.name): Version(next(iter(one.specifier)).version) for one in CONSTRAINTS}
    assert len(pinned) == len(CONSTRAINTS)
    for text in PROJECT["dependencies"]:
        needed = Requirement(text)
        assert pinned[canonicalize_name(needed.name)] in needed.specifier, text


@pytest.mark.parametrize("name", ["setup.py", "LICENSE", "README.md", "int_jax/py.typed"])
def test_what_the_metadata_speaks_of_is_there(name):
    assert (ROOT / name).is_file()
