"""Rates one utterance on the seven DEAR MAN skills by rules: what it does, how well, why, and how it could be said.

The five strategies are strong, weak or none; Mindful and Confident hold or do not. Every finding names its place in the
text, a code, a reason and a repair. The rules know English and words of the situation; they know no irony, and say
nothing of how good a person's words are, only what the rules found. `python -m int_jax.domains.dearman.rater` prints
how they agree with the labelled utterances.
"""

import bisect
import functools
import re
from typing import NamedTuple

from int_jax.domains.dearman import lexicon as lex
from int_jax.domains.dearman.situations import (
    STATES,
    STRATEGIES,
    STRENGTHS,
    Situation,
    load_gold,
    load_situations,
)

NONE, WEAK, STRONG = 0, 1, 2
DESCRIBE, EXPRESS, ASSERT, REINFORCE, NEGOTIATE = range(5)

REASONS = {
    "anchored": "It says what happened, with a time, a count or an event.",
    "no_anchor": "It says what happens, but not when or how often.",
    "absolute": "Always, never and everything are easy to deny; a count is not.",
    "mind_reading": "It says what the other thinks or wants, which only the other knows.",
    "judgement": "It judges the person instead of saying what they did.",
    "feeling": "It names an own feeling.",
    "no_feeling_word": "It hints at a feeling without naming it, or says what the other does.",
    "ask": "It asks for something, or refuses it, in clear words.",
    "vague_ask": "It hints at a request, or hides it in hedges.",
    "benefit": "It says what the other gains.",
    "vague_benefit": "It names a gain that is vague, or one's own.",
    "offer": "It offers another way, or a trade.",
    "vague_offer": "It hopes for a solution, and names none.",
    "counter_attack": "It attacks or mocks the other.",
    "took_bait": "It answers the attack in its own coin.",
    "threat": "It threatens.",
    "gave_in": "It gives up what was asked for.",
    "off_topic": "It leaves the goal.",
    "hedge": "It takes back what it says while saying it.",
    "needless_apology": "It apologises where there is nothing to apologise for.",
    "self_doubt": "It doubts the own right to ask.",
}
HARSH = {"judgement": 1, "counter_attack": 1, "took_bait": 1, "threat": 2}


class Finding(NamedTuple):
    """What a rule found.

    Attributes: skill, one of the seven; code, a key of REASONS; start, end: its place, text[start:end].
    """

    skill: str
    code: str
    start: int
    end: int

    @property
    def reason(self) -> str:
        return REASONS[self.code]


class Rating(NamedTuple):
    """What an utterance does.

    Attributes:
      strengths: NONE, WEAK or STRONG of each of STRATEGIES. mindful, confident.
      findings: in the order of their places.
    """

    strengths: tuple[int, ...]
    mindful: bool
    confident: bool
    findings: tuple[Finding, ...]

    @property
    def labels(self) -> dict[str, str]:
        """By skill, as the labelled utterances have them."""
        return {
            skill: STRENGTHS[STRONG - level] for skill, level in zip(STRATEGIES, self.strengths, strict=True)
        } | {"mindful": "yes" if self.mindful else "no", "confident": "yes" if self.confident else "no"}

    @property
    def heard(self) -> tuple[tuple[int, int], ...]:
        """The first two strategies as they are said, as (index in STRATEGIES, strength): more are not taken in."""
        order = dict.fromkeys(one.skill for one in self.findings if one.skill in STRATEGIES)
        places = [STRATEGIES.index(skill) for skill in order if self.strengths[STRATEGIES.index(skill)]]
        return tuple(sorted((place, self.strengths[place]) for place in places[:2]))

    @property
    def harsh(self) -> int:
        """How much it heats the other: 0, 1, or 2 for a threat or several attacks."""
        return min(2, sum({one.code: HARSH.get(one.code, 0) for one in self.findings}.values()))


TOKEN = re.compile(r"\w+(?:'\w+)*|[^\w\s]")
ENDS = re.compile(r"[.!?;]")
CLAUSES = re.compile(r"[.!?;:,]|(?<= )(?:and|but|so|because|while|though)(?= )")


class Text:
    """An utterance in the spelling that the patterns expect, and where each of its words stands.

    Attributes: normal; what stands in quotation marks is "_", since it is not one's own word. starts, of each word in
      `normal`; spans, of each in the utterance.
    """

    def __init__(self, text: str):
        words: list[str] = []
        spans: list[tuple[int, int]] = []
        opened = -1
        for match in TOKEN.finditer(text.replace("’", "'").replace("‘", "'")):
            word = match.group().lower()
            if word in '"“”„»«':
                if opened >= 0:
                    words[opened + 1 :] = ["_"] * (len(words) - opened - 1)
                    opened = -1
                else:
                    opened = len(words)
                word = "_"
            words.append(word)
            spans.append(match.span())
        self.normal = " ".join(words)
        self.spans, self.starts, at = spans, [], 0
        for word in words:
            self.starts.append(at)
            at += len(word) + 1

    def place(self, start: int, end: int) -> tuple[int, int]:
        """The place in the utterance of normal[start:end]."""
        first = max(0, bisect.bisect_right(self.starts, start) - 1)
        if self.normal[start : start + 1] == " " and first + 1 < len(self.starts):
            first += 1
        last = max(first, bisect.bisect_left(self.starts, end) - 1)
        return self.spans[first][0], self.spans[last][1]


def _pieces(pattern: re.Pattern, text: str) -> list[tuple[int, int]]:
    """The places between the matches of a pattern."""
    found, at = [], 0
    for match in pattern.finditer(text):
        found.append((at, match.start()))
        at = match.start()
    return [*found, (at, len(text))]


@functools.lru_cache(1024)
def _own_words(situation: Situation | None) -> re.Pattern | None:
    """The anchors of a situation."""
    if situation is None:
        return None
    anchors = [*situation.anchors, *([situation.brief.anchor] if situation.brief else [])]
    spelled = [Text(anchor).normal for anchor in anchors]
    return re.compile("|".join(rf"(?<!\w){re.escape(one)}(?!\w)" for one in spelled))


class _Rater:
    """The rules at work on one utterance."""

    def __init__(self, text: str, situation: Situation | None):
        self.text = Text(text)
        self.normal = self.text.normal
        self.own = _own_words(situation)
        self.levels = [NONE] * 5
        self.found: list[Finding] = []
        self.sentences = _pieces(ENDS, self.normal)

    def note(self, skill: str, code: str, start: int, end: int) -> None:
        self.found.append(Finding(skill, code, *self.text.place(start, end)))

    def strategy(self, index: int, level: int, code: str, start: int, end: int) -> None:
        self.levels[index] = max(self.levels[index], level)
        self.note(STRATEGIES[index], code, start, end)

    def sentence(self, at: int) -> tuple[int, int]:
        return next(one for one in reversed(self.sentences) if one[0] <= at)

    def meant(self, match: re.Match) -> bool:
        """Not denied in its own sentence: "I am not saying that you are lazy"."""
        before = self.normal[self.sentence(match.start())[0] : match.start()].rstrip()
        return lex.NOT_SAID.search(before.rpartition(",")[2]) is None

    def rated(self) -> Rating:
        if not self.text.starts:
            return Rating((NONE,) * 5, True, True, ())
        attacks = self.attacks()
        self.hedges()
        self.asserts()
        self.describe(attacks)
        self.express()
        self.reinforce()
        self.negotiate()
        self.leaves()
        skills = {one.skill for one in self.found if one.code not in ("anchored",)}
        found = sorted(dict.fromkeys(self.found), key=lambda one: (one.start, one.end, one.skill, one.code))
        return Rating(tuple(self.levels), "mindful" not in skills, "confident" not in skills, tuple(found))

    def attacks(self) -> list[tuple[int, int]]:
        """Judgements, insults, mockery and threats; their places."""
        places = []
        rules = (
            (lex.JUDGEMENT, "judgement"),
            (lex.INSULT, "counter_attack"),
            (lex.NAME_CALL, "counter_attack"),
            (lex.CALLED, "judgement"),
            (lex.COUNTER, "took_bait"),
            (lex.RETORT, "took_bait"),
            (lex.THREAT, "threat"),
        )
        for pattern, code in rules:
            for match in pattern.finditer(self.normal):
                if self.meant(match):
                    places.append(match.span())
                    self.note("mindful", code, *match.span())
        return places

    def hedges(self) -> None:
        self.hard = [match.span() for match in lex.HEDGE.finditer(self.normal)]
        soft = [match.span() for match in lex.SOFT_HEDGE.finditer(self.normal)]
        self.soft = [one for one in soft if not any(a <= one[0] < b for a, b in self.hard)]
        doubts = [match.span() for match in lex.SELF_DOUBT.finditer(self.normal)]
        due = lex.DUE.search(self.normal) is not None
        for match in lex.APOLOGY.finditer(self.normal):
            if not due and self.meant(match):
                self.note("confident", "needless_apology", *match.span())
        for span in doubts:
            self.note("confident", "self_doubt", *span)
        maybes = [
            one for one in self.soft if self.normal[slice(*one)] in ("maybe", "perhaps", "might", "probably")
        ]
        if self.hard or len(maybes) > 1 or (maybes and len(self.soft) > 1):
            for span in sorted(self.hard + maybes):
                self.note("confident", "hedge", *span)

    def asserts(self) -> None:
        self.asked = []
        hedged = {self.sentence(start) for start, _ in self.hard}
        for start, _ in self.soft:
            if self.normal.startswith(("maybe", "perhaps", "might"), start):
                hedged.add(self.sentence(start))
        gave_in = {self.sentence(match.start()) for match in lex.GIVE_IN.finditer(self.normal)}
        for pattern in (lex.IMPERATIVE, lex.PLEASE, lex.ASK, lex.REFUSE):
            for match in pattern.finditer(self.normal):
                start = match.start() + (len(match.group()) - len(match.group().lstrip()))
                if self.sentence(start) in gave_in or start == match.end():
                    continue
                if self.sentence(start) in hedged:
                    self.strategy(ASSERT, WEAK, "vague_ask", start, match.end())
                else:
                    self.asked.append(start)
                    self.strategy(ASSERT, STRONG, "ask", start, match.end())
        for pattern in (lex.HINT, lex.CONDITION):
            for match in pattern.finditer(self.normal):
                if self.levels[ASSERT] < STRONG:
                    self.strategy(ASSERT, WEAK, "vague_ask", *match.span())

    def describe(self, attacks: list[tuple[int, int]]) -> None:
        for start, end in self.sentences:
            faults = [
                (code, match.span())
                for pattern, code in ((lex.MIND_READING, "mind_reading"), (lex.YOU_ABSOLUTE, "absolute"))
                for match in pattern.finditer(self.normal, start, end)
                if self.meant(match)
            ]
            spoilt = bool(faults) or any(start <= at < end for at, _ in attacks)
            for a, b in self.facts(start, end):
                if spoilt:
                    self.strategy(DESCRIBE, WEAK, faults[0][0] if faults else "judgement", a, b)
                else:
                    self.strategy(DESCRIBE, STRONG, "anchored", a, b)
            for code, span in faults:
                self.strategy(DESCRIBE, WEAK, code, *span)
            vague = lex.VAGUE_TIME.search(self.normal, start, end)
            if vague and not lex.UNREAL.search(self.normal, start, end):
                self.strategy(DESCRIBE, WEAK, "no_anchor", *vague.span())

    def facts(self, start: int, end: int) -> list[tuple[int, int]]:
        """The places of a sentence that anchor what happened; nothing that is asked, supposed or offered."""
        found = []
        for pattern in (lex.ANCHOR, self.own):
            for match in pattern.finditer(self.normal, start, end) if pattern else ():
                a, b = self.clause(match.start(), start, end)
                told = self.normal[a:b]
                if (
                    any(a <= at < b for at in self.asked)
                    or lex.UNREAL.search(told)
                    or lex.FEELING.search(told)
                ):
                    continue
                known = pattern is self.own and lex.PRESENT.search(told)
                # "Three times on Sunday!" needs no verb.
                if known or lex.FACT.search(told) or len(lex.ANCHOR.findall(self.normal, start, end)) > 2:
                    found.append(match.span())
        return found

    def clause(self, at: int, start: int, end: int) -> tuple[int, int]:
        for a, b in _pieces(CLAUSES, self.normal[start:end]):
            if start + a <= at < start + b:
                return start + a, start + b
        return start, end

    def express(self) -> None:
        for match in lex.FEELING.finditer(self.normal):
            self.strategy(EXPRESS, STRONG, "feeling", *match.span())
        if self.levels[EXPRESS] < STRONG:
            for match in lex.HALF_FEELING.finditer(self.normal):
                self.strategy(EXPRESS, WEAK, "no_feeling_word", *match.span())

    def reinforce(self) -> None:
        tied = self.levels[ASSERT] > NONE or any(one.search(self.normal) for one in (lex.OFFER, lex.TIED))
        for match in lex.GOOD_FOR_YOU.finditer(self.normal):
            if tied and not any(one.code == "threat" for one in self.found):
                self.strategy(REINFORCE, STRONG, "benefit", *match.span())
        if self.levels[REINFORCE] < STRONG:
            for match in lex.GOOD_FOR_ALL.finditer(self.normal):
                self.strategy(REINFORCE, WEAK, "vague_benefit", *match.span())

    def negotiate(self) -> None:
        for match in lex.OFFER.finditer(self.normal):
            self.strategy(NEGOTIATE, STRONG, "offer", *match.span())
        if self.levels[NEGOTIATE] < STRONG:
            for match in lex.SOME_WAY.finditer(self.normal):
                self.strategy(NEGOTIATE, WEAK, "vague_offer", *match.span())

    def leaves(self) -> None:
        """Giving in, and talk of other things, leave the goal."""
        for match in lex.GIVE_IN.finditer(self.normal):
            self.note("mindful", "gave_in", *match.span())
            self.note("confident", "gave_in", *match.span())
        for match in lex.OFF_TOPIC.finditer(self.normal):
            if not any(self.levels[EXPRESS:]):
                self.note("mindful", "off_topic", *match.span())


@functools.lru_cache(65536)
def rate(text: str, situation: Situation | None = None) -> Rating:
    """What an utterance does, in its situation if there is one, whose anchors then place a fact, too."""
    return _Rater(text, situation).rated()


def agreement(half: str) -> dict[str, tuple[float, float, float]]:
    """By skill, on the labelled utterances of a half: the F1 of "strong" (of "no" for the two states), the F1 of all
    others, and their mean, the macro-F1."""
    situations = {one.id: one for one in load_situations()}
    gold = [one for one in load_gold() if one.half == half]
    rated = [rate(one.text, situations[one.situation]).labels for one in gold]
    found = {}
    for skill in STRATEGIES + STATES:
        wanted = "strong" if skill in STRATEGIES else "no"
        truth = [one.labels[skill] == wanted for one in gold]
        said = [labels[skill] == wanted for labels in rated]
        scores = []
        for positive in (True, False):
            hits = sum(a == b == positive for a, b in zip(truth, said, strict=True))
            wrong = sum(a != b for a, b in zip(truth, said, strict=True))
            scores.append(2 * hits / max(2 * hits + wrong, 1))
        found[skill] = (scores[0], scores[1], sum(scores) / 2)
    return found


def main() -> None:
    """Prints the agreement on both halves: on "a" the rules were tuned, on "b" never."""
    print("Macro-F1 of strong against the rest, of the states of no against yes, on one annotator's labels")
    for half in ("a", "b"):
        scores = agreement(half)
        mean = sum(macro for *_, macro in scores.values()) / len(scores)
        row = "  ".join(f"{skill} {macro:.2f}" for skill, (*_, macro) in scores.items())
        print(f"half {half}: {row}  mean {mean:.2f}")


if __name__ == "__main__":
    main()
