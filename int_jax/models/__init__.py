"""`build(config) -> Model(config, init, apply)`; the only package that imports flax."""

import pkgutil
from importlib import import_module
from types import ModuleType

from int_jax.models.transformer import (
    Cache,
    Config,
    Model,
    Recent,
    RopeScaling,
    empty_cache,
    empty_recent,
    file,
    softcap,
)

__all__ = [
    "Cache",
    "Config",
    "Model",
    "Recent",
    "RopeScaling",
    "build",
    "empty_cache",
    "empty_recent",
    "families",
    "family",
    "file",
    "softcap",
]


def build(config: Config) -> Model:
    """The decoder that `config` describes, as functions of its parameters."""
    return Model(config)


def families() -> dict[str, ModuleType]:
    """The modules of this package that hold a table of weight names, by their names."""
    modules = {m.name: import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)}
    return {name: module for name, module in modules.items() if hasattr(module, "NAMES")}


def family(model_type: str) -> ModuleType:
    """The family whose module is named as the `model_type` of a config.json."""
    known = families()
    if model_type not in known:
        text = f"{model_type}_text"
        hint = (
            f" ({model_type} is a model of text and images, of which {text} is read)" if text in known else ""
        )
        raise ValueError(
            f"model_type = {model_type!r} is not supported{hint}; there are {sorted(known)} in int_jax/models/"
        )
    return known[model_type]
