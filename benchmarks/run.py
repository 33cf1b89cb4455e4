"""Sampling speed on the embedded model against PyTorch `transformers`, on the same weights, prompts and settings.

    make bench        (needs the test extra: torch)

Both draw `SAMPLES` responses to each of `PROMPTS` problems at 0.7 / top-p 0.8 / top-k 20, after one uncounted run each
(compilation); then they take turns, and the ratio is that of the tokens drawn per second, run by run.
"""

import json
import platform
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

import int_jax  # noqa: E402
from int_jax import domains  # noqa: E402

MODEL = ROOT / "int_jax" / "assets" / "tiny_arithmetic"
PROMPTS, SAMPLES, MAX_NEW, ROUNDS = 32, 16, 96, 5
KNOBS = {"temperature": 0.7, "top_k": 20, "top_p": 0.8}


def ours(lm, problems):
    def once(seed: int) -> int:
        groups = lm.generate(problems, samples=SAMPLES, max_new_tokens=MAX_NEW, seed=seed, **KNOBS)
        return sum(len(trace.response) for group in groups for trace in group)

    return once


def theirs(lm, problems):
    model = transformers.AutoModelForCausalLM.from_pretrained(MODEL).eval()
    prompts = [lm.tokenizer.render([{"role": "user", "content": problem}]) for problem in problems]
    width = max(map(len, prompts))
    pad = lm.tokenizer.pad_id
    ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    stop = lm.tokenizer.stop_ids[0]

    def once(seed: int) -> int:
        torch.manual_seed(seed)
        with torch.no_grad():
            out = model.generate(
                ids, attention_mask=mask, do_sample=True, num_return_sequences=SAMPLES, max_new_tokens=MAX_NEW,
                eos_token_id=stop, pad_token_id=pad, **KNOBS,
            )  # fmt: skip
        new = out[:, width:]
        ended = (new == stop).int()
        return int(((ended.cumsum(1) - ended) == 0).sum())

    return once


def main():
    transformers.logging.set_verbosity_error()
    lm = int_jax.load(MODEL)
    arithmetic = domains.load("arithmetic", lm.tokenizer)
    problems = [task.problem for task in arithmetic.tasks("hard_train", 0, PROMPTS)]
    contenders = {"int_jax": ours(lm, problems), "transformers": theirs(lm, problems)}
    for once in contenders.values():
        once(0)
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for seed in range(1, ROUNDS + 1):
        for name, once in contenders.items():
            start = time.perf_counter()
            rates[name].append(once(seed) / (time.perf_counter() - start))
    ratios = sorted(a / b for a, b in zip(rates["int_jax"], rates["transformers"], strict=True))
    report = {
        "tokens_per_s": {name: round(statistics.median(values)) for name, values in rates.items()},
        "ratio": {"min": ratios[0], "median": statistics.median(ratios), "max": ratios[-1]},
        "versions": {
            "jax": jax.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
        "device": jax.devices()[0].device_kind,
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
