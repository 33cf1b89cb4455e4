"""Speakers as beginners are: they judge, apologise, hedge, ask too early and take baits; now and then they do well.

They are scripted, for training data and as a baseline, and claim nothing about people.
"""

import numpy as np

from int_jax.domains.dearman import wording as words
from int_jax.domains.dearman.counterpart import ACTS, Counterpart, State
from int_jax.domains.dearman.rater import ASSERT

SKILL = 0.35  # the share of turns that do something well
# What a beginner says, by habit, in brief and in full; slots as in `wording.parts`.
BRIEF = {
    "judgement": (
        "you are lazy",
        "you are selfish",
        "you are rude",
        "you are so unfair",
        "you are bad . please {goal}",
    ),
    "absolute": ("you always do this", "you never help me", "you never ask me"),
    "hedge": (
        "i guess maybe you can {goal}",
        "maybe it is nice if you can {goal} i do not mind",
        "i just thought maybe",
    ),
    "needless_apology": ("sorry . please {goal}", "sorry i am so sorry", "sorry it is my fault"),
    "vague": ("it is too much", "it was so a lot lately", "we find some way", "it is better for me"),
    "took_bait": ("and you are lazy", "look at you", "you are a liar"),
    "gave_in": ("forget it", "do what you want", "it is fine . forget it"),
    "threat": ("please {goal} or else", "do it or else"),
    "off_topic": ("by the way how was your day", "did you see the news"),
}
FULL = {
    "judgement": (
        "You're so selfish, do you know that?",
        "You are lazy, and everybody can see it.",
        "That's rude of you, and you are unreliable, too.",
        "You're careless with other people. {goal}",
    ),
    "absolute": (
        "You always do this to me.",
        "You never think of anyone but yourself.",
        "Every time it's the same, you always find an excuse.",
    ),
    "hedge": (
        "I was just wondering if maybe it could be a bit different, no rush.",
        "I don't know, perhaps you could sort of think about it at some point?",
        "It's kind of difficult, I guess. Maybe whenever you've got a minute.",
    ),
    "needless_apology": (
        "Sorry, I'm so sorry to bring this up. {goal}",
        "I'm sorry, I'm probably overreacting.",
        "Sorry, it's silly of me, I know you're busy.",
    ),
    "vague": (
        "It's all a bit much lately.",
        "It would be nicer for everyone, wouldn't it?",
        "I'm sure we can find some way.",
        "It has been like this for a while.",
    ),
    "took_bait": (
        "And you? Look at yourself for once.",
        "You should talk, you're the liar here.",
        "Oh please, you can't even hear yourself.",
    ),
    "gave_in": (
        "Forget it, it's fine.",
        "Never mind, forget that I said anything.",
        "Fine, do what you want.",
    ),
    "threat": ("{goal} Or else you'll be sorry.", "Do it, or I'll tell everyone what you are like."),
    "off_topic": ("By the way, did you see the match last night?", "Speaking of that, how was your holiday?"),
}
HABITS = ("judgement", "absolute", "hedge", "needless_apology", "vague", "gave_in", "threat", "off_topic")
OFTEN = np.array((0.2, 0.14, 0.2, 0.18, 0.16, 0.05, 0.04, 0.03))
BAITED = 0.5  # the share of attacks that are answered in kind
EARLY = 0.1  # the share of turns that ask at once, whatever was said before


def say(script: Counterpart, state: State, rng: np.random.Generator, skill: float = SKILL) -> str:
    """A beginner's turn in a state; `skill` is the share of turns that do something well.

    Raises: ValueError for a counterpart without a situation.
    """
    if script.situation is None:
        raise ValueError("a script without a situation has no words: give the counterpart of a task")
    slots = words.parts(script.situation, script.wording)
    habits = BRIEF if script.wording == "brief" else FULL
    if rng.random() < skill:
        return script.words(state, ACTS[int(rng.integers(len(ACTS)))], float(rng.random()))
    if state.last == "attack" and rng.random() < BAITED:
        habit = "took_bait"
    elif rng.random() < EARLY:
        choice = words.variants(script.situation, ASSERT, script.wording)
        return choice[int(rng.integers(len(choice)))]
    else:
        habit = str(rng.choice(HABITS, p=OFTEN / OFTEN.sum()))
    lines = habits[habit]
    return lines[int(rng.integers(len(lines)))].format(**slots)
