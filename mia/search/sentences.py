"""The sentences of found passages that speak most of a question: what can be shown where no model may answer.

Words alone decide, weighed by how rare they are in what was found: of N sentences in all passages together, a word that
n of them hold weighs log((N + 1) / n), so that what stands everywhere ("the", or the name that all passages share)
counts for little, in any language and without a list of such words. A word is its first six letters, without case,
accents and a last "s" ("discovered" meets "discovery", "moons" meets "moon"); what is written without upper and lower
case is taken by pairs of characters.

No embedder: on paragraphs of SQuAD and of Natural Questions, static vectors and MiniLM, added to the words, chose no
better than the words alone.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mia.types import Passage

MOST = 2
"""Sentences of one passage that may be its best."""
_SECOND = 0.5
"""Of the best sentence's score: what a further one must reach."""
_STEM = 6
"""Letters of a word that count."""
_WRAPPED = 60
"""Characters from which a line that just stops is taken to go on in the next."""

_WORD = re.compile(r"\w+")
# One mark and not a run of them, which would be read again from each of its marks.
_END = re.compile(r"""[.!?…]["'”’»)\]]*(?=\s)|[。！？]+[”」』）]*|\n""")
_NEXT = re.compile(r"\s+(\S)")
_LAST_WORD = re.compile(r"\w+$")
_ABBREVIATIONS = frozenset(("dr", "mr", "mrs", "ms", "st", "prof", "vs", "fig", "approx"))
_NEW_LINE = re.compile(r"[ \t]*(?:[-*+•#|>]|\d+[.)]|\n|$)")
"""Begins a line that cannot go on with the one before: a list, a heading, a table, a quotation, nothing."""


@dataclass(frozen=True)
class Sentence:
    """A sentence of a passage."""

    text: str
    """White space folded."""
    score: float
    """The weights of the question's words that it holds, each counted once; 0: it holds none."""
    best: bool
    """One of the passage's best."""


def mark_sentences(question: str, passages: Sequence[Passage], *, most: int = MOST) -> list[tuple[Sentence, ...]]:
    """All sentences of each passage, in their order, up to `most` of each marked as its best.

    The best has the highest score, of equal ones the first; further ones reach at least half of it. A passage that
    shares no word with the question (found by its meaning) has no best sentence.
    """
    texts = [tuple(split_sentences(passage.text)) for passage in passages]
    held = [[_words(text) for text in sentences] for sentences in texts]
    holders = Counter(word for sentences in held for words in sentences for word in words)
    total = sum(map(len, held))
    # In a fixed order, for sums of floats depend on it.
    asked = sorted(word for word in _words(question) if word in holders)
    weights = {word: math.log((total + 1) / holders[word]) for word in asked}
    return [
        _mark(sentences, [sum(weights[word] for word in asked if word in words) for words in each], most)
        for sentences, each in zip(texts, held, strict=True)
    ]


def split_sentences(text: str) -> Iterator[str]:
    """The sentences of a text, white space folded; headings, items of lists and rows of tables are sentences too."""
    start = 0
    for end in _END.finditer(text):
        if _ends_here(text, start, end):
            sentence = " ".join(text[start : end.end()].split())
            if sentence:
                yield sentence
            start = end.end()
    rest = " ".join(text[start:].split())
    if rest:
        yield rest


def _mark(sentences: Sequence[str], scores: Sequence[float], most: int) -> tuple[Sentence, ...]:
    highest = max(scores, default=0.0)
    ranked = sorted(range(len(scores)), key=lambda row: -scores[row])[:most]
    best = {row for row in ranked if scores[row] > 0 and scores[row] >= _SECOND * highest}
    return tuple(
        Sentence(text, score, row in best) for row, (text, score) in enumerate(zip(sentences, scores, strict=True))
    )


def _ends_here(text: str, start: int, end: re.Match[str]) -> bool:
    """Whether a sentence that began at `start` is over at what looks like its end."""
    if end.group() == "\n":
        line = text[max(start, text.rfind("\n", start, end.start()) + 1) : end.start()]
        return len(line.strip()) < _WRAPPED or _NEW_LINE.match(text, end.end()) is not None
    following = _NEXT.match(text, end.end())
    if following is not None and following[1].islower():
        return False
    if end.group() != ".":
        return True
    # An initial ("J. Smith") or a title ends no sentence; a window, so that a word of a megabyte is not read each time.
    last = _LAST_WORD.search(text[max(start, end.start() - 16) : end.start()])
    return last is None or not ((len(last[0]) == 1 and last[0].isupper()) or last[0].casefold() in _ABBREVIATIONS)


def _words(text: str) -> set[str]:
    """What of a text can meet another text."""
    bare = "".join(sign for sign in unicodedata.normalize("NFKD", text.casefold()) if not unicodedata.combining(sign))
    found: set[str] = set()
    for word in _WORD.findall(unicodedata.normalize("NFC", bare)):
        if word[0].isalpha() and word.upper() == word and len(word) > 1:
            found.update(word[place : place + 2] for place in range(len(word) - 1))
        else:
            found.add((word[:-1] if len(word) > 3 and word.endswith("s") else word)[:_STEM])
    return found
