"""Where the scalars of training go besides the JSON lines: modules that the knob `writers` names, or one's own."""

from collections.abc import Callable

from int_jax.modules import Kind
from int_jax.report.results import Series, Writer

KIND = Kind("writer", __name__, ("build",))


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
