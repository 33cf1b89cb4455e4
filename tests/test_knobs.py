"""Every knob does something: a whole run with one knob turned goes another way, and first where it should.

The runs are `run.main`'s own, over an engine without a model (`Toy`): what it draws is a hash of everything that it is
asked, and what it trains is a table with a score for each token, by the losses and optimizers of a real run. A run is
told as the list of what it does (programs, draws, updates, checkpoints, exports, results); one with a knob turned stops
at the first item that differs from the run without.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import re
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sessions import Batches

import int_jax
from experiments import build, rollouts, store
from experiments import run as runs
from experiments.configs import default
from experiments.configs import int as intervention
from experiments.knobs import rows
from int_jax import checkpoint, hf_format, lora, losses, peft_format, report, response_log, samplers
from int_jax.domains.arithmetic import block, boxed, parse_problem
from int_jax.lm import LM
from int_jax.proposers import oracle, teacher
from int_jax.report.writers import tensorboard
from int_jax.sampler import Response
from int_jax.stages import StageError
from int_jax.tokenizer import Tokenizer
from int_jax.types import State

KNOBS = dict(rows(default.TABLE, ""))


class Differs(Exception):
    """The run goes another way; the message says where."""


class Story:
    """What a run does, item by item: (kind, what it holds). With another run's items, `tell` raises Differs at the
    first one that is not the same: "kind", or "kind there -> kind here"."""

    def __init__(self, other: list | None = None):
        self.items: list[tuple[str, str]] = []
        self.other = other

    def tell(self, kind: str, *what) -> None:
        item = kind, hashlib.blake2b(repr(what).encode(), digest_size=8).hexdigest()
        at = len(self.items)
        self.items.append(item)
        if self.other is not None and self.other[at : at + 1] != [item]:
            there = self.other[at][0] if at < len(self.other) else "end"
            raise Differs(kind if kind == there else f"{there} -> {kind}")


def bits(tree) -> list:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


class Toy:
    """An engine without a model. See the module's docstring."""

    def __init__(self, model, mesh, **sampler):
        self.model, self.programs, self.max_len = model, set(), model.config.max_len
        self.story: Story = model.story
        self.story.tell("engine", mesh, sampler)

    def decode_params(self, params):
        return {"score_V": scores(params)}

    def finite(self, tree) -> bool:
        return True

    def take_drawn(self) -> int:
        return 1

    def state(self, params, tx) -> State:
        return State(jnp.zeros((), jnp.int32), jax.tree.map(jnp.copy, params), tx.init(params))

    def abstract_state(self, params, tx) -> State:
        return jax.eval_shape(functools.partial(self.state, tx=tx), params)

    def _logp(self, params) -> np.ndarray:
        score_V = np.asarray(params["score_V"], np.float64)
        return (score_V - np.log(np.exp(score_V).sum())).astype(np.float32)

    def session(self, params, sampling, tokenizer=None):
        return Batches(self, params, sampling, tokenizer)

    def generate(self, params, requests, sampling, progress=None, tokenizer=None) -> list[Response]:
        out = [self._draw(self._logp(params), request, sampling) for request in requests]
        kinds = {re.sub(r"\d", "", request.task.rpartition("/")[2]) for request in requests}
        for kind in sorted(kinds):
            self.story.tell(f"draws: {kind}", [(one.tokens.tobytes(), one.logp.tobytes()) for one in out])
        return out

    def _draw(self, logp_V, request, sampling) -> Response:
        """A right or wrong solution, right seldom in an attempt, three in ten elsewhere."""
        tokenizer = self.model.tokenizer
        asked = tokenizer.decode(list(request.prompt))
        # Without the request's own limit, which a response of the toy never reaches.
        named = ", ".join(
            f"{name}={getattr(request, name)!r}" for name in ("prompt", "task", "sample", "begin")
        )
        text = f"(Request({named}), {sampling!r}, {logp_V.tobytes()!r})"
        seed = hashlib.blake2b(text.encode(), digest_size=8).digest()
        rng = np.random.default_rng(list(seed))
        one = parse_problem(re.search(r"Start with [^.]*\.", asked)[0])
        right = rng.random() < (0.1 if request.task.endswith("/attempts") else 0.3)
        steps = [*one.steps[: 1 + rng.integers(2)], boxed(one.values[-1] if right else 98)]
        if "Attempt:" in asked:  # the checker is asked
            steps = [block(2, one.steps[int(rng.integers(2))]) if rng.random() < 0.8 else "I see none."]
        ids = [*tokenizer.encode(request.begin + "\n\n".join(steps)), tokenizer.stop_ids[0]]
        stop = "stop" if len(ids) <= sampling.max_new_tokens else "length"
        tokens = np.array([*request.prompt, *ids[: sampling.max_new_tokens]], np.int32)
        drawn = np.arange(len(tokens)) >= len(request.prompt)
        noise = rng.normal(0, 0.3, len(tokens))  # as if the sampler were another program
        return Response(tokens, np.where(drawn, logp_V[tokens] + noise, 0).astype(np.float32), stop)

    def score(self, params, sequences, temperature=1.0, progress=lambda done: None):
        out = [self._logp(params)[np.asarray(ids)] for ids in sequences]
        self.story.tell("scores", bits(out))
        return out, out

    def update(self, state, batch, tx, config, frozen=None):
        self.story.tell("program", batch.tokens_MBT.shape, config.logit_chunk, config.remat)
        config = dataclasses.replace(config, logit_chunk=1, remat=False)  # they change no number
        (_, (sums, gap)), grads = _graded(state.params, batch, config, frozen)
        updates, opt = tx.update(grads, state.opt, state.params)
        params = optax.apply_updates(state.params, updates)
        self.story.tell("update: sft" if batch.ce_MBT.any() else "update: rl", bits(params))
        norms = _norms({"grad_norm": grads, "update_norm": updates, "param_norm": params})
        return State(state.step + 1, params, opt), losses.means(sums) | {"logp_gap_max": gap, **norms}


def scores(params):
    """The score of each token: a table; where there are adapters also what they add to matrices of zeros."""
    if lora.split(params)[1] is None:
        return params["score_V"]
    merged = lora.merge(params)
    return params["score_V"] + merged["gate_DF"][0] + merged["up_DF"][0]


@jax.jit
def _norms(trees):
    return {name: optax.tree.norm(tree) for name, tree in trees.items()}


@functools.partial(jax.jit, static_argnums=2)
def _graded(params, batch, config, frozen):
    """The loss with its metrics, and the gradient."""
    arrays = {name: array for name, array in batch._asdict().items() if name.endswith("_MBT")}
    flat = batch._replace(**{name: array.reshape(-1, array.shape[-1]) for name, array in arrays.items()})

    def loss(params):
        logp = jax.nn.log_softmax(scores(lora.join(frozen, params)))[flat.tokens_MBT]
        return losses.streams(logp, jnp.zeros_like(logp), flat, config)

    return jax.value_and_grad(loss, has_aux=True)(params)


class Watch:
    """Runs `run.main` over Toy with what it does told to a story, instead of checkpoints and event files."""

    def __init__(self, patch, tiny_dir, folder: Path):
        self.patch, self.folder, self.count = patch, folder, 0
        self.known: dict[str, tuple] = {}
        self.tokenizer = Tokenizer(tiny_dir)
        scores_V = np.random.default_rng(0).normal(size=self.tokenizer.vocab)
        zeros = {name: jnp.zeros((1, len(scores_V))) for name in ("gate_DF", "up_DF")}
        self.params = {"score_V": jnp.asarray(scores_V, jnp.float32), **zeros}

    def run(self, config, story: Story, reports: bool = False, main=None, saved: dict | None = None) -> Path:
        """The workdir of the run. reports: its scalars, results and page are written, and not told. main: what is run,
        over the workdir, in place of `run.main`. saved: the checkpoints, by folder, of a run that it goes on with."""
        self.count += 1
        workdir = self.folder / str(self.count)
        tokenizer = self.tokenizer

        def load(name, mesh, dtype, param_dtype, chat, family=""):
            story.tell("load", name, mesh.shape, dtype, param_dtype, chat, family)
            size = SimpleNamespace(max_len=512, vocab=tokenizer.vocab, dtype=dtype)
            return LM(
                SimpleNamespace(config=size, tokenizer=tokenizer, story=story), self.params, tokenizer, None
            )

        def results(path, found):
            if not found["finished"]:  # told of where it is not as often as always
                if found["config"]["report_every"] != KNOBS["report_every"].value:
                    story.tell("unfinished", report.plain(found["rl"]))
                return
            left = {key: value for key, value in found.items() if key not in ("config", "versions", "wall_s")}
            files = sorted(str(file.relative_to(path.parent)) for file in path.parent.glob("*/*.jsonl"))
            story.tell("results", found["config"]["name"], json.dumps(report.plain(left)), files)

        def log(folder, about, every_s, *rest):
            if every_s != KNOBS["log_every"].value:
                story.tell("log", every_s)
            return response_log.ResponseLog(folder, about, every_s, *rest)

        def load_sampler(name):
            samplers.KIND.load(name)  # refuses what is none
            return lambda url, *, config, scorer, **more: story.tell("server", url, more)

        def taught(engine, params, domain, traces, *args, at_once, drops, **more):
            story.tell("teacher", at_once)
            return oracle.propose(
                engine, params, domain, traces, *args, drops=drops, samples=1, sampling=None, max_prompt=0
            )

        saved = {} if saved is None else saved

        class Checkpoints(contextlib.nullcontext):
            """In place of checkpoint.Checkpoints: what is saved, and which it is told to keep."""

            def __init__(self, folder, keep):
                super().__init__(self)
                self.folder, self.keep = folder, keep

            def save(self, state, score=None):
                saved[self.folder] = state
                story.tell("checkpoint", int(state.step), self.keep, score)

        with self.patch.context() as patch:
            patch.setattr(int_jax, "load", load, raising=False)
            patch.setattr(build, "Engine", Toy)
            patch.setattr(samplers, "ServedEngine", lambda *place, sampler, **knobs: Toy(*place, **knobs))
            patch.setattr(samplers, "load", load_sampler)
            patch.setattr(teacher, "propose", taught)
            patch.setattr(runs, "CONFIG", SimpleNamespace(value=config))
            patch.setattr(runs, "WORKDIR", SimpleNamespace(value=str(workdir)))
            patch.setattr(runs, "DISTRIBUTED", SimpleNamespace(value=False))
            patch.setattr(runs, "SHARE", SimpleNamespace(value=None))
            if not reports:
                patch.setattr(report, "write_results", results)
                patch.setattr(report, "write_html", lambda *args: None)
                patch.setattr(report, "Scalars", functools.partial(Silent, story))
            patch.setattr(checkpoint, "restore", lambda folder, like: saved.get(folder))
            patch.setattr(store, "Checkpoints", Checkpoints)
            patch.setattr(store, "ResponseLog", log)
            patch.setattr(rollouts, "write", lambda folder, update, *_: story.tell("rollouts", update))
            patch.setattr(
                jax.profiler, "start_trace", lambda folder: story.tell("profile", Path(folder).name)
            )
            patch.setattr(jax.profiler, "stop_trace", lambda: None)
            patch.setattr(hf_format, "save", lambda folder, *rest: story.tell("export", folder.name))
            patch.setattr(peft_format, "save", lambda folder, *rest: story.tell("adapters", folder.name))
            try:
                main(workdir) if main else runs.main([])
            except StageError as error:
                story.tell("refusal", str(error).replace(str(workdir), ""))
        return workdir

    def base(self, context: dict) -> tuple[list, Path]:
        """What the run of a context does, and its workdir; run once."""
        key = repr(context)
        if key not in self.known:
            story = Story()
            workdir = self.run(configured(context), story)
            self.known[key] = story.items, workdir
        return self.known[key]


class Silent(contextlib.nullcontext):
    """In place of report.Scalars; tells of writers other than the usual one."""

    def __init__(self, story, folder, resume_step, builds, *_):
        super().__init__()
        folder.mkdir(parents=True)
        (folder / "scalars.jsonl").touch()
        if builds != [tensorboard.build]:
            story.tell("writers", builds)

    def write(self, step, line, watched):
        pass


def configured(changes: dict):
    """int.py:smoke, smaller, with changes by full names."""
    c = intervention.get_config("smoke")
    c.update(slots=8, decode_steps=8)
    c.domain.knobs.update(lengths=(3, 3), rare=(0, 0))
    c.problems.update(train=6, test=3, shard=4)
    c.attempts.update(tries=2, keep=2)
    c.proposals.update(compare=("oracle",), compare_attempts=4, shard=4, samples=2)
    c.guided.update(tries=4, at_once=2, shard=4)
    c.effect.update(problems=2, samples=2)
    c.sft.update(epochs=2, batch=3, learning_rate=0.1)
    c.rl.update(updates=2, problems=2, group=4, learning_rate=0.1, checkpoint_every=1, clip_norm=0.05)
    c.eval.update(samples=2, ks=(1, 2), train_problems=2, shard=2)
    c.validation.update(problems=3, samples=2, file_split="train")
    for path, value in changes.items():
        *groups, name = path.split(".")
        group = c
        for one in groups:
            group = group[one]
        group[name] = value
    return c


RL = {"arms": ("rl",), "export": (), "rl.pool": "hard", "problems.hard": ()}
RFT = RL | {"arms": ("rft",), "attempts.tries": 8, "attempts.keep_right": 1}
SEVERAL = RL | {"rl.passes": 2, "rl.minibatches": 2, "rl.updates": 4}
ADAPTED = RL | {"lora.rank": 2}
CLIPPED = SEVERAL | {"rl.clip_low": 0.1, "rl.clip_high": 0.1, "rl.passes": 4, "rl.updates": 8}
VALIDATED = RL | {"validation.every": 1}
TAUGHT = {"proposals.proposer": "teacher", "proposals.teacher.url": "http://localhost:1", "export": ()}
TAUGHT |= {"proposals.teacher.model": "m", "proposals.compare": (), "proposals.sampling.top_k": 0}
SERVED = RL | {"sampler.kind": "vllm", "sampler.url": "http://localhost:1", "sampler.weights": "w"}
OVERLONG = RL | {"rl.rewards": {"score": 1.0, "overlong": 1.0}, "rl.overlong": 90}

# knob -> (where a run first goes another way, the other value, the rest of the config where it is not `configured`).
SHOWN = {
    "name": ("results", "another", RL),
    "seeds": ("draws: probe", (1,)),
    "model": ("load", "{data}/model"),
    "family": ("load", "int_jax.models.qwen3"),
    "dtype": ("load", "bfloat16"),
    "param_dtype": ("load", "bfloat16"),
    "chat": ("load", {"enable_thinking": False}),
    "device_gib": ("load -> refusal", 0.001),
    "mesh.data": ("load", 4, RL | {"mesh.data": 8, "mesh.model": -1}),
    "mesh.model": ("load", 2),
    "slots": ("engine", 16),
    "decode_steps": ("engine", 4),
    "attention": ("engine", "xla"),
    "cache_gib": ("engine", 1.0),
    "log_every": ("draws: attempts -> log", 1.0),
    "sampler.kind": ("load -> refusal", "lab.missing", SERVED),
    "sampler.url": ("server", "http://localhost:2", SERVED),
    "sampler.weights": ("server", "other", SERVED),
    "sampler.at_once": ("server", 2, SERVED),
    "domain.name": ("load -> refusal", "math"),
    "export": ("export", ("base",)),
    "arms": ("draws: check -> draws: update", ("rl",), {"export": (), "rl.pool": "hard"}),
    "report_every": ("draws: update -> unfinished", 1, RL),
    "checkpoint_minutes": ("draws: update -> checkpoint", 1e-9, RL | {"rl.checkpoint_every": 50}),
    "writers": ("draws: update -> writers", (), RL),
    "profile.first": ("draws: update -> profile", 0, RL | {"profile.updates": 1, "profile.first": 1}),
    "profile.updates": ("draws: update -> profile", 1, RL | {"profile.first": 1}),
    "inputs.attempts": ("draws: attempts -> draws: check", "{base}/attempts"),
    "inputs.proposals": ("draws: check -> draws: guided", "{base}/proposals"),
    "inputs.guided": ("draws: guided -> program", "{base}/guided"),
    "enter.source": ("draws: probe", "{data}/bare"),
    "enter.split": ("draws: probe", "test", {"enter.source": "{data}/bare"}),
    "enter.filtered": ("draws: guided -> program", True, {"enter.source": "{data}/whole"}),
    "problems.train": ("draws: attempts", 5),
    "problems.test": ("draws: attempts", 4),
    "problems.hard": ("draws: attempts", ("train",)),
    "problems.train_file": ("draws: probe", "{data}/bare/train.jsonl"),
    "problems.test_file": ("draws: attempts", "{data}/bare/test.jsonl"),
    "problems.train_file_split": ("draws: probe", "test", RL | {"problems.train_file": "{data}/bare"}),
    "problems.test_file_split": ("draws: attempts", "train", {"problems.test_file": "{data}/bare"}),
    "problems.skip_bad": ("refusal -> draws: probe", True, {"problems.train_file": "{data}/bad.jsonl"}),
    "problems.test_split": ("draws: attempts", "hard_validation"),
    "problems.shard": ("results", 2),
    "attempts.tries": ("draws: attempts", 3),
    "attempts.keep": ("draws: check", 1),
    "attempts.keep_right": ("update: sft", 2, RFT),
    "proposals.proposer": ("draws: check -> draws: guided", "oracle"),
    "proposals.model": ("draws: probe -> load", "{data}/model"),
    "proposals.chat": ("load", {"enable_thinking": False}, RL | {"proposals.model": "{data}/model"}),
    "proposals.teacher.url": ("load -> refusal", "", TAUGHT),
    "proposals.teacher.model": ("load -> refusal", "", TAUGHT),
    "proposals.teacher.key_variable": ("load -> refusal", "NO_SUCH_VARIABLE", TAUGHT),
    "proposals.teacher.at_once": ("teacher", 3, TAUGHT),
    "proposals.compare": ("results", ()),
    "proposals.compare_attempts": ("results", 2),
    "proposals.samples": ("draws: check", 1),
    "proposals.max_prompt": ("draws: probe -> refusal", 1),
    "proposals.shard": ("results", 2),
    "guided.tries": ("draws: guided", 3),
    "guided.stop_at_success": ("draws: guided", False),
    "guided.at_once": ("draws: guided", 1),
    "guided.keep": ("load -> refusal", False, {"arms": ("int_suffix",), "guided.keep": True, "export": ()}),
    "guided.shard": ("results", 2),
    "gain.attempts": ("export -> draws: gain", 2),
    "gain.samples": ("draws: gain", 1, {"gain.attempts": 2}),
    "effect.problems": ("draws: effect", 1),
    "effect.samples": ("draws: effect", 3),
    "lora.rank": ("load", 2, RL),
    "lora.alpha": ("draws: update", 32.0, ADAPTED),  # Adam's first step is the same for any factor
    "lora.matrices": ("update: rl", ("gate",), ADAPTED),
    "sft.epochs": ("update: sft", 3),
    "sft.batch": ("update: sft", 1),
    "sft.learning_rate": ("update: sft", 0.2),
    "sft.warmup": ("update: sft", 0.9),
    "sft.weight_decay": ("update: sft", 0.1),
    "sft.clip_norm": ("update: sft", 1e-6),
    "sft.prefix": ("update: sft", 0.5),
    "sft.intervention": ("update: sft", 0.5),
    "sft.end_of_turn": ("update: sft", True),
    "sft.filter": ("update: sft", "none", {"guided.tries": 2}),
    "rl.updates": ("checkpoint -> draws: probe", 1, RL),
    "rl.problems": ("draws: update", 3, RL),
    "rl.group": ("draws: update", 3, RL),
    "rl.learning_rate": ("update: rl", 0.2, RL),
    "rl.weight_decay": ("update: rl", 0.1, RL),
    "rl.clip_norm": ("update: rl", 1e-6, RL),
    "rl.advantage": ("update: rl", "mean_std", RL | {"rl.clip_norm": 1e6}),
    "rl.normalise": ("update: rl", "sequence_mean", RL),
    "rl.kl": ("program -> scores", 0.1, RL),
    "rl.passes": ("program -> scores", 2, RL),
    "rl.minibatches": ("program -> scores", 2, RL),
    "rl.old": ("scores -> program", "sampler", SEVERAL),
    "rl.clip": ("update: rl", "cispo", CLIPPED),
    "rl.clip_low": ("update: rl", 0.8, CLIPPED),
    "rl.clip_high": ("update: rl", 0.8, CLIPPED),
    "rl.ratio": ("update: rl", "sequence", SEVERAL),
    "rl.importance_cap": ("update: rl", 1.0, RL),
    "rl.lag": ("draws: update", 1, RL | {"rl.old": "sampler"}),
    "rl.refill": ("rollouts -> draws: update", 1, RL | {"rl.group": 2, "rl.problems": 5}),
    "rl.rewards": ("update: rl", {"score": 1.0, "right_steps": 0.5}, RL),
    "rl.overlong": ("update: rl", 60, OVERLONG),
    "rl.pool": ("draws: update", "hard", {"guided.tries": 2}),
    "rl.temperature": ("draws: update", 0.5, RL),
    "rl.max_new_tokens": ("draws: update", 20, RL),
    "sft.checkpoint_every": ("program -> checkpoint", 1),
    "sft.keep_last": ("checkpoint", 2),
    "sft.keep_every": ("checkpoint", 50),
    "sft.keep_best": ("checkpoint", 1, {"validation.every": 1}),
    "drift.guided": ("scores", 1),
    "drift.attempts": ("scores", 1),
    "rl.checkpoint_every": ("checkpoint -> draws: update", 2, RL),
    "rl.keep_last": ("checkpoint", 2, RL),
    "rl.keep_every": ("checkpoint", 2, RL),
    "rl.keep_best": ("checkpoint", 1, VALIDATED),
    "validation.every": ("checkpoint -> draws: validation", 1, RL),
    "validation.problems": ("draws: validation", 2, VALIDATED),
    "validation.samples": ("draws: validation", 3, VALIDATED),
    "validation.file": ("draws: validation", "{data}/bare/test.jsonl", VALIDATED),
    "validation.file_split": ("draws: validation", "test", VALIDATED | {"validation.file": "{data}/bare"}),
    "rl.keep_rollouts": ("rollouts -> program", 0, RL),
    "eval.samples": ("draws: eval", 3, RL),
    "eval.ks": ("results", (1,), RL),
    "eval.train_problems": ("draws: eval", 1, RL),
    "eval.shard": ("results", 1, RL),
    "train.row_length": ("program", 192, RL),
    "train.rows": ("program", 4, RL),
    "train.remat": ("program", True, RL),
    "train.logit_chunk": ("program", 64, RL),
}
DRAWS = {"attempts": "attempts", "proposals": "check", "guided": "guided", "eval": "eval"}
SAMPLING = {"max_new_tokens": 8, "temperature": 0.3, "top_k": 5, "top_p": 0.5, "min_p": 0.1}
for STAGE, KIND in DRAWS.items():
    for NAME, VALUE in SAMPLING.items():
        SHOWN[f"{STAGE}.sampling.{NAME}"] = (f"draws: {KIND}", VALUE, RL if STAGE == "eval" else {})


# Machine knobs that are shown by values with which the run ends otherwise.
OTHER_VALUES = {
    "device_gib": 1e6,
    "proposals.teacher.key_variable": "PATH",
    "export": (),
}
# The label stands in the results themselves. Rows of a micro-batch change the order of sums: test_elastic.py.
APART = {"name", "train.rows"}


@pytest.fixture(scope="module")
def data(tmp_path_factory, domain, tiny_dir) -> Path:
    """Problems of one's own in two splits, with attempts, and with interventions; a bad row; another model."""
    folder = tmp_path_factory.mktemp("data")
    tasks = {split: domain.tasks(f"hard_{split}", 9, 3) for split in ("train", "test")}
    (folder / "model").symlink_to(tiny_dir)
    (folder / "bare").mkdir()
    (folder / "whole").mkdir()
    for split, some in tasks.items():
        plain = [{"problem": t.problem, "answer": t.answer, "reference_solution": t.reference} for t in some]
        steps = [parse_problem(task.problem).steps for task in some]
        bare = [
            row | {"incorrect_attempt": f"{s[0]}\n\n{boxed(98)}"} for row, s in zip(plain, steps, strict=True)
        ]
        whole = [
            row | {"intervention": {"location": 2, "content": s[1]}}
            for row, s in zip(bare, steps, strict=True)
        ]
        for name, lines in (("bare", bare), ("whole", whole)):
            text = "".join(json.dumps(row) + "\n" for row in lines)
            (folder / name / f"{split}.jsonl").write_text(text)
            if split == "train" and name == "bare":
                (folder / "bad.jsonl").write_text(text + '{"problem": "What?"}\n')
    return folder


@pytest.fixture(scope="module")
def watch(tiny_dir, tmp_path_factory):
    patch = pytest.MonkeyPatch()
    yield Watch(patch, tiny_dir, tmp_path_factory.mktemp("runs"))
    patch.undo()


def test_every_knob_is_shown():
    assert SHOWN.keys() == KNOBS.keys()


def test_a_run_told_twice_is_the_same(watch):
    items, _ = watch.base({})
    watch.run(configured({}), again := Story(items))
    assert again.items == items
    kinds = {
        "load",
        "engine",
        "scores",
        "program",
        "update: sft",
        "update: rl",
        "checkpoint",
        "rollouts",
        "export",
        "results",
    }
    kinds |= {
        f"draws: {name}" for name in ("probe", "attempts", "check", "guided", "effect", "update", "eval")
    }
    assert {kind for kind, _ in items} == kinds


@pytest.mark.parametrize("knob", sorted(default.machine_knobs("arithmetic") - APART))
def test_a_knob_of_the_machine_changes_nothing_that_is_drawn_trained_or_reported(watch, knob):
    _, value, *rest = SHOWN[knob]
    context = rest[0] if rest else {}

    def told(items):
        return [item for item in items if item[0].startswith(("draws", "scores", "update", "results"))]

    items, _ = watch.base(context)
    watch.run(configured(context | {knob: OTHER_VALUES.get(knob, value)}), again := Story())
    assert told(again.items) == told(items) and told(items)[-1][0] == "results"


def test_adapters_are_trained_by_sft_and_rl_and_exported(watch):
    items, _ = watch.base({"lora.rank": 2})
    kinds = [kind for kind, _ in items]
    assert {"update: sft", "update: rl"} <= {*kinds} and kinds.count("adapters") == 1
    assert kinds[kinds.index("adapters") - 1] == "export"
    assert "adapters" not in {kind for kind, _ in watch.base({})[0]}


@pytest.mark.parametrize("knob", SHOWN)
def test_a_knob_changes_what_it_should(watch, data, knob):
    where, value, *rest = SHOWN[knob]
    places = {"{data}": str(data)}

    def placed(one):
        for name, path in places.items():
            one = one.replace(name, path) if isinstance(one, str) else one
        return one

    context = {path: placed(one) for path, one in (rest[0] if rest else {}).items()}
    items, workdir = watch.base(context)
    places["{base}"] = str(workdir)
    value = placed(value)
    changed = configured(context | {knob: value})
    with pytest.raises(Differs) as found:
        watch.run(changed, Story(items))
    assert str(found.value) == where
