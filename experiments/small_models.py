"""What the small models of this repository share: a ChatML tokenizer around any vocabulary, a check by transformers."""

from pathlib import Path

import numpy as np
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

import int_jax

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
