"""jax's own kernels on CPU, for the tests."""

import contextlib
import types

import jax.numpy as jnp
from jax.experimental import pallas
from jax.experimental.pallas import tpu as pallas_tpu
from jax.experimental.pallas.ops.gpu import paged_attention as gpu
from jax.experimental.pallas.ops.tpu.ragged_paged_attention import kernel as tpu

COUNTERS = 3  # of the TPU kernel's scalars the one that it writes: the row and the buffer of the next step


def _with(module, **changed):
    """A module with some names changed."""
    return types.SimpleNamespace(**vars(module) | changed)


def _store(ref, value, mask):
    ref[...] = jnp.where(mask, value, ref[...])


def _gpu_call(kernel, *, interpret, **rest):
    return pallas.pallas_call(kernel, interpret=True, **rest)


def _tpu_call(kernel, *, grid_spec, **rest):
    """pallas_call of the TPU kernel, whose counters are kept from step to step."""

    def kept(*refs):
        *refs, counters = refs

        @pallas.when(sum(pallas.program_id(axis) for axis in range(len(grid_spec.grid))) == 0)
        def begin():
            counters[...] = refs[COUNTERS][...]

        kernel(*refs[:COUNTERS], counters, *refs[COUNTERS + 1 :])

    grid_spec = pallas_tpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=grid_spec.num_scalar_prefetch,
        grid=grid_spec.grid,
        in_specs=grid_spec.in_specs,
        out_specs=grid_spec.out_specs,
        scratch_shapes=[*grid_spec.scratch_shapes, pallas_tpu.SMEM((2,), jnp.int32)],
    )
    return pallas.pallas_call(kept, grid_spec=grid_spec, interpret=True, **rest)


@contextlib.contextmanager
def interpreted():
    """Within it the kernels run in Pallas' interpreter, which only the GPU's can be asked for.

    jax 0.10.2: `force_tpu_interpret_mode` knows no reshaped reference. The plain interpreter knows no masked store to
    a part of a reference, and forgets what a step of the grid writes to its scalars: so that the store is written as a
    read and a plain store here, and the counters lie elsewhere. The rest is the kernel's own.
    """
    compiled = tpu.ragged_paged_attention, gpu.paged_attention
    before = tpu.pl, tpu.pltpu, gpu.pl
    for kernel in compiled:
        kernel.clear_cache()
    tpu.pl, tpu.pltpu = _with(pallas, pallas_call=_tpu_call), _with(pallas_tpu, store=_store)
    gpu.pl = _with(pallas, pallas_call=_gpu_call)
    try:
        yield
    finally:
        tpu.pl, tpu.pltpu, gpu.pl = before
        for kernel in compiled:
            kernel.clear_cache()
