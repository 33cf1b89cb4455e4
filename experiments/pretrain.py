"""Makes the embedded model: a Qwen3-architecture decoder that solves and checks chains of arithmetic.

    .venv/bin/python experiments/pretrain.py --workdir runs/pretrain

Three tasks in packed rows: solving (problem -> steps), guided solving (problem + reference -> steps), checking
(problem + reference + wrong attempt -> verification log + intervention). The wrong attempts are first chains with
random mistakes; after `own_errors_at` of the updates, half of them are the model's own. Writes a Hugging Face
directory: config.json, model.safetensors, tokenizer.json, chat template.
"""

import json
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import optax
from absl import app, flags, logging
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from experiments.small_models import SPECIAL, fit, save_tokenizer
from int_jax import batching, hf_format, intervention_training, proposers
from int_jax import models as families
from int_jax.domains import arithmetic
from int_jax.engine import Engine
from int_jax.rows import AttemptRow
from int_jax.sampler import Sampling
from int_jax.stages import write_atomically
from int_jax.tokenizer import Tokenizer as Chat
from int_jax.types import Task

WORKDIR = flags.DEFINE_string("workdir", None, "where the checkpoint and the log go", required=True)

WORDS = [
    *("user", "assistant", "system", "Start with ", "add ", "take ", "times ", ", ", ".\n", "\n\n", "\n"),
    *(" + ", " - ", " x ", " = ", "\\boxed{", "Reference:\n", "Attempt:\n", " ok", " wrong"),
    *(f"S{i} " for i in range(1, 10)),
    *("<intervention>", "</intervention>", '{"location": ', ', "content": "', '"}'),
]


def build_tokenizer(path: Path) -> None:
    """Writes a fast tokenizer: bytes underneath (so digits are single and any ASCII text round-trips), words whole."""
    # Ġ and Ċ are how byte-level BPE spells a blank and a line break.
    alphabet = [*sorted(c for c in pre_tokenizers.ByteLevel.alphabet() if ord(c) < 127), "Ġ", "Ċ"]
    vocabulary = {piece: i for i, piece in enumerate([*SPECIAL, "<|unknown|>", *alphabet])}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[], unk_token="<|unknown|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in WORDS])
    save_tokenizer(tokenizer, path, 512)


ROWS, ROW_LENGTH, MICRO_ROWS = 32, 256, 8
MIXTURE = {"solve": 0.66, "guided": 0.09, "check": 0.25}  # by examples; by tokens about 50, 10 and 40%


def example(chat: Chat, domain, rng: np.random.Generator, own: list) -> batching.Sequence:
    """One training conversation. Rare operations keep their natural frequency wherever the model must compute the
    result itself; where the reference shows it, they are commoner, so that checking works on the hard problems too."""
    kind = rng.choice(list(MIXTURE), p=list(MIXTURE.values()))
    length = int(rng.integers(1, arithmetic.MAX_STEPS + 1))
    exponent = arithmetic.NATURAL if kind == "solve" else 2.0
    # By rejection: held-out problems are never trained on.
    while arithmetic.split_of((one := arithmetic.chain(rng, length, exponent)).problem) != "train":
        pass
    if kind == "check" and own and rng.random() < 0.5:
        problem, steps = own[int(rng.integers(len(own)))]
        one = arithmetic.parse_problem(problem)
    elif kind == "check":
        steps = arithmetic.corrupted(rng, one)
    task = arithmetic.task(one, "")
    if kind == "check":
        return batching.conversation(
            chat, domain.view(task, steps, "checker"), arithmetic.checker_response(one, steps)
        )
    role = "solver" if kind == "solve" else "teacher"
    return batching.conversation(chat, domain.view(task, [], role), "\n\n".join(one.steps))


def batch_at(chat: Chat, domain, seed: int, step: int, own: list) -> batching.Batch:
    """The batch of one update, a pure function of (seed, step): examples for ROWS rows, a few at a time."""
    rng = np.random.default_rng([seed, step])
    sequences, tokens = [], 0
    while tokens < 0.95 * ROWS * ROW_LENGTH:
        sequences.append(example(chat, domain, rng, own))
        tokens += len(sequences[-1].tokens)
    return batching.pack(sequences, ROW_LENGTH, MICRO_ROWS)


UPDATES, OWN_ERRORS_AT, WARMUP, PEAK = 2400, 1500, 100, 3e-3
OWN_PROBLEMS, OWN_TRIES = 2048, 4


def schedule(step):
    """Warm-up, constant, and from `OWN_ERRORS_AT` on linear decay to zero."""
    return optax.join_schedules(
        [
            optax.linear_schedule(0.0, PEAK, WARMUP),
            optax.constant_schedule(PEAK),
            # Counted from its own beginning, OWN_ERRORS_AT.
            optax.linear_schedule(PEAK, 0.0, UPDATES - OWN_ERRORS_AT),
        ],
        [WARMUP, OWN_ERRORS_AT],
    )(step)


def training_problems(seed: int, count: int) -> list[Task]:
    """Problems of every length with up to four rare operations, none of which belongs to a held-out split."""
    rng = np.random.default_rng([seed, 1])
    found: dict[str, Task] = {}
    while len(found) < count:
        one = arithmetic.chain(
            rng, int(rng.integers(2, arithmetic.MAX_STEPS + 1)), rare=int(rng.integers(0, 5))
        )
        if arithmetic.split_of(one.problem) == "train":
            found.setdefault(one.problem, arithmetic.task(one, f"own-{len(found)}"))
    return list(found.values())


def own_errors(engine: Engine, params, chat: Chat, domain) -> list[tuple[str, list[str]]]:
    """The model's own wrong attempts: (problem, steps)."""
    tasks = training_problems(0, OWN_PROBLEMS)
    draws = Sampling(96, temperature=0.8, stop_ids=chat.stop_ids)
    groups = intervention_training.attempts(
        engine, engine.decode_params(params), domain, tasks, OWN_TRIES, draws
    )
    found = []
    for trace in (trace for group in groups for trace in group):
        steps = domain.step_texts(trace)
        # Whole attempts alone: one that was cut off has no last step to be judged.
        if trace.stop == "stop" and domain.first_error(trace) is not None:
            found.append((trace.task.problem, steps))
    return found


def scores(engine: Engine, params, chat: Chat, domain) -> dict[str, float]:
    """The model card's numbers: shares of right responses, and of exactly located first errors."""
    decoding = engine.decode_params(params)
    draws = Sampling(96, 0.7, 20, 0.8, stop_ids=chat.stop_ids)
    out = {}
    easy = domain.tasks("train", 7, 256)
    hard = domain.tasks("hard_validation", 7, 256)
    for name, tasks in {"easy": easy, "hard": hard}.items():
        groups = intervention_training.attempts(engine, decoding, domain, tasks, 4, draws)
        out[f"solved_{name}"] = float(np.mean([t.judged.passed for group in groups for t in group]))
    rows = [AttemptRow.of(task, group, keep=1) for task, group in zip(hard, groups, strict=True)]
    wrong = intervention_training.failures(rows)
    truth = [domain.first_error(trace) for trace in wrong]
    for name in ("self_verify", "likelihood_ratio"):
        found, drops = intervention_training.proposals(
            engine,
            decoding,
            domain,
            proposers.load(name),
            wrong,
            0,
            samples=2,
            sampling=draws,
            max_prompt=256,
        )
        out[f"exact_location_{name}"] = float(
            np.mean([o is not None and o.step == t for o, t in zip(found, truth, strict=True)])
        )
        located = {i: o.step for i, o in enumerate(found) if o}
        out[f"exact_of_located_{name}"] = float(np.mean([truth[i] == step for i, step in located.items()]))
        print(name, Counter(drops.values()))
    out["wrong_attempts"] = len(wrong)
    return out


def main(_):
    logging.set_verbosity(logging.WARNING)
    workdir = Path(WORKDIR.value)
    workdir.mkdir(parents=True, exist_ok=True)
    build_tokenizer(workdir / "tokenizer")
    chat = Chat(workdir / "tokenizer")
    domain = arithmetic.Arithmetic(chat)
    config = families.Config(
        "qwen3", chat.vocab, 128, 4, 4, 2, 32, 384, 512, qk_norm=True, tied=True, rope_theta=10_000.0
    )
    engine = Engine(families.build(config))
    own_file = workdir / "own_errors.json"
    own: list = json.loads(own_file.read_text()) if own_file.exists() else []

    def batch(state):
        if int(state.step) >= OWN_ERRORS_AT and not own:
            own.extend(own_errors(engine, state.params, chat, domain))
            write_atomically(own_file, json.dumps(own))
        return batch_at(chat, domain, 0, int(state.step), own)

    state = fit(engine, schedule, UPDATES, batch, workdir)
    hf_format.save(workdir / "model", config, state.params, workdir / "tokenizer")
    print(json.dumps(scores(engine, state.params, chat, domain), indent=1))


if __name__ == "__main__":
    app.run(main)
