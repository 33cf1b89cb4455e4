"""Metadata and dependencies; the settings of the tools are in pyproject.toml."""

from setuptools import find_packages, setup

CORE = [
    "absl-py>=2.5",
    "flax>=0.12.8",
    "jax>=0.10",
    "jinja2>=3.1",
    "math-verify>=0.9",
    "ml-collections>=1.1",
    "numpy>=2.4",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12.8",
    "pyarrow>=20",  # Parquet; tensorflow-datasets brings it, too
    "safetensors>=0.8",
    "sympy>=1.14",
    "tensorboardX>=2.6.5",
    "tensorflow-datasets>=4.9.10",  # tfds.data_source: no TensorFlow
    "tokenizers>=0.23.1",
    "tqdm>=4.70",
    "transformers>=5",  # tokenizers and configs: no torch
]

EXTRAS = {
    "test": [
        "gguf>=0.19",  # reads the real model of `make real`
        "hypothesis>=6.170",
        "ipykernel>=7",
        "mypy>=2.4",
        "nbclient>=0.10",
        "nbformat>=5.10",
        "pytest>=9.2",
        "pytest-xdist>=3.8",
        "reasoning-gym>=0.1.25",
        "ruff==0.17.6",  # exact: another version formats differently
        "torch==2.13.0",  # the CPU parity oracle, exact so that every machine compares with the same build
    ],
    # Of tensorflow-datasets' Hugging Face builder; it needs importlib_resources without asking for it.
    "hub": ["datasets>=4", "huggingface_hub>=2.4", "importlib_resources>=6"],
    "gpu": ["jax[cuda12]>=0.10"],  # CUDA 12 wheels also run on CUDA 13 drivers
    "tpu": ["jax[tpu]>=0.10"],
    "notebooks": ["ipywidgets>=8.1", "jupyterlab>=4.6", "matplotlib>=3.11"],
}

setup(
    name="int_jax",
    version="0.1.0",
    description="Intervention Training (InT, arXiv 2601.14209) in JAX",
    author="The int_jax authors",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["int_jax", "int_jax.*"]),
    package_data={"int_jax": ["py.typed", "assets/**", "**/*.txt", "**/*.jinja", "**/*.html"]},
    install_requires=CORE,
    extras_require=EXTRAS,
    zip_safe=False,
)
