"""Where the scalars of training go besides the JSON lines: modules that the knob `writers` names, or one's own."""

from collections.abc import Callable, Mapping
from typing import Any

from int_jax.modules import Kind
from int_jax.report.results import Series, Writer

KIND = Kind("writer", __name__, ("build",))


class Forward:
    """A `Writer` to a log that cannot be rewound: what an interrupted run wrote is not written again.

    run: what wandb.init and trackio.init return. written: the last step that was written before, -1 for none.
    """

    def __init__(self, run: Any, written: int):
        self._run, self._written = run, written

    def write(self, step: int, mapping: Mapping[str, float]) -> None:
        if step > self._written:
            self._run.log(dict(mapping), step=step)

    def close(self) -> None:
        self._run.finish()


def names() -> list[str]:
    """The writers there are."""
    return KIND.names()


def load(name: str) -> Callable[[Series], Writer]:
    """The `build` of int_jax/report/writers/<name>.py, of a module by its dotted name, or of a file of one's own.

    Raises: ValueError, as modules.Kind.load, and where the package that it writes to is not installed.
    """
    try:
        return KIND.load(name).build
    except ModuleNotFoundError as error:
        raise ValueError(
            f"the writer {name!r} needs the package {error.name}, which is not installed: pip install -e '.[writers]'"
        ) from None
