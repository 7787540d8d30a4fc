"""Which of a question's words each candidate has, so that the memories chosen have, together, as many as they can.

A question of several parts ("who is the mayor of the birthplace of Kavori") is served by several memories, one for each
part, and similarity alone shows the same part again and again. So, beside its score, a candidate counts for the share
of the question's words that it has and that no memory chosen before it has.

Words are runs of letters and digits, lower-cased, each counted once. What a word is worth goes by its rarity among the
n candidates that were read, of which d have it::

    rarity(word) = ln((n + 1) / (d + 1))
    share(word)  = rarity(word) / max(sum of the rarities of words that somebody has, ln((n + 1) / 2))

A word that all have, as "the" mostly is, is worth nothing. Nor is one that nobody has: nobody could cover it. The
shares add up to 1, or to less where all that can be covered is worth less than one word of a single candidate: then no
memory is preferred for a filler.

What a candidate adds only shrinks while more are chosen (coverage is submodular), so whoever is picked later never has
the higher score. Greedy picks never cover less than as many best-scored ones where each memory serves one part: any two
have the same words of the question, or none in common. Where they overlap in part, they may: two memories have
everything between them, and a third, which has most of both, is picked first. But among equal scores they always cover
at least 1 - 1/e of what any as many could (Nemhauser, Wolsey and Fisher, 1978).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import chain

import numpy
from numpy.typing import NDArray

READ = 50
"""Of each judgement, the texts of so many candidates are read, the best-scored first: about 0.05 ms each."""

_WORD = re.compile(r"\w+")


def words(text: str) -> list[str]:
    """The words of a text, one after the other."""
    return _WORD.findall(text.lower())


@dataclass(frozen=True)
class Coverage:
    """The candidates that were read, and which words of the question they have."""

    weight: float
    """How much a share counts beside the score."""
    places: NDArray[numpy.intp]
    """Of those that were read, among all candidates, ascending; shape (n,)."""
    shares: NDArray[numpy.float64]
    """What each word of the question that tells candidates apart is worth; shape (words,)."""
    has: NDArray[numpy.bool_]
    """Shape (n, words)."""

    @classmethod
    def of(cls, question: str, texts: Mapping[int, str], *, weight: float) -> Coverage:
        """`texts`: what each candidate that was read tells, by its place."""
        places = sorted(texts)
        asked = frozenset(words(question))
        told = [asked.intersection(words(texts[place])) for place in places]
        held = Counter(chain.from_iterable(told))
        # In the order of the question, so that sums are rounded alike every time.
        ordered = [word for word in dict.fromkeys(words(question)) if held[word]]
        rarity = {word: math.log((len(told) + 1) / (held[word] + 1)) for word in ordered}
        whole = max(sum(rarity.values()), math.log((len(told) + 1) / 2))
        shares = {word: rare / whole for word, rare in rarity.items() if rare}
        # The shape is said, since an empty list of rows has no columns.
        has = numpy.array([[word in one for word in shares] for one in told], numpy.bool_)
        return cls(
            weight,
            numpy.array(places, numpy.intp),
            numpy.array(list(shares.values()), numpy.float64),
            has.reshape(len(told), len(shares)),
        )

    def gains(self, chosen: Collection[int], size: int) -> NDArray[numpy.float64]:
        """The share that each of `size` candidates would newly cover beside those chosen (their places), in [0, 1]; 0
        for one that was not read."""
        covered = self.has[numpy.isin(self.places, list(chosen))].any(axis=0)
        read = numpy.zeros(len(self.places))
        # Word by word, so that rounding depends on no candidate's place; and less can never add up to more.
        for word in numpy.flatnonzero(~covered):
            read += self.shares[word] * self.has[:, word]
        gains = numpy.zeros(size)
        gains[self.places] = numpy.minimum(read, 1.0)
        return gains
