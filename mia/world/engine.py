"""Search over a world's documents: BM25 by tantivy, in memory, one source at a time.

A query names the source that it asks ("mayor of Melotu in census"), as one would open one site and not another; only
that source's documents are ranked. The title weighs 1.5 times the text.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence

import tantivy

from mia.types import Passage
from mia.world.facts import World
from mia.world.language import SOURCES

_TITLE_WEIGHT = 1.5
_HEAP_BYTES = 15_000_000
_WORD = re.compile(r"\w+")


class WorldEngine:
    """A search engine for one world. Thread-safe; holds no files."""

    def __init__(self, world: World) -> None:
        self.world = world
        builder = tantivy.SchemaBuilder()
        builder.add_text_field("source", tokenizer_name="raw", index_option="basic")
        builder.add_text_field("title", tokenizer_name="default", index_option="freq")
        builder.add_text_field("text", tokenizer_name="default", index_option="freq")
        builder.add_unsigned_field("number", stored=True, fast=True)
        self._schema = builder.build()
        index = tantivy.Index(self._schema)
        writer = index.writer(_HEAP_BYTES, 1)
        self._passages = []
        for number, document in enumerate(world.documents):
            row = tantivy.Document()
            row.add_text("source", document.source)
            row.add_text("title", document.title)
            row.add_text("text", document.text)
            row.add_unsigned("number", number)
            writer.add_document(row)
            self._passages.append(
                Passage(
                    id=f"{document.source} {number}",
                    title=document.title,
                    text=document.text,
                    source=f"world {world.seed}, {document.source}",
                )
            )
        writer.commit()
        writer.wait_merging_threads()
        index.reload()
        self._searcher = index.searcher()

    @property
    def name(self) -> str:
        return f"world {self.world.seed}"

    async def search(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        """A query that names no source, or several, finds nothing; nor does one that wants no passage."""
        # Yields once, so that many questions side by side take turns.
        await asyncio.sleep(0)
        return [self._find(query, k) for query in queries]

    async def close(self) -> None:
        """Nothing to let go of."""

    def _find(self, text: str, k: int) -> list[Passage]:
        if k < 1:
            return []
        words = [word.lower() for word in _WORD.findall(text)]
        named = {word for word in words if word in SOURCES}
        if len(named) != 1:
            return []
        (source,) = named
        should = [
            (tantivy.Occur.Should, query)
            for word in dict.fromkeys(words)
            if word != source
            for query in (
                self._term("text", word),
                tantivy.Query.boost_query(self._term("title", word), _TITLE_WEIGHT),
            )
        ]
        if not should:
            return []
        within = tantivy.Query.boost_query(tantivy.Query.const_score_query(self._term("source", source), 0.0), 1.0)
        query = tantivy.Query.boolean_query(
            [(tantivy.Occur.Must, within), (tantivy.Occur.Must, tantivy.Query.boolean_query(should))]
        )
        hits = self._searcher.search(query, k, count=False).hits
        numbers = self._searcher.fast_field_values("number", [address for _, address in hits])
        return [self._passages[number] for number in numbers]

    def _term(self, field: str, word: str) -> tantivy.Query:
        return tantivy.Query.term_query(self._schema, field, word, "freq")
