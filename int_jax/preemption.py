"""A run that is asked to end: it looks for that now and then, saves what it has, and ends with a code of its own.

The request is SIGTERM, as clusters send it before they take a machine away. Of several processes any may get it: jax's
preemption service tells the others.
"""

import signal
import time

import jax
from jax.experimental import multihost_utils

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: not done, and the same command goes on

_asked = False
_looked: int | None = None  # the second for which jax was asked last; None: nobody listens


class Preempted(Exception):
    """The run was asked to end."""

    def __init__(self):
        super().__init__(
            "asked to end (SIGTERM); what was made is kept: run the same command again, it goes on"
        )


def listen() -> None:
    """From now on SIGTERM is noted, and ends nothing by itself. `jax.distributed.initialize`, if it is called after
    this, takes the signal for its own service."""
    global _looked
    _looked = int(time.time())
    signal.signal(signal.SIGTERM, _note)


def _note(*_) -> None:
    global _asked
    _asked = True


def listening() -> bool:
    return _looked is not None


def asked() -> bool:
    """Whether the run was asked to end; of several processes each knows within seconds, and not all at once."""
    global _asked, _looked
    if _looked is None or _asked or not jax.distributed.is_initialized():
        return _asked
    # jax says yes for one number alone, the next after the largest that any process had asked for when the signal came.
    # The seconds of the clock, all of them, are numbers that every process comes to, whatever it works on.
    now = int(time.time())
    while _looked < now and not _asked:
        _looked += 1
        _asked = multihost_utils.reached_preemption_sync_point(_looked)
    return _asked
