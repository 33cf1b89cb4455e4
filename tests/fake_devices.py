"""XLA's flags for the tests and for the processes that they start."""

import os


def xla_flags(devices: int) -> str:
    """So many fake CPU devices. They meet in a collective on as few as two cores: on a busy machine the last one may
    come long after the 40 s that XLA waits by itself. Where JAX is to optimize little (see conftest.py), XLA fuses by
    its emitters of LLVM, which compile faster than those of MLIR, and hands LLVM a program in one piece."""
    quick = os.environ.get("JAX_DISABLE_MOST_OPTIMIZATIONS") == "1"
    return (
        f"{'--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1 ' if quick else ''}"
        f"--xla_force_host_platform_device_count={devices} "
        "--xla_cpu_collective_call_warn_stuck_timeout_seconds=600 "
        "--xla_cpu_collective_call_terminate_timeout_seconds=3600"
    )
