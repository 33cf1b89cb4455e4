"""The log of finished responses: whatever a kill leaves of it, what is whole is given back, and nothing else."""

import contextlib
import dataclasses
import errno
import os
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sessions import Batches, Dice, Scattered

from int_jax import response_log
from int_jax.response_log import HEAD, MAGIC, LoggedSampler, ResponseLog, key_of
from int_jax.sampler import Request, Response, Sampling
from int_jax.stages import StageError

SAMPLING = Sampling(max_new_tokens=8, stop_ids=(3, 5), stop=("x",))
INT32 = st.integers(-(2**31), 2**31 - 1)
FLOAT32 = st.floats(width=32, allow_nan=False) | st.just(float("-inf"))


@st.composite
def responses(draw):
    """(key, length of the prompt, response)."""
    prompt = draw(st.integers(1, 4))
    drawn = draw(st.lists(st.tuples(INT32, FLOAT32), max_size=6))
    tokens = np.array([*range(prompt), *(token for token, _ in drawn)], np.int32)
    logp = np.array([*[0.0] * prompt, *(logp for _, logp in drawn)], np.float32)
    stop = draw(st.sampled_from(response_log.STOPS))
    return draw(st.binary(min_size=16, max_size=16)), prompt, Response(tokens, logp, stop)


def opened(folder, about="int, seed 0", every_s=1e9):
    return ResponseLog(folder, about, every_s)


def write(folder, some, **how) -> None:
    with opened(folder, **how) as log:
        for one in some:
            log.add([one])


def held(log, some) -> list[bool]:
    """Which of these a log gives back, each of them with the same bits."""
    found = []
    for key, prompt, response in some:
        got = log.get(key, tuple(range(prompt)))
        found.append(got is not None)
        if got is not None:
            assert got.stop == response.stop
            for one, other in ((got.tokens, response.tokens), (got.logp, response.logp)):
                assert one.dtype == other.dtype and one.tobytes() == other.tobytes()
    return found


def distinct(some) -> bool:
    return len({key for key, *_ in some}) == len(some)


@settings(max_examples=150)
@given(st.lists(responses(), max_size=5).filter(distinct), st.data())
def test_of_a_file_cut_anywhere_the_whole_records_are_given_back_and_it_goes_on(tmp_path_factory, some, data):
    folder = tmp_path_factory.mktemp("log")
    write(folder, some)
    path = folder / "0.log"
    content = path.read_bytes() if some else b""
    # Where each record ends, by a second reading of the format.
    at, ends = len(MAGIC), []
    while at < len(content):
        at += HEAD.size + int.from_bytes(content[at : at + 4], "little")
        ends.append(at)
    assert not some or (len(ends) == 1 + len(some) and ends[-1] == len(content))
    cut = data.draw(st.integers(0, len(content)))
    tail = data.draw(st.sampled_from([b"", b"\0", bytes(100)]))  # a crash may leave a file longer, with zeros
    left = content[:cut] + tail
    path.write_bytes(left)
    whole = [left[:end] == content[:end] for end in ends[1:]]
    assert held(opened(folder), some) == whole
    write(folder, [one for one, there in zip(some, whole, strict=True) if not there])
    assert held(opened(folder), some) == [True] * len(some)
    assert path.read_bytes() == content or not some or all(whole)


@settings(max_examples=150)
@given(st.lists(responses(), min_size=1, max_size=4).filter(distinct), st.data())
def test_a_damaged_byte_costs_what_stands_at_and_behind_it_alone(tmp_path_factory, some, data):
    folder = tmp_path_factory.mktemp("log")
    write(folder, some)
    path = folder / "0.log"
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(len(MAGIC), len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    found = held(opened(folder), some)  # the same bits, or none
    sizes = [HEAD.size + 17 + 8 * (len(r.tokens) - prompt) for _, prompt, r in some]
    starts = len(content) - sum(sizes) + np.cumsum([0, *sizes[:-1]])
    assert found == [bool(start + size <= at) for start, size in zip(starts, sizes, strict=True)]


@settings(max_examples=50)
@given(st.lists(responses(), max_size=8).filter(distinct), st.data())
def test_all_processes_files_are_read_by_however_many_go_on(tmp_path_factory, some, data):
    folder = tmp_path_factory.mktemp("log")
    by = [data.draw(st.integers(0, 3)) for _ in some]
    with pytest.MonkeyPatch.context() as patch:
        for index in range(4):
            patch.setattr(response_log.jax, "process_index", lambda index=index: index)
            write(folder, [one for one, process in zip(some, by, strict=True) if process == index])
            write(folder, some[:1])  # a response twice, by whomever
        patch.setattr(response_log.jax, "process_index", lambda: data.draw(st.integers(0, 5)))
        assert all(held(opened(folder), some))
    assert len({*folder.glob("*")}) == (4 if some else 0)


def test_jobs_at_once_write_files_of_their_own_and_one_alone_reads_all(tmp_path):
    every = [(bytes([i]) * 16, 1, Response(np.arange(2 + i), np.zeros(2 + i), "stop")) for i in range(3)]
    every = [
        (key, at, r._replace(tokens=r.tokens.astype(np.int32), logp=r.logp.astype(np.float32)))
        for key, at, r in every
    ]
    jobs = ["1of12", "11of12", ""]
    with contextlib.ExitStack() as stack:
        logs = [stack.enter_context(ResponseLog(tmp_path, "int, seed 0", 1e9, job=job)) for job in jobs]
        for log, one in zip(logs, every, strict=True):
            log.add([one])
    names = ["0.log", "11of12.0.log", "1of12.0.log"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    for i, job in enumerate(jobs[:2]):
        found = held(ResponseLog(tmp_path, "int, seed 0", 1e9, job=job), every)
        assert found == [index == i for index in range(3)]
    assert held(opened(tmp_path), every) == [True] * 3
    response_log.remove(tmp_path, jobs[0])
    assert sorted(path.name for path in tmp_path.iterdir()) == names[:2]
    response_log.remove(tmp_path)
    assert not tmp_path.exists()


def test_another_log_is_refused_and_its_file_named(tmp_path):
    one = b"k" * 16, 1, Response(np.zeros(2, np.int32), np.zeros(2, np.float32), "stop")
    write(tmp_path, [one], about="eval_int, seed 0")
    with pytest.raises(
        StageError, match=r"0\.log: holds responses of 'eval_int, seed 0'.*'eval_int, seed 1'"
    ):
        opened(tmp_path, "eval_int, seed 1")
    (tmp_path / "0.log").write_bytes(MAGIC.replace(b"1", b"2") + b"more")
    with pytest.raises(StageError, match=r"0\.log: no log of responses as this version.*delete it"):
        opened(tmp_path, "eval_int, seed 0")


def test_a_log_without_responses_leaves_nothing(tmp_path):
    write(tmp_path / "log", [])
    assert not (tmp_path / "log").exists()
    response_log.remove(tmp_path / "log")


REQUEST = Request((1, 2, 3), "train/7/attempts", 4, "\n\n")
OTHER_REQUESTS = {"prompt": (1, 2), "task": "train/7/guided", "sample": 5, "begin": "", "most": 3, "drawn": 1}
OTHER_SAMPLINGS = {
    "max_new_tokens": 9,
    "temperature": 0.5,
    "top_k": 1,
    "top_p": 0.5,
    "min_p": 0.5,
    "stop_ids": (3,),
    "seed": 1,
    "stop": (),
}


def test_another_request_or_sampling_is_another_key():
    assert OTHER_REQUESTS.keys() == {*Request._fields}
    assert OTHER_SAMPLINGS.keys() == {field.name for field in dataclasses.fields(Sampling)}
    keys = [key_of(REQUEST, SAMPLING)]
    keys += [key_of(REQUEST._replace(**{name: value}), SAMPLING) for name, value in OTHER_REQUESTS.items()]
    keys += [
        key_of(REQUEST, dataclasses.replace(SAMPLING, **{name: value}))
        for name, value in OTHER_SAMPLINGS.items()
    ]
    assert len({*keys}) == len(keys)


# --- a sampler around another ---


class Killed(BaseException):
    """As a signal would: nothing catches it."""


class Mortal(Dice):
    """Killed after so many responses, with all that its batch would have brought."""

    def __init__(self, left: int = 10**9, kind=Batches):
        super().__init__(kind)
        self.left = left

    def generate(self, params, requests, sampling, *rest, **named):
        if self.left < len(requests):
            raise Killed
        self.left -= len(requests)
        return super().generate(params, requests, sampling, *rest, **named)


def bits(found: list[Response]) -> list[tuple]:
    return [(one.tokens.tobytes(), one.logp.tobytes(), one.stop) for one in found]


requests = st.builds(
    Request,
    st.lists(st.integers(0, 9), min_size=1, max_size=3).map(tuple),
    st.sampled_from(["a", "b"]),
    st.integers(0, 9),
)


@settings(max_examples=100)
@given(
    st.lists(requests, max_size=12, unique=True),
    st.lists(st.integers(0, 6), max_size=3),
    st.sampled_from([Batches, Scattered]),
)
def test_killed_however_often_it_draws_each_response_once_and_counts_all(
    tmp_path_factory, asked, lives, kind
):
    """Of a session that gives what ends a few at a time; one that ends as one batch loses the batch."""
    folder = tmp_path_factory.mktemp("log")
    plain = Mortal()
    expected = plain.generate("p", asked, SAMPLING)
    drawn: Counter = Counter()
    for left in [*lives, 10**9]:
        inner = Mortal(left, kind)
        try:
            with opened(folder) as log:
                logged = LoggedSampler(inner, log)
                found, told = logged.generate("p", asked, SAMPLING, (progress := []).append), progress
        except Killed:
            pass
        drawn.update(inner.asked)
    assert bits(found) == bits(expected) and sum(told) == len(asked)
    assert drawn == Counter(asked)
    count = sum(len(response.tokens) - len(one.prompt) for one, response in zip(asked, expected, strict=True))
    assert logged.take_drawn() == count and logged.take_drawn() == 0


def test_requests_that_join_later_keep_their_numbers(tmp_path):
    asked = [Request((1,), "t", k) for k in range(8)]
    expected = bits(Mortal().generate("p", asked, SAMPLING))
    with opened(tmp_path) as log:
        LoggedSampler(Mortal(), log).generate("p", asked[1::3], SAMPLING)
    inner = Mortal(kind=Scattered)
    with opened(tmp_path) as log:
        session = LoggedSampler(inner, log).session("p", SAMPLING)
        assert not session
        found: dict = {}
        waiting = [asked[:3], asked[3:4], asked[4:]]
        while waiting or session:
            if waiting:
                session.add(waiting.pop(0))
            for number, response in session.take():
                assert number not in found
                found[number] = response
    assert bits([found[k] for k in range(8)]) == expected
    assert Counter(inner.asked) == Counter(asked) - Counter(asked[1::3])


def test_what_is_left_undrawn_is_no_response(tmp_path):
    asked = [Request((1,), "t", k) for k in range(8)]
    with opened(tmp_path) as log:
        LoggedSampler(Mortal(), log).generate("p", asked[:2], SAMPLING)
    with opened(tmp_path) as log:
        sampler = LoggedSampler(Mortal(kind=Scattered), log)
        session = sampler.session("p", SAMPLING)
        session.add(asked)
        found = dict(session.take())  # those in the log
        assert sorted(found) == [0, 1]
        found |= dict(session.take())
        count = len(found)
        found |= dict(session.leave())
        assert sorted(found) == [*range(8)] and not session and 2 < count < 8
        assert sum(not response.stop for response in found.values()) == 8 - count
        assert sampler.take_drawn() == sum(len(one.tokens) - 1 for one in found.values())
    with opened(tmp_path) as log:
        assert len(log.found) == count


# --- the disk ---


def clock(monkeypatch):
    """Seconds that pass when the test says so, and how often a file was forced to the disk."""
    seen = SimpleNamespace(now=0.0, forced=0)
    really = os.fsync

    def fsync(number):
        seen.forced += 1
        really(number)

    monkeypatch.setattr(response_log.time, "monotonic", lambda: seen.now)
    monkeypatch.setattr(os, "fsync", fsync)
    return seen


def test_what_ended_is_with_the_system_at_once_and_on_the_disk_after_the_interval(tmp_path, monkeypatch):
    seen, laps = clock(monkeypatch), []
    asked = [Request((0,), "t", k) for k in range(4)]
    with ResponseLog(tmp_path, "int", 120.0, lambda: laps.append(seen.now)) as log:
        sampler = LoggedSampler(Mortal(), log)
        for request, now, forced in zip(asked, (60, 119, 121, 180), (0, 0, 1, 1), strict=True):
            seen.now = now
            [response] = sampler.generate("p", [request], SAMPLING)
            assert seen.forced == forced
            assert held(opened(tmp_path, "int"), [(key_of(request, SAMPLING), 1, response)]) == [True]
    assert seen.forced == 2 and laps == [121, 180]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_full_disk_ends_in_one_message_and_what_was_written_is_kept(tmp_path, monkeypatch, code):
    asked = [Request((1,), "t", k) for k in range(6)]
    with opened(tmp_path) as log:
        LoggedSampler(Mortal(), log).generate("p", asked[:3], SAMPLING)

    def full(number):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", full)
    said = r"0\.log: no space left on the disk.*run the same command again"
    kind = OSError if code == errno.EIO else StageError
    with (
        pytest.raises(kind, match=os.strerror(code) if code == errno.EIO else said) as error,
        opened(tmp_path, every_s=0) as log,
    ):
        LoggedSampler(Mortal(), log).generate("p", asked, SAMPLING)
    assert error.value.__cause__ is None
    monkeypatch.undo()
    with opened(tmp_path) as log:
        LoggedSampler(inner := Mortal(), log).generate("p", asked, SAMPLING)
    assert not {*inner.asked} & {*asked[:3]}
