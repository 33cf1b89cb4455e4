"""A dress rehearsal on a laptop: everything that a full-size run does, in under 15 minutes.

    make rehearsal

Makes problems in the style of competitions (competition.py), a byte-level BPE tokenizer of 8,400 entries trained on
text about them, a Qwen3-architecture model of 1 M parameters trained for a few minutes to solve and to check, and files
with the columns problem, answer, reference_solution. Then runs experiments/run.py on them with int.py:rehearsal, by
way of every stage of the mathematics domain, and has transformers load the exported model and give the same logits.
"""

import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import optax
from absl import app, flags, logging
from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from tqdm import tqdm

import int_jax
from experiments import competition
from experiments.small_models import SPECIAL, same_in_transformers, save_tokenizer
from int_jax import batching, domains, hf_format
from int_jax import models as families
from int_jax.engine import Engine
from int_jax.losses import LossConfig
from int_jax.stages import write_atomically
from int_jax.tokenizer import Tokenizer as Chat
from int_jax.types import Task

WORKDIR = flags.DEFINE_string("workdir", "runs/rehearsal", "where all of it goes")

ENTRIES, NAMES, TEXTS = 8_400, 6_000, 12_000
MAX_LEN, ROW_LENGTH, ROWS, UPDATES, WARMUP, PEAK = 2_048, 1_280, 8, 240, 20, 4e-3
MIXTURE = {"solve": 0.5, "guided": 0.2, "check": 0.3}  # by examples
HELD_OUT = 1 / 4  # of the problems, by a hash of their text
# Single digits, words with the space before them, punctuation with the line breaks after it (".\n\n" is one token).
PIECES = r"\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"


def held_out(statement: str) -> bool:
    """Whether a problem belongs to the evaluation: by its text alone."""
    return hashlib.blake2b(statement.encode(), digest_size=1).digest()[0] < HELD_OUT * 256


def draw(rng: np.random.Generator, names: list[str], evaluation: bool = False) -> competition.Problem:
    while held_out((one := competition.problem(rng, names)).statement) != evaluation:
        pass
    return one


def build_tokenizer(path: Path, names: list[str]) -> None:
    """Train a byte-level BPE tokenizer on problems, solutions and the proposer's instructions."""
    rng = np.random.default_rng(0)

    def texts():
        folder = Path(int_jax.__file__).parent / "assets" / "prompts" / "math"
        for template in sorted(folder.glob("*.jinja")):
            yield from [template.read_text()] * 50  # each conversation holds them, so their words are whole
        yield from names
        for _ in range(TEXTS):
            one = draw(rng, names)
            yield "\n\n".join([one.statement, *one.told()[0], *one.told()[1]])

    tokenizer = Tokenizer(BPE(unk_token="<|unknown|>"))
    pieces = pre_tokenizers.Split(Regex(PIECES), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pieces, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=ENTRIES,
        special_tokens=[*SPECIAL, "<|unknown|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(), trainer)
    save_tokenizer(tokenizer, path, MAX_LEN)


def review(one: competition.Problem, attempt: list[str], slip: int | None) -> str:
    """What a perfect checker answers to the domain's instructions; `slip` is the first wrong step, None if none is."""
    right, reference = one.told()
    log = []
    for number, step in enumerate(attempt[: len(attempt) if slip is None else slip + 1], 1):
        shown = reference[min(number, len(reference)) - 1]
        log.append(f'[{number}] "{step}" Reference: {shown} {"fails" if number - 1 == slip else "holds"}')
    found = {"location": 0, "content": ""} if slip is None else {"location": slip + 1, "content": right[slip]}
    parts = {
        "Verification log": "\n".join(log),
        "Critical error": "There is none."
        if slip is None
        else f"Step {slip + 1}. Right would be: {right[slip]}",
        "Draft": "None." if slip is None else f"In place of step {slip + 1}: {right[slip]}",
        "Self-check": "no, no, no",
        "Intervention": f"<intervention>{json.dumps(found)}</intervention>",
    }
    return "\n\n".join(f"### {i}. {name}\n\n{text}" for i, (name, text) in enumerate(parts.items(), 1))


def example(chat: Chat, domain, rng: np.random.Generator, names: list[str]) -> batching.Sequence:
    """One training conversation: solving, solving with the reference in view, or the two turns of checking."""
    one = draw(rng, names)
    own = one.told()[0]
    columns = competition.row(one)
    task = Task("", "math", columns["problem"], columns["reference_solution"], columns["answer"])
    kind = rng.choice(list(MIXTURE), p=list(MIXTURE.values()))
    if kind == "solve":
        return batching.conversation(chat, domain.view(task, [], "solver"), "\n\n".join(own))
    turns = domain.view(task, [], "teacher")
    if kind == "guided":
        return batching.conversation(chat, turns, "\n\n".join(own))
    slip = int(rng.integers(len(one.steps)))
    shift = int(rng.choice([-10, -3, -2, -1, 1, 2, 3, 10]))
    attempt = one.told(slip, shift)[0]
    turns = [
        *turns,
        {"role": "assistant", "content": "\n\n".join(own)},
        *domain.view(task, attempt, "checker"),
    ]
    return batching.conversation(chat, turns, review(one, attempt, slip))


def batch_at(chat: Chat, domain, step: int, names: list[str]) -> batching.Batch:
    """The batch of one update, a function of the step: examples until the rows are full."""
    rng = np.random.default_rng([1, step])
    sequences: list[batching.Sequence] = []
    while len(batching.place([len(s.tokens) for s in sequences], ROW_LENGTH)) <= ROWS:
        sequences.append(example(chat, domain, rng, names))
    return batching.pack(sequences[:-1], ROW_LENGTH, ROWS)


def make_model(folder: Path, tokenizer: Path, names: list[str]) -> None:
    """A Qwen3-architecture model of 1 M parameters, briefly trained: it solves some problems and knows the formats."""
    chat = Chat(tokenizer)
    domain = domains.load("math", chat)
    config = families.Config("qwen3", chat.vocab, 96, 3, 4, 2, 24, 192, MAX_LEN, qk_norm=True, tied=True)
    engine = Engine(families.build(config))
    rate = optax.warmup_cosine_decay_schedule(0.0, PEAK, WARMUP, UPDATES, 0.05 * PEAK)
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, b2=0.98, weight_decay=0.05))
    state = engine.init(0, tx)
    with tqdm(range(UPDATES), desc=f"{'model':<22}", unit=" updates") as steps:
        for step in steps:
            state, metrics = engine.update(
                state, batch_at(chat, domain, step, names), tx, LossConfig(logit_chunk=256)
            )
            if step % 10 == 9:
                steps.set_postfix(loss=f"{float(metrics['loss']):.3f}")
    hf_format.save(folder, config, state.params, tokenizer)


def write_problems(path: Path, seed: int, count: int, names: list[str], evaluation: bool) -> None:
    rng = np.random.default_rng(seed)
    rows = {
        one.statement: competition.row(one) for one in (draw(rng, names, evaluation) for _ in range(count))
    }
    write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows.values()))


def main(_):
    logging.set_verbosity(logging.WARNING)
    start = time.perf_counter()
    workdir = Path(WORKDIR.value)
    names = competition.lexicon(0, NAMES)
    model, train, test = workdir / "model", workdir / "train.jsonl", workdir / "test.jsonl"
    if not (model / "config.json").exists():
        build_tokenizer(workdir / "tokenizer", names)
        print(
            f"tokenizer: {Chat(workdir / 'tokenizer').vocab:,} entries · {time.perf_counter() - start:.0f} s"
        )
        make_model(model, workdir / "tokenizer", names)
    write_problems(train, 2, 120, names, evaluation=False)
    write_problems(test, 3, 60, names, evaluation=True)
    knobs = {"model": model, "problems.train_file": train, "problems.test_file": test}
    command = [sys.executable, "experiments/run.py", "--config", "experiments/configs/int.py:rehearsal"]
    overrides = [f"--config.{name}={value}" for name, value in knobs.items()]
    subprocess.run([*command, *overrides, "--workdir", str(workdir / "run")], check=True)
    exported = workdir / "run" / "models" / "int_rl"
    gap = same_in_transformers(exported)
    print(f"transformers loads {exported}: log-probabilities differ by at most {gap:.1e}")
    print(f"rehearsal: {time.perf_counter() - start:.0f} s")
    if gap > 1e-4:
        sys.exit(f"rehearsal: {gap:.1e} is more than float32 rounding (1e-4)")


if __name__ == "__main__":
    app.run(main)
