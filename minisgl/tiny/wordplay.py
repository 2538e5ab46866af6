"""Tasks on words themselves: say them again, backwards, several times, the first, the last."""

from random import Random

from minisgl.tiny import stories
from minisgl.tiny.draw import Draw, Task, Turn
from minisgl.tiny.words import ANIMALS, COLOURS, NAMES, PLACES, THINGS

_LETTERS = (
    "ABCDEFGHIJKLMNOPQRSTUVWXYZäöüéèñçøßåabcde"
    "абвгдежзиклмнопрстλμπσω日本語中文한글😀🚀★→€_-+=/#@%&*"
)


def _odd_word(r: Random) -> str:
    kind = r.random()
    if kind < 0.08:
        return "".join(r.choice(_LETTERS) for _ in range(r.randint(1, 6)))
    if kind < 0.5:
        return "".join(
            r.choice("bdfgklmnprstvz") + r.choice("aeiou") for _ in range(r.randint(2, 4))
        )
    return "".join(r.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(r.randint(2, 8)))


def _words(r: Random, low: int, high: int) -> list[str]:
    """Between `low` and `high` words, of the model's world or of none."""
    known = (*ANIMALS, *THINGS, *COLOURS, *PLACES, *NAMES)
    odd = r.choice((0.0, 0.3, 1.0))
    return [
        _odd_word(r) if r.random() < odd else r.choice(known) for _ in range(r.randint(low, high))
    ]


def _sentence(r: Random) -> str:
    """A stretch of some story, with some words exchanged: it must be copied, for it cannot be
    remembered.
    """
    words = stories.tell(stories.draw(r, r.choice(NAMES)), r).text.split()
    start = r.randrange(len(words) - 14)
    part = words[start : start + r.randint(3, 14)]
    swap = r.choice((0.0, 0.1, 0.3))
    part = [r.choice(words) if r.random() < swap else word for word in part]
    text = " ".join(part).strip('.,"')
    return text[:1].upper() + text[1:] + "."


def copying(d: Draw) -> Task:
    """Say again what the user wrote: words, odd words, digits, sentences."""
    r = d.rng

    def make() -> str:
        kind = r.randrange(6)
        if kind == 0:
            return "".join(r.choice("0123456789") for _ in range(r.randint(3, 14)))
        if kind == 1:
            return _sentence(r)
        words = _words(r, 1, 14)
        if kind == 2:
            words = [w.capitalize() if r.random() < 0.5 else w for w in words]
        if kind == 3:
            words = [r.choice((w, str(r.randrange(1000)))) for w in words]
        return r.choice((" ", " ", ", ")).join(words) + r.choice(("", "", ".", "!", "?"))

    text = d.settle(make, lambda t: "copy " + t)
    ask = r.choice(
        (
            "Repeat after me:",
            "Repeat after me:",
            "Repeat these words:",
            "Copy this:",
            "Say exactly this:",
        )
    )
    return Task((Turn(f"{ask} {text}", text, "copy " + text),))


def wordplay(d: Draw) -> Task:
    """Words backwards, the first and the last word, a word said several times."""
    r = d.rng

    def make() -> Turn:
        words = _words(r, 2, 6)
        line = " ".join(words)
        kind = r.randrange(4)
        if kind == 0:
            return Turn(f"Say these words backwards: {line}", " ".join(words[::-1]), "back " + line)
        if kind == 1:
            return Turn(
                f"What is the first word of: {line}",
                f"The first word is {words[0]}.",
                "first " + line,
            )
        if kind == 2:
            return Turn(
                f"What is the last word of: {line}",
                f"The last word is {words[-1]}.",
                "last " + line,
            )
        n = r.randint(2, 5)
        said = ("two", "three", "four", "five")[n - 2]
        return Turn(
            f"Say {words[0]} {said} times.", " ".join([words[0]] * n), f"say {words[0]} {n}"
        )

    return Task((d.settle(make, lambda t: t.key),))
