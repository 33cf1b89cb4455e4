"""Every model family against PyTorch transformers: logits, greedy generations, the gradient of the SFT loss, both ways
through the Hugging Face format. A new family is found by `models.families()` and tested in its plain shape."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from int_jax import hf_format, losses
from int_jax.batching import pack, supervised
from int_jax.engine import Engine
from int_jax.models import RopeScaling, build, families, family, hf
from int_jax.models.transformer import scaled
from int_jax.sampler import Request, Sampling
from int_jax.sharding import RULES_DECODE, make_mesh

# head_dim is not hidden / heads, there is one kv head, and the vocabulary is odd.
PLAIN = {
    **{"vocab_size": 61, "hidden_size": 24, "intermediate_size": 37, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 10, "max_position_embeddings": 128},
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": True},
}
# Wavelengths are 6, 25, 100, 396 and 1,578 tokens: one is kept, one blended, the rest are stretched.
LLAMA3 = {
    **{"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "original_max_position_embeddings": 64,
}
ODD = {
    "llama": {
        "rope_theta": 1000.0,
        "rope_scaling": LLAMA3,
        "attention_bias": True,
        "tie_word_embeddings": False,
    },
    "mistral": {"sliding_window": 6, "num_key_value_heads": 2, "tie_word_embeddings": False},
    "qwen2": {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    "qwen3": {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    "gemma3_text": {
        **{"sliding_window": 5, "sliding_window_pattern": 2, "query_pre_attn_scalar": 7},
        **{
            "rope_theta": 500.0,
            "rope_local_base_freq": 20.0,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        },
        **{"final_logit_softcapping": 3.0, "attn_logit_softcapping": 2.0},
    },
}


@dataclasses.dataclass
class Pair:
    """One model twice: PyTorch's, and ours, imported from what transformers saved."""

    theirs: object
    directory: object
    config: object
    params: object
    engine: Engine

    def logits(self, ids):
        """PyTorch's, [T, V]; transformers leaves Gemma 3's cap of the scores to the caller."""
        import torch

        cap = {"softcap": self.config.attention_softcap} if self.config.attention_softcap else {}
        return self.theirs(torch.as_tensor(ids, dtype=torch.long)[None], **cap).logits[0]


def torch_model(name, changes, seed=0):
    """A model of transformers in which nothing is at its initial value."""
    torch = pytest.importorskip("torch")
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(name, **(PLAIN | changes))
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32)
    draw = torch.Generator().manual_seed(seed)
    for tensor in model.parameters():
        noise = torch.randn(tensor.shape, generator=draw)
        if tensor.ndim == 1:
            tensor.data += 0.3 * noise
        else:
            # A small embedding, so that the layers and not the token at hand decide what comes next.
            tensor.data = noise * (0.3 if tensor.shape[0] == config.vocab_size else tensor.shape[1] ** -0.5)
    return model.eval()


def pair(name, changes, directory):
    theirs = torch_model(name, changes)
    theirs.save_pretrained(directory)
    mesh = make_mesh(1, 1, jax.devices()[:1])
    config, params = hf_format.load(directory, mesh)
    return Pair(theirs, directory, config, params, Engine(build(config), mesh, 4, 8, score_tokens=256))


@pytest.fixture(scope="module", params=sorted(families()))
def odd(request, tmp_path_factory):
    """The family with every switch it has."""
    return pair(request.param, ODD.get(request.param, {}), tmp_path_factory.mktemp(request.param))


def tokens_of(length, seed=1):
    return np.random.default_rng(seed).integers(3, PLAIN["vocab_size"], length, dtype=np.int32)


def our_logits(config, params, ids):
    def logits(params, tokens_BT):
        positions_BT = jnp.arange(tokens_BT.shape[1])[None]
        hidden_BTD, _ = build(config).apply(params, tokens_BT, positions_BT)
        head_DV, ones_BT = build(config).head_DV(params), jnp.ones(tokens_BT.shape)
        return losses.scaled_logits(hidden_BTD, head_DV, ones_BT, config.logit_softcap)[0]

    return np.asarray(jax.jit(logits)(params, np.asarray(ids)[None]))


def test_logits_equal_those_of_transformers(odd):
    ids = tokens_of(23)
    theirs = odd.logits(ids).detach().numpy()
    assert np.ptp(theirs, axis=-1).min() > 1, "a model that tells no token from another"
    np.testing.assert_allclose(our_logits(odd.config, odd.params, ids), theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", sorted(families()))
def test_the_plain_shape_in_the_other_tie(name, tmp_path):
    tied = (PLAIN | ODD.get(name, {}))["tie_word_embeddings"]
    other = pair(name, {"tie_word_embeddings": not tied}, tmp_path / "in")
    ids = tokens_of(11)
    ours, theirs = our_logits(other.config, other.params, ids), other.logits(ids).detach().numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=1e-5)
    way_out_and_back(other, tmp_path)


def test_generations_equal_token_by_token_and_their_logp_is_that_of_score(odd):
    """Past the window, and past the sampler's chunks of 8 tokens."""
    import torch

    prompts, new = [tokens_of(3), tokens_of(9)], 21
    requests = [Request(tuple(map(int, prompt)), "t", i) for i, prompt in enumerate(prompts)]
    greedy = odd.engine.generate(odd.params, requests, Sampling(new, temperature=0.0))
    for prompt, response in zip(prompts, greedy, strict=True):
        ids = list(prompt)
        for _ in range(new):
            ids.append(int(odd.logits(ids)[-1].argmax()))
        assert response.tokens.tolist() == ids

    drawn = odd.engine.generate(odd.params, requests, Sampling(new, temperature=0.7, seed=3))
    assert all(len(set(response.tokens.tolist())) > 8 for response in drawn), "it repeats itself"
    for responses, temperature in ((greedy, 1.0), (drawn, 0.7)):
        scored, _ = odd.engine.score(odd.params, [r.tokens for r in responses], temperature)
        for prompt, response, logp in zip(prompts, responses, scored, strict=True):
            start, ids = len(prompt), torch.tensor(response.tokens, dtype=torch.long)
            theirs = torch.log_softmax(odd.logits(ids[:-1]) / temperature, -1).gather(1, ids[1:, None])[:, 0]
            np.testing.assert_allclose(response.logp[start:], logp[start:], atol=1e-5)
            np.testing.assert_allclose(logp[1:], theirs.detach().numpy(), atol=2e-5)


def test_the_gradient_of_the_sft_loss_equals_autograd(odd):
    """Two sequences packed in one row here, one by one there; our gradient is what `update` hands to its optimizer."""
    import torch

    rng = np.random.default_rng(5)
    rows = [(tokens_of(n, n), np.append(0, rng.random(n - 1)).astype(np.float32)) for n in (12, 9)]
    batch = pack([supervised(ids, weight) for ids, weight in rows], 24, 1)
    tx = optax.trace(decay=0.0)  # its state is the gradient
    state, metrics = odd.engine.update(
        odd.engine.state(odd.params, tx), batch, tx, losses.LossConfig(logit_chunk=8)
    )

    odd.theirs.zero_grad()
    total = sum(weight.sum() for _, weight in rows)
    loss = 0
    for ids, weight in rows:
        logp = torch.log_softmax(odd.logits(ids)[:-1], -1)
        picked = logp.gather(1, torch.tensor(ids[1:, None], dtype=torch.long))[:, 0]
        loss = loss - (torch.tensor(weight[1:]) * picked).sum() / float(total)
    loss.backward()
    np.testing.assert_allclose(metrics["loss"], loss.item(), rtol=1e-5)
    names = family(odd.config.family).NAMES
    for path, gradient in hf_format.leaves_by_path(state.opt.trace).items():
        their = odd.theirs.get_parameter(hf.tensor_name(names, path)).grad.numpy()
        mine = hf.to_hf(path.rpartition("_")[2], np.asarray(gradient))
        assert np.abs(their).max() > 1e-6, path
        # A bias on the keys shifts all scores of a query alike: but for RoPE and the caps its gradient would be zero.
        np.testing.assert_allclose(mine, their, atol=1e-4 * np.abs(their).max(), rtol=1e-4, err_msg=path)


def test_two_meshes_agree(odd):
    mesh = make_mesh(2, 4)
    _, params = hf_format.load(odd.directory, mesh, rules=RULES_DECODE)
    rows = [tokens_of(n, n) for n in (17, 30)]
    many, _ = Engine(odd.engine.model, mesh, 4, 8, score_tokens=256).score(params, rows)
    one, _ = odd.engine.score(odd.params, rows)
    for left, right in zip(many, one, strict=True):
        np.testing.assert_allclose(left, right, atol=1e-5)


def way_out_and_back(pair, directory):
    """Every bit, by transformers and by ourselves, in float32 and bfloat16."""
    import torch
    from transformers import AutoModelForCausalLM

    hf_format.save(directory / "out", pair.config, pair.params, shard_bytes=4000)
    assert len(list((directory / "out").glob("model-*.safetensors"))) > 2
    back, report = AutoModelForCausalLM.from_pretrained(
        directory / "out", dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not any(report.values()), report
    for name, tensor in pair.theirs.state_dict().items():
        assert torch.equal(tensor, back.state_dict()[name]), name
    ids = torch.tensor(tokens_of(13), dtype=torch.long)[None]
    assert torch.equal(pair.theirs(ids).logits, back(ids).logits), "config.json was read otherwise"

    for dtype in ("float32", "bfloat16"):
        params = jax.tree.map(lambda leaf: leaf.astype(dtype), pair.params)  # noqa: B023
        hf_format.save(directory / dtype, pair.config, params)
        config, loaded = hf_format.load(directory / dtype, make_mesh(2, 4), dtype)
        assert config == dataclasses.replace(pair.config, dtype=dtype, param_dtype=dtype)
        for (path, left), right in zip(
            jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(loaded), strict=True
        ):
            assert np.asarray(left).tobytes() == np.asarray(right).tobytes(), path


def test_the_way_out_and_back_keeps_every_bit(odd, tmp_path):
    way_out_and_back(odd, tmp_path)


def test_a_scaled_embedding_is_rounded_as_transformers_rounds_it(tmp_path):
    """Bit for bit in bfloat16: post norms of zero leave the embedding alone, a large epsilon leaves its scale."""
    torch = pytest.importorskip("torch")
    theirs = torch_model("gemma3_text", {"rms_norm_eps": 100.0})
    for name, tensor in theirs.named_parameters():
        if "post_" in name:
            tensor.data[:] = -1  # stored around zero
    theirs = theirs.to(torch.bfloat16)
    theirs.save_pretrained(tmp_path)
    config, params = hf_format.load(tmp_path, make_mesh(1, 1, jax.devices()[:1]), "bfloat16")
    ids = tokens_of(40)[None]
    hidden_BTD, _ = jax.jit(build(config).apply)(params, ids, np.arange(40)[None])
    expected = theirs.model(torch.tensor(ids, dtype=torch.long)).last_hidden_state.float()
    assert expected.abs().max() > 0.1
    np.testing.assert_array_equal(hidden_BTD.astype(jnp.float32), expected.detach().numpy())


def renamed(change):
    return lambda tensors: {change(name): tensor for name, tensor in tensors.items()}


def rope_of(key, **table):
    """A config.json whose rope_scaling or rope_parameters are these and no others."""

    def change(data):
        data.pop("rope_parameters", None)
        return data | {"rope_theta": 10_000.0, key: table}

    return change


def without(*keys, **changes):
    return lambda data: {key: value for key, value in data.items() if key not in keys} | changes


HEAD, EMBED = "lm_head.weight", "model.embed_tokens.weight"
head_alone = renamed(lambda name: HEAD if name == EMBED else name)
FORMS = {
    **{f"{name}: the head alone": (name, {}, None, head_alone, None) for name in sorted(families())},
    "the head twice": ("llama", {}, None, lambda t: t | {HEAD: t[EMBED].clone()}, None),
    "another head": (
        "llama",
        {},
        None,
        lambda t: t | {HEAD: t[EMBED] + 1},
        "differs from .*tie_word_embeddings",
    ),
    "no prefix": ("llama", {}, None, renamed(lambda n: n.removeprefix("model.")), None),
    "no prefix, untied": (
        *("llama", {"tie_word_embeddings": False}, None),
        *(renamed(lambda n: n.removeprefix("model.")), None),
    ),
    "two prefixes": ("qwen2", {}, None, renamed(lambda n: "model." + n), None),
    "two prefixes, untied": (
        "qwen3",
        {"tie_word_embeddings": False},
        None,
        renamed(lambda n: "model." + n),
        None,
    ),
    "another prefix": (
        "llama",
        {},
        None,
        renamed(lambda n: "module." + n),
        "model.embed_tokens.weight is missing",
    ),
    "a name twice": (
        *("llama", {}, None, lambda t: t | {"norm.weight": t["model.norm.weight"].clone()}),
        "norm.weight is in .* too",
    ),
    "factor null": ("llama", {}, rope_of("rope_scaling", rope_type="default", factor=None), None, None),
    "factor null, new": (
        "mistral",
        {},
        rope_of("rope_parameters", rope_type="default", factor=None),
        None,
        None,
    ),
    "factor 1": ("llama", {}, rope_of("rope_scaling", type="default", factor=1.0), None, None),
    "factor 8": (
        "llama",
        {},
        rope_of("rope_scaling", type="default", factor=8.0),
        None,
        "'default' has .*factor",
    ),
    "factor alone": ("llama", {}, rope_of("rope_scaling", factor=8.0), None, "'default' has .*factor"),
    "trained": (
        *("qwen3", {}, rope_of("rope_scaling", rope_type="default", original_max_position_embeddings=64)),
        *(None, None),
    ),
    "trained, new": (
        *("qwen2", {}, rope_of("rope_parameters", rope_type="default", original_max_position_embeddings=64)),
        *(None, None),
    ),
    "trained, linear": (
        *("llama", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}, "rope_theta": 10_000.0}),
        *(
            rope_of("rope_scaling", type="linear", factor=2.0, original_max_position_embeddings=64),
            None,
            None,
        ),
    ),
    "no scaling": ("llama", {}, rope_of("rope_scaling"), None, None),
    "both names of the type": (
        "llama",
        {},
        rope_of("rope_scaling", type="default", rope_type="default"),
        None,
        None,
    ),
    "scaling null": ("llama", {}, lambda data: data | {"rope_scaling": None}, None, None),
    "no base": ("mistral", {}, without("rope_theta", "rope_parameters"), None, None),
    "no base, qwen": ("qwen3", {}, without("rope_theta", "rope_parameters"), None, None),
    "old dtype": ("llama", {}, without("dtype", torch_dtype="bfloat16"), None, None),
    "a list of eos": ("llama", {}, without(eos_token_id=[2, 0]), None, None),
    "no window": (
        "qwen2",
        {},
        without("layer_types", use_sliding_window=True, sliding_window=None),
        None,
        None,
    ),
    "no window, 3": (
        "qwen3",
        {},
        without("layer_types", use_sliding_window=True, sliding_window=None),
        None,
        None,
    ),
    "window absent": (
        "qwen2",
        {},
        without("layer_types", "sliding_window", use_sliding_window=True),
        None,
        None,
    ),
    "windows above": (
        *("qwen3", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
        *(without("layer_types"), None, None),
    ),
    "no head size": ("llama", {"head_dim": 6}, without(head_dim=None), None, None),
    "biased": ("llama", {"attention_bias": True}, without("layer_types"), None, None),
}


@pytest.mark.parametrize("case", FORMS)
def test_one_model_in_every_form_that_transformers_reads(case, tmp_path):
    """Its logits there are those of the plain form, its parameters and switches here too; or the form is refused."""
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM

    name, made, config, tensors, words = FORMS[case]
    theirs = torch_model(name, made)
    plain, form = tmp_path / "plain", tmp_path / "form"
    for directory in (plain, form):
        theirs.save_pretrained(directory)
    file = form / "config.json"
    file.write_text(json.dumps((config or dict)(json.loads(file.read_text()))))
    if tensors is not None:
        file = form / hf_format.SINGLE
        save_file(tensors(load_file(file)), file, {"format": "pt"})
    mesh = make_mesh(1, 1, jax.devices()[:1])
    if words is not None:
        with pytest.raises(ValueError, match=words):
            hf_format.load(form, mesh)
        return
    ids = torch.tensor(tokens_of(13), dtype=torch.long)[None]
    read = AutoModelForCausalLM.from_pretrained(form, dtype=torch.float32, attn_implementation="eager")
    torch.testing.assert_close(read(ids).logits, theirs(ids).logits, atol=1e-6, rtol=1e-6)
    (expected, whole), (got, params) = hf_format.load(plain, mesh), hf_format.load(form, mesh)
    assert got == expected
    for left, right in zip(jax.tree.leaves(whole), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(left, right)


def test_a_single_file_counts_before_an_index_as_for_transformers(tmp_path):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    for seed, size in ((0, "1GB"), (1, "2KB")):  # the shards of another model beside the file
        torch_model("llama", {}, seed).save_pretrained(tmp_path / size, max_shard_size=size)
    for file in (tmp_path / "2KB").glob("model*"):
        file.rename(tmp_path / "1GB" / file.name)
    assert (tmp_path / "1GB" / hf_format.SINGLE).is_file() and (tmp_path / "1GB" / hf_format.INDEX).is_file()
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "1GB", dtype=torch.float32)
    _, params = hf_format.load(tmp_path / "1GB")
    assert np.array_equal(params["embed_VD"], theirs.get_parameter(EMBED).detach().numpy())
    assert torch.equal(theirs.get_parameter(EMBED), torch_model("llama", {}, 0).get_parameter(EMBED))


# The fields of released files that bear on the model, as transformers 4 wrote them; layers fewer than released.
LLAMA_31 = {
    **{"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_type": "llama3"},
    "original_max_position_embeddings": 8192,
}
RELEASED = {
    "Llama-2-7b": {
        **{"model_type": "llama", "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 11008},
        **{"max_position_embeddings": 4096, "num_attention_heads": 32, "num_hidden_layers": 2},
        **{"num_key_value_heads": 32, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": None},
        **{"tie_word_embeddings": False, "torch_dtype": "float16", "use_cache": True, "vocab_size": 32000},
    },
    "Llama-3.1-8B": {
        **{"model_type": "llama", "attention_bias": False, "hidden_act": "silu", "hidden_size": 4096},
        **{"intermediate_size": 14336, "max_position_embeddings": 131072, "mlp_bias": False},
        **{
            "num_attention_heads": 32,
            "num_hidden_layers": 2,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-05,
        },
        **{"rope_scaling": LLAMA_31, "rope_theta": 500000.0, "tie_word_embeddings": False},
        **{"eos_token_id": [128001, 128008, 128009], "torch_dtype": "bfloat16", "vocab_size": 128256},
    },
    "Mistral-7B-v0.1": {
        **{"model_type": "mistral", "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 14336},
        **{"max_position_embeddings": 32768, "num_attention_heads": 32, "num_hidden_layers": 2},
        **{"num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "sliding_window": 4096},
        **{"tie_word_embeddings": False, "torch_dtype": "bfloat16", "vocab_size": 32000},
    },
    "Mistral-7B-v0.3": {
        **{"model_type": "mistral", "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 14336},
        **{"max_position_embeddings": 32768, "num_attention_heads": 32, "num_hidden_layers": 2},
        **{"num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 1000000.0, "sliding_window": None},
        **{"tie_word_embeddings": False, "torch_dtype": "bfloat16", "vocab_size": 32768, "head_dim": None},
    },
    "Qwen2.5-1.5B": {
        **{"model_type": "qwen2", "hidden_act": "silu", "hidden_size": 1536, "intermediate_size": 8960},
        **{"max_position_embeddings": 32768, "max_window_layers": 21, "num_attention_heads": 12},
        **{"num_hidden_layers": 2, "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0},
        **{"sliding_window": 32768, "tie_word_embeddings": True, "use_sliding_window": False},
        **{"torch_dtype": "bfloat16", "vocab_size": 151936},
    },
    "Qwen3-4B-Instruct-2507": {
        **{"model_type": "qwen3", "attention_bias": False, "head_dim": 128, "hidden_act": "silu"},
        **{"hidden_size": 2560, "intermediate_size": 9728, "max_position_embeddings": 262144},
        **{"max_window_layers": 36, "num_attention_heads": 32, "num_hidden_layers": 2},
        **{"num_key_value_heads": 8, "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 5000000},
        **{"sliding_window": None, "tie_word_embeddings": True, "use_sliding_window": False},
        **{"torch_dtype": "bfloat16", "vocab_size": 151936},
    },
    "gemma-3-1b": {
        **{"model_type": "gemma3_text", "attention_bias": False, "attn_logit_softcapping": None},
        **{"final_logit_softcapping": None, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh"},
        **{"hidden_size": 1152, "intermediate_size": 6912, "max_position_embeddings": 32768},
        **{"num_attention_heads": 4, "num_hidden_layers": 7, "num_key_value_heads": 1},
        **{"query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_local_base_freq": 10000},
        **{"rope_scaling": None, "rope_theta": 1000000, "sliding_window": 512, "sliding_window_pattern": 6},
        **{"cache_implementation": "hybrid", "torch_dtype": "bfloat16", "vocab_size": 262144},
    },
}


@pytest.mark.parametrize("model", RELEASED)
def test_released_configs_are_read_and_written_as_transformers_reads_them(model, tmp_path):
    """Names and shapes of all tensors in full size, of which none is made; and config.json of both generations."""
    torch = pytest.importorskip("torch")
    from transformers import AutoConfig, AutoModelForCausalLM

    def file(name, data):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(data))
        return tmp_path / name

    released = file("released", RELEASED[model])
    config = hf_format.read_config(released)
    theirs = AutoConfig.from_pretrained(released)
    with torch.device("meta"):
        tensors = AutoModelForCausalLM.from_config(theirs).state_dict()
    ours = hf_format._weights(config, jax.eval_shape(build(config).init, jax.random.key(0)))
    expected = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if config.tied:
        expected.pop("lm_head.weight")
    assert {name: weight.hf_shape for name, weight in ours.items()} == expected

    theirs.save_pretrained(tmp_path / "five")
    assert hf_format.read_config(tmp_path / "five") == config
    written = family(config.family).config_to_hf(config, {})
    assert hf_format.read_config(file("written", written)) == config
    read = AutoConfig.from_pretrained(tmp_path / "written")
    for key in ("rope_parameters", "sliding_window", "layer_types", "tie_word_embeddings", "rms_norm_eps"):
        assert getattr(read, key, None) == getattr(theirs, key, None), key


def test_what_released_configs_say():
    def read(model):
        return family(RELEASED[model]["model_type"]).config_from_hf(RELEASED[model])

    assert read("Llama-3.1-8B").rope_scaling == RopeScaling("llama3", 8.0, 1.0, 4.0, 8192)
    assert (read("Llama-2-7b").rope_theta, read("Llama-2-7b").head_dim) == (10_000.0, 128)
    assert read("Mistral-7B-v0.1").windows == (4096, 4096) and read("Mistral-7B-v0.3").windows == ()
    assert read("Qwen2.5-1.5B").windows == () and read("Qwen2.5-1.5B").qkv_bias
    gemma = read("gemma-3-1b")
    assert gemma.windows == (512, 512, 512, 512, 512, 0, 512) and gemma.tied
    assert (gemma.rope_theta, gemma.local_rope_theta, gemma.query_scalar) == (1e6, 1e4, 256)


def test_llama3_frequencies_in_all_three_bands():
    """Against float64, each band by its definition (the paper's code: wavelengths in tokens, shorter is kept)."""
    theta, size = 1000.0, 10
    frequency = theta ** (-np.arange(0, size, 2) / size)
    wavelength = 2 * np.pi / frequency
    blend = (64 / wavelength - 1) / (4 - 1)
    middle = blend * frequency + (1 - blend) * frequency / 8
    expected = np.where(wavelength < 16, frequency, np.where(wavelength > 64, frequency / 8, middle))
    assert ((wavelength < 16).sum(), (wavelength > 64).sum()) == (1, 3)
    got = scaled(jnp.asarray(frequency, jnp.float32), RopeScaling("llama3", 8.0, 1.0, 4.0, 64))
    np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("model", "change", "words"),
    [
        (
            "Llama-3.1-8B",
            {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
            ["rope_scaling.rope_type", "yarn"],
        ),
        (
            "Llama-3.1-8B",
            {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
            ["rope_scaling.type", "dynamic"],
        ),
        ("Llama-3.1-8B", {"rope_scaling": {"rope_type": "longrope"}}, ["rope_scaling.rope_type", "longrope"]),
        ("Llama-3.1-8B", {"rope_scaling": {"rope_type": "linear"}}, ["linear", "['factor']"]),
        ("Llama-3.1-8B", {"rope_scaling": LLAMA_31 | {"beta": 1}}, ["llama3", "beta", "high_freq_factor"]),
        (
            "Llama-3.1-8B",
            {"rope_parameters": LLAMA_31 | {"factor": 4}},
            ["rope_parameters.factor", "4", "8.0"],
        ),
        ("Llama-3.1-8B", {"mlp_bias": True}, ["mlp_bias", "True"]),
        ("Llama-3.1-8B", {"num_key_value_heads": 5}, ["num_attention_heads = 32", "5"]),
        ("Llama-3.1-8B", {"partial_rotary_factor": 0.5}, ["partial_rotary_factor", "0.5"]),
        ("Llama-3.1-8B", {"quantization_config": {"bits": 4}}, ["quantization_config", "'bits': 4"]),
        ("Mistral-7B-v0.3", {"num_local_experts": 8}, ["num_local_experts", "8"]),
        ("Mistral-7B-v0.3", {"layer_types": ["full_attention"] * 2}, ["layer_types", "full_attention"]),
        ("Qwen2.5-1.5B", {"rope_scaling": {"type": "yarn", "factor": 4.0}}, ["rope_scaling.type", "yarn"]),
        ("Qwen2.5-1.5B", {"layer_types": ["full_attention"]}, ["layer_types", "1 entries", "2"]),
        (
            "Qwen2.5-1.5B",
            {"layer_types": ["sliding_attention"] * 2},
            ["layer_types[0]", "sliding_window = None"],
        ),
        ("gemma-3-1b", {"rope_parameters": {"rope_theta": 1e6}}, ["rope_parameters", "full_attention"]),
        ("gemma-3-1b", {"use_bidirectional_attention": True}, ["use_bidirectional_attention"]),
        ("gemma-3-1b", {"hidden_activation": "silu"}, ["hidden_activation", "silu", "gelu_pytorch_tanh"]),
        ("gemma-3-1b", {"layer_types": ["chunked_attention"] * 7}, ["layer_types[0]", "chunked_attention"]),
        ("gemma-3-1b", {"model_type": "gemma3"}, ["'gemma3'", "images", "gemma3_text"]),
        ("Qwen3-4B-Instruct-2507", {"model_type": "qwen3_moe"}, ["'qwen3_moe'", "qwen3"]),
    ],
)
def test_what_the_decoder_cannot_do_is_refused_by_key_and_value(model, change, words, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(RELEASED[model] | change))
    with pytest.raises(ValueError) as error:
        hf_format.read_config(tmp_path)
    assert all(word in str(error.value) for word in [str(tmp_path / "config.json"), *words]), error.value
