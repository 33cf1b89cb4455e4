import dataclasses
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh

from int_jax import engine, lora, memory, sample
from int_jax.batching import pack, supervised
from int_jax.lora import Lora
from int_jax.losses import LossConfig
from int_jax.models import Config, build, kernels, pages
from int_jax.sharding import RULES, RULES_DECODE, make_mesh, shardings

SHAPES = pathlib.Path(__file__).parent / "shapes"  # sizes of released models, as their config.json has them
CONFIG = Config("qwen3", 512, 64, 3, 8, 4, 16, 128, 1024, qk_norm=True, tied=True)


def sizes(data=1, model=1, config=CONFIG, **changes):
    mesh = AbstractMesh((data, model), ("data", "model"))
    return memory.Sizes(dataclasses.replace(config, **changes), mesh)


def shape(name: str, **changes) -> Config:
    d = json.loads((SHAPES / f"{name}.json").read_text())
    heads = d["num_attention_heads"]
    return Config(
        d["model_type"], d["vocab_size"], d["hidden_size"], d["num_hidden_layers"], heads, d["num_key_value_heads"],
        d.get("head_dim", d["hidden_size"] // heads), d["intermediate_size"], d["max_position_embeddings"],
        d["rope_theta"], d["rms_norm_eps"], d["model_type"] == "qwen3", d["tie_word_embeddings"], **changes,
    )  # fmt: skip


def item(stage, name: str) -> int:
    [found] = [item.bytes for item in stage.items if item.name == name]
    return found


def sampling(sizes, slots=16, new_tokens=400, **knobs):
    return memory.sampling("sampling", sizes, slots, 16, 300, new_tokens, (), **knobs)


def training(sizes, rows=4, row_length=256, remat=False, adapters=None):
    return memory.training("sft", sizes, rows, row_length, 64, remat, (), adapters)


ADAPTERS = Lora(4, 8.0, tuple(lora.MATRICES))


# --- against what jax makes ---


@pytest.mark.parametrize(
    ("name", "billions"), [("qwen3_4b", 4.02), ("qwen3_0_6b", 0.596), ("llama3_8b", 8.03)]
)
def test_parameters_of_released_models(name, billions):
    """The totals that their model cards state."""
    assert sizes(config=shape(name)).params("int8", RULES) / 1e9 == pytest.approx(billions, rel=2e-3)


def on_device_zero(tree) -> int:
    return sum(
        shard.data.nbytes
        for leaf in jax.tree.leaves(tree)
        for shard in leaf.addressable_shards
        if shard.device == jax.devices()[0]
    )


@pytest.mark.parametrize(("data", "model"), [(4, 2), (1, 8)])
def test_state_and_pages_are_what_a_device_holds(data, model):
    """8 does not divide the 4 key/value heads: they are whole on every device then."""
    mesh, plan = make_mesh(data, model), sizes(data, model)
    made = engine.Engine(build(CONFIG), mesh, slots=16)
    state = made.init(0, optax.adamw(1e-3))
    stage = training(plan)
    assert item(stage, "parameters trained") == on_device_zero(state.params)
    counters = 2 * 4  # the step, here and in Adam
    assert item(stage, "Adam's two moments") == on_device_zero(state._replace(params=())) - counters
    assert plan.params("float32", RULES_DECODE) == on_device_zero(made.decode_params(state.params))
    _, pool = made.new_pool(3)
    assert plan.cache(3 * data, made.page) == on_device_zero(pool)


@pytest.mark.parametrize(("data", "model"), [(4, 2), (1, 8)])
def test_adapters_and_their_moments_are_what_a_device_holds(data, model):
    mesh, plan = make_mesh(data, model), sizes(data, model)
    made = engine.Engine(build(CONFIG), mesh, slots=16)
    like = jax.eval_shape(made.model.init, jax.random.key(0))
    state = made.state(lora.split(lora.add(like, ADAPTERS, 0))[0], optax.adamw(1e-3))
    stage = training(plan, adapters=ADAPTERS)
    assert item(stage, "parameters trained") == on_device_zero(state.params)
    assert item(stage, "Adam's two moments") == on_device_zero(state._replace(params=())) - 2 * 4
    assert item(stage, "gradients, float32") == item(stage, "parameters trained")
    assert item(stage, "parameters to compute with") == 0
    assert stage.bytes < training(plan).bytes
    low = training(sizes(data, model, dtype="bfloat16"), adapters=ADAPTERS)
    assert 2 * item(low, "parameters to compute with") == item(low, "parameters trained")


def peak(compiled) -> int:
    """Arguments, what they become and what is made meanwhile."""
    m = compiled.memory_analysis()
    return m.argument_size_in_bytes + m.temp_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes


def placed(tree, mesh, rules):
    def one(leaf, where):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

    return jax.tree.map(one, tree, shardings(tree, mesh, rules))


@pytest.mark.parametrize(("data", "model"), [pytest.param(1, 1, marks=pytest.mark.slow), (4, 2)])
def test_the_plan_is_near_the_compiled_programs(data, model):
    """Within a factor of two of XLA's own figure on CPU: one that merges what is recomputed (no remat here) and
    computes in float32. More than that would be an array forgotten, or counted twice."""
    mesh, plan = make_mesh(data, model, jax.devices()[: data * model]), sizes(data, model)
    made, tx = build(CONFIG), optax.adamw(1e-3)
    params = jax.eval_shape(made.init, jax.random.key(0))
    state = jax.eval_shape(functools.partial(engine._first, tx), params)
    batch = pack([supervised(np.ones(250, np.int32), np.ones(250))] * 4, 256, 4)
    seats, steps, page = 16, 16, kernels.tokens_of_page("xla", CONFIG)
    known = 24  # pages of 700 tokens, rounded up
    pool = jax.eval_shape(lambda: pages.empty_pages(CONFIG, data * (2 + 716 // page), page))
    decoding = placed(params, mesh, RULES_DECODE)
    with jax.sharding.set_mesh(mesh):
        update = engine._update.lower(
            placed(state, mesh, RULES), placed(batch, mesh, RULES), made, tx, LossConfig(logit_chunk=64)
        )
        trained, frozen = lora.split(lora.add(params, ADAPTERS, 0))
        state = jax.eval_shape(functools.partial(engine._first, tx), trained)
        adapting = engine._update.lower(
            placed(state, mesh, RULES),
            placed(batch, mesh, RULES),
            made,
            tx,
            LossConfig(logit_chunk=64),
            "xla",
            placed(frozen, mesh, RULES_DECODE),
        )
        pool = placed(pool, mesh, RULES_DECODE)
        ints = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.int32)
        prefill = engine._prefill.lower(
            made, decoding, pool, ints(16, 512), ints(16), ints(16), ints(16, 16), 0
        )
        rows = sample.Rows(ints(16), ints(16), np.ones(16, bool), ints(16))
        floats, words = np.ones(16, np.float32), np.ones(16, np.uint32)
        draw = sample.Draw(floats, ints(16), floats, floats, ints(16, 8), words, words, words)
        free = sample.Spellings(ints(8, 8), ints(8, 8))
        stepped = (
            rows,
            rows,
            np.ones(seats, bool),
            ints(seats),
            draw,
            ints(seats, known + 1),
            free,
            ints(data),
        )
        decode = engine._decode.lower(made, decoding, pool, *stepped, known, steps)
    drawing = sampling(plan)
    once = item(drawing, "parameters to sample from") + item(drawing, "pages of one row")
    filling = once + item(drawing, "prefill: attention scores") + item(drawing, "prefill: activations")
    stepping = once + item(drawing, "rows side by side") + item(drawing, "decode: logits")
    planned = {update: training(plan).bytes, prefill: filling, decode: stepping}
    kept = plan.params("float32", RULES_DECODE)
    planned[adapting] = kept + training(plan, adapters=ADAPTERS).bytes
    for lowered, count in planned.items():
        assert 1 / 2 < count / peak(lowered.compile()) < 2


# --- against itself ---


def test_twice_the_slots_twice_the_cache():
    one, two = sampling(sizes()), sampling(sizes(), slots=32)
    for name in ("rows side by side", "decode: logits"):
        assert item(two, name) == 2 * item(one, name) > 0
    assert item(two, "parameters to sample from") == item(one, "parameters to sample from")


@pytest.mark.parametrize("attention", ["tpu", "gpu"])
def test_a_kernel_takes_pages_where_they_are(attention):
    plain, kernel = sampling(sizes(head_dim=32)), sampling(sizes(head_dim=32), attention=attention)
    assert item(kernel, "rows side by side") == 0 < item(plain, "rows side by side")
    assert item(kernel, "prefill: activations") < item(plain, "prefill: activations")
    assert (item(kernel, "prefill: attention scores") == 0) == (attention == "tpu")
    # Of 700 tokens six pages of 128, and two more.
    row = 8 * kernels.page_bytes(attention, sizes(head_dim=32).config, 128, 1)
    assert item(kernel, "pages of one row") == row == 8 * 128 * 2 * 3 * 4 * 32 * 4


def test_a_cache_of_a_given_size():
    stage = sampling(sizes(), cache_gib=0.5)
    assert item(stage, "pages") == memory.GIB // 2
    # One row goes in all the same.
    assert item(sampling(sizes(), cache_gib=1e-9), "pages") == item(sampling(sizes()), "pages of one row")


def test_eight_devices_hold_an_eighth_each():
    config = dataclasses.replace(CONFIG, heads=16, kv_heads=8)
    whole = sizes(config=config)
    for data, model in ((8, 1), (4, 2), (1, 8)):
        part = sizes(data, model, config)
        assert part.cache(16, 96) * 8 == whole.cache(16, 96)
        assert part.scores(8, 64) * 8 >= whole.scores(8, 64)  # the mask is whole along "model"
        assert part.logits(8, 16) * 8 == whole.logits(8, 16)
        small = 3 * 3 * (64 + 16) * 4  # norms are not cut along "model"
        assert 0 <= part.params("float32", RULES) * 8 - whole.params("float32", RULES) <= 8 * small
    assert sizes(8, 1, config).params("float32", RULES_DECODE) == whole.params("float32", RULES_DECODE)


def test_dtypes():
    """bfloat16 compute halves cache, activations and what is sampled from; what is trained stays as it is stored."""
    full, mixed, low = (
        sizes(dtype=d, param_dtype=p)
        for d, p in (("float32", "float32"), ("bfloat16", "float32"), ("bfloat16", "bfloat16"))
    )
    for name in ("rows side by side", "parameters to sample from", "prefill: activations"):
        assert 2 * item(sampling(mixed), name) == item(sampling(full), name)
    for name in ("parameters trained", "Adam's two moments"):
        assert item(training(mixed), name) == item(training(full), name) == 2 * item(training(low), name)
    for stage in map(training, (full, mixed, low)):
        assert item(stage, "gradients, float32") == full.params("float32", RULES)
    assert item(training(mixed), "parameters to compute with") == low.params("bfloat16", RULES)


@pytest.mark.parametrize("tied", [True, False])
def test_the_head_and_its_gradients_are_in_float32(tied):
    """One array of V x D where embedding and head are tied; its gradient adds up in float32 beside its copy."""
    config = dataclasses.replace(CONFIG, tied=tied)
    table = 4 * config.vocab * config.dim
    name = "embedding and head, gathered and in float32"
    alone = item(training(sizes(config=config)), name)
    assert alone == (2 if tied else 3) * table
    cut = item(training(sizes(data=4, config=config)), name)
    two = sizes(data=4, config=dataclasses.replace(config, layers=2)).params("float32", RULES_DECODE)
    assert cut == alone + two  # and what is gathered
    assert item(training(sizes(config=config), adapters=ADAPTERS), name) == 0


def test_rows_and_remat():
    one, two = training(sizes()), training(sizes(), rows=8)
    for name in ("attention scores", "activations", "logits"):
        assert item(two, name) == 2 * item(one, name)
    longer = training(sizes(), row_length=512)
    assert item(longer, "attention scores") == 4 * item(one, "attention scores")
    assert item(longer, "logits") == item(one, "logits")
    assert training(sizes(), remat=True).bytes < one.bytes
    deep = [training(sizes(layers=n), remat=True) for n in (3, 6)]
    assert item(deep[0], "attention scores") == item(deep[1], "attention scores")  # of one layer at a time


def test_scoring_grows_with_the_sequence():
    short, long = (memory.scoring("drift", sizes(), n, ()) for n in (8192, 16384))
    for name in ("activations", "attention scores"):  # of a span of the queries at a time
        assert item(long, name) == 2 * item(short, name)


# --- the words ---


def test_what_does_not_fit_is_refused_with_the_largest_item_and_its_knob():
    stages = [sampling(sizes()), training(sizes(), rows=32)]
    need = max(stage.bytes for stage in stages)
    memory.refuse(stages, need)
    memory.refuse(stages, None)
    with pytest.raises(ValueError) as caught:
        memory.refuse(stages, need - 1)
    words = str(caught.value)
    largest = max(stages[1].items, key=lambda item: item.bytes)
    assert words.startswith("sft needs") and largest.name in words and largest.knob in words
    assert "train.row_length" in words and memory.table(stages, need - 1) in words


def test_the_table_has_a_line_a_stage():
    stages = [sampling(sizes()), training(sizes())]
    head, *lines = memory.table(stages, 80 * memory.GIB).splitlines()
    assert head == "memory plan, GiB a device of 80.0"
    assert [line.split()[0] for line in lines] == ["sampling", "sft"]
    assert float(lines[1].split()[1]) == round(stages[1].bytes / memory.GIB, 2)


def test_a_device_that_does_not_say_what_it_holds():
    assert memory.device_bytes(jax.devices()[0]) is None


def test_a_kernel_keeps_no_square_of_scores():
    """Of long rows; short ones are attended to as a whole."""
    long, short = ({kernel: memory.training("sft", sizes(), 4, length, 64, True, (), None, kernel)
                    for kernel in ("xla", "tpu")} for length in (4096, 256))  # fmt: skip
    assert item(long["tpu"], "attention scores") == 0 < item(long["xla"], "attention scores")
    assert short["tpu"] == short["xla"]


def test_what_attention_gives_is_kept_of_each_layer():
    deep = [training(sizes(layers=n), remat=True) for n in (3, 6)]
    more = item(deep[1], "activations") - item(deep[0], "activations")
    assert more == 3 * 4 * 256 * (CONFIG.dim + CONFIG.heads * CONFIG.head_dim) * 4
