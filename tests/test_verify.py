import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from int_jax.verify import Pool, last_boxed, verify, verify_batch

ROOT = pathlib.Path(__file__).parents[1]
TOWER = "9^{9^{9^{9}}}"  # math-verify does not come back from this one


def boxed(answer):
    return f"Hence \\boxed{{{answer}}}."


def reasons(pool, pairs):
    verdicts = pool.verify_batch([(boxed(answer), gold) for answer, gold in pairs])
    return [verdict.reason for verdict in verdicts]


def alive(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def dies_within(seconds, pid):
    end = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.05)
    return not alive(pid)


# --- the box ---


def matched_recursively(text):
    _, box, tail = text.rpartition("\\boxed{")

    def closing(at):
        while at < len(tail):
            if tail[at] == "}":
                return at
            if tail[at] == "{":
                inner = closing(at + 1)
                if inner is None:
                    return None
                at = inner
            at += 2 if tail[at] == "\\" else 1
        return None

    end = closing(0) if box else None
    return None if end is None else tail[:end]


PIECES = st.sampled_from(["\\boxed{", "\\boxed", "{", "{{", "}", "}}", "\\", "\\{", "\\}", "\n", "5", " "])


@settings(max_examples=500)
@given(st.lists(PIECES, max_size=30).map("".join))
def test_last_boxed_equals_the_recursive_matcher(text):
    assert last_boxed(text) == matched_recursively(text)


@pytest.mark.parametrize(
    "text, content",
    [
        ("\\boxed{1} then \\boxed{\\frac{1}{2}}.", "\\frac{1}{2}"),
        ("\\boxed{\\left\\{ 1 \\right.}", "\\left\\{ 1 \\right."),
        ("\\boxed{x = \\boxed{5}}", "5"),
        ("\\boxed{}", ""),
        ("\\boxed{1} then \\boxed{2", None),
        ("\\fbox{1}", None),
        ("", None),
    ],
)
def test_last_boxed(text, content):
    assert last_boxed(text) == content


BRACES = ["{" * 10**7, "{" * 5_000_000 + "}" * 4_999_999, "\\boxed{" * 1_400_000, "\\{" * 5_000_000]


@pytest.mark.parametrize("body", BRACES, ids=["open", "nested", "boxes", "escaped"])
def test_ten_megabytes_of_braces_take_linear_time(body):
    start = time.monotonic()
    assert last_boxed("\\boxed{" + body) is None
    assert time.monotonic() - start < 10


# --- numbers, in this process ---


@pytest.fixture
def unstaffed(monkeypatch):
    """A pool that may not start a worker."""
    pool = Pool()
    monkeypatch.setattr(pool, "_feed", lambda *_: pytest.fail("a worker was asked"))
    return pool


NUMBERS = st.integers(-(10**30), 10**30)


@pytest.mark.parametrize("same", [True, False])
def test_integers_are_compared_exactly(unstaffed, same):
    @given(NUMBERS, NUMBERS)
    def compare(a, b):
        expected = "correct" if same or a == b else "wrong"
        assert reasons(unstaffed, [(f" {a:+} ", str(a if same else b))]) == [expected]

    compare()


def test_equal_numbers_in_other_clothes(unstaffed):
    @given(st.integers(-(10**9), 10**9), st.integers(1, 10**9), st.integers(1, 99), NUMBERS)
    def compare(p, q, m, hundredths):
        assert reasons(unstaffed, [(f"{p * m}/{q * m}", f"{p}/{q}")]) == ["correct"]
        decimal = f"{'-' * (hundredths < 0)}{abs(hundredths) // 100}.{abs(hundredths) % 100:02}"
        assert reasons(unstaffed, [(decimal, str(Fraction(hundredths, 100)))]) == ["correct"]

    compare()


def test_thousands_separators_only_where_no_list_can_be_meant(unstaffed):
    sure = [("1,000", "1000"), ("-12,045.50", "-12045.5"), ("1,000,000", "1000000")]
    assert reasons(unstaffed, sure) == ["correct"] * 3
    for ambiguous in ("1,234", "1,0", "01,000", "1,0000"):
        with pytest.raises(pytest.fail.Exception):
            reasons(unstaffed, [(ambiguous, ambiguous.replace(",", ""))])


def test_what_needs_no_worker(unstaffed):
    long = "x" * 1_001
    assert reasons(unstaffed, [("2  cats\n", "2 cats"), ("5.", "5")]) == ["correct"] * 2
    assert reasons(unstaffed, [("", "5"), (" \n", "5")]) == ["no_answer"] * 2
    assert reasons(unstaffed, [(long, "5"), (long, long), ("5", long)]) == ["unparsable"] * 3
    assert reasons(unstaffed, [(" " * 10**6 + "x", "y")]) == ["unparsable"]
    unboxed = [("so 5", "5"), ("\\boxed{5", "5"), ("", "5")]
    assert unstaffed.verify_batch(unboxed) == [(False, 0.0, "no_answer")] * 3
    assert unstaffed.verify_batch([("\\boxed{5} \\boxed{6", "5"), (boxed("5"), "5")]) == [
        (False, 0.0, "no_answer"),
        (True, 1.0, "correct"),
    ]
    assert unstaffed.verify_batch([]) == []


def test_an_empty_gold_answer_is_refused():
    with pytest.raises(ValueError, match="pair 1 has an empty gold answer ' '"):
        Pool().verify_batch([(boxed("5"), "5"), (boxed("5"), " ")])


# --- math-verify, in workers ---


@pytest.fixture(scope="module")
def pool():
    with Pool(workers=2, deadline_s=3) as pool:
        yield pool


def test_math_verify_decides_the_rest(pool):
    assert reasons(
        pool,
        [
            ("\\frac{1}{2}", "0.5"),
            ("1,234", "1234"),
            ("x^2+2x+1", "(x+1)^2"),
            ("2\\sqrt2", "$\\sqrt{8}$"),
            ("x=5", "5"),
            ("0.333333", "1/3"),
            ("0.33", "1/3"),
            ("\\text{Bob}", "Evelyn"),
            ("\\{1,2\\}", "\\{2,1\\}"),
            ("(1,2)", "(2,1)"),
            ("3, 4, 5", "5"),
            # A box is read whole or not at all: its last number alone is no answer.
            ("3 or maybe \\foo{4} or 5", "5"),
            ("+", "5"),
        ],
    ) == ["correct"] * 6 + ["wrong", "wrong", "correct", "wrong", "wrong", "unparsable", "unparsable"]


@settings(max_examples=5, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 99), st.integers(1, 99), st.integers(0, 1)), max_size=12))
def test_a_batch_keeps_its_order(pool, terms):
    pairs = [(f"{a}x+{b}", f"{b + off}+{a}x") for a, b, off in terms]
    assert reasons(pool, pairs) == ["wrong" if off else "correct" for _, _, off in terms]


def test_hostile_answers_cost_one_verdict_each(pool, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    deep = "\\frac{" * 60 + "1" + "}{2}" * 60
    hostile = {
        "9**9**9**9": {"unparsable"},
        TOWER: {"timeout"},
        "{" * 5_000_000 + "}" * 5_000_000: {"unparsable"},
        f"__import__('os').system('touch {tmp_path}/X')": {"unparsable", "wrong"},
        "__import__('os').system('touch X')": {"unparsable", "wrong"},
        deep: {"timeout", "wrong"},
        "5\x00": {"unparsable", "wrong"},
        "5\ud800": {"unparsable", "wrong"},
        "\x00\n\r\u2028\udfff": {"unparsable", "wrong"},
    }
    got = reasons(pool, [pair for answer in hostile for pair in [(answer, "5"), ("1+x", "x+1")]])
    for (answer, expected), reason in zip(hostile.items(), got[::2], strict=True):
        assert reason in expected, ascii(answer[:40])
    assert got[1::2] == ["correct"] * len(hostile)
    assert list(tmp_path.iterdir()) == []


def test_workers_are_kept_and_import_no_jax():
    ballast = np.ones(1200 << 20, np.uint8)  # a caller above RETIRE_BYTES: that is not its workers' memory
    with Pool(workers=2, deadline_s=60) as pool:
        del ballast
        reasons(pool, [("1+x", "x+1")])
        before = pool.pids()
        reasons(pool, [("1+x", "x+1")] * 4)
        assert before and set(before) <= set(pool.pids())
        assert not any("jaxlib" in pathlib.Path(f"/proc/{pid}/maps").read_text() for pid in pool.pids())


def test_a_worker_killed_from_outside():
    with Pool(workers=1, deadline_s=60) as pool:
        assert reasons(pool, [("1+x", "x+1")]) == ["correct"]
        (pid,) = pool.pids()
        os.kill(pid, signal.SIGKILL)  # between items it costs nothing
        assert dies_within(5, pid)
        assert reasons(pool, [("1+x", "x+1")]) == ["correct"]
        (pid,) = pool.pids()
        start = time.monotonic()
        threading.Timer(0.5, os.kill, (pid, signal.SIGKILL)).start()  # within an item it costs that item
        assert reasons(pool, [(TOWER, "5"), ("1+x", "x+1")]) == ["timeout", "correct"]
        assert time.monotonic() - start < 30
        assert pid not in pool.pids() and len(pool.pids()) == 1


# --- a stand-in for math_verify, that starts at once and misbehaves on command ---

FAKE = """
import mmap, os, signal, subprocess, time
LatexExtractionConfig = object
def parse(text, *_, parsing_timeout): return [text[7:-1], 0]
def verify(golds, answers, timeout_seconds):
    answer = answers[0]
    if answer == "segfault": os.kill(os.getpid(), signal.SIGSEGV)
    if answer == "exit": os._exit(0)
    if answer == "raise": raise MemoryError
    if answer == "allocate": mmap.mmap(-1, 8 << 30)
    if answer == "grow": b"x" * (1200 << 20)
    if answer == "print": print("c+" * 100_000, flush=True)
    if answer == "hang": time.sleep(60)
    if answer.startswith("child "):
        child = subprocess.Popen(["sleep", "60"])
        open(answer[6:], "w").write(str(child.pid))
        time.sleep(60)
    return answer == "x"
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    (tmp_path / "math_verify.py").write_text(FAKE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def test_a_dying_worker_costs_a_verdict(fake):
    deaths = ["segfault", "exit", "raise", "allocate"]
    with Pool(workers=1, deadline_s=20) as pool:
        pairs = [pair for death in deaths for pair in [(death, "y"), ("x", "y")]]
        assert reasons(pool, pairs) == ["timeout", "correct"] * 4
        assert reasons(pool, [("print", "y"), ("x", "y"), ("z", "y")]) == ["wrong", "correct", "wrong"]


def test_a_worker_is_replaced_after_its_share_or_after_it_grew(fake):
    with Pool(workers=1, deadline_s=20, max_items=3) as pool:
        seen = [(*reasons(pool, [("x", "y")]), *pool.pids()) for _ in range(7)]
        assert [reason for reason, *_ in seen] == ["correct"] * 7
        assert [len(pids) for _, *pids in seen] == [1, 1, 0, 1, 1, 0, 1]
        assert reasons(pool, [("grow", "y")]) == ["wrong"] and pool.pids() == []


def test_the_deadline_kills_one_worker_and_its_children(fake, tmp_path):
    with Pool(workers=2, deadline_s=2) as pool:
        start = time.monotonic()
        pairs = [("x", "y"), (f"child {tmp_path}/pid", "y"), ("x", "y"), ("hang", "y"), ("x", "y")]
        assert reasons(pool, pairs) == ["correct", "timeout", "correct", "timeout", "correct"]
        assert time.monotonic() - start < 12
    assert dies_within(2, int((tmp_path / "pid").read_text()))


def test_all_workers_are_busy(fake):
    with Pool(workers=4, deadline_s=1) as pool:
        reasons(pool, [("x", "y")] * 4)
        start = time.monotonic()
        assert reasons(pool, [("hang", "y")] * 4) == ["timeout"] * 4
        assert time.monotonic() - start < 3.5


def test_an_interrupted_batch_leaves_no_stale_answer(fake):
    class Interrupt(BaseException):
        pass

    def interrupt(*_):
        raise Interrupt

    with Pool(workers=1, deadline_s=20) as pool:
        listen, calls = pool._listen, []
        pool._listen = lambda verdicts: calls.append(0) or (listen if len(calls) < 2 else interrupt)(verdicts)
        with pytest.raises(Interrupt):
            reasons(pool, [("x", "y")])
        pool._listen = listen
        assert reasons(pool, [("z", "y")]) == ["wrong"]


def test_workers_that_cannot_start_are_an_error(tmp_path, monkeypatch):
    fake = f"print('!', file=open('{tmp_path}/starts', 'a')); raise ImportError"
    (tmp_path / "math_verify.py").write_text(fake)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="3 workers in a row"), Pool(workers=1) as pool:
        reasons(pool, [("x", "y")])
    assert pool.pids() == []
    assert (tmp_path / "starts").read_text() == "!\n" * 3


# --- whole processes, fed on stdin: no `__main__` to import again ---

SCRIPT = """
import os, sys, signal, threading
from int_jax import verify as _
module = sys.modules["int_jax.verify"]
assert module.verify(r"\\boxed{x}", "y").passed
print(*module._default.pids(), flush=True)
"""
FORK = """
if os.fork() == 0:
    assert module._default.pids() == [] and module.verify(r"\\boxed{x}", "y").passed
    module._default.close()
    os._exit(0)
assert os.wait()[1] == 0
assert module.verify(r"\\boxed{x}", "y").passed
"""
ORPHAN = """
module._default.deadline_s = 1
module._default.close()
threading.Thread(target=module.verify, args=(r"\\boxed{hang}", "y"), daemon=True).start()
while not (module._default._staff and module._default._staff[0].item == 0): pass
print(*module._default.pids(), flush=True)
"""
SUICIDE = "os.kill(os.getpid(), signal.SIGKILL)"


ENDINGS = {"end": "", "fork": FORK, "busy": ORPHAN, "killed": SUICIDE, "busy-killed": ORPHAN + SUICIDE}


@pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS)
def test_workers_end_with_their_parent(fake, tmp_path, ending):
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-"],
        input=SCRIPT + ending,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert done.returncode == (-signal.SIGKILL if SUICIDE in ending else 0), done.stderr
    pids = [int(pid) for pid in done.stdout.split()]
    assert pids and all(dies_within(4, pid) for pid in pids)


def test_the_default_pool():
    assert verify(boxed("1+x"), "x+1") == (True, 1.0, "correct")
    verdicts = verify_batch([(boxed("5"), "6"), (boxed("x+1"), "1+x")])
    assert [verdict.reason for verdict in verdicts] == ["wrong", "correct"]
