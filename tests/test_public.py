"""The public face, and nothing but it: what notebooks, benchmarks and outside checks may call."""

import importlib.metadata
import inspect
import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest
from huggingface_hub.utils import filter_repo_objects

import int_jax
from int_jax import rollout
from int_jax.batching import pack, supervised
from int_jax.lm import HUB_FILES
from int_jax.sharding import make_mesh

WORDS = ["<pad>", "<|im_start|>", "<|im_end|>", "<unk>", "user", "assistant", "\n", "\n\n", *"0123456789+-= "]


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory):
    """A random model with a tokenizer of some words, in Hugging Face format."""
    from tokenizers import AddedToken, Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    from int_jax import hf_format
    from int_jax.models import Config, build

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.add_tokens([AddedToken(word, normalized=False) for word in WORDS[4:]])
    words.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="<|im_end|>", pad_token="<pad>", unk_token="<unk>",
        additional_special_tokens=["<|im_start|>"],
    )  # fmt: skip
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    root = tmp_path_factory.mktemp("public")
    tokenizer.save_pretrained(root / "tokenizer")
    # a second stop id, which the tokenizer does not know of
    (root / "tokenizer" / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 7]}))
    config = Config("qwen3", len(WORDS), 16, 2, 2, 1, 8, 24, 128, qk_norm=True, tied=True)
    params = build(config).init(jax.random.key(5))
    hf_format.save(root / "model", config, params, root / "tokenizer")
    return root / "model"


@pytest.fixture(scope="session")
def lm(model_dir):
    return int_jax.load(model_dir)


def tokens_of(traces):
    return [[trace.tokens.tolist() for trace in group] for group in traces]


def test_the_face_is_the_one_in_the_design(lm):
    functions = ["load", "parse_intervention", "pass_at_k", "splice", "verify"]
    assert int_jax.__all__ == ["LM", "Intervention", "Task", "Trace", "Verdict", *functions]
    assert int_jax.__version__ == importlib.metadata.version("int_jax")
    assert all(
        isinstance(getattr(int_jax, name), type) for name in ("Intervention", "Task", "Trace", "Verdict")
    )
    assert set(int_jax.__all__) <= set(dir(int_jax))
    assert all(callable(getattr(int_jax, name)) for name in int_jax.__all__)
    assert isinstance(lm, int_jax.LM)
    assert list(inspect.signature(int_jax.LM).parameters) == ["model", "params", "tokenizer", "engine"]
    defaults = {n: p.default for n, p in inspect.signature(lm.generate).parameters.items()}
    assert defaults == {
        **{"prompts": inspect.Parameter.empty, "samples": 1, "max_new_tokens": 256, "temperature": 1.0},
        **{"top_k": 0, "top_p": 1.0, "min_p": 0.0, "stop_ids": None, "seed": 0, "stop": ()},
    }
    assert defaults == {
        {"traces": "prompts"}.get(n, n): p.default
        for n, p in inspect.signature(lm.continue_traces).parameters.items()
    }
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        int_jax.nonsense  # noqa: B018
    assert int_jax.verify("so \\boxed{4}", "4").passed
    assert int_jax.pass_at_k(2, 1, 1) == 0.5
    assert int_jax.parse_intervention("nothing of the kind") is None


def test_importing_it_imports_no_jax():
    code = (
        "import sys, int_jax; int_jax.verify; assert not {'jax', 'transformers', 'flax'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_submodule_never_hides_the_function_of_its_name():
    """Whichever is imported first: each in a process of its own, to which what the package needs is known already."""
    code = """
import gc, os, flax, jax, optax, transformers
from transformers import AutoTokenizer
gc.freeze()
for first in ("splicing", "verify", "engine"):
    if not os.fork():
        exec(f"import int_jax, int_jax.{first}")
        assert callable(int_jax.verify) and callable(int_jax.splice)
        os._exit(0)
    assert not os.wait()[1], first
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_traces_are_records_of_what_was_drawn(lm):
    traces = lm.generate(["1+2", "3-4"], samples=3, max_new_tokens=24, temperature=0.9, seed=7)
    assert [len(group) for group in traces] == [3, 3]
    assert traces[0][0].task.id != traces[1][0].task.id
    for problem, group in zip(["1+2", "3-4"], traces, strict=True):
        prompt = lm.tokenizer.render([{"role": "user", "content": problem}])
        for sample, trace in enumerate(group):
            assert (trace.task.problem, trace.key, trace.temperature) == (problem, (7, sample), 0.9)
            assert trace.tokens[: trace.prompt_len].tolist() == prompt
            assert trace.sampled.tolist() == [False] * len(prompt) + [True] * len(trace.response)
            assert (trace.logp[~trace.sampled] == 0).all() and (trace.logp[trace.sampled] < 0).all()
            ended = trace.tokens[-1] in (2, 7)  # of the tokenizer, of generation_config.json
            assert trace.stop == ("stop" if ended else "length")
            assert ended or len(trace.response) == 24
            assert not np.isin(trace.response[:-1], (2, 7)).any()
            assert trace.step_ends[-1] == len(trace.tokens)
    ends = {
        trace.tokens[-1] for group in lm.generate(["1+2"], samples=40, max_new_tokens=64) for trace in group
    }
    assert {2, 7} <= ends


def test_a_response_depends_on_prompt_seed_and_sample_alone(lm):
    draw = {"samples": 2, "max_new_tokens": 12}
    pair = tokens_of(lm.generate(["1+2", "3-4"], **draw))
    assert tokens_of(lm.generate(["3-4", "5=5", "1+2", "3-4"], **draw))[0::2] == [pair[1], pair[0]]
    assert tokens_of(lm.generate(["3-4", "3-4"], **draw)) == [pair[1], pair[1]]
    assert tokens_of(lm.generate(["1+2"], samples=1, max_new_tokens=12))[0] == pair[0][:1]
    ids = np.array(lm.tokenizer.render([{"role": "user", "content": "1+2"}]))
    assert tokens_of(lm.generate([ids], **draw)) == [pair[0]]
    assert tokens_of(lm.generate(["1+2"], **draw, seed=1)) != [pair[0]]
    assert pair[0][0] != pair[0][1]


def test_an_open_trace_is_continued_as_if_it_had_never_been_cut(lm):
    draw = {"max_new_tokens": 20, "seed": 3, "stop_ids": []}
    [[whole]] = lm.generate(["1+2"], **draw)
    cut = rollout.truncate(whole, whole.prompt_len + 8)
    [[again, other]] = lm.continue_traces([cut], samples=2, **draw | {"max_new_tokens": 12})
    assert again.tokens.tolist() == whole.tokens.tolist() != other.tokens.tolist()
    np.testing.assert_allclose(again.logp, whole.logp, atol=1e-5)
    assert again.sampled.tolist() == whole.sampled.tolist() and again.key == (3, 0)
    guided = int_jax.splice(whole, int_jax.Intervention(0, "7"), lm.tokenizer)
    [[after]] = lm.continue_traces([guided], **draw)
    count = len(guided.tokens)
    assert after.tokens[:count].tolist() == guided.tokens.tolist() and len(after.tokens) == count + 20
    assert not after.sampled[:count].any() and after.sampled[count:].all() and after.spliced == guided.spliced
    assert lm.continue_traces([]) == []
    with pytest.raises(ValueError, match=r"traces\[1\] has ended"):
        lm.continue_traces([guided, whole.replace(stop="stop")])


def test_token_ids_are_taken_as_they_are_and_no_prompts_are_no_traces(lm):
    (trace,), = lm.generate([[8, 9, 10]], max_new_tokens=5, stop_ids=[], temperature=0.0)  # fmt: skip
    assert (trace.prompt_len, len(trace.tokens), trace.stop) == (3, 8, "length")
    assert trace.tokens[:3].tolist() == [8, 9, 10]
    assert trace.task.problem == "012"
    assert lm.generate([]) == lm.score([]) == []


def test_score_agrees_with_generate(lm):
    traces = [trace for group in lm.generate(["1+2", "3-4"], samples=2, max_new_tokens=30) for trace in group]
    scores = lm.score([trace.tokens for trace in traces])
    for trace, score in zip(traces, scores, strict=True):
        assert score.dtype == np.float32 and score.shape == trace.tokens.shape and score[0] == 0
        np.testing.assert_allclose(score[trace.sampled], trace.logp[trace.sampled], atol=1e-5)
    # log-probabilities of the second token sum to one over the vocabulary
    seconds = [score[1] for score in lm.score([[8, i] for i in range(len(WORDS))])]
    np.testing.assert_allclose(np.exp(seconds).sum(), 1, atol=1e-5)


def test_score_agrees_with_generate_on_the_embedded_model(tiny_dir):
    """Its logits reach 18: there a step of float32 alone is 2e-6."""
    tiny = int_jax.load(tiny_dir, make_mesh(devices=jax.devices()[:1]))
    problems = [f"Start with {n}, times 7, take {n}, add 8, times 2, take 9." for n in range(1, 9)]
    traces = [t for group in tiny.generate(problems, samples=8, max_new_tokens=64) for t in group]
    for trace, scored in zip(traces, tiny.score([t.tokens for t in traces]), strict=True):
        np.testing.assert_allclose(
            trace.logp[trace.prompt_len :], scored[trace.prompt_len :], rtol=1e-5, atol=1e-5
        )


def test_save_and_load_give_the_same_model(lm, tmp_path):
    lm.save(tmp_path / "again")
    again = int_jax.load(str(tmp_path / "again"))
    draw = {"samples": 2, "max_new_tokens": 20}
    assert tokens_of(again.generate(["1+2"], **draw)) == tokens_of(lm.generate(["1+2"], **draw))
    np.testing.assert_array_equal(again.score([[8, 9, 10]])[0], lm.score([[8, 9, 10]])[0])
    again.save(tmp_path / "again")  # onto itself
    assert {p.name: p.read_bytes() for p in (tmp_path / "again").iterdir()} == {
        p.name: p.read_bytes() for p in type(tmp_path)(lm.tokenizer.path).iterdir()
    }


def test_bfloat16_loads_and_scores_alike(lm, model_dir):
    low = int_jax.load(model_dir, dtype="bfloat16")
    score, exact = low.score([[8, 9, 10, 11]])[0], lm.score([[8, 9, 10, 11]])[0]
    assert score.dtype == np.float32
    np.testing.assert_allclose(score, exact, atol=0.05)
    assert np.abs(score - exact).max() > 0


def test_float32_parameters_compute_in_bfloat16(lm, model_dir):
    """As training wants them: stored in float32, and every number that comes out is that of a bfloat16 model."""
    mesh = make_mesh(devices=jax.devices()[:1])
    low, mixed = (int_jax.load(model_dir, mesh, "bfloat16", p) for p in (None, "float32"))
    for leaf, exact in zip(jax.tree.leaves(mixed.params), jax.tree.leaves(lm.params), strict=True):
        np.testing.assert_array_equal(leaf, exact)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(low.params)} == {"bfloat16"}
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(mixed.params)} == {"float32"}
    np.testing.assert_array_equal(mixed.score([[8, 9, 10, 11]])[0], low.score([[8, 9, 10, 11]])[0])
    draw = {"samples": 2, "max_new_tokens": 12}
    assert tokens_of(mixed.generate(["1+2"], **draw)) == tokens_of(low.generate(["1+2"], **draw))


def test_small_updates_are_kept_in_float32_parameters_only(model_dir):
    """Adam at 1e-6 moves a weight by 1e-6: nothing to a bfloat16. What is sampled from is bfloat16 anyway."""
    tx, mesh = optax.adam(1e-6), make_mesh(devices=jax.devices()[:1])
    for stored, kept in ((None, False), ("float32", True)):
        lm = int_jax.load(model_dir, mesh, "bfloat16", stored)
        state = lm.engine.state(lm.params, tx)
        batch = pack([supervised([8, 9, 10, 11], [0, 1, 1, 1])], 8, 1)
        before = np.asarray(state.params["final_norm_D"], np.float32)  # ones
        for _ in range(3):
            state, _ = lm.engine.update(state, batch, tx)
        moved = np.asarray(state.params["final_norm_D"], np.float32) - before
        assert (np.abs(moved).max() > 1e-6) == kept
        assert all(leaf.dtype == (stored or "bfloat16") for leaf in jax.tree.leaves(state.params))
        decoding = lm.engine.decode_params(state.params)
        assert {str(leaf.dtype) for leaf in jax.tree.leaves(decoding)} == {"bfloat16"}


def test_more_stop_ids_compile_nothing(lm):
    """Up to 8 of them: Llama 3 has three."""
    lm.generate(["1+2"], max_new_tokens=8, stop_ids=[2])
    known = len(lm.engine.programs)
    for stop_ids in ([], [2, 7], [2, 7, 8], range(8)):
        (trace,), = lm.generate(["1+2"], max_new_tokens=8, stop_ids=stop_ids)  # fmt: skip
        assert (trace.stop == "stop") == (trace.tokens[-1] in stop_ids)
    assert len(lm.engine.programs) == known
    (trace,), = lm.generate(["1+2"], max_new_tokens=8, stop_ids=range(20))  # fmt: skip
    assert trace.stop == "stop" and len(lm.engine.programs) > known


def test_the_chat_template_is_told_what_load_was(model_dir, tmp_path):
    lm = int_jax.load(model_dir)
    lm.save(tmp_path / "copy")
    template = tmp_path / "copy" / "chat_template.jinja"
    template.write_text(template.read_text() + "{% if enable_thinking is false %}={% endif %}")
    said = [{"role": "user", "content": "1"}]
    plain, silent = (int_jax.load(tmp_path / "copy", chat=c) for c in (None, {"enable_thinking": False}))
    assert plain.tokenizer.render(said) == lm.tokenizer.render(said)
    assert silent.tokenizer.render(said) == [*plain.tokenizer.render(said), WORDS.index("=")]


def said(content, role="user"):
    return {"role": role, "content": content}


def test_chat_messages_stand_beside_strings_and_ids(lm):
    """A conversation is rendered as it stands: one user turn is the string's prompt, and its responses are the same."""
    chat = [said("1+1", "user"), said("2", "assistant"), said("2+3")]
    ids = lm.tokenizer.render(chat)
    knobs = {"samples": 2, "max_new_tokens": 6}
    mixed = lm.generate(["1+1", [said("1+1")], ids, chat, tuple(chat)], **knobs)
    assert tokens_of(mixed[:1]) == tokens_of(mixed[1:2])
    assert tokens_of(mixed[2:3]) == tokens_of(mixed[3:4]) == tokens_of(mixed[4:])
    assert mixed[3][0].tokens[: len(ids)].tolist() == ids
    assert mixed[3][0].task == mixed[2][0].task and mixed[0][0].task.problem == "1+1"


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda lm: lm.generate("1+2"), TypeError, ["one string", "list"]),
        (lambda lm: lm.generate(["1"], samples=0), ValueError, ["samples = 0"]),
        (lambda lm: lm.generate([1, 2]), TypeError, ["flat sequence of integers"]),
        (lambda lm: lm.generate([said("1"), said("2")]), TypeError, ["one conversation of 2", "list"]),
        (lambda lm: lm.generate(["1", said("2")]), TypeError, ["flat sequence of integers"]),
        (lambda lm: lm.generate(["1", [said("2"), "3"]]), TypeError, ["prompts[1][1] is '3'", "'role'"]),
        (lambda lm: lm.generate([["1", "2"]]), TypeError, ["prompts[0][0] is '1'", "'content'"]),
        (lambda lm: lm.generate([[said("2"), 7]]), TypeError, ["prompts[0][1] is 7"]),
        (lambda lm: lm.generate([[{"role": "user"}]]), ValueError, ["prompts[0][0]", "['role']"]),
        (lambda lm: lm.generate([[said("1") | {"name": "x"}]]), ValueError, ["'content', 'name', 'role'"]),
        (lambda lm: lm.generate([[said("1", "human")]]), ValueError, ["'human'", "system, user, assistant"]),
        (lambda lm: lm.generate([[said("1", ["user"])]]), ValueError, ["['user']", "choose"]),
        (lambda lm: lm.generate([[said(None)]]), TypeError, ["prompts[0][0]['content'] is None", "text"]),
        (lambda lm: lm.generate([[said([{"type": "text"}])]]), TypeError, ["['content'] is [{'type'"]),
        (lambda lm: lm.generate([[said("1"), said("2", "assistant")]]), ValueError, ["append its ids"]),
        (lambda lm: lm.generate([[]]), ValueError, ["empty prompt"]),
        (lambda lm: lm.generate(["1"], top_p=0.0), ValueError, ["top_p = 0.0", "above 0"]),
        (lambda lm: lm.generate(["1"], top_k=2**31), ValueError, ["top_k = 2147483648", "at most"]),
        (lambda lm: lm.generate(["1"], seed="3"), ValueError, ["seed = '3'", "whole number"]),
        (lambda lm: lm.score([[8, 22]]), ValueError, ["token id 22", "0..21"]),
        (lambda lm: lm.score([[0.5]]), TypeError, ["float64"]),
        (lambda lm: int_jax.load("no/such/place"), FileNotFoundError, ["no/such/place", "no such directory"]),
        (lambda lm: int_jax.load("/no/such"), FileNotFoundError, ["/no/such", "no such directory"]),
        (
            lambda lm: int_jax.load("owner/name"),
            FileNotFoundError,
            ["owner/name", "snapshot_download", "HF_HUB_OFFLINE"],
        ),
    ],
)
def test_a_mistake_ends_in_a_message_that_names_it(lm, call, error, words):
    with pytest.raises(error) as caught:
        call(lm)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_hub_id_is_read_from_the_hubs_cache(lm, model_dir, tmp_path, monkeypatch):
    """As huggingface_hub lays a download out, and finds it again without a network."""
    repository = tmp_path / "models--owner--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0123abcd")
    shutil.copytree(model_dir, repository / "snapshots" / "0123abcd")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    found = int_jax.load("owner/name")
    np.testing.assert_array_equal(found.score([[8, 9, 10]])[0], lm.score([[8, 9, 10]])[0])


def test_of_a_hub_repository_each_weight_is_fetched_once():
    """Some hold the weights twice, in the format of the authors, too."""
    wanted = [
        *(
            "config.json",
            "generation_config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "chat_template.jinja",
        ),
        *("vocab.json", "merges.txt", "tokenizer.model", "special_tokens_map.json"),
        *("model.safetensors.index.json", "model-00001-of-00002.safetensors", "model.safetensors"),
    ]
    more = ["consolidated.safetensors", "original/consolidated.00.pth", "pytorch_model.bin", "README.md"]
    assert list(filter_repo_objects([*wanted, *more], allow_patterns=list(HUB_FILES))) == wanted


def test_a_model_without_its_tokenizer_is_refused(lm, tmp_path):
    lm.save(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json: missing"):
        int_jax.load(tmp_path)
