"""LoRA (Hu et al., arXiv 2106.09685) as a transform of the parameter tree: adapters are further leaves beside a matrix.

A matrix W with adapters A and B works as W + (alpha / rank) A B. In a layer `q_DHK` has `q_lora_a_DR` and
`q_lora_b_RHK`, and each entry of `lora_scale_R` is alpha / rank: the tree alone says what it computes, and no config
has to be kept beside it. `models/transformer.py` applies adapters where there are some, an update trains them alone
(`split`), and what draws takes them together (`merge`).
"""

import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from int_jax import dims

MATRICES = {"q": "q_DHK", "k": "k_DNK", "v": "v_DNK", "o": "o_HKD"}
MATRICES |= {"gate": "gate_DF", "up": "up_DF", "down": "down_FD"}
SCALE = "lora_scale_R"


class Lora(NamedTuple):
    """What is trained in place of the matrices.

    Attributes:
      rank, alpha: the products A B are of this rank, and scaled by alpha / rank. matrices: keys of MATRICES.
      dtype: of the adapters; the rest is frozen, in whatever it has.
    """

    rank: int
    alpha: float
    matrices: tuple[str, ...]
    dtype: str = "float32"


def names(matrix: str) -> tuple[str, str]:
    """The adapters' names: names("o_HKD") == ("o_lora_a_HKR", "o_lora_b_RD")."""
    letters = dims.suffix(matrix)
    inputs = 2 if letters == "HKD" else 1  # the axes that a product with it sums over
    stem = matrix.removesuffix(letters)
    return f"{stem}lora_a_{letters[:inputs]}R", f"{stem}lora_b_R{letters[inputs:]}"


def is_adapter(name: str) -> bool:
    return "_lora_a_" in name or "_lora_b_" in name


def shapes(params, lora: Lora) -> dict[str, Any]:
    """The adapters alone, as jax.ShapeDtypeStruct, of the matrices that `params` has.

    Raises: ValueError where it has none of them.
    """

    def of(tree) -> dict[str, Any]:
        out: dict[str, Any] = {name: of(one) for name, one in tree.items() if isinstance(one, Mapping)}
        for matrix in (MATRICES[key] for key in lora.matrices if MATRICES[key] in tree):
            a, b = names(matrix)
            shape, inputs = tree[matrix].shape, len(dims.suffix(a)) - 1
            out[a] = jax.ShapeDtypeStruct((*shape[:inputs], lora.rank), np.dtype(lora.dtype))
            out[b] = jax.ShapeDtypeStruct((lora.rank, *shape[inputs:]), np.dtype(lora.dtype))
        return {name: one for name, one in out.items() if not isinstance(one, Mapping) or one}

    if not (found := of(params)):
        raise ValueError(
            f"LoRA: the model has none of the matrices {', '.join(lora.matrices)}: its parameters are "
            f"{', '.join(sorted({str(path[-1].key) for path, _ in jax.tree_util.tree_leaves_with_path(params)}))}"
        )
    return found


def add(params, lora: Lora, seed: int):
    """`params` with fresh adapters; as they are where they have some: a training goes on with these.

    B is zero, so that nothing changes at first, and A uniform within 1 / sqrt(inputs), as in peft. A is a function of
    the seed and its place in the tree, made on the host.
    """
    if split(params)[1] is not None:
        return params

    def one(path, like):
        name = "/".join(str(key.key) for key in path)
        if "_lora_b_" in name:
            return np.zeros(like.shape, like.dtype)
        bound = np.prod(like.shape[:-1]) ** -0.5
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        return rng.uniform(-bound, bound, like.shape).astype(like.dtype)

    fresh = jax.tree_util.tree_map_with_path(one, shapes(params, lora))
    return with_scale(join(params, fresh), lora)


def with_scale(params, lora: Lora):
    """`params` with the factor in each layer that has adapters."""
    out = {name: with_scale(one, lora) if isinstance(one, Mapping) else one for name, one in params.items()}
    scale_R = np.full(lora.rank, lora.alpha / lora.rank, np.float32)
    return out | ({SCALE: scale_R} if any(map(is_adapter, out)) else {})


def scaled(a, scale_R):
    """A, [inputs.., R], with the factor, in float32: in bfloat16 a factor of 8 / 3 alone would be 0.13% off."""
    return a.astype(jnp.float32) * scale_R.reshape((1,) * (a.ndim - 1) + (-1,))


def split(params) -> tuple[Any, Any]:
    """(the adapters, all the rest), which `join` puts together; (params, None) where there are no adapters: all of it
    is trained then."""
    adapters = _those(params, is_adapter)
    return (adapters, _those(params, lambda name: not is_adapter(name))) if adapters else (params, None)


def _those(params, wanted: Callable[[str], bool]) -> dict[str, Any]:
    out = {}
    for name, one in params.items():
        if not isinstance(one, Mapping):
            if wanted(name):
                out[name] = one
        elif found := _those(one, wanted):
            out[name] = found
    return out


def join(frozen, trained):
    """Two trees as one; `trained` where `frozen` is None."""
    if frozen is None:
        return trained
    out = {**frozen}
    for name, one in trained.items():
        out[name] = join(out.get(name), one) if isinstance(one, Mapping) else one
    return out


def merge(params):
    """The model without adapters: W + scale A B, summed in float32 and rounded to the matrix's dtype."""
    out: dict[str, Any] = {}
    for name, one in params.items():
        if isinstance(one, Mapping):
            out[name] = merge(one)
        elif not is_adapter(name) and name != SCALE:
            a, b = names(name)
            out[name] = _merged(one, scaled(params[a], params[SCALE]), params[b]) if a in params else one
    return out


def _merged(matrix, a, b):
    # [D, R] and [R, H, K] -> [D, H, K]. HIGHEST: accelerators would multiply float32 in fewer bits.
    product = jnp.tensordot(a, b.astype(jnp.float32), axes=1, precision=jax.lax.Precision.HIGHEST)
    return (matrix.astype(jnp.float32) + product).astype(matrix.dtype)
