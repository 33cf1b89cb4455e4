"""What a therapist's turn does, read from its words by rules: one act a turn, whatever the words are.

Read are short lower-case turns and natural English alike. A turn is cut into clauses, each clause is one act, and the
turn is the first of these that one of its clauses is:

  formulation (the turn begins with that word) > advice > interpretation > risk question > question > redirect >
  summary > validation > reflection > small talk (all else)

So a supportive preface costs nothing before a question, and a question excuses no advice. Of two questions about the
same part the turn is the closed one, if one is closed. A turn with more questions, with questions about several parts,
or of more than MOST_WORDS words is overloaded: it is the worst of its acts, at best a closed question about the first
of PARTS that it names, or small talk without one. Packing phrases into a turn therefore never pays.

The rules see phrases, not meaning: they are right on plain ones, and a person can always find words that they misread.
"""

import functools
import re
from typing import NamedTuple

# What a client can disclose, in the order in which it is found out.
PARTS = ("situation", "thought", "emotion", "behaviour", "coping", "rule", "belief")
KINDS = (
    "open",
    "closed",
    "reflection",
    "validation",
    "summary",
    "redirect",
    "small_talk",
    "risk",
    "interpretation",
    "advice",
    "formulation",
)
MOST_WORDS = 60  # of a turn
FORMULATION = "formulation"


class Act(NamedTuple):
    """What a turn does.

    Attributes:
      kind: one of KINDS. part: of a question, one of PARTS. worth: of a formulation, its score in [0, 1].
    """

    kind: str
    part: str = ""
    worth: float = 0.0


CONTRACTED = (
    (r"\bcan't\b|\bcannot\b", "can not"),
    (r"\bwon't\b", "will not"),
    (r"\blet's\b", "let us"),
    (r"n't\b", " not"),
    (r"'re\b", " are"),
    (r"'ve\b", " have"),
    (r"'ll\b", " will"),
    (r"'m\b", " am"),
    (r"'d\b", " would"),
    (r"\b(what|how|it|that|there|who|where|here)'s\b", r"\1 is"),
    (r"'", ""),
)
# "what" and "how" that ask: not those of "tell me what", "about what happened".
ASKING = re.compile(
    r"(?<!tell me )(?<!about )(?<!of )(?<!with )(?<!by )(?<!see )(?<!hear )(?<!know )(?<!understand )(?<!describe )"
    r"(?<!wonder )(?<!exactly )(?<!through )\b(?=(?:what|how|why) (?:did|do|does|is|was|were|are|would|will|must"
    r"|should|goes|went|happened|happens|kind|sort|else|have|has|had|ran|runs|came|comes|could|can|might|made|makes|thoughts?|feelings?)\b)"
)
FILLER = r"(?:(?:and|so|but|then|well|ok|okay|now|or|also|please|oh|hm|right|yes|sure),? )*"
OPEN = re.compile(
    rf"^{FILLER}(?:what|how|why|tell me|describe|walk me|help me understand|say more|share|go on)\b"
    r"|\b(?:can|could|would|will) you (?:please )?(?:tell|describe|say|help me|walk|share|explain|put)\b"
    r"|\bi (?:am curious|wonder|would like to (?:hear|know|understand)|am wondering)\b"
    r"|, ?(?:what|how)\b|\b(?:in|at) what\b|\bwhat (?:did|do|does|was|were|is|would|went|happened|must)\b"
)
CLOSED = re.compile(
    rf"^{FILLER}(?:did|do|does|are|were|is|was|have|has|had|will|would|could|can|must|should)"
    r" (?:you|it|that|this|he|she|they|there|your|the|anything|something|anyone|we|not|more)\b"
    rf"|^{FILLER}(?:which|who|when|where) (?:did|do|was|were|is|are)\b"
)
ABOUT = {
    "belief": r"(?:say|says|said|means?|meant|tells?) (?:\w+ ){0,2}about (?:you|yourself|who you)\b"
    r"|\bas a person\b|\bwho (?:you are|are you)\b|\bwhat are you\b|\bdeep down\b|\babout yourself\b"
    r"|\b(?:see|view|think of) yourself\b|\bsort of person\b|\bkind of person\b",
    "rule": r"\brules?\b|\bmust you\b|\byou must\b|\byou (?:have|had) to\b|\bhave you to\b|\blive by\b|\bwhat if\b"
    r"|\bif you (?:did not|do not|stopped|let)\b|\b(?:expect|demand|ask) (?:\w+ )?of yourself\b"
    r"|\bshould (?:you|a person)\b",
    "coping": r"\bcop(?:e|es|ed|ing)\b|\busually\b|\bget(?:s)? (?:you )?through\b|\bhard (?:days?|times?)\b"
    r"|\b(?:it|things|life) (?:is|are|gets?|become|becomes) (?:too )?(?:hard|difficult|much|tough)\b"
    r"|\bdeal(?:ing)? with\b|\bmanage\b|\bmost days\b|\bin general\b",
    "emotion": r"\bfe(?:el|els|lt|eling|elings)\b|\bemotions?\b|\bmood\b|\bin your body\b"
    r"|\b(?:sad|afraid|scared|angry|mad|anxious|nervous|ashamed|hurt|upset|guilty|jealous|disappointed|suspicious|lonely)\b",
    "thought": r"\bth(?:ink|ought|oughts|inking)\b|\bmind\b|\bhead\b|\btell(?:ing)? yourself\b",
    "behaviour": r"\byou (?:do|did|done|act|acted|react|reacted|respond|responded|answer)\b"
    r"|\byour (?:reaction|response)\b"
    r"|\bhandle(?:d)?\b",
    "situation": r"\bhappen(?:s|ed|ing)?\b|\bsituation\b|\bevent\b|\b(?:go|going|goes|went) on\b"
    r"|\bmore\b|\btook place\b"
    r"|\bthat day\b|\bbrings? you\b|\bbrought you\b|\bstory\b|\bit start(?:ed)?\b|\bwas it\b|\bgo on\b|\bexample\b",
}
REPORTED = r"(?:feel|felt|feels|think|thought|believe|say|said|saying|yourself|if|that|when|as if|like)"
ADVICE = re.compile(
    r"\byou (?:really |just |simply )?(?:should|must|ought|need to|have to|had better"
    r"|could (?:just )?try|might try|can try)\b"
    r"|\bif i (?:were|was) you\b|\bmy advice\b|\bi (?:would )?(?:advise|suggest|recommend)\b"
    r"|\bwhy (?:do you not|do not you|not)\b"
    rf"|^{FILLER}(?:just |simply )?(?:try|stop|start|forget|cheer up|calm down|relax|do not|be strong|think positive)\b"
    r"|\bhave you (?:tried|thought about|considered)\b"
)
DENIED = re.compile(r"\b(?:not|never|no)\b(?: \w+){0,2}$")
RISK = re.compile(
    r"\bsafe\b|\bsuicid\w*|\b(?:hurt|harm|harming|hurting|kill|killing) yourself\b|\bend(?:ing)? your life\b|\bto die\b"
    r"|\bto live\b|\bbeing dead\b"
)
REDIRECT = re.compile(
    r"\b(?:go|come|get|bring us|went) back\b|\bback to\b|\bstay with\b|\breturn to\b|\bfocus\b|\bone thing\b"
    r"|\bstick with\b|\bpause you\b"
)
SUMMARY = re.compile(
    r"\bsum\b|\bsummar\w+|\b(?:put|pull) (?:it|this|that|things|all) (?:all )?together\b|\bso far\b|\ball in all\b"
    r"|\bi have heard\b|\bsee if i\b|\bcheck (?:that|if|whether) i\b"
)
VALIDATION = re.compile(
    r"\bsense\b|\bunderstandable\b|\bsee why\b|\bno wonder\b|\b(?:any|every)(?:one|body) would\b"
    r"|\bnatural\b|\bthank you\b"
    r"|\bthanks\b|\bcourage\b|\bi understand\b|\bmany people\b|\bthat is (?:ok|okay|all right)\b"
    r"|\bof course\b|\bit is (?:ok|okay)\b"
)
NO_SENSE = re.compile(r"\bno sense\b|\bnot (?:\w+ )?(?:sense|understandable|natural|understand|see why)\b")
REFLECTION = re.compile(
    r"\bsounds?\b|\bseems?\b|\bi hear\b|\bmust have been\b|\bfor you\b|\bas if you\b"
    r"|\b(?:it|that|this) is (?:so |very |really |too )?(?:hard|tough|painful|a lot|heavy|much)\b"
    rf"|^{FILLER}(?:it|that|this) (?:was|felt|had|hit|hurt|went|got|came|stayed)\b"
    rf"|^{FILLER}(?:part of you|you) (?:are|were|feel|felt|think|thought|believe"
    r"|had|have|wanted|went|got|came|stayed|did)\b"
)
# "you are ...", "you feel ...", "are you a ..." before the name of a belief.
CLAIM = (
    r"\b(?:you (?:really |truly |just )?(?:are|feel|felt|seem|believe|think|see yourself)\b"
    r"(?: (?!not\b|never\b)\w+){0,5}"
    r"|are you(?: a| an| really| just)*) "
)


def plain(text: str) -> list[str]:
    """Its clauses in lower case, contractions written out; a question keeps its mark."""
    text = text.casefold().replace("\u2019", "'").replace("\u2018", "'")
    for short, long in CONTRACTED:
        text = re.sub(short, long, text)
    clauses = []
    for sentence in re.findall(r"[^.!?;:\n]+[.!?;:\n]*", text):
        asked = "?" in sentence
        words = re.sub(r"[^a-z0-9,]+", " ", sentence).strip(" ,")
        pieces = [piece.strip(" ,") for piece in ASKING.split(words)]
        pieces = [piece for piece in pieces if piece]
        # "when it is hard, what do you do" is one question.
        while len(pieces) > 1 and re.match(r"(?:and |so )?(?:when|if|on|once|after)\b", pieces[0]):
            pieces[:2] = [f"{pieces[0]} {pieces[1]}"]
        # Only its last piece ends in the mark.
        clauses += [f"{p}?" if asked and p is pieces[-1] else p for p in pieces]
    return clauses


def part_of(clause: str) -> str:
    """The part that a question is about, "" where it is about none."""
    return next((part for part, words in ABOUT.items() if re.search(words, clause)), "")


def is_question(clause: str) -> str:
    """ "open", "closed", or "" where a clause asks nothing."""
    if OPEN.search(clause.rstrip("?")):
        return "open"
    return "closed" if clause.endswith("?") or CLOSED.search(clause) else ""


def _clause(clause: str, names: str) -> Act:
    bare = clause.rstrip("?")
    for match in ADVICE.finditer(bare):
        before = bare[: match.start()]
        # "you feel you must" reports, "I will not suggest" refuses; "I do not think you should" is advice.
        reports = match[0].startswith("you") and re.search(rf"{REPORTED} (?:that )?$", before)
        asks = match[0].startswith("you") and re.search(r"\b(?:what|how|tell me)\b", before)
        refuses = match[0].startswith("i ") or DENIED.search(before)
        denied = DENIED.search(before) or re.search(r"\bnot\b", match[0])
        if not (reports and "not think" not in before) and not asks and not (refuses and denied):
            return Act("advice")
    if names and re.search(CLAIM + rf"(?:{names})\b", bare):
        return Act("interpretation")
    question = is_question(clause)
    if question:
        if RISK.search(bare):
            return Act("risk")
        part = part_of(bare)
        return Act(question, part) if part else Act("small_talk")
    if REDIRECT.search(bare) and not re.search(r"\bnot (?:go|come|get|stay|return|focus)\b", bare):
        return Act("redirect")
    if SUMMARY.search(bare):
        return Act("summary")
    if NO_SENSE.search(bare):
        return Act("small_talk")
    if VALIDATION.search(bare):
        return Act("validation")
    return Act("reflection") if REFLECTION.search(bare) else Act("small_talk")


@functools.lru_cache(1 << 16)
def read(text: str, unheard: tuple[str, ...] = ()) -> Act:
    """The act of a turn; that of a formulation has no worth yet.

    unheard: words for beliefs that the client has not told; a turn that calls the client one of these interprets.
    """
    if text.strip().casefold().startswith(FORMULATION):
        return Act("formulation")
    clauses = plain(text)
    words = sum(len(clause.split()) for clause in clauses)
    names = "|".join(map(re.escape, unheard))
    found = [_clause(clause, names) for clause in clauses]
    for kind in ("advice", "interpretation", "risk"):
        if any(act.kind == kind for act in found):
            return Act(kind)
    questions = [act for act in found if act.part]
    parts = sorted({act.part for act in questions}, key=PARTS.index)
    if words > MOST_WORDS or len(questions) > 2 or len(parts) > 1:
        return Act("closed", parts[0]) if parts else Act("small_talk")
    if questions:
        return Act("closed" if any(act.kind == "closed" for act in questions) else "open", parts[0])
    for kind in ("redirect", "summary", "validation", "reflection"):
        if any(act.kind == kind for act in found):
            return Act(kind)
    return Act("small_talk")
