"""trackio: a run for each training, of one group, in the project of TRACKIO_PROJECT, "int_jax" by default."""

import os

import trackio

from int_jax.report.results import Series
from int_jax.report.writers import Forward


def build(series: Series) -> Forward:
    run = trackio.init(
        project=os.environ.get("TRACKIO_PROJECT", "int_jax"),
        group=series.group,
        name=f"{series.name}-{series.id}",  # by which it finds the run again
        config=dict(series.config),
        resume="allow",
        embed=False,
    )
    return Forward(run, series.written)
