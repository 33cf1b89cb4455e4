"""Samplers over HTTP, against a server in this process that answers as vLLM and SGLang do.

The exchange with vLLM was recorded from vLLM 0.32 (its build for CPUs), that with SGLang follows the sources of
0.5.23. The server's model is a table, the logits of the next token by the last one. VLLM_URL names a real vLLM with the
embedded model, if there is one: then it is asked, too.
"""

import dataclasses
import http.server
import json
import os
import re
import threading

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from int_jax import hf_format, rollout, sample, samplers
from int_jax.http_json import Server
from int_jax.sampler import Request, Sampling
from int_jax.samplers import ServedEngine
from int_jax.samplers.http import kept

KINDS = samplers.names()
VOCAB = 134  # of the embedded model's tokenizer
STOP, EOS = 2, 7  # a stop id that is asked for, and the model's own
TABLE_VV = np.random.default_rng(0).normal(size=(VOCAB, VOCAB)) * 2
SAMPLING = Sampling(40, stop_ids=(STOP,), seed=5)


def log_softmax(logits):
    logits = logits - logits.max()
    return logits - np.log(np.exp(logits).sum())


class Threads(http.server.ThreadingHTTPServer):
    request_queue_size = 128  # connections that wait: more than a sampler's threads


class Fake:
    """A server of one kind. See the module's docstring.

    Attributes:
      mode: of vLLM's log-probabilities. faults: what is done with the next requests in place of an answer: a status, or
        None to break the connection. asked: (path, body) of each request. gate: holds what waits, by its first id.
    """

    def __init__(self, kind, tokenizer, mode="raw_logprobs"):
        self.kind, self.tokenizer, self.mode = kind, tokenizer, mode
        self.faults, self.asked, self.gates, self.seeded = [], [], {}, True
        fake = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def answer(self, body):
                fake.asked.append((self.path, body))
                fault = fake.faults.pop(0) if fake.faults else 200
                if fault is None:
                    self.close_connection = True
                    return
                self.send_response(fault)
                self.end_headers()
                told = fake.answer(self.path, body) if fault == 200 else f"there is no {self.path} today"
                self.wfile.write(told.encode() if isinstance(told, str) else json.dumps(told).encode())

            def do_GET(self):
                self.answer(None)

            def do_POST(self):
                self.answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def log_message(self, *_):
                pass

        self.server = Threads(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def sampler(self, **more):
        made = samplers.load(self.kind)(self.url, **more)
        return dataclasses.replace(made, server=Server(self.url, timeout_s=30, tries=3, wait_s=0))

    def answer(self, path, body):
        if path == "/v1/models":
            return {"object": "list", "data": [{"id": "m", "object": "model", "max_model_len": 200}]}
        return self.vllm(path, body) if self.kind == "vllm" else self.sglang(path, body)

    def vllm(self, path, body):
        if path == "/collective_rpc":
            return {"results": [None]}
        if path == "/reset_prefix_cache":
            return {"success": True}
        assert path == "/v1/completions"
        extra = body.get("logprob_token_ids", [])
        ids, told, ended = self.draw(body["prompt"], body, body["max_tokens"], body["seed"], extra)
        top = [{f"token_id:{token}": one for token, one in row.items()} for row in told]
        logprobs = {
            "text_offset": [0] * len(ids),
            "token_logprobs": [row[token] for row, token in zip(told, ids, strict=True)],
            "tokens": [f"token_id:{token}" for token in ids],
            "top_logprobs": top,
        }
        text = self.tokenizer.decode(ids)
        choice = {"index": 0, "text": text, "logprobs": logprobs, "token_ids": ids, "stop_reason": None}
        return {"object": "text_completion", "choices": [choice | {"finish_reason": ended}], "usage": {}}

    def sglang(self, path, body):
        if path == "/server_info":
            return {"enable_deterministic_inference": self.seeded, "version": "0.5.23"}
        if path == "/update_weights_from_disk":
            return {"success": True, "message": "Succeeded", "num_paused_requests": 0}
        assert path == "/generate" and body["return_logprob"]
        knobs, extra = body["sampling_params"], body.get("token_ids_logprob", [])
        count, seed = knobs["max_new_tokens"], knobs["sampling_seed"]
        ids, told, ended = self.draw(body["input_ids"], knobs, count, seed, extra)
        meta = {
            "finish_reason": {"type": ended},
            "output_token_logprobs": [
                [row[token], token, None] for row, token in zip(told, ids, strict=True)
            ],
            "output_token_ids_logprobs": [[[row[t], t, None] for t in extra] for row in told]
            if extra
            else [],
        }
        return {"text": self.tokenizer.decode(ids), "output_ids": ids, "meta_info": meta}

    def draw(self, prompt, knobs, count, seed, extra):
        """(ids, for each of them {token: log-probability} of it and of `extra`, why it ended)."""
        if gate := self.gates.get(prompt[0]):
            gate.wait()
        ids, told = [], []
        while len(ids) < count:
            logits = TABLE_VV[ids[-1] if ids else prompt[-1]]
            heat, top_k = knobs["temperature"] or 1.0, knobs["top_k"]
            scaled = logits / heat
            least = np.sort(scaled)[-top_k] if top_k > 0 else -np.inf
            filtered = np.where(scaled >= least, scaled, -np.inf)
            rng = np.random.default_rng([seed, len(prompt) + len(ids)])
            noise = rng.gumbel(size=VOCAB) if knobs["temperature"] else 0
            token = int(np.argmax(filtered + noise))
            modes = {"raw_logprobs": logits, "processed_logprobs": filtered, "": scaled}
            logp = log_softmax(modes[self.mode if self.kind == "vllm" else ""])
            ids.append(token)
            told.append({one: max(float(logp[one]), -9999.0) for one in [token, *extra]})
            # SGLang's ignore_eos passes over stop_token_ids, too.
            ends = knobs["stop_token_ids"] if self.kind == "vllm" or not knobs["ignore_eos"] else []
            if token in ends or (token == EOS and not knobs["ignore_eos"]):
                return ids, told, "stop"
            if any(text in self.tokenizer.decode(ids) for text in knobs["stop"]):
                return ids, told, "stop"
        return ids, told, "length"


@pytest.fixture(params=KINDS)
def fake(request, tokenizer):
    with Fake(request.param, tokenizer) as server:
        yield server


def expected(response, start, temperature=1.0):
    """The table's log-probabilities of a response."""
    tokens = response.tokens
    rows = [log_softmax(TABLE_VV[tokens[i - 1]] / temperature)[tokens[i]] for i in range(start, len(tokens))]
    return np.array([0.0] * start + rows, np.float32)


def requests(count, begin=""):
    return [Request((1, 10 + i % 3, 20), f"task{i % 3}", i // 3, begin) for i in range(count)]


def drawn(sampler, some, sampling=SAMPLING, tokenizer=None):
    return sampler.generate(None, some, sampling, tokenizer=tokenizer)


# --- responses ---


def test_a_response_is_its_own(fake):
    """A response does not depend on the requests beside it, their order, or how many are under way."""
    some = requests(12)
    whole = drawn(fake.sampler(), some)
    alone = [drawn(fake.sampler(at_once=1), [one])[0] for one in some[::-1]][::-1]
    for one, other, request in zip(whole, alone, some, strict=True):
        np.testing.assert_array_equal(one.tokens, other.tokens)
        np.testing.assert_array_equal(one.logp, other.logp)
        assert tuple(one.tokens[:3]) == request.prompt and (one.logp[:3] == 0).all()
    assert len({one.tokens.tobytes() for one in whole}) > 9  # the samples of a task differ
    seeds = [
        drawn(fake.sampler(), some[:1], dataclasses.replace(SAMPLING, seed=s))[0].tokens.tobytes()
        for s in (5, 6)
    ]
    assert len({*seeds}) == 2


def test_it_ends_with_the_stop_id_which_stays_or_with_the_limit(fake):
    some = drawn(fake.sampler(), requests(60))
    by_id = [one for one in some if one.stop == "stop"]
    assert by_id and len(by_id) < len(some)
    for one in some:
        assert STOP not in one.tokens[3:-1] and (one.tokens[-1] == STOP) == (one.stop == "stop")
        assert len(one.tokens) == 43 or one.stop == "stop"
    # The model's own end, at which SGLang cannot be told not to stop, is a token like others: the rest is drawn, too.
    assert any(EOS in one.tokens[3:-1] for one in some)


def test_positions_end_a_response(fake):
    (one,) = drawn(fake.sampler(), requests(1), Sampling(500, seed=2))
    assert len(one.tokens) == 200 and one.stop == "length"


def test_a_stop_text_ends_with_the_token_that_completes_it(fake, tokenizer):
    line = "\n"
    some = drawn(fake.sampler(), requests(60), dataclasses.replace(SAMPLING, stop=(line,)), tokenizer)
    ended = [line in tokenizer.decode(one.tokens[-1:]) for one in some]
    assert sum(ended) > 5
    for one, by_text in zip(some, ended, strict=True):
        assert line not in tokenizer.decode(one.tokens[3:-1])
        assert one.stop == ("stop" if by_text or one.tokens[-1] == STOP else "length")


@pytest.mark.parametrize("stop", [(), ("\n\n",)])
def test_a_response_begins_as_it_must(fake, tokenizer, stop):
    some = requests(30, "\n\nSo")
    sampling = dataclasses.replace(SAMPLING, stop=stop)
    for one in drawn(fake.sampler(), some, sampling, tokenizer):
        assert tokenizer.decode(one.tokens[3:]).startswith("\n\nSo") and len(one.tokens) > 7
        np.testing.assert_allclose(one.logp, expected(one, 3), atol=1e-5)
    with pytest.raises(ValueError, match=r"request 0 .*begins with .*So': pass the model's tokenizer"):
        drawn(fake.sampler(), some)


def test_the_tokens_to_begin_with_are_drawn_as_the_model_would(fake, tokenizer, monkeypatch):
    """Among those that spell the text, by their probabilities at the temperature and what the filters keep."""
    allowed = (30, 31, 32, 33)
    monkeypatch.setattr(tokenizer, "spellings", lambda text: {text: dict.fromkeys(allowed, "")})
    sampling = Sampling(1, 2.0, top_k=3, seed=1)
    some = [Request((1, 20), "task", k, "x") for k in range(500)]
    scorer = type("Scorer", (), {"score": staticmethod(lambda params, ids, heat: (ids, None))})
    first = [
        one.tokens[2] for one in drawn(fake.sampler(scorer=scorer, at_once=2), some, sampling, tokenizer)
    ]
    logits = TABLE_VV[20][list(allowed)] / 2
    weights = np.exp(logits) * (logits > logits.min())
    seen, wanted = np.array([first.count(token) for token in allowed]), 500 * weights / weights.sum()
    assert ((seen == 0) == (wanted == 0)).all()
    chi2 = np.sum((seen - wanted)[wanted > 0] ** 2 / wanted[wanted > 0])
    assert chi2 < 2 + 5 * 2  # of 2 degrees of freedom; fixed seed, 5 standard deviations


# --- log-probabilities ---

WARM, FILTERED = {"temperature": 0.6}, {"temperature": 0.6, "top_k": 5}
RIGHT = {
    ("sglang", ""): ({}, WARM, FILTERED, {"top_k": 5}, {"temperature": 0.0}),
    ("vllm", "raw_logprobs"): ({}, {"top_k": 5}, {"temperature": 0.0}),
    ("vllm", "processed_logprobs"): ({}, WARM, {"temperature": 0.0}),
}


@pytest.mark.parametrize("changes", [{}, WARM, FILTERED, {"top_k": 5}, {"temperature": 0.0}], ids=str)
@pytest.mark.parametrize("kind, mode", RIGHT)
def test_log_probabilities_are_those_over_the_whole_vocabulary_or_refused(kind, mode, changes, tokenizer):
    sampling = dataclasses.replace(SAMPLING, **changes)
    with Fake(kind, tokenizer, mode) as fake:
        if changes in RIGHT[kind, mode]:
            for one in drawn(fake.sampler(), requests(6), sampling):
                np.testing.assert_allclose(one.logp, expected(one, 3, sampling.temperature or 1), atol=1e-5)
        else:
            with pytest.raises(ValueError, match=r"reports log-probabilities at .* processed_logprobs"):
                drawn(fake.sampler(), requests(6), sampling)


def test_a_scorer_tells_those_of_filtered_draws_alone(tokenizer):
    """Without filters a policy gradient may take them: there what differs must be seen, and is never scored away."""
    asked = []

    class Scorer:
        def score(self, params, sequences, temperature):
            asked.append(params)
            return [np.full(len(ids), -temperature, np.float32) for ids in sequences], None

    with Fake("vllm", tokenizer) as fake:
        sampler = fake.sampler(scorer=Scorer())
        params = {"w": np.zeros(1)}
        some = sampler.generate(params, requests(6), dataclasses.replace(SAMPLING, **FILTERED))
        assert all((one.logp[:3] == 0).all() and (one.logp[3:] == np.float32(-0.6)).all() for one in some)
        assert asked and all(one is params for one in asked)
        with pytest.raises(ValueError, match="at temperature 1"):
            drawn(sampler, requests(6), dataclasses.replace(SAMPLING, **WARM))


KEEP = jax.jit(sample.keep)


@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([0, 1, 3, 12, 50]),
    st.floats(0.02, 0.98) | st.just(1.0),
    st.floats(0.001, 0.98) | st.just(0.0),
)
def test_filters_here_are_those_of_the_engine(seed, top_k, top_p, min_p):
    logits = np.random.default_rng(seed).normal(size=12).astype(np.float32)
    settings = [np.array([value], kind) for value, kind in ((top_k, "i4"), (top_p, "f4"), (min_p, "f4"))]
    theirs = np.asarray(KEEP(logits[None], *settings))[0]
    np.testing.assert_array_equal(kept(logits, Sampling(top_k=top_k, top_p=top_p, min_p=min_p)), theirs)


# --- sessions ---


def test_what_has_ended_is_taken_while_others_are_drawn(fake):
    gate = fake.gates[9] = threading.Event()
    sampler = fake.sampler(at_once=4)
    session = sampler.session(None, SAMPLING)
    assert not session and session.take() == []
    session.add([Request((9, 20), "slow", 0), *requests(5)])
    found = []
    while len(found) < 5:
        found += session.take()
    assert sorted(number for number, _ in found) == [1, 2, 3, 4, 5] and session
    session.add(requests(1))  # joins while the first one is drawn
    found += session.take()
    gate.set()
    while session:
        found += session.take()
    assert sorted(number for number, _ in found) == [*range(7)] and session.take() == []
    np.testing.assert_array_equal(dict(found)[6].tokens, dict(found)[1].tokens)
    assert sampler.take_drawn() == sum(len(one.tokens) - (2 if number == 0 else 3) for number, one in found)
    assert sampler.take_drawn() == 0


def test_no_more_than_at_once_are_under_way(fake):
    fake.gates = {9: threading.Event()}
    session = fake.sampler(at_once=2).session(None, SAMPLING)
    session.add([Request((9, 20), "held", k) for k in range(6)])
    for future in session.numbers:
        assert not future.done()
    fake.gates[9].set()
    while session:
        session.take()
    assert len(fake.asked) >= 6


def test_what_a_server_has_not_begun_is_left(fake):
    """What it draws already is waited for, and given whole; the rest has drawn nothing, and can be asked again."""
    asked = [Request((9, 20), "held", k) for k in range(6)]
    whole = drawn(fake.sampler(), asked)
    gate = fake.gates[9] = threading.Event()
    sampler = fake.sampler(at_once=2)
    session = sampler.session(None, SAMPLING)
    session.add(asked)
    # Two are under way before the session is left, and none of them ends before the others are given up.
    waited = threading.Event()
    while sum(future.running() for future in session.numbers) < 2:
        waited.wait(0.01)

    def let_go():
        while len(session.numbers) > 2:
            waited.wait(0.01)
        gate.set()

    threading.Thread(target=let_go).start()
    found = dict(session.leave())
    assert sorted(found) == [*range(6)] and not session and sampler._under_way == 0
    left = [number for number, response in found.items() if not response.stop]
    assert len(left) == 4
    for number in left:
        assert found[number].tokens.tolist() == [9, 20] and not found[number].logp.any()
    again = drawn(sampler, [asked[number] for number in left])
    for number, response in [*((n, r) for n, r in found.items() if r.stop), *zip(left, again, strict=True)]:
        np.testing.assert_array_equal(response.tokens, whole[number].tokens)
    assert sampler.take_drawn() == sum(len(response.tokens) - 2 for response in whole)


def test_prompts_without_a_place_are_refused(fake):
    for prompt in ((), (1,) * 200):
        with pytest.raises(ValueError, match=rf"request 1 \(task 'b'\) has a prompt of {len(prompt)} tokens"):
            drawn(fake.sampler(), [Request((1,), "a", 0), Request(prompt, "b", 0)])


# --- faults ---


@pytest.mark.parametrize("faults", [[None], [503, 429], [None, 502]], ids=str)
def test_a_request_that_meets_no_answer_is_sent_again(fake, faults):
    whole = drawn(fake.sampler(), requests(1))
    fake.faults = [*faults]
    sampler = fake.sampler()
    np.testing.assert_array_equal(drawn(sampler, requests(1))[0].tokens, whole[0].tokens)
    assert not fake.faults


def test_errors_say_where_and_what_the_server_said(fake):
    sampler = fake.sampler()
    assert sampler.max_len == 200
    fake.faults = [None] * 3
    with pytest.raises(ConnectionError, match=rf"{fake.url}/\S+ has not answered in 3 tries"):
        drawn(sampler, requests(1))
    fake.faults = [400]
    with pytest.raises(RuntimeError, match=rf"{fake.url}/\S+ refuses .*400 .*: there is no /\S+ today"):
        drawn(sampler, requests(1))
    assert drawn(sampler, requests(1))[0].stop  # and goes on
    with pytest.raises(ConnectionError, match=r"not answered in 2 tries .*Connection refused.* server runs"):
        Server("http://127.0.0.1:1", tries=2, wait_s=0).ask("/x")
    with pytest.raises(ValueError, match="the URL of a server is 'localhost:8000'"):
        samplers.load(fake.kind)("localhost:8000")


def test_a_request_that_fails_ends_its_session(fake):
    sampler = fake.sampler(at_once=1)
    session = sampler.session(None, SAMPLING)
    assert sampler.max_len == 200
    fake.faults = [500]
    session.add(requests(9))
    with pytest.raises(RuntimeError, match="500"):
        while True:
            session.take()
    assert not session and sampler._under_way == 0


def test_a_server_without_seeds_is_refused(tokenizer):
    with Fake("sglang", tokenizer) as fake:
        fake.seeded = False
        with pytest.raises(ValueError, match=r"takes no seeds.* --enable-deterministic-inference"):
            drawn(fake.sampler(), requests(1))
        assert drawn(fake.sampler(), requests(1), dataclasses.replace(SAMPLING, temperature=0.0))


# --- parameters ---

PUSHED = {
    "vllm": ["/collective_rpc", "/reset_prefix_cache"],
    "sglang": ["/update_weights_from_disk"],
}


def pushes(fake):
    return [path for path, _ in fake.asked if path in PUSHED[fake.kind]]


def test_other_parameters_are_pushed_once_and_before_anything_is_drawn(fake, engine, tmp_path):
    folder = tmp_path / "weights"
    params = engine.model.init(jax.random.key(0))
    sampler = fake.sampler(weights=str(folder), config=engine.model.config)
    for _ in range(2):
        sampler.generate(sampler.decode_params(params), requests(2), SAMPLING)
        assert pushes(fake) == PUSHED[fake.kind]
    draws = [path not in (*PUSHED[fake.kind], "/server_info") for path, _ in fake.asked]
    assert not any(draws[: len(PUSHED[fake.kind])])
    told = json.dumps([body for path, body in fake.asked if path == PUSHED[fake.kind][0]])
    assert str(folder) in told and ("reload_weights" in told or '"flush_cache": true' in told)
    # One leaf alone is another: with the first of them, others may be shared.
    after = {**params, "final_norm_D": params["final_norm_D"] * 2}
    sampler.generate(after, requests(2), SAMPLING)
    assert pushes(fake) == 2 * PUSHED[fake.kind]
    _, found = hf_format.load(folder, engine.mesh)
    jax.tree.map(np.testing.assert_array_equal, found, after)
    sampler.generate(params, requests(2), SAMPLING)  # and back
    assert pushes(fake) == 3 * PUSHED[fake.kind]


def test_parameters_are_not_exchanged_under_a_session(fake, engine, tmp_path):
    gate = fake.gates[1] = threading.Event()
    params = [engine.model.init(jax.random.key(i)) for i in range(2)]
    sampler = fake.sampler(weights=str(tmp_path / "w"), config=engine.model.config)
    session = sampler.session(params[0], SAMPLING)
    session.add(requests(3))
    with pytest.raises(RuntimeError, match="still draws 3 responses from other parameters"):
        sampler.session(params[1], SAMPLING)
    gate.set()
    while session:
        session.take()
    sampler.session(params[1], SAMPLING)


def test_a_server_without_a_folder_keeps_its_parameters(fake, engine):
    sampler = fake.sampler()
    params = engine.model.init(jax.random.key(0))
    sampler.generate(params, requests(1), SAMPLING)
    sampler.generate(params, requests(1), SAMPLING)
    with pytest.raises(ValueError, match=r"is asked to draw from others: name a folder .*\(weights\)"):
        sampler.generate(engine.model.init(jax.random.key(1)), requests(1), SAMPLING)
    with pytest.raises(ValueError, match=r"weights='w', config=None: .* give both, or neither"):
        fake.sampler(weights="w")


# --- an engine that trains here and draws there ---


def test_a_served_engine_scores_here_and_draws_there(fake, engine, domain):
    served = ServedEngine(engine.model, engine.mesh, 8, 8, sampler=fake.sampler())
    params = served.decode_params(engine.model.init(jax.random.key(0)))
    assert served.max_len == 200
    open_trace = rollout.open_trace(domain, domain.tasks("hard_train", 0, 1)[0])
    ((trace,),) = rollout.continue_traces(served, params, domain, [open_trace], 1, SAMPLING)
    # What the server says of its draw stays with it, and what the trainer says is another thing: their gap is seen.
    start = trace.prompt_len
    last = [int(i) for i in trace.tokens]
    rows = [log_softmax(TABLE_VV[last[i - 1]])[last[i]] for i in range(start, len(last))]
    np.testing.assert_allclose(trace.logp[start:], rows, atol=1e-5)
    (ours,), _ = served.score(params, [trace.tokens])
    (theirs,), _ = engine.score(params, [trace.tokens])
    np.testing.assert_array_equal(ours, theirs)
    assert not served.spans_processes and served.take_drawn() == len(last) - start


def test_every_sampler_has_what_the_protocol_lists():
    from int_jax import modules, sampler

    for kind in KINDS:
        made = samplers.load(kind)("http://localhost:1")
        assert all(name in dir(made) for name in modules.members(sampler.Sampler))
        assert re.search(r"\d+\.\d+", samplers.KIND.load(kind).__doc__), (
            "it says for which version it was written"
        )


@pytest.mark.skipif("VLLM_URL" not in os.environ, reason="VLLM_URL names no server with the embedded model")
def test_a_real_server_draws_as_the_engine_scores(tiny_dir):
    import int_jax

    lm = int_jax.load(tiny_dir)
    sampler = samplers.load("vllm")(os.environ["VLLM_URL"], at_once=8)
    prompts = [
        tuple(lm.tokenizer.render([{"role": "user", "content": f"Start with {k}."}])) for k in range(3)
    ]
    some = [Request(p, "t", k, begin) for p in prompts for k in range(2) for begin in ("", "\n\nSo")]
    sampling = Sampling(60, stop_ids=lm.tokenizer.stop_ids)
    found = sampler.generate(None, some, sampling, tokenizer=lm.tokenizer)
    again = sampler.generate(None, some[::-1], sampling, tokenizer=lm.tokenizer)[::-1]
    for one, other, request in zip(found, again, some, strict=True):
        start = len(request.prompt)
        (scored,), _ = lm.engine.score(lm.params, [one.tokens])
        np.testing.assert_allclose(one.logp[start:], scored[start:], atol=1e-4)
        np.testing.assert_array_equal(one.tokens, other.tokens)
        assert lm.tokenizer.decode(one.tokens[start:]).startswith(request.begin)
        assert one.stop == "length" or one.tokens[-1] in lm.tokenizer.stop_ids
