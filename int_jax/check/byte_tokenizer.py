"""A tokenizer that can write any text: a token a byte, and blank lines in one token or two, as real ones have them."""

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MERGES = [("Ċ", "Ċ"), (".", "ĊĊ"), ("t", "h"), ("th", "e"), ("Ġ", "the")]


def save(folder: Path, shift: int = 0, merges=tuple(MERGES), chat: str = CHAT) -> Path:
    """Writes it in Hugging Face format; another `shift` gives every token another id."""
    symbols = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    symbols += ["".join(pair) for pair in merges]
    vocab = {symbol: i for i, symbol in enumerate(symbols[shift:] + symbols[:shift])}
    one = Tokenizer(models.BPE(vocab, list(merges)))
    one.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    one.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=one,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=chat,
    )
    fast.save_pretrained(folder)
    return folder
