"""What devices can do at most, as their makers state it, and how long work takes by that.

A decoding step reads the weights and the keys and values of its rows, so it is bound by the memory's bandwidth;
prefill, scoring and training multiply matrices. What of either is reached is assumed (`SPEEDS`), not measured.
"""

import dataclasses
import functools

import jax
import numpy as np

from int_jax.models import Config, build

NETWORK = 100e9  # bytes/s between hosts


@dataclasses.dataclass(frozen=True)
class Device:
    """A kind of accelerator.

    Attributes:
      name: what plan.py calls it. kind: what jax calls it (`device_kind`). platform: "tpu" or "gpu".
      memory: GiB that programs see. bandwidth: of it, bytes/s. flops: bfloat16 operations/s, without sparsity.
      a_host: devices of a host.
    """

    name: str
    kind: str
    platform: str
    memory: float
    bandwidth: float
    flops: float
    a_host: int


# From the makers' data sheets; of memory what XLA (TPU) and CUDA (GPU) leave of it: 95.74 of 96 GiB, 79.1 of "80 GB".
TABLE = (
    Device("v4", "TPU v4", "tpu", 30.75, 1.228e12, 275e12, 4),
    Device("v5e", "TPU v5 lite", "tpu", 15.75, 0.819e12, 197e12, 8),
    Device("v5p", "TPU v5", "tpu", 95.74, 2.765e12, 459e12, 4),
    Device("v6e", "TPU v6 lite", "tpu", 31.25, 1.64e12, 918e12, 8),
    Device("a100-40", "NVIDIA A100-SXM4-40GB", "gpu", 39.4, 1.555e12, 312e12, 8),
    Device("a100", "NVIDIA A100-SXM4-80GB", "gpu", 79.1, 2.039e12, 312e12, 8),
    Device("h100", "NVIDIA H100 80GB HBM3", "gpu", 79.1, 3.35e12, 989e12, 8),
    Device("h200", "NVIDIA H200", "gpu", 139.8, 4.8e12, 989e12, 8),
)
DEVICES = {device.kind: device for device in TABLE}
NAMES = {device.name: device for device in TABLE}


@dataclasses.dataclass(frozen=True)
class Speed:
    """What of a device is reached.

    Attributes:
      bandwidth: share, in decoding. step: seconds of a decoding step besides reading, for each layer. reduce: seconds
        of an all-reduce over "model", of which a layer has two. matrices: share of the operations in prefill and
        scoring. training: the same in training, of the operations that `training_flops` counts.
    """

    bandwidth: float
    step: float
    reduce: float
    matrices: float
    training: float


# A step of Qwen3-4B on v5p with 64 rows and no keys and values is 5.58 ms by libtpu's estimate (kernel_compile.py
# --step), of which the weights take 3.75; on GPU 2.2 ms are assumed. Training: a packed row of 20,000 tokens in 1.2 s
# on v5p-8, 0.4 s on 8 x H200, with flash attention.
SPEEDS = {
    "tpu": Speed(0.775, 51e-6, 5e-6, 0.5, 0.29),
    "gpu": Speed(0.775, 61e-6, 10e-6, 0.5, 0.2),
}


def told(device: Device) -> str:
    """What is assumed of a device, in words."""
    speed = SPEEDS[device.platform]
    return (
        f"{device.bandwidth / 1e12:.2f} TB/s, of which decoding reaches {speed.bandwidth:.1%}, and "
        f"{1e6 * speed.step:.0f} us a layer and step besides; {device.flops / 1e12:.0f} TFLOP/s, of which prefill "
        f"reaches {speed.matrices:.0%} and training {speed.training:.0%}"
    )


@functools.cache
def parameters(config: Config) -> int:
    """Parameters that a token is multiplied with: all but an embedding that is not the head."""
    tree = jax.eval_shape(build(config).init, jax.random.key(0))
    whole = sum(leaf.size for leaf in jax.tree.leaves(tree))
    return whole if config.tied else whole - config.vocab * config.dim


@dataclasses.dataclass(frozen=True)
class Shape:
    """A model in operations and bytes.

    Attributes:
      parameters: with the embedding, once. layers. token: bytes of keys and values. attention: operations of a token,
        forward, for each that it sees (its scores and their sum).
    """

    parameters: float
    layers: int
    token: int
    attention: int

    @classmethod
    def of(cls, config: Config) -> "Shape":
        c = config
        token = 2 * c.layers * c.kv_heads * c.head_dim * np.dtype(c.dtype).itemsize
        return cls(parameters(c), c.layers, token, 4 * c.layers * c.heads * c.head_dim)

    @property
    def weights(self) -> float:
        """Bytes in bfloat16."""
        return 2 * self.parameters


def training_flops(shape: Shape, tokens, seen):
    """Operations of a forward and a backward pass over `tokens`: 6 N T and three times the attention's, nothing
    recomputed (Chowdhery et al., PaLM, appendix B).

    Args:
      seen: tokens that each of these attends to, its own included, summed: T (T + 1) / 2 of a sequence of T tokens.
    """
    return 6 * shape.parameters * tokens + 3 * shape.attention * seen


def decode_seconds(device: Device, shape: Shape, steps, read, model: int = 1):
    """Seconds of so many steps of one replica.

    Args:
      read: keys and values that are read, in tokens, over all steps. model: devices over which they and the weights are
        cut.
    """
    speed = SPEEDS[device.platform]
    bandwidth = device.bandwidth * speed.bandwidth
    reduced = 2 * shape.layers * speed.reduce if model > 1 else 0.0
    each = shape.layers * speed.step + reduced + shape.weights / model / bandwidth
    return steps * each + read * shape.token / model / bandwidth


def forward_seconds(device: Device, shape: Shape, tokens, seen, programs=0, model: int = 1):
    """Seconds of prefill or scoring on one replica; a small program takes as long as its weights do.

    Args:
      tokens, seen: as of `training_flops`. programs: in which they are computed.
    """
    speed = SPEEDS[device.platform]
    work = 2 * shape.parameters * tokens + shape.attention * seen
    weights = programs * shape.weights / (device.bandwidth * speed.bandwidth)
    return np.maximum(work / (device.flops * speed.matrices), weights) / model


def training_seconds(
    device: Device, shape: Shape, devices: int, tokens, seen, updates=1, share: float | None = None
):
    """Seconds of `updates` over so many tokens in all; between hosts the float32 gradients are summed each time.

    Args:
      tokens, seen: as of `training_flops`. share: of the operations, where not that of SPEEDS.
    """
    reached = device.flops * (SPEEDS[device.platform].training if share is None else share)
    summed = 4 * shape.parameters / NETWORK if devices > device.a_host else 0.0
    return training_flops(shape, tokens, seen) / (devices * reached) + updates * summed
