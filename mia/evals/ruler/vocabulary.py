"""Words, numbers and names that the tasks hide and ask for: endless, never the same twice, drawn by a given chance.

None stands inside another of its kind, so that an answer which holds one cannot hold another by accident.
"""

from __future__ import annotations

import random
import string
import uuid
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Literal

Kind = Literal["words", "numbers", "uuids"]
"""Of keys and values."""


@cache
def _listed(name: str) -> tuple[str, ...]:
    return tuple(Path(__file__).with_name(f"{name}.words").read_text(encoding="utf-8").split())


def compounds(chance: random.Random) -> Iterator[str]:
    """ "amber-otter": an adjective and a noun; once all of these are used up, an adjective and two nouns."""
    adjectives, nouns = _listed("adjectives"), _listed("nouns")
    pairs = len(adjectives) * len(nouns)
    # A shuffle that is done only as far as it is asked for: most tasks want a handful.
    moved: dict[int, int] = {}
    for drawn in range(pairs):
        other = chance.randrange(drawn, pairs)
        pair = moved.get(other, other)
        moved[other] = moved.pop(drawn, drawn)
        first, second = divmod(pair, len(nouns))
        yield f"{adjectives[first]}-{nouns[second]}"
    yield from _distinct(lambda: f"{chance.choice(adjectives)}-{chance.choice(nouns)}-{chance.choice(nouns)}")


def numbers(chance: random.Random) -> Iterator[str]:
    """Seven digits."""
    return _distinct(lambda: str(chance.randrange(1_000_000, 10_000_000)))


def uuids(chance: random.Random) -> Iterator[str]:
    """Version 4, in lower case."""
    return _distinct(lambda: str(uuid.UUID(int=chance.getrandbits(128), version=4)))


def letters(chance: random.Random, count: int, *, upper: bool = False) -> Iterator[str]:
    """Words of so many random letters, all of one length."""
    alphabet = string.ascii_uppercase if upper else string.ascii_lowercase
    return _distinct(lambda: "".join(chance.choices(alphabet, k=count)))


def stream(kind: Kind, chance: random.Random) -> Iterator[str]:
    """Keys or values of a kind."""
    return {"words": compounds, "numbers": numbers, "uuids": uuids}[kind](chance)


def _distinct(draw: Callable[[], str]) -> Iterator[str]:
    seen: set[str] = set()
    while True:
        word = draw()
        if word not in seen:
            seen.add(word)
            yield word
