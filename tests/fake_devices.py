"""XLA's flags for the tests and for the processes that they start."""


def xla_flags(devices: int) -> str:
    """So many fake CPU devices. They meet in a collective on as few as two cores: on a busy machine the last one may
    come long after the 40 s that XLA waits by itself."""
    return (
        f"--xla_force_host_platform_device_count={devices} "
        "--xla_cpu_collective_call_warn_stuck_timeout_seconds=600 "
        "--xla_cpu_collective_call_terminate_timeout_seconds=3600"
    )
