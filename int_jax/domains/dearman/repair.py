"""How an utterance could be said better: a rewrite for each finding of the rater's that is a fault."""

import re

from int_jax.domains.dearman import wording as words
from int_jax.domains.dearman.lexicon import ANCHOR
from int_jax.domains.dearman.rater import ASSERT, DESCRIBE, EXPRESS, NEGOTIATE, REINFORCE, Finding, rate
from int_jax.domains.dearman.situations import Situation

DROPPED = (
    "judgement",
    "counter_attack",
    "took_bait",
    "threat",
    "gave_in",
    "off_topic",
)  # with their sentence
CUT = ("hedge", "needless_apology", "self_doubt")  # alone
REPLACED = {  # their sentence, by one that does the same well
    "mind_reading": DESCRIBE,
    "no_feeling_word": EXPRESS,
    "vague_ask": ASSERT,
    "vague_benefit": REINFORCE,
    "vague_offer": NEGOTIATE,
}
FAULTS = (*DROPPED, *REPLACED, "absolute", "no_anchor", *CUT)  # in the order of their repair
DONE = ("anchored", "feeling", "ask", "benefit", "offer")  # no faults
ALWAYS = r"(?:always|constantly|every (?:single )?time|all the time|every day of the week)"
MOST = 12  # repairs of one utterance


def _sentence(text: str, finding: Finding) -> tuple[int, int]:
    """The place of the sentence that a finding stands in, with its end sign."""
    start = max((match.end() for match in re.finditer(r"[.!?;]", text[: finding.start])), default=0)
    end = re.search(r"[.!?;]+[\"”']?", text[finding.end :])
    return start, finding.end + end.end() if end else len(text)


def _tidy(text: str, wording: str) -> str:
    text = re.sub(r"\s+", " ", text)
    text = re.sub(r"(?:\s*,)+(?=\s*[.!?;,])|^[\s,.;:!?]+|[\s,]+$", "", text)
    text = re.sub(r"\s+([,!?;])", r"\1", text) if wording == "full" else text.strip(" .")
    if wording == "full":
        text = re.sub(r"(^|[.!?]\s+)([a-z])", lambda match: match[1] + match[2].upper(), text)
        text = re.sub(r"\s+\.", ".", text)
    return text.strip()


def _counted(text: str, finding: Finding, situation: Situation, wording: str) -> str:
    """The sentence of a finding with a count in the place of "always"; the facts where it says "never"."""
    start, end = _sentence(text, finding)
    sentence = text[start:end].rstrip()
    plain = re.sub(rf"(?i)(?:,\s*)?\b{ALWAYS}\b\s?", "", sentence)
    if finding.code == "no_anchor" or plain == sentence or re.search(r"(?i)\b(?:never|not|n't)\b", sentence):
        return words.parts(situation, wording)["facts"]
    brief = situation.brief.anchor if wording == "brief" and situation.brief else ""
    anchor = brief or next((one for one in situation.anchors if ANCHOR.search(one)), situation.anchors[0])
    body, mark = re.fullmatch(r"(.*?)(\W*)", plain, re.DOTALL).groups()  # type: ignore[union-attr]
    return f"{body} {anchor}" if wording == "brief" else f"{body}, {anchor}{mark or '.'}"


def repair(text: str, finding: Finding, situation: Situation, wording: str = "full") -> str:
    """The utterance without one fault: a hedge or a needless apology is cut, with its sentence if that does nothing
    else; an attack goes with its sentence; "always" makes place for a count, and what is vague for a sentence that says
    it. What has no fault there comes back as it is."""
    if finding.code not in FAULTS:
        return text
    start, end = _sentence(text, finding)
    said = ""
    if finding.code in ("absolute", "no_anchor"):
        said = f" {_counted(text, finding, situation, wording)}"
    elif finding.code in REPLACED:
        said = f" {words.variants(situation, REPLACED[finding.code], wording)[0]}"
    elif finding.code in CUT and any(
        one.code in DONE and start <= one.start < end for one in rate(text, situation).findings
    ):
        start, end = finding.start, finding.end
    better = _tidy(text[:start] + said + text[end:], wording)
    return better or words.variants(situation, ASSERT, wording)[0]


def rewrite(text: str, situation: Situation, wording: str = "full") -> str:
    """The utterance without any fault that a repair takes away; what then does nothing is given an ask."""
    for _ in range(MOST):
        found = rate(text, situation).findings
        # What is said well elsewhere in the utterance needs no repair here.
        done = {one.skill for one in found if one.code in DONE}
        faults = [
            one for one in found if one.code in FAULTS and not (one.code in REPLACED and one.skill in done)
        ]
        if not faults:
            break
        first = min(faults, key=lambda one: FAULTS.index(one.code))
        better = repair(text, first, situation, wording)
        if better == text:
            break
        text = better
    if not any(rate(text, situation).strengths):
        text = words.joined(
            [*([text] if text else []), words.variants(situation, ASSERT, wording)[0]], wording
        )
    return text
