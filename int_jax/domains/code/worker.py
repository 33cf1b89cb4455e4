"""The worker behind `sandbox.Sandbox`: runs programs against tests that they never see.

It is run by its path (`python -s -S -B worker.py DEADLINE_S MEMORY_BYTES guarded`) and loads the standard library
alone, so that it forks in a millisecond. Each item has two processes of its own, both confined (confine.py):

  the program's  reads the program, runs it, then calls what it is asked to call and sends the results;
  the tests'     reads the tests, asks for what they name but do not define, and says what came of each assert.

What passes between them is plain values, so a program can change a verdict by its results alone: it shares no
interpreter with the tests, and neither it nor any process that it was forked from has ever read them. They are confined
in one session with the worker, which no program can leave, so that whoever kills the session kills all of it.
"""

import ast
import builtins
import collections.abc
import itertools
import json
import os
import select
import signal
import symtable
import sys
import time
from collections.abc import Callable
from typing import Any

import confine

READY, STAYS, LEAVES = b"ready", b"+\n", b"-\n"  # as workers.py spells them
HEADER = 16  # two numbers of eight hex digits: bytes of program and tests
UNGUARDED = 3  # the exit status of a process that the kernel does not hold
MAX_REPLY = 1 << 26  # bytes of one result
MAX_ITEMS = 10_000  # of an iterator that a program gives
MAX_BITS = 10_000  # of an integer in decimal digits: converting longer ones takes quadratic time

# Values between the two processes -----------------------------------------------------------------------------------

SEQUENCES: dict[str, Any] = {"tuple": tuple, "set": set, "frozenset": frozenset}
ITERATORS = (collections.abc.Generator, map, filter, zip, enumerate, reversed)


def pack(value: Any, keep: Callable[[Any], Any]) -> Any:
    """A value as JSON: lists and scalars as they are, else {kind: what it holds}; `keep` makes that of an object."""
    # [1, (2, 3)] -> [1, {"tuple": [2, 3]}]; {"a": 1} -> {"dict": [["a", 1]]}. A dict in the JSON is always such a note,
    # never a value, so that the two cannot be confused.
    if value is None or isinstance(value, bool | str | float):
        return str(value) if isinstance(value, str) else value
    if isinstance(value, int):
        return int(value) if value.bit_length() < MAX_BITS else {"int": hex(value)}
    if isinstance(value, list):
        return [pack(one, keep) for one in value]
    if isinstance(value, dict):
        return {"dict": [[pack(k, keep), pack(v, keep)] for k, v in value.items()]}
    for kind, made in SEQUENCES.items():
        if isinstance(value, made):
            return {kind: [pack(one, keep) for one in value]}
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, range):
        return {"range": [value.start, value.stop, value.step]}
    if isinstance(value, ITERATORS):
        return {"iterator": [pack(one, keep) for one in itertools.islice(value, MAX_ITEMS)]}
    return {"object": keep(value)}


def unpack(value: Any, find: Callable[[int], Any]) -> Any:
    """The value that `pack` packed; `find` gives an object back."""
    if isinstance(value, list):
        return [unpack(one, find) for one in value]
    if not isinstance(value, dict):
        return value
    [(kind, held)] = value.items()
    if kind in SEQUENCES:
        return SEQUENCES[kind](unpack(held, find))
    if kind == "dict":
        return {unpack(k, find): unpack(v, find) for k, v in held}
    if kind == "iterator":
        return iter(unpack(held, find))
    plain = {"int": lambda: int(held, 16), "bytes": lambda: bytes.fromhex(held), "object": lambda: find(held)}
    plain |= {"complex": lambda: complex(*held), "range": lambda: range(*held)}
    return plain[kind]()


class Link:
    """Lines of JSON over two pipes."""

    def __init__(self, reads: int, writes: int):
        self.reads, self.writes = os.fdopen(reads, "rb"), os.fdopen(writes, "wb", 0)

    def send(self, **message) -> None:
        self.writes.write(json.dumps(message).encode("ascii") + b"\n")

    def receive(self) -> dict | None:
        """None where the other side is gone, or says more than it may."""
        line = self.reads.readline(MAX_REPLY)
        return json.loads(line) if line.endswith(b"\n") else None


# The program's process ----------------------------------------------------------------------------------------------


def run(source: dict, link: Link) -> None:
    """Runs `given`, what the problem states, as far as it is code; then the program; then what it is asked to."""
    namespace: dict[str, Any] = {"__name__": "program", "__builtins__": builtins}
    for one in source["given"]:
        try:
            exec(compile(one, "problem", "exec", dont_inherit=True), namespace)
        except BaseException:  # an example, or another language: the program has to do without
            continue
    try:
        code = compile(source["program"], "program", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError) as error:
        link.send(unparsable=told(error))
        return
    try:
        exec(code, namespace)
    except BaseException as error:
        link.send(failed=told(error))
        return
    link.send(loaded=True)
    answer_calls(namespace, link)


def answer_calls(namespace: dict, link: Link) -> None:
    # What the tests hold by number. They ask for a name of the program, an attribute of an object, or a call of one.
    objects: list[Any] = []

    def keep(value: Any) -> int:
        objects.append(value)
        return len(objects) - 1

    while (asked := link.receive()) is not None:
        try:
            if "name" in asked and asked["name"] not in namespace:
                raise NameError(f"the program defines no {asked['name']}")
            if "name" in asked:
                value = namespace[asked["name"]]
            elif "attribute" in asked:
                value = getattr(objects[asked["of"]], asked["attribute"])
            else:
                positional, named = unpack(asked["arguments"], objects.__getitem__)
                value = objects[asked["of"]](*positional, **named)
            packed = pack(value, keep)
        except BaseException as error:
            link.send(raised=type(error).__name__, text=told(error).partition(": ")[2])
            continue
        link.send(value=packed)


def told(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"[:200]
    except BaseException:  # an error that cannot be printed
        return type(error).__name__


# The tests' process -------------------------------------------------------------------------------------------------


class Gone(BaseException):
    """The program's process has ended."""


class Object:
    """An object that stays in the program's process: it can be called, its attributes asked for; it equals itself."""

    def __init__(self, program: "Program", number: int):
        self.__program, self.__number = program, number

    def __call__(self, *positional, **named):
        arguments = pack([list(positional), named], self.__program.number_of)
        return self.__program.ask(of=self.__number, arguments=arguments)

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return self.__program.ask(of=self.__number, attribute=name)


class Program:
    """The program, as the tests see it."""

    def __init__(self, link: Link):
        self.link = link
        self.objects: dict[int, Object] = {}

    def hear(self) -> dict:
        heard = self.link.receive()
        if heard is None:
            raise Gone
        return heard

    def ask(self, **question) -> Any:
        try:
            self.link.send(**question)
        except BrokenPipeError:
            raise Gone from None
        heard = self.hear()
        if "raised" in heard:
            # Tests may expect a ValueError: Python's errors keep their kind, the program's own are RuntimeErrors.
            kind = getattr(builtins, heard["raised"], None)
            if isinstance(kind, type) and issubclass(kind, Exception):
                raise kind(heard["text"])
            raise RuntimeError(heard["text"])
        return unpack(heard["value"], self.object)

    def object(self, number: int) -> Object:
        return self.objects.setdefault(number, Object(self, number))

    def number_of(self, value: Any) -> int:
        for number, one in self.objects.items():
            if one is value:
                return number
        raise TypeError(f"tests cannot hand over a {type(value).__name__}")


class Asserts(ast.NodeTransformer):
    """Writes `with TEST(number): assert ...` for each assert, so that the ones after a failed one are tried, too."""

    TEST = "_int_jax_test"

    def __init__(self):
        self.texts: list[str] = []

    def visit_Assert(self, node: ast.Assert) -> ast.With:
        number = ast.Constant(len(self.texts))
        self.texts.append(ast.unparse(node)[:120])
        call = ast.Call(ast.Name(self.TEST, ast.Load()), [number], [])
        return ast.copy_location(ast.With([ast.withitem(call)], [node]), node)


class Score:
    """Which asserts were tried, and which of them failed, with the first reason."""

    def __init__(self, texts: list[str]):
        self.texts, self.number = texts, 0
        self.tried: set[int] = set()
        self.failed: set[int] = set()
        self.detail = ""

    def test(self, number: int) -> "Trial":
        return Trial(self, number)

    def book(self, number: int, error: BaseException | None) -> None:
        self.tried.add(number)
        if error is not None:
            self.failed.add(number)
            why = "" if isinstance(error, AssertionError) else f" ({told(error)})"
            self.detail = self.detail or f"{self.texts[number]}{why}"


class Trial:
    def __init__(self, score: Score, number: int):
        self.score, self.number = score, number

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind, error, trace) -> bool:
        if isinstance(error, Gone):
            return False
        self.score.book(self.number, error)
        # True: it is booked, and the next assert is tried. SystemExit and its like end the tests.
        return isinstance(error, Exception)


def names_wanted(source: str) -> list[str]:
    """What the program must give: names that tests use and do not define, builtins only if declared `global`."""
    # "assert solve(len([1])) == 1" wants solve: len is a builtin. Bound is what the tests make at the top, or in a
    # function that declares it global.
    top = symtable.symtable(source, "tests", "exec")
    used: set[str] = set()
    bound: set[str] = set()
    declared: set[str] = set()
    scopes = [top]
    while scopes:
        scope = scopes.pop()
        scopes += scope.get_children()
        for one in scope.get_symbols():
            at_top = scope is top
            if at_top and one.is_declared_global():
                declared.add(one.get_name())
            elif at_top or one.is_global():
                made = one.is_assigned() or one.is_imported() or (at_top and one.is_namespace())
                (bound if made else used).add(one.get_name())
    return sorted((used - bound - set(dir(builtins)) - {"__name__", "__file__"}) | declared)


def unusable(detail: str) -> dict:
    """Said of tests that cannot be used."""
    return {"reason": "", "share": 0.0, "detail": detail}


def judge(source: str, program: Program) -> dict:
    """What the tests say: {"reason", "share": of the asserts that held, "detail": of the first that did not}."""
    try:
        wanted, marked = names_wanted(source), Asserts()
        code = compile(ast.fix_missing_locations(marked.visit(ast.parse(source))), "tests", "exec")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return unusable(f"the tests are no Python: {told(error)}")
    if not marked.texts:
        return unusable("the tests hold no assert")
    if not wanted:
        return unusable("the tests use nothing that they do not define")
    score = Score(marked.texts)
    stopped = ""
    try:
        loaded = program.hear()
        for key, reason in (("unparsable", "unparsable"), ("failed", "wrong")):
            if key in loaded:
                return {"reason": reason, "share": 0.0, "detail": loaded[key]}
        namespace = {"__name__": "tests", Asserts.TEST: score.test}
        exec(code, namespace | {name: program.ask(name=name) for name in wanted})
    except Gone:
        return {"reason": "gone", "share": 0.0, "detail": "the program ended before its tests"}
    except BaseException as error:
        stopped = told(error)
    held = len(score.tried - score.failed)
    # Tests that end before their asserts, by an error or an exit, prove nothing.
    if held and not score.failed and not stopped:
        return {"reason": "correct", "share": 1.0, "detail": ""}
    return {"reason": "wrong", "share": held / len(marked.texts), "detail": score.detail or stopped}


# The worker ---------------------------------------------------------------------------------------------------------


def read(size: int) -> bytes:
    """So many bytes of stdin, and not one more; fewer where it ends."""
    parts: list[bytes] = []
    while size and (part := os.read(0, size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def fork(role: Callable[[], None], close: set[int]) -> int:
    """A child without these descriptors; it ends with its role."""
    pid = os.fork()
    if pid:
        return pid
    try:
        for one in close:
            os.close(one)
        role()
    finally:
        os._exit(0)


class Item:
    """One program and its tests."""

    def __init__(
        self,
        program_bytes: int,
        tests_bytes: int,
        replies: int,
        deadline_s: float,
        memory_bytes: int,
        unguarded: bool,
    ):
        self.program_bytes, self.tests_bytes = program_bytes, tests_bytes
        self.deadline_s, self.memory_bytes, self.unguarded = deadline_s, memory_bytes, unguarded
        self.asks, self.answers, self.verdict = os.pipe(), os.pipe(), os.pipe()
        self.open = {replies, *self.asks, *self.answers, *self.verdict}

    def confined(self) -> None:
        os.dup2(1, 0)  # nothing to read
        if not confine.confine(self.deadline_s, self.memory_bytes) and not self.unguarded:
            os._exit(UNGUARDED)

    def program(self) -> None:
        source = json.loads(read(self.program_bytes))
        link = Link(self.asks[0], self.answers[1])
        link.send(read=True)
        self.confined()
        run(source, link)

    def tests(self) -> None:
        program = Program(Link(self.answers[0], self.asks[1]))
        program.hear()  # the program is read: the tests come next
        source = read(self.tests_bytes).decode("utf-8", "surrogatepass")
        self.confined()
        found = json.dumps(judge(source, program)).encode("ascii")
        with os.fdopen(self.verdict[1], "wb") as file:
            file.write(found)

    def outcome(self) -> bytes:
        """The reply."""
        expires = time.monotonic() + self.deadline_s
        pids = [fork(self.program, self.open - {self.asks[0], self.answers[1]})]
        pids.append(fork(self.tests, self.open - {self.asks[1], self.answers[0], self.verdict[1]}))
        for one in (*self.asks, *self.answers, self.verdict[1]):
            os.close(one)
        told, late = self.listen(expires)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        ends = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        os.close(self.verdict[0])
        if ends[1] == UNGUARDED:  # of the tests' process: a program may end as it likes
            return json.dumps(unusable("") | {"reason": "unguarded"}).encode("ascii") + LEAVES
        found = {"reason": "timeout", "share": 0.0, "detail": "too long, or too much memory"}
        if told and not late:
            found = json.loads(told)
            if found["reason"] == "gone":
                # A negative exit code is a signal: a limit ended the program. One that exits by itself is wrong.
                found["reason"] = "timeout" if ends[0] < 0 else "wrong"
        # What is late, or was ended by a limit, may have left its tests unread in the pipe.
        return json.dumps(found).encode("ascii") + (STAYS if told and not late else LEAVES)

    def listen(self, expires: float) -> tuple[bytes, bool]:
        """What the tests' process says until it ends; whether that took too long."""
        told, poll = b"", select.poll()
        poll.register(self.verdict[0])
        poll.register(0, 0)  # tells of nothing but the other end's being closed
        while ready := poll.poll(1e3 * max(0.0, expires - time.monotonic())):
            if any(one == 0 for one, _ in ready):
                leave()
            part = os.read(self.verdict[0], 1 << 16)
            if not part:
                return told, False
            told += part
        return told, True


def leave() -> None:
    """The caller is gone: ends the session, the programs in it included."""
    os.killpg(0, signal.SIGKILL)


def main(deadline_s: float, memory_bytes: int, unguarded: bool) -> None:
    sys.path.pop(0)  # this folder, which is no program's
    os.environ.clear()
    os.chdir("/")
    confine.hide()
    replies = os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    os.write(replies, READY + STAYS)
    while len(header := read(HEADER)) == HEADER:
        sizes = int(header[:8], 16), int(header[8:], 16)
        os.write(replies, Item(*sizes, replies, deadline_s, memory_bytes, unguarded).outcome())
    leave()


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "unguarded")
