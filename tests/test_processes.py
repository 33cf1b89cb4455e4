"""The engine on several processes: the tokens of one device, whichever of them hold a replica, and its gradients."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest
from fake_devices import xla_flags
from haggling import Haggling

from int_jax import lora, processes, rollout
from int_jax.batching import pack, supervised
from int_jax.check import byte_tokenizer
from int_jax.dialogue import partner
from int_jax.engine import Engine
from int_jax.losses import LossConfig
from int_jax.models import Config, build
from int_jax.sampler import Request, Sampling, in_order
from int_jax.sharding import RULES_DECODE, make_mesh, shardings
from int_jax.tokenizer import Tokenizer

ROOT = pathlib.Path(__file__).resolve().parent.parent
FAMILIES = {
    "qwen3": Config("qwen3", 61, 32, 2, 4, 4, 8, 64, 256, qk_norm=True, tied=True),
    "gemma3_text": Config(
        *("gemma3_text", 64, 32, 2, 4, 4, 8, 64, 256),
        qk_norm=True,
        tied=True,
        windows=(24, 0),
        local_rope_theta=1e3,
        post_norm=True,
        zero_centred=True,
        scaled_embedding=True,
        activation="gelu_tanh",
    ),
}
MESHES = (8, 1), (4, 2), (2, 4), (1, 8)
TRAININGS = [(name, adapters, *mesh) for name in FAMILIES for adapters in (False, True) for mesh in MESHES]
SAMPLING = Sampling(max_new_tokens=12, temperature=0.6, top_k=30, stop_ids=(7, 23), seed=5)


def requests() -> list[Request]:
    rng = np.random.default_rng(0)
    prompts = [tuple(rng.integers(0, 61, 5 + 9 * i).tolist()) for i in range(5)]
    return [Request(prompt, f"task-{i}", k) for i, prompt in enumerate(prompts) for k in range(3)]


def weights(name: str):
    fresh = jax.device_get(build(FAMILIES[name]).init(jax.random.key(3)))
    return {**fresh, "embed_VD": fresh["embed_VD"] * 5}


def drawn(name: str, data: int, model: int, asked: list[Request]) -> list[list[int]]:
    mesh = make_mesh(data, model, jax.devices()[: data * model])
    engine = Engine(build(FAMILIES[name]), mesh, slots=4 * data, decode_steps=5)
    host = weights(name)
    params = jax.tree.map(
        lambda leaf, where: jax.make_array_from_callback(leaf.shape, where, lambda at: leaf[at]),
        host,
        shardings(host, mesh, RULES_DECODE),
    )
    got = in_order(engine.session(engine.decode_params(params), SAMPLING), asked)
    return [response.tokens.tolist() for response in got]


def trained(name: str, adapters: bool, data: int, model: int) -> list[list[float]]:
    """Loss and norm of the gradient of three updates, of all parameters or of adapters alone."""
    engine = Engine(
        build(FAMILIES[name]), make_mesh(data, model, jax.devices()[: data * model]), slots=4 * data
    )
    host = jax.device_get(build(FAMILIES[name]).init(jax.random.key(3)))
    if adapters:
        host = lora.add(host, lora.Lora(3, 8.0, tuple(lora.MATRICES)), 0)
    params, frozen = lora.split(engine._put(host))
    tx, found = optax.adam(1e-2), []
    state = engine.state(params, tx)
    for step in range(3):
        rng = np.random.default_rng(step)
        ids = rng.integers(0, 61, (8, 24))
        weights = rng.random((8, 24)).astype(np.float32) * (np.arange(24) > 0)
        batch = pack([supervised(*row) for row in zip(ids, weights, strict=True)], 24, 8)
        state, metrics = engine.update(state, batch, tx, LossConfig(logit_chunk=8, remat=True), frozen)
        found.append([float(metrics["loss"]), float(metrics["grad_norm"])])
    return found


class Signed(partner.Scripted):
    """A partner whose words are another's on each process, as a server's might be."""

    def __call__(self, asked):
        said = super().__call__(asked)
        return [
            (reply._replace(text=f"{reply.text} ({jax.process_index()})"), state) for reply, state in said
        ]


class Talk(Haggling):
    """Whatever token ends a turn of the model's is replied to."""

    def replies(self, traces):
        end = self.tokenizer.end_of_turn
        return super().replies([t.replace(tokens=np.array([*t.tokens[:-1], end], np.int32)) for t in traces])


def talked(data: int, model: int, folder: str) -> list[list[int]]:
    """Conversations of a random model."""
    domain = Talk(Tokenizer(byte_tokenizer.save(pathlib.Path(folder))), turn_tokens=5)
    domain.partner = Signed()
    mesh = make_mesh(data, model, jax.devices()[: data * model])
    one = build(Config("qwen3", domain.tokenizer.vocab, 32, 2, 4, 4, 8, 64, 512, qk_norm=True, tied=True))
    engine = Engine(one, mesh, slots=4 * data, decode_steps=5)
    host = jax.device_get(one.init(jax.random.key(3)))
    params = jax.tree.map(
        lambda leaf, where: jax.make_array_from_callback(leaf.shape, where, lambda at: leaf[at]),
        host,
        shardings(host, mesh, RULES_DECODE),
    )
    opened = [rollout.open_trace(domain, task) for task in domain.tasks("hard_train", 0, 3)]
    sampling = Sampling(max_new_tokens=400, stop_ids=tuple(range(5, 260, 2)), seed=5)
    groups = rollout.continue_traces(engine, engine.decode_params(params), domain, opened, 2, sampling)
    return [[*trace.tokens.tolist(), len(trace.partner)] for group in groups for trace in group]


def work(address: str, count: int, number: int, out: str) -> None:
    """What a process does. Where a replica lies within a process, each draws what it is asked, and they are asked
    different things: as many as they like, in any order."""
    jax.distributed.initialize(address, count, number)
    found = {}
    for name in FAMILIES:
        for data, model in MESHES:
            whole = requests()
            processes.exchange(b"")  # of all, as gloo waits for half a minute alone
            if model <= 8 // count:
                whole = whole[number:] + whole[:number] if number % 2 else whole[: 11 - number]
            found[f"{name} {data} {model}"] = drawn(name, data, model, whole)
    for name, adapters, data, model in TRAININGS:
        processes.exchange(b"")
        found[f"update {name} {adapters} {data} {model}"] = trained(name, adapters, data, model)
    processes.exchange(b"")
    found["talk"] = talked(1, 8, f"{out}.tokenizer")  # every reply is process 0's
    pathlib.Path(out).write_text(json.dumps(found))  # gloo prints on stdout


def running(count: int, tmp_path) -> list[dict]:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    environment = os.environ | {"XLA_FLAGS": xla_flags(8 // count)}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    outs = [str(tmp_path / str(i)) for i in range(count)]
    told = [[address, str(count), str(i), out] for i, out in enumerate(outs)]
    started = [
        subprocess.Popen([sys.executable, __file__, *some], env=environment, cwd=ROOT) for some in told
    ]
    assert [process.wait() for process in started] == [0] * count
    return [json.loads(pathlib.Path(out).read_text()) for out in outs]


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_every_process_draws_and_trains_as_one_device(count, tmp_path):
    alone = {name: drawn(name, 1, 1, requests()) for name in FAMILIES}
    conversations = talked(1, 1, str(tmp_path))
    assert all(row[-1] == 4 for row in conversations)
    updates = {what: trained(*what, 1, 1) for what in {training[:2] for training in TRAININGS}}
    for number, found in enumerate(running(count, tmp_path)):
        assert found.pop("talk") == conversations
        for name, adapters, data, model in TRAININGS:
            got = found.pop(f"update {name} {adapters} {data} {model}")
            np.testing.assert_allclose(got, updates[name, adapters], rtol=0, atol=1e-5)
        assert len(found) == len(FAMILIES) * len(MESHES)
        for what, tokens in found.items():
            name, _, model = what.split()
            expected = alone[name]
            if int(model) <= 8 // count:
                expected = expected[number:] + expected[:number] if number % 2 else expected[: 11 - number]
            assert tokens == expected, what


@pytest.mark.parametrize("name", ["qwen3", pytest.param("gemma3_text", marks=pytest.mark.slow)])
def test_every_mesh_draws_the_tokens_of_one_device(name):
    alone = drawn(name, 1, 1, requests())
    for data, model in MESHES:
        assert drawn(name, data, model, requests()) == alone, (data, model)


if __name__ == "__main__":
    work(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
