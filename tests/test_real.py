"""What `make real` is made of: a GGUF file as a model directory, word problems, the oracle of their first errors."""

import json

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter, quants
from tokenizers import pre_tokenizers

import int_jax
from experiments import gguf_model, real, word_problems
from int_jax import domains
from int_jax.tokenizer import Tokenizer
from int_jax.types import Task

D, F, HEADS, KV, LAYERS = 64, 96, 4, 2, 2
Q4, Q8, F32 = (getattr(GGMLQuantizationType, name) for name in ("Q4_1", "Q8_0", "F32"))
CHAT = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
MERGES = ["Ċ Ċ", "Ġ t", "1 2"]


def write(path, without=(), **changes):
    """A random model of Llama's architecture, as llama.cpp would write it. changes: metadata, None to leave one out."""
    tokens = TOKENS + [merge.replace(" ", "") for merge in MERGES]
    data = {
        "llama.block_count": LAYERS,
        "llama.context_length": 128,
        "llama.embedding_length": D,
        "llama.feed_forward_length": F,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV,
        "llama.rope.freq_base": 100_000.0,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.vocab_size": len(tokens),
        "llama.rope.dimension_count": D // HEADS,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] * 3 + [1] * (len(tokens) - 3),
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 2,
        "tokenizer.chat_template": CHAT,
        **changes,
    }
    writer = GGUFWriter(path, data.pop("general.architecture", "llama"))
    for key, value in data.items():
        if isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif value is not None:
            (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(key, value)
    rng = np.random.default_rng(0)
    head = D // HEADS
    shapes = {"token_embd": (len(tokens), D), "output_norm": (D,)}
    for layer in range(LAYERS):
        own = {
            "attn_norm": (D,),
            "attn_q": (HEADS * head, D),
            "attn_k": (KV * head, D),
            "attn_v": (KV * head, D),
        }
        own |= {"attn_output": (D, HEADS * head), "ffn_norm": (D,), "ffn_gate": (F, D), "ffn_up": (F, D)}
        own |= {"ffn_down": (D, F)}
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in own.items()}
    for name, shape in shapes.items():
        if name in without:
            continue
        kind = F32 if len(shape) == 1 else Q8 if name == "token_embd" else Q4
        weight = (rng.normal(size=shape) * 0.3 + (len(shape) == 1)).astype(np.float32)
        writer.add_tensor(f"{name}.weight", quants.quantize(weight, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write(tmp_path_factory.mktemp("gguf") / "small.gguf")


@pytest.fixture(scope="module")
def model(source):
    gguf_model.convert(source, source.parent / "model")
    return source.parent / "model"


@pytest.mark.slow
def test_the_converted_model_is_the_one_that_transformers_reads(source, model):
    """Its weights to the bit, its log-probabilities to float32's rounding, its greedy tokens, and a saved copy."""
    said = real.compare(source, model, ["Tom has 12 apples.", "What is 1+1?"])
    assert "20 tensors equal transformers'" in said and "128 of 128 greedy tokens" in said, said


def test_rows_of_queries_and_keys_are_put_apart():
    """Pairs of RoPE lie side by side in GGUF: rows 0 and 1 of a head are row 0 and row half there."""
    told = gguf_model.unpermuted(np.arange(16.0)[:, None], heads=2)[:, 0].astype(int).tolist()
    assert told == [0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15]


def test_the_config_and_the_tokenizer_are_the_file_s(model):
    config = json.loads((model / "config.json").read_text())
    assert config["rms_norm_eps"] == 1e-5 and config["tie_word_embeddings"] and config["rope_theta"] == 1e5
    tokenizer = Tokenizer(model)
    assert (tokenizer.stop_ids, tokenizer.pad_id, tokenizer.vocab) == ((2,), 2, len(TOKENS) + len(MERGES))
    turn = tokenizer.render([{"role": "user", "content": "12 the\n\n9"}])
    assert tokenizer.pieces(turn)[:6] == ["<|im_start|>", "u", "s", "e", "r", "\n"]
    assert tokenizer.pieces(tokenizer.encode("12 the\n\n9")) == ["1", "2", " t", "h", "e", "\n\n", "9"]
    for text in ("12 the\n\nEnd", "é√ 日本\t\n 3", " a  b"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert int_jax.load(model).generate(["1"], max_new_tokens=2)[0][0].prompt_len > 2


@pytest.mark.parametrize(
    ("without", "changes", "words"),
    [
        ((), {"general.architecture": "qwen2"}, "general.architecture = 'qwen2': only 'llama' is read"),
        ((), {"llama.rope.scaling.type": "yarn"}, "llama.rope.scaling.type = 'yarn' is not read here"),
        ((), {"llama.expert_count": 4}, "llama.expert_count = 4 is not read here"),
        ((), {"llama.rope.dimension_count": 8}, "RoPE on a part of a head of 16"),
        ((), {"llama.block_count": None}, "the metadata have no llama.block_count"),
        ((), {"tokenizer.ggml.model": "llama"}, "tokenizer.ggml.model = 'llama'"),
        ((), {"tokenizer.ggml.pre": "qwen2"}, "tokenizer.ggml.pre = 'qwen2': only 'gpt2' with 'smollm'"),
        ((), {"tokenizer.chat_template": None}, "no tokenizer.chat_template"),
        (
            ("blk.1.ffn_up",),
            {},
            "1 tensors are missing, such as the one of model.layers.1.mlp.up_proj.weight",
        ),
        (("token_embd",), {}, "such as the one of model.embed_tokens.weight"),
    ],
)
def test_what_is_not_read_is_named(tmp_path, without, changes, words):
    source = write(tmp_path / "other.gguf", without, **changes)
    with pytest.raises(ValueError, match=r"other\.gguf: ") as caught:
        gguf_model.convert(source, tmp_path / "model")
    assert words in str(caught.value)
    assert not (tmp_path / "model" / "config.json").exists()


# --- word problems ---

EVERY = word_problems.problems(0, 60)
TWO = word_problems.WordProblem(
    "Mia has 9 apples. ...",
    (36, 30),
    ("Mia has 4 times as many: 9 * 4 = 36.", "Mia loses 6: 36 - 6 = 30.", "The answer is \\boxed{30}."),
)


def test_problems_are_distinct_short_and_a_function_of_the_seed():
    assert EVERY[:20] == word_problems.problems(0, 20) and EVERY[:9] != word_problems.problems(1, 9)
    assert len({one.text for one in EVERY}) == 60
    assert [len(one.values) for one in EVERY[:6]] == [1, 2, 3, 1, 2, 3]
    for one in EVERY:
        assert all(0 < value <= word_problems.MOST for value in one.values)
        assert all(len(one.lines) == len(one.values) + 1 for one in EVERY)


@pytest.mark.parametrize("one", EVERY[:12])
def test_the_graders_and_the_oracle_agree_with_the_solution(one):
    assert int_jax.verify("\n".join(one.lines), one.answer).passed
    assert word_problems.first_error(one, list(one.lines)) is None
    for wrong in range(len(one.lines)):  # a slip in any line, and what follows from it
        steps = [
            *one.lines[:wrong],
            one.lines[wrong].replace(str([*one.values, one.values[-1]][wrong]), "777"),
        ]
        assert word_problems.first_error(one, [*steps, "So \\boxed{777}."]) == (wrong, one.lines[wrong])


@pytest.mark.parametrize(
    ("steps", "found"),
    [
        (["Let me see.", "9*4=36", "36 - 6 = 30", "\\boxed{30 apples}"], None),
        (["9 × 4 = 36, then $36 - 6 = 30$.", "\\boxed{30}"], None),  # two values in one step
        (["9 * 4 = 36, and 36 - 6 = 31."], (0, 0)),  # the whole step is replaced
        (["9 x 4 = 35", "36 - 6 = 30"], (0, 0)),  # false
        (["9 + 4 = 13"], (0, 0)),  # true, and another value than the one that comes next
        (["9 * 4 = 36", "36 - 6 = 30", "30 + 1 = 31"], (2, 2)),  # one too many
        (["9 * 4 = 36", "\\boxed{36}"], (1, 1)),  # ends too early
        (["\\boxed{30}"], (0, 0)),  # right, out of nothing
        (["I cannot tell.", "There are 5 of them."], None),  # no step that states anything
        ([], None),
    ],
)
def test_the_first_error_of_an_attempt(steps, found):
    told = word_problems.first_error(TWO, steps)
    assert told == (found and (found[0], TWO.lines[found[1]]))


def test_the_files_of_a_run_hold_no_problem_twice(tmp_path, model):
    """Training, held-out and worked problems are distinct, and the domain shows the worked ones to both roles."""
    real.write_problems(tmp_path, "\n")
    rows = {name: [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
            for name in ("train", "test", "examples")}  # fmt: skip
    texts = [row["problem"] for some in rows.values() for row in some]
    assert len(set(texts)) == len(texts) == real.TRAIN + real.TEST + real.WORKED
    knobs = {
        "examples": str(tmp_path / "examples.jsonl"),
        "prompts": str(tmp_path / "prompts"),
        "separator": "\n",
    }
    domain = domains.load("math", Tokenizer(model), **knobs)
    first = rows["train"][0]
    task = Task("t", "math", first["problem"], first["reference_solution"], first["answer"])
    solver, teacher, checker = (
        domain.view(task, ["a", "b"], role) for role in ("solver", "teacher", "checker")
    )
    assert [len(solver), len(teacher), len(checker)] == [5, 3, 1]
    assert task.reference in teacher[-1]["content"] and "with a line break between" in teacher[-1]["content"]
    assert "[1] a\n[2] b\n" in checker[-1]["content"]
    assert all(task.reference not in turn["content"] for turn in solver)
