"""What a run shows while it works, on process 0."""

import contextlib

from tqdm import tqdm

from int_jax import processes


@contextlib.contextmanager
def bar(stage: str, total: int, unit: str = "sample"):
    """A progress bar with stage, rate and time left."""
    with tqdm(
        total=total,
        desc=f"{stage:<22}",
        unit=f" {unit}s",
        dynamic_ncols=True,
        smoothing=0.1,
        disable=not processes.is_main_process(),
    ) as shown:
        yield shown


def show(*words, sep: str = " ") -> None:
    """Print."""
    if processes.is_main_process():
        print(*words, sep=sep)
