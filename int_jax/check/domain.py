"""The contract of a domain (`domains.Domain`), held over a small tokenizer that can write any text."""

import dataclasses
import json
import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from int_jax import domains, privileged, rollout, types
from int_jax.domains import Domain
from int_jax.knobs import Knob
from int_jax.lm import ROLES
from int_jax.tokenizer import Tokenizer
from int_jax.types import REASONS, STOPS, Intervention, Reply, Task, Trace, Verdict, normalised

COUNT = 6  # tasks of a split
# What models write instead of a solution: nothing, blanks, an answer cut off, broken LaTeX, a control token's text, and
# far too much.
WRONG: tuple[str, ...] = (
    *(
        "",
        " \n",
        "I cannot tell.",
        "\\boxed{",
        "\\boxed{}",
        "\\boxed{\\frac{1}{}",
        "<|im_end|>",
        "\\boxed{é\u2028}",
    ),
    *("\\boxed{" + "9" * 20_000 + "}", "word " * 4_000, "x\n\n" * 400),
)
SHAPES = ("a", "a\n\nb", "\n\na\n\n\n\nb\n\n", "one\n\n```\nx = 1\n\ny = 2\n```\n\nend", "a\nb\nc")


@dataclasses.dataclass(frozen=True)
class Subject:
    """A domain under check.

    Attributes:
      build: its class. domain: that, over the tokenizer, with the knobs.
      tasks: by split, some of its problems; those of a file are of the split "file".
    """

    build: type[Domain]
    tokenizer: Tokenizer
    knobs: dict
    domain: Domain
    tasks: dict[str, list[Task]]

    @property
    def some(self) -> list[Task]:
        """Two problems of each split."""
        return [task for found in self.tasks.values() for task in found[:2]]


def subject(name: str, tokenizer: Tokenizer, problems: list[Task], **knobs) -> Subject:
    """The domain that a text names, with its own problems, or those that are given.

    Raises: ValueError where it cannot be loaded or made, or has no problem to be checked with.
    """
    build = domains.find(name)
    table: dict[str, Any] = build.KNOBS
    if foreign := [knob for knob, one in table.items() if not isinstance(one, Knob)]:
        raise ValueError(
            f"KNOBS[{foreign[0]!r}] of the domain {name}: write int_jax.knobs.Knob(default, 'what it is')"
        )
    domain = build(tokenizer, **knobs)
    tasks = {"file": problems} if problems else {s: domain.tasks(s, 0, COUNT) for s in build.splits}
    if not any(tasks.values()):
        raise ValueError(
            f"the domain {name} has no problems of its own (splits = ()), and its contract is checked with some: give "
            "--problems FILE, a JSONL file with the columns problem, answer, reference_solution"
        )
    return Subject(build, tokenizer, knobs, domain, tasks)


def trace_of(domain: Domain, task: Task, text: str, stop: str = "stop") -> Trace:
    """A response with this text, as if a policy had drawn it."""
    end = domain.tokenizer.stop_ids[:1] if stop == "stop" else ()
    trace = rollout.append(rollout.open_trace(domain, task), [*domain.tokenizer.encode(text), *end])
    return trace.replace(step_ends=domain.steps(trace.tokens, trace.prompt_len), stop=stop)


def solved(s: Subject, task: Task) -> Trace:
    """What is best, from the problem to the end."""
    return rollout.play(s.domain, task, s.domain.next_turn)


def check_knobs(s: Subject) -> Iterator[str]:
    """A knob that is not in KNOBS is refused by its name."""
    try:
        s.build(s.tokenizer, **s.knobs, no_such_knob=1)
    except ValueError as error:
        if "no_such_knob" not in str(error):
            yield f"build(tokenizer, no_such_knob=1) raises {str(error)!r:.80}, which does not name the knob"
    except TypeError as error:
        yield f"build(tokenizer, no_such_knob=1) raises TypeError ({error}): derive from TextDomain"
    else:
        yield "build(tokenizer, no_such_knob=1) is taken: a misspelled knob would have no effect; call knobs.check"


def check_tasks(s: Subject) -> Iterator[str]:
    """tasks(split, seed, count) gives that many, the same each time, and none that is in another split."""
    seen: dict[str, str] = {}
    names: dict[str, str] = {}
    for split, found in s.tasks.items():
        if split in s.build.splits:
            if len(found) != COUNT:
                yield f"tasks({split!r}, 0, {COUNT}) gives {len(found)}: give as many, or raise ValueError"
            if s.build(s.tokenizer, **s.knobs).tasks(split, 0, COUNT) != found:
                yield f"tasks({split!r}, 0, {COUNT}) differs when it is asked again: draw from (seed, split) alone"
        for task in found:
            where = f"task {task.id!r} of split {split!r}"
            if not task.problem.strip():
                yield f"{where} has an empty problem"
            if task.domain != s.domain.name:
                yield f"{where} has the domain {task.domain!r}, and the domain's name is {s.domain.name!r}"
            if types.from_json(types.Task, json.loads(json.dumps(types.to_json(task)))) != task:
                yield f"{where} is another one after JSON: keep texts, numbers, lists and dicts with text keys in meta"
            # The first split in which a problem was seen keeps it.
            if (other := seen.setdefault(normalised(task.problem), split)) != split:
                yield f"{where}: the same problem is in split {other!r}: deal them out by a hash of their text"
            if names.setdefault(task.id, task.problem) != task.problem:
                yield f"{where}: another problem has this id, and ids name random streams: put the split into the id"


def check_splits(s: Subject) -> Iterator[str]:
    """Its problems are those of splits that a run asks for, or come from files."""
    wanted = ("hard_train", "hard_validation", "hard_test")
    if s.build.splits and (missing := [split for split in wanted if split not in s.build.splits]):
        yield f"splits = {s.build.splits} lacks {', '.join(missing)}, which a run asks for; write () for files alone"


def check_view(s: Subject) -> Iterator[str]:
    """view(task, steps, role) renders every role; the solver sees the problem alone, proposers the reference too."""
    roles = ("solver", *s.build.proposal_roles)
    for task in s.some:
        # The same problem with another reference: whatever changes in a view shows it.
        hidden = dataclasses.replace(task, reference="REFERENCE 17", answer="ANSWER 17")
        if s.domain.view(task, [], "solver") != s.domain.view(hidden, [], "solver"):
            yield f"view({task.id!r}, [], 'solver') changes with reference or answer, which are not for the policy"
        shown = {role: s.domain.view(task, ["alpha 1", "beta 2"], role) for role in roles}
        for role, messages in shown.items():
            yield from _messages(f"view({task.id!r}, steps, {role!r})", messages)
            s.tokenizer.render(messages)
        told = {role: s.domain.view(hidden, ["alpha 1", "beta 2"], role) for role in s.build.proposal_roles}
        if task.reference and all(told[role] == shown[role] for role in told):
            yield f"no role of proposal_roles sees the reference of {task.id!r}: a proposer checks attempts against it"
        last = shown[roles[-1]][-1]["content"]
        if "alpha 1" not in last or "beta 2" not in last.partition("alpha 1")[2]:
            yield f"view({task.id!r}, steps, {roles[-1]!r}) does not show the attempt's steps, in their order"
    try:
        s.domain.view(s.some[0], [], "stranger")
    except ValueError:
        return
    yield "view(task, [], 'stranger') is answered: raise ValueError for a role that there is not"


def _messages(where: str, messages: list[dict[str, str]]) -> Iterator[str]:
    for one in messages:
        if (
            one.keys() != {"role", "content"}
            or one["role"] not in ROLES
            or not isinstance(one["content"], str)
        ):
            yield f"{where} has the message {one!r:.60}: write {{'role': one of {', '.join(ROLES)}, 'content': text}}"
            return
    if not messages or messages[-1]["role"] != "user":
        yield f"{where} does not end in a message of the user: the response comes after it"


def check_solution(s: Subject) -> Iterator[str]:
    """solution(task) passes verify, gives an answer, and leaks it."""
    for task in s.some:
        trace = solved(s, task)
        verdict = s.domain.verify(trace)
        if not s.domain.separator:
            # Chance may deny the best turns what they deserve, but no others do better than they are expected to.
            idle = rollout.play(s.domain, task, lambda trace: "Hello.")
            if (
                s.domain.verify(idle).score > verdict.score
                or idle.stop not in STOPS
                or trace.stop not in STOPS
            ):
                yield f"verify gives {task.id!r} {idle.judged} for greetings alone, and {verdict} for the best turns"
        elif not verdict.passed:
            yield f"verify calls solution({task.id!r}) {verdict.reason!r}: {s.domain.solution(task)[-60:]!r}"
        if s.domain.answer(trace) is None:
            yield f"answer finds none in solution({task.id!r}): a majority vote would not count it"
        if not s.domain.separator:
            continue
        if not s.domain.leaks(task, s.domain.solution(task)):
            yield f"leaks does not see the answer in solution({task.id!r}): an intervention may give it away"
        # Another task whose answer differs: its solution must not pass here.
        other = next((one for one in s.some if one.answer != task.answer), task)
        if other is not task and s.domain.verify(trace_of(s.domain, task, s.domain.solution(other))).passed:
            yield f"verify passes the solution of {other.id!r} as one of {task.id!r}"


def check_faults(s: Subject) -> Iterator[str]:
    """faults(tasks) says of each problem why it cannot be used, and can use its own."""
    found = s.domain.faults(s.some)
    if len(found) != len(s.some):
        yield f"faults gives {len(found)} entries for {len(s.some)} tasks: one each, '' where nothing is wrong"
        return
    for task, why in zip(s.some, found, strict=True):
        if why:
            yield f"faults says of {task.id!r}: {why}"


def check_wrong_responses(s: Subject) -> Iterator[str]:
    """Whatever stands in a response, verify judges it and nothing raises; what holds no answer does not pass."""
    task = s.some[0]
    for text in WRONG:
        for stop in ("stop", "length"):
            where = f"of a response {text[:20]!r}{'...' * (len(text) > 20)} that ends by {stop!r}"
            trace = trace_of(s.domain, task, text, stop)
            yield from _verdict(where, s.domain.verify(trace))
            answer: Any = s.domain.answer(trace)
            if not isinstance(answer, str | None):
                yield f"the answer {where} is {answer!r:.40}: a text, or None"
        leaks: Any = s.domain.leaks(task, text)
        if not isinstance(leaks, bool):
            yield f"leaks(task, {text[:20]!r}) is {leaks!r:.40}: True or False"


def _verdict(where: str, verdict: Any) -> Iterator[str]:
    if not isinstance(verdict, Verdict) or verdict.reason not in REASONS:
        yield f"the verdict {where} is {verdict!r}: Verdict(passed, score, one of {', '.join(REASONS)})"
    elif not math.isfinite(verdict.score):
        yield f"the verdict {where} has the score {verdict.score}: a finite number"
    elif verdict.passed or verdict.reason == "correct":
        yield f"the verdict {where} is {verdict}: it must not pass"


def check_steps(s: Subject) -> Iterator[str]:
    """steps(tokens, start) cuts a response into its steps, the same ones when it is cut short or spliced; those of a
    conversation are its turns."""
    task = s.some[0]
    if not s.domain.separator:
        trace = solved(s, task)
        if len(s.domain.step_texts(trace)) != len(trace.step_ends):
            yield f"step_texts gives {len(s.domain.step_texts(trace))} texts of {len(trace.step_ends)} turns"
        yield from _spliced(s, trace, "of a conversation")
        return
    for text in (s.domain.solution(task), *SHAPES):
        trace = trace_of(s.domain, task, text)
        ends, where = trace.step_ends, f"of {text[:40]!r}"
        inside = range(trace.prompt_len + 1, len(trace.tokens) + 1)
        # A set, sorted again: increasing, each once, and within the response.
        if not ends or list(ends) != sorted({*ends} & {*inside}):
            yield f"the step ends {where} are {ends}: increasing offsets in {inside.start}..{inside.stop - 1}"
            continue
        if s.tokenizer.text(trace.tokens[ends[-1] :]).strip():
            yield f"the last step {where} ends before {s.tokenizer.text(trace.tokens[ends[-1] :])!r:.40}"
        texts, rest = s.domain.step_texts(trace), s.tokenizer.text(trace.response)
        if len(texts) != len(ends):
            yield f"step_texts {where} gives {len(texts)} texts of {len(ends)} steps"
        for one in texts:
            # rest: what of the response the steps so far leave.
            before, found, rest = rest.partition(one)
            if not found or before.strip():
                yield f"step_texts {where} gives {one!r:.40}, which is not what comes next in the response"
                break
        # A guided attempt keeps the steps before its splice: they must not depend on what follows them.
        for k, end in enumerate(ends[:-1]):
            if s.domain.steps(trace.tokens[:end], trace.prompt_len) != ends[: k + 1]:
                yield f"the first {k + 1} steps {where} are others where the response ends there"
        yield from _spliced(s, trace, where)


def _spliced(s: Subject, trace: Trace, where: str) -> Iterator[str]:
    """The steps before a spliced one stay as they are, and it is a step of its own."""
    texts = s.domain.step_texts(trace)
    ones = [Intervention(k, "spliced 1") for k in range(len(texts))]
    guided = rollout.splice([trace] * len(ones), ones, s.tokenizer, s.domain.separator)
    for k, one in enumerate(guided):
        if (found := s.domain.step_texts(one)) != [*texts[:k], "spliced 1"]:
            yield f"step {k} {where} replaced by 'spliced 1' leaves the steps {found!r:.80}"


def check_privileged(s: Subject) -> Iterator[str]:
    """hint(task, share) is a beginning of the reference, reference_response(task) is right, roles see the reference."""
    if foreign := [role for role in s.build.roles if role not in privileged.ROLES]:
        yield f"roles = {s.build.roles}: {foreign[0]!r} is none of {', '.join(privileged.ROLES)}"
        return
    for task in (task for task in s.some if task.reference.strip()):
        if (
            s.domain.separator
            and not s.domain.verify(trace_of(s.domain, task, s.domain.reference_response(task))).passed
        ):
            yield f"verify does not pass reference_response({task.id!r}): SFT on references would train what is wrong"
        for share in (0.0, 0.25, 0.5):
            part = s.domain.hint(task, share)
            if len(part) > max(share, 0.01) * len(task.reference) + 3 or not task.reference.startswith(part):
                yield f"hint({task.id!r}, {share}) is {part!r:.60}: give a beginning of the reference, no longer"
        for role in s.build.roles:
            shown = s.domain.view(dataclasses.replace(task, reference="BEGINNING 17"), ["alpha 1"], role)
            yield from _messages(f"view({task.id!r}, steps, {role!r})", shown)
            if "BEGINNING 17" not in shown[-1]["content"]:
                yield f"view({task.id!r}, steps, {role!r}) does not show the reference that the task has"


def check_reply(s: Subject) -> Iterator[str]:
    """replies(traces) is one Reply for each, the same when asked again; one that goes on says something."""
    task = s.some[0]
    traces = [trace_of(s.domain, task, text) for text in ("", "Hello.", "\\boxed{7}")]
    replies = s.domain.replies(traces)
    if len(replies) != len(traces):
        yield f"replies gives {len(replies)} entries for {len(traces)} traces: one each, Reply() where it is silent"
        return
    for one in replies:
        if not isinstance(one, Reply) or not isinstance(one.text, str) or one.stop not in ("", *STOPS):
            yield f"replies gives {one!r:.60}: Reply(text, tags, '' or one of {', '.join(STOPS)})"
    if s.domain.replies(traces) != replies:
        yield "replies gives others when asked again: draw from the task and the number of the turn alone"
    if any(one.text and not one.stop for one in replies) and s.domain.separator:
        yield f"its partner replies, and steps end in {s.domain.separator!r}: write separator = '', a step is a turn"


def check_measures(s: Subject) -> Iterator[str]:
    """measures(trace) is numbers by name, or None for what has nothing to count."""
    for text in ("", "Hello."):
        found: Any = s.domain.measures(trace_of(s.domain, s.some[0], text))
        wrong = not isinstance(found, dict) or [
            name
            for name, value in found.items()
            if not isinstance(name, str) or not (value is None or math.isfinite(value))
        ]
        if wrong:
            yield f"measures gives {found!r:.80}: finite numbers by name, or None"


def check_many(s: Subject) -> Iterator[str]:
    """verify_many(traces) is verify of each of them."""
    traces = [solved(s, task) for task in s.some]
    traces += [trace_of(s.domain, s.some[0], text, stop) for text in WRONG[:4] for stop in ("stop", "length")]
    # Of no traces, too: a run may have none to judge.
    for given in (traces, []):
        one_by_one = [s.domain.verify(trace) for trace in given]
        if (found := list(s.domain.verify_many(given))) != one_by_one:
            yield f"verify_many gives {found!r:.100}, and verify one by one {one_by_one!r:.100}"
    if s.domain.graders and not 0 <= s.domain.disagreements(traces)[0] <= 1:
        yield f"disagreements gives {s.domain.disagreements(traces)!r:.60}: (share of the traces, the cases)"


def check_oracle(s: Subject) -> Iterator[str]:
    """first_error(trace) is None without an oracle; with one it finds none in a solution, and corrects others.
    regrets(trace) is a number >= 0 for each step, or None."""
    # Each with the next one, the last with the first: a solution of another problem is an attempt with errors.
    for task, other in pairwise([*s.some, s.some[0]]):
        own = solved(s, task)
        if s.domain.separator:
            foreign = trace_of(s.domain, task, s.domain.solution(other))
        else:
            foreign = rollout.play(s.domain, task, lambda trace: "Hello.")
        if (found := s.domain.first_error(own)) is not None:
            yield f"first_error of the solution of {task.id!r} is {found}: None, as no step of it is wrong"
        steps, lost = len(foreign.step_ends), s.domain.regrets(foreign)
        if lost is not None and not (len(lost) == steps and all(0 <= each < math.inf for each in lost)):
            yield f"regrets gives {lost!r:.60} of an attempt of {steps} steps: a number >= 0 for each, or None"
        step = s.domain.first_error(foreign)
        if step is None:
            continue
        if not s.domain.oracle:
            yield f"first_error gives {step}, and oracle is False: set oracle = True, or give None"
        elif not 0 <= step < len(foreign.step_ends):
            yield f"first_error gives step {step} (from 0) of an attempt of {len(foreign.step_ends)} steps"
        elif not s.domain.correction(foreign, step).strip():
            yield f"correction(trace, {step}) is empty"


CHECKS = (
    check_knobs,
    check_splits,
    check_tasks,
    check_view,
    check_solution,
    check_faults,
    check_wrong_responses,
    check_steps,
    check_privileged,
    check_reply,
    check_measures,
    check_many,
    check_oracle,
)
