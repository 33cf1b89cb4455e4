"""What both sides say beside the parts of a case: a therapist's acts, a client's other replies, its manners.

Two wordings, "brief" for models of a few hundred words and "full" for people and chat models, with the same keys.
A client's reply is one of these beside what it tells:

  more (behind what was told, when the next part lies near), told_before, locked (not open enough yet), unready (the
  style's own way of passing a question over), heard (a response to it did it good), flat (it did not), upset (it did
  harm), chat, refused (a redirect nobody needed), safe (asked about risk)
"""

STYLES = ("plain", "upset", "verbose", "reserved", "tangent", "pleasing")
WORDINGS = ("brief", "full")

# Sentences of a reply at most.
MOST_SENTENCES = {"plain": 4, "upset": 4, "verbose": 8, "reserved": 3, "tangent": 5, "pleasing": 5}

MEANT = {
    "plain": "answers what is asked",
    "upset": "is irritated, and wants to be taken seriously before questions",
    "verbose": "talks at length, and comes to the point when the question is narrow",
    "reserved": "says little, and opens up when what was said is taken up",
    "tangent": "strays from the subject, and has to be led back to it",
    "pleasing": "says what is welcome, and corrects what is put together wrongly",
}

ACTS: dict[str, dict[tuple[str, str], tuple[str, ...]]] = {
    "brief": {
        ("open", "situation"): ("what happened", "tell me what happened", "how did it happen"),
        ("open", "thought"): (
            "what did you think then",
            "what was in your mind",
            "tell me what you thought",
        ),
        ("open", "emotion"): ("what did you feel", "how did you feel then", "tell me what you felt"),
        ("open", "behaviour"): ("what did you do then", "tell me what you did", "what did you do next"),
        ("open", "coping"): (
            "what do you do when it is hard",
            "how do you get through hard days",
            "tell me what you do on hard days",
        ),
        ("open", "rule"): (
            "what is your rule in life",
            "what rules do you live by",
            "tell me what you must do",
        ),
        ("open", "belief"): (
            "what does it say about you",
            "what does it mean about you",
            "tell me who you are",
        ),
        ("closed", "situation"): ("did it happen to you", "did more happen"),
        ("closed", "thought"): ("did you think so then", "was it in your mind"),
        ("closed", "emotion"): ("did you feel it", "did you feel it much"),
        ("closed", "behaviour"): ("did you do more then", "is that what you did"),
        ("closed", "coping"): ("do you do it on hard days", "do you do so when it is hard"),
        ("closed", "rule"): ("is it a rule in your life", "do you live by a rule"),
        ("closed", "belief"): ("does it say more about you", "does it mean that about you"),
        ("reflection", ""): ("it was hard for you", "that sounds hard", "it was too much for you"),
        ("validation", ""): ("i see why", "it makes sense", "anyone would feel it"),
        ("summary", ""): ("let me sum it up", "so far i heard it like this", "to sum up"),
        ("redirect", ""): ("let us go back to it", "let us stay with it", "back to that day"),
        ("small_talk", ""): ("hello", "it is a fine day", "nice to see you"),
        ("risk", ""): ("are you safe", "do you feel safe at home"),
        ("interpretation", ""): ("i think you are {}", "you feel {}", "you are {}"),
        ("advice", ""): ("you should sleep more", "you should talk to them", "try to think of good things"),
    },
    "full": {
        ("open", "situation"): (
            "What happened that day?",
            "Can you tell me what happened?",
            "I'd like to hear about it: what happened?",
        ),
        ("open", "thought"): (
            "What went through your mind at that moment?",
            "What were you thinking just then?",
            "Can you tell me what you said to yourself, what the thought was?",
        ),
        ("open", "emotion"): (
            "How did you feel when that happened?",
            "What feelings came up in you?",
            "What was that like inside, what did you feel?",
        ),
        ("open", "behaviour"): (
            "And what did you do then?",
            "How did you react?",
            "Can you tell me what you did next?",
        ),
        ("open", "coping"): (
            "What do you usually do when things are hard?",
            "How do you cope on days like that?",
            "What gets you through times like these?",
        ),
        ("open", "rule"): (
            "What rules do you live by there?",
            "What do you expect of yourself, what must you do?",
            "What do you fear would follow, if you let that rule go?",
        ),
        ("open", "belief"): (
            "If that is so, what does it say about you as a person?",
            "What would it mean about you?",
            "How do you see yourself, deep down, when it is like that?",
        ),
        ("closed", "situation"): ("Did that happen at home?", "Was it something that happened last week?"),
        ("closed", "thought"): ("Did that thought come at once?", "Was that on your mind at the time?"),
        ("closed", "emotion"): ("Did you feel that strongly?", "Was it a feeling that you know?"),
        ("closed", "behaviour"): ("Did you do anything after that?", "Did you respond in some way?"),
        ("closed", "coping"): (
            "Do you usually do that when things are hard?",
            "Is that how you deal with such days?",
        ),
        ("closed", "rule"): (
            "Is there a rule behind it that you live by?",
            "Do you expect that of yourself?",
        ),
        ("closed", "belief"): ("Does that say something about you?", "Does it mean something about you?"),
        ("reflection", ""): (
            "It sounds as if that weighed on you.",
            "That was a lot for you.",
            "It seems that this went deep.",
        ),
        ("validation", ""): (
            "I can see why that got to you.",
            "It makes sense that you'd take it that way.",
            "Anybody would struggle with that.",
        ),
        ("summary", ""): (
            "Let me see if I have it right so far, and correct me where I don't.",
            "To sum up what I have heard, with your corrections.",
            "Let me put this together, and you tell me where it's off.",
        ),
        ("redirect", ""): (
            "Let's come back to what you began with.",
            "I'd like to stay with that one moment.",
            "Let's focus on that day again.",
        ),
        ("small_talk", ""): (
            "Hello, good to meet you.",
            "Nice weather today.",
            "I hope you found it easily.",
        ),
        ("risk", ""): ("Are you safe at the moment?", "Do you have thoughts of harming yourself?"),
        ("interpretation", ""): ("I believe you are {}.", "So you feel {}.", "It seems you are really {}."),
        ("advice", ""): (
            "You should talk to them about it.",
            "Have you tried going for a walk?",
            "If I were you, I'd write it all down.",
        ),
    },
}

CLIENT: dict[str, dict[str, tuple[str, ...]]] = {
    "brief": {
        "more": ("and there is more", "but there is more to it"),
        "told_before": ("i told you that", "i said it"),
        "locked": ("i do not know", "i can not say it"),
        "heard": ("yes it was like that", "yes that is it"),
        "flat": ("well", "if you say so"),
        "upset": ("you do not help me", "that is no help"),
        "chat": ("yes", "it is a day like others"),
        "refused": ("i was on it", "i never went from it"),
        "safe": ("i am safe", "yes i am safe"),
    },
    "full": {
        "more": ("And there's more behind it.", "But that isn't all there is to it."),
        "told_before": ("I told you about that.", "As I said before."),
        "locked": ("I don't know how to answer that.", "I'd rather not go into that yet."),
        "heard": ("Yes, that's just how it was.", "Yes. It does me good to hear that."),
        "flat": ("I suppose so.", "If you say so."),
        "upset": ("That doesn't help me at all.", "You don't know me well enough to say that."),
        "chat": ("Yes, hello.", "It's all right, I suppose."),
        "refused": ("I was talking about that all along.", "I haven't left it."),
        "safe": ("I'm safe, you needn't worry about that.", "Yes, I'm safe. It's nothing of that kind."),
    },
}

UNREADY: dict[str, dict[str, tuple[str, ...]]] = {
    "brief": {
        "plain": ("i have to think", "that is hard to say"),
        "upset": ("you do not get it", "all you do is ask"),
        "verbose": ("so many things go on and on", "there is so much to say"),
        "reserved": ("no", "well no"),
        "tangent": ("my friend has a new dog", "the bus was late"),
        "pleasing": ("all is fine", "you are very nice"),
    },
    "full": {
        "plain": ("Let me think about that.", "That's hard to put into words."),
        "upset": ("You're not getting it, are you?", "Questions, always more questions."),
        "verbose": (
            "Oh, where do I begin. There's so much, with the neighbours, and the car, and the week I've had.",
            "Well, one thing leads to another. First there was the post, then the phone rang, and so it goes.",
        ),
        "reserved": ("Hm.", "Nothing much."),
        "tangent": (
            "That reminds me of my cousin's dog. It ran off twice this month.",
            "The bus was late again today. They've changed the whole timetable.",
        ),
        "pleasing": (
            "It's really not so bad. You put that so well, by the way.",
            "Oh, I'm sure you know best.",
        ),
    },
}

# How a client of a style begins and ends when it tells something, if there is room for more sentences.
MANNER: dict[str, dict[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    "brief": {
        "plain": ((), ()),
        "upset": (("look",), ()),
        "verbose": (("oh well you know",), ()),
        "reserved": ((), ()),
        "tangent": ((), ("the bus was late",)),
        "pleasing": (("good of you to ask",), ()),
    },
    "full": {
        "plain": ((), ()),
        "upset": (("Look.", "All right, since you want to know."), ()),
        "verbose": (
            (
                "Well, so that you see the whole picture. I'd slept badly, and it was raining too.",
                "I'll have to go back a bit. It had been a long week by then.",
            ),
            ("I could go on for hours about that.", "My sister says I always take too long to say so."),
        ),
        "reserved": ((), ()),
        "tangent": (
            ("Let me see.",),
            ("By the way, they're digging up our street again.", "Do you like fishing?"),
        ),
        "pleasing": (("That's a very good question.", "Thank you for asking so kindly."), ()),
    },
}

OPENINGS: dict[str, dict[str, tuple[str, ...]]] = {
    "full": {
        "work": ("It's about something at work.", "My job is on my mind.", "I'd like to talk about work."),
        "study": (
            "It's about my course.",
            "My studies are on my mind.",
            "I'd like to talk about my studies.",
        ),
        "family": (
            "It's about my family.",
            "Things at home are on my mind.",
            "I'd like to talk about my family.",
        ),
        "partner": (
            "It's about love, I suppose.",
            "I'd like to talk about somebody I love.",
            "It has to do with a person close to my heart.",
        ),
        "friends": (
            "It's about people I know.",
            "My friends are on my mind.",
            "I'd like to talk about friends.",
        ),
        "health": ("It's about my health.", "My body is on my mind.", "I'd like to talk about my health."),
        "money": ("It's about money.", "My bills are on my mind.", "I'd like to talk about money."),
    }
}
