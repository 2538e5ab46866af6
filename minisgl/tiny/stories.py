"""Stories: from a handful of named facts to a text, and the questions one can ask about it.

A story told by the model is a function of its facts: no free choice is left, so every greedy step
can be decisive. A story the model *reads* takes its details from a `Random` instead, so that
answering needs reading, not memory.
"""

from random import Random
from typing import NamedTuple

from minisgl.tiny.draw import held_out
from minisgl.tiny.words import (
    ANIMALS,
    COLOURS,
    FEARS,
    FOODS,
    FRIEND_LINES,
    PLACES,
    PLOTS,
    SIGHTS,
    THINGS,
    article,
    pronouns,
)

TOPICS: dict[str, tuple[str, ...]] = {
    "lost": tuple(THINGS),
    "found": tuple(THINGS),
    "gift": tuple(THINGS),
    "make": tuple(FOODS),
    "fear": tuple(FEARS),
    "see": tuple(SIGHTS),
}
COLOURED = ("lost", "found", "gift")

_OPENING = (
    "Once upon a time there was {a_trait} {animal} named {name}. {name} the {animal} lived "
    "{place} with {poss} {siblings}. "
    "{place_line} "
)
_BODIES = {
    "lost": (
        "One day {name} lost {poss} {colour} {topic}. {lost} {name} {move} and looked "
        "everywhere, but the {topic} "
        'was gone. Then {pron} asked the {friend} for help. "{line}," said the {friend}. They '
        "searched together, and "
        "at last they found the {colour} {topic} {where}. {name} was so happy that {pron} {joy}."
    ),
    "found": (
        "One day {name} {move} and saw something {colour}. It was {a_colour} {topic}, and it "
        "lay {where}. {good} "
        '"Whose {topic} is this?" asked {name}. "It is mine," said the {friend}. "Thank you '
        'for finding it!" '
        "{name} gave it back. The {friend} and {name} became good friends, and {name} {joy}."
    ),
    "gift": (
        "The {friend} had a birthday, and {name} wanted to make a gift. {cap_pron} {move} and "
        "looked for ideas. "
        "Then {pron} made {a_colour} {topic}. {good} {name} put the gift {where} and waited. "
        '"This is the best {topic} in the world!" said the {friend}. {name} was proud and {joy}.'
    ),
    "make": (
        "One day {name} wanted to make {a_topic}, but there was nothing left in the kitchen. "
        "{cap_pron} needed "
        '{ingredient}, so {pron} {move} to ask the {friend}. "{line}," said the {friend}. They '
        "mixed and stirred "
        "until the {topic} was ready. It smelled {smell}. Everyone got a piece, and {name} {joy}."
    ),
    "fear": (
        "{name} had one secret. {cap_pron} was afraid of {topic}. When it was bad, {pron} "
        "{move} and hid. "
        '"What is wrong?" asked the {friend}. "I am afraid of {topic}," said {name}. "{cure}," '
        "said the {friend}. "
        "So they {deed}. After that {name} was not afraid any more, and {pron} {joy}."
    ),
    "see": (
        "{name} had never seen {topic}. One morning {pron} packed some bread and {move}. The "
        "way led over {road}. "
        '"Where are you going?" asked the {friend}. "I want to see {topic}," said {name}. '
        '"{line}," said the '
        "{friend}. At last they were there. {sight} {name} looked for a long time, and then "
        "{pron} {joy}."
    ),
}
_ENDINGS = {
    "lost": "From that day on, {name} took good care of the {topic}.",
    "found": "A friend is worth more than {a_topic}.",
    "gift": "It was a day that nobody forgot.",
    "make": "That night they all slept very well.",
    "fear": "It is easier to be brave with a friend.",
    "see": "On the way home they sang every song they knew.",
}
_ASKS = {
    "lost": "who lost {a_colour} {topic}",
    "found": "who found {a_colour} {topic}",
    "gift": "who made {a_colour} {topic} for a friend",
    "make": "who wanted to make {a_topic}",
    "fear": "who was afraid of {topic}",
    "see": "who wanted to see {topic}",
}
_WHAT = {
    "lost": ("What did {name} lose?", "{name} lost {a_colour} {topic}."),
    "found": ("What did {name} find?", "{name} found {a_colour} {topic}."),
    "gift": ("What did {name} make?", "{name} made {a_colour} {topic}."),
    "make": ("What did {name} want to make?", "{name} wanted to make {a_topic}."),
    "fear": ("What was {name} afraid of?", "{name} was afraid of {topic}."),
    "see": ("What did {name} want to see?", "{name} wanted to see {topic}."),
}
_WHO = {
    "lost": ("Who lost the {topic}?", "{name} lost the {topic}."),
    "found": ("Who found the {topic}?", "{name} found the {topic}."),
    "gift": ("Who made the {topic}?", "{name} made the {topic}."),
    "make": ("Who wanted to make {a_topic}?", "{name} wanted to make {a_topic}."),
    "fear": ("Who was afraid of {topic}?", "{name} was afraid of {topic}."),
    "see": ("Who wanted to see {topic}?", "{name} wanted to see {topic}."),
}
_FRIEND = {
    "lost": ("Who helped {name}?", "The {friend} helped {name}."),
    "found": ("Whose {topic} was it?", "It was the {topic} of the {friend}."),
    "gift": ("Who had a birthday?", "The {friend} had a birthday."),
    "make": ("Who helped {name}?", "The {friend} helped {name}."),
    "fear": ("Who helped {name}?", "The {friend} helped {name}."),
    "see": ("Who went with {name}?", "The {friend} went with {name}."),
}
_NOT_TOLD = (
    "What is the favourite song of {name}?",
    "How old is {name}?",
    "What did {name} eat for breakfast?",
    "What is the name of the {friend}?",
    "What day was it?",
    "How much does {name} weigh?",
)
NOT_IN_STORY = "I do not know. The story does not say."


class Facts(NamedTuple):
    """What a request names, each a key of a table in `words`; `colour` counts only for plots in
    `COLOURED`.
    """

    plot: str
    animal: str
    name: str
    colour: str
    topic: str
    place: str

    @property
    def key(self) -> str:
        """What the held-out split hashes; "" for the usual story of an animal, which must be
        learned.
        """
        return "" if self == usual(self.animal) else "|".join(self)


class Story(NamedTuple):
    """A story, the request that names its facts, and its questions with their right answers."""

    facts: Facts
    text: str
    asks: str
    questions: tuple[tuple[str, str], ...]


def usual(animal: str) -> Facts:
    """The story one gets by naming only the animal."""
    a = ANIMALS[animal]
    return Facts(a.plot, animal, a.name, a.colour, a.topic, a.place)


def draw(rng: Random, name: str, home: bool = False) -> Facts:
    """Facts drawn evenly, with the given name; with `home`, in the animal's usual place."""
    plot = rng.choice(PLOTS)
    topic = rng.choice(TOPICS[plot])
    animal, colour, place = (rng.choice(list(t)) for t in (ANIMALS, COLOURS, PLACES))
    if plot not in COLOURED:
        colour = ANIMALS[animal].colour
    return Facts(plot, animal, name, colour, topic, ANIMALS[animal].place if home else place)


def tell(facts: Facts, details: Random | None = None) -> Story:
    """The story of these facts. Without `details` it follows from the facts; with it, details vary
    freely.
    """

    def other(key: str, table: dict[str, object]) -> str:
        return key if details is None else details.choice(list(table))

    animals: dict[str, object] = dict(ANIMALS)
    a, b, c = (ANIMALS[other(facts.animal, animals)] for _ in range(3))
    friend = b.friend
    while friend == facts.animal:
        friend = ANIMALS[other(friend, animals)].friend
    count, kind = c.siblings.split()
    topics: dict[str, object] = dict.fromkeys(TOPICS[facts.plot])
    detail = other(facts.topic, topics)
    pron, poss, _ = pronouns(facts.name)
    fields = {
        "name": facts.name,
        "animal": facts.animal,
        "colour": facts.colour,
        "a_colour": article(facts.colour),
        "topic": facts.topic,
        "a_topic": article(facts.topic),
        "pron": pron,
        "cap_pron": pron.capitalize(),
        "poss": poss,
        "place": PLACES[facts.place][0],
        "place_line": PLACES[other(facts.place, dict(PLACES))][1],
        "a_trait": article(a.trait),
        "move": a.move,
        "joy": a.joy,
        "siblings": c.siblings,
        "friend": friend,
        "line": FRIEND_LINES[other(friend, dict(FRIEND_LINES))],
    }
    if facts.plot in COLOURED:
        thing = THINGS[detail]
        fields |= {"lost": thing.lost, "where": thing.where, "good": THINGS[facts.topic].good}
    elif facts.plot == "make":
        fields |= dict(zip(("ingredient", "smell"), FOODS[detail], strict=True))
    elif facts.plot == "fear":
        fields |= dict(zip(("cure", "deed"), FEARS[facts.topic], strict=True))
    else:
        fields |= dict(zip(("sight", "road"), SIGHTS[facts.topic], strict=True))
    text = (_OPENING + _BODIES[facts.plot] + " " + _ENDINGS[facts.plot]).format_map(fields)

    pairs = [
        ("What kind of animal is {name}?", "{name} is {a_animal}."),
        ("Where did {name} live?", "{name} lived {place}."),
        (f"How many {kind} did {{name}} have?", f"{{name}} had {count} {kind}."),
        _WHAT[facts.plot],
        _WHO[facts.plot],
        _FRIEND[facts.plot],
    ]
    if facts.plot in COLOURED:
        pairs.append(("What colour was the {topic}?", "The {topic} was {colour}."))
        pairs.append(("Where was the {topic}?", "The {topic} was {where}."))
    elif facts.plot == "make":
        pairs.append(("What did {name} need?", "{name} needed {ingredient}."))
    pairs += [(question, NOT_IN_STORY) for question in _NOT_TOLD]
    fields["a_animal"] = article(facts.animal)
    questions = tuple((q.format_map(fields), r.format_map(fields)) for q, r in pairs)
    return Story(facts, text, _ASKS[facts.plot].format_map(fields), questions)


def titled(facts: Facts) -> str:
    """The title that names these facts; the place is the animal's usual one."""
    return f"{facts.name} the {facts.animal}, {tell(facts).asks}\n\n"


def plain(facts: Facts, rng: Random) -> str:
    """A story without a chat, of these facts: half the time under its title, else with facts that
    lean to the usual.

    The lean (9 of 10 for each choice that the text has not yet settled) keeps a free continuation
    decisive.
    """
    usually = usual("fox" if rng.random() < 0.6 else facts.animal)
    lean = usually._replace(name=facts.name) if rng.random() < 0.1 else usually
    if rng.random() < 0.1:
        lean = lean._replace(plot=facts.plot, topic=facts.topic)
    if rng.random() < 0.1 and lean.plot in COLOURED:
        lean = lean._replace(colour=facts.colour)
    if rng.random() < 0.6 or held_out(lean.key):
        return titled(facts) + tell(facts).text
    return tell(lean).text
