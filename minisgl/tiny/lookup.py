"""Tasks that ask for one of many things said before: notes on people, stories in one message."""

from minisgl.tiny import stories
from minisgl.tiny.draw import Draw, Task, Turn
from minisgl.tiny.words import COLOURS, FOODS, PLACES, THINGS, article

NOT_IN_NOTES = "I do not know. The notes do not say."


def _note(d: Draw) -> Turn:
    """A note (as the answer), and the question it answers; the key is the note."""
    r, who = d.rng, d.person()
    asked, note = r.choice(
        (
            ("What is the code of {}?", f"The code of {{}} is {r.randrange(1000, 10000)}."),
            (
                "What does {} have?",
                f"{{}} has {article(r.choice(COLOURS))} {r.choice(list(THINGS))}.",
            ),
            ("Where does {} live?", f"{{}} lives {PLACES[r.choice(list(PLACES))][0]}."),
            ("What does {} like?", f"{{}} likes {r.choice(list(FOODS))}."),
            ("How old is {}?", f"{{}} is {r.randint(3, 99)} years old."),
        )
    )
    return Turn(asked.format(who), note.format(who), note.format(who))


def notes(d: Draw, num_words: int = 120) -> Task:
    """About `num_words` words of notes on people, and questions about some of them."""
    r = d.rng
    known = [d.settle(lambda: _note(d), lambda t: t.key)]
    while sum(len(t.answer.split()) for t in known) < num_words:
        known.append(_note(d))
    r.shuffle(known)
    can_ask = [t for t in known if d.ours(t.key)]
    asked = r.sample(can_ask, min(len(can_ask), r.randint(3, 4 + num_words // 60)))
    stranger = d.settle(lambda: _note(d), lambda t: t.key)
    if r.random() < 0.4:
        asked.insert(r.randrange(len(asked) + 1), stranger._replace(answer=NOT_IN_NOTES))
    text = r.choice((" ", "\n")).join(t.answer for t in known)
    if r.random() < 0.3:
        system = (
            r.choice(("You know these notes.", "You are Tiny. You know these notes.")) + f"\n{text}"
        )
        return Task(tuple(asked), system, (True,) * len(asked))
    head = r.choice(("Here are some notes.", "Read these notes.", "Notes:"))
    asked[0] = asked[0]._replace(user=f"{head}\n{text}\n\n{asked[0].user}")
    return Task(tuple(asked), apart=(True,) * len(asked))


def library(d: Draw, num_words: int = 400) -> Task:
    """About `num_words` words of stories in one message, and questions about some of them."""
    r = d.rng
    name = d.name()
    told = [stories.tell(d.settle(lambda: stories.draw(r, name), lambda f: f.key), r)]
    while sum(len(s.text.split()) for s in told) < num_words:
        told.append(stories.tell(stories.draw(r, d.name()), r))
    r.shuffle(told)
    asked = []
    for s in told:
        pairs = [(q, a) for q, a in s.questions if s.facts.name in q and a != stories.NOT_IN_STORY]
        if d.ours(s.facts.key):
            asked += [Turn(q, a, s.facts.key) for q, a in r.sample(pairs, 2)]
    r.shuffle(asked)
    asked = asked[: r.randint(3, 12)]
    text = "\n\n".join(s.text for s in told)
    asked[0] = asked[0]._replace(user=f"Here are some stories.\n\n{text}\n\n{asked[0].user}")
    return Task(tuple(asked), apart=(True,) * len(asked))
