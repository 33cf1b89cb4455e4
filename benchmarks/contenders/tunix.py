"""google-tunix's own sampler, on its Qwen3. Runs in an environment of its own (`make bench` makes it)."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from tunix.generate.sampler import CacheConfig, Sampler
from tunix.models.qwen3 import model as qwen3
from tunix.models.qwen3 import params


class Numbers:
    """A tokenizer whose texts are the ids: "17 4" is [17, 4]. Nothing is put before them, and no id ends a response."""

    def encode(self, text, **_):
        return [int(word) for word in text.split()]

    def decode(self, ids, **_):
        return " ".join(map(str, ids))

    def bos_id(self):
        return None

    def eos_id(self):
        return -1

    def pad_id(self):
        return 0


def load(path: str, dtype_name: str):
    """A mesh of one device, the model on it, and its config."""
    data = json.loads((Path(path) / "config.json").read_text())
    dtype = jnp.dtype(dtype_name)
    config = qwen3.ModelConfig(
        num_layers=data["num_hidden_layers"],
        vocab_size=data["vocab_size"],
        embed_dim=data["hidden_size"],
        hidden_dim=data["intermediate_size"],
        num_heads=data["num_attention_heads"],
        head_dim=data["head_dim"],
        num_kv_heads=data["num_key_value_heads"],
        rope_theta=data["rope_theta"],
        norm_eps=data["rms_norm_eps"],
        use_tied_embedding=data["tie_word_embeddings"],
        dtype=dtype,
        param_dtype=dtype,
    )
    mesh = jax.make_mesh((1, 1), ("fsdp", "tp"), axis_types=(AxisType.Auto,) * 2)
    return mesh, params.create_model_from_safe_tensors(path, config, mesh, dtype=dtype), config


def sampler(model, config, positions: int) -> Sampler:
    """positions: of its cache."""
    cache = CacheConfig(positions, config.num_layers, config.num_kv_heads, config.head_dim)
    return Sampler(model, Numbers(), cache)


def prepare(task: dict):
    """See worker.py."""
    if task["filters"]:
        raise ValueError(f"filters {task['filters']}: this contender is measured without any")
    mesh, model, config = load(task["model"], task["dtype"])
    texts = [" ".join(map(str, prompt)) for prompt in task["prompts"] for _ in range(task["samples"])]
    # Told, or it pads prompts to a power of two.
    width = max(map(len, task["prompts"]))
    draw = sampler(model, config, task["cache"] or width + task["new"])

    def once(seed: int) -> list[int]:
        # top_p 1 is its plain draw from the whole distribution; without top_p it is greedy.
        with mesh:
            out = draw(
                texts, task["new"], width, temperature=1.0, top_p=1.0, seed=seed, eos_tokens=task["stops"]
            )
        # Its responses are given without the stop id, which it drew, too.
        return [min(len(ids) + 1, task["new"]) for ids in out.tokens]

    return once
