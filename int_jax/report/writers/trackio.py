"""trackio: a run for each training, of one group, in the project of TRACKIO_PROJECT, "int_jax" by default."""

import os
from collections.abc import Mapping

import trackio

from int_jax.report.results import Series


class build:
    """A `Writer`. A log of theirs cannot be rewound: what an interrupted run wrote is not written again."""

    def __init__(self, series: Series):
        self._written = series.written
        self._run = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", "int_jax"),
            group=series.group,
            name=f"{series.name}-{series.id}",  # by which it finds the run again
            config=dict(series.config),
            resume="allow",
            embed=False,
        )

    def write(self, step: int, mapping: Mapping[str, float]) -> None:
        if step > self._written:
            self._run.log(dict(mapping), step=step)

    def close(self) -> None:
        self._run.finish()
