"""The strict environment of the tests: 8 fake CPU devices, rank promotion raises, no key is used twice.

Warnings are errors, too (pyproject.toml). Hypothesis draws the same examples each time. What is set through the
environment also holds for the processes that tests start; what is set through `jax.config` holds for the tests' own
process only.
"""

import gc
import importlib
import os
import pathlib

from fake_devices import xla_flags

DEVICES = 8  # enough for every mesh of two axes that the tests use: 8x1, 4x2, 2x4, 1x8
ROOT = pathlib.Path(__file__).resolve().parent.parent

# Fast tests mostly compile, where nothing is cached, and take a third of the time so. 0: optimized code, as shipped.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ |= {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": xla_flags(DEVICES),
    # What compiling need not do here: tell which line of Python each operation comes from, and give memory back to the
    # system to ask for it again (glibc reads these at the start of a process: of a worker, not of this one).
    "JAX_TRACEBACK_IN_LOCATIONS_LIMIT": "0",
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TOP_PAD_": str(64 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(4 << 30),
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}

import hypothesis  # noqa: E402
import pytest  # noqa: E402

# No test depends on wall time, of an example (deadline) or of drawing it (too_slow).
UNTIMED = {"deadline": None, "suppress_health_check": [hypothesis.HealthCheck.too_slow]}
# A commit passes or it does not: the same examples each time. HYPOTHESIS_PROFILE=explore draws new ones.
hypothesis.settings.register_profile("repeatable", derandomize=True, **UNTIMED)
hypothesis.settings.register_profile("explore", derandomize=False, **UNTIMED)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


def pytest_configure(config):
    """Keep compiled programs in pytest's cache (`pytest --cache-clear` drops them), then make jax strict."""
    os.environ |= {
        "JAX_COMPILATION_CACHE_DIR": str(config.cache.mkdir("jax")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    import jax  # the first import: it reads the environment

    jax.config.update("jax_numpy_rank_promotion", "raise")
    jax.config.update("jax_default_matmul_precision", "highest")
    jax.config.update("jax_debug_key_reuse", True)


# Files that take 20 s and more begin first, so that no worker is left alone with one at the end (pyproject.toml keeps
# xdist from another order).
LONG = ["sample", "elastic", "lag", "endings", "replicas", "watching", "verify", "public", "knobs", "kernels"]


def pytest_collection_modifyitems(items):
    place = {f"test_{name}": number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONG)))


def pytest_collection_finish():
    """Search for garbage seldom, and not in what was imported and collected: a sixth of the time of warm tests."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def pytest_report_header():
    import jax

    return f"jax {jax.__version__}, {jax.device_count()} fake devices on {os.cpu_count()} cores"


@pytest.fixture(scope="session", autouse=True)
def patient_grading():
    """What takes a grader's worker milliseconds may take it more than its ten seconds on a busy machine."""
    importlib.import_module("int_jax.verify")._default.deadline_s = 120.0


@pytest.fixture(scope="module", autouse=True)
def programs_of_a_file():
    """Compiled programs are let go of after each file: each takes some of the 65,530 memory maps that Linux gives a
    process, and a worker that runs out of them dies."""
    yield
    importlib.import_module("jax").clear_caches()


@pytest.fixture
def optimized():
    """Programs of a test are optimized as shipped: for what is the same to the last bit of such alone."""
    jax = importlib.import_module("jax")
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()
    yield
    jax.config.update("jax_disable_most_optimizations", before)
    jax.clear_caches()


@pytest.fixture(scope="session")
def tiny_dir() -> pathlib.Path:
    """The embedded model, in Hugging Face format."""
    return ROOT / "int_jax" / "assets" / "tiny_arithmetic"


@pytest.fixture(scope="module")
def tokenizer(tiny_dir):
    from int_jax.tokenizer import Tokenizer

    return Tokenizer(tiny_dir)


@pytest.fixture(scope="module")
def domain(tokenizer):
    """Chains of arithmetic over the embedded model's tokenizer."""
    from int_jax.domains.arithmetic import Arithmetic

    return Arithmetic(tokenizer)


@pytest.fixture(scope="module")
def engine(tokenizer):
    """A small random model's engine on one device, for that tokenizer."""
    import jax

    from int_jax.engine import Engine
    from int_jax.models import Config, build
    from int_jax.sharding import make_mesh

    model = build(Config("qwen3", tokenizer.vocab, 32, 2, 4, 2, 8, 64, 512, qk_norm=True, tied=True))
    return Engine(model, make_mesh(1, 1, jax.devices()[:1]), slots=8, decode_steps=8, score_tokens=1024)
