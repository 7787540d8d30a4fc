"""Needles in a haystack: eight variants, after RULER (arXiv 2404.06654, section 3 and appendix B).

A needle is "One of the special magic numbers for amber-otter is: 1234567.", and the question asks for the value of a
key. Variants differ in what keys and values are made of, in the haystack, and in how many needles there are:

    name               haystack   keys    values    needles
    niah_single_1      noise      words   numbers   1
    niah_single_2      essays     words   numbers   1
    niah_single_3      essays     words   uuids     1
    niah_multikey_1    essays     words   numbers   4 keys, one of them asked for
    niah_multikey_2    needles    words   numbers   as many keys as fit, one of them asked for
    niah_multikey_3    needles    uuids   uuids     as many keys as fit, one of them asked for
    niah_multivalue    essays     words   numbers   4 values of one key, all asked for
    niah_multiquery    essays     words   numbers   4 keys, all asked for

Every needle stands in the text exactly once, at a depth drawn evenly from the whole text and moved to the nearest end
of a sentence.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

from mia.errors import ConfigError
from mia.evals.ruler.haystacks import depth, fit, hide, noise
from mia.evals.ruler.items import Item, Make, Sources, Work
from mia.evals.ruler.vocabulary import Kind, stream

ATTEMPTS = 20
"""Draws before a user's text that holds our words by itself is given up on."""


@dataclass(frozen=True)
class Variant:
    haystack: Literal["noise", "essays", "needles"]
    keys: Kind = "words"
    values: Kind = "numbers"
    hidden_keys: int = 1
    values_each: int = 1
    asked_keys: int = 1


VARIANTS = {
    "niah_single_1": Variant("noise"),
    "niah_single_2": Variant("essays"),
    "niah_single_3": Variant("essays", values="uuids"),
    "niah_multikey_1": Variant("essays", hidden_keys=4),
    "niah_multikey_2": Variant("needles"),
    "niah_multikey_3": Variant("needles", keys="uuids", values="uuids"),
    "niah_multivalue": Variant("essays", values_each=4),
    "niah_multiquery": Variant("essays", hidden_keys=4, asked_keys=4),
}


def make(variant: Variant, work: Work, sources: Sources) -> Item:
    """Raises ConfigError where the length cannot hold the needles, or the essays hold every key that is drawn."""
    for attempt in range(ATTEMPTS):
        item = _draw(variant, work, sources, sources.chance(work, attempt))
        if item is not None:
            return item
    raise ConfigError(
        f"the essays hold the words of '{work.task}' by themselves.", hint="give another text with --essays"
    )


MAKERS: dict[str, Make] = {name: partial(make, variant) for name, variant in VARIANTS.items()}


def _draw(variant: Variant, work: Work, sources: Sources, chance: random.Random) -> Item | None:
    """None where some key, value or needle also stands elsewhere in the text."""
    keys, values = stream(variant.keys, chance), stream(variant.values, chance)
    hidden = {next(keys): [next(values) for _ in range(variant.values_each)] for _ in range(variant.hidden_keys)}
    needles = {value: _needle(variant, key, value) for key, held in hidden.items() for value in held}
    depths = [chance.random() for _ in needles]
    if variant.haystack == "needles":
        others = (_needle(variant, key, value) for key, value in zip(keys, values, strict=True))
        straw = _Growing(others)
        take = straw.take
    else:
        take = (noise() if variant.haystack == "noise" else sources.essays).take
    fitted = fit(
        lambda size: hide(take(size), list(needles.values()), depths),
        sources.count,
        work.length,
        what=f"'{work.task}'",
        pad=variant.haystack == "needles",
    )
    asked = list(hidden)[: variant.asked_keys]
    references = tuple(value for key in asked for value in hidden[key])
    found = [depth(fitted.text, needles[value]) for value in references]
    alone = all(fitted.text.count(value) == 1 for value in needles)
    alone &= all(fitted.text.lower().count(key) == len(held) for key, held in hidden.items())
    if not alone or None in found:
        return None
    return Item(
        work,
        fitted.text,
        fitted.tokens,
        _question(variant, asked),
        references,
        tuple(place for place in found if place is not None),
        "share",
    )


class _Growing:
    """The first needles of an endless row, kept so that a longer text begins as a shorter one does."""

    def __init__(self, needles: Iterator[str]) -> None:
        self._needles = needles
        self._drawn: list[str] = []

    def take(self, count: int) -> list[str]:
        while len(self._drawn) < count:
            self._drawn.append(next(self._needles))
        return self._drawn[:count]


def _needle(variant: Variant, key: str, value: str) -> str:
    return f"One of the special magic {variant.values} for {key} is: {value}."


def _question(variant: Variant, keys: list[str]) -> str:
    if variant.values_each * len(keys) == 1:
        return f"What is the special magic {variant.values.removesuffix('s')} for {keys[0]} mentioned in the text?"
    named = keys[0] if len(keys) == 1 else f"{', '.join(keys[:-1])}, and {keys[-1]}"
    return f"What are all the special magic {variant.values} for {named} mentioned in the text?"
