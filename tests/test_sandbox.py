"""Programs under test: what each gets for what it does, that nothing of it stays, and that no verdict can be forged."""

import os
import pathlib
import subprocess
import sys

import pytest

from int_jax.domains.code import confine, sandbox
from int_jax.domains.code.sandbox import Item, Outcome, Sandbox

FOLDER = pathlib.Path(sandbox.__file__).parent
PATIENCE_S = 600.0  # for what ends by itself: a busy machine may take long
TESTS = "assert f(2) == 4\nassert f([1]) == [1, 1]\n"
RIGHT = "def f(x): return 2 * x"

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or os.uname().machine not in confine.MACHINES,
    reason="what the kernel holds: on Linux",
)


def session(pids) -> set[int]:
    """The processes in the sessions of these workers, the workers apart."""
    found = set()
    for one in pathlib.Path("/proc").iterdir():
        if one.name.isdigit():
            try:
                fields = (one / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[3]) in pids and fields[0] != "Z":
                found.add(int(one.name))
    return found - set(pids)


class Changed(Sandbox):
    """A worker with something of it replaced before it starts: `change` is Python."""

    def __init__(self, change: str, **options):
        super().__init__(**({"deadline_s": PATIENCE_S} | options))
        self.change = change

    def command(self):
        *_, deadline, memory, guarded = super().command()
        script = (
            f"import sys; sys.path.insert(0, {str(FOLDER)!r})\nimport os, confine, worker\n{self.change}\n"
        )
        script += f"worker.main({deadline}, {memory}, {guarded == 'unguarded'})"
        return [sys.executable, "-s", "-S", "-B", "-c", script]


@pytest.fixture(scope="module")
def box():
    with Sandbox(PATIENCE_S) as one:
        yield one
        assert session(one.pids()) == set()


def judged(box, program: str, tests: str = TESTS, given: tuple[str, ...] = ()) -> Outcome:
    [found] = box.judge([Item(given, program, tests)])
    assert session(box.pids()) == set()
    return found


# --- verdicts ---

VERDICTS = {
    "right": (RIGHT, "correct"),
    "wrong": ("def f(x): return 5", "wrong"),
    "undefined": ("g = 1", "wrong"),
    "no function": ("f = 4", "wrong"),
    "syntax": ("def f(x) return 2", "unparsable"),
    "null": ("f = 1\0", "unparsable"),
    "nested": ("f = " + "(" * 10_000 + ")" * 10_000, "unparsable"),
    "signs": ("f = " + "-" * 100_000 + "1", "unparsable"),
    "half a letter": ("f = '\ud800'", "unparsable"),
    "raises": ("raise KeyError", "wrong"),
    "raises what cannot be printed": ("class E(Exception):\n  def __str__(self): raise self\nraise E", "wrong"),
    "deep recursion": ("def f(x): return f(x)", "wrong"),
    "deep result": ("def f(x):\n  y = []\n  for _ in range(10**5): y = [y]\n  return y", "wrong"),
    "circular result": ("def f(x):\n  y = []\n  y.append(y)\n  return y", "wrong"),
    "memory": ("def f(x): return bytearray(1 << 34)", "wrong"),
    "memory by and by": ("def f(x):\n  y = []\n  while True: y.append(bytearray(1 << 20))", "wrong"),
    "a crash": ("import faulthandler\ndef f(x): faulthandler._read_null()", "timeout"),
    "much output": ("def f(x):\n  print('x' * 10**8)\n  return 2 * x", "correct"),
    "endless input": ("import sys\ndef f(x): return 2 * x + len(sys.stdin.read())", "wrong"),
    "threads": ("import threading, time\ndef f(x):\n  threading.Thread(target=time.sleep, args=(999,)).start()\n"
                "  return 2 * x", "correct"),
    "many threads": ("import threading, time\ndef f(x):\n  while True:\n"
                     "    threading.Thread(target=time.sleep, args=(999,)).start()", "wrong"),
    "imports": ("import asyncio, random, math, re, collections, datetime, zoneinfo, decimal, fractions, heapq, typing\n"
                + RIGHT, "correct"),
    "a future": ("from __future__ import annotations\n" + RIGHT, "correct"),
    "not the script": ("if __name__ == '__main__': raise SystemExit\n" + RIGHT, "correct"),
}  # fmt: skip


@pytest.mark.parametrize("name", VERDICTS)
def test_a_program_gets_its_verdict(box, name):
    program, reason = VERDICTS[name]
    found = judged(box, program)
    assert found.reason == reason, found
    assert judged(box, RIGHT).reason == "correct"


# What a program tries to pass with that does not double. Each would pass, or end the run, if it had the means.
FORGERIES = {
    "exit": "import os\nos._exit(0)",
    "the exit of one that is not held": "import os\nos._exit(3)",
    "exit in a test": "import os\ndef f(x): os._exit(0)",
    "system exit": "import sys\nsys.exit(0)",
    "system exit in a test": "def f(x): raise SystemExit(0)",
    "prints": 'print(\'correct\', \'{"reason": "correct", "share": 1.0}\', flush=True)\nf = print',
    "an equal object": "class A:\n  def __eq__(self, other): return True\n  def __ne__(self, other): return False\n"
    "def f(x): return A()",
    "an equal list": "class A(list):\n  def __eq__(self, other): return True\ndef f(x): return A()",
    "an equal number": "class A(int):\n  def __eq__(self, other): return True\ndef f(x): return A(3)",
    "an object that calls itself everything": "class A:\n  __class__ = int\n  def bit_length(self): return 1\n"
    "  def __int__(self): return 4\ndef f(x): return A()",
    "builtins": "import builtins\nbuiltins.AssertionError = builtins.len = builtins.isinstance = lambda *_: True\n"
    "def f(x): return 5",
    "json": "import json\njson.dumps = lambda *_, **__: '{\"value\": 4}'\ndef f(x): return 4 if x == 2 else 0",
    "the tests in memory": "import gc, sys\ndef f(x):\n  frame = sys._getframe()\n  while frame:\n"
    "    if 'assert' in repr(frame.f_locals): return 4\n    frame = frame.f_back\n"
    "  return 4 if any('assert f(' in repr(one) for one in gc.get_objects() if isinstance(one, dict)) else 5",
    "replies ahead": "import os\nfor fd in range(3, 64):\n  try: os.write(fd, b'{\"value\": true}\\n' * 100)\n"
    "  except OSError: pass\ndef f(x): return 5",
    "no reply": "import os\nos.closerange(0, 99)",
    "another error": "def f(x): raise AssertionError",
    "no error": "def f(x): raise type('StopIteration', (BaseException,), {})",
    "a signal": "import os, signal\ndef f(x): os.kill(os.getppid(), signal.SIGKILL)",
    "the group's end": "import os, signal\ndef f(x): os.killpg(0, signal.SIGKILL)",
    "at exit": "import atexit, os\natexit.register(os.system, 'true')\nraise SystemExit(0)",
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_verdict_cannot_be_forged(box, name):
    found = judged(box, FORGERIES[name])
    assert found.reason in ("wrong", "timeout") and found.share < 1, found
    assert judged(box, RIGHT).reason == "correct"


ENDLESS = {
    "loop": "def f(x):\n  while True: pass",
    "sleep": "import time\ndef f(x): time.sleep(3600)",
    "at import": "while True: pass",
    "a power": "def f(x): return 9 ** 9 ** 9 ** 9",
    "a pattern": "import re\ndef f(x): return re.match('(a+)+b', 'a' * 99)",
    "an iterator": "def f(x):\n  class A:\n    def __iter__(self): return self\n    def __next__(self): return 1\n"
    "  return list(A()) if x == 2 else 0",
    "a fork bomb": "import os\ndef f(x):\n  while True:\n    try: os.fork()\n    except OSError: pass",
    "deaf to signals": "import signal\nfor one in range(1, 32):\n  try: signal.signal(one, signal.SIG_IGN)\n"
    "  except (OSError, ValueError): pass\nwhile True: pass",
    "a flood": "import os\nwhile True:\n  for fd in range(3, 10):\n    try: os.write(fd, b'x' * 1000)\n"
    "    except OSError: pass",
}  # fmt: skip


@pytest.mark.parametrize("name", ENDLESS)
def test_what_does_not_end_is_ended(name):
    with Sandbox(0.3) as box:
        found = judged(box, ENDLESS[name])
        # Endless lists and floods may meet the limit of memory before that of time.
        assert found.reason in (
            ("timeout", "wrong") if name in ("an iterator", "a flood") else ("timeout",)
        ), found


def test_a_killed_worker_takes_its_program_along():
    with Sandbox(PATIENCE_S) as box:
        box.workers = 1
        listen, seen = box._listen, []

        def kill(replies):
            [worker] = box._staff
            if worker.item == 0:
                while len(seen) < 2:  # the program's process, and the tests'
                    seen[:] = session(box.pids())
                worker.expires = 0
            listen(replies)

        box._listen = kill
        [found] = box.judge([Item((), ENDLESS["sleep"], TESTS)])
    assert found.reason == "timeout" and len(seen) == 2
    while any(pathlib.Path(f"/proc/{pid}").exists() for pid in seen):
        pass


CALLER = """
import os, signal, sys, threading
sys.path.insert(0, {root!r})
from int_jax.domains.code.sandbox import Item, Sandbox
box = Sandbox(600.0)
item = Item((), "import time\\ndef f(x): time.sleep(3600)", "assert f(2) == 4")
threading.Thread(target=box.judge, args=([item],), daemon=True).start()
while not (box._staff and box._staff[0].item == 0): pass
print(*box.pids(), flush=True)
sys.stdin.read(1)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_programs_end_with_a_killed_caller():
    script = CALLER.format(root=str(FOLDER.parents[2]))
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as caller:
        [pid] = map(int, caller.stdout.readline().split())
        while len(session([pid])) < 2:
            pass
        caller.communicate(b"x")
    while session([pid]) or pathlib.Path(f"/proc/{pid}").exists():
        pass


# --- what the kernel holds, and what the guard ---

# Each f gives 4 and [1, 1] if the operation is refused.
TRIED = {
    "fork": "os.fork()",
    "spawn": "os.posix_spawn('/bin/true', ['true'], {})",
    "exec": "os.execv('/bin/true', ['true'])",
    "popen": "__import__('subprocess').run(['/bin/true'])",
    "socket": "__import__('socket').create_connection(('127.0.0.1', 9))",
    "pair": "__import__('socket').socketpair()",
    "kill": "os.kill(os.getppid(), 0)",
    "write": "open(PATH + '/new', 'w')",
    "append": "open(PATH + '/old', 'a')",
    "low write": "os.open(PATH + '/old', os.O_RDWR)",
    "remove": "os.remove(PATH + '/old')",
    "rename": "os.rename(PATH + '/old', PATH + '/new')",
    "truncate": "os.truncate(PATH + '/old', 0)",
    "folder": "os.mkdir(PATH + '/new')",
    "rights": "os.chmod(PATH + '/old', 0o777)",
    "link": "os.symlink('/etc', PATH + '/new')",
    "times": "os.utime(PATH + '/old')",
    "limits": "__import__('resource').prlimit(os.getppid(), __import__('resource').RLIMIT_NOFILE, (9, 9))",
    "parent's memory": "open(f'/proc/{os.getppid()}/mem', 'rb').read(1)",
    "parent's tests": "open(f'/proc/{os.getppid()}/fd/0', 'rb')",
}
BY_KERNEL_ALONE = {
    "session": "os.setsid()",
    "new namespace": "LIBC.unshare(0x10000000) and REFUSE()",
    "thread's signal": "LIBC.tgkill(os.getppid(), os.getppid(), 0) and REFUSE()",
    "memory file": "os.memfd_create('x')",
    "trace": "LIBC.ptrace(16, os.getppid(), 0, 0) and REFUSE()",
    "ring": "LIBC.syscall(425, 1, 0) < 0 and REFUSE()",
}
BY_GUARD_ALONE = {"a file": "open(PATH + '/old')", "ctypes": "LIBC"}
PROGRAM = """
import os
PATH = {path!r}
def REFUSE(): raise PermissionError
def f(x):
    try:
        {operation}
    except PermissionError:
        return 2 * x
    return 'done'
"""
LIBC = "__import__('ctypes').CDLL(None)"
# Who changes its user cannot be looked into any more: as if it had been started by that user, it can be again.
NOBODY = "os.setgroups([]); os.setgid(65534); os.setuid(65534); confine._prctl(confine.PR_SET_DUMPABLE, 1)"
# Loaded before another user may no longer read them.
LOADED = "import socket, subprocess, resource, ctypes, encodings.idna"


def tried(operation: str, path: pathlib.Path) -> str:
    return PROGRAM.format(path=str(path), operation=operation.replace("LIBC", LIBC))


@pytest.fixture
def folder(tmp_path):
    """A file that everybody may change, in a folder that everybody may."""
    (tmp_path / "old").write_text("old")
    for one in (tmp_path, tmp_path / "old"):
        one.chmod(0o777)
    yield tmp_path
    assert [one.name for one in tmp_path.iterdir()] == ["old"] and (tmp_path / "old").read_text() == "old"
    assert (tmp_path / "old").stat().st_mode & 0o777 == 0o777


def all_refused(box, operations: dict[str, str], folder) -> None:
    found = box.judge([Item((), tried(one, folder), TESTS) for one in operations.values()])
    kept = dict(zip(operations, found, strict=True))
    assert {name: one for name, one in kept.items() if one.reason != "correct"} == {}
    assert session(box.pids()) == set()


def test_the_kernel_refuses_what_the_guard_would_let_pass(folder):
    with Changed(f"{LOADED}\nconfine.guard = lambda: None") as box:
        all_refused(box, TRIED | BY_KERNEL_ALONE, folder)


@pytest.mark.skipif(os.getuid() != 0, reason="root alone can become another user")
def test_the_kernel_holds_for_a_plain_user_as_for_root(folder):
    with Changed(f"{LOADED}\nconfine.guard = lambda: None\n{NOBODY}") as box:
        all_refused(box, TRIED | BY_KERNEL_ALONE, folder)
    with Changed(f"{LOADED}\n{NOBODY}", deadline_s=0.3) as box:
        assert judged(box, ENDLESS["a fork bomb"]).reason == "timeout"
        assert judged(box, FORGERIES["a signal"]).reason in ("wrong", "timeout")


def test_the_guard_refuses_alone_what_python_asks_for(folder):
    with Changed(f"{LOADED}\nconfine.by_kernel = lambda: False", unguarded=True) as box:
        all_refused(box, TRIED | BY_GUARD_ALONE, folder)


def test_without_the_kernel_nothing_is_run_unless_it_is_asked_for():
    with (
        Changed("confine.by_kernel = lambda: False") as box,
        pytest.raises(RuntimeError, match="knob unguarded"),
    ):
        judged(box, RIGHT)


@pytest.mark.parametrize("machine", confine.MACHINES)
def test_the_filter_jumps_within_itself_and_refuses_by_default_another_machine(machine):
    code = [*confine.bpf(machine)]
    for at, (operation, true, false, _) in enumerate(code):
        if operation in (confine.EQUAL, confine.AT_LEAST, confine.ANY_BIT):
            assert at + 1 + max(true, false) < len(code)
    assert code[2] == (confine.RETURN, 0, 0, confine.KILL) and code[-1] == (
        confine.RETURN,
        0,
        0,
        confine.ALLOW,
    )
    column = confine.MACHINES[machine][0]
    numbers = [one[column] for one in confine.REFUSED.values() if one[column] >= 0]
    assert len(set(numbers)) == len(numbers), "a number stands twice"


def test_it_has_no_environment_and_no_library_but_pythons():
    with Sandbox(PATIENCE_S) as box:
        program = "import os\ndef f(): return len(os.environ), os.getcwd()\ndef g():\n  import numpy\n"
        tests = (
            "assert f() == (0, '/')\ntry: g()\nexcept ModuleNotFoundError as e: assert 'numpy' in str(e)\n"
        )
        tests += "else: assert False\n"
        assert judged(box, program, tests).reason == "correct"


# --- tests ---

COUNTER = """
class Counter:
    def __init__(self, start=0): self.n = start
    def add(self, k=1):
        self.n += k
        return self
"""
ENDLESS_ONES = "def f(n):\n  while True:\n    n += 1\n    yield n"
GOOD = {
    "values": ("def f(*a, **k): return (a, k)",
               "assert f(1, 2.5, -0.0, x=[None, True, {1: {2}, (3,): b'4'}], y='\\ud800') == "
               "((1, 2.5, -0.0), {'x': [None, True, {1: {2}, (3,): b'4'}], 'y': '\\ud800'})\n"
               "assert f(10**9000, frozenset([1]), 2j, range(3))[0] == (10**9000, frozenset([1]), 2j, range(3))\n"
               "assert repr(f(float('inf'), float('nan'))) == '((inf, nan), {})'"),
    "iterators": (ENDLESS_ONES, "assert next(f(1)) == 2 and sum(zip(*[f(1)]).__next__()) == 2"),
    "objects": (COUNTER, "c = Counter(start=3)\nassert c.add().add(k=2).n == 6 == c.n\nassert c != Counter(6)"),
    "objects handed back": ("class A: n = 7\ndef f(a): return a.n", "assert f(A()) == 7"),
    "errors": ("def f(x): raise ValueError('no')",
               "try:\n  f(1)\nexcept ValueError as error:\n  assert str(error) == 'no'\nelse:\n  assert False"),
    "errors of its own": ("class E(KeyError): pass\ndef f(x): raise E('boo')",
                          "try:\n  f(1)\nexcept RuntimeError as e:\n  assert 'boo' in str(e)\nelse:\n  assert False"),
    "a builtin's name": ("def sum(a, b): return a - b", "global sum\nassert sum(5, 3) == 2"),
    "helpers": (RIGHT, "import math\ndef near(a, b): return math.fabs(a - b) < 1e-6\nassert near(f(0.5), 1)"),
    "a check": (RIGHT, "def check(g):\n  for i in range(9):\n    assert g(i) == 2 * i\ncheck(f)"),
    "comprehensions": (RIGHT, "assert [f(i) for i in range(3)] == [0, 2, 4]"),
    "a class": (RIGHT, "class T:\n  k = 2\n  def run(self):\n    assert f(self.k) == 4\nT().run()"),
    "a long one": ("def f(x): return x", f"assert f({'x' * 200_000!r}) == {'x' * 200_000!r}"),
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_what_tests_may_say(box, name):
    program, tests = GOOD[name]
    assert judged(box, program, tests) == ("correct", 1.0, "")


def test_the_share_counts_asserts_and_a_failed_one_stops_none(box):
    program = "def f(x):\n  if x == 3: raise ValueError(x)\n  return 2 * x"
    tests = "assert f(1) == 2\nassert f(2) == 5\nassert f(3) == 6\nassert f(4) == 8\n"
    assert judged(box, program, tests) == ("wrong", 0.5, "assert f(2) == 5")
    each = "def check(g):\n  for i in range(5):\n    assert g(i) == 2 * i\n  assert g(1) == 2\ncheck(f)"
    assert judged(box, program, each) == ("wrong", 0.5, "assert g(i) == 2 * i (ValueError: 3)")
    ended = judged(box, program, "assert f(1) == 2\nf(3)\nassert f(1) == 2")
    assert (ended.reason, ended.share) == ("wrong", 0.5) and "ValueError: 3" in ended.detail, ended


def test_a_test_that_is_not_reached_does_not_hold(box):
    found = judged(box, "def f(x): raise KeyError", "assert True\nf(1)\nassert True\n")
    assert (found.reason, found.share) == ("wrong", 0.5)
    assert judged(box, "def f(x): pass", "def check(g):\n  assert g(1)\nf").reason == "wrong"


@pytest.mark.parametrize(
    ("tests", "detail"),
    [
        ("assert f(", "the tests are no Python: SyntaxError"),
        ("f(1)", "the tests hold no assert"),
        ("def f(x): return x\nassert f(1)", "the tests use nothing that they do not define"),
        ("assert sum([1])", "the tests use nothing that they do not define"),
    ],
)
def test_tests_that_cannot_be_used(box, tests, detail):
    found = judged(box, RIGHT, tests)
    assert found.reason == "" and detail in found.detail


def test_what_a_problem_gives_comes_before_the_program(box):
    given = (
        "import math\ndef f(x):\n  ...",
        "this is no Python",
        "raise KeyError",
        "def double(x): return 2 * x",
    )
    assert judged(box, "def f(x): return double(x)", TESTS, given).reason == "correct"
    assert judged(box, "def g(x): return double(x)", TESTS, given).reason == "wrong"


def test_equal_items_run_once_and_all_are_answered_in_order(box):
    items = [Item((), program, TESTS) for program in (RIGHT, "f = 4", "def f(", RIGHT, RIGHT)]
    asked, ask = [], box.ask
    box.ask = lambda requests, *more: asked.append(len(requests)) or ask(requests, *more)
    assert [one.reason for one in box.judge(items)] == [
        "correct",
        "wrong",
        "unparsable",
        "correct",
        "correct",
    ]
    del box.ask
    assert asked == [3] and box.judge([]) == []
