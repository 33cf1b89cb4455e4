"""Killable processes: requests of any size, workers that die, are deaf, or never start."""

import json
import pathlib
import sys

import pytest

from int_jax import workers

PATIENCE_S = 600  # for what must be told: a busy machine may take long

# Answers a request by its length and its end, but for those that name a misdeed.
ECHO = """
import os, sys, time
from int_jax.workers import serve
open({started!r}, "a").write("x")
def answer(told):
    if told == "die": os._exit(1)
    if told == "hang": time.sleep(3600)
    return [len(told), told[-3:]]
serve(answer, 600.0, {items})
"""


class Echo(workers.Pool):
    def __init__(self, folder: pathlib.Path, script: str = ECHO, items: int = 0, **options):
        super().__init__(**({"workers": 1, "deadline_s": PATIENCE_S} | options))
        self.starts = folder / "starts"
        self.script = script.replace("{started!r}", repr(str(self.starts))).replace("{items}", str(items))

    def command(self):
        return [sys.executable, "-P", "-c", self.script]

    def told(self, *texts, **options):
        replies = self.ask(
            {i: json.dumps([text]).encode() + b"\n" for i, text in enumerate(texts)}, **options
        )
        return [reply and json.loads(reply) for reply in (replies[i] for i in range(len(texts)))]


def test_requests_of_any_length_are_answered_in_order(tmp_path):
    texts = ["x" * size + "end" for size in (0, 1, 65_533, 65_536, 3_000_000, 7)]
    with Echo(tmp_path, workers=2) as pool:
        assert pool.told(*texts) == [[len(text), "end"] for text in texts]
        assert pool.ask({}) == {}


def test_a_worker_that_dies_of_a_request_costs_that_request(tmp_path):
    with Echo(tmp_path) as pool:
        assert pool.told("die", "a", "die", "b") == [None, [1, "a"], None, [1, "b"]]
        assert len(pool.starts.read_text()) == 3


def test_a_worker_that_reads_no_further_is_late(tmp_path):
    """A request that does not fit in the pipe, to a worker that does not read it: the deadline holds for that, too."""
    deaf = 'import os, time; os.write(1, b"ready+\\n"); time.sleep(3600)'
    with Echo(tmp_path, deaf, deadline_s=0.2) as pool:
        assert pool.told("x" * 3_000_000) == [None] and pool.pids() == []


def test_a_worker_that_dies_while_it_is_told_costs_that_request(tmp_path):
    half = 'import os; os.write(1, b"ready+\\n"); os.read(0, 1000)'
    with Echo(tmp_path, half) as pool:
        assert pool.told("x" * 3_000_000) == [None]


def test_each_batch_may_have_a_deadline_of_its_own(tmp_path):
    with Echo(tmp_path) as pool:
        assert pool.told("a") == [[1, "a"]]
        assert pool.told("hang", deadline_s=0.2) == [None]
        assert pool.told("a") == [[1, "a"]]


def test_a_worker_is_replaced_after_its_items(tmp_path):
    with Echo(tmp_path, items=2) as pool:
        assert pool.told(*"abcde") == [[1, letter] for letter in "abcde"]
        assert len(pool.starts.read_text()) == 3


def test_a_worker_that_does_not_start_says_why(tmp_path):
    script = 'open({started!r}, "a").write("x"); raise ImportError("no such thing")'
    with Echo(tmp_path, script) as pool, pytest.raises(RuntimeError, match="ImportError: no such thing"):
        pool.told("a")
    assert pool.pids() == [] and pool.starts.read_text() == "xxx"


def test_what_prints_at_the_start_is_no_reply(tmp_path):
    noisy = 'print("hello"); import sys; sys.stdout.flush(); input()'
    with Echo(tmp_path, noisy) as pool, pytest.raises(RuntimeError, match="3 workers in a row"):
        pool.told("a")
