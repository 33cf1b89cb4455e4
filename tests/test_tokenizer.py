"""Chat templates, open turns, stop ids and step ends, on a small tokenizer of each family's kind.

The tokenizers are trained here and the templates are written here, in the layout and with the special tokens of the
family. The goldens spell out a prompt token by token: update one when the family's released template changes.
"""

import itertools
import json
import re

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Tokens
from transformers import PreTrainedTokenizerFast

from int_jax.tokenizer import Tokenizer

WORDS = [
    "system",
    "user",
    "assistant",
    "model",
    "You",
    "are",
    "helpful",
    "Be",
    "brief",
    "Add",
    "halve",
    "Then",
    "so",
]
CORPUS = [
    *(f"{a} {b}.\n\n{b}" for a in WORDS for b in WORDS),
    *(
        "é∑日本" * 3,
        "ends.\n\n\nnew:\n\nline\nline\n\n\n\nend)\n\n\n" * 3,
        "\\boxed{7} + 5 = 12 ",
        "so\n\n\nsum",
    )
    * 9,
]
QUESTION = [{"role": "user", "content": "Add 2"}]
TURN = "7 + 5 = 12.\n\nThen halve: 6\n\n\\boxed{6}"  # two blank lines, one in a token with the full stop
SCALE = {"role": "system", "content": "Be brief"}

CHATML = """
{%- for m in messages -%}
{%- if loop.first and m.role != 'system' and default is defined %}{{ default }}{% endif -%}
{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif -%}
"""
QWEN2 = "{%- set default = '<|im_start|>system\\nYou are helpful<|im_end|>\\n' -%}" + CHATML
# Thought is dropped from past turns, an empty one is written into the last turn, and into the prompt if there is to be
# no thinking.
QWEN3 = """
{%- set ns = namespace(asked=0) -%}
{%- for m in messages if m.role == 'user' %}{% set ns.asked = loop.index %}{% endfor -%}
{%- set asked = namespace(count=0) -%}
{%- for m in messages -%}
{%- if m.role == 'user' %}{% set asked.count = asked.count + 1 %}{% endif -%}
{{- '<|im_start|>' + m.role + '\n' -}}
{%- if m.role == 'assistant' -%}
  {%- set said = m.content.split('</think>')[-1].lstrip('\n') -%}
  {%- set thought = m.content.split('</think>')[0].split('<think>')[-1].strip('\n') if '</think>' in m.content -%}
  {%- if asked.count == ns.asked and loop.last -%}
    {{- '<think>\n' + (thought or '') + '\n</think>\n\n' + said -}}
  {%- else %}{{ said }}{% endif -%}
{%- else %}{{ m.content }}{% endif -%}
{{- '<|im_end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<|im_start|>assistant\n' -}}
  {%- if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif -%}
{%- endif -%}
"""
LLAMA3 = """
{{- bos_token -}}
{%- if dated is defined -%}
  {%- if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif -%}
  {{- '<|start_header_id|>system<|end_header_id|>\n\n' + date_string + '<|eot_id|>' -}}
{%- endif -%}
{%- for m in messages -%}
{{- '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif -%}
"""
GEMMA3 = """
{{- bos_token -}}
{%- set first = messages[0].content + '\n\n' if messages[0].role == 'system' else '' -%}
{%- set rest = messages[1:] if first else messages -%}
{%- for m in rest -%}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif -%}
{{- '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' -}}
{{- (first if loop.first else '') + m.content | trim + '<end_of_turn>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif -%}
"""
MISTRAL = """
{{- bos_token -}}
{%- set first = messages[0].content + '\n\n' if messages[0].role == 'system' else '' -%}
{%- for m in messages if m.role != 'system' -%}
{%- if m.role == 'user' %}{{ '[INST] ' + (first if loop.last else '') + m.content + '[/INST]' -}}
{%- else %}{{ ' ' + m.content + eos_token }}{% endif -%}
{%- endfor -%}
"""


def byte_level(specials, plain=()):
    """Byte-level BPE as Qwen and Llama 3 have it: punctuation takes the newlines after it."""
    tokens = Tokens(models.BPE())
    words = r"\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"
    tokens.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokens.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokens.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=380, initial_alphabet=alphabet, show_progress=False)
    )
    tokens.add_special_tokens([AddedToken(s, normalized=False) for s in specials])
    tokens.add_tokens([AddedToken(s, normalized=False, special=False) for s in plain])
    return tokens


def sentence_piece(specials, controls, spaced=None):
    """BPE over ▁ for the space, with bytes to fall back on: Gemma's kind. spaced puts a space before a text, as Mistral
    does: "first" before the whole of it, "always" after each special token, too."""
    trained = Tokens(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.pre_tokenizer = pre_tokenizers.Split(Regex("▁?[^▁\n]+|\n+|▁"), "isolated")
    ascii_only = [text.encode("ascii", "ignore").decode() for text in CORPUS]
    trained.train_from_iterator(ascii_only, trainers.BpeTrainer(vocab_size=300, show_progress=False))
    model = json.loads(trained.to_str())["model"]
    pieces = [
        piece for piece in sorted(model["vocab"], key=model["vocab"].get) if not (spaced and "\n" in piece)
    ]
    names = [*specials, *(f"<0x{i:02X}>" for i in range(256)), *controls, *pieces]
    vocab = {token: i for i, token in enumerate(names)}
    merges = [tuple(pair) for pair in model["merges"] if {*pair, "".join(pair)} <= vocab.keys()]
    tokens = Tokens(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if spaced:
        tokens.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme=spaced, split=False)
    else:
        tokens.normalizer = normalizers.Replace(" ", "▁")
    strip = [decoders.Strip(" ", 1, 0)] if spaced else []
    tokens.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    tokens.add_special_tokens([AddedToken(s, normalized=False) for s in (*specials, *controls)])
    return tokens


def with_bos(tokens, bos):
    """Encoding adds a BOS, as it does in every family but Qwen's."""
    tokens.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokens.token_to_id(bos))]
    )
    return tokens


def qwen(thinking: bool):
    tokens = byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], ["<think>", "</think>"] * thinking)
    names = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    return tokens, names, QWEN3 if thinking else QWEN2, ["<|im_end|>", "<|endoftext|>"]


def llama3():
    roles = ["<|start_header_id|>", "<|end_header_id|>"]
    tokens = byte_level(["<|begin_of_text|>", "<|end_of_text|>", *roles, "<|eom_id|>", "<|eot_id|>"])
    names = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
    ends = ["<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"]
    return with_bos(tokens, "<|begin_of_text|>"), names, LLAMA3, ends


def gemma3():
    tokens = sentence_piece(["<pad>", "<eos>", "<bos>", "<unk>"], ["<start_of_turn>", "<end_of_turn>"])
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
    return with_bos(tokens, "<bos>"), names, GEMMA3, ["<eos>", "<end_of_turn>"]


def mistral(spaced="first"):
    tokens = sentence_piece(["<unk>", "<s>", "</s>"], ["[INST]", "[/INST]"], spaced)
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    return with_bos(tokens, "<s>"), names, MISTRAL, "</s>"


FAMILIES = {
    "qwen2": lambda: qwen(False),
    "qwen3": lambda: qwen(True),
    "llama3": llama3,
    "gemma3": gemma3,
    "mistral": mistral,
    "mistral_always": lambda: mistral("always"),
}


@pytest.fixture(scope="session")
def directories(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokenizers")
    for name, make in FAMILIES.items():
        tokens, names, template, eos = make()
        hf = PreTrainedTokenizerFast(tokenizer_object=tokens, **names)
        hf.chat_template = template
        hf.save_pretrained(root / name)
        eos_ids = hf.convert_tokens_to_ids(eos)  # one, or a list
        (root / name / "generation_config.json").write_text(json.dumps({"eos_token_id": eos_ids}))
    return root


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def tokenizer(directories, family):
    return Tokenizer(directories / family)


def copied(source, target, **changes):
    """A copy of a tokenizer directory with some keys of its tokenizer_config.json changed; None takes one away."""
    target.mkdir()
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    settings_file = target / "tokenizer_config.json"
    data = json.loads(settings_file.read_text()) | changes
    settings_file.write_text(json.dumps({k: v for k, v in data.items() if v is not None}))
    return target


# --- rendering ---

GOLDEN = {
    "qwen2": "<|im_start|> system ⏎ You ␣ are ␣ helpful <|im_end|> ⏎ <|im_start|> user ⏎ Add ␣ 2 <|im_end|> ⏎ "
    "<|im_start|> assistant ⏎",
    "qwen3": "<|im_start|> user ⏎ Add ␣ 2 <|im_end|> ⏎ <|im_start|> assistant ⏎",
    "llama3": "<|begin_of_text|> <|start_header_id|> user <|end_header_id|> ⏎⏎ Add ␣ 2 <|eot_id|> <|start_header_id|> "
    "assistant <|end_header_id|> ⏎⏎",
    "gemma3": "<bos> <start_of_turn> user ⏎ Add ␣ 2 <end_of_turn> ⏎ <start_of_turn> model ⏎",
    "mistral": "<s> [INST] ␣Add ␣ 2 [/INST]",
    "mistral_always": "<s> [INST] ␣Add ␣ 2 [/INST]",
}


def shown(tokenizer, ids):
    return " ".join(piece.replace("\n", "⏎").replace(" ", "␣") for piece in tokenizer.pieces(ids))


def test_a_prompt_token_by_token(tokenizer, family):
    assert shown(tokenizer, tokenizer.render(QUESTION)) == GOLDEN[family]


def test_a_conversation_token_by_token(directories):
    """Qwen3 writes an empty thought into the last turn, and into a prompt that is to have no thinking."""
    plain = Tokenizer(directories / "qwen3")
    silent = Tokenizer(directories / "qwen3", {"enable_thinking": False})
    talk = [
        *QUESTION,
        {"role": "assistant", "content": "<think>\nHmm\n</think>\n\n2."},
        {"role": "user", "content": "halve"},
    ]
    past = (
        "<|im_start|> user ⏎ Add ␣ 2 <|im_end|> ⏎ <|im_start|> assistant ⏎ 2 . <|im_end|> ⏎ "
        "<|im_start|> user ⏎ halve <|im_end|> ⏎"
    )
    assert shown(plain, plain.render(talk)) == f"{past} <|im_start|> assistant ⏎"
    assert shown(silent, silent.render(talk)) == f"{past} <|im_start|> assistant ⏎ <think> ⏎⏎ </think> ⏎⏎"
    assert silent.render(talk, enable_thinking=True) == plain.render(talk)
    assert plain.render(talk, enable_thinking=False) == silent.render(talk)
    assert silent.stop_ids == plain.stop_ids


def test_rendering_is_the_template_s_own_and_has_one_bos(tokenizer):
    """Text, then ids; and both at once by transformers: the same, with the BOS of the template and no other."""
    for messages in (QUESTION, [SCALE, *QUESTION]):
        ids = tokenizer.render(messages)
        made = tokenizer.hf.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert ids == list(made)
        assert ids.count(tokenizer.hf.bos_token_id) == (tokenizer.hf.bos_token_id is not None)
    if tokenizer.hf.bos_token_id is not None:  # what encoding the text with special tokens would do
        twice = tokenizer.hf.encode(tokenizer.decode(tokenizer.render(QUESTION)), add_special_tokens=True)
        assert twice.count(tokenizer.hf.bos_token_id) == 2


def test_a_template_without_bos_gets_none(directories, tmp_path):
    tokenizer = Tokenizer(copied(directories / "llama3", tmp_path / "copy"))
    tokenizer.hf.chat_template = LLAMA3.replace("{{- bos_token -}}", "")
    ids = tokenizer.render(QUESTION)
    assert tokenizer.hf.bos_token_id not in ids and tokenizer.decode(ids).startswith(
        "<|start_header_id|>user"
    )


# --- open turns ---


def whole_turn(tokenizer, content):
    """(prompt ids, ids of the conversation whose assistant says `content`)."""
    said = [*QUESTION, {"role": "assistant", "content": content}]
    return tokenizer.render(QUESTION), list(tokenizer.hf.apply_chat_template(said, return_dict=False))


def test_an_open_turn_is_the_beginning_of_the_closed_one(tokenizer):
    """At every token: the prompt, what was said so far, then the rest, is the conversation as the template has it."""
    prompt, whole = whole_turn(tokenizer, TURN)
    assert whole[: len(prompt)] == prompt
    said = whole[len(prompt) : whole.index(tokenizer.end_of_turn, len(prompt))]
    ends = tokenizer.step_ends(whole[: len(prompt) + len(said)], len(prompt))
    opened = prompt + said[: ends[-2] - len(prompt)]
    assert tokenizer.decode(opened).endswith("6\n\n")  # the blank line that ends the step is still there
    rest = tokenizer.decode(whole[len(opened) :])
    assert opened + tokenizer.encode(rest) == whole
    assert prompt + tokenizer.encode(tokenizer.decode(whole[len(prompt) :])) == whole


def test_continue_final_message_would_lose_the_blank_line(directories):
    """Why turns are continued by ids: if this fails, transformers has changed, and the note in `render` may go."""
    tokenizer = Tokenizer(directories / "llama3")
    said = [*QUESTION, {"role": "assistant", "content": "7 + 5 = 12.\n\n"}]
    ids = tokenizer.hf.apply_chat_template(said, continue_final_message=True, return_dict=False)
    assert tokenizer.decode(ids).endswith("12.")


def test_a_turn_with_no_thinking_goes_on_where_the_template_s_own_begins(directories):
    tokenizer = Tokenizer(directories / "qwen3", {"enable_thinking": False})
    prompt, whole = whole_turn(tokenizer, TURN)
    assert whole == prompt + tokenizer.encode(TURN + "<|im_end|>\n")


# --- stop ids ---

STOPS = {
    "qwen2": ["<|im_end|>", "<|endoftext|>"],
    "qwen3": ["<|im_end|>", "<|endoftext|>"],
    "llama3": ["<|eot_id|>", "<|end_of_text|>", "<|eom_id|>"],
    "gemma3": ["<end_of_turn>", "<eos>"],
    "mistral": ["</s>"],
    "mistral_always": ["</s>"],
}


def test_stop_ids_are_the_end_of_the_turn_and_every_eos(tokenizer, family):
    assert tokenizer.pieces(tokenizer.stop_ids) == STOPS[family]
    assert tokenizer.end_of_turn == tokenizer.stop_ids[0]


def test_the_turn_s_own_end_is_a_stop_id_where_no_file_says_so(directories, tmp_path):
    where = copied(directories / "llama3", tmp_path / "copy", eos_token="<|end_of_text|>")
    (where / "generation_config.json").unlink()
    tokenizer = Tokenizer(where)
    assert tokenizer.pieces(tokenizer.stop_ids) == ["<|eot_id|>", "<|end_of_text|>"]
    assert tokenizer.pieces([tokenizer.end_of_turn]) == ["<|eot_id|>"]


def test_pad_may_be_eos_or_absent(directories):
    mistral, llama = (Tokenizer(directories / name) for name in ("mistral", "llama3"))
    assert mistral.pad_id == mistral.end_of_turn  # harmless: masks come from lengths
    assert llama.hf.pad_token_id is None and llama.pad_id == 0


def test_an_id_that_only_the_model_has_is_no_text(tokenizer):
    """Embeddings are padded to round sizes: a model may draw an id that its tokenizer does not know."""
    ids = [*tokenizer.encode("a\n\n"), tokenizer.vocab, *tokenizer.encode("b")]
    assert tokenizer.decode(ids) == "a\n\nb" and tokenizer.text(ids) == "a\n\nb"
    assert tokenizer.step_ends(ids)[-1] == len(ids)


# --- mistakes ---


def test_no_template_names_the_file_and_the_mend(directories, tmp_path):
    where = copied(directories / "qwen2", tmp_path / "copy", chat_template=None)
    (where / "chat_template.jinja").unlink()
    tokenizer = Tokenizer(where)
    assert tokenizer.pieces(tokenizer.stop_ids) == ["<|im_end|>", "<|endoftext|>"]
    with pytest.raises(ValueError, match=r"chat_template\.jinja: missing.* or give prompts as token ids"):
        tokenizer.render(QUESTION)
    with pytest.raises(ValueError, match="no special token closes the assistant's turn"):
        tokenizer.end_of_turn  # noqa: B018


@pytest.mark.parametrize(
    ("name", "chat", "messages", "words"),
    [
        ("qwen2", {"enable_thinking": False}, QUESTION, "does not read 'enable_thinking'; take it out"),
        ("gemma3", {}, [*QUESTION, *QUESTION], r"refuses \['user', 'user'\]: roles must alternate"),
        ("llama3", {"dated": True}, QUESTION, "writes the date of today.*'date_string'"),
        ("qwen3", {}, [*QUESTION, {"role": "assistant", "content": "5"}], "append its ids"),
    ],
)
def test_a_conversation_that_cannot_be_rendered_says_why(directories, name, chat, messages, words):
    with pytest.raises(ValueError, match=words):
        Tokenizer(directories / name, chat).render(messages)


def test_a_date_that_is_given_is_written(directories):
    tokenizer = Tokenizer(directories / "llama3", {"dated": True, "date_string": "26 Jul 2024"})
    assert "26 Jul 2024" in tokenizer.decode(tokenizer.render(QUESTION))
    assert tokenizer.pieces([tokenizer.end_of_turn]) == ["<|eot_id|>"]


# --- text and steps ---

TEXT = st.text(st.one_of(st.sampled_from("\n\n\n .:)a7{é日∑😀"), st.characters(codec="utf-8")), max_size=30)


def test_parts_of_a_text_keep_their_spaces(tokenizer):
    """What is encoded to be put behind other ids has no space that was not there, and loses none."""

    @settings(max_examples=100, deadline=None)
    @given(TEXT)
    def run(text):
        assume("▁" not in text)  # SentencePiece's own letter for a space
        assert tokenizer.decode(tokenizer.encode(text)) == text

    run()
    both = tokenizer.encode("Add 2.") + tokenizer.encode(" Then 5") + tokenizer.encode("7")
    assert tokenizer.decode(both) == "Add 2. Then 57"
    assert "".join(tokenizer.pieces(both)) == "Add 2. Then 57"


def bytes_of(tokenizer, token: int) -> bytes:
    """The bytes of a byte-level token, by the published table from bytes to letters."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    letters = {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}
    return bytes(letters[c] for c in tokenizer.hf.convert_ids_to_tokens(token))


def test_steps_end_at_the_first_token_after_each_blank_line(directories):
    """Against the bytes of the whole text, cut by a regular expression; tokens may cut characters and newlines."""
    tokenizer = Tokenizer(directories / "qwen2")
    pieces = tokenizer.pieces(range(tokenizer.vocab))
    assert {".\n\n", "\n\n\n", "\n\n", "\n"} <= set(pieces)
    assert any(piece.strip("�") and "�" in piece for piece in pieces)  # parts of two characters in one token

    @settings(max_examples=200, deadline=None)
    @given(
        st.lists(
            st.sampled_from([".\n\n", ")\n\n\n", "\n", "a", " 7", "日", "é", "😀", "ends."]), max_size=12
        )
    )
    def run(parts):
        ids = tokenizer.encode("".join(parts))
        text = b"".join(bytes_of(tokenizer, i) for i in ids)
        assert text.decode() == "".join(parts)
        found = re.finditer(rb"\n*[^\n](?:[^\n]|\n(?!\n))*(?:\n\n+|\n*\Z)", text)
        cuts = [m.end() for m in found] or [len(text)] * bool(text)
        offsets = list(itertools.accumulate(len(bytes_of(tokenizer, i)) for i in ids))
        wanted = [next(t + 1 for t, offset in enumerate(offsets) if offset >= cut) for cut in cuts]
        ends = tokenizer.step_ends(ids)
        assert list(ends) == list(dict.fromkeys(wanted))
        assert [i for a, b in itertools.pairwise((0, *ends)) for i in ids[a:b]] == ids

    run()


def test_each_id_is_decoded_once(directories, monkeypatch):
    """A trace has thousands of tokens and a vocabulary 150,000 ids, at 10 us each."""
    tokenizer = Tokenizer(directories / "qwen2")
    decoded = []
    original = tokenizer.hf.decode
    monkeypatch.setattr(
        tokenizer.hf, "decode", lambda ids, **knobs: decoded.append(ids) or original(ids, **knobs)
    )
    ids = tokenizer.encode(TURN) * 50
    for _ in range(2):
        tokenizer.step_ends(ids)
    assert len(decoded) == len(set(ids))
    for _ in range(2):
        tokenizer.spellings("\n\n")
    assert len(decoded) == tokenizer.vocab
