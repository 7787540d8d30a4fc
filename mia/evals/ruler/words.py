"""Counting words over a whole text: the ten common words of a list (cwe), and the three most frequent of a coded text
(fwe), after RULER (arXiv 2404.06654, section 3). What is asked for is everywhere, so there is no depth.
"""

from __future__ import annotations

import math
import random
from itertools import count as count_up
from itertools import islice

from mia.evals.ruler.haystacks import fit
from mia.evals.ruler.items import Item, Make, Sources, Work
from mia.evals.ruler.vocabulary import compounds, letters

COMMON = 10
"""Words that are asked for in `cwe`."""
REPEATS = (30, 3)
"""How often a common word and another one stand in the list."""
SHORT_REPEATS = (6, 1)
"""The same in lists of less than `SHORT` tokens."""
SHORT = 4096
FREQUENT = 3
"""Words that are asked for in `fwe`."""
DOTS = "...."
"""The most frequent of all, which is no word."""
_LEAST_CODED = 64
"""Occurrences from which the three most frequent words stand out."""
_CODED_LETTERS = 6
_ZETA_2 = math.pi**2 / 6


def make_common(work: Work, sources: Sources) -> Item:
    """`cwe`: a numbered list of words, shuffled; ten of them stand there ten times as often (for short lists, six
    times) as the others. Raises ConfigError where the length cannot hold the ten."""
    chance = sources.chance(work)
    words = compounds(chance)
    common = list(islice(words, COMMON))
    often, seldom = REPEATS if work.length >= SHORT else SHORT_REPEATS
    others: list[str] = []
    order = chance.random()

    def build(size: int) -> str:
        others.extend(islice(words, max(0, size - len(others))))
        listed = common * often + others[:size] * seldom
        random.Random(order).shuffle(listed)
        return " ".join(f"{number}. {word}" for number, word in enumerate(listed, start=1))

    fitted = fit(build, sources.count, work.length, what=f"'{work.task}'")
    question = (
        f"The text is a numbered list of words, and some appear more often than others. What are the {COMMON} most "
        "common words of the list?"
    )
    return Item(work, fitted.text, fitted.tokens, question, tuple(common), (), "share")


def make_frequent(work: Work, sources: Sources) -> Item:
    """`fwe`: coded words whose frequencies fall as 1 / rank² (Zipf with α = 2); rank 1 are dots, and ranks 2 to 4 are
    asked for. Raises ConfigError where the length is too short for them to stand out."""
    chance = sources.chance(work)
    coded = letters(chance, _CODED_LETTERS)
    ranked = [DOTS]
    order = chance.random()

    def build(size: int) -> str:
        written: list[str] = []
        for rank in count_up(1):
            times = int((size + _LEAST_CODED) / (rank**2 * _ZETA_2))
            if times == 0:
                break
            if rank > len(ranked):
                ranked.append(next(coded))
            written += [ranked[rank - 1]] * times
        random.Random(order).shuffle(written)
        return " ".join(written)

    fitted = fit(build, sources.count, work.length, what=f"'{work.task}'")
    question = (
        f"The text is made of coded words; the dots '{DOTS}' are none. What are the three most frequent coded words?"
    )
    return Item(work, fitted.text, fitted.tokens, question, tuple(ranked[1 : 1 + FREQUENT]), (), "share")


MAKERS: dict[str, Make] = {"cwe": make_common, "fwe": make_frequent}
