"""The queue of the sampler, driven without a model: a slot's request ends when a drawn number says so."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from int_jax.request_queue import RequestQueue

PROMPTS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6).map(tuple), max_size=60)


def rounds(queue, ends):
    """Fill, let at least one running request end, release; yields (starts, running requests, rows that end)."""
    while queue:
        starts = queue.fill()
        rows = queue.running()
        done = rows[[ends() for _ in rows]]
        if not len(done):
            done = rows[:1]
        yield starts, rows, done
        queue.release(done)


@given(PROMPTS, st.integers(1, 17), st.data())
def test_every_request_runs_exactly_once_with_its_own_prompt(prompts, slots, data):
    queue, answers = RequestQueue(prompts, slots), [None] * len(prompts)
    for starts, _, done in rounds(queue, lambda: data.draw(st.booleans())):
        for start in starts:
            for request, which in zip(start.requests, start.which, strict=True):
                assert start.prompts[which] == prompts[request]
                assert answers[request] is None
                answers[request] = "running"
        for row in done:
            assert answers[queue.owner_B[row]] == "running"
            answers[queue.owner_B[row]] = "done"
    assert answers == ["done"] * len(prompts)


@given(PROMPTS, st.integers(1, 17), st.data())
def test_slots_are_full_while_requests_wait(prompts, slots, data):
    queue, begun, running = RequestQueue(prompts, slots), 0, set()
    for starts, rows, done in rounds(queue, lambda: data.draw(st.booleans())):
        new = [row for start in starts for row in start.rows]
        assert running.isdisjoint(new), "a slot was given away under its request"
        begun += len(new)
        assert {*rows} == running | {*new}
        assert len(rows) == min(slots, len(running) + len(prompts) - (begun - len(new)))
        waiting = begun < len(prompts)
        assert queue.least_running() == (max(1, slots - queue.size + 1) if waiting else 1)
        running = {*rows} - {*done}
    assert begun == len(prompts)


@given(PROMPTS, st.integers(1, 17), st.data())
def test_one_block_of_prompts_is_held_at_a_time(prompts, slots, data):
    queue, blocks = RequestQueue(prompts, slots), {}
    every = [start for starts, *_ in rounds(queue, lambda: data.draw(st.booleans())) for start in starts]
    for start in every:
        assert 1 <= len(start.requests) == len(start.rows) <= queue.size
        assert len(start.prompts) <= queue.size
        assert blocks.setdefault(start.block, start.prompts) == start.prompts
    numbers = [start.block for start in every]
    assert numbers == sorted(numbers)
    assert sorted(itertools.chain(*blocks.values())) == sorted({*prompts})
    lengths = [[len(prompt) for prompt in blocks[number]] for number in sorted(blocks)]
    assert [*itertools.chain(*lengths)] == sorted(itertools.chain(*lengths))


@given(PROMPTS, st.integers(1, 17))
def test_requests_begin_in_their_order(prompts, slots):
    """Samples of a prompt in the order given; so a run that stops early has the first ones."""
    queue, begun = RequestQueue(prompts, slots), {}
    for starts, *_ in rounds(queue, lambda: True):
        for start in starts:
            for request in start.requests:
                begun.setdefault(prompts[request], []).append(request)
    assert begun == queue.samples


def test_nothing_to_do():
    queue = RequestQueue([], 4)
    assert not queue and queue.fill() == [] and not len(queue.running())


@pytest.mark.parametrize(("slots", "size"), [(1, 1), (3, 1), (4, 1), (8, 2), (128, 32)])
def test_a_block_is_a_quarter_of_the_slots(slots, size):
    queue = RequestQueue([(i,) for i in range(200)], slots)
    assert queue.size == size
    assert [len(start.requests) for start in queue.fill()] == [size] * (slots // size)
    assert not np.isin(-1, queue.owner_B)
