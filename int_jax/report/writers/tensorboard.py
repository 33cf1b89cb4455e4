"""TensorBoard: event files in the series' own folder."""

import time
from collections.abc import Mapping

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from int_jax import disk
from int_jax.report.results import Series
from int_jax.stages import told_if_full


class build:
    """A `Writer`. What an interrupted run wrote from the resumed step on is purged.

    Events are on the disk when `write` returns. tensorboardX's `SummaryWriter` leaves them to a thread, which a full
    disk ends: ten events later it waits for that thread for ever.
    """

    def __init__(self, series: Series):
        self._folder, self._here = series.folder, disk.folder_here(series.folder)
        with told_if_full(self._folder):
            self._events = EventsWriter(str(self._here / "events"))
        if series.resume_step is not None:
            self._put(step=series.resume_step, session_log=SessionLog(status=SessionLog.START))

    def write(self, step: int, mapping: Mapping[str, float]) -> None:
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in mapping.items()]
        self._put(step=step, summary=Summary(value=values))

    def _put(self, **event) -> None:
        with told_if_full(self._folder):
            self._events.write_event(Event(wall_time=time.time(), **event))
            self._events.flush()
        disk.send(self._here, self._folder)

    def close(self) -> None:
        with told_if_full(self._folder):
            self._events.close()
