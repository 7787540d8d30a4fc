"""The stand-in embedder: words and pieces of words, hashed into 384 dimensions with a sign.

Needs numpy only, and gives the same vectors in every process and on every machine. It knows no meaning: two texts are
near when they share words, or words that are spelt alike.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy

from mia.embeddings.base import Vectors, unit_rows

_DIMENSION = 384
_PIECE_LENGTHS = (3, 4)
_PIECE_WEIGHT = 0.3
"""Of a piece against its whole word: pieces forgive inflection and spelling, whole words decide."""
_WORD = re.compile(r"\w+")


class HashingEmbedder:
    """Hashed words and character n-grams."""

    @property
    def space(self) -> str:
        return f"hashing/1/{_DIMENSION}"

    @property
    def dimension(self) -> int:
        return _DIMENSION

    def embed(self, texts: Sequence[str]) -> Vectors:
        vectors = numpy.zeros((len(texts), _DIMENSION), dtype=numpy.float32)
        for row, text in enumerate(texts):
            for word in _WORD.findall(text.lower()):
                for position, weight in _features(word):
                    vectors[row, position] += weight
        return unit_rows(vectors)


@lru_cache(maxsize=50_000)
def _features(word: str) -> tuple[tuple[int, float], ...]:
    """Where a word and its pieces go, and with which signed weight."""
    features = [_place(word, 1.0)]
    features += [_place(piece, _PIECE_WEIGHT) for piece in _pieces(word)]
    return tuple(features)


def _pieces(word: str) -> Iterator[str]:
    framed = f"<{word}>"
    for length in _PIECE_LENGTHS:
        for start in range(len(framed) - length + 1):
            yield framed[start : start + length]


def _place(feature: str, weight: float) -> tuple[int, float]:
    digest = hashlib.blake2b(feature.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    number = int.from_bytes(digest, "big")
    return (number >> 1) % _DIMENSION, weight if number & 1 else -weight
