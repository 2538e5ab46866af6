"""Documents for training, demos and tests: whole chats made of tasks, stories without a chat, long
contexts.

Pure standard library; the same seed gives the same text everywhere. What training may see and what
is held out is decided by `skills.held_out`, never by the seed, so the two sides share no question
whatever the seeds are.
"""

from collections.abc import Iterator
from random import Random
from typing import Literal, NamedTuple

from minisgl.tiny import skills, stories
from minisgl.tiny.draw import Draw, Task, Turn
from minisgl.tiny.lookup import NOT_IN_NOTES, library, notes
from minisgl.tiny.skills import SKILLS
from minisgl.tiny.words import SIGN_OFFS

Message = dict[str, str]
LongKind = Literal["notes", "absent", "library", "mixed"]
IM_START, IM_END, END_OF_TEXT = "<|im_start|>", "<|im_end|>", "<|endoftext|>"

_WEIGHTS = {
    "story": 20,
    "reading": 16,
    "arithmetic": 24,
    "numbers": 6,
    "copying": 14,
    "wordplay": 10,
    "talk": 6,
    "role": 8,
    "memory": 6,
    "notes": 8,
}
_GENERAL = (
    "You are a helpful assistant.",
    "You are a helpful assistant.",
    "You are Tiny, a very small language model.",
)


class Chat(NamedTuple):
    """A system prompt or none, then turns of user and assistant."""

    system: str | None
    turns: tuple[Turn, ...]


class Segment(NamedTuple):
    """A stretch of a document, cut where a special token stands; `learn` where the model is to
    write it.
    """

    text: str
    learn: bool


def chat(rng: Random, num_words: int, held: bool = False, around: bool = False) -> Chat:
    """Tasks in a row until about `num_words` words; turns that may stand apart from their task
    sometimes do.

    With `around` the user says who they are in the first turn, and the last turn asks about it.
    """
    d = Draw(rng, held)
    outer = skills.memory(d).turns if around else ()
    system = rng.choice(_GENERAL) if rng.random() < 0.08 else None
    turns: list[Turn] = []
    waiting: list[list[Turn]] = []
    length, used = 0, {"memory"} if around else set[str]()

    def say(turn: Turn) -> None:
        nonlocal length
        turns.append(turn)
        length += len(turn.user.split()) + len(turn.answer.split())

    if outer:
        say(outer[0])
    while length < num_words or not turns:
        if waiting and rng.random() < 0.35:
            queue = rng.choice(waiting)
            say(queue.pop(0))
            waiting = [q for q in waiting if q]
            continue
        skill = rng.choices(list(_WEIGHTS), list(_WEIGHTS.values()))[0]
        once = skill in ("memory", "role", "notes")
        if once and (skill in used or (skill == "role" and turns)):
            continue
        task = (
            notes(d, rng.randint(15, max(16, (num_words - length) // 2)))
            if skill == "notes"
            else SKILLS[skill](d)
        )
        if task.system and turns:
            continue
        used.add(skill)
        if task.system:
            system = task.system
            used |= {"role", "notes", "memory"}
        if task.apart and rng.random() < 0.4:
            say(task.turns[0])
            rest = [t for t, apart in zip(task.turns[1:], task.apart[1:], strict=True) if apart]
            waiting += [rest] if rest else []
        else:
            for turn in task.turns:
                say(turn)
    turns += outer[1:]
    if rng.random() < 0.04:
        sign = rng.choice(SIGN_OFFS)
        system = (f"{system}\n" if system else "") + f"End every answer with: {sign}"
        turns = [t._replace(answer=f"{t.answer} {sign}") for t in turns]
    return Chat(system, tuple(turns))


def long_chat(
    num_words: int, seed: int, kind: LongKind = "notes", held: bool = True
) -> tuple[list[Message], str]:
    """A chat of about `num_words` words before its last question: messages, and the right answer.

    "notes" asks for one of many short facts, "absent" for a person whom the notes do not name,
    "library" about one of many stories; in "mixed" many turns of every kind stand before a question
    about the user's own first message. A word is about 1.7 tokens; 1700 words fit 4096 tokens.
    """
    d = Draw(Random(f"long:{kind}:{num_words}:{seed}"), held)
    if kind == "mixed":
        talk = chat(d.rng, num_words, held, around=True)
        return messages(talk), talk.turns[-1].answer
    task = library(d, num_words) if kind == "library" else notes(d, num_words)
    last = 0
    if kind == "absent":
        while all(turn.answer != NOT_IN_NOTES for turn in task.turns):
            task = notes(d, num_words)
        last = [turn.answer for turn in task.turns].index(NOT_IN_NOTES)
    return messages(Chat(task.system, task.turns[: last + 1])), task.turns[last].answer


def messages(talk: Chat) -> list[Message]:
    """The chat up to its last question, as a chat template takes it."""
    out = [{"role": "system", "content": talk.system}] if talk.system else []
    for turn in talk.turns:
        out += [
            {"role": "user", "content": turn.user},
            {"role": "assistant", "content": turn.answer},
        ]
    return out[:-1]


def examples(
    skill: str, n: int, seed: int, held_out: bool = True
) -> list[tuple[list[Message], str]]:
    """`n` prompts of one skill of `SKILLS`, each as messages and the right answer.

    Held-out prompts have no question in common with training. "talk" has nothing to hold out: a
    general question has one answer. Raises KeyError for an unknown skill.
    """
    out = []
    make = SKILLS[skill]
    for i in range(n):
        d = Draw(Random(f"example:{skill}:{seed}:{i}"), held_out)
        task: Task = make(d)
        last = d.rng.randrange(len(task.turns))
        out.append((messages(Chat(task.system, task.turns[: last + 1])), task.turns[last].answer))
    return out


def segments(talk: Chat) -> list[Segment]:
    """The chat as the chat template writes it, cut so that exactly the assistant's words are to be
    learned.
    """
    out = [Segment(f"{IM_START}system\n{talk.system}{IM_END}\n", False)] if talk.system else []
    for turn in talk.turns:
        out.append(Segment(f"{IM_START}user\n{turn.user}{IM_END}\n{IM_START}assistant\n", False))
        out.append(Segment(turn.answer + IM_END, True))
        out.append(Segment("\n", False))
    return out


def document(rng: Random, num_words: int) -> list[Segment]:
    """One training document of about `num_words` words: mostly a chat, sometimes stories, or a long
    text asked about.
    """
    d = Draw(rng)
    kind = rng.random()
    if kind < 0.06:
        out: list[Segment] = []
        while sum(len(s.text.split()) for s in out) < num_words:
            facts = d.settle(lambda: stories.draw(rng, d.name(), home=True), lambda f: f.key)
            out.append(Segment(stories.plain(facts, rng) + END_OF_TEXT, True))
        return out
    if num_words > 1000 and kind < 0.75 or num_words > 400 and kind < 0.35:
        room = rng.randint(100, int(num_words * 0.8))
        task = notes(d, room) if rng.random() < 0.6 else library(d, room)
        return segments(Chat(task.system, task.turns))
    return segments(chat(rng, num_words, around=num_words > 400 and rng.random() < 0.5))


def corpus(seed: int, num_words: int = 150) -> Iterator[list[Segment]]:
    """Training documents without end."""
    rng = Random(seed)
    while True:
        yield document(rng, num_words)
