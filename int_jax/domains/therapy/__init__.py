"""Interviews with simulated clients, each played from a case that the interviewer is to find out.

A task is a client with one situation and one style. The policy is the interviewer: it sees a short history, the style
and the client's first words, asks for a few turns, and ends with a formulation (formulation.py) of what it heard, each
item with the turn it was heard in. The client is a script (client.py), so that what each turn lost is exact, with
respect to the script and to nothing else.

With `plays` = "client" the policy plays the client instead, and a scripted interviewer asks (played.py).

This is rehearsal of interviewing skills for education and research. It is no therapy and no diagnosis, no model of a
person, and its scores say nothing of clinical quality. Asking after somebody's safety is never marked down by the
client, but costs a turn like any other.
"""

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np

from int_jax.dialogue.script import Script, luck_of
from int_jax.domains import PROMPTS, said, template
from int_jax.domains.dialogue import Dialogue
from int_jax.domains.therapy import formulation, novice, skills, wording
from int_jax.domains.therapy.acts import FORMULATION
from int_jax.domains.therapy.cases import Case, Situation, load_cases, load_ids, load_lexicon
from int_jax.domains.therapy.client import Client, lines, pattern
from int_jax.domains.therapy.played import INTERVIEWERS, Played, quotes, words_of
from int_jax.knobs import Knob
from int_jax.tokenizer import Tokenizer
from int_jax.types import Reply, Task, Trace

NAME = "therapy"
FOLDER = Path(__file__).parents[2] / "assets" / NAME
SPLITS: tuple[str, ...] = ("train", "hard_train", "hard_validation", "hard_test")
HELD_OUT = 0.4  # the share of the cases that is kept for validation and test, half of it each, at most
PROPOSAL_ROLES: tuple[str, ...] = ("checker",)


class Therapy(Dialogue):
    """The domain, over a tokenizer. See `domains.Domain`.

    hard_train, hard_validation and hard_test have other cases, and no set of beliefs is in two of them; each id of a
    case that is held out is one of a training case, too. "train" has the cases of hard_train with other situations,
    styles and first words.
    """

    name = NAME
    splits = SPLITS
    own, other = "therapist", "client"
    proposal_roles = PROPOSAL_ROLES
    KNOBS: ClassVar[dict[str, Knob]] = {
        "turns": Knob(10, "own turns of an interview at most, the formulation among them", at_least=1),
        "turn_tokens": Knob(128, "tokens of an own turn at most", at_least=1),
        "wording": Knob(
            "full",
            "sentences, or the few words of a very small model",
            choices=wording.WORDINGS,
        ),
        "styles": Knob(
            wording.STYLES,
            "ways in which clients talk and are best interviewed",
            choices=wording.STYLES,
            empty=False,
        ),
        "passing": Knob(0.8, "score with which a formulation passes", above=0, at_most=1),
        "cases": Knob("", "a folder of ids.json, lexicon.json and cases/; empty: that of the package"),
        "plays": Knob("therapist", "whose turns are the policy's", choices=("therapist", "client")),
        "interviewer": Knob("expert", "who asks a policy that plays the client", choices=INTERVIEWERS),
        "allow_risk_cases": Knob(False, "whether cases may hold a belief that is marked as a risk"),
    }

    def __init__(self, tokenizer: Tokenizer, **knobs: Any):
        super().__init__(tokenizer, **knobs)
        self.passing = self.knobs["passing"]
        self.own, self.other = ("client", "therapist") if self.client_plays else ("therapist", "client")
        folder = Path(self.knobs["cases"] or FOLDER)
        self.ids, self.lexicon = load_ids(folder), load_lexicon(folder)
        self.cases = {case.id: case for case in load_cases(folder, self.knobs["allow_risk_cases"])}
        self.split_of = dealt(list(self.cases.values()))
        self.prompts = {
            role: template(PROMPTS / NAME / f"{role}.jinja")
            for role in ("solver", "checker", "partner", "client", "client_checker")
        }
        self.client_of = functools.lru_cache(4096)(self._client)
        self.played_of = functools.lru_cache(4096)(self._played)
        self.slots = formulation.slots(self.ids)

    # --- tasks ---

    def tasks(self, split: str, seed: int, count: int) -> list[Task]:
        """`count` interviews of a split, in an order of the seed.

        Raises: ValueError where there are not so many.
        """
        if split not in SPLITS:
            raise ValueError(f"{NAME} has no split {split!r}: choose one of {', '.join(SPLITS)}")
        known = [
            (case, situation, style, opening)
            for case in self.cases.values()
            if self.split_of[case.id] == ("hard_train" if split == "train" else split)
            for situation in case.situations
            for style in self.knobs["styles"]
            for opening in self.openings(situation.area)
            if split not in ("train", "hard_train")
            or (split == "train") == even(f"{case.id}/{situation.id}/{style}/{opening}")
        ]
        if len(known) < count:
            raise ValueError(
                f"{NAME} has {len(known)} interviews in split {split!r} with the styles "
                f"{', '.join(self.knobs['styles'])}, not {count}: ask for fewer, allow more styles, or write more cases"
            )
        order = np.random.default_rng([seed, SPLITS.index(split)]).permutation(len(known))
        return [self._task(f"{split}-{seed}-{i}", *known[k]) for i, k in enumerate(order[:count])]

    def openings(self, area: str) -> Sequence[str]:
        """What a client may say first: the area, and nothing else."""
        return self.lexicon["areas"][area] if self.brief else wording.OPENINGS["full"][area]

    @property
    def client_plays(self) -> bool:
        return self.knobs["plays"] == "client"

    @property
    def brief(self) -> bool:
        return self.knobs["wording"] == "brief"

    def _task(self, name: str, case: Case, situation: Situation, style: str, opening: str) -> Task:
        who = case.brief_history if self.brief else f"{case.name}, {case.age}. {case.history}"
        meant = style if self.brief else f"{style} ({wording.MEANT[style]})"
        labels = ("", "style ", "client ") if self.brief else ("", "Style: ", "Client: ")
        problem = "\n".join(a + b for a, b in zip(labels, (who, meant, opening), strict=True))
        if self.client_plays:
            # The client knows itself, and answers to what is asked first.
            played = self._played(case.id, situation.id, style)
            first = played.client.words(played.client.start(), played.start().asked, luck_of(problem, 0))
            problem = f"{problem}\n{self._diagram(case, situation)}\nTherapist: {first}"
        wanted = formulation.reference(self.ids, case, situation)
        ids = "; ".join(f"{slot} {one}" for slot in wanted for one in sorted(wanted[slot]))
        meta = {"case": case.id, "situation": situation.id, "style": style}
        return Task(name, NAME, problem, self._reference(case, situation, ids), ids, meta)

    def _reference(self, case: Case, situation: Situation, ids: str) -> str:
        """The diagram of a case: its ids, and in the full wording what the client says to each."""
        return ids if self.brief else f"{ids}\n{self._diagram(case, situation)}"

    def _diagram(self, case: Case, situation: Situation) -> str:
        """A line for each part that a client can tell: its tag, and one of its forms."""
        told = lines(self.ids, self.lexicon, case, situation, self.knobs["wording"], {})
        rows = []
        for tags, lists in zip(told.tags, told.said, strict=True):
            rows += [
                f"{tag.replace(':', ' ')}: {forms[0].removeprefix('and ')}"
                for tag, forms in zip(tags, lists, strict=True)
            ]
        return "\n".join(rows)

    # --- the client ---

    def client(self, task: Task) -> Client:
        """The client of a task. Raises: ValueError where the task's case, situation or style is not known."""
        return self.client_of(*(str(task.meta.get(key, "")) for key in ("case", "situation", "style")))

    def script(self, task: Task) -> Script:
        # Their states are their own, and a script's are any.
        key = (str(task.meta.get(name, "")) for name in ("case", "situation", "style"))
        return cast(Script, self.played_of(*key) if self.client_plays else self.client(task))

    def _client(self, case: str, situation: str, style: str) -> Client:
        found = self.cases.get(case)
        here = next((one for one in found.situations if one.id == situation), None) if found else None
        if not found or not here or style not in wording.STYLES:
            raise ValueError(
                f"{NAME} knows no client {case!r} with the situation {situation!r} and the style {style!r}: a task's "
                "meta names them, and its tasks(split, seed, count) makes such tasks"
            )
        wanted = formulation.reference(self.ids, found, here)
        told = lines(self.ids, self.lexicon, found, here, self.knobs["wording"], wanted)
        groups = pattern([self.ids.group(part.id) for part in found.beliefs])
        return Client(style, self.knobs["turns"], groups, told)

    def _played(self, case: str, situation: str, style: str) -> Played:
        client = self.client_of(case, situation, style)
        own = {tag.rpartition(":")[2] for tags in client.lines.tags for tag in tags}
        foreign: set[str] = set()
        for slot in ("beliefs", "emotions", "coping", "behaviours", "rules"):
            for name in set(self.ids.known(slot)) - own:
                foreign |= set(self.lexicon[slot].get(name, ())) if self.brief else set()
                # "i feel guilty", "i was guilty"
                words = () if self.brief else self.ids.words.get(name, ())
                foreign |= {f"i {verb} {word}" for word in words for verb in ("am", "was", "feel", "felt")}
        return Played(client, self.knobs["interviewer"], tuple(sorted(foreign)))

    # --- views ---

    def view(self, task: Task, steps: list[str], role: str) -> list[dict[str, str]]:
        """The solver sees the public part, and what an interview is; the teacher also the reference, the checker the
        turns, too."""
        solver, checker = ("client", "client_checker") if self.client_plays else ("solver", "checker")
        style = str(task.meta.get("style", ""))
        more = {"sentences": wording.MOST_SENTENCES.get(style, 5)}
        if role == "solver":
            return [said("user", self._told(solver, task, **more))]
        self._check_role(task, role, (*PROPOSAL_ROLES, "teacher"))
        if role == "teacher":
            return self.informed(task)
        return [said("user", self._told(checker, task, reference=task.reference, steps=steps, **more))]

    def _told(self, role: str, task: Task, **more: Any) -> str:
        return (
            self.prompts[role]
            .render(
                problem=task.problem,
                brief=self.brief,
                turns=self.knobs["turns"],
                slots=self.slots,
                **more,
            )
            .strip()
        )

    def reply_view(self, task: Task, turns: Sequence[str], reply: Reply) -> list[dict[str, str]]:
        """Who speaks, what was said, and what is to be said now; what the client has not told is nowhere in it."""
        if self.client_plays:
            raise ValueError(
                f"{NAME} has no prompt for a language model as the interviewer: leave the partner as it is"
            )
        style = str(task.meta["style"])
        told = self._told(
            "partner",
            task,
            talk=list(zip((self.own, self.other) * len(turns), turns, strict=False)),
            say=reply.text,
            sentences=wording.MOST_SENTENCES[style],
        )
        return [said("user", told)]

    def checker_response(self, trace: Trace) -> str:
        """What a perfect checker answers: a line for each turn up to the first that lost something, with what it did,
        and the turn that should stand there."""
        moments, wrong = self.moments(trace), self.first_error(trace)
        log = []
        for i, one in enumerate(moments[: len(moments) if wrong is None else wrong + 1]):
            # An act of the interviewer's is (kind, part, worth), one of the client's (kind, place).
            did = " ".join(word for word in one.act[:2] if isinstance(word, str)).replace("_", " ").strip()
            log.append(f"S{i + 1} {did} {'wrong' if i == wrong else 'ok'}")
        if wrong == len(moments):
            log.append(f"S{wrong + 1} cut off wrong")
        return "\n".join([*log, self.block(trace)])

    def replies(self, traces: list[Trace]) -> list[Reply]:
        """The client's, numbered as a transcript is: a formulation cites these numbers."""
        found = super().replies(traces)
        if self.client_plays:
            return found
        return [
            one._replace(text=f"{len(trace.step_ends)} {one.text}" if one.text else "")
            for trace, one in zip(traces, found, strict=True)
        ]

    @functools.cached_property
    def unheard(self) -> dict[str, list[str]]:
        """The guess that is best on average over the clients to train on, with nothing heard."""
        train = [case for name, case in self.cases.items() if self.split_of[name] == "hard_train"]
        return formulation.best_unheard(
            [formulation.reference(self.ids, case, one) for case in train for one in case.situations]
        )

    def measures(self, trace: Trace) -> dict[str, float | None]:
        """Also the micro-skills (skills.py), and the elicitation gain: the score less what the best guess with nothing
        heard would be worth, if no evidence were asked for."""
        found = super().measures(trace)
        if self.client_plays:
            return found
        client, moments = self.client(trace.task), self.moments(trace)
        guessed = formulation.guess(self.unheard, client.lines.reference)
        gain = self.verify(trace).score - guessed
        return {**found, "elicitation_gain": gain, **skills.skills(client, moments, self.turns(trace))}

    def novice_turn(self, trace: Trace, rng: np.random.Generator, skill: float = novice.RIGHT) -> str:
        """What a scripted beginner says next in an open trace; as the client, anything that it could tell."""
        if not self.client_plays:
            return novice.turn(self, trace, rng, skill)
        if rng.random() < skill:
            return self.next_turn(trace)
        said = [form for place in self.client(trace.task).lines.said for forms in place for form in forms]
        return str(rng.choice(said))

    # --- leaks ---

    def leaks(self, task: Task, text: str) -> bool:
        """Whether a turn says what only the reference holds: an authored sentence of the client's, six words in a row
        of one, or, but in a formulation, a word that names one of its beliefs or its rule.

        Whether the client has told it by then is not known here: what quotes the client is taken for a leak, too.
        """
        if self.client_plays:
            return False  # the client knows all that there is
        client, held = self.client(task), words_of(text)
        if any(quotes(held, form) for place in client.lines.said for forms in place for form in forms):
            return True
        if text.strip().casefold().startswith(FORMULATION):
            return False
        wanted = client.lines.reference
        hidden = [
            word for one in (*wanted["belief"], *wanted["rule"]) for word in self.ids.words.get(one, (one,))
        ]
        return any(f" {word.replace('_', ' ')} " in held for word in hidden)


def even(text: str) -> bool:
    return hashlib.blake2b(text.encode(), digest_size=4).digest()[0] % 2 == 0


def dealt(cases: Sequence[Case]) -> dict[str, str]:
    """The split of each case, by its id: cases of the same beliefs together, in an order by a hash of these.

    A set of beliefs is held out only if every id of its cases is still one of some training case: what a word means can
    be learnt.
    """
    sets: dict[str, list[Case]] = {}
    for case in cases:
        sets.setdefault("+".join(sorted(part.id for part in case.beliefs)), []).append(case)
    order = sorted(sets, key=lambda name: hashlib.blake2b(name.encode(), digest_size=8).digest())
    train = dict.fromkeys(order)
    held: list[str] = []
    for name in order:
        rest = [case for other in train if other != name for case in sets[other]]
        covered = {one for case in rest for one in named(case)}
        if len(held) < int(HELD_OUT * len(order)) and all(named(case) <= covered for case in sets[name]):
            held.append(name)
            del train[name]
    found = {case.id: "hard_train" for case in cases}
    for i, name in enumerate(held):
        found |= {case.id: SPLITS[2 + i % 2] for case in sets[name]}
    return found


def named(case: Case) -> set[tuple[str, str]]:
    """What a case's formulations name, as (slot, id), and its areas."""
    found = {("belief", part.id) for part in case.beliefs} | {
        ("rule", case.rule.id),
        ("coping", case.coping.id),
    }
    for one in case.situations:
        found |= {("emotion", part.id) for part in one.emotions}
        found |= {("behaviour", one.behaviour.id), ("area", one.area)}
    return found


build = Therapy
