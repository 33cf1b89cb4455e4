"""Every knob once: its value, unit and range, and where the value comes from. Other configs are a diff against this.

"InT" is arXiv 2601.14209 and its released scripts; its values are for Qwen3-4B-Instruct-2507 and 16,384 tokens. "fork"
is the PipelineRL fork that its release names. `check` holds a config to the table; docs/knobs.md is printed from it.
"""

import dataclasses
from typing import Any

from ml_collections import ConfigDict

from experiments import arms
from int_jax import domains, knobs, lora, losses, policy_gradient, proposers, samplers
from int_jax.knobs import SAMPLING, Knob
from int_jax.lab import FILTERS
from int_jax.report import writers


def count(value: int, unit: str, source: str = "", **more) -> Knob:
    """A number of things, of which there must be some."""
    return Knob(value, unit, source, at_least=1, **more)


def machine(value: Any, unit: str, source: str = "", **more) -> Knob:
    """A knob on which no result depends, but for rounding: it may change between two starts of a run."""
    return Knob(value, unit, source, machine=True, **more)


def weight(value: float, unit: str, source: str = "") -> Knob:
    return Knob(value, unit, source, at_least=0)


def kept() -> dict:
    """Which checkpoints of a training stay on disk."""
    return {
        "keep_last": machine(1, "checkpoints kept, the newest; a run goes on from the last one", at_least=1),
        "keep_every": machine(
            0,
            "updates between further checkpoints that are kept, a multiple of checkpoint_every; 0: none",
            at_least=0,
        ),
        "keep_best": machine(
            0,
            "further checkpoints that are kept: those with the highest pass@1 on the validation problems",
            at_least=0,
        ),
    }


def positive(value: float, unit: str, source: str = "") -> Knob:
    return Knob(value, unit, source, above=0)


def sampling() -> dict:
    """How responses are drawn: InT's values."""
    values = {"max_new_tokens": 16_384, "temperature": 0.7, "top_k": 20, "top_p": 0.8, "min_p": 0.0}
    return {
        name: dataclasses.replace(SAMPLING[name], value=value, source="InT") for name, value in values.items()
    }


DTYPES = ("float32", "bfloat16", "float16")
SPLITS = ("train", "test")

TABLE: dict[str, Any] = {
    "name": machine("default", "what the run is called: the config, and its variant", empty=False),
    "seeds": Knob(
        (0,),
        "one whole run each: problems, samples and data order all follow the seed",
        at_least=0,
        at_most=2**32 - 1,
        empty=False,
    ),
    "model": Knob("int_jax/assets/tiny_arithmetic", "a Hugging Face directory or hub id", empty=False),
    "family": Knob(
        "", "a model family of your own for config.model: its dotted name or file; empty: by its config.json"
    ),
    "dtype": Knob(
        "float32",
        "of the compute and of the sampler's weights; logits and losses are always float32",
        choices=DTYPES,
    ),
    "param_dtype": Knob(
        "float32",
        "of the weights in training: bfloat16 ones lose updates below 1/256 of a weight",
        choices=DTYPES,
    ),
    "chat": Knob({}, "told to the chat template: {'enable_thinking': False} for Qwen3's hybrid models"),
    "device_gib": machine(
        0.0,
        "memory of a device where it does not say so itself; 0: unknown, and nothing is refused",
        at_least=0,
    ),
    "mesh": {
        "data": machine(
            -1, "devices along this axis, which share the rows; -1: what is left", at_least=1, also=(-1,)
        ),
        "model": machine(
            1,
            "devices along this axis, which share the weights; -1: what is left; 0: as few as memory asks for",
            at_least=1,
            also=(-1, 0),
        ),
    },
    "slots": machine(
        128,
        "rows decoded together, at most, as far as there are pages for them; a multiple of the mesh's data axis; 0: as "
        "many as fit (experiments/plan.py)",
        at_least=1,
        also=(0,),
    ),
    "attention": machine(
        "",
        "what attends over the pages of the sampler's cache: a kernel for tpu or gpu, or xla, which takes the pages of "
        "a row side by side first; empty: the devices' kernel where it can serve the model, else xla",
        choices=("", "xla", "tpu", "gpu"),
    ),
    "cache_gib": machine(
        0.0, "memory of each device for these pages; 0: what is left beside everything else", at_least=0
    ),
    "decode_steps": machine(16, "tokens drawn a row between two synchronisations with the host", at_least=1),
    "log_every": machine(
        120.0,
        "seconds after which responses that have ended are forced to the disk, in the log that a restart reads; until "
        "then the system alone has them, and they are lost only with the machine; at gs:// they are sent as often, and "
        "until then a kill loses them",
        at_least=0,
    ),
    # Drawn by a server that holds the policy; scored and trained here all the same.
    "sampler": {
        "kind": Knob(
            "",
            "a server that draws the policy's responses: a module of int_jax/samplers; empty: none",
            choices=("", *samplers.names()),
            own=True,
        ),
        "url": machine("", "where it is: http://localhost:8000"),
        "weights": machine(
            "",
            "a folder that it sees, too, through which the policy's weights reach it; empty: it keeps those with which "
            "it was started, and no other policy can be drawn from",
        ),
        "at_once": machine(64, "requests under way at a time", at_least=1),
    },
    "domain": {
        "name": Knob(
            "arithmetic",
            "a module of int_jax/domains; its knobs are listed below",
            choices=tuple(domains.names()),
            own=True,
        ),
    },
    "export": machine(
        ("int_rl",),
        "policies written to workdir/models/NAME in Hugging Face format; with lora also, as PEFT's adapters of "
        "config.model, to workdir/adapters/NAME",
        items=str,
    ),
    "arms": Knob(
        ("int_rl", "rl", "rl_matched"),
        "methods compared: modules of experiments/arms, or of your own",
        items=str,
        choices=tuple(arms.names()),
        own=True,
        empty=False,
    ),
    "report_every": machine(
        10,
        "batches of a training between two writes of results.json and report.html, besides those before each stage",
        at_least=1,
    ),
    "checkpoint_minutes": machine(
        10.0,
        "minutes after which a training is saved at the end of its batch, besides checkpoint_every: what a kill costs",
        above=0,
    ),
    "writers": machine(
        ("tensorboard",),
        "where the scalars of training go besides scalars.jsonl: modules of int_jax/report/writers, or your own",
        items=str,
        choices=tuple(writers.names()),
        own=True,
    ),
    "profile": {
        "first": machine(2, "update of each training, from 0, with which its profile begins", at_least=0),
        "updates": machine(
            0,
            "that jax.profiler records of each training, into a folder profile beside its state; 0: none",
            at_least=0,
        ),
    },
    "inputs": {
        "attempts": Knob("", "a JSONL file in place of the stage's rows"),
        "proposals": Knob("", "the same"),
        "guided": Knob("", "the same"),
    },
    # A source with attempts (and interventions) by columns, such as InT's published sets: the run enters behind them.
    "enter": {
        "source": Knob(
            "", "problems with attempts, and perhaps interventions: the run enters behind these stages"
        ),
        "split": Knob("train", "of the source", empty=False),
        "filtered": Knob(False, "its rows have passed the filter"),
    },
    "problems": {
        "train": count(
            4_500,
            "candidates to train on, before those with a right try are dropped",
            "InT: about 4,500 after it",
        ),
        "test": count(1_352, "held-out candidates"),
        # Without "train" every wrong attempt counts, as is right for problems that were chosen before (InT's published
        # set: attempts.tries = 4).
        "hard": Knob(
            SPLITS,
            "sets that are cut down to hard problems: those without a right try in attempts.tries",
            choices=SPLITS,
        ),
        "train_file": Knob(
            "",
            "problems with the columns problem, answer, reference_solution in place of the domain's own: a file "
            "(JSONL or Parquet), a folder or glob of them, tfds:NAME, huggingface:OWNER/NAME",
        ),
        "test_file": Knob("", "the same, held out"),
        "train_file_split": Knob("train", "of the source", empty=False),
        "test_file_split": Knob("test", "of the source", empty=False),
        "skip_bad": Knob(False, "leave bad rows out, counted, instead of refusing the file"),
        "test_split": Knob(
            "hard_test",
            "of the domain's own problems: hard_validation while choosing knobs",
            choices=("hard_test", "hard_validation"),
        ),
        "shard": count(
            64, "problems a file of the stages attempts; of writing alone, a stage is drawn as one"
        ),
    },
    "attempts": {
        "tries": count(64, "samples a problem; a problem counts as hard if none is right", "InT: 64 to 128"),
        "keep": count(4, "wrong attempts kept of each problem", "InT"),
        "keep_right": Knob(0, "right attempts kept of each problem, for arms that train on them", at_least=0),
        "sampling": sampling(),
    },
    "proposals": {
        "proposer": Knob(
            "self_verify",
            "a module of int_jax/proposers",
            "InT",
            choices=tuple(proposers.names()),
            own=True,
        ),
        "model": Knob("", "another model than the policy: a Hugging Face directory or hub id"),
        "chat": Knob({}, "told to that model's chat template"),
        "teacher": {
            "url": Knob(
                "",
                "of the proposer teacher: what /chat/completions stands behind (OpenAI's interface): "
                "https://api.example.com/v1",
            ),
            "model": Knob("", "the teacher's name there"),
            "key_variable": machine(
                "", "the environment variable that holds the key of the interface; empty: it needs none"
            ),
            "at_once": machine(16, "attempts that it is asked about at a time", at_least=1),
        },
        "compare": Knob(
            (),
            "more proposers, whose location accuracy is reported",
            items=str,
            choices=tuple(proposers.names()),
            own=True,
        ),
        "compare_attempts": count(256, "attempts they are compared on"),
        "samples": count(4, "candidates an attempt: retries against parsing and leaks", "InT"),
        "max_prompt": count(30_000, "tokens; longer conversations are counted and dropped (InT cuts them)"),
        "shard": count(256, "attempts a file of the stages proposals and compare; of writing alone"),
        "sampling": sampling(),
    },
    "guided": {
        "tries": count(32, "continuations of a guided attempt", "InT"),
        "stop_at_success": Knob(True, "leave after the first success; False draws all tries (InT)"),
        "at_once": count(8, "continuations a round"),
        "keep": Knob(
            False, "keep each one's first wrong and first right continuation, for arms that use them"
        ),
        "shard": count(128, "guided attempts a file of the stages guided and rewrites; of writing alone"),
        "sampling": sampling(),
    },
    "gain": {
        "attempts": Knob(
            0,
            "guided attempts of each proposer whose gain is reported: the difference in score of paired continuations, "
            "with the intervention and with the attempt's own step; 0: none",
            at_least=0,
        ),
        "samples": count(8, "pairs of continuations of each"),
    },
    "effect": {
        "problems": count(334, "problems of the four-condition table, one attempt each", "InT, Table 1"),
        "samples": count(32, "fresh samples a condition", "InT"),
    },
    "drift": {
        "guided": count(256, "guided attempts whose likelihood is measured under each policy"),
        "attempts": count(128, "wrong attempts along which each policy's entropy is measured"),
    },
    # Adapters in place of all parameters, in every training: one that starts from a policy with adapters goes on with
    # these. The base model is then kept once, in `dtype`, and `param_dtype` is that of the adapters.
    "lora": {
        "rank": Knob(
            0,
            "of the adapters that are trained in place of all parameters; 0: none",
            at_least=0,
        ),
        "alpha": positive(16.0, "their product is scaled by alpha / rank"),
        "matrices": Knob(
            tuple(lora.MATRICES),
            "of every layer, which have them: of attention and of feed-forward",
            choices=tuple(lora.MATRICES),
            empty=False,
        ),
    },
    "sft": {
        "epochs": count(4, "passes over the guided attempts", "InT, Table 6"),
        "batch": count(64, "sequences an update", "InT"),
        "learning_rate": positive(1e-6, "peak; cosine to a tenth of it", "InT"),
        "warmup": Knob(0.1, "share of the updates", "InT", at_least=0, at_most=1),
        "weight_decay": weight(0.0, "of AdamW"),
        "clip_norm": positive(1.0, "norm of the gradient at most"),
        "prefix": weight(1.0, "weight of each prefix token; 0 is the ablation of Table 2", "InT"),
        "intervention": weight(1.0, "weight of each intervention token", "InT"),
        "end_of_turn": Knob(False, "train the end-of-turn token after the intervention", "InT"),
        "filter": Knob(
            "solves",
            "guided attempts to train on: those with a right continuation; gain: whose continuations score more than "
            "those of the attempt's own step (`gain`); none: all",
            "InT",
            choices=FILTERS,
        ),
        "checkpoint_every": machine(50, "updates", at_least=1),
        **kept(),
    },
    "rl": {
        "updates": count(400, "updates of each arm, in whole batches", "InT"),
        "problems": count(32, "problems a batch", "InT, Table 5"),
        "group": Knob(8, "samples a problem", "InT", at_least=2, why="a group of one has no advantage"),
        "learning_rate": positive(1e-6, "constant", "InT"),
        "weight_decay": weight(0.01, "of AdamW", "fork"),
        "clip_norm": positive(0.3, "norm of the gradient at most", "fork"),
        # What makes which published loss: docs/losses.md.
        "advantage": Knob(
            "mean",
            "reward minus its group's mean; mean_std: over the group's standard deviation, too; leave_one_out: minus "
            "the mean of the others; batch: mean and standard deviation of the whole batch",
            "InT",
            choices=losses.ADVANTAGES,
        ),
        "normalise": Knob(
            "sequences",
            "token sum over the number of sequences; tokens: token mean; sequence_mean: mean of sequences' means",
            "fork",
            choices=policy_gradient.NORMALISATIONS,
        ),
        "kl": weight(0.0, "weight of KL to the starting policy", "InT"),
        "passes": count(1, "times that each batch is gone through", "InT"),
        "minibatches": count(1, "parts into which a batch is cut, an update each", "InT"),
        "old": Knob(
            "current",
            "what ratios are taken to: the policy as it is when the batch is drawn; sampler: the log-probabilities "
            "with which it was drawn",
            choices=("current", "sampler"),
        ),
        "clip": Knob(
            "ppo",
            "ppo: the lesser of clipped and unclipped; cispo: the clipped ratio weighs log p",
            choices=tuple(losses.SURROGATES),
        ),
        "clip_low": weight(
            4.0, "the ratio is clipped to 1 - this; from 1 on there is no lower bound", "fork"
        ),
        "clip_high": weight(4.0, "and to 1 + this", "fork"),
        "ratio": Knob(
            "token",
            "of the probabilities of a token, or of a sequence (GSPO)",
            "fork",
            choices=("token", "sequence"),
        ),
        "importance_cap": weight(
            0.0, "cap of the weights trainer over sampler, where these differ (TIS); 0: no weights"
        ),
        "lag": Knob(
            0,
            "batches, at most, that are begun while one is drawn, in the places of responses that have ended; the next "
            "policy goes on with them. Which one drew a token then depends on slots and mesh, too; 0: each batch is of "
            "one policy",
            at_least=0,
        ),
        "refill": Knob(
            0,
            "rounds, at most, that draw problems in place of those whose samples all have one score, which are left "
            "out; 0: they stay",
            at_least=0,
        ),
        "rewards": Knob(
            {"score": 1.0},
            "weights of the parts of a reward: score (the domain's verdict), passed (1 if it passes), answered (1 if "
            "there is an answer to grade), overlong (0 to -1), and the domain's own",
        ),
        "overlong": Knob(
            0, "last tokens of max_new_tokens within which the part of that name falls to -1", at_least=0
        ),
        "pool": Knob(
            "kept",
            "problems trained on: kept by the filter, or all hard ones",
            "InT",
            choices=("kept", "hard"),
        ),
        "temperature": Knob(
            1.0,
            "of the rollouts",
            "InT; 0.8 in the fork: disputed",
            above=0,
            why="greedy responses of a group are equal and have no advantage",
        ),
        "max_new_tokens": dataclasses.replace(SAMPLING["max_new_tokens"], value=16_384, source="InT"),
        "checkpoint_every": machine(
            50,
            "updates; what was drawn since the last checkpoint is in logs, and is not drawn again",
            "fork",
            at_least=1,
        ),
        **kept(),
        "keep_rollouts": machine(
            1, "batches between two whose rollouts are written (experiments/rollouts.py); 0: none", at_least=0
        ),
    },
    "eval": {
        "samples": count(128, "a problem", "InT"),
        "ks": Knob((1, 8), "k of each pass@k", at_least=1, empty=False, order="increasing"),
        "train_problems": count(
            256,
            "training problems evaluated beside the held-out ones",
            why="the report sets them beside the held-out ones",
        ),
        "shard": count(64, "problems of each set a file of the stages eval; of writing alone"),
        "sampling": sampling(),
    },
    # Policies while they are trained, on problems that are neither trained on nor reported in the end.
    "validation": {
        "every": Knob(
            0, "updates between two evaluations, besides that after the last; 0: none at all", at_least=0
        ),
        "problems": count(64, "evaluated each time"),
        "samples": count(4, "a problem, drawn as those of eval"),
        "file": Knob(
            "",
            "where the problems come from, as problems.train_file; empty: the domain's hard_validation, or, where "
            "those to train on are from a file, some of these, which are then not trained on",
        ),
        "file_split": Knob("validation", "of the source", empty=False),
    },
    "train": {
        "row_length": count(20_000, "tokens of a packed row", "fork"),
        "rows": machine(
            4, "rows of a micro-batch; 0: what keeps the devices busy, and fits", at_least=1, also=(0,)
        ),
        "remat": machine(True, "recompute each layer in the backward pass"),
        "logit_chunk": machine(512, "tokens of a row whose logits exist at one time", at_least=1),
    },
}


def domain(name: str, **changes) -> ConfigDict:
    """A domain with all its knobs, so that each can be changed on the command line."""
    return ConfigDict({"name": name, "knobs": knobs.defaults(domains.find(name).KNOBS) | changes})


def get_config() -> ConfigDict:
    c = ConfigDict(knobs.defaults(TABLE))
    c.domain = domain("arithmetic")
    return c


def adapters(config: ConfigDict) -> lora.Lora | None:
    """What is trained in place of all parameters; None where these are."""
    c = config.lora
    return lora.Lora(c.rank, c.alpha, tuple(c.matrices), config.param_dtype) if c.rank else None


def check(config: ConfigDict) -> None:
    """Refuse knobs that are unknown, missing, or have a value that they may not have. Raises: ValueError."""
    knobs.check(table(config.domain.name), config.to_dict(), "config")


def machine_knobs(domain: str) -> set[str]:
    """The full names of the knobs of such a run on which no result depends but for rounding."""
    return knobs.machine(table(domain))


def table(domain: str) -> dict[str, Any]:
    """The knobs of a run with this domain."""
    known = domains.find(domain).KNOBS if TABLE["domain"]["name"].allows(domain) else {}
    return {**TABLE, "domain": {**TABLE["domain"], "knobs": known}}
