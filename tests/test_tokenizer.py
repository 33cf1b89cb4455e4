"""Chat templates, open turns, stop ids and step ends, on a small tokenizer of each family's kind.

The tokenizers are trained here and the templates are written here, in the layout and with the special tokens of the
family. The goldens spell out a prompt token by token: update one when the family's released template changes.
"""

import itertools
import json
import re

import jax
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Tokens
from transformers import PreTrainedTokenizerFast

from int_jax import hf_format
from int_jax.models import Config, build
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
    assert opened + closed_by(tokenizer, rest) == whole
    assert prompt + closed_by(tokenizer, tokenizer.decode(whole[len(prompt) :])) == whole


def closed_by(tokenizer, text):
    """Ids of a text in which the end of the turn, which no text becomes, stands for itself."""
    said, _, after = text.partition(tokenizer.decode([tokenizer.end_of_turn]))
    return [*tokenizer.encode(said), tokenizer.end_of_turn, *tokenizer.encode(after)]


def test_continue_final_message_would_lose_the_blank_line(directories):
    """Why turns are continued by ids: if this fails, transformers has changed, and the note in `render` may go."""
    tokenizer = Tokenizer(directories / "llama3")
    said = [*QUESTION, {"role": "assistant", "content": "7 + 5 = 12.\n\n"}]
    ids = tokenizer.hf.apply_chat_template(said, continue_final_message=True, return_dict=False)
    assert tokenizer.decode(ids).endswith("12.")


def test_a_turn_with_no_thinking_goes_on_where_the_template_s_own_begins(directories):
    tokenizer = Tokenizer(directories / "qwen3", {"enable_thinking": False})
    prompt, whole = whole_turn(tokenizer, TURN)
    assert whole == prompt + closed_by(tokenizer, TURN + "<|im_end|>\n")


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


# What a file says of the ends of texts, in a directory whose own are <|im_end|> and <|endoftext|>: the stop ids that it
# adds, or words of the refusal.
EOS = {
    "generation_config.json": {
        "one": ('{"eos_token_id": 7}', [7]),
        "a list": ('{"eos_token_id": [7, 0]}', [7, 0]),
        "null": ('{"eos_token_id": null}', []),
        "none": ('{"eos_token_id": -1}', []),
        "nothing": ("{}", []),
        "a word": ('{"eos_token_id": "</s>"}', "eos_token_id = '</s>' is neither"),
        "a truth": ('{"eos_token_id": [true]}', r"eos_token_id = \[True\] is neither"),
        "a fraction": ('{"eos_token_id": 2.5}', "eos_token_id = 2.5 is neither"),
        "empty": ("", r"generation_config\.json: not JSON .*take it away"),
        "a null": ("null", r"generation_config\.json: holds 'None', and not a JSON object"),
        "a list of none": ("[]", r"generation_config\.json: holds '\[\]', and not a JSON object"),
        "cut": ('{"eos_tok', r"generation_config\.json: not JSON"),
    },
}
EOS["config.json"] = {
    case: row for case, row in EOS["generation_config.json"].items() if type(row[1]) is list
}


@pytest.mark.parametrize(("name", "case"), [(name, case) for name in EOS for case in EOS[name]])
def test_every_eos_of_every_file_is_a_stop_id(directories, tmp_path, name, case):
    where = copied(directories / "qwen2", tmp_path / "copy")
    (where / "generation_config.json").unlink()
    text, out = EOS[name][case]
    (where / name).write_text(text)
    if isinstance(out, list):
        assert list(Tokenizer(where).stop_ids) == [Tokenizer(where).end_of_turn, *out]
    else:
        with pytest.raises(ValueError, match=out):
            Tokenizer(where).stop_ids  # noqa: B018


# --- export ---


def exported(where, vocab, target, name="qwen2"):
    """A model of `vocab` ids saved with the tokenizer of a directory."""
    sizes = {"dim": 16, "layers": 1, "heads": 2, "kv_heads": 1, "head_dim": 8, "ffw": 16, "max_len": 64}
    switches = {"qwen2": {"qkv_bias": True}, "qwen3": {"qk_norm": True}}
    switches["gemma3_text"] = {
        "qk_norm": True,
        "post_norm": True,
        "zero_centred": True,
        "scaled_embedding": True,
    }
    switches["gemma3_text"] |= {
        "activation": "gelu_tanh",
        "query_scalar": 8,
        "windows": (4,),
        "local_rope_theta": 1e4,
    }
    config = Config(name, vocab, **sizes, **switches.get(name, {}), tied=True)
    params = build(config).init(jax.random.key(0))
    hf_format.save(target, config, params, where)
    assert hf_format.load(target)[0] == config
    return target


def test_an_exported_directory_is_the_same_to_transformers_and_to_us(directories, tmp_path, family):
    torch = pytest.importorskip("torch")
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    source = Tokenizer(directories / family)
    kind = {"llama3": "llama", "gemma3": "gemma3_text", "mistral_always": "mistral"}.get(family, family)
    out = exported(directories / family, source.vocab, tmp_path / "out", kind)
    theirs, ours = AutoTokenizer.from_pretrained(out), Tokenizer(out)
    ids = list(theirs.apply_chat_template([SCALE, *QUESTION], add_generation_prompt=True, return_dict=False))
    assert ids == ours.render([SCALE, *QUESTION]) == source.render([SCALE, *QUESTION])
    assert ours.stop_ids == source.stop_ids
    model, report = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, output_loading_info=True)
    assert not any(report.values()), report
    for eos in (AutoConfig.from_pretrained(out).eos_token_id, model.generation_config.eos_token_id):
        assert tuple(eos if isinstance(eos, list) else [eos]) == source.stop_ids
    assert torch.isfinite(model(torch.tensor([ids])).logits).all()


def test_ids_of_config_json_alone_are_exported_and_those_beyond_the_model_are_not(directories, tmp_path):
    pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    vocab = Tokenizer(directories / "qwen2").vocab
    where = copied(
        directories / "qwen2", tmp_path / "copy", pad_token="<pad>"
    )  # which is not in tokenizer.json
    (where / "config.json").write_text(json.dumps({"model_type": "qwen2", "eos_token_id": [7, 0, vocab + 3]}))
    (where / "generation_config.json").write_text(json.dumps({"temperature": 0.6, "pad_token_id": vocab}))
    assert Tokenizer(where).hf.pad_token_id == vocab
    out = exported(where, vocab, tmp_path / "out")
    stops = [*Tokenizer(directories / "qwen2").stop_ids[:1], 7, 0]
    for name in ("config.json", "generation_config.json"):
        data = json.loads((out / name).read_text())
        assert (data["eos_token_id"], data["pad_token_id"]) == (stops, None), name
    assert data["temperature"] == 0.6
    assert list(Tokenizer(out).stop_ids) == stops
    assert AutoModelForCausalLM.from_pretrained(out).generation_config.eos_token_id == stops


def test_every_file_of_tokenizer_and_templates_is_exported_and_an_old_one_goes(directories, tmp_path):
    where = copied(directories / "qwen2", tmp_path / "copy")
    (where / "additional_chat_templates").mkdir()
    (where / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools[0] }}" + TURNS + OPEN)
    for name in ("vocab.txt", "spiece.model", "tokenizer.model.v3", "chat_template.json", "tekken.json"):
        (where / name).write_text("{}")
    names = {path.name for path in where.iterdir()} | {"additional_chat_templates/tool_use.jinja"}
    vocab = Tokenizer(directories / "qwen2").vocab
    for source, kept in ((where, True), (where, True), (directories / "qwen2", False)):
        out = exported(source, vocab, tmp_path / "out")
        assert all((out / name).exists() for name in names) is kept
    assert {path.name for path in out.iterdir()} == {
        *(path.name for path in (directories / "qwen2").iterdir()),
        *("config.json", "model.safetensors"),
    }


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
        (
            "qwen3",
            {},
            [{"role": "user", "content": [{"type": "text", "text": "5"}]}],
            "user's message .* not text",
        ),
    ],
)
def test_a_conversation_that_cannot_be_rendered_says_why(directories, name, chat, messages, words):
    with pytest.raises((ValueError, TypeError), match=words):
        Tokenizer(directories / name, chat).render(messages)


# What a template does, its text, and what is said of it: None where it is taken. OPEN opens the assistant's turn.
OPEN = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
EACH = "{% for m in messages %}<|im_start|>{{ m.role }}\n"
TURNS = EACH + "{{ m.content }}<|im_end|>\n{% endfor %}"
PARTS = EACH + "{% for part in m.content %}{{ part.text }}{% endfor %}<|im_end|>\n{% endfor %}"
SYSTEM = [{"role": "system", "content": "Be brief"}, *QUESTION]
TALK = [*QUESTION, {"role": "assistant", "content": "5"}, {"role": "user", "content": "halve"}]
TEMPLATES = {
    "plain": (TURNS + OPEN, QUESTION, None),
    "parts only": (PARTS + OPEN, QUESTION, None),
    "parts only, a talk": (PARTS + OPEN, TALK, None),
    "parts only, by index": (
        EACH + "{{ m.content[0]['text'] }}<|im_end|>\n{% endfor %}" + OPEN,
        QUESTION,
        None,
    ),
    "parts only, raises on text": (
        EACH
        + "{% if m.content is string %}{{ raise_exception('parts') }}{% endif %}"
        + "{% for part in m.content %}{{ part.text }}{% endfor %}<|im_end|>\n{% endfor %}"
        + OPEN,
        QUESTION,
        None,
    ),
    "parts or text": (
        EACH
        + "{% if m.content is string %}{{ m.content }}{% else %}"
        + "{% for part in m.content %}{{ part.text | trim }}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
        + OPEN,
        QUESTION,
        None,
    ),
    "reads another key": (
        EACH + "{{ m.text }}<|im_end|>\n{% endfor %}" + OPEN,
        QUESTION,
        "what the user says",
    ),
    "no system": (TURNS.replace("%}", " if m.role != 'system' %}", 1) + OPEN, SYSTEM, "what the system says"),
    "no system, none given": (TURNS.replace("%}", " if m.role != 'system' %}", 1) + OPEN, QUESTION, None),
    "raises on a system": (
        TURNS.replace("%}", "%}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}", 1)
        + OPEN,
        SYSTEM,
        r"refuses \['system', 'user'\]: no system",
    ),
    "the last message alone": (TURNS.replace("messages", "messages[-1:]") + OPEN, TALK, "message 1 of"),
    "past answers left out": (
        TURNS.replace("%}", " if m.role == 'user' %}", 1) + OPEN,
        TALK,
        "what the assistant says in message 2",
    ),
    "a default system turn": (
        "<|im_start|>system\nYou are helpful<|im_end|>\n" + TURNS + OPEN,
        QUESTION,
        None,
    ),
    "trims": (TURNS.replace("m.content", "m.content | trim") + OPEN, QUESTION, None),
    "escapes HTML": (TURNS.replace("m.content", "m.content | e") + OPEN, QUESTION, "leaves out or changes"),
    "writes JSON": (
        TURNS.replace("m.content", "m.content | tojson") + OPEN,
        QUESTION,
        "leaves out or changes",
    ),
    "cuts long texts": (
        TURNS.replace("m.content", "m.content[:9]") + OPEN,
        QUESTION,
        "leaves out or changes",
    ),
    "opens no turn": (TURNS, QUESTION, "opens no assistant's turn: a prompt ends in '<|im_end|>'"),
    "opens with a newline": (
        TURNS + "{% if add_generation_prompt %}\n{% endif %}",
        QUESTION,
        "opens no assistant's",
    ),
    "opens another's turn": (
        TURNS + OPEN.replace("assistant", "user"),
        QUESTION,
        "opens no assistant's turn",
    ),
    "always opens": (TURNS + "{{ '<|im_start|>assistant\n' }}", QUESTION, None),
    "opens with a thought": (TURNS + OPEN.replace("{% endif", "<think>\n{% endif"), QUESTION, None),
    "an error of its own": (
        TURNS + "{% for t in tools %}{% endfor %}" + OPEN,
        QUESTION,
        r"refuses \['user'\]: ",
    ),
    "needs a key": (TURNS + "{{ tools | length }}" + OPEN, QUESTION, r"refuses \['user'\]: "),
    "two BOS": ("{{ eos_token }}{{ eos_token }}" + TURNS + OPEN, QUESTION, "writes the BOS, .* twice"),
}


@pytest.mark.parametrize("case", TEMPLATES)
def test_a_template_is_taken_whole_or_refused_by_its_file(directories, tmp_path, case):
    template, messages, words = TEMPLATES[case]
    changes = {"bos_token": "<|im_end|>"} if case == "two BOS" else {}
    where = copied(directories / "qwen3", tmp_path / "copy", **changes)
    (where / "chat_template.jinja").write_text(template)
    tokenizer = Tokenizer(where)
    if words is not None:
        with pytest.raises(ValueError, match=rf"chat_template\.jinja: the chat template .*{words}"):
            tokenizer.render(messages)
        return
    text = tokenizer.decode(tokenizer.render(messages))
    assert (
        all(m["content"] in text for m in messages)
        and text.count("<|im_start|>assistant\n")
        == len([m for m in messages if m["role"] == "assistant"]) + 1
    )
    assert tokenizer.pieces(tokenizer.stop_ids) == ["<|im_end|>", "<|endoftext|>"]


@pytest.mark.parametrize(
    ("template", "closing"),
    [
        (TURNS + OPEN, "<|im_end|>"),
        (PARTS + OPEN, "<|im_end|>"),
        (TURNS.replace("<|im_end|>", " <|im_end|>") + OPEN, "<|im_end|>"),
        (TURNS.replace("<|im_end|>", "<|endoftext|>") + OPEN, "<|endoftext|>"),
        (TURNS.replace("<|im_end|>", "</think>") + OPEN, "</think>"),  # added, not special: still one token
        (TURNS.replace("<|im_end|>", "") + OPEN, None),
        (TURNS.replace("<|im_end|>", "END") + OPEN, None),
        # open at all times, and the next turn begins where none was closed
        (TURNS.replace("<|im_end|>", "") + "<|im_start|>assistant\n", None),
        ("<|im_end|>" + TURNS + OPEN, "<|im_end|>"),
    ],
)
def test_the_token_that_closes_a_turn_opens_none(directories, tmp_path, template, closing):
    where = copied(directories / "qwen3", tmp_path / "copy")
    (where / "chat_template.jinja").write_text(template)
    tokenizer = Tokenizer(where)
    assert "<|im_start|>" not in tokenizer.pieces(tokenizer.stop_ids)
    if closing is None:
        with pytest.raises(ValueError, match="no special token closes"):
            tokenizer.end_of_turn  # noqa: B018
    else:
        assert tokenizer.pieces([tokenizer.end_of_turn]) == [closing]


def test_of_named_templates_the_default_is_rendered_and_another_where_there_are_tools(directories, tmp_path):
    where = copied(directories / "qwen2", tmp_path / "copy")
    (where / "additional_chat_templates").mkdir()
    (where / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools[0] }}\n" + TURNS + OPEN)
    plain = Tokenizer(where)
    assert plain.render(QUESTION) == Tokenizer(directories / "qwen2").render(QUESTION)
    tools = Tokenizer(where, {"tools": [{"name": "add"}]})
    assert "{'name': 'add'}" in tools.decode(tools.render(QUESTION))
    (where / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match=r"named \['tool_use'\], and none is the default; save"):
        Tokenizer(where).render(QUESTION)
    old = copied(
        directories / "qwen2", tmp_path / "old", chat_template=[{"name": "default", "template": TURNS}]
    )
    (old / "chat_template.jinja").unlink()
    with pytest.raises(
        ValueError, match=r"tokenizer_config\.json: the chat template opens no assistant's turn"
    ):
        Tokenizer(old).render(QUESTION)


# --- control tokens that a text spells ---


def specials(tokenizer):
    """Control tokens as the family's release has them: all but <think>, which is text by its own word."""
    return [t.content for t in tokenizer.hf.added_tokens_decoder.values() if t.special]


def controls_in(tokenizer, ids):
    return [
        i
        for i in ids
        if i in tokenizer.hf.added_tokens_decoder and tokenizer.hf.added_tokens_decoder[i].special
    ]


SPELLED = [
    "{}",
    "a{}b",
    " {} ",
    "{}\n\n{}",
    "{}{}{}",
    "so {}\n\n7 + 5 = 12.{}",
    "<{}>",
    "é{}日",
]


@pytest.mark.parametrize("pattern", SPELLED)
def test_a_control_token_that_is_spelled_stays_text(tokenizer, pattern):
    for token in specials(tokenizer):
        text = pattern.replace("{}", token)
        ids = tokenizer.encode(text)
        assert not controls_in(tokenizer, ids), token
        assert tokenizer.decode(ids) == text and tokenizer.text(ids) == text, token
        plain, spelled = ([{"role": "user", "content": said}] for said in ("x", f"x{text}x"))
        assert controls_in(tokenizer, tokenizer.render(spelled)) == controls_in(
            tokenizer, tokenizer.render(plain)
        )
        assert f"x{text}x" in tokenizer.decode(tokenizer.render(spelled)), token


def test_no_text_becomes_a_control_token_and_other_text_is_encoded_as_ever(tokenizer):
    """Cut in pieces and put together again, so that tokens overlap; in every role."""
    names = specials(tokenizer)
    pieces = st.sampled_from(
        [*names, *(t[:k] for t in names for k in (1, 2)), *(t[1:] for t in names), "a", "\n", " "]
    )
    roles = ("system", "user", "assistant", "user")
    shape = controls_in(tokenizer, tokenizer.render([{"role": role, "content": "x"} for role in roles]))

    @settings(max_examples=60, deadline=None)
    @given(st.lists(st.lists(pieces, max_size=6).map("".join), min_size=4, max_size=4))
    def run(texts):
        assume(not any("▁" in text for text in texts))
        for text in texts:
            ids = tokenizer.encode(text)
            assert not controls_in(tokenizer, ids) and tokenizer.decode(ids) == text
        said = [{"role": role, "content": f"x{text}x"} for role, text in zip(roles, texts, strict=True)]
        ids = tokenizer.render(said)
        assert controls_in(tokenizer, ids) == shape
        if not any(name in text for name in names for text in texts):
            assert ids == list(
                tokenizer.hf.apply_chat_template(said, add_generation_prompt=True, return_dict=False)
            )

    run()


def test_what_is_added_but_not_special_is_text(directories):
    """A model draws <think> itself: its own text, read back, must give the token it drew."""
    tokenizer = Tokenizer(directories / "qwen3")
    thought = "<think>\nHmm\n</think>\n\n5"
    assert tokenizer.pieces(tokenizer.encode(thought))[0] == "<think>"
    assert "<think>" in tokenizer.pieces(tokenizer.render([{"role": "user", "content": thought}]))


def test_a_token_around_turns_is_a_control_token_whatever_its_file_says(directories, tmp_path):
    """DeepSeek's <｜User｜> and <｜Assistant｜> are added and not special."""
    where = copied(directories / "qwen3", tmp_path / "copy")
    (where / "chat_template.jinja").write_text((TURNS + OPEN).replace("<|im_start|>", "<think>"))
    tokenizer = Tokenizer(where)
    assert tokenizer.pieces(tokenizer.encode("<think>"))[0] == "<"
    assert tokenizer.pieces(tokenizer.render(QUESTION)).count("<think>") == 2
    assert tokenizer.pieces(tokenizer.encode("</think>")) == ["</think>"]


def test_a_private_letter_in_a_text_is_kept(directories):
    tokenizer = Tokenizer(directories / "qwen2")
    said = "\ue000<|im_end|>\ue001"
    assert said in tokenizer.decode(tokenizer.render([{"role": "user", "content": said}]))


def test_an_unknown_letter_is_no_control_token(tmp_path):
    """The unknown token is special: a text that spells it is cut, one that has a letter it stands for is not."""
    words = Tokens(
        models.WordLevel({w: i for i, w in enumerate(["<unk>", "<", "u", "n", "k", ">"])}, unk_token="<unk>")
    )
    words.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    words.add_special_tokens(["<unk>"])
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>").save_pretrained(tmp_path)
    tokenizer = Tokenizer(tmp_path)
    assert tokenizer.encode("<unk>") == [1, 2, 3, 4, 5] and tokenizer.encode("日n") == [0, 3]


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
