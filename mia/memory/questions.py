"""Questions to vectors, for one store: the same embedder for all memories of a store, or a clear refusal."""

from __future__ import annotations

from collections.abc import Sequence

from mia.embeddings.base import Embedder, unit_rows
from mia.errors import StoreError
from mia.store.base import EMBEDDED_CHARACTERS, MemoryStore, MemoryVectors, storable


class Vectorizer:
    """Embeds questions and captions. Sync: it computes, or waits for an endpoint."""

    def __init__(self, store: MemoryStore, embedder: Embedder) -> None:
        self._store = store
        self._embedder = embedder

    def vectors(self, question: str, caption: str = "") -> MemoryVectors:
        """Of one question. Raises StoreError if the store holds the vectors of another embedder, ModelError."""
        (vectors,) = self.many([(question, caption)])
        return vectors

    def many(self, questions: Sequence[tuple[str, str]]) -> Sequence[MemoryVectors]:
        """Of (question, caption) pairs, embedded together; each text once. Raises StoreError, ModelError."""
        self._check_space()
        texts = {text[:EMBEDDED_CHARACTERS]: 0 for pair in questions for text in pair if text}
        if not texts:
            return []
        places = {text: place for place, text in enumerate(texts)}
        rows = unit_rows(self._embedder.embed([storable(text) for text in texts]))
        space = self._embedder.space
        return [
            MemoryVectors(
                space,
                rows[places[question[:EMBEDDED_CHARACTERS]]],
                rows[places[caption[:EMBEDDED_CHARACTERS]]] if caption else None,
            )
            for question, caption in questions
        ]

    def _check_space(self) -> None:
        stored = self._store.space()
        # The name of a space may need the model to be loaded; an empty store leaves it alone.
        if stored and stored != self._embedder.space:
            name = next((name for name in ("minilm", "hashing") if name in stored.lower()), "openai")
            raise StoreError(
                f"the memory '{self._store.location}' was made with the embedder '{stored}'; this one is "
                f"'{self._embedder.space}'.",
                wanted="the same embedder for all memories of a store: vectors of two cannot be compared",
                hint=f"MIA_MEMORY__EMBEDDER={name} to go on as before, or `mia memory reembed` to change the embedder",
            )
