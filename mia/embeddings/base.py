"""Texts to vectors. A vector space has a name, and vectors of two spaces are never compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

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
