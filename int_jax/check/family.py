"""The contract of a model family: its config.json and its weights to ours and back, and PyTorch's logits where it is
installed."""

import dataclasses
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
import optax

from int_jax import hf_format, models, modules
from int_jax.check import Skipped
from int_jax.engine import Engine
from int_jax.models import Config, build
from int_jax.models.hf import need, tensor_name
from int_jax.sharding import make_mesh

# A small model of any family: one kv head, heads that are not hidden / heads wide, an odd vocabulary.
SIZES = {
    **{"vocab_size": 61, "hidden_size": 24, "intermediate_size": 37, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 10, "max_position_embeddings": 128},
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False},
}


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model family under check: the text that names it, its module, and a config.json of a small model of it."""

    name: str
    module: ModuleType
    data: dict[str, Any]

    @property
    def config(self) -> Config:
        return dataclasses.replace(self.module.config_from_hf(self.data), family=self.name)


def subject(name: str, data: dict[str, Any]) -> Subject:
    """The family that a text names, on a small model of it.

    Args:
      data: a config.json of the family, whose sizes are made small; {} for one by transformers, which then has to know
        the module's name as a model_type.

    Raises: ValueError where it cannot be loaded, or no config.json is at hand.
    """
    module = models.family(name)
    if not data:
        from transformers import AutoConfig  # slow to import

        # "lab/mamba.py" and "mylab.mamba" are both named after mamba.
        model_type = Path(name).stem if modules.is_path(name) else name.rpartition(".")[2]
        try:
            data = json.loads(AutoConfig.for_model(model_type, **SIZES).to_json_string())
        except ValueError:
            raise ValueError(
                f"transformers knows no model_type {model_type!r}, after which the module is named: rename it, or give "
                "--config FILE, a config.json of the family"
            ) from None
    return Subject(name, module, data | SIZES)


def check_config(s: Subject) -> Iterator[str]:
    """config_from_hf reads the sizes of a config.json, and config_to_hf writes them back."""
    config = s.module.config_from_hf(s.data)
    for key, field in {
        **{
            "vocab_size": "vocab",
            "hidden_size": "dim",
            "num_hidden_layers": "layers",
            "head_dim": "head_dim",
        },
        **{"num_attention_heads": "heads", "num_key_value_heads": "kv_heads", "intermediate_size": "ffw"},
    }.items():
        if (found := dataclasses.asdict(config)[field]) != s.data[key]:
            yield f"config_from_hf makes {key} = {s.data[key]} to {field} = {found}"
    written = s.module.config_to_hf(config, {})
    if written.get("model_type") != need(s.data, "model_type"):
        yield f"config_to_hf writes model_type = {written.get('model_type')!r}, and it was {s.data['model_type']!r}"
    if (again := s.module.config_from_hf(written)) != config:
        yield f"config_from_hf(config_to_hf(config)) is {again}, and config is {config}"


def check_refusals(s: Subject) -> Iterator[str]:
    """config_from_hf refuses an activation that the decoder does not have."""
    # Families call it hidden_act or hidden_activation.
    activations = {key: "swish_and_squeeze" for key in s.data if key in ("hidden_act", "hidden_activation")}
    try:
        s.module.config_from_hf(s.data | activations)
    except ValueError:
        return
    yield f"config_from_hf takes {activations}: refuse what is not in transformer.py with `hf.only`"


def check_names(s: Subject) -> Iterator[str]:
    """NAMES has a tensor of its own for every parameter."""
    paths = hf_format.leaves_by_path(jax.eval_shape(build(s.config).init, jax.random.key(0)))
    missing = [path for path in paths if _pattern(path) not in s.module.NAMES]
    if missing:
        yield f"NAMES has no entry for {', '.join(dict.fromkeys(map(_pattern, missing)))}"
        return
    # Two parameters with one tensor: the second would overwrite the first when they are saved.
    names = [tensor_name(s.module.NAMES, path) for path in paths]
    if double := sorted({name for name in names if names.count(name) > 1}):
        yield f"NAMES gives several parameters the tensor {double[0]}"


def _pattern(path: str) -> str:
    layer, slash, rest = path.partition("/")
    return f"layer_{{}}/{rest}" if slash and layer.startswith("layer_") else path


def check_weights(s: Subject) -> Iterator[str]:
    """A saved model is read back with the same bits."""
    engine = _engine(s)
    params = engine.init(0, optax.identity()).params
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        hf_format.save(path, s.config, params, None)
        config, again = hf_format.load(path, engine.mesh, own_family=s.name)
    if config != s.config:
        yield f"config.json is read back as {config}, and was {s.config}"
    same = jax.tree.map(lambda a, b: np.array_equal(np.asarray(a), np.asarray(b)), params, again)
    if not all(jax.tree.leaves(same)):
        yield f"weights are read back with other bits: {same}"


def check_logits(s: Subject) -> Iterator[str]:
    """The next token's probability is that of transformers, for weights that it made."""
    try:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM
    except ImportError:
        raise Skipped("PyTorch is not installed: pip install torch") from None
    torch.manual_seed(0)
    settings = {key: value for key, value in s.data.items() if key != "model_type"}
    theirs = (
        AutoModelForCausalLM.from_config(AutoConfig.for_model(s.data["model_type"], **settings))
        .eval()
        .float()
    )
    for tensor in (
        theirs.parameters()
    ):  # at their first values norms are ones and biases zeros: neither would be missed
        tensor.data += 0.3 * torch.randn(tensor.shape)
    ids = list(range(3, 40))
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        theirs.save_pretrained(folder)
        config, params = hf_format.load(folder, make_mesh(1, 1, jax.devices()[:1]), own_family=s.name)
        logp = torch.log_softmax(theirs(torch.tensor([ids])).logits[0].double(), -1)
    # Row t of the logits predicts token t + 1; element 0 of ours predicts nothing.
    wanted = logp[range(len(ids) - 1), ids[1:]].numpy()
    engine = Engine(build(config), make_mesh(1, 1, jax.devices()[:1]), slots=4)
    [ours], _ = engine.score(engine.decode_params(params), [ids])
    if (gap := float(np.abs(ours[1:] - wanted).max())) > 1e-3:
        yield f"log-probabilities differ from transformers' by up to {gap:.2g} nats, 0.001 is allowed"


def _engine(s: Subject) -> Engine:
    return Engine(build(s.config), make_mesh(1, 1, jax.devices()[:1]), slots=4)


CHECKS = (check_config, check_refusals, check_names, check_weights, check_logits)
