"""Texts to vectors. A vector space has a name, and vectors of two spaces are never compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy
from numpy.typing import NDArray

Vectors = NDArray[numpy.float32]


class Embedder(Protocol):
    """Embeds texts into one vector space. Sync: embedding computes; async callers use a thread."""

    @property
    def space(self) -> str:
        """Names the vector space: model, version and dimension. Stored beside every vector."""
        ...

    @property
    def dimension(self) -> int: ...

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Unit-length rows, shape (len(texts), dimension), float32; a text without content gives a zero row."""
        ...


def unit_rows(vectors: NDArray[numpy.floating[Any]]) -> Vectors:
    """The rows at length 1; a row that has no direction (zero, NaN, infinite) becomes zero: similar to nothing."""
    rows: NDArray[numpy.float64] = numpy.atleast_2d(vectors).astype(numpy.float64)
    rows = numpy.where(numpy.isfinite(rows).all(axis=1, keepdims=True), rows, 0.0)
    # By the largest element first: squares of very large and very small numbers leave the range of floats.
    largest = numpy.abs(rows).max(axis=1, keepdims=True, initial=0.0)
    rows = numpy.divide(rows, largest, out=numpy.zeros_like(rows), where=largest > 0)
    length = numpy.sqrt((rows * rows).sum(axis=1, keepdims=True))
    rows = numpy.divide(rows, length, out=numpy.zeros_like(rows), where=length > 0)
    return rows.astype(numpy.float32)
