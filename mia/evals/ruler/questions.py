"""Questions of a user's file among other documents of it, at any length in tokens (RULER's qa tasks, arXiv 2404.06654).

A question's own documents stand there once, each at a depth drawn evenly; the others are drawn from the pool without
return, and the last of them is cut to the asked length. A pool that is used up begins again, as RULER's does. The same
number is the same question at every length.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from mia.errors import ConfigError
from mia.evals.ruler.documents import Asked, Corpus, Document, write_documents
from mia.evals.ruler.haystacks import depth, fit
from mia.evals.ruler.items import Item, Make, Sources, Work


def make(work: Work, sources: Sources) -> Item:
    """Raises ConfigError without a file of questions, or where the length cannot hold a question's own documents."""
    corpus = require_corpus(work, sources)
    asked = choose(corpus, work.number, sources.seed)
    chance = sources.chance(work)
    texts = frozenset(document.text for document in asked.own)
    others = [document for document in corpus.pool if document.text not in texts]
    if not others:
        raise ConfigError(
            f"'{corpus.name}' holds no document beside those of one question.", wanted="a file of several documents"
        )
    chance.shuffle(others)
    words = [len(document.text.split()) for document in others]
    depths = [chance.random() for _ in asked.own]
    fitted = fit(
        lambda size: write_documents(_place(asked.own, depths, _first_words(others, words, size))),
        sources.count,
        work.length,
        what=f"'{work.task}', question '{asked.id}',",
    )
    return item_of(work, fitted.text, fitted.tokens, asked, "lenient")


MAKERS: dict[str, Make] = {"qa": make}


def require_corpus(work: Work, sources: Sources) -> Corpus:
    if sources.corpus is None:
        raise ConfigError(f"'{work.task}' asks the questions of a file.", hint="name one with --questions FILE")
    return sources.corpus


def choose(corpus: Corpus, number: int, seed: int) -> Asked:
    """The question of a number, in an order drawn by the seed; all come before one comes again."""
    order = list(range(len(corpus.questions)))
    random.Random(f"questions {seed}").shuffle(order)
    return corpus.questions[order[number % len(order)]]


def item_of(work: Work, text: str, tokens: int, asked: Asked, measure: str) -> Item:
    """The item of a text of documents, with the depths of those that support the answer."""
    found = (depth(text, f"{own.title}\n{own.text}") for own in asked.own if own.title in asked.supporting)
    return Item(
        work,
        text,
        tokens,
        asked.question,
        asked.answers,
        tuple(place for place in found if place is not None),
        "lenient_stated" if measure == "lenient_stated" else "lenient",
    )


def _first_words(documents: Sequence[Document], words: Sequence[int], size: int) -> list[Document]:
    """The first documents with so many words in all; the last one is cut."""
    taken: list[Document] = []
    number = 0
    while size > 0:
        document, length = documents[number % len(documents)], words[number % len(documents)]
        if length > size:
            document = Document(document.title, " ".join(document.text.split()[:size]))
        taken.append(document)
        # A document without words still takes a place, so that an empty pool ends.
        size -= max(1, length)
        number += 1
    return taken


def _place(own: Sequence[Document], depths: Sequence[float], others: list[Document]) -> list[Document]:
    placed = list(others)
    for document, wanted in zip(own, depths, strict=True):
        placed.insert(int(wanted * (len(placed) + 1)), document)
    return placed
