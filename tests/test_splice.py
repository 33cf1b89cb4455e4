import itertools
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from int_jax.domains.arithmetic import Arithmetic
from int_jax.engine import Engine
from int_jax.splicing import splice
from int_jax.tokenizer import Tokenizer

IDS = st.integers(0, 60)


@st.composite
def traces(draw):
    """(tokens, prompt length, cut, intervention): the cut before a token of the response, or an empty response."""
    prompt = draw(st.lists(IDS, min_size=1, max_size=20))
    response = draw(st.lists(IDS, max_size=40))
    cut = len(prompt) + draw(st.integers(0, max(0, len(response) - 1)))
    return prompt + response, len(prompt), cut, draw(st.lists(IDS, min_size=1, max_size=30))


@settings(max_examples=60, deadline=None)
@given(st.lists(traces(), max_size=12))
def test_splice_is_concatenation(rows):
    got = Engine.splice(*zip(*rows, strict=True)) if rows else Engine.splice([], [], [], [])
    assert len(got) == len(rows)
    for ids, (tokens, _, cut, inserted) in zip(got, rows, strict=True):
        assert ids.tolist() == tokens[:cut] + inserted  # nothing is lost, clipped or padded


def test_cut_at_the_first_step_keeps_the_prompt_alone():
    [ids] = Engine.splice([[7, 8, 9, 9]], [2], [2], [[5, 0, 5]])
    assert ids.tolist() == [7, 8, 5, 0, 5]


def test_widths_that_fill_a_bucket():
    tokens, inserted = list(range(64)), [1] * 32
    [ids] = Engine.splice([tokens], [3], [63], [inserted])
    assert ids.tolist() == tokens[:63] + inserted


GOOD = ([1, 2, 3, 4], 2, 3, [5])


@settings(deadline=None)
@given(st.integers(0, 5), st.integers(-3, 9), st.lists(IDS, max_size=2))
def test_what_cannot_be_spliced_is_refused_with_its_row(before, cut, inserted):
    rows = [GOOD] * before + [([1, 2, 3, 4], 2, cut, inserted), GOOD]
    if 2 <= cut < 4 and inserted:
        Engine.splice(*zip(*rows, strict=True))
    elif cut != 4:
        named = f"row {before}: (cut {cut} is outside the response|the intervention is empty)"
        with pytest.raises(ValueError, match=named):
            Engine.splice(*zip(*rows, strict=True))


def test_a_cut_behind_the_last_step_is_out_of_range():
    with pytest.raises(ValueError, match="row 0: cut 4 is outside the response"):
        Engine.splice([[1, 2, 3, 4]], [2], [4], [[5]])


def test_lists_of_different_lengths_are_refused():
    with pytest.raises(ValueError):
        Engine.splice([[1, 2]], [1], [1], [])


def test_shapes_are_checked():
    ints = np.zeros(2, np.int32)
    with pytest.raises(ValueError, match="axis B"):
        splice(np.zeros((2, 4), np.int32), np.zeros(3, np.int32), np.zeros((2, 3), np.int32), ints)


# --- where steps end ---


@pytest.fixture(scope="module")
def tokenizer(tiny_dir):
    return Tokenizer(tiny_dir)


def parts(tokenizer, ids, start=0):
    ends = tokenizer.step_ends(ids, start)
    return [tokenizer.decode(ids[a:b]) for a, b in itertools.pairwise((start, *ends))]


NEWLINES = ["\n", "\n\n", "\n\n\n", ".\n"]
PIECES = st.lists(st.sampled_from(["a", "7 + 5", " ", *NEWLINES, "<|im_end|>", "\\boxed{"]), max_size=12)


def split(tokenizer, pieces):
    """The pieces encoded apart, so that a run of newlines is cut in more than one way; <|im_end|> is the stop token."""
    end = "<|im_end|>"
    parts = [part for piece in pieces for part in re.split(f"({re.escape(end)})", piece)]
    return [i for part in parts for i in (tokenizer.stop_ids[:1] if part == end else tokenizer.encode(part))]


def test_joining_the_steps_gives_back_the_ids(tokenizer):
    @settings(max_examples=200, deadline=None)
    @given(PIECES, st.integers(0, 3))
    def run(pieces, start):
        ids = split(tokenizer, pieces)
        start = min(start, len(ids))
        ends = tokenizer.step_ends(ids, start)
        assert list(ends) == sorted(set(ends)) and all(start < e <= len(ids) for e in ends)
        assert [i for a, b in itertools.pairwise((start, *ends)) for i in ids[a:b]] == ids[start:]

    run()


def test_steps_are_the_chunks_between_blank_lines(tokenizer):
    """Against a regular expression: text, the blank line after it and any newlines that follow."""

    @settings(max_examples=200, deadline=None)
    @given(st.lists(st.sampled_from(["a", "7", "+", *NEWLINES]), max_size=14))
    def run(pieces):
        text = "".join(pieces)
        expected = re.findall(r"\n*.(?:.|\n(?!\n))*(?:\n\n+|\n*\Z)", text) or [text] * bool(text)
        assert parts(tokenizer, split(tokenizer, pieces)) == expected

    run()


@pytest.mark.parametrize(
    "text, steps",
    [
        ("a\n\nb\n\nc", ["a\n\n", "b\n\n", "c"]),
        ("a\n\nb\n\nc\n\n", ["a\n\n", "b\n\n", "c\n\n"]),
        ("a\n\n\n\n\nb", ["a\n\n\n\n\n", "b"]),
        ("a\nb", ["a\nb"]),
        ("a", ["a"]),
        ("", []),
        ("a\n\nb<|im_end|>", ["a\n\n", "b<|im_end|>"]),
        ("a\n\nb\n\n<|im_end|>", ["a\n\n", "b\n\n<|im_end|>"]),
        ("a\n\n\n<|im_end|>", ["a\n\n\n<|im_end|>"]),
        ("<|im_end|>", ["<|im_end|>"]),
        ("\n\na\n\nb", ["\n\na\n\n", "b"]),
        ("\n\nab\n\nc", ["\n\nab\n\n", "c"]),
    ],
)
def test_steps(tokenizer, text, steps):
    assert parts(tokenizer, split(tokenizer, [text])) == steps


@pytest.mark.parametrize(
    "run", [["\n"] * 2, ["\n\n"], ["\n", "\n\n"], ["\n\n", "\n"], ["\n"] * 5, [".\n", "\n"]]
)
def test_a_run_of_newlines_however_cut_stays_with_the_step_before(tokenizer, run):
    ids = split(tokenizer, ["a", *run, "b"])
    assert parts(tokenizer, ids) == ["a" + "".join(run), "b"]


def test_the_prompt_s_newlines_are_no_steps(tokenizer):
    prompt, response = tokenizer.encode("p\n\nq\n"), tokenizer.encode("a\n\nb")
    ends = tokenizer.step_ends(prompt + response, len(prompt))
    assert [e - len(prompt) for e in ends] == list(tokenizer.step_ends(response)) == [2, 3]


def test_a_wrong_attempt_is_cut_at_any_step(tokenizer):
    """Prefix ids come back as sampled, and the spliced trace has the earlier steps, then the intervention."""
    domain = Arithmetic(tokenizer)
    prompt = tokenizer.render([{"role": "user", "content": "Start with 7, add 5, times 3."}])
    response = split(tokenizer, ["7 + 5 = 12\n\n12 x 3 = 35\n\n\\boxed{35}<|im_end|>"])
    ids, new = prompt + response, tokenizer.encode("12 x 3 = 36\n\n")
    ends = domain.steps(ids, len(prompt))
    assert len(ends) == 3 and ends[-1] == len(ids)
    for step, cut in enumerate((len(prompt), *ends[:-1])):
        [out] = Engine.splice([ids], [len(prompt)], [cut], [new])
        assert out[:cut].tolist() == ids[:cut]
        assert domain.steps(out, len(prompt)) == (*ends[:step], len(out))


def test_text_survives_the_tokenizer(tokenizer):
    @settings(deadline=None)
    @given(st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40))
    def run(text):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text == "".join(tokenizer.pieces(ids))
        assert all(0 <= i < tokenizer.vocab for i in ids)

    run()


def test_chat_rendering_leaves_the_assistant_s_turn_open(tokenizer):
    ids = tokenizer.render([{"role": "user", "content": "Start with 7, add 5."}])
    text = "<|im_start|>user\nStart with 7, add 5.<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(ids) == text
    assert [tokenizer.decode([i]) for i in tokenizer.stop_ids] == ["<|im_end|>"]
    assert tokenizer.text([*tokenizer.encode("a"), *tokenizer.stop_ids]) == "a"
    assert tokenizer.pad_id not in tokenizer.stop_ids
