"""Samplers without a model, and sessions (`sampler.Session`) in which responses end in any order."""

import hashlib

import numpy as np

from int_jax.sampler import Response


class Batches:
    """Draws what waits in one batch, all of which ends together; over anything that has a `generate`."""

    def __init__(self, sampler, params, sampling, tokenizer=None):
        self.sampler, self.arguments = sampler, (params, sampling, tokenizer)
        self.waiting: dict = {}
        self.count = 0

    def add(self, requests):
        self.waiting |= dict(enumerate(requests, self.count))
        self.count += len(requests)

    def __bool__(self):
        return bool(self.waiting)

    def take(self):
        params, sampling, tokenizer = self.arguments
        requests = {number: self.waiting.pop(number) for number in self.chosen()}
        drawn = self.sampler.generate(params, [*requests.values()], sampling, tokenizer=tokenizer)
        return [*zip(requests, drawn, strict=True)]

    def leave(self):
        undrawn = [(n, np.asarray(request.prompt, np.int32)) for n, request in self.waiting.items()]
        self.waiting.clear()
        return [(n, Response(tokens, np.zeros(len(tokens), np.float32), "")) for n, tokens in undrawn]

    def chosen(self) -> list[int]:
        """The numbers of the requests that end next."""
        return [*self.waiting]


class Scattered(Batches):
    """A few at a time, in an order drawn by chance."""

    rng = np.random.default_rng(0)

    def chosen(self):
        size = int(self.rng.integers(1, 1 + min(3, len(self.waiting))))
        return self.rng.permutation([*self.waiting])[:size].tolist()


class NewestFirst(Batches):
    """One at a time, the one that was asked last."""

    def chosen(self):
        return [max(self.waiting)]


class Dice:
    """Draws up to five tokens by a hash of what it is asked; remembers it, in the order in which it ends."""

    max_len, spans_processes = 10**6, False

    def __init__(self, kind=Batches):
        self.kind, self.asked = kind, []

    def session(self, params, sampling, tokenizer=None):
        return self.kind(self, params, sampling, tokenizer)

    def generate(self, params, requests, sampling, progress=lambda done: None, tokenizer=None):
        self.asked += requests
        return [self.response(request, sampling) for request in requests]

    def response(self, request, sampling) -> Response:
        seed = hashlib.blake2b(repr((request, sampling.seed)).encode(), digest_size=8).digest()
        rng = np.random.default_rng([*seed])
        drawn = rng.integers(4, 60, rng.integers(1, 6))
        tokens = np.array([*request.prompt, *drawn], np.int32)
        logp = np.where(np.arange(len(tokens)) < len(request.prompt), 0, -rng.random(len(tokens)))
        return Response(tokens, logp.astype(np.float32), "stop")

    def take_drawn(self) -> int:
        return 0
