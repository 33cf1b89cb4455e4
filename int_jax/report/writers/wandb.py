"""Weights & Biases: a run for each training, of one group. WANDB_PROJECT, WANDB_MODE and the like hold as always."""

import os
from collections.abc import Mapping

import wandb

from int_jax.report.results import Series


class build:
    """A `Writer`. A log of theirs cannot be rewound: what an interrupted run wrote is not written again."""

    def __init__(self, series: Series):
        self._written = series.written
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "int_jax"),
            group=series.group,
            name=series.name,
            id=series.id,
            resume="allow",
            dir=str(series.folder),
            config=dict(series.config),
        )

    def write(self, step: int, mapping: Mapping[str, float]) -> None:
        if step > self._written:
            self._run.log(dict(mapping), step=step)

    def close(self) -> None:
        self._run.finish()
