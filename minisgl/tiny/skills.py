"""What the model is taught: each skill draws one task, a few turns of talk whose right answers are
known.

A turn's answer follows from what stands before it, and from nothing else. Each turn has a key, and
the key alone decides whether the turn may be trained on or is held out.
"""

from collections.abc import Callable

from minisgl.tiny import stories
from minisgl.tiny.draw import Draw, Task, Turn
from minisgl.tiny.lookup import library, notes
from minisgl.tiny.wordplay import copying, wordplay
from minisgl.tiny.words import (
    ANIMALS,
    COLOURS,
    DAYS,
    NAMES,
    PLACES,
    SHOPS,
    SURNAMES,
    THINGS,
    UNKNOWN_TOPICS,
    article,
)

UNKNOWN = "I do not know. I only know small stories and small sums."
NOT_TOLD = "I do not know. Nobody told me."


def story(d: Draw) -> Task:
    """Tell a story about named facts; sometimes a question about the story told."""
    r = d.rng
    if not d.held and r.random() < 0.06:
        animal = r.choice(["fox", *ANIMALS])
        about = r.choice([f" about {article(animal)}", f" about {article(animal)}", ""])
        facts, key = stories.usual(animal if about else "fox"), ""
    elif r.random() < 0.15:
        facts = d.settle(
            lambda: stories.usual(r.choice(list(ANIMALS)))._replace(name=d.name()), lambda f: f.key
        )
        about, key = f" about {article(facts.animal)} named {facts.name}", facts.key
    else:
        name, roam = d.name(), r.random() < 0.3
        facts = d.settle(lambda: stories.draw(r, name, home=not roam), lambda f: f.key)
        who = f"{article(facts.animal)} {PLACES[facts.place][0]}" if roam else article(facts.animal)
        about = f" about {who} named {name} {stories.tell(facts).asks}"
        key = facts.key
    told = stories.tell(facts)
    ask = r.choice(
        (
            "Tell me a story{}.",
            "Tell me a story{}.",
            "Please tell me a story{}.",
            "Write a short story{}.",
            "Can you tell me a story{}?",
            "I would like to hear a story{}.",
        )
    ).format(about)
    turns = [Turn(ask, told.text, key)]
    if r.random() < 0.4:
        some = r.sample(told.questions, r.randint(1, 3))
        turns += [Turn(q, a, key) for q, a in some]
    return _task(turns, facts.name)


def reading(d: Draw) -> Task:
    """A story in the user's message, with details that vary freely, and questions about it."""
    r, name = d.rng, d.name()
    facts = d.settle(lambda: stories.draw(r, name), lambda f: f.key)
    told = stories.tell(facts, r)
    known = [qa for qa in told.questions if qa[1] != stories.NOT_IN_STORY]
    unknown = [qa for qa in told.questions if qa[1] == stories.NOT_IN_STORY]
    pairs = r.sample(known, r.randint(2, len(known))) + r.sample(unknown, r.choice((0, 0, 1, 2)))
    r.shuffle(pairs)
    intro = r.choice(("Here is a story. ", "Read this story: ", "Story: ", ""))
    if r.random() < 0.25:
        turns = [
            Turn(intro + told.text, "I have read the story. What do you want to know?", facts.key)
        ]
    else:
        turns = [Turn(f"{intro}{told.text}\n\n{pairs[0][0]}", pairs[0][1], facts.key)]
        pairs = pairs[1:]
    return _task(turns + [Turn(q, a, facts.key) for q, a in pairs], name)


def _task(turns: list[Turn], name: str) -> Task:
    return Task(tuple(turns), apart=tuple(name in turn.user for turn in turns))


def arithmetic(d: Draw) -> Task:
    """Sums and differences of numbers up to three digits."""
    r = d.rng
    top = r.choice((20, 100, 100, 1000, 1000))
    plus = r.random() < 0.5

    def make() -> tuple[int, int]:
        a, b = r.randrange(top), r.randrange(top)
        if not plus and r.random() < 0.25:
            b = max(0, a - r.randrange(20))
        return (a, b) if plus else (max(a, b), min(a, b))

    def key(pair: tuple[int, int]) -> str:
        return f"{max(pair)}{'+' if plus else '-'}{min(pair)}"

    a, b = pair = d.settle(make, key)
    c = a + b if plus else a - b
    line = f"{a} {'+' if plus else '-'} {b}"
    if r.random() < 0.2:
        name, thing = d.name(), r.choice(("apples", "nuts", "coins", "books", "shells", "stones"))
        change = f"gets {b} more" if plus else f"gives away {b}"
        user = f"{name} has {a} {thing} and {change}. How many {thing} does {name} have now?"
        return Task((Turn(user, f"{line} = {c}. {name} has {c} {thing}.", key(pair)),))
    word = "plus" if plus else "minus"
    user = r.choice(
        (
            f"What is {line}?",
            f"What is {line}?",
            f"{line} = ?",
            f"How much is {a} {word} {b}?",
            f"Please add {a} and {b}." if plus else f"Please take {b} from {a}.",
        )
    )
    return Task((Turn(user, f"{line} = {c}.", key(pair)),))


def numbers(d: Draw) -> Task:
    """Counting, comparing, what comes before and after."""
    r = d.rng

    def make() -> Turn:
        a = r.randrange(r.choice((20, 100, 1000)))
        kind = r.randrange(4)
        if kind == 0:
            b = a + r.randint(2, 10)
            return Turn(
                f"Count from {a} to {b}.", ", ".join(map(str, range(a, b + 1))) + ".", f"{a}..{b}"
            )
        if kind == 1:
            b = r.choice((a + 1 + r.randrange(9), a + 1 + r.randrange(400)))
            x, y = r.sample((a, b), 2)
            return Turn(
                f"Which number is bigger, {x} or {y}?", f"{b} is bigger than {a}.", f"{a}<{b}"
            )
        if kind == 2:
            return Turn(f"What comes after {a}?", f"{a + 1} comes after {a}.", f"after {a}")
        return Turn(f"What comes before {a + 1}?", f"{a} comes before {a + 1}.", f"before {a + 1}")

    return Task((d.settle(make, lambda t: t.key),))


_TALK = {
    "I am Tiny, a very small language model. I live inside minisgl.": (
        "Who are you?|What are you?|Tell me about yourself."
    ),
    "My name is Tiny.": "What is your name?|What should I call you?",
    "I can tell stories, answer questions about them, add numbers, and repeat words.": (
        "What can you do?|Can you help me?|Help!"
    ),
    "Hello! How can I help you?": "Hello!|Hi!|Hello|Hi there!|Good morning!|Good evening!",
    "I am fine, thank you. How can I help you?": "How are you?|How are you today?",
    "You are welcome.": "Thank you!|Thanks!|Thank you very much.|That was nice, thank you.",
    "Goodbye! Come back soon.": "Goodbye!|Bye!|See you!|Good night!",
    "I was made from small stories, written by a small program.": (
        "Who made you?|How were you made?"
    ),
    "I am very small. I have less than four million numbers inside.": (
        "How big are you?|Are you a big model?"
    ),
}


def talk(d: Draw) -> Task:
    """Greetings, thanks, who are you; and questions that a small model should not answer."""
    r = d.rng
    if r.random() < 0.3:
        topic = r.choice(UNKNOWN_TOPICS)
        form = r.choice(
            ("What is {}?", "Tell me about {}.", "What do you think about {}?", "Explain {}.")
        )
        return Task((Turn(form.format(topic), UNKNOWN, ""),))
    answer = r.choice(list(_TALK))
    return Task((Turn(r.choice(_TALK[answer].split("|")), answer, ""),))


def role(d: Draw) -> Task:
    """A system prompt with facts about who answers and where, and questions about them."""
    r = d.rng

    def make() -> tuple[str, str, int, int, str, str, str, int]:
        shop = r.choice(list(SHOPS))
        return (
            r.choice(NAMES),
            shop,
            r.randint(6, 11),
            r.randint(1, 9),
            r.choice(DAYS),
            r.choice(COLOURS),
            r.choice(SHOPS[shop]),
            r.randint(2, 99),
        )

    facts = d.settle(make, str)
    name, shop, opens, closes, day, colour, item, coins = facts
    said = [
        (
            f"The {shop} opens at {opens}.",
            "When does the {s} open?|When do you open?",
            "The {s} opens at {o}.",
        ),
        (
            f"The {shop} closes at {closes}.",
            "When does the {s} close?|When do you close?",
            "The {s} closes at {c}.",
        ),
        (f"It is closed on {day}.", "On which day is the {s} closed?", "The {s} is closed on {d}."),
        (f"The door is {colour}.", "What colour is the door?", "The door is {k}."),
        (
            f"One {item} costs {coins} coins.",
            "How much is one {i}?|What does one {i} cost?",
            "One {i} costs {n} coins.",
        ),
    ]
    r.shuffle(said)
    told = said[: r.randint(1, len(said))]
    first = f"You are {name}, a helper in a {shop}"
    if r.random() < 0.25:
        system = f"{first} that opens at {opens}."
        told = [s for s in said if "opens" in s[0]]
    else:
        system = f"{first}. " + " ".join(s[0] for s in told)
    asked = [
        ("What is your name?", "My name is {m}."),
        ("Who are you?", "I am {m}, a helper in a {s}."),
    ]
    asked += [("Where do you work?", "I work in a {s}.")]
    asked += [(r.choice(q.split("|")), a) for _, q, a in told]
    asked += [
        (r.choice(q.split("|")), NOT_TOLD)
        for s, q, a in said
        if (s, q, a) not in told and r.random() < 0.25
    ]
    r.shuffle(asked)
    fields = {
        "m": name,
        "s": shop,
        "o": opens,
        "c": closes,
        "d": day,
        "k": colour,
        "i": item,
        "n": coins,
    }
    turns = tuple(Turn(q.format_map(fields), a.format_map(fields), str(facts)) for q, a in asked)
    turns = turns[: r.randint(1, 5)]
    return Task(turns, system, (True,) * len(turns))


def memory(d: Draw) -> Task:
    """The user says who they are, and asks about it later."""
    r = d.rng
    person, thing = d.settle(
        lambda: (
            f"{d.name()} {r.choice(SURNAMES)}",
            f"{r.choice(COLOURS)} {r.choice(list(THINGS))}",
        ),
        str,
    )
    key = str((person, thing))
    owns = article(thing)
    first, noun = person.split()[0], thing.split()[1]
    turns = [
        Turn(f"My name is {person} and I have {owns}.", f"Hello {first}! Nice to meet you.", key),
        Turn("What is my name?", f"Your name is {person}.", key),
        Turn("What do I have?", f"You have {owns}.", key),
        Turn(f"What colour is my {noun}?", f"Your {noun} is {thing.split()[0]}.", key),
    ]
    rest = r.sample(turns[1:], r.randint(1, 3))
    return Task((turns[0], *rest), apart=(True,) * (1 + len(rest)))


SKILLS: dict[str, Callable[[Draw], Task]] = {
    "story": story,
    "reading": reading,
    "arithmetic": arithmetic,
    "numbers": numbers,
    "copying": copying,
    "wordplay": wordplay,
    "talk": talk,
    "role": role,
    "memory": memory,
    "notes": notes,
    "library": library,
}
