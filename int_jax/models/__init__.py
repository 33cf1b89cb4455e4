"""`build(config) -> Model(config, init, apply)`; the only package that imports flax."""

from int_jax.models.transformer import Cache, Config, Model, empty_cache

__all__ = ["Cache", "Config", "Model", "build", "empty_cache"]


def build(config: Config) -> Model:
    """The decoder that `config` describes, as functions of its parameters."""
    return Model(config)
