"""Words and sentences for the pages: prose from packages, random words, numbers, codes, names.

Knows nothing about fonts or layout. Held-out texts come from other files than training texts.
"""

from __future__ import annotations

import re
import string
from bisect import bisect_right
from functools import lru_cache
from pathlib import Path
from random import Random

from nanotrain.characters import BEYOND_ASCII, READABLE

FORTUNES = Path("/usr/share/games/fortunes")
HELD_OUT_FORTUNES = {"literature", "science", "riddles", "wisdom", "ascii-art"}
LICENSES = Path("/usr/share/common-licenses")
DICTIONARIES = (Path("/usr/share/dict/american-english"), Path("/usr/share/dict/british-english"))
_SMALL_WORDS = [
    "the",
    "of",
    "and",
    "to",
    "a",
    "in",
    "is",
    "that",
    "it",
    "was",
    "for",
    "on",
    "are",
    "as",
    "with",
    "his",
    "they",
    "at",
    "be",
    "this",
    "from",
    "have",
    "or",
    "by",
    "one",
    "had",
    "not",
    "but",
    "what",
    "all",
    "were",
    "when",
    "we",
    "there",
    "can",
    "an",
    "your",
    "which",
    "their",
    "if",
    "will",
    "each",
    "about",
    "how",
    "up",
    "out",
    "them",
    "then",
    "she",
    "many",
    "some",
    "so",
    "these",
    "would",
    "other",
    "into",
    "has",
    "more",
    "her",
    "two",
    "like",
    "him",
    "see",
    "time",
    "could",
    "no",
    "make",
    "than",
    "first",
    "been",
    "its",
    "who",
    "now",
]
_SUBSTITUTES = {"\t": " ", "`": "'"}


@lru_cache(maxsize=2)
def _pieces(held_out: bool) -> tuple[str, ...]:
    """Prose of one to a few sentences each."""
    pieces: list[str] = []
    for path in sorted(FORTUNES.glob("*")):
        if path.suffix or (path.name in HELD_OUT_FORTUNES) != held_out or not path.is_file():
            continue
        for piece in path.read_text("utf-8", "replace").split("\n%\n"):
            plain = _clean(piece)
            if 20 < len(plain) < 1200 and len(re.findall("[a-zA-Z]", plain)) > 0.6 * len(plain):
                pieces.append(plain)
    if not held_out:
        for path in sorted(LICENSES.glob("*")):
            if path.is_file():
                text = path.read_text("utf-8", "replace")
                pieces += [p for part in text.split("\n\n") if len(p := _clean(part)) > 30]
    if not pieces:
        raise RuntimeError(
            "no texts found. Install them with `make -C models/nano/recipe packages`"
        )
    return tuple(pieces)


def _clean(text: str) -> str:
    text = re.sub(r".\x08", "", text)
    text = "".join(_SUBSTITUTES.get(char, char) for char in text)
    text = re.sub(r"\s+", " ", text)
    return "".join(char for char in text if char in READABLE).strip()


@lru_cache(maxsize=2)
def _dictionary(held_out: bool) -> tuple[str, ...]:
    words: set[str] = set()
    for path in DICTIONARIES:
        if path.exists():
            words.update(path.read_text("utf-8").split())
    kept = sorted(w for w in words if all(c in READABLE for c in w) and len(w) < 16)
    # One word in eight is kept for validation, by position in the sorted list.
    return tuple(w for i, w in enumerate(kept) if (i % 8 == 3) == held_out)


def _number(rng: Random) -> str:
    kind = rng.randrange(9)
    if kind == 0:
        return (
            str(rng.randrange(1, 32))
            + rng.choice([".", "/", "-"])
            + str(rng.randrange(1, 13))
            + rng.choice([".", "/", "-"])
            + str(rng.randrange(1900, 2040))
        )
    if kind == 1:
        return f"{rng.randrange(0, 24):02d}:{rng.randrange(60):02d}"
    if kind == 2:
        return rng.choice("$\u20ac\u00a3") + f"{rng.randrange(1, 99999):,}"
    if kind == 3:
        return f"{rng.randrange(0, 101)}%"
    if kind == 4:
        return f"{rng.uniform(0, 999):.2f}"
    if kind == 5:
        return f"+{rng.randrange(1, 99)} {rng.randrange(100, 999)} {rng.randrange(1000, 99999)}"
    if kind == 6:
        return f"({rng.randrange(1, 40)})"
    return str(rng.randrange(0, 10 ** rng.randrange(1, 7)))


def _code(rng: Random) -> str:
    kind = rng.randrange(6)
    letters = string.ascii_letters + string.digits
    if kind == 0:
        return "".join(rng.choices(string.ascii_uppercase + string.digits, k=rng.randrange(3, 10)))
    if kind == 1:
        return "".join(rng.choices(letters, k=rng.randrange(3, 10)))
    if kind == 2:
        return (
            "".join(rng.choices(string.ascii_lowercase, k=rng.randrange(3, 8)))
            + "@"
            + "".join(rng.choices(string.ascii_lowercase, k=5))
            + rng.choice([".com", ".org", ".de"])
        )
    if kind == 3:
        return (
            "".join(rng.choices(string.ascii_uppercase, k=2)) + "-" + str(rng.randrange(10, 9999))
        )
    if kind == 4:
        return (
            "www."
            + "".join(rng.choices(string.ascii_lowercase, k=6))
            + ".net/"
            + str(rng.randrange(99))
        )
    return "".join(rng.choices(READABLE[1:95], k=rng.randrange(2, 8)))


# Up to which draw of 0..1 a random word is of a kind. Pages to learn from have more of what is read
# worst: numbers, codes, capitals, characters beyond ASCII.
_KINDS = ("dictionary", "small", "number", "code", "capitalised", "capitals", "beyond")
_UP_TO = {
    "training": (0.36, 0.50, 0.64, 0.76, 0.82, 0.88, 1.0),
    "held out": (0.50, 0.72, 0.82, 0.88, 0.93, 0.96, 1.0),
}
_PROSE = {"training": 0.4, "held out": 0.5}  # of the paragraphs
_CAPITALS = {"training": 0.1, "held out": 0.06}  # of the paragraphs


def _split(held_out: bool) -> str:
    return "held out" if held_out else "training"


def random_words(rng: Random, count: int, held_out: bool) -> list[str]:
    """Words that no language model could guess, with some numbers, codes and punctuation."""
    dictionary = _dictionary(held_out)
    limits = _UP_TO[_split(held_out)]
    words: list[str] = []
    for _ in range(count):
        kind = _KINDS[bisect_right(limits, rng.random())]
        if kind == "dictionary":
            word = rng.choice(dictionary)
        elif kind == "small":
            word = rng.choice(_SMALL_WORDS)
        elif kind == "number":
            word = _number(rng)
        elif kind == "code":
            word = _code(rng)
        elif kind == "capitalised":
            word = rng.choice(dictionary).capitalize()
        elif kind == "capitals":
            word = rng.choice(dictionary).upper()
        else:
            word = "".join(rng.choices(BEYOND_ASCII + string.ascii_letters, k=rng.randrange(1, 7)))
        if rng.random() < 0.14:
            word += rng.choice([",", ".", ";", ":", "!", "?", ",", "."])
        if rng.random() < 0.03:
            word = rng.choice(
                ["\u201c{}\u201d", '"{}"', "({})", "\u2018{}\u2019", "[{}]", "'{}'"]
            ).format(word)
        words.extend(word.split(" "))
    return [word for word in words if word]


def prose(rng: Random, count: int, held_out: bool) -> list[str]:
    """About `count` words of running prose."""
    words: list[str] = []
    pieces = _pieces(held_out)
    while len(words) < count:
        piece = rng.choice(pieces).split(" ")
        start = 0 if rng.random() < 0.5 else rng.randrange(len(piece))
        words += piece[start:]
    words = words[:count]
    if rng.random() < 0.3:
        words = [w.replace("'", "\u2019") for w in words]
    return [w for w in words if w]


def words(rng: Random, count: int, held_out: bool = False) -> list[str]:
    """`count` words or a few more, prose or random, cased as on printed pages."""
    split = _split(held_out)
    is_prose = rng.random() < _PROSE[split]
    chosen = (prose if is_prose else random_words)(rng, count, held_out)
    draw = rng.random()
    if draw < _CAPITALS[split]:
        chosen = [w.upper() for w in chosen]
    elif draw < _CAPITALS[split] + 0.04:
        chosen = [w.capitalize() for w in chosen]
    return ["".join(c for c in w if c in READABLE) or "x" for w in chosen]
