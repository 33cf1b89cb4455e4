"""transformers' `generate` with PyTorch: one batch, padded on the left."""

import functools
import os

import torch
import transformers

transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
torch.set_num_threads(len(os.sched_getaffinity(0)))


@functools.cache
def load(model: str, dtype: str):
    return transformers.AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)).eval()


def prepare(task: dict):
    """See worker.py."""
    model, prompts, stops = load(task["model"], task["dtype"]), task["prompts"], task["stops"]
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    # By default it keeps the 50 likeliest, and stops where the model's files say.
    model.generation_config.eos_token_id = stops or None
    settings = {"temperature": 1.0, "top_k": 0, "top_p": 1.0} | task["filters"]

    def once(seed: int) -> list[int]:
        torch.manual_seed(seed)
        with torch.no_grad():
            out = model.generate(
                ids, attention_mask=mask, do_sample=True, num_return_sequences=task["samples"],
                max_new_tokens=task["new"], pad_token_id=0, **settings,
            )  # fmt: skip
        ended = torch.isin(out[:, width:], torch.tensor(stops, dtype=torch.long)).int()
        return ((ended.cumsum(1) - ended) == 0).sum(1).tolist()

    return once
