"""Modules that a config names: of this package, of another one, or a file of the user's own.

One text says which. A short name ("math") is a module of the package that has its kind, a name with dots
("mylab.chess") is imported as Python imports it, and a path that ends in .py ("lab/chess.py") is read as a file. What
a module must have, its `Kind` lists, and what is missing is said when it is loaded.
"""

import dataclasses
import hashlib
import importlib
import importlib.util
import operator
import pkgutil
import re
import sys
import traceback
from pathlib import Path
from types import ModuleType

# mylab.chess; neither math, a short name, nor lab/chess.py
DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")
HOW = "the dotted name of a module of your own (mylab.chess), or its file (lab/chess.py)"


def is_path(text: str) -> bool:
    return text.endswith(".py")


def is_own(text: object) -> bool:
    """Whether a value names a module outside of the package: by a dotted name, or by its file."""
    return isinstance(text, str) and (is_path(text) or DOTTED.fullmatch(text) is not None)


def file_stem(text: str) -> str:
    """The text as the name of a folder or file: a path becomes its stem and a digest, any other stays as it is.

    Stages of a run are folders, and one may be named after a module: "lab/p.py" gives "p_8e0df2a1".
    """
    return f"{Path(text).stem}_{_digest(text)}" if is_path(text) else text


def members(protocol: type) -> tuple[str, ...]:
    """The public names that a Protocol declares, methods and attributes."""
    # Attributes stand in the annotations, methods in the class's own names.
    declared = dict.fromkeys([*protocol.__annotations__, *vars(protocol)])
    return tuple(name for name in declared if not name.startswith("_"))


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of module that a config may name.

    Attributes:
      what: what errors call it, "domain". package: where the short names are modules, "int_jax.domains".
      members: what a module has, "build"; "build.view" is a member of a member. apart: modules of the package that are
        of no kind.
    """

    what: str
    package: str
    members: tuple[str, ...]
    apart: tuple[str, ...] = ()

    def names(self) -> list[str]:
        """The short names there are."""
        # The files of a folder, none of which is imported for it.
        found = pkgutil.iter_modules(importlib.import_module(self.package).__path__)
        return [module.name for module in found if module.name not in self.apart]

    def load(self, text: str) -> ModuleType:
        """The module that a text names.

        Raises: ValueError in one line, with the text and what was tried: there is no such module, it fails while it is
          imported (with file and line), or members are missing (with their names).
        """
        # The package's own come first: a module "math" of the user's, or of Python, is never meant.
        if text in self.names():
            return importlib.import_module(f"{self.package}.{text}")
        if not is_own(text):
            raise ValueError(
                f"no {self.what} {text!r} in {self.package.replace('.', '/')}: choose one of "
                f"{', '.join(self.names())}, or give {HOW}"
            )
        if "" not in sys.path and str(Path.cwd()) not in sys.path:
            sys.path.append(
                str(Path.cwd())
            )  # a script's sys.path begins in its own folder, not in the user's
        module = self._read(text) if is_path(text) else self._import(text)
        if missing := [name for name in self.members if not _has(module, name)]:
            raise ValueError(
                f"{self.what} {text!r} ({module.__file__}) has no {', '.join(missing)}; "
                f"docs/your_own.md has a whole one to copy"
            )
        return module

    def _import(self, text: str) -> ModuleType:
        try:
            return importlib.import_module(text)
        except ModuleNotFoundError as error:
            # Of "mylab.chess" mylab or mylab.chess itself is missing, not a module that it imports.
            if error.name and f"{text}.".startswith(f"{error.name}."):
                raise ValueError(
                    f"no {self.what} {text!r}: there is no module {error.name!r} in {Path.cwd()}, on PYTHONPATH or "
                    "among the installed packages"
                ) from None
            raise self._broken(text, error) from error
        except Exception as error:
            raise self._broken(text, error) from error

    def _read(self, text: str) -> ModuleType:
        """The module in a file, once a process. Its name depends on the file's place alone: in a worker process that
        reads the same file its classes have the same names."""
        path = Path(text).resolve()
        name = f"{path.stem}_{_digest(str(path))}"
        if name in sys.modules:
            return sys.modules[name]
        if not path.is_file():
            raise ValueError(f"no {self.what} {text!r}: there is no file {path}")
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None, "is_path: it ends in .py, so there is a loader"
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # before it runs: its dataclasses look themselves up there
        try:
            spec.loader.exec_module(module)
        except BaseException as error:
            del sys.modules[name]
            if isinstance(error, Exception):
                raise self._broken(text, error) from error
            raise
        return module

    def _broken(self, text: str, error: Exception) -> ValueError:
        """What a module raised while it was imported, with the place of it."""
        if isinstance(error, SyntaxError):
            file, line, said = error.filename, error.lineno, error.msg
        else:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            file, line, said = frame.filename, frame.lineno, " ".join(str(error).split())
        return ValueError(
            f"{self.what} {text!r} fails while it is imported: {file}, line {line}: {type(error).__name__}: {said}"
        )


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()


def _has(module: ModuleType, name: str) -> bool:
    try:
        # Follows dots: "build.view".
        operator.attrgetter(name)(module)
    except AttributeError:
        return False
    return True
