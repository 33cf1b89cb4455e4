"""Adapters as PEFT's directories: the same bits there and back, the same numbers as `peft` computes, and refusals."""

import json

import jax
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file, save_file
from test_families import Pair, pair, tokens_of
from test_lora import ALL, CONFIGS, adapted, fresh, shapes_of
from trees import assert_same

from int_jax import hf_format, lora, losses, peft_format
from int_jax.batching import pack, supervised
from int_jax.lora import MATRICES, Lora
from int_jax.models import families

# peft 0.21 asks transformers 5 for a name that it gives up.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def on_host(tree):
    return jax.tree.map(np.asarray, tree)


@pytest.mark.parametrize("knobs", [ALL, Lora(1, 0.7, ("o",)), Lora(2, 5.0, ("v", "down"), "bfloat16")])
def test_what_is_written_is_read_with_the_same_bits(tmp_path, knobs):
    config, params = CONFIGS["qwen3"], fresh(CONFIGS["qwen3"])
    tree = adapted(params, knobs)
    peft_format.save(tmp_path / "a", config, tree, "owner/name")
    peft_format.save(tmp_path / "a", config, tree, "owner/name")  # over what is there
    again = peft_format.load(tmp_path / "a", config, params, knobs.dtype)
    assert_same(on_host(again), on_host(tree))
    # In place of other adapters, too.
    assert_same(
        on_host(peft_format.load(tmp_path / "a", config, adapted(params), knobs.dtype)), on_host(tree)
    )
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        peft_format.CONFIG,
        peft_format.WEIGHTS,
    ]
    data = json.loads((tmp_path / "a" / peft_format.CONFIG).read_text())
    assert (data["r"], data["lora_alpha"]) == (knobs.rank, knobs.alpha)
    assert data["base_model_name_or_path"] == "owner/name"
    assert data["target_modules"] == [f"{key}_proj" for key in knobs.matrices]


@pytest.mark.parametrize("name", sorted(families()))
def test_every_family_has_a_name_for_each_adapter(name):
    config = CONFIGS["qwen3"].__class__(name, **{"vocab": 9, "dim": 4, "layers": 1, "heads": 2, "kv_heads": 1},
                                        head_dim=2, ffw=5, max_len=8)  # fmt: skip
    assert peft_format.modules(config) == {key: f"{key}_proj" for key in MATRICES}
    names = peft_format.tensors(config, lora.shapes(shapes_of(config), ALL))
    assert names["layer_0/o_lora_b_RD"] == "base_model.model.model.layers.0.self_attn.o_proj.lora_B.weight"
    assert len(set(names.values())) == 2 * len(MATRICES)


def test_parameters_without_adapters_are_not_written(tmp_path):
    with pytest.raises(ValueError, match=r"there is nothing to write"):
        peft_format.save(tmp_path / "a", CONFIGS["qwen3"], fresh(CONFIGS["qwen3"]), "")
    assert not (tmp_path / "a").exists()


WRONG = [
    ({"peft_type": "IA3"}, r"peft_type = 'IA3' is not supported, only 'LORA' is"),
    ({"use_dora": True}, r"use_dora = True is not supported"),
    ({"use_rslora": True}, r"use_rslora = True"),
    ({"bias": "all"}, r"bias = 'all'"),
    ({"rank_pattern": {"q_proj": 3}}, r"rank_pattern"),
    ({"modules_to_save": ["lm_head"]}, r"modules_to_save"),
    ({"target_modules": "all-linear"}, r"target_modules = 'all-linear'"),
    ({"target_modules": ["lm_head"]}, r"only some of \['down_proj', .*'v_proj'\] are"),
    ({"target_modules": ["q_proj"]}, r"tensor base_model\S+ is not part of adapter_config.json"),
    ({"r": 2}, r"\(our layer_0/down_lora_a_FR\) has shape \(3, 24\), expected \(2, 24\)"),
    ({"r": None}, r"key 'r' is missing"),
]


@pytest.mark.parametrize(("change", "words"), WRONG)
def test_what_cannot_be_done_is_refused(tmp_path, change, words):
    config, params = CONFIGS["llama"], fresh(CONFIGS["llama"])
    peft_format.save(tmp_path, config, adapted(params), "")
    file = tmp_path / peft_format.CONFIG
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match=words):
        peft_format.load(tmp_path, config, params)


def test_a_tensor_or_a_file_that_is_missing_is_named(tmp_path):
    config, params = CONFIGS["llama"], fresh(CONFIGS["llama"])
    peft_format.save(tmp_path, config, adapted(params), "")
    tensors = load_file(tmp_path / peft_format.WEIGHTS)
    gone = tensors.pop(sorted(tensors)[0])
    assert gone.size
    save_file(tensors, tmp_path / peft_format.WEIGHTS)
    with pytest.raises(
        ValueError, match=r"layers\.0\.mlp\.down_proj\.lora_A\.weight is missing, but part of"
    ):
        peft_format.load(tmp_path, config, params)
    (tmp_path / peft_format.WEIGHTS).unlink()
    with pytest.raises(FileNotFoundError, match=r"adapter_model.safetensors: missing"):
        peft_format.load(tmp_path, config, params)


# --- against peft (pip install peft; it is in the extra `test`) ---


@pytest.fixture(scope="module", params=["qwen3", "llama"])
def both(request, tmp_path_factory):
    """One model twice, and peft's own adapters, of which none is at its first value."""
    peft = pytest.importorskip("peft", reason="pip install peft")
    import torch

    changes = {"num_key_value_heads": 2}
    changes |= {"attention_bias": True, "tie_word_embeddings": False} if request.param == "llama" else {}
    made = pair(request.param, changes, tmp_path_factory.mktemp(request.param))
    settings = peft.LoraConfig(r=3, lora_alpha=8, target_modules=PROJECTIONS, task_type="CAUSAL_LM")
    model = peft.get_peft_model(made.theirs, settings)
    draw = torch.Generator().manual_seed(3)
    for name, tensor in model.named_parameters():
        if "lora_" in name:
            tensor.data = 0.2 * torch.randn(tensor.shape, generator=draw)
    directory = tmp_path_factory.mktemp("adapter")
    model.save_pretrained(directory)
    return made, model, peft_format.load(directory, made.config, made.params)


def their_logp(model, ids):
    import torch

    row = torch.as_tensor(ids, dtype=torch.long)
    logp = torch.log_softmax(model(row[None]).logits[0, :-1], -1)
    return logp.gather(1, row[1:, None])[:, 0]


def test_log_probabilities_equal_those_of_peft(both):
    made, model, params = both
    ids = tokens_of(30)
    theirs = their_logp(model, ids).detach().numpy()
    with model.disable_adapter():
        bare = their_logp(model, ids).detach().numpy()
    assert np.abs(theirs - bare).max() > 0.5, "adapters that do nothing"
    for tree in (params, made.engine.decode_params(params)):
        np.testing.assert_allclose(made.engine.score(tree, [ids])[0][0][1:], theirs, atol=1e-5, rtol=1e-5)


def test_gradients_of_a_and_b_equal_autograd(both):
    """Our gradient is what `update` hands to its optimizer."""
    made, model, params = both
    ids, tx = tokens_of(20), optax.trace(decay=0.0)
    weight = np.append(0, np.random.default_rng(5).random(19)).astype(np.float32)
    trained, frozen = lora.split(params)
    state, metrics = made.engine.update(
        made.engine.state(trained, tx),
        pack([supervised(ids, weight)], 20, 1),
        tx,
        losses.LossConfig(logit_chunk=8),
        frozen,
    )
    model.zero_grad()
    loss = -(their_logp(model, ids) * model.lm_head.weight.new_tensor(weight[1:])).sum() / float(weight.sum())
    loss.backward()
    np.testing.assert_allclose(metrics["loss"], loss.item(), rtol=1e-5)
    theirs = {
        name.replace(".default.", "."): tensor.grad.numpy()
        for name, tensor in model.named_parameters()
        if tensor.requires_grad
    }
    names = peft_format.tensors(made.config, trained)
    ours = hf_format.leaves_by_path(state.opt.trace)
    assert {names[path] for path in ours} == theirs.keys()
    for path, grad in ours.items():
        expected = theirs[names[path]]
        assert np.abs(expected).max() > 1e-4
        np.testing.assert_allclose(
            peft_format.to_peft(path, np.asarray(grad)), expected, atol=1e-6, rtol=1e-4, err_msg=path
        )


def test_peft_loads_what_is_written_and_merges_to_our_merged_model(both, tmp_path):
    made, _, params = both
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    assert isinstance(made, Pair)
    peft_format.save(tmp_path / "adapter", made.config, params, made.directory)
    hf_format.save(tmp_path / "merged", made.config, lora.merge(params))
    base = AutoModelForCausalLM.from_pretrained(made.directory, attn_implementation="eager").float()
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").merge_and_unload().state_dict()
    for name, tensor in load_file(tmp_path / "merged" / hf_format.SINGLE).items():
        assert torch.allclose(theirs[name], torch.tensor(tensor), atol=1e-6, rtol=1e-6), name
