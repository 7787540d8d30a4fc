"""The lexical half of an index: BM25 by tantivy over stemmed words, and the truth about what is indexed.

Passages and the manifest (which files were read, in which state) are rows of one tantivy index, so one commit changes
both or neither; a crash leaves the commit before. Words are lower-cased, freed of accents and stemmed as English; what
is written without spaces (Chinese, Japanese, Korean, Thai, Lao, Khmer, Burmese) is also indexed by pairs of characters.

A query is a bag of words and never query syntax, so no text can be a wrong query.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import tantivy
from numpy.typing import NDArray

from mia.errors import CorpusError
from mia.types import Passage

_TITLE_WEIGHT = 0.5
"""Title words count once among all words and once more, with this weight, by themselves."""
_MAX_TERMS = 128
"""Of one query; what follows is left out."""
_HEAP_BYTES = 64_000_000
_LONGEST_WORD = 80
_MANIFEST = 0
"""The file number of the row that holds the manifest."""
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
    "\U00020000-\U0003134f]+"
)

Numbers = NDArray[numpy.int64]
Address = tuple[int, int]


def number(text: str) -> int:
    """A text as the 63-bit number that stands for it in the index."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def content_number(passage: Passage) -> int:
    """What a vector belongs to: the text and its title, wherever they stand."""
    return number(f"{passage.title}\0{passage.text}")


def version_number(passage: Passage) -> int:
    """Changes whenever anything about the passage does."""
    return number(f"{passage.id}\0{passage.source}\0{passage.title}\0{passage.text}")


def _analyzer(*, stop_words: bool) -> tantivy.TextAnalyzer:
    builder = tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.simple())
    filters = [tantivy.Filter.remove_long(_LONGEST_WORD), tantivy.Filter.lowercase(), tantivy.Filter.ascii_fold()]
    if not stop_words:
        filters.append(tantivy.Filter.stopword("english"))
    for each in [*filters, tantivy.Filter.stemmer("english")]:
        builder = builder.filter(each)
    return builder.build()


_WORDS = _analyzer(stop_words=True)
_TELLING_WORDS = _analyzer(stop_words=False)
_PAIRS = tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.ngram(1, 2)).build()


def _schema() -> tantivy.Schema:
    builder = tantivy.SchemaBuilder()
    builder.add_unsigned_field("file", indexed=True, fast=True)
    builder.add_unsigned_field("version", indexed=True, fast=True)
    builder.add_unsigned_field("id", fast=True)
    builder.add_unsigned_field("content", fast=True)
    builder.add_bytes_field("stored", stored=True)
    builder.add_text_field("title", tokenizer_name="words", index_option="freq")
    builder.add_text_field("words", tokenizer_name="words", index_option="freq")
    builder.add_text_field("pairs", tokenizer_name="pairs", index_option="freq")
    return builder.build()


@dataclass(frozen=True)
class Rows:
    """All passages of a snapshot as parallel columns."""

    addresses: Sequence[tantivy.DocAddress]
    file: Numbers
    version: Numbers
    id: Numbers
    content: Numbers


class LexicalIndex:
    """The tantivy index in a folder."""

    def __init__(self, folder: Path, *, create: bool = False) -> None:
        """Raises FileNotFoundError where there is none (unless `create`), ValueError where tantivy cannot read it."""
        if create:
            folder.mkdir(exist_ok=True)
        if folder.is_dir() and tantivy.Index.exists(str(folder)):
            self._index = tantivy.Index.open(str(folder))
        elif create:
            self._index = tantivy.Index(_schema(), path=str(folder))
        else:
            raise FileNotFoundError(folder)
        self._index.register_tokenizer("words", _WORDS)
        self._index.register_tokenizer("pairs", _PAIRS)

    def snapshot(self) -> Snapshot:
        """The last commit, as it stays while others write."""
        self._index.reload()
        return Snapshot(self._index.schema, self._index.searcher())

    def writer(self) -> LexicalWriter:
        return LexicalWriter(self._index)


class Snapshot:
    """One state of the index. Safe to use concurrently."""

    def __init__(self, schema: tantivy.Schema, searcher: tantivy.Searcher) -> None:
        self._schema = schema
        self._searcher = searcher

    def manifest(self) -> dict[str, Any] | None:
        """What `LexicalWriter.commit` was given last; None for an index that never had a commit."""
        query = tantivy.Query.term_query(self._schema, "file", _MANIFEST)
        hits = self._searcher.search(query, 1, count=False).hits
        found: dict[str, Any] | None = json.loads(self._stored(hits[0][1])) if hits else None
        return found

    def rows(self) -> Rows:
        limit = max(1, self._searcher.num_docs)
        hits = self._searcher.search(tantivy.Query.all_query(), limit, count=False).hits
        addresses = [address for _, address in hits]
        columns = {
            name: numpy.array(self._searcher.fast_field_values(name, addresses), dtype=numpy.int64)
            for name in ("file", "version", "id", "content")
        }
        kept = numpy.flatnonzero(columns["file"] != _MANIFEST)
        return Rows([addresses[row] for row in kept], **{name: column[kept] for name, column in columns.items()})

    def search(self, query: str, limit: int) -> list[tuple[float, Address]]:
        """Scores and addresses, best first."""
        parts = self._query(query.encode("utf-8", "replace").decode())
        if not parts:
            return []
        hits = self._searcher.search(tantivy.Query.boolean_query(parts), limit, count=False).hits
        return [(score, (address.segment_ord, address.doc)) for score, address in hits]

    def passage(self, address: Address) -> Passage:
        values = json.loads(self._stored(tantivy.DocAddress(*address)))
        return Passage(id=values[0], title=values[1], text=values[2], source=values[3])

    def _stored(self, address: tantivy.DocAddress) -> bytes:
        return bytes(self._searcher.doc(address).get_first("stored") or b"")

    def _query(self, text: str) -> list[tuple[tantivy.Occur, tantivy.Query]]:
        # Words like "the" cost the most and tell the least; a query of nothing else ("The Who") keeps them.
        terms = _distinct(_TELLING_WORDS.analyze(text)) or _distinct(_WORDS.analyze(text))
        pairs = _distinct([pair for run in _UNSPACED.findall(text) for pair in _PAIRS.analyze(run)])
        found = [self._term("words", term) for term in terms]
        found += [tantivy.Query.boost_query(self._term("title", term), _TITLE_WEIGHT) for term in terms]
        found += [self._term("pairs", pair) for pair in pairs]
        return [(tantivy.Occur.Should, query) for query in found]

    def _term(self, field: str, term: str) -> tantivy.Query:
        return tantivy.Query.term_query(self._schema, field, term, "freq")


class LexicalWriter:
    """One transaction: nothing is seen before `commit`, and leaving without it changes nothing."""

    def __init__(self, index: tantivy.Index) -> None:
        self._index = index
        self._writer = index.writer(_HEAP_BYTES, 1)

    def __enter__(self) -> LexicalWriter:
        return self

    def __exit__(self, *_: object) -> None:
        # After a failure of the disk the writer is dead, and has nothing left to give back.
        with contextlib.suppress(ValueError, RuntimeError):
            self._writer.rollback()
            self._writer.wait_merging_threads()

    def add(self, passage: Passage, file: int) -> None:
        document = tantivy.Document()
        document.add_unsigned("file", file)
        document.add_unsigned("version", version_number(passage))
        document.add_unsigned("id", number(passage.id))
        document.add_unsigned("content", content_number(passage))
        values = [passage.id, passage.title, passage.text, passage.source]
        document.add_bytes("stored", json.dumps(values, ensure_ascii=False).encode())
        words = f"{passage.title}\n{passage.text}"
        document.add_text("title", passage.title)
        document.add_text("words", words)
        for run in _UNSPACED.findall(words):
            document.add_text("pairs", run)
        self._put(document)

    def remove(self, version: int) -> None:
        self._delete("version", version)

    def commit(self, manifest: Mapping[str, Any]) -> None:
        self._delete("file", _MANIFEST)
        document = tantivy.Document()
        for field in ("file", "version", "id", "content"):
            document.add_unsigned(field, _MANIFEST)
        document.add_bytes("stored", json.dumps(manifest).encode())
        self._put(document)
        try:
            self._writer.commit()
        except ValueError as error:
            raise _cannot_write(error) from error

    def _put(self, document: tantivy.Document) -> None:
        try:
            self._writer.add_document(document)
        except ValueError as error:
            raise _cannot_write(error) from error

    def _delete(self, field: str, value: int) -> None:
        # `delete_documents_by_term` takes the number for a signed one and silently deletes nothing.
        self._writer.delete_documents_by_query(tantivy.Query.term_query(self._index.schema, field, value))


def _cannot_write(error: Exception) -> CorpusError:
    return CorpusError(f"the index cannot be written ({error}).", hint="make room on the disk; the index is unchanged")


def _distinct(terms: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(terms))[:_MAX_TERMS]
