"""RULER-HotpotQA (MemAgent, arXiv 2507.02259): a question's own paragraphs among random others, N documents in all.

Here a length is a number of documents: 50 are about 7,000 tokens, 6,400 about 900,000. Documents are written as
`Document i:`, title and text, with a blank line between, in an order drawn by the seed (4 by default). No document is
there twice. The answer must follow the words "the answer is".
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from mia.errors import ConfigError
from mia.evals.ruler.documents import Asked, Document, write_documents
from mia.evals.ruler.items import Item, Make, Sources, Work
from mia.evals.ruler.questions import choose, item_of, require_corpus

DOCUMENTS = (50, 100, 200, 400, 800, 1600, 3200, 6400)
SEED = 4


def make(work: Work, sources: Sources) -> Item:
    """Raises ConfigError without a file of questions, or where its pool is too small."""
    corpus = require_corpus(work, sources)
    asked = choose(corpus, work.number, sources.seed)
    text = write_documents(mix(asked, corpus.pool, work.length, sources.chance(work)))
    return item_of(work, text, sources.count(text), asked, "lenient_stated")


MAKERS: dict[str, Make] = {"hotpotqa": make}


def mix(asked: Asked, pool: Sequence[Document], documents: int, chance: random.Random) -> list[Document]:
    """So many documents in random order: the question's own (of too many, first those that support the answer), and
    others of the pool.

    Raises ConfigError if the pool has too few, or the answer needs more documents than there shall be.
    """
    own = sorted(dict.fromkeys(asked.own), key=lambda document: document.title not in asked.supporting)
    needed = sum(document.title in asked.supporting for document in own)
    # Chance decides which of its other paragraphs stay.
    rest = own[needed:]
    chance.shuffle(rest)
    mixed = [*own[:needed], *rest][: max(documents, 0)]
    if documents < needed:
        raise ConfigError(
            f"question '{asked.id}' needs {needed} documents, and there shall be {documents}.",
            hint=f"ask for {needed} documents or more",
        )
    wanted = documents - len(mixed)
    texts = frozenset(document.text for document in own)
    # As many more as might be the question's own.
    drawn = chance.sample(range(len(pool)), min(len(pool), wanted + len(own))) if wanted else []
    others = [pool[number] for number in drawn if pool[number].text not in texts][:wanted]
    if len(others) < wanted:
        raise ConfigError(
            f"there shall be {documents:,} documents, and the file has {len(pool):,} different ones.",
            hint="ask for fewer with --documents, or add a corpus with --pool FILE",
        )
    mixed += others
    chance.shuffle(mixed)
    return mixed
