"""The proposer's output format.

A "trap" is a fault of the released scripts:
1 prompts cut at 30,000 tokens; 2 locations without bounds; 3 empty interventions kept; 4 a leak test by substring;
5 one location without a number ends the attempt; 10 steps that do not join to what they were.
"""

import contextlib
import dataclasses
import json
import signal
import types
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from int_jax.proposers import DROPS, Drops, fault, screen
from int_jax.proposers.parse import parse_intervention
from int_jax.types import Intervention


def block(body: str) -> str:
    return f"<intervention>{body}</intervention>"


def parsed(text: str):
    """(location as written, content) of the block that is read, or None."""
    one = parse_intervention(text)
    return one and (one.step + 1, one.text)


@contextlib.contextmanager
def within(seconds: float):
    """TimeoutError, raised even inside a regular expression, where the body takes more processor time than this."""

    def late(*_):
        raise TimeoutError(f"took more than {seconds} s")

    old = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, old)


# --- what is well-formed comes back exactly ---

LATEX = [
    r"\frac{1}{2}",
    r"\times",
    r"\nu",
    r"\theta",
    r"\boxed{7}",
    r"\neq",
    r"\rho",
    r"\beta",
    r"\text{if}",
    r"\right)",
]
LATEX += [r"\cdot", r"\alpha", r"\underline{x}", r"\forall", r"\not"]
PIECES = [
    *LATEX,
    "\\\\",
    "12 + 3 = 15",
    "x",
    "Then",
    " ",
    ",",
    ":",
    "{",
    "}",
    "'",
    "é",
    "\n\n",
    "$",
    "location",
    "(a)",
]
CONTENTS = st.lists(st.sampled_from([*PIECES, '"']), min_size=1, max_size=8).map("".join)
STYLES = {
    "json": lambda location, content: json.dumps({"location": location, "content": content}),
    "json, content first": lambda location, content: json.dumps({"content": content, "location": location}),
    "json, indented": lambda location, content: (
        "\n" + json.dumps({"location": location, "content": content}, indent=4) + "\n"
    ),
    "json, utf-8": lambda location, content: json.dumps(
        {"location": location, "content": content}, ensure_ascii=False
    ),
    "python": lambda location, content: repr({"location": location, "content": content}),
    "python, content first": lambda location, content: repr({"content": content, "location": location}),
}


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(STYLES)), st.integers(-3, 10**6), CONTENTS)
def test_a_well_formed_block_comes_back_verbatim(style, location, content):
    assert parsed(f"log\n{block(STYLES[style](location, content))} tail") == (location, content.strip())


@settings(max_examples=300, deadline=None)
@given(
    st.booleans(),
    st.sampled_from(['{"location": %d, "content": "%s"}', '{"content": "%s", "location": %d}']),
    st.integers(0, 99),
    st.lists(st.sampled_from([*LATEX, "x", " ", "12", "+", "(", "{a}", "é"]), min_size=1, max_size=6).map(
        " ".join
    ),
)
def test_latex_whose_backslashes_were_not_escaped_survives(single, pattern, location, content):
    r"""A model writes LaTeX as it reads: `\frac`, not `\\frac`. No form feed, tab or line break comes of it."""
    values = (location, content) if pattern.startswith('{"location') else (content, location)
    body = (pattern.replace('"', "'") if single else pattern) % values
    assert parsed(block(body)) == (location, content.strip())


@pytest.mark.parametrize("command", LATEX)
def test_each_command_both_ways(command):
    for body in (command, command.replace("\\", "\\\\")):
        for quote in "\"'":
            text = block(f"{{{quote}location{quote}: 3, {quote}content{quote}: {quote}so {body} is{quote}}}")
            assert parsed(text) == (3, f"so {command} is"), text


def test_escaped_latex_beside_a_location_that_needs_repair():
    assert parsed(block(r'{"location": Step 3, "content": "\\frac{1}{2}"}')) == (3, r"\frac{1}{2}")


def test_newline_escapes_are_line_breaks():
    assert parsed(block(r'{"location": 3, "content": "First.\n\nThen 4.\n5"}')) == (3, "First.\n\nThen 4.\n5")


def test_reading_prints_nothing():
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert parsed(block(r"{'location': 3, 'content': 'a \cdot b \( c'}")) == (3, r"a \cdot b \( c")
    assert not seen


# --- which block ---


def good(location: int, content: str = "x") -> str:
    return block(json.dumps({"location": location, "content": content}))


@settings(deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=4))
def test_the_last_block_wins(locations):
    text = "\n".join(f"draft {good(n, f'step {n}')}" for n in locations)
    assert parsed(text) == (locations[-1], f"step {locations[-1]}")
    assert parse_intervention(text).raw == text


def test_an_open_draft_does_not_swallow_the_final_block():
    assert parsed(f'<intervention>{{"location": 1, "content": "dra\n{good(4)}') == (4, "x")


def test_the_last_block_wins_even_if_it_cannot_be_read():
    assert parsed(good(1) + block("nothing here")) is None


@pytest.mark.parametrize(
    "text", ["", "no block", "<intervention>", "</intervention>", '<intervention>{"location": 1']
)
def test_no_block(text):
    assert parsed(text) is None


def test_the_tag_in_another_case_and_on_lines_of_its_own():
    assert parsed('<Intervention>\n    {"location": 2,\n     "content": "x"}\n</INTERVENTION>') == (2, "x")


# --- locations ---


@pytest.mark.parametrize(
    ("written", "location"),
    [
        *[
            ("12", 12),
            ('"12"', 12),
            ("12.0", 12),
            ('"Step 12"', 12),
            ('"Substep 12"', 12),
            ('"step 12: the product"', 12),
        ],
        *[
            ("Step 12", 12),
            ("Substep 12", 12),
            ("sub step 12", 12),
            ("-3", -3),
            ('"-3"', -3),
            ("0", 0),
            ('"Steps 3-4"', 3),
        ],
        *[
            ('"Step-12"', 12),  # a hyphen after a word is no minus
            ("Step-12", 12),
            ('"step 7–9"', 7),
            ('"[12]"', 12),
            ("[12]", 12),
            ('"(-3)"', -3),
        ],
        *[("null", None), ('"none"', None), ('""', None), ("true", None), ("[]", None), ("nowhere", None)],
    ],
)
def test_locations(written, location):
    for body in (f'{{"location": {written}, "content": "x"}}', f'{{"content": "x", "location": {written}}}'):
        assert parsed(block(body)) == (None if location is None else (location, "x"))


@pytest.mark.parametrize("written", ["null", '"none"', '"N/A"', "N/A", "none", '""'])
def test_an_empty_content_needs_no_location(written):
    """A checker that finds nothing wrong: counted as empty, not as unparsed."""
    one = parse_intervention(block(f'{{"location": {written}, "content": ""}}'))
    assert (one.text, fault(DOMAIN, TRACE, one)) == ("", "empty")
    assert parsed(block(f'{{"location": {written}, "content": "x"}}')) is None


@pytest.mark.parametrize(
    "body", ['{"content": "x"}', '{"location": 3}', '{"location": 3, "content": 5}', "{}", "[]", "3"]
)
def test_a_block_without_both_fields(body):
    assert parsed(block(body)) is None


# --- contents that are no legal literal ---


@pytest.mark.parametrize(
    "content",
    [
        'so "x" is 4',
        'he wrote "3", then 4',
        "line one\nline two",
        "one\n\ntwo",
        'a "b"\nc',
        r"\frac{{1}}{2} {x}",
        "it's 4",
    ],
)
def test_unescaped_quotes_line_breaks_and_nested_braces(content):
    for body in (f'{{"location": 3, "content": "{content}"}}', f'{{"content": "{content}", "location": 3}}'):
        assert parsed(block(body)) == (3, content)


@pytest.mark.parametrize("fence", ["```json\n%s\n```", "\n```\n%s\n```\n", "```JSON\n%s```"])
@pytest.mark.parametrize("content", ["x", "a \\frac{1}{2}", 'so "x"', "it's"])
def test_a_code_fence_within_the_block(fence, content):
    for body in (f'{{"location": 3, "content": "{content}"}}', f'{{"content": "{content}", "location": 3}}'):
        assert parsed(block(fence % body)) == (3, content)


@pytest.mark.parametrize("content", ["x", "line one\nline two", 'so "x" is', r"a \frac12", "it's"])
@pytest.mark.parametrize("comma", [",", " , ", ",\n"])
def test_a_trailing_comma(content, comma):
    for body in (
        f'{{"location": 3, "content": "{content}"{comma}}}',
        f'{{"content": "{content}", "location": 3{comma}}}',
    ):
        assert parsed(block(body)) == (3, content)


def test_single_quotes_around_latex_and_an_apostrophe():
    assert parsed(block(r"{'location': 3, 'content': 'Euler\'s $\frac{1}{2}$'}")) == (
        3,
        r"Euler's $\frac{1}{2}$",
    )
    assert parsed(block("{'location': 3, 'content': 'Euler's $x$'}")) == (3, "Euler's $x$")


def test_backslashes_doubled_once_too_often():
    body = r'{"location": 3, "content": "\\\\frac{1}{2}, \\\\sqrt 2 and \\\\text{if}"}'
    assert parsed(block(body)) == (3, r"\frac{1}{2}, \sqrt 2 and \text{if}")
    rows = r"\begin{pmatrix} 1 \\ 2 \\\frac12 \end{pmatrix}"  # a line break of LaTeX stays one
    assert parsed(block(json.dumps({"location": 3, "content": rows}))) == (3, rows)


def test_a_line_break_before_a_word_that_ends_a_command():
    r"""`\ni = 3` is a line break and "i = 3" where the other backslashes are doubled, the command \ni where none is."""
    assert parsed(block(r'{"location": 3, "content": "$\\frac12$\ni = 3"}')) == (3, "$\\frac12$\ni = 3")
    assert parsed(block(r'{"location": 3, "content": "$\frac12 \ni x$"}')) == (3, r"$\frac12 \ni x$")


def test_drafts_before_the_final_block():
    text = (
        'Draft: <intervention>{"location": 1, "content": "x = 5"}</intervention> contains the answer.\n'
        'Again: `<intervention>{"location": 2, "content": "y"}</intervention>`\n### 5\n'
        + good(7, "Expand $(a+b)^2$.\n\nThen compare:\n\n$$c$$")
    )
    assert parsed(text) == (7, "Expand $(a+b)^2$.\n\nThen compare:\n\n$$c$$")


# --- nothing raises, nothing is slow ---

FRAGMENTS = [
    "<intervention>",
    "</intervention>",
    "{",
    "}",
    "[",
    "]",
    '"location"',
    '"content"',
    "'content'",
    ":",
    ",",
    " ",
]
FRAGMENTS += [
    '"',
    "'",
    "\\",
    "\\n",
    "\n",
    "Step 3",
    "12",
    "-",
    "1e999",
    "x",
    "\0",
    "\ud800",
    '"""',
    "f'",
    "{{",
    "}}",
    "(",
    "b'a'",
]


@settings(max_examples=500, deadline=None)
@given(st.text(max_size=30) | st.lists(st.sampled_from(FRAGMENTS), max_size=25).map("".join), st.booleans())
def test_garbage_never_raises(text, inside):
    one = parse_intervention(block(text) if inside else text)
    assert one is None or (isinstance(one, Intervention) and isinstance(one.step, int) and one.ids == ())


@pytest.mark.parametrize(
    "body", ['{{"location": 3, "content": "x"}}', '{["location"]: 3}', "{{}}", '{"location": 3, **{}}']
)
def test_a_literal_that_cannot_be_built_is_dropped(body):
    """`ast.literal_eval` raises TypeError for an unhashable key: a template's doubled braces are such a set."""
    assert parsed(block(body)) in (None, (3, "x"))


N = 100_000
HOSTILE = {
    "a megabyte of braces": block("{" * 1_000_000),
    "a megabyte of brackets": block("[" * 1_000_000),
    "a megabyte of braces in a content": block('{"location": 1, "content": "' + "{" * 1_000_000),
    "nested lists": block('{"location": ' + "[" * N + "]" * N + ', "content": "x"}'),
    "many minus signs": block("-" * N + "1"),
    "unclosed blocks": "<intervention>" * N,
    "closings": "</intervention>" * N,
    "unclosed contents": block('{"content": "' * N),
    "unclosed locations": block('{"location" ' * N),
    "unclosed fields with spaces": block('"content"' + " " * N),
    "quotes": block('{"content": ' + '" ' * N),
    "quotes, then spaces": block('{"content": "' + '"' + " " * N + "x"),
    "backslashes": block('{"location": 1, "content": "' + "\\" * (10 * N + 1) + '"}'),
    "a location in words": block(
        '{"location": there is no critical error in any of the steps above, "content": ""}'
    ),
    "a location of one long word": block('{"location": ' + "a" * N + ', "content": "x"}'),
    "a location of many digits": block('{"location": ' + "9" * N + ', "content": "x"}'),
    "a quoted location of many digits": block('{"location": "' + "9" * N + '", "content": "x"}'),
    "line breaks": block("\n" * 10 * N),
    "fences": block("```\n" * N),
    "doubled backslashes before a letter": block('{"location": 1, "content": "' + "\\\\a" * N + '"}'),
    "spaces": block((" " * 100 + "\n") * N),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_outputs_cost_linear_time(name):
    with within(60):  # of processor time; each takes a tenth of a second, in quadratic time hours
        parse_intervention(HOSTILE[name])


# --- fault and screen ---

DOMAIN = types.SimpleNamespace(leaks=lambda task, text: "answer" in text)
TRACE = types.SimpleNamespace(task=None, step_ends=(5, 9, 12))  # three steps


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (good(1), None),
        (good(3), None),
        (good(0), "out_of_range"),  # trap 2: released code keeps all but the last step
        (good(4), "out_of_range"),  # trap 2: released code puts it after the wrong final answer
        (good(-1), "out_of_range"),
        (good(10**12), "out_of_range"),
        (good(2, ""), "empty"),  # trap 3
        (good(2, " \n "), "empty"),
        (good(0, ""), "empty"),
        (good(2, "the answer"), "leaked"),
        (block('{"location": "here", "content": "x"}'), "unparsed"),  # trap 5
        ("no block", "unparsed"),
    ],
)
def test_faults(text, reason):
    assert fault(DOMAIN, TRACE, parse_intervention(text)) == reason
    assert reason is None or reason in DROPS


CANDIDATES = {
    "unparsed": None,
    "out_of_range": Intervention(3, "x"),
    "empty": Intervention(0, ""),
    "leaked": Intervention(0, "answer"),
    None: Intervention(1, "x"),
}


@settings(deadline=None)
@given(st.lists(st.sampled_from(list(CANDIDATES)), min_size=1, max_size=6), st.integers(0, 9))
def test_screen_takes_the_first_usable_and_else_notes_the_first_fault(reasons, index):
    candidates = [
        CANDIDATES[r] and dataclasses.replace(CANDIDATES[r], raw=str(k)) for k, r in enumerate(reasons)
    ]
    drops = Drops()
    taken = screen(DOMAIN, index, TRACE, candidates, drops)
    if None in reasons:
        assert taken is candidates[reasons.index(None)] and drops == {}
    else:
        assert taken is None and drops == {index: reasons[0]}
    assert [told["fault"] for told in drops.tried[index]] == [reason or "" for reason in reasons]


def test_an_unreadable_location_costs_one_candidate_not_the_others():
    """Trap 5: in the released code it ends the attempt, with its later candidates."""
    texts = [block('{"location": "unclear", "content": "x"}'), good(2, "y")]
    assert screen(DOMAIN, 0, TRACE, [parse_intervention(t) for t in texts], Drops()) == parse_intervention(
        texts[1]
    )
