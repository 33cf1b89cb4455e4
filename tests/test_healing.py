"""What comes after a splice has the distribution that it has in an unspliced trace, whatever spells the separator."""

import collections
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Tokens
from transformers import PreTrainedTokenizerFast

from int_jax import rollout, sample
from int_jax.check import byte_tokenizer
from int_jax.sampler import Request, Sampling
from int_jax.session import spell
from int_jax.tokenizer import Tokenizer
from int_jax.types import Intervention, Task, Trace
from tests.test_tokenizer import CORPUS, FAMILIES

# Single digits are words of their own (SmolLM): a blank line is one token before a digit and two before a letter, since
# GPT-2's pattern leaves the last space of a run to the word after it. Without the digits' rule it is two before both.
GPT2 = {"gpt2": False, "gpt2_digits": True}


def gpt2(folder, digits: bool):
    tokens = Tokens(models.BPE())
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(True)] * digits + [words])
    tokens.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    corpus = [*CORPUS, *(f"{a} + {b} = {a + b}\n\n{a + b} - 1\n\n\n\n" for a in range(20) for b in range(20))]
    tokens.train_from_iterator(
        corpus, trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False)
    )
    tokens.add_special_tokens([AddedToken("<|im_end|>", normalized=False)])
    PreTrainedTokenizerFast(tokenizer_object=tokens, eos_token="<|im_end|>").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=[*FAMILIES, *GPT2, "bytes", "tiny"])
def tokenizer(request, tmp_path_factory, tiny_dir):
    folder = tmp_path_factory.mktemp(request.param)
    if request.param in FAMILIES:
        tokens, names, _, _ = FAMILIES[request.param]()
        PreTrainedTokenizerFast(tokenizer_object=tokens, **names).save_pretrained(folder)
    elif request.param in GPT2:
        gpt2(folder, GPT2[request.param])
    elif request.param == "bytes":
        byte_tokenizer.save(folder)
    return Tokenizer(tiny_dir if request.param == "tiny" else folder)


class Canonical:
    """A language model over texts: each has a probability, and the ids in which the tokenizer writes it."""

    def __init__(self, tokenizer, prompt: list[int], texts: dict[str, float]):
        self.rows = [(prompt + tokenizer.encode(text), p) for text, p in texts.items()]

    def next(self, ids: list[int]) -> dict[int, float]:
        found: dict[int, float] = collections.defaultdict(float)
        for row, p in self.rows:
            if row[: len(ids)] == ids and len(row) > len(ids):
                found[row[len(ids)]] += p
        return {token: p / sum(found.values()) for token, p in found.items()}

    def continuations(self, tokenizer, trace: Trace) -> dict[str, float]:
        """Every text that can follow an open trace, with its probability, drawn as the sampler draws."""
        spellings = tokenizer.spellings(trace.begin)
        waiting = [(trace.tokens.tolist(), trace.begin, 1.0)]
        found: dict[str, float] = collections.defaultdict(float)
        while waiting:
            ids, rest, p = waiting.pop()
            likely = self.next(ids)
            if rest:
                likely = {token: q for token, q in likely.items() if token in spellings[rest]}
            if not likely:
                found[tokenizer.decode(ids)] += p
            for token, q in likely.items():
                after = spellings[rest][token] if rest else ""
                waiting.append(([*ids, token], after, p * q / sum(likely.values())))
        return found


def drawn(tokenizer, text: str, separator: str) -> Trace:
    """A failed trace, as the policy drew it."""
    prompt = tokenizer.encode("P")
    tokens = np.asarray(prompt + tokenizer.encode(text), np.int32)
    ends = tokenizer.step_ends(tokens, len(prompt), separator)
    task = Task("t", "math", "P")
    return Trace(
        task, tokens, len(prompt), np.arange(len(tokens)) >= len(prompt), -np.ones(len(tokens)), 1.0, ends
    )


NEXT = {"4 - 3 = 1": 0.1, "The rest is 1": 0.3, "$1$": 0.2, "\\boxed{1}": 0.15, " so 1": 0.15, "So 4": 0.1}


@pytest.mark.parametrize("separator", ["\n\n", "\n"])
@pytest.mark.parametrize("removed", ["9 - 2 = 6", "Then we get 6", "(6)"])
@pytest.mark.parametrize("end", ["", ".", ")", "$."])
@pytest.mark.parametrize("step", ["7 - 3 = 4", "Three are left, 4"])
def test_the_step_after_a_splice_is_drawn_as_in_an_unspliced_trace(tokenizer, separator, removed, end, step):
    """The model writes `first`, `step` and one of NEXT; the attempt has another step in the second place."""
    first, step = "7 are here" + end, step + end
    texts = {separator.join((first, step, after)): p for after, p in NEXT.items()}
    attempt = drawn(tokenizer, separator.join((first, removed + end, "6")), separator)
    model = Canonical(tokenizer, attempt.tokens[: attempt.prompt_len].tolist(), texts)
    [guided] = rollout.splice([attempt], [Intervention(1, step)], tokenizer, separator)
    found = model.continuations(tokenizer, guided)
    assert found == pytest.approx({"P" + text: p for text, p in texts.items()})


@pytest.mark.parametrize("separator", ["\n\n", "\n"])
@pytest.mark.parametrize("removed", ["9 - 2 = 6", "Then we get 6"])
@pytest.mark.parametrize("end", ["", ".", "$."])
def test_a_prefix_says_nothing_of_the_step_that_was_removed(tokenizer, separator, removed, end):
    first = "7 are here" + end
    texts = {first + separator + after: p for after, p in NEXT.items()}
    attempt = drawn(tokenizer, first + separator + removed, separator)
    model = Canonical(tokenizer, attempt.tokens[: attempt.prompt_len].tolist(), texts)
    prefix = rollout.reopen(attempt, attempt.step_ends[0], tokenizer, separator)
    assert model.continuations(tokenizer, prefix) == pytest.approx(
        {"P" + text: p for text, p in texts.items()}
    )


@pytest.mark.parametrize("removed", ["9 - 2 = 6", "Then we get 6"])
@pytest.mark.parametrize("step", ["7 - 3 = 4", "Three are left"])
def test_a_splice_is_written_as_the_tokenizer_writes_the_text(tokenizer, removed, step):
    """Prefix, separator and intervention are the ids of the whole text; what was drawn so stays marked as drawn."""
    attempt = drawn(tokenizer, f"7 are here.\n\n{removed}\n\n6", "\n\n")
    [guided] = rollout.splice([attempt], [Intervention(1, step)], tokenizer)
    start, whole = attempt.prompt_len, tokenizer.encode(f"7 are here.\n\n{step}\n\n")
    response = guided.response.tolist()
    assert response == whole[: len(response)]
    assert tokenizer.text(response) + guided.begin == f"7 are here.\n\n{step}" + (
        "\n\n" if guided.begin else ""
    ) or (tokenizer.text(response) == f"7 are here.\n\n{step}\n\n")
    same = next(
        i for i, (a, b) in enumerate(zip(response, attempt.response.tolist(), strict=False)) if a != b
    )
    cut = attempt.step_ends[0] - start
    assert guided.spliced - start == min(same, cut) and guided.sampled[start : guided.spliced].all()
    assert not guided.sampled[guided.spliced :].any() and guided.step_ends[-1] == len(guided.tokens)


PIECES = ["a", "7", ".", " ", "\n", "\n\n", ".\n", "é", "$", "The"]


def test_what_is_taken_off_is_what_has_to_be_drawn(tokenizer):
    """reopen: the kept ids and the text to begin with are the text that stood, up to newlines behind the separator; any
    spelling of it is a way back."""
    for pieces in itertools.product(PIECES, repeat=3):
        ids = [i for piece in pieces for i in tokenizer.encode(piece)]
        for separator in ("\n\n", "\n"):
            end, begin = tokenizer.reopen(ids, 0, separator)
            kept, text = tokenizer.decode(ids[:end]), tokenizer.decode(ids)
            if not begin:
                assert end == len(ids)
                continue
            assert text.startswith(kept + begin) and begin.endswith(separator)
            assert not text[len(kept + begin) :].strip("\n")
            spellings, way, rest = tokenizer.spellings(begin), [], begin
            while rest:
                token = max(spellings[rest], key=lambda i: len(tokenizer.decode([i])))
                way, rest = [*way, token], spellings[rest][token]
            assert tokenizer.decode([*ids[:end], *way]).startswith(kept + begin)


def test_control_tokens_spell_nothing(tokenizer):
    allowed = {i for state in tokenizer.spellings("\n\n").values() for i in state}
    assert allowed and not allowed & {*tokenizer.stop_ids, *tokenizer.hf.all_special_ids}


# --- the sampler ---


@pytest.fixture(scope="module")
def blank(tmp_path_factory):
    """Blank lines in one token or two, and ".\\n\\n" in one, two or three."""
    return Tokenizer(byte_tokenizer.save(tmp_path_factory.mktemp("blank")))


@pytest.fixture(scope="module")
def made(blank):
    from int_jax.engine import Engine
    from int_jax.models import Config, build
    from int_jax.sharding import make_mesh

    model = build(Config("qwen3", blank.vocab, 32, 2, 4, 2, 8, 64, 512, qk_norm=True, tied=True))

    def engine(data=1, axis=1, slots=8, decode_steps=4):
        mesh = make_mesh(data, axis, jax.devices()[: data * axis])
        return Engine(model, mesh, slots=slots, decode_steps=decode_steps)

    return engine, jax.jit(model.init)(jax.random.key(3))


PROMPT = tuple(range(10, 30))
BEGINS = ["", ".\n\n", "\n\n", "", "\n"]


def requests(count=3):
    return [
        Request(PROMPT[: 9 + n], f"t{n}", k, begin) for n, begin in enumerate(BEGINS) for k in range(count)
    ]


def test_a_response_begins_with_its_text_and_is_the_same_in_any_slot_and_mesh(made, blank):
    make, params = made
    sampling = Sampling(max_new_tokens=9, seed=4, top_k=0, temperature=1.3)
    first, *others = [
        engine.generate(engine.decode_params(params), requests(), sampling, tokenizer=blank)
        for engine in (make(), make(2, 2, slots=4, decode_steps=3))
    ]
    for request, response in zip(requests(), first, strict=True):
        new = response.tokens[len(request.prompt) :]
        assert blank.decode(new).startswith(request.begin)
    assert {blank.decode(r.tokens[9:]) for r in first[:3]} and len(
        {r.tokens.tobytes() for r in first}
    ) == len(first)
    for again in others:
        assert [r.tokens.tolist() for r in again] == [r.tokens.tolist() for r in first]


def test_free_rows_draw_what_they_draw_alone(made, blank):
    make, params = made
    sampling = Sampling(max_new_tokens=9, seed=4)
    together = make().generate(params, requests(), sampling, tokenizer=blank)
    alone = make().generate(params, [r for r in requests() if not r.begin], sampling)
    free = [response for request, response in zip(requests(), together, strict=True) if not request.begin]
    for a, b in zip(free, alone, strict=True):
        np.testing.assert_array_equal(a.tokens, b.tokens)
        np.testing.assert_allclose(a.logp, b.logp, atol=1e-6)


def test_log_probabilities_are_those_over_the_whole_vocabulary(made, blank):
    make, params = made
    engine = make()
    got = engine.generate(params, requests(), Sampling(max_new_tokens=9, seed=4), tokenizer=blank)
    scored, _ = engine.score(params, [r.tokens for r in got])
    for request, response, logp in zip(requests(), got, scored, strict=True):
        start = len(request.prompt)
        np.testing.assert_allclose(response.logp[start:], logp[start:], atol=1e-5)


def test_a_stop_token_does_not_end_what_a_response_begins_with(made, blank):
    """The separator's tokens may be stop ids themselves: they end a response only behind its beginning."""
    make, params = made
    stops = tuple(i for i in range(blank.vocab) if blank.decode([i]).endswith("\n"))
    sampling = Sampling(max_new_tokens=60, seed=4, temperature=1.5, stop_ids=stops)
    for request, response in zip(
        requests(), make().generate(params, requests(), sampling, tokenizer=blank), strict=True
    ):
        new = response.tokens[len(request.prompt) :]
        begun = blank.covering(new, len(request.begin))
        assert len(new) > begun and not set(new[begun:-1].tolist()) & {*stops}
        assert (response.stop == "stop") == (int(new[-1]) in stops)
    short = make().generate(params, requests(), Sampling(max_new_tokens=1, stop_ids=stops), tokenizer=blank)
    cut = [len(blank.decode(r.tokens[-1:])) < len(q.begin) for q, r in zip(requests(), short, strict=True)]
    assert any(cut) and all(r.stop == "length" for r, c in zip(short, cut, strict=True) if c)


def test_the_draw_is_the_model_s_among_the_tokens_allowed(blank):
    """Shares of 20,000 draws against the softmax over the allowed tokens; a filter sees these alone."""
    states, table = spell({".\n\n"}, blank, blank.vocab)
    logits = jax.random.normal(jax.random.key(0), (1, blank.vocab)) * 2
    allowed = blank.spellings(".\n\n")[".\n\n"]
    count = 20_000
    begin_B = jnp.full(count, states[".\n\n"])
    logits_BV = jnp.broadcast_to(logits, (count, blank.vocab))
    table = sample.Spellings(*map(jnp.asarray, table))
    words = [jnp.zeros(count, jnp.uint32)] * 3
    draw = sample.Draw(
        jnp.ones(count),
        jnp.zeros(count, jnp.int32),
        jnp.ones(count),
        jnp.zeros(count),
        jnp.full((count, 1), -1),
        *words,
    )
    keys, more = (jax.vmap(jax.random.key)(jnp.arange(count) + start) for start in (0, count))
    tokens, logp = map(np.asarray, jax.jit(sample.choose)(logits_BV, keys, draw, begin_B, table))
    np.testing.assert_allclose(logp, np.asarray(jax.nn.log_softmax(logits[0]))[tokens], atol=1e-5)
    assert set(tokens.tolist()) <= set(allowed)
    share = np.bincount(tokens, minlength=blank.vocab)[list(allowed)] / count
    wanted = jax.nn.softmax(logits[0, jnp.array(list(allowed))])
    np.testing.assert_allclose(share, wanted, atol=4 * 0.5 / np.sqrt(count))
    narrow, _ = map(
        np.asarray,
        jax.jit(sample.choose)(
            logits_BV, more, draw._replace(top_k_B=jnp.ones(count, jnp.int32)), begin_B, table
        ),
    )
    assert set(narrow.tolist()) == {max(allowed, key=lambda i: float(logits[0, i]))}


def test_a_text_to_begin_with_needs_the_tokenizer(made, blank):
    make, params = made
    with pytest.raises(ValueError, match="pass the model's tokenizer"):
        make().generate(params, requests(1), Sampling())
    with pytest.raises(ValueError, match="no token of the model can begin with"):
        spell({"\n\n"}, blank, 3)


# --- stop texts ---


@pytest.mark.parametrize("decode_steps", [1, 16])
def test_a_response_ends_with_the_token_that_completes_a_stop_text(made, blank, decode_steps):
    """Against the free response, cut behind the first token at which its text holds one of them."""
    make, params = made
    free = make().generate(params, requests(), Sampling(max_new_tokens=40, seed=4), tokenizer=blank)
    text = blank.decode(free[0].tokens[len(PROMPT[:9]) :])
    stops = (text[3:7], text[20:24])
    sampling = Sampling(max_new_tokens=40, seed=4, stop=stops)
    got = make(decode_steps=decode_steps).generate(params, requests(), sampling, tokenizer=blank)
    assert got[0].stop == "stop" and {r.stop for r in got} == {"stop", "length"}
    for request, response, whole in zip(requests(), got, free, strict=True):
        start = len(request.prompt)
        begun = blank.covering(whole.tokens[start:], len(request.begin))
        ends = range(start + begun, len(whole.tokens) + 1)
        found = [e for e in ends if any(s in blank.decode(whole.tokens[start + begun : e]) for s in stops)]
        assert response.tokens.tolist() == whole.tokens[: found[0] if found else None].tolist()
        assert response.stop == ("stop" if found else "length") and len(response.logp) == len(response.tokens)


def test_stop_texts_are_checked(made):
    make, params = made
    with pytest.raises(ValueError, match="stop"):
        Sampling(stop=("",))
    with pytest.raises(ValueError, match="pass the model's tokenizer"):
        make().generate(params, [Request(PROMPT, "t", 0)], Sampling(stop=("a",)))
