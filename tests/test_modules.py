"""What a text names: a module of the package, one by its dotted name, a file; and what is said of all others."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

from int_jax import domains, models, modules, proposers
from int_jax.models import family_of

ENV = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).resolve().parent.parent)}
KIND = modules.Kind("part", "int_jax.report", ("build", "build.size"), apart=("page",))
GOOD = "import dataclasses\n\n@dataclasses.dataclass\nclass build:\n    size: int = 3\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder that the command is started in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return tmp_path


def write(folder, name: str, text: str = GOOD):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "own"),
    [
        *(
            ("math", False),
            ("lab/chess", False),
            ("", False),
            (".py", True),
            ("lab.", False),
            (".lab", False),
        ),
        *(("lab.chess", True), ("lab.chess.hard", True), ("lab/chess.py", True), ("/a b/c.py", True)),
        *(("lab.3d", False), ("lab chess.x", False), (3, False), (None, False), ("../x.py", True)),
    ],
)
def test_a_dotted_name_or_a_file_is_of_ones_own(text, own):
    assert modules.is_own(text) == own


@pytest.mark.parametrize(
    "name", ["own_pkg.deep.chess", "own_pkg/deep/chess.py", "./own_pkg/deep/../deep/chess.py"]
)
def test_a_module_of_ones_own_is_loaded_once(folder, name):
    write(
        folder, "own_pkg/deep/chess.py", GOOD + f"\n# {name}\nassert __name__ in __import__('sys').modules\n"
    )
    one = KIND.load(name)
    assert one.build().size == 3 and KIND.load(name) is one
    for other in [name for name in sys.modules if name.split(".")[0] == "own_pkg"]:
        del sys.modules[other]


def test_a_file_has_one_name_in_every_process_and_by_every_path(folder):
    write(folder, "lab/chess.py")
    code = (
        "from int_jax import modules\n"
        "print(modules.Kind('part', 'int_jax.report', ('build',)).load('lab/chess.py').build.__module__)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=ENV, capture_output=True, text=True, check=True)
    names = {
        KIND.load(name).build.__module__
        for name in ("lab/chess.py", f"{folder}/lab/chess.py", "lab/../lab/chess.py")
    }
    assert names == {done.stdout.strip()}
    write(folder, "other/chess.py")
    assert KIND.load("other/chess.py").build.__module__ not in names


def test_two_modules_of_ones_own_may_share_another(folder):
    write(folder, "shared_lab/boards.py", "SIZE = 8\n")
    write(folder, "shared_lab/chess.py", GOOD + "from shared_lab.boards import SIZE\nassert SIZE == 8\n")
    assert KIND.load("shared_lab/chess.py").SIZE == KIND.load("shared_lab.chess").SIZE == 8


@pytest.mark.parametrize(
    ("files", "name", "words"),
    [
        ({}, "chess", "no part 'chess' in int_jax/report: choose one of cells, .*, or give the dotted name"),
        ({}, "page", "no part 'page' in int_jax/report"),
        ({}, "lab/chess", "no part 'lab/chess' in int_jax/report"),
        ({}, "lab/chess.py", "no part 'lab/chess.py': there is no file .*/lab/chess.py"),
        ({}, "no_lab.chess", "no part 'no_lab.chess': there is no module 'no_lab' in /.*, on PYTHONPATH or among"),
        ({"lab1/a.py": ""}, "lab1.chess", "there is no module 'lab1.chess' in"),
        ({"lab2/a.py": "import no_such_package\n"}, "lab2.a", r"'lab2.a' fails .*a.py, line 1: .*'no_such_package'"),
        ({"lab3/a.py": "import no_such_package\n"}, "lab3/a.py", r"'lab3/a.py' fails .*a.py, line 1: .*'no_such_pack"),
        ({"lab4/a.py": "\n\nx = 1 +\n"}, "lab4/a.py", r"fails while it is imported: .*a.py, line 3: SyntaxError: "),
        ({"lab5/a.py": "\n1 / 0\n"}, "lab5.a", r"a.py, line 2: ZeroDivisionError: division by zero"),
        ({"lab6/a.py": "raise ValueError('a\\nb')\n"}, "lab6/a.py", "line 1: ValueError: a b"),
        ({"lab7/a.py": "x = 1\n"}, "lab7/a.py", r"part 'lab7/a.py' \(.*a.py\) has no build, build.size; docs/your_own"),
        ({"lab8/a.py": "class build: pass\n"}, "lab8.a", r"part 'lab8.a' \(.*a.py\) has no build.size;"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)  # fmt: skip
def test_what_cannot_be_loaded_is_named_in_one_line(folder, files, name, words):
    for file, text in files.items():
        write(folder, file, text)
    with pytest.raises(ValueError, match=words) as error:
        KIND.load(name)
    assert "\n" not in str(error.value)


def test_a_file_that_failed_is_read_again_once_it_is_mended(folder):
    write(folder, "late.py", "1 / 0\n")
    with pytest.raises(ValueError, match="ZeroDivisionError"):
        KIND.load("late.py")
    write(folder, "late.py")
    assert KIND.load("late.py").build().size == 3


@pytest.mark.parametrize("text", ["self_verify", "lab.teacher"])
def test_a_name_is_a_folders_name_as_it_stands(text):
    assert modules.file_stem(text) == text


def test_paths_become_names_of_folders_and_stay_apart():
    paths = ["lab/p.py", "lab_p.py", "p.py", "/lab/p.py", "../lab/p.py"]
    names = [modules.file_stem(path) for path in paths]
    assert len({*names}) == len(paths) and all(re.fullmatch(r"\w+", name) for name in names)


@pytest.mark.parametrize("kind", [domains.KIND, proposers.KIND, models.KIND], ids=lambda kind: kind.what)
def test_every_module_of_a_kind_has_its_members(kind):
    pytest.importorskip("reasoning_gym")
    assert kind.names() and not {*kind.names()} & {*kind.apart}
    for name in kind.names():
        assert kind.load(name).__name__ == f"{kind.package}.{name}"
        assert kind.load(f"{kind.package}.{name}") is kind.load(name)


@pytest.mark.parametrize("text", ["int_jax.models.qwen3", "lab/qwen3.py", "../qwen3.py", "hf", "transformer"])
def test_a_models_own_config_names_no_code(folder, text):
    """config.json comes with the weights, from elsewhere: it chooses among the families here and no others."""
    write(folder, "lab/qwen3.py", "raise SystemExit('run')\n")
    with pytest.raises(ValueError, match=f"model_type = '{text}' is not supported"):
        family_of(text)
