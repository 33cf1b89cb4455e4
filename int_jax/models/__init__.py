"""`build(config) -> Model(config, init, apply)`; the only package that imports flax."""

from types import ModuleType

from int_jax import modules
from int_jax.models.transformer import Config, Model, RopeScaling, softcap

__all__ = [
    "Config",
    "Model",
    "RopeScaling",
    "build",
    "families",
    "family",
    "family_of",
    "softcap",
]


def build(config: Config) -> Model:
    """The decoder that `config` describes, as functions of its parameters."""
    return Model(config)


KIND = modules.Kind(
    "model family",
    __name__,
    ("NAMES", "config_from_hf", "config_to_hf"),
    apart=("flash", "hf", "kernels", "pages", "transformer"),
)
families = KIND.names


def family(name: str) -> ModuleType:
    """The family that `Config.family` names: a module of the package, or one of the user's own. Raises: ValueError."""
    return KIND.load(name)


def family_of(model_type: str) -> ModuleType:
    """The family of the package whose module is named as the `model_type` of a config.json: never a path or a dotted
    name, since such a file comes from elsewhere and must not say what code is run."""
    known = families()
    if model_type not in known:
        text = f"{model_type}_text"
        hint = (
            f" ({model_type} is a model of text and images, of which {text} is read)" if text in known else ""
        )
        raise ValueError(
            f"model_type = {model_type!r} is not supported{hint}; there are {sorted(known)} in int_jax/models/"
        )
    return family(model_type)
