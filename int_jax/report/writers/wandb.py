"""Weights & Biases: a run for each training, of one group. WANDB_PROJECT, WANDB_MODE and the like hold as always."""

import os

import wandb

from int_jax import disk
from int_jax.report.results import Series
from int_jax.report.writers import Forward


def build(series: Series) -> Forward:
    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", "int_jax"),
        group=series.group,
        name=series.name,
        id=series.id,
        resume="allow",
        dir=str(disk.folder_here(series.folder)),
        config=dict(series.config),
    )
    return Forward(run, series.written)
