from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from int_jax import dims
from int_jax.dims import KEY, check, suffix

LETTERS = st.text(st.sampled_from(sorted(KEY)), min_size=1, max_size=5)
WORDS = st.from_regex(r"[a-z][a-z0-9]{0,6}(_[a-z0-9]{1,4})?", fullmatch=True)


@settings(deadline=None)
@given(WORDS, LETTERS)
def test_a_suffix_is_what_follows_the_last_underscore(word, letters):
    assert suffix(f"{word}_{letters}") == letters
    assert suffix(word) == suffix(word.upper()) * 0 == ""


@pytest.mark.parametrize(
    "name", ["", "_", "seed", "D", "BTD", "q_", "q_Dx", "q_dhk", "q_D1", "A_DECODE", "max_len"]
)
def test_names_without_a_shape(name):
    assert suffix(name) == ""


class Pair(NamedTuple):
    left_BT: Any
    right_BD: Any
    note: Any = None


@check
def mix(hidden_BTD, head_DV=None, pair=None, table=None, pieces_BT=(), seed=0):
    return hidden_BTD


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from("BTDV"), st.integers(0, 4), min_size=4))
def test_any_sizes_pass_where_each_letter_has_one(size):
    def made(letters):
        return np.zeros([size[letter] for letter in letters])

    pair = Pair(made("BT"), made("BD"), note=np.zeros(7))
    hidden = made("BTD")
    assert (
        mix(hidden, made("DV"), pair, {"embed_VD": made("VD")}, [made("BT"), made("BT")], np.zeros(9))
        is hidden
    )


@pytest.mark.parametrize(
    "arguments",
    [
        {"head_DV": np.zeros((5, 7))},
        {"pair": Pair(np.zeros((2, 3)), np.zeros((2, 5)))},
        {"table": {"layer": {"scale_D": np.zeros(5)}}},
        {"table": [{"scale_D": np.zeros(5)}]},
        {"pieces_BT": [np.zeros((2, 3)), np.zeros((2, 5))]},
    ],
    ids=["argument", "namedtuple", "mapping", "mapping-in-list", "list"],
)
def test_a_size_that_disagrees_is_named(arguments):
    axis = "T" if "pieces_BT" in arguments else "D"
    with pytest.raises(
        ValueError, match=rf"mix: axis {axis} \({KEY[axis].split()[0]}.* has size 5, .* it is \d"
    ):
        mix(np.zeros((2, 3, 4)), **arguments)


@pytest.mark.parametrize("shape", [(), (2,), (2, 3), (2, 3, 4, 1)])
def test_a_wrong_rank_is_named(shape):
    with pytest.raises(
        ValueError, match=r"mix: hidden_BTD names 3 axes but has shape \(" + ", ".join(map(str, shape))
    ):
        mix(np.zeros(shape))


def test_one_letter_twice_in_a_name():
    @check
    def same(mask_BTT):
        return mask_BTT

    same(np.zeros((2, 3, 3)))
    with pytest.raises(ValueError, match=r"axis T .* has size 4"):
        same(np.zeros((2, 3, 4)))


def test_the_result_is_checked_against_the_arguments():
    @check
    def turned_DB(hidden_BD):
        return hidden_BD

    @check
    def pair(hidden_BD):
        return Pair(np.zeros((2, 3)), np.zeros((2, 9)))

    turned_DB(np.zeros((3, 3)))
    with pytest.raises(ValueError, match=r"axis D .* of turned_DB has size 2"):
        turned_DB(np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"axis D .* of right_BD has size 9"):
        pair(np.zeros((2, 3)))


def test_letters_are_bound_anew_in_each_call():
    assert mix(np.zeros((1, 2, 3))).shape == (1, 2, 3)
    assert mix(np.zeros((4, 5, 6))).shape == (4, 5, 6)


def test_it_costs_nothing_once_traced(monkeypatch):
    def plain(hidden_BD, scale_D):
        return hidden_BD * scale_D[None]

    checked, matches = jax.jit(check(plain)), []
    match = dims._match
    monkeypatch.setattr(dims, "_match", lambda *a: matches.append(a[0]) or match(*a))
    arguments = jnp.ones((2, 3)), jnp.ones(3)
    assert str(jax.make_jaxpr(check(plain))(*arguments)) == str(jax.make_jaxpr(plain)(*arguments))
    matches.clear()
    for _ in range(3):
        checked(*arguments)
    assert matches == ["hidden_BD", "scale_D", "plain"]  # once, while tracing
    with pytest.raises(ValueError, match="axis D"):
        checked(jnp.ones((2, 3)), jnp.ones(4))


def test_the_wrapper_keeps_the_function_s_name():
    assert mix.__name__ == "mix" and mix.__wrapped__(1) == 1
