"""TensorBoard: event files in the series' own folder."""

from collections.abc import Mapping

import tensorboardX

from int_jax import disk
from int_jax.report.results import Series


class build:
    """A `Writer`. What an interrupted run wrote from the resumed step on is purged."""

    def __init__(self, series: Series):
        self._folder, self._here = series.folder, disk.folder_here(series.folder)
        self._events = tensorboardX.SummaryWriter(
            str(self._here), purge_step=series.resume_step, flush_secs=10
        )

    def write(self, step: int, mapping: Mapping[str, float]) -> None:
        for tag, value in mapping.items():
            self._events.add_scalar(tag, value, step)
        if self._here != self._folder:
            self._events.flush()
            disk.send(self._here, self._folder)

    def close(self) -> None:
        self._events.close()
        disk.send(self._here, self._folder)
