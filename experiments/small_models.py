"""What the small models of this repository share: a ChatML tokenizer around any vocabulary, a check by transformers."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import optax
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

import int_jax
from int_jax import checkpoint
from int_jax.engine import Engine
from int_jax.losses import LossConfig
from int_jax.types import Batch, State

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def save_tokenizer(tokenizer: Tokenizer, path: Path, max_len: int) -> None:
    """Write a fast tokenizer with the ChatML template; its vocabulary holds SPECIAL and "<|unknown|>"."""
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="<|unknown|>",
        clean_up_tokenization_spaces=False,
        model_max_length=max_len,
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(path)


def fit(
    engine: Engine, schedule: Callable, updates: int, batch: Callable[[State], Batch], workdir: Path
) -> State:
    """Train from random weights, seed 0, on what `batch` makes of the state before each update; goes on from the last
    checkpoint in `workdir`, and writes log.jsonl there."""
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.98, weight_decay=0.05))
    state = engine.init(0, tx)
    state = checkpoint.restore(workdir / "state", state) or state
    start = time.time()
    with (workdir / "log.jsonl").open("a") as log, checkpoint.Checkpoints(workdir / "state") as checkpoints:
        for step in range(int(state.step), updates):
            one = batch(state)
            state, metrics = engine.update(state, one, tx, LossConfig(logit_chunk=256, remat=False))
            if step % 20 == 0:
                line = {"step": step, "wall_s": round(time.time() - start, 1)}
                line |= {k: round(float(v), 4) for k, v in jax.device_get(metrics).items()}
                print(json.dumps(line), file=log, flush=True)
            if step % 250 == 249 or step == updates - 1:
                checkpoints.save(state)
    return state


def same_in_transformers(folder: Path) -> float:
    """The largest difference between transformers' logits and ours on the exported model, as log-probabilities."""
    import torch
    from transformers import AutoModelForCausalLM

    lm = int_jax.load(folder)
    text = lm.tokenizer.render(
        [{"role": "user", "content": "Find the remainder when $3^4 + 3^2$ is divided by $7$."}]
    )
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(folder)(torch.tensor([text])).logits[0]
    # Row t predicts token t + 1.
    theirs = torch.log_softmax(logits, -1)[range(len(text) - 1), text[1:]].numpy()
    return float(np.abs(lm.score([text])[0][1:] - theirs).max())
