"""The problems and scorers of the package reasoning-gym: real problems and scoring that are not ours.

The solver is asked to box its answer; the package's own `score_answer` judges the last box, in a process that can be
killed. Data sets whose metadata show the way to the answer (REFERENCES) can be used with InT; all others, for RL alone.
"""

import hashlib
import itertools
from collections.abc import Iterator, Mapping
from typing import ClassVar

from int_jax import privileged
from int_jax.domains import PROMPTS, TextDomain, template
from int_jax.domains.reasoning_gym import worker
from int_jax.domains.reasoning_gym.process import DEADLINE_S, shared
from int_jax.knobs import Knob
from int_jax.tokenizer import Tokenizer
from int_jax.types import Task, Trace, Verdict

NAME = "reasoning_gym"
PROPOSAL_ROLES: tuple[str, ...] = ("teacher", "checker")
SPLITS: tuple[str, ...] = ("train", "hard_train", "hard_validation", "hard_test")
REFERENCES = tuple(worker.REFERENCES)
MAX_CHARS = 5_000  # of an answer; the longest right ones, grids of rearc, have 1,800
MAX_MISSES = 1_024  # draws in a row without a new problem before `tasks` gives up


def split_of(question: str) -> str:
    """The split that owns a question, by a hash of its text: half train, a sixth each of the others."""
    return SPLITS[max(0, int(worker.digest(question), 16) % 6 - 2)]


def plain(value):
    """Knobs of any mapping and sequence types as JSON's."""
    if isinstance(value, Mapping):
        return {key: plain(one) for key, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, list | tuple) else value


class ReasoningGym(TextDomain):
    """The domain, over a tokenizer. See `domains.Domain`.

    Raises: ModuleNotFoundError without the package; ValueError for unknown knobs and data sets, and for data sets
      without a reference where `with_reference` asks for one.
    """

    name = NAME
    splits = SPLITS
    proposal_roles = PROPOSAL_ROLES
    roles: tuple[str, ...] = privileged.ROLES
    KNOBS: ClassVar = {
        "tasks": Knob({"gsm_symbolic": {}}, "data sets of the package, each with its configuration"),
        "instruction": Knob(
            "Reason step by step, with a blank line between steps, and put the final answer in \\boxed{}.",
            "what is said to the solver after the problem",
        ),
        "with_reference": Knob(False, "refuse data sets without a worked answer at once: InT needs one"),
        "deadline_s": Knob(DEADLINE_S, "seconds for one score", above=0),
    }

    def __init__(self, tokenizer: Tokenizer, **knobs):
        super().__init__(tokenizer, **plain(knobs))
        self.prompts = {
            role: template(PROMPTS / NAME / f"{role}.jinja") for role in (*PROPOSAL_ROLES, *self.roles)
        }
        self.process = shared(self.knobs["deadline_s"])
        known = self.process.request("names")
        if known is None:
            raise RuntimeError("the reasoning_gym process does not answer")
        if not self.knobs["tasks"]:
            raise ValueError("reasoning_gym: the knob tasks names no data set")
        for one in self.knobs["tasks"]:
            if one not in known["names"]:
                why = worker.REFUSED.get(
                    one, f"is none of the package's: choose from {', '.join(known['names'])}"
                )
                raise ValueError(f"reasoning_gym: data set {one!r} {why}")
            if self.knobs["with_reference"] and one not in REFERENCES:
                raise ValueError(self._no_reference(one))

    def tasks(self, split: str, seed: int, count: int) -> list[Task]:
        """`count` distinct problems of a split, from each data set in turn; the same configuration for every split.

        Raises: ValueError where a data set has not enough of them, or refuses its configuration.
        """
        if split not in SPLITS:
            raise ValueError(f"reasoning_gym has no split {split!r}: choose one of {', '.join(SPLITS)}")
        sources = [self._drawn(name, split, seed) for name in self.knobs["tasks"]]
        found: list[Task] = []
        # Three data sets and count 7: 3, 2 and 2 problems.
        for source in itertools.islice(itertools.cycle(sources), count):
            task = next(source, None)
            if task is None:
                name = list(self.knobs["tasks"])[len(found) % len(sources)]
                own = sum(one.meta["name"] == name for one in found)
                raise ValueError(
                    f"reasoning_gym: {count} problems of split {split!r} are asked for, but {name!r} has no more than "
                    f"{own}: none was new in {MAX_MISSES:,} draws. Ask for fewer, or widen its configuration"
                )
            found.append(task)
        return found

    def _drawn(self, name: str, split: str, seed: int) -> Iterator[Task]:
        """The distinct problems of one data set and split, until no new one comes."""
        config, seen, misses = self.knobs["tasks"][name], set(), 0
        for chunk in itertools.count():
            stream = hashlib.sha256(f"{seed}/{split}/{name}/{chunk}".encode()).digest()
            its_seed = int.from_bytes(stream[:4], "big") >> 1
            reply = self.process.request("make", name=name, config=config, seed=its_seed)
            if reply is None or "error" in reply:
                why = reply["error"] if reply else "it took too long, or too much memory"
                raise ValueError(f"reasoning_gym: {name!r} makes no problems with {config}: {why}")
            for index, question, answer, reference in reply["items"]:
                misses += 1
                digest = worker.digest(question)
                if split_of(question) != split or digest in seen:
                    continue
                seen.add(digest)
                misses = 0
                meta = {
                    "name": name,
                    "config": config,
                    "seed": its_seed,
                    "index": index,
                    "digest": digest,
                }
                problem = f"{question.strip()}\n\n{self.knobs['instruction']}".strip()
                yield Task(f"{name}-{digest}", NAME, problem, reference, answer, meta)
            if misses >= MAX_MISSES:
                return

    def view(self, task: Task, steps: list[str], role: str) -> list[dict[str, str]]:
        """The user turn that a role sees: "solver" the problem alone; "teacher" also the reference; "checker", in the
        same conversation after the teacher's own solution, the numbered attempt; "hinted" the problem and a beginning
        of the reference; "reflector" problem, reference and numbered attempt."""
        if role == "solver":
            return [{"role": "user", "content": task.problem}]
        if role not in self.prompts:
            raise ValueError(f"reasoning_gym has no role {role!r}: choose solver, {', '.join(self.prompts)}")
        if not task.reference:
            raise ValueError(f"task {task.id}: " + self._no_reference(task.meta.get("name", "")))
        seen = {"problem": task.problem, "reference": task.reference, "steps": steps}
        return [{"role": "user", "content": self.prompts[role].render(seen)}]

    def _no_reference(self, dataset: str) -> str:
        return (
            f"reasoning_gym's {dataset!r} has no worked answer to check an attempt against, so it serves RL only; "
            f"InT can use {', '.join(REFERENCES)}"
        )

    def verify(self, trace: Trace) -> Verdict:
        """The package's score of the last boxed text, passed at 1; partial scores are kept.

        A response that was cut off is "truncated" unless it passes. An answer that its scorer throws on, or that must
        not be shown to it (`worker.harmless`), is "unparsable"; one that outlives the deadline or kills the process,
        "timeout".

        Raises: RuntimeError where the task's seed makes another problem than the task's own: another version made it.
        """
        answer = self.answer(trace)
        cut = trace.stop == "length"
        if answer is None or not answer.strip():
            return Verdict(False, 0.0, "truncated" if cut else "no_answer")
        if len(answer) > MAX_CHARS:
            return Verdict(False, 0.0, "unparsable")
        reply = self._score(trace.task, answer.strip())
        if reply is None:
            return Verdict(False, 0.0, "timeout")
        if "fault" in reply:
            return Verdict(False, 0.0, reply["fault"])
        if reply["score"] == 1:
            return Verdict(True, 1.0, "correct")
        return Verdict(False, reply["score"], "truncated" if cut else "wrong")

    def _score(self, task: Task, answer: str) -> dict | None:
        whole = {key: task.meta[key] for key in ("name", "config", "seed", "index")}
        recalled = self.process.request("recall", **whole, expected=task.meta["digest"])
        if recalled is None:
            raise RuntimeError(
                f"task {task.id}: making the problem of {whole} again took too long, or too much memory"
            )
        if not recalled["same"]:
            raise RuntimeError(
                f"task {task.id}: {whole} makes another problem here; install the version of reasoning-gym that the "
                "task was made with"
            )
        return self.process.request("score", **whole, answer=answer)


build = ReasoningGym
