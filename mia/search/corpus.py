"""Search over documents on this machine: BM25 and vectors, fused by reciprocal rank.

Each side ranks a hundred passages; a passage's score is the sum, over the sides that found it, of weight / (5 + rank).
The weights follow what the vectors are worth (see benchmarks/LOG.md): MiniLM and endpoints as much as words,
static vectors a hint. A passage whose vector is still to be made is taken to rank by vector as it does by words.
Vectors of one space are only ever compared with queries of the same space: with another embedder the search is
lexical, and `notice` says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy

from mia.config import Config
from mia.embeddings import build_embedder, corpus_embedder
from mia.embeddings.base import Embedder, Vectors
from mia.errors import CorpusError, MissingExtra, ModelError, ToolError
from mia.search.documents import INDEX_MARK
from mia.search.indexing import (
    IndexBusy,
    OnProgress,
    ignore,
    make_vectors,
    read_snapshot,
    update_index,
    vector_cache,
)
from mia.search.lexical import Address, Numbers, Snapshot
from mia.types import Passage

DEPTH = 100
"""Passages that each side ranks."""
RANK_OFFSET = 5
VECTOR_WEIGHTS = {"minilm": 1.0, "openai": 1.0, "static": 0.2, "hashing": 0.1}
"""Against 1 for words, by the embedder whose name begins the space."""

Ranking = list[tuple[Address, float]]


class CorpusIndex:
    """An opened index: a `SearchEngine`. It shows one state of the index; open it again to see a later one."""

    def __init__(self, folder: Path, snapshot: Snapshot, passages: int, embedder: Embedder | None) -> None:
        self.folder = folder
        self.passages = passages
        self.notice = ""
        """A sentence where the search is less than it could be, e.g. lexical only; else empty."""
        self.with_vectors = 0
        """Passages that the vector side can find."""
        self._snapshot = snapshot
        self._embedder = embedder
        self._addresses: Sequence[Address] = ()
        self._found_by_vector: frozenset[Address] = frozenset()
        self._vectors: Vectors | None = None
        self._weight = 0.0
        if embedder is not None:
            self._take_vectors(embedder)

    @classmethod
    def open(cls, folder: Path, embedder: Embedder | None = None) -> CorpusIndex:
        """`embedder`: the one for queries; None: lexical search only. Raises CorpusError, and its ModelError."""
        snapshot, manifest = read_snapshot(folder)
        return cls(folder, snapshot, manifest["passages"], embedder)

    @property
    def name(self) -> str:
        return f"corpus {self.folder.name}"

    async def search(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        """Raises ToolError where the query's vector cannot be made."""
        by_vector: list[Ranking] = [[] for _ in queries]
        if self._vectors is not None and queries:
            # Words take a fraction of a millisecond; a model or an endpoint takes longer than a loop may wait.
            by_vector = await asyncio.to_thread(self._rank_by_vector, queries)
        return [self._fuse(query, ranking, k) for query, ranking in zip(queries, by_vector, strict=True)]

    async def close(self) -> None:
        """Nothing is held but memory."""

    def _take_vectors(self, embedder: Embedder) -> None:
        cache = vector_cache(self.folder)
        counts = cache.counts()
        if not counts:
            self.notice = "lexical search only: the index has no vectors yet (`mia index` makes them)."
            return
        if embedder.space not in counts:
            spaces = " and ".join(f"'{space}'" for space in counts)
            self.notice = (
                f"lexical search only: the vectors of the index are of {spaces}, and queries would be of "
                f"'{embedder.space}' (`mia index` with the same --vectors makes them anew)."
            )
            return
        contents, vectors = cache.load(embedder.space)
        rows = self._snapshot.rows()
        found, places = _look_up(contents, rows.content)
        self._vectors = vectors[places] if len(found) else None
        self._addresses = [(rows.addresses[row].segment_ord, rows.addresses[row].doc) for row in found]
        self._found_by_vector = frozenset(self._addresses)
        self._weight = VECTOR_WEIGHTS.get(embedder.space.partition("/")[0], 0.5)
        self.with_vectors = len(found)
        if self.with_vectors < self.passages:
            self.notice = (
                f"vectors are there for {self.with_vectors:,} of {self.passages:,} passages; the others are found by "
                "words (`mia index` goes on making them)."
            )

    def _rank_by_vector(self, queries: Sequence[str]) -> list[Ranking]:
        assert self._embedder is not None
        assert self._vectors is not None
        try:
            embedded = self._embedder.embed(queries)
        except ModelError as error:
            raise ToolError(f"the search found no vector for the query: {error.got}", hint="--vectors off") from error
        rankings: list[Ranking] = []
        for scores in embedded @ self._vectors.T:
            best = numpy.argpartition(-scores, min(DEPTH, len(scores)) - 1)[:DEPTH]
            best = best[numpy.argsort(-scores[best], kind="stable")]
            # A query without content is a zero vector, near to nothing.
            rankings.append([(self._addresses[row], float(scores[row])) for row in best if scores[row] > 0])
        return rankings

    def _fuse(self, query: str, by_vector: Ranking, k: int) -> list[Passage]:
        if k < 1:
            return []
        by_words: Ranking = [(address, score) for score, address in self._snapshot.search(query, max(DEPTH, k))]
        scores: dict[Address, float] = {}
        parts: dict[Address, dict[str, float]] = {}
        for side, weight, ranking in (("lexical", 1.0, by_words), ("vector", self._weight, by_vector)):
            for rank, (address, score) in enumerate(ranking, start=1):
                scores[address] = scores.get(address, 0.0) + weight / (RANK_OFFSET + rank)
                parts.setdefault(address, {}).update({f"{side}_rank": rank, f"{side}_score": score})
                if by_vector and address not in self._found_by_vector:
                    scores[address] += self._weight / (RANK_OFFSET + rank)
        # Equal scores keep the order in which they were found: words first.
        best = sorted(scores, key=lambda address: -scores[address])[:k]
        return [self._snapshot.passage(address).evolve(score=scores[address], parts=parts[address]) for address in best]


def _look_up(contents: Numbers, wanted: Numbers) -> tuple[Numbers, Numbers]:
    """The positions in `wanted` that occur in the sorted `contents`, and where."""
    places = numpy.searchsorted(contents, wanted)
    places[places == len(contents)] = 0
    found = numpy.flatnonzero(contents[places] == wanted)
    return found, places[found]


def index_folder(paths: Sequence[str | Path], home: Path) -> Path:
    """Where the index of these documents is kept unless told otherwise."""
    resolved = sorted({str(Path(path).resolve()) for path in paths})
    return home / "indexes" / hashlib.sha256("\0".join(resolved).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def open_corpus(
    paths: Sequence[str | Path],
    home: Path,
    *,
    embedder: Embedder | None = None,
    on_progress: OnProgress = ignore,
    vector_seconds: float | None = 60.0,
) -> CorpusIndex:
    """The index of these documents, made or brought up to date first; fast where nothing has changed.

    Vectors are made for at most `vector_seconds`: a slow embedder delays the first answer no longer, and goes on with
    the next call. Where another process is already changing the index, this waits for its passages, not for its
    vectors. Raises CorpusError, and the embedder's ModelError.
    """
    folder = index_folder(paths, home)
    update_index(folder, paths, on_progress=on_progress, wait_seconds=600.0)
    if embedder is not None:
        # Where another process is making them, those that are there already count.
        with contextlib.suppress(IndexBusy):
            make_vectors(folder, embedder, on_progress=on_progress, max_seconds=vector_seconds)
    return CorpusIndex.open(folder, embedder)


def open_configured(config: Config, *, on_progress: OnProgress = ignore) -> CorpusIndex:
    """The index that the settings name: `search.index`, that of `search.corpus`, else the only one in `home`.

    Raises CorpusError, and the embedder's ModelError.
    """
    if config.search.corpus and not config.search.index:
        return open_corpus(config.search.corpus, config.home, embedder=corpus_embedder(config), on_progress=on_progress)
    folder = Path(config.search.index) if config.search.index else _only_index(config.home)
    return CorpusIndex.open(folder, query_embedder(folder, config))


def _only_index(home: Path) -> Path:
    found = sorted(mark.parent for mark in (home / "indexes").glob(f"*/{INDEX_MARK}"))
    if len(found) == 1:
        return found[0]
    raise CorpusError(
        f"there are {len(found)} indexes in '{home / 'indexes'}'." if found else "no documents are named.",
        wanted="a corpus or an index",
        hint="--corpus PATH or --index DIR",
    )


def query_embedder(folder: Path, config: Config) -> Embedder | None:
    """The embedder for an existing index: with `search.vectors` at "auto" the one that made its vectors."""
    if config.search.vectors != "auto":
        return corpus_embedder(config)
    makers = {space.partition("/")[0] for space in vector_cache(folder).counts()}
    for name in ("minilm", "openai", "static", "hashing"):
        if name in makers:
            try:
                return build_embedder(name, config)
            except MissingExtra:
                continue
    return None
