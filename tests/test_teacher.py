"""The proposer behind an OpenAI-compatible interface, against a server in this process that answers as the interface
does: what the oracle says, where it is asked about an attempt."""

import http.server
import json
import threading

import pytest

from int_jax import check, proposers
from int_jax.check import proposer as contract
from int_jax.check.proposer import traces_of
from int_jax.domains import arithmetic
from int_jax.domains.arithmetic import Arithmetic
from int_jax.proposers import teacher
from int_jax.sampler import Sampling

SAMPLING = Sampling(max_new_tokens=24)


class TwoTurns(Arithmetic):
    proposal_roles = ("teacher", "checker")


@pytest.fixture
def server(domain):
    """The interface. asked: (body, headers) of each request. say: what it answers, by the messages."""
    answers = {}
    for trace in traces_of(domain):
        view = domain.view(trace.task, domain.step_texts(trace), "checker")[0]["content"]
        chain = arithmetic.parse_problem(trace.task.problem)
        answers[view] = arithmetic.checker_response(chain, domain.step_texts(trace))

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.server.asked.append((self.path, body, self.headers["Authorization"]))
            self.send_response(self.server.faults.pop() if self.server.faults else 200)
            self.end_headers()
            choice = {"index": 0, "message": self.server.say(body["messages"]), "finish_reason": "stop"}
            usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
            self.wfile.write(
                json.dumps({"object": "chat.completion", "choices": [choice], "usage": usage}).encode()
            )

        def log_message(self, *_):
            pass

    class Threads(http.server.ThreadingHTTPServer):
        request_queue_size = 64

    with Threads(("127.0.0.1", 0), Handler) as made:
        made.asked, made.faults = [], []
        made.say = lambda chat: {"role": "assistant", "content": answers.get(chat[-1]["content"], "It is 4.")}
        made.url = f"http://127.0.0.1:{made.server_port}/v1"
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def ask(server, domain, traces, samples=2, max_prompt=400, sampling=SAMPLING, key=0, **more):
    drops = proposers.Drops()
    place = {"url": server.url, "model": "m"} | more
    knobs = {"samples": samples, "sampling": sampling, "max_prompt": max_prompt, "drops": drops}
    return teacher.propose(None, None, domain, traces, key, **knobs, **place), drops


@pytest.mark.parametrize("one", contract.CHECKS, ids=lambda one: one.__name__)
def test_it_keeps_the_contract(one, server, domain):
    def propose(*args, **knobs):
        return teacher.propose(*args, **knobs, url=server.url, model="m")

    wrapped = teacher.propose if one is contract.check_signature else propose
    subject = contract.Subject(wrapped, None, None, domain, traces_of(domain))
    assert check.faults(one, subject) == []


def test_a_teacher_that_knows_is_the_oracle(server, domain):
    traces = traces_of(domain)
    found, drops = ask(server, domain, traces)
    wanted = [
        (step, domain.correction(trace, step))
        if (step := domain.first_error(trace)) is not None
        and not domain.leaks(trace.task, domain.correction(trace, step))
        else None
        for trace in traces
    ]
    assert [one and (one.step, one.text) for one in found] == wanted and any(wanted)
    assert {one.source for one in found if one} == {"teacher"} and {*drops.values()} <= {"empty", "leaked"}


def test_it_is_asked_with_the_view_of_each_role_and_a_seed_of_its_own(server, domain, tokenizer):
    traces = traces_of(domain)[:3]
    domain = TwoTurns(tokenizer)
    _, drops = ask(server, domain, traces, sampling=Sampling(24, 0.7, top_p=0.8), key=5)
    bodies = [body for _, body, _ in server.asked]
    assert len(bodies) == 3 * 3 and len({body["seed"] for body in bodies}) == 9
    for trace in traces:
        turns = (
            domain.view(trace.task, [], "teacher"),
            domain.view(trace.task, domain.step_texts(trace), "checker"),
        )
        whole = [*turns[0], {"role": "assistant", "content": "It is 4."}, *turns[1]]
        assert sum(body["messages"] == turns[0] for body in bodies) == 1
        assert sum(body["messages"] == whole for body in bodies) == 2
    for body in bodies:
        told = {name: body[name] for name in ("model", "max_tokens", "temperature", "top_p")}
        assert told == {"model": "m", "max_tokens": 24, "temperature": 0.7, "top_p": 0.8}
    # What the interface counted: of the first candidate the turn before it, too.
    assert [[one["tokens"] for one in drops.tried[i]] for i in range(3)] == [[20, 10]] * 3
    again = [body["seed"] for body in bodies]
    server.asked.clear()
    ask(server, domain, traces, key=6)
    assert not {*again} & {body["seed"] for _, body, _ in server.asked}


def test_the_key_is_the_environments(server, domain, monkeypatch):
    monkeypatch.setenv("A_KEY", "secret")
    ask(server, domain, traces_of(domain)[:1], samples=1)
    ask(server, domain, traces_of(domain)[:1], samples=1, key_variable="A_KEY")
    assert [told for *_, told in server.asked] == [None, "Bearer secret"]
    assert {path for path, *_ in server.asked} == {"/v1/chat/completions"}


def test_no_content_is_no_intervention(server, domain):
    server.say = lambda chat: {"role": "assistant", "content": None}
    found, drops = ask(server, domain, traces_of(domain)[:2])
    assert found == [None, None] and {*drops.values()} == {"unparsed"}


def test_an_error_says_what_the_interface_said(server, domain):
    server.faults = [401]
    with pytest.raises(RuntimeError, match=r"/v1/chat/completions refuses what it was asked, 401"):
        ask(server, domain, traces_of(domain), at_once=1)
    assert len(server.asked) < 12  # what had not begun did not begin


@pytest.mark.parametrize(
    "knobs, said",
    [
        ({"url": ""}, "url is empty"),
        ({"model": ""}, "model is empty"),
        ({"key_variable": "NO_SUCH"}, "key_variable = 'NO_SUCH': there is no such variable"),
        ({"sampling": Sampling(24, top_k=20)}, "neither top-k nor min-p: set top_k=20"),
        ({"sampling": Sampling(24, min_p=0.1)}, "neither top-k nor min-p: .* min_p=0.1"),
    ],
    ids=str,
)
def test_a_teacher_that_cannot_be_asked_is_refused(server, domain, knobs, said):
    with pytest.raises(ValueError, match=f"teacher: .*{said}"):
        ask(server, domain, [], **knobs)
