"""The decoder against transformers' PyTorch Qwen3 on the same files, and the properties that others rely on."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from int_jax import hf_format, losses
from int_jax.models import Config, build, families, family, family_of, hf, pages
from int_jax.models.qwen3 import config_from_hf, config_to_hf

# head_dim is not dim / heads, there is one kv head, no size divides another, and the vocabulary is odd.
ODD = Config(
    **{
        "family": "qwen3",
        "vocab": 37,
        "dim": 20,
        "layers": 2,
        "heads": 3,
        "kv_heads": 1,
        "head_dim": 14,
        "ffw": 27,
    },
    **{"max_len": 64, "rope_theta": 1234.5, "norm_eps": 1e-5, "qk_norm": True},
)
GROUPED = dataclasses.replace(ODD, heads=4, kv_heads=2, head_dim=6, tied=True, rope_theta=1e6)


def random_params(config, seed=0):
    """Parameters in which nothing is at its initial value: norms at 1 would hide a norm that is left out."""
    rng = np.random.default_rng(seed)

    def one(path, leaf):
        if leaf.ndim == 1:
            return jnp.asarray(1 + 0.3 * rng.normal(size=leaf.shape), leaf.dtype)
        lookup = path[-1].key == "embed_VD"
        return jnp.asarray(rng.normal(size=leaf.shape) * (1 if lookup else leaf.shape[0] ** -0.5), leaf.dtype)

    return jax.tree_util.tree_map_with_path(one, jax.eval_shape(build(config).init, jax.random.key(0)))


def some_tokens(rows=2, length=11, vocab=37, seed=1):
    return np.random.default_rng(seed).integers(0, vocab, (rows, length), dtype=np.int32)


def positions_of(tokens_BT):
    return jnp.broadcast_to(jnp.arange(tokens_BT.shape[1])[None], tokens_BT.shape)


def hidden_of(config, params, tokens_BT, positions_BT=None, segments_BT=None, **options):
    positions_BT = positions_of(tokens_BT) if positions_BT is None else positions_BT
    apply = jax.jit(lambda p, t, x, s: build(config).apply(p, t, x, s, **options)[0])
    return apply(params, tokens_BT, positions_BT, segments_BT)


def logits_of(config, params, tokens_BT):
    hidden_BTD = hidden_of(config, params, tokens_BT)
    return losses.scaled_logits(hidden_BTD, build(config).head_DV(params), jnp.ones(tokens_BT.shape))


def torch_model(path, config, params):
    torch = pytest.importorskip("torch")
    from transformers import Qwen3ForCausalLM

    hf_format.save(path, config, params)
    return torch, Qwen3ForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")


@pytest.mark.parametrize("config", [ODD, GROUPED], ids=["odd-untied-one-kv-head", "grouped-tied"])
def test_logits_and_gradients_equal_those_of_transformers(tmp_path, config):
    params, tokens_BT = random_params(config), some_tokens()
    torch, theirs = torch_model(tmp_path / "model", config, params)
    weight_BT = np.random.default_rng(2).random(tokens_BT.shape).astype(np.float32)
    weight_BT[:, 0] = 0

    logits = theirs(torch.tensor(tokens_BT, dtype=torch.long)).logits
    np.testing.assert_allclose(logits_of(config, params, tokens_BT), logits.detach().numpy(), atol=1e-4)

    logp = torch.log_softmax(logits[:, :-1], -1)
    picked = torch.gather(logp, 2, torch.tensor(tokens_BT[:, 1:, None], dtype=torch.long))[..., 0]
    (-(torch.tensor(weight_BT[:, 1:]) * picked).sum() / float(weight_BT.sum())).backward()

    @jax.jit
    def gradient(params):
        def loss(params):
            hidden_BTD, _ = build(config).apply(params, tokens_BT, positions_of(tokens_BT))
            head_DV = build(config).head_DV(params)
            positions_BT, ones_BT = positions_of(tokens_BT), jnp.ones(tokens_BT.shape)
            logp_BT, _ = losses.token_logp(hidden_BTD, head_DV, tokens_BT, positions_BT, ones_BT, chunk=4)
            return -jnp.sum(weight_BT * logp_BT) / weight_BT.sum()

        return jax.grad(loss)(params)

    ours = hf_format.leaves_by_path(gradient(params))
    names = family("qwen3").NAMES
    for path, gradient_ in ours.items():
        their = theirs.get_parameter(hf.tensor_name(names, path)).grad.numpy()
        assert np.abs(their).max() > 1e-4, path
        mine = hf.to_hf(path.rpartition("_")[2], gradient_)
        np.testing.assert_allclose(mine, their, atol=1e-4 * np.abs(their).max(), rtol=1e-4, err_msg=path)


def test_bfloat16_compute_is_close_and_logits_are_float32():
    params, tokens_BT = random_params(GROUPED), some_tokens()
    exact = logits_of(GROUPED, params, tokens_BT)
    rounded = logits_of(dataclasses.replace(GROUPED, dtype="bfloat16"), params, tokens_BT)
    assert exact.dtype == rounded.dtype == jnp.float32
    assert (rounded != rounded.astype(jnp.bfloat16)).any(), "the logits were rounded on the way"
    # bf16 keeps 8 bits: 0.4% a rounding, some dozens of roundings deep
    assert 0 < np.abs(rounded - exact).max() < 0.05 * np.abs(exact).max()


def test_an_earlier_hidden_state_has_no_gradient_from_a_later_token():
    params, tokens_BT = random_params(ODD), jnp.arange(9, dtype=jnp.int32)[None]
    at = 4

    @jax.jit
    def gradient(embed_VD):
        def earlier(embed_VD):
            hidden_BTD, _ = build(ODD).apply(
                params | {"embed_VD": embed_VD}, tokens_BT, positions_of(tokens_BT)
            )
            return jnp.sum(hidden_BTD[:, at] ** 2)

        return jax.grad(earlier)(embed_VD)

    # every token has another id, so the rows of the embedding are the positions
    size = np.abs(gradient(params["embed_VD"])).sum(axis=1)
    assert (size[: at + 1] > 0).all()
    assert (size[at + 1 :] == 0).all()


def test_changing_a_later_token_changes_nothing_before_it():
    params, tokens_BT = random_params(ODD), some_tokens()
    changed_BT = tokens_BT.copy()
    changed_BT[:, 6:] = (changed_BT[:, 6:] + 1) % ODD.vocab
    before, after = hidden_of(ODD, params, tokens_BT), hidden_of(ODD, params, changed_BT)
    np.testing.assert_array_equal(before[:, :6], after[:, :6])
    assert (np.abs(before[:, 6:] - after[:, 6:]).max(axis=-1) > 1e-4).all()


@pytest.mark.parametrize("config", [ODD, GROUPED], ids=["odd", "grouped"])
def test_decoding_with_a_cache_equals_the_whole_pass(config):
    params, tokens_BT = random_params(config), some_tokens(rows=3)
    whole_BTD = hidden_of(config, params, tokens_BT)
    model, start = build(config), 4
    # Pages of 3 tokens with rubbish on them, those of a row anywhere; 6 at a time are added to the 4 that stand there.
    table_BP = np.random.default_rng(0).permutation(15).reshape(3, 5) + 1
    pool = jax.tree.map(lambda x: x + 99, pages.empty_pages(config, 16, 3))

    @jax.jit
    def opened(pool, start_B):
        return pages.rows_of(pool, table_BP, 4, start_B, 6)

    @jax.jit
    def extended(rows, token_BT, position_BT):
        return model.apply(params, token_BT, position_BT, cache=rows)

    def at(first, count):
        return np.broadcast_to(np.arange(first, first + count)[None], (3, count))

    rows = opened(pool, jnp.zeros(3, jnp.int32))
    hidden_BTD, rows = extended(rows, tokens_BT[:, :start], at(0, start))
    np.testing.assert_allclose(hidden_BTD, whole_BTD[:, :start], atol=1e-5)
    pool = pages.filed(pool, rows, table_BP, jnp.full(3, start))
    rows = opened(pool, jnp.full(3, start))
    for t in range(start, start + 6):
        if t == start + 3:  # as many are kept as are counted, and the rest is drawn anew
            rows = opened(pages.filed(pool, rows, table_BP, jnp.full(3, 3)), jnp.full(3, t))
        hidden_BTD, rows = extended(rows, tokens_BT[:, t : t + 1], at(t, 1))
        np.testing.assert_allclose(hidden_BTD[:, 0], whole_BTD[:, t], atol=1e-5)


def test_packed_segments_equal_rows_of_their_own():
    params = random_params(ODD)
    lengths = (5, 3, 4)
    parts = [some_tokens(1, length, seed=length) for length in lengths]
    packed_BT = np.concatenate([*parts, np.zeros((1, 2), np.int32)], axis=1)
    positions_BT = np.concatenate([*(np.arange(n) for n in lengths), np.zeros(2, int)])[None].astype(np.int32)
    segments_BT = np.repeat([1, 2, 3, 0], (*lengths, 2))[None].astype(np.int32)
    packed_BTD = hidden_of(ODD, params, packed_BT, positions_BT, segments_BT)
    start = 0
    for part in parts:
        end = start + part.shape[1]
        np.testing.assert_allclose(packed_BTD[:, start:end], hidden_of(ODD, params, part), atol=1e-5)
        start = end


def test_rematerialising_changes_no_gradient():
    params, tokens_BT = random_params(ODD), some_tokens()

    def gradient(remat):
        def loss(params):
            hidden_BTD, _ = build(ODD).apply(params, tokens_BT, positions_of(tokens_BT), remat=remat)
            return jnp.sum(jnp.sin(hidden_BTD))

        # the trace shows that one of the two does recompute
        assert ("remat" in str(jax.make_jaxpr(jax.grad(loss))(params))) is remat
        return jax.jit(jax.grad(loss))(params)

    stored, recomputed = hf_format.leaves_by_path(gradient(False)), hf_format.leaves_by_path(gradient(True))
    for path, value in stored.items():
        np.testing.assert_allclose(
            recomputed[path], value, rtol=1e-5, atol=1e-5 * np.abs(value).max(), err_msg=path
        )


def test_configs_of_both_generations_read_alike():
    five = config_to_hf(ODD, {"eos_token_id": 2})
    four = {key: value for key, value in five.items() if key != "rope_parameters"} | {"rope_scaling": None}
    only_five = {key: value for key, value in five.items() if key != "rope_theta"}
    assert config_from_hf(five) == config_from_hf(four) == config_from_hf(only_five) == ODD
    assert five["eos_token_id"] == 2


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("rope_scaling", {"rope_type": "yarn", "factor": 4.0}, ["rope_scaling.rope_type", "yarn"]),
        ("rope_scaling", {"type": "linear", "factor": 2.0}, ["rope_scaling.type", "linear"]),
        (
            "rope_parameters",
            {"rope_theta": 1e6, "rope_type": "llama3"},
            ["rope_parameters.rope_type", "llama3"],
        ),
        ("layer_types", ["full_attention", "sliding_attention"], ["layer_types[1]", "sliding_window = None"]),
        ("layer_types", ["full_attention", "chunked_attention"], ["layer_types[1]", "chunked_attention"]),
        ("attention_bias", True, ["attention_bias", "True"]),
        ("hidden_act", "gelu", ["hidden_act", "gelu", "silu"]),
        ("head_dim", None, ["head_dim", "missing"]),
    ],
)
def test_an_unsupported_switch_is_refused_by_name(key, value, words):
    with pytest.raises(ValueError) as error:
        config_from_hf(config_to_hf(ODD, {}) | {key: value})
    assert all(word in str(error.value) for word in words)


def test_a_family_is_the_module_named_by_model_type():
    assert family("qwen3").__name__ == "int_jax.models.qwen3"
    assert "transformer" not in families() and "hf" not in families()
    with pytest.raises(ValueError, match=r"'gpt_oss' is not supported; there are \[.*'qwen3'.*\]"):
        family_of("gpt_oss")


def test_every_weight_layout_is_that_of_torch_and_comes_back():
    sizes = {"D": 2, "H": 3, "N": 3, "K": 4, "F": 5, "V": 7}
    shapes = {"DHK": (12, 2), "DNK": (12, 2), "HKD": (2, 12), "DF": (5, 2), "FD": (2, 5), "DV": (7, 2)}
    shapes |= {"VD": (7, 2), "D": (2,), "K": (4,), "HK": (12,)}
    for letters, shape in shapes.items():
        ours = np.random.default_rng(0).normal(size=[sizes[x] for x in letters])
        theirs = hf.to_hf(letters, ours)
        assert theirs.shape == hf.shape_to_hf(letters, ours.shape) == shape
        np.testing.assert_array_equal(hf.from_hf(letters, theirs, ours.shape), ours)
        if letters not in ("VD", "D", "K", "HK"):  # a linear map: y = W x
            x = np.random.default_rng(1).normal(size=ours.shape[: 2 if letters == "HKD" else 1])
            np.testing.assert_allclose(np.tensordot(x, ours, x.ndim).ravel(), theirs @ x.ravel())
