"""One killable process that makes and scores reasoning-gym's problems: a hostile answer costs one verdict, no run."""

import functools
import importlib.util
import json
import pathlib
import sys

from int_jax import workers

DEADLINE_S = 10.0  # for one score
PATIENCE = 10  # making problems may take so many times as long


@functools.cache
def shared(deadline_s: float) -> "Process":
    """The process of all domains with this deadline; it ends with the caller."""
    return Process(deadline_s)


class Process(workers.Pool):
    """Starts when it is first asked, and again after it was killed or died."""

    def __init__(self, deadline_s: float = DEADLINE_S):
        if importlib.util.find_spec("reasoning_gym") is None:
            raise ModuleNotFoundError("the domain reasoning_gym needs its package: pip install reasoning-gym")
        super().__init__(1, deadline_s)

    def command(self) -> list[str]:
        script = pathlib.Path(__file__).with_name("worker.py")
        return [sys.executable, "-P", str(script), str(PATIENCE * self.deadline_s)]

    def environment(self) -> dict[str, str]:
        """With a fixed hash seed: several generators iterate over sets."""
        return super().environment() | {"PYTHONHASHSEED": "0"}

    def request(self, operation: str, **arguments) -> dict | None:
        """The reply; None if it did not come in time or the process died of the request.

        Raises: RuntimeError if the process does not start.
        """
        deadline_s = self.deadline_s * (1 if operation == "score" else PATIENCE)
        told = self.ask({0: json.dumps([operation, arguments]).encode("ascii") + b"\n"}, deadline_s)[0]
        return None if told is None else json.loads(told)
