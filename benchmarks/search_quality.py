"""How well and how fast corpus search finds the passages that questions need.

Quality: supporting-passage recall@5 (of the passages a question needs, the share among the first five; mean over
questions) on the sets under MIA_DATA, for a plain BM25, our words alone, vectors alone, and both fused. Three sets are
multi-hop; nq_open is what people type, over its own passages and those of hotpotqa.
Speed: 50,000 passages indexed without vectors, and the time of a query.

MiniLM takes long over a whole corpus. `--minilm` makes its vectors (kept in --cache, resumable); without it they are
used where they are complete. `--sample N` takes N questions of each set over 20 N passages, which is quick for MiniLM
and far easier for every side: compare its figures among themselves only. `--sweep` adds the recall of other weights
and rank offsets.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import tantivy

from mia.embeddings.base import Embedder
from mia.embeddings.minilm import MiniLMEmbedder
from mia.embeddings.static import StaticEmbedder, cache_folder
from mia.search.corpus import DEPTH, CorpusIndex
from mia.search.indexing import Progress, make_vectors, update_index, vector_cache
from mia.types import Passage

SETS = ("hotpotqa", "2wiki", "musique", "nq_open")
TO_BEAT = {"hotpotqa": 0.73, "2wiki": 0.66, "musique": 0.48}
"""Recall@5 of a plain BM25 that somebody else measured on the same sets; the one measured here is to be beaten too."""
OFFSETS = (1, 5, 10, 20, 60)
WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
K = 5
PASSAGES = 50_000
INDEX_SECONDS = 10.0
QUERY_MILLISECONDS = 2.0

Row = dict[str, Any]
Ranker = Callable[[str], list[str]]


def read(file: Path) -> list[Row]:
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def load(data: Path, name: str) -> tuple[list[Row], list[Row]]:
    """The passages and the questions of a set."""
    if name != "nq_open":
        return read(data / name / "corpus.jsonl.gz"), read(data / name / "questions.jsonl.gz")
    corpus = read(data / name / "oracle_corpus.jsonl.gz") + read(data / "hotpotqa" / "corpus.jsonl.gz")
    return corpus, read(data / name / "oracle_questions.jsonl.gz")


def sampled(corpus: list[Row], questions: list[Row], count: int) -> tuple[list[Row], list[Row]]:
    """So many questions, and 20 times as many passages with those they need among them."""
    dice = random.Random(7)
    questions = dice.sample(questions, min(count, len(questions)))
    needed = {id for question in questions for id in question["supporting_ids"]}
    others = [row["id"] for row in corpus if row["id"] not in needed]
    kept = needed | set(dice.sample(others, min(len(others), max(0, 20 * count - len(needed)))))
    return [row for row in corpus if row["id"] in kept], questions


def write(corpus: Sequence[Row], file: Path) -> Path:
    """The corpus as a file of ours; left alone where it is there already, so that its index stays current."""
    content = "".join(json.dumps({name: row[name] for name in ("id", "title", "text")}) + "\n" for row in corpus)
    if not file.exists() or file.read_text(encoding="utf-8") != content:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content, encoding="utf-8")
    return file


# ── quality ──


def recall(rank: Ranker, questions: Sequence[Row]) -> float:
    shares = []
    for question in questions:
        needed = set(question["supporting_ids"])
        shares.append(len(needed & set(rank(question["question"])[:K])) / len(needed))
    return statistics.fmean(shares)


def plain_bm25(corpus: Sequence[Row]) -> Ranker:
    """tantivy as it comes: title and text in one field, lower-cased words, no more."""
    builder = tantivy.SchemaBuilder()
    builder.add_text_field("text")
    builder.add_unsigned_field("row", fast=True)
    index = tantivy.Index(builder.build())
    writer = index.writer(64_000_000, 1)
    for row, passage in enumerate(corpus):
        document = tantivy.Document()
        document.add_text("text", f"{passage['title']} {passage['text']}")
        document.add_unsigned("row", row)
        writer.add_document(document)
    writer.commit()
    index.reload()
    searcher = index.searcher()
    words = tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.simple()).filter(tantivy.Filter.lowercase()).build()

    def rank(question: str) -> list[str]:
        terms = [
            tantivy.Query.term_query(index.schema, "text", word) for word in dict.fromkeys(words.analyze(question))
        ]
        query = tantivy.Query.boolean_query([(tantivy.Occur.Should, term) for term in terms])
        addresses = [address for _, address in searcher.search(query, K).hits]
        return [corpus[row]["id"] for row in searcher.fast_field_values("row", addresses)]

    return rank


def search(index: CorpusIndex, question: str, k: int) -> list[Passage]:
    (found,) = asyncio.run(index.search([question], k))
    return found


def rows_of(hits: Sequence[Passage]) -> list[str]:
    """The rows that passages come from, each once: a long row is several, `id#0`, `id#1`, …; no id of a set has a #."""
    return list(dict.fromkeys(hit.id.partition("#")[0] for hit in hits))


def fused(index: CorpusIndex) -> Ranker:
    return lambda question: rows_of(search(index, question, DEPTH))


def by_vector(index: CorpusIndex) -> Ranker:
    """The vector side alone, read off the parts of the fused score."""

    def rank(question: str) -> list[str]:
        found = [hit for hit in search(index, question, 2 * DEPTH) if "vector_rank" in hit.parts]
        return rows_of(sorted(found, key=lambda hit: hit.parts["vector_rank"]))

    return rank


def sweep(index: CorpusIndex, questions: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Recall of other rank offsets and vector weights, from the ranks that are among the parts of a score."""
    ranked = [(question, search(index, question["question"], 2 * DEPTH)) for question in questions]

    def of(offset: int, weight: float) -> float:
        def score(hit: Passage) -> float:
            sides = (("lexical_rank", 1.0), ("vector_rank", weight))
            return sum(share / (offset + hit.parts[side]) for side, share in sides if side in hit.parts)

        orders = {question["question"]: rows_of(sorted(hits, key=score, reverse=True)) for question, hits in ranked}
        return recall(orders.__getitem__, questions)

    return {str(offset): {str(weight): of(offset, weight) for weight in WEIGHTS} for offset in OFFSETS}


def measure_set(
    name: str, corpus: list[Row], questions: list[Row], cache: Path, *, minilm: bool, sweeping: bool
) -> Row:
    folder = cache / "index"
    update_index(folder, [write(corpus, cache / "corpus.jsonl")])
    page: Row = {"set": name, "passages": len(corpus), "questions": len(questions)}
    page["plain_bm25"] = recall(plain_bm25(corpus), questions)
    page["lexical"] = recall(fused(CorpusIndex.open(folder)), questions)
    embedders: list[tuple[str, Embedder]] = [("static", StaticEmbedder())]
    whole = MiniLMEmbedder()
    if minilm or vector_cache(folder).counts().get(whole.space, 0) >= len(corpus):
        embedders.append(("minilm", whole))
    for kind, embedder in embedders:
        report = make_vectors(folder, embedder, on_progress=tell)
        index = CorpusIndex.open(folder, embedder)
        page[f"{kind}_alone"] = recall(by_vector(index), questions)
        page[f"{kind}_fused"] = recall(fused(index), questions)
        if sweeping:
            page[f"{kind}_sweep"] = sweep(index, questions)
        page[f"{kind}_made_per_second"] = report.made / report.seconds if report.made else None
    best = page.get("minilm_fused", page["static_fused"])
    page["fused_over_plain_bm25"] = best / page["plain_bm25"]
    page["beats"] = min(page["static_fused"], best) > max(page["plain_bm25"], TO_BEAT.get(name, 0.0))
    return page


# ── speed ──


def fifty_thousand(corpora: Sequence[list[Row]]) -> Iterator[Row]:
    """All passages, then again with other ids and some words changed, until there are enough."""
    rows = [row for corpus in corpora for row in corpus]
    for number in range(PASSAGES):
        row, again = rows[number % len(rows)], number // len(rows)
        words = row["text"].split()
        words[:: 7 + again] = [f"{word}{again}" if again else word for word in words[:: 7 + again]]
        yield {"id": str(number), "title": row["title"], "text": " ".join(words) or row["title"]}


def measure_speed(corpora: Sequence[list[Row]], questions: Sequence[str], scratch: Path) -> Row:
    file = write(list(fifty_thousand(corpora)), scratch / "many.jsonl")
    report = update_index(scratch / "index", [file])
    started = time.perf_counter()
    update_index(scratch / "index", [file])
    again = time.perf_counter() - started
    lexical = milliseconds(CorpusIndex.open(scratch / "index"), questions)
    embedder = StaticEmbedder()
    vectors = make_vectors(scratch / "index", embedder)
    started = time.perf_counter()
    index = CorpusIndex.open(scratch / "index", embedder)
    opened = time.perf_counter() - started
    return {
        "passages": report.passages,
        "index_seconds": report.seconds,
        "index_seconds_over_limit": report.seconds / INDEX_SECONDS,
        "unchanged_index_seconds": again,
        "lexical_query_ms_p50": lexical,
        "lexical_query_over_limit": lexical / QUERY_MILLISECONDS,
        "static_vectors_seconds": vectors.seconds,
        "open_with_vectors_seconds": opened,
        "fused_query_ms_p50": milliseconds(index, questions),
        "meets": report.seconds <= INDEX_SECONDS and lexical <= QUERY_MILLISECONDS,
    }


def milliseconds(index: CorpusIndex, questions: Sequence[str]) -> float:
    """The median over all questions, each asked by itself inside a running loop."""

    async def ask_all() -> list[float]:
        times = []
        for question in questions:
            started = time.perf_counter()
            await index.search([question], 3)
            times.append(time.perf_counter() - started)
        return times

    return 1000 * statistics.median(asyncio.run(ask_all()))


# ── the door ──


def tell(progress: Progress) -> None:
    print(f"\r{progress.done:,} of {progress.total or 0:,} vectors ", end="", file=sys.stderr, flush=True)


def measure(arguments: argparse.Namespace, data: Path) -> Row:
    names = arguments.sets.split(",")
    loaded = {name: load(data, name) for name in names}
    pages = []
    for name, (corpus, questions) in loaded.items():
        if arguments.sample:
            corpus, questions = sampled(corpus, questions, arguments.sample)
        cache = arguments.cache / (f"{name}-{arguments.sample}" if arguments.sample else name)
        pages.append(measure_set(name, corpus, questions, cache, minilm=arguments.minilm, sweeping=arguments.sweep))
    with tempfile.TemporaryDirectory() as scratch:
        asked = [row["question"] for _, questions in loaded.values() for row in questions]
        speed = measure_speed([corpus for corpus, _ in loaded.values()], asked, Path(scratch))
    machine = {"cpus": os.cpu_count(), "platform": platform.platform(), "python": platform.python_version()}
    passed = all(page["beats"] for page in pages) and speed["meets"]
    return {"machine": machine, "sample": arguments.sample, "quality": pages, "speed": speed, "passed": passed}


def show(page: Row) -> None:
    machine = page["machine"]
    print(f"{machine['cpus']} CPUs, {machine['platform']}, Python {machine['python']}\n")
    columns = ("plain_bm25", "lexical", "static_alone", "static_fused", "minilm_alone", "minilm_fused")
    print(f"{'recall@5':10}" + "".join(f"{name:>14}" for name in columns) + f"{'over plain':>12}")
    for one in page["quality"]:
        cells = "".join(f"{one[name]:14.3f}" if name in one else f"{'-':>14}" for name in columns)
        print(f"{one['set']:10}{cells}{one['fused_over_plain_bm25']:11.3f}x")
        for kind in ("static", "minilm"):
            for offset, shares in one.get(f"{kind}_sweep", {}).items():
                print(
                    f"  {kind} offset {offset:3}"
                    + "".join(f"  {weight}: {share:.4f}" for weight, share in shares.items())
                )
    print()
    for name, value in page["speed"].items():
        print(f"{name:28} {value if isinstance(value, bool | int) else round(value, 4)}")
    print(f"\n{'passed' if page['passed'] else 'FAILED'}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--sample", type=int, default=0, metavar="N")
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--minilm", action="store_true")
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--cache", type=Path, default=cache_folder() / "benchmarks" / "search_quality")
    arguments = parser.parse_args()
    if not os.environ.get("MIA_DATA"):
        print("Error: MIA_DATA is not set.\n  Wanted: the folder of the question sets.", file=sys.stderr)
        return 2
    page = measure(arguments, Path(os.environ["MIA_DATA"]))
    if arguments.json:
        print(json.dumps(page, indent=2))
    else:
        show(page)
    return 0 if page["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
