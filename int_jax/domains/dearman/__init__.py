"""Hard conversations, rehearsed with the DEAR MAN skills, as in IMBUE (arXiv 2402.12556).

A person, or the policy, wants something of a counterpart that does not want to give it. The counterpart is a script
(counterpart.py), so that the first turn that lost something, and what should stand there, are known exactly: with
respect to the script, never as a measure of human or clinical quality. Nobody is advised to confront a person with whom
they are not safe.
"""

from typing import Any

NAMES = ("DearMan", "build", "own_situation")


def __getattr__(name: str) -> Any:
    """The names of domain.py, which is loaded when one is asked for: `python -m` runs a file of the folder, and would
    find it loaded already."""
    if name not in NAMES:
        raise AttributeError(f"{__name__} has no {name!r}: it has {', '.join(NAMES)}")
    import int_jax.domains.dearman.domain as home

    return getattr(home, name)
