"""Makes the embedded model of conversations: a Qwen3-architecture decoder that interviews, and speaks in hard
conversations, as a novice does, and checks such conversations against a reference.

    .venv/bin/python experiments/pretrain_dialogue.py --workdir runs/pretrain_dialogue

Scripted conversations, most of them of novice quality, with the scripted partners of `therapy` and `dearman`, in brief
wording, at tasks to train on alone; a partner's turns are in view and not trained. Of some a checker's answer is
trained instead: the first turn that loses something, and what should stand there. Writes a Hugging Face directory.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import optax
from absl import app, flags, logging
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE

from experiments.small_models import SPECIAL, fit, save_tokenizer
from int_jax import batching, domains, hf_format, intervention_training, rollout
from int_jax import models as families
from int_jax.check import byte_tokenizer
from int_jax.engine import Engine
from int_jax.sampler import Sampling
from int_jax.tokenizer import Tokenizer as Chat

WORKDIR = flags.DEFINE_string("workdir", None, "where the checkpoint and the log go", required=True)

DOMAINS = ("therapy", "dearman")
# By conversations. "talk": whole ones of beginners; "finish": the last turn alone, of good ones; "taught": good ones,
# the reference in view; "check": a checker's answer.
MIXTURE = {"talk": 0.45, "finish": 0.25, "taught": 0.05, "check": 0.25}
ENTRIES, MAX_LEN = 1024, 768
BLOCK = "<intervention>", "</intervention>", '{"location": ', ', "content": "', '"}'
ROWS, ROW_LENGTH, MICRO_ROWS = 8, 512, 4
UPDATES, WARMUP, DECAY_AT, PEAK = 5000, 50, 3500, 3e-3
EXAMPLES = 20_000
TASKS = 400  # to train on, of each domain
SKILL, GOOD = (0.1, 0.6), (0.8, 1.0)  # the share of turns that are good, evenly: of beginners, of others


def schedule(step):
    """Warm-up, constant, and from `DECAY_AT` on linear decay to zero."""
    return optax.join_schedules(
        [
            optax.linear_schedule(0.0, PEAK, WARMUP),
            optax.constant_schedule(PEAK),
            # Counted from its own beginning, DECAY_AT.
            optax.linear_schedule(PEAK, 0.0, UPDATES - DECAY_AT),
        ],
        [WARMUP, DECAY_AT],
    )(step)


def loaded(chat: Chat) -> dict:
    """The domains in brief wording, by name."""
    return {name: domains.load(name, chat, wording="brief") for name in DOMAINS}


def novice_talk(domain, task, rng: np.random.Generator, skill=SKILL):
    """A conversation of a beginner, some better than others."""
    share = rng.uniform(*skill)
    return rollout.play(domain, task, lambda trace: domain.novice_turn(trace, rng, share))


def example(chat: Chat, every: dict, tasks: dict, rng: np.random.Generator) -> batching.Sequence:
    """One training conversation."""
    name = DOMAINS[int(rng.integers(len(DOMAINS)))]
    domain, some = every[name], tasks[name]
    kind = rng.choice(list(MIXTURE), p=list(MIXTURE.values()))
    trace = novice_talk(
        domain, some[int(rng.integers(len(some)))], rng, GOOD if kind in ("finish", "taught") else SKILL
    )
    if kind == "check":
        shown = domain.view(trace.task, domain.step_texts(trace), "checker")
        return batching.conversation(chat, shown, domain.checker_response(trace))
    weights, tokens = batching.response_weights(trace), trace.tokens
    if kind == "finish":  # how what was heard is put together, whoever asked for it
        weights[: trace.step_starts()[-1]] = 0
    if kind == "taught":  # the same words, said by one who knows the reference
        informed = rollout.open_trace(domain, trace.task, "teacher").tokens
        tokens = np.concatenate([informed, trace.response])
        weights = np.concatenate([np.zeros(len(informed), np.float32), weights[trace.prompt_len :]])
    return batching.supervised(tokens, weights)


def examples(chat: Chat, every: dict, tasks: dict) -> list[batching.Sequence]:
    """All there are to train on; the same each time."""
    rng = np.random.default_rng(0)
    found = [example(chat, every, tasks, rng) for _ in range(EXAMPLES)]
    fit = [one for one in found if len(one.tokens) <= ROW_LENGTH]
    print(
        f"{len(fit)} of {EXAMPLES} examples fit, the longest has {max(len(one.tokens) for one in found)} tokens; "
        f"{sum(len(one.tokens) for one in fit):,} tokens",
        flush=True,
    )
    return fit


def batch_at(every: list[batching.Sequence], step: int) -> batching.Batch:
    """The batch of one update, a pure function of its number: examples for ROWS rows."""
    rng = np.random.default_rng([0, step])
    sequences: list[batching.Sequence] = []
    while sum(len(one.tokens) for one in sequences) < 0.9 * ROWS * ROW_LENGTH:
        sequences.append(every[int(rng.integers(len(every)))])
    return batching.pack(sequences, ROW_LENGTH, MICRO_ROWS)


def build_tokenizer(path: Path) -> None:
    """Writes a byte-level BPE tokenizer of the words that occur in novices' conversations and their checks."""
    letters = Chat(byte_tokenizer.save(path.parent / "bytes"))
    every = loaded(letters)
    rng, texts = np.random.default_rng(1), []
    for domain in every.values():
        for task in domain.tasks("hard_train", 0, TASKS):
            for _ in range(3):
                trace = novice_talk(domain, task, rng)
                steps = domain.step_texts(trace)
                views = [*domain.view(task, [], "teacher"), *domain.view(task, steps, "checker")]
                texts += [message["content"] for message in views] + [domain.checker_response(trace)]
                texts += [*domain.turns(trace), domain.next_turn(rollout.open_trace(domain, task))]
    alphabet = [c for c in pre_tokenizers.ByteLevel.alphabet() if ord(c) < 127]
    tokenizer = Tokenizer(BPE(unk_token="<|unknown|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [*SPECIAL, "<|unknown|>"]
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=ENTRIES,
            min_frequency=2,
            special_tokens=special,
            initial_alphabet=[*sorted(alphabet), "Ġ", "Ċ"],
            show_progress=False,
        ),
    )
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in BLOCK])
    save_tokenizer(tokenizer, path, MAX_LEN)


def scores(engine: Engine, params, chat: Chat, every: dict) -> dict[str, float]:
    """The model card's numbers, at held-out tasks: mean score and share of conversations that pass."""
    decoding = engine.decode_params(params)
    draws = Sampling(400, 1.0, stop_ids=chat.stop_ids, seed=7)
    out = {}
    for name, domain in every.items():
        tasks = domain.tasks("hard_validation", 7, 30)
        groups = intervention_training.attempts(engine, decoding, domain, tasks, 4, draws)
        traces = [trace for group in groups for trace in group]
        out[f"score_{name}"] = float(np.mean([t.judged.score for t in traces]))
        out[f"passed_{name}"] = float(np.mean([t.judged.passed for t in traces]))
        out[f"turns_{name}"] = float(np.mean([len(t.step_ends) for t in traces]))
        out[f"cut_{name}"] = float(np.mean([t.stop == "length" for t in traces]))
        rng = np.random.default_rng(7)
        played = [novice_talk(domain, task, rng).judged.score for task in tasks for _ in range(4)]
        out[f"novice_{name}"] = float(np.mean(played))
        best = [rollout.play(domain, task, domain.next_turn).judged.score for task in tasks]
        out[f"best_{name}"] = float(np.mean(best))
    return out


def main(_):
    logging.set_verbosity(logging.WARNING)
    workdir = Path(WORKDIR.value)
    workdir.mkdir(parents=True, exist_ok=True)
    if not (workdir / "tokenizer").exists():
        build_tokenizer(workdir / "tokenizer")
    chat = Chat(workdir / "tokenizer")
    every = loaded(chat)
    tasks = {name: domain.tasks("hard_train", 0, TASKS) for name, domain in every.items()}
    config = families.Config(
        "qwen3", chat.vocab, 96, 3, 4, 2, 24, 288, MAX_LEN, qk_norm=True, tied=True, rope_theta=10_000.0
    )
    engine = Engine(families.build(config))
    some = examples(chat, every, tasks)
    state = fit(engine, schedule, UPDATES, lambda state: batch_at(some, int(state.step)), workdir)
    hf_format.save(workdir / "model", config, state.params, workdir / "tokenizer")
    print(json.dumps(scores(engine, state.params, chat, every), indent=1))


if __name__ == "__main__":
    app.run(main)
