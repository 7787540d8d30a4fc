"""The memory on disk: how long a recall takes, what a durable write costs, and what it is measured against.

    MIA_DATA=… python benchmarks/memory_store.py [--json] [--sizes 1000,10000,100000] [--random]

Each size is a store of its own on the disk, filled with memories whose vectors are real MiniLM vectors of the shared
questions, jittered to size (without `MIA_DATA` or the extra `local`: random clusters, and the report says so). In one
run, for each size:

1. batches: memories a second, 500 in a transaction.
2. single writes: durable inserts and durable credits (of four memories each), one commit each, in rounds that alternate
   with the raw rate of the same disk: append the bytes of one such memory to a file, fsync. Medians over the rounds.
   Wanted: at least 0.8 of the raw rate. And eight threads that insert at once; wanted: at least 3 times one.
3. a fresh process opens the store and recalls: seconds until the first recall has returned (wanted: at most 2 at
   100,000), the median of a thousand more (wanted: 1 ms at 10,000 and 3 ms at 100,000), resident memory without an
   embedder (wanted: at most 600 MB at 100,000). A recall is the whole of it: refresh, pool, score, selection, the full
   records, the texts for the agents.
4. recall@10 of the search against the exact order (wanted: at least 0.99).
5. a list scanned in Python, as the reference does it: append to a list, cosine to each entry, min-max, sort.

Then MiniLM: texts a second one by one and in batches, and its share of a recall from text to texts. `--random` adds
the curve for uniformly random vectors, which are the worst case and nobody's questions.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy
import psutil

from mia.config import MemorySettings
from mia.embeddings.base import Embedder, Vectors, unit_rows
from mia.errors import MissingExtra
from mia.memory.recalling import Recaller
from mia.store import open_store
from mia.store.base import MemoryVectors
from mia.store.sqlite import SqliteStore
from mia.types import Memory, Outcome, Provenance, Verdict, new_id

SPACE = "benchmark/384"
DIMENSION = 384
BATCH = 500
ROUNDS = 7
WRITES = 300
WRITERS = 8
QUESTION_FILES = ("hotpotqa/questions", "2wiki/questions", "musique/questions", "nq_open/dev")
JITTER = 0.5
"""Length of the noise added to a vector of length 1 before it is made a unit vector again."""
RIGHT = Verdict(outcome=Outcome.CORRECT, judge="benchmark")


# ── vectors ───────────────────────────────────────────────────────────────────────────────────────────────────────


def shared_questions(most: int) -> list[str]:
    folder = os.environ.get("MIA_DATA")
    if not folder:
        return []
    questions: dict[str, None] = {}
    for name in QUESTION_FILES:
        with gzip.open(Path(folder) / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
            questions |= dict.fromkeys(json.loads(line)["question"] for line in lines)
    return list(questions)[:most]


def minilm() -> Embedder | None:
    from mia.config import load_config
    from mia.embeddings import build_embedder

    try:
        return build_embedder("minilm", load_config())
    except MissingExtra:
        return None


def jittered(seeds: Vectors, count: int, generator: numpy.random.Generator) -> Vectors:
    """`count` unit vectors around the seeds."""
    noise = generator.standard_normal((count, DIMENSION)).astype(numpy.float32) * (JITTER / DIMENSION**0.5)
    return unit_rows(seeds[generator.integers(0, len(seeds), count)] + noise)


def random_vectors(count: int, generator: numpy.random.Generator) -> Vectors:
    return unit_rows(generator.standard_normal((count, DIMENSION)).astype(numpy.float32))


# ── a store of N memories ─────────────────────────────────────────────────────────────────────────────────────────


def memory(number: int) -> Memory:
    """About a kilobyte and a half of text, as real workflows have."""
    now = time.time()
    steps = [
        f'{step}. search ("the {step}th thing that question {number} needs" → "Passage {number * step % 997}")'
        for step in range(1, 9)
    ]
    return Memory(
        id=new_id("mem"),
        question=f"Which of the two films that director number {number} made with actor {number % 977} came first?",
        workflow="\n".join([*steps, f'9. answer (what was found → "The film {number}")']),
        plan="1. Find the films of the director.\n2. Find which of them the actor was in.\n3. Compare their years.",
        judgement="correct" if number % 3 else "incorrect",
        provenance=Provenance(episode_id=f"ep-{number:012d}", compressed_by="rules"),
        created_at=now,
        updated_at=now,
    )


def insert(store: SqliteStore, memories: Sequence[Memory], vectors: Vectors) -> None:
    def write(writing: Any) -> None:
        for one, vector in zip(memories, vectors, strict=True):
            writing.insert(one, MemoryVectors(SPACE, vector))

    store.transaction(write)


def fill(path: Path, vectors: Vectors) -> float:
    """Memories a second, in batches."""
    memories = [memory(number) for number in range(len(vectors))]
    with open_store(path) as store:
        begun = time.perf_counter()
        for start in range(0, len(memories), BATCH):
            insert(store, memories[start : start + BATCH], vectors[start : start + BATCH])
        return len(memories) / (time.perf_counter() - begun)


# ── writing ───────────────────────────────────────────────────────────────────────────────────────────────────────


def rate(work: Callable[[int], object], count: int = WRITES) -> float:
    begun = time.perf_counter()
    for number in range(count):
        work(number)
    return count / (time.perf_counter() - begun)


def measure_writes(folder: Path, store: SqliteStore, vectors: Vectors, size: int) -> dict[str, Any]:
    """Rounds of raw appends, inserts, credits and eight writers, one after the other."""
    generator = numpy.random.default_rng(1)
    (sample,) = list(zip([memory(0)], vectors[:1], strict=True))
    record = sample[0].model_dump_json().encode() + sample[1].tobytes()
    raw = os.open(folder / "raw.log", os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_TRUNC, 0o600)
    ids = [one.id for one in store.list_memories(None, limit=size)]
    number = size
    rates: dict[str, list[float]] = {"raw": [], "insert": [], "credit": [], "eight": []}

    def append(_: int) -> None:
        os.write(raw, record)
        os.fsync(raw)

    def fresh(count: int) -> list[Memory]:
        nonlocal number
        number += count
        return [memory(one) for one in range(number - count, number)]

    for round_number in range(ROUNDS):
        rates["raw"].append(rate(append))
        memories = fresh(WRITES)
        rates["insert"].append(
            rate(lambda at, memories=memories: insert(store, memories[at : at + 1], vectors[at % len(vectors)][None]))
        )
        shown = [frozenset(ids[place] for place in generator.integers(0, len(ids), 4)) for _ in range(WRITES)]

        def credit(at: int, shown: list[frozenset[str]] = shown, round_number: int = round_number) -> None:
            group = f"ep-{round_number:06d}{at:06d}"
            store.transaction(lambda writing: writing.credit(("default",), group, shown[at], RIGHT))

        rates["credit"].append(rate(credit))
        rates["eight"].append(eight_writers(store, [fresh(WRITES // 2) for _ in range(WRITERS)], vectors))
    os.close(raw)
    middle = {name: statistics.median(values) for name, values in rates.items()}

    def against_raw(name: str) -> float:
        """Each round against the raw rates before and after it."""
        around = rates["raw"]
        return statistics.median(value / raw for value, raw in zip(rates[name], around, strict=True))

    return {
        "raw_appends_per_second": round(middle["raw"]),
        "inserts_per_second": round(middle["insert"]),
        "inserts_of_raw": round(against_raw("insert"), 2),
        "credits_per_second": round(middle["credit"]),
        "credits_of_raw": round(against_raw("credit"), 2),
        "eight_writers_per_second": round(middle["eight"]),
        "eight_of_one": round(
            statistics.median(many / one for many, one in zip(rates["eight"], rates["insert"], strict=True)), 2
        ),
    }


def eight_writers(store: SqliteStore, shares: Sequence[Sequence[Memory]], vectors: Vectors) -> float:
    def work(share: Sequence[Memory]) -> None:
        for at, one in enumerate(share):
            insert(store, [one], vectors[at % len(vectors)][None])

    threads = [threading.Thread(target=work, args=(share,)) for share in shares]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(map(len, shares)) / (time.perf_counter() - begun)


# ── recalling, in a process of its own ────────────────────────────────────────────────────────────────────────────


def probe(path: Path, queries: Vectors) -> dict[str, Any]:
    """What a fresh process needs."""
    begun = time.perf_counter()
    store = open_store(path)
    # Without a floor: every recall returns the full records of four memories.
    recaller = Recaller(store, MemorySettings(floor=-1))
    first = recaller.recall(MemoryVectors(SPACE, queries[0]))
    opened = time.perf_counter() - begun
    assert first.shown, "a recall that shows nothing measures nothing"
    recaller.settled(timeout=300)
    seconds = []
    for query in queries[1:]:
        begun = time.perf_counter()
        recaller.recall(MemoryVectors(SPACE, query))
        seconds.append(time.perf_counter() - begun)
    resident = psutil.Process().memory_info().rss
    found = [[one.memory.id for one in recaller.search(MemoryVectors(SPACE, query), 10)] for query in queries[:200]]
    recaller.close()
    store.close()
    seconds.sort()
    return {
        "open_and_first_recall_seconds": round(opened, 2),
        "recall_p50_ms": round(1e3 * statistics.median(seconds), 2),
        "recall_p99_ms": round(1e3 * seconds[int(len(seconds) * 0.99)], 2),
        "resident_megabytes": round(resident / 2**20),
        "found": found,
    }


def measure_recall(path: Path, vectors: Vectors, queries: Vectors) -> dict[str, Any]:
    numpy.save(path.with_name("queries.npy"), queries)
    command = [sys.executable, __file__, "--probe", str(path)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    figures: dict[str, Any] = json.loads(result.stdout)
    with open_store(path) as store:
        pages = list(store.export(None))
    ids = [one.id for one, _ in pages]
    stored = numpy.stack([embedded.question for _, embedded in pages])
    hits = []
    for query, found in zip(queries, figures.pop("found"), strict=False):
        exact = {ids[place] for place in numpy.argsort(-(stored @ query))[:10]}
        hits.append(len(exact & set(found)) / 10)
    figures["recall_at_10"] = round(statistics.mean(hits), 4)
    return figures


def scan_a_list(vectors: Vectors, queries: Vectors) -> float:
    """Milliseconds of a recall as the reference does it: every entry in Python, min-max, sort."""
    entries = [
        {"embedding": vector, "judgement": number % 3 > 0, "uses": 1, "wins": 1, "memory": memory(number)}
        for number, vector in enumerate(vectors)
    ]
    seconds = []
    for query in queries[:5]:
        begun = time.perf_counter()
        scored = []
        for entry in entries:
            embedding = entry["embedding"]
            norm = numpy.linalg.norm(embedding) * numpy.linalg.norm(query)
            scored.append([float(numpy.dot(embedding, query) / norm), entry])
        low, high = min(one[0] for one in scored), max(one[0] for one in scored)
        for one in scored:
            similarity = (one[0] - low) / (high - low) if high > low else 1.0
            one.append(0.7 * similarity + 0.3 * one[1]["wins"] / one[1]["uses"])
        scored.sort(key=lambda one: one[2], reverse=True)
        positive = [one for one in scored if one[1]["judgement"]][:2]
        negative = [one for one in scored if not one[1]["judgement"]][:2]
        assert positive
        assert negative
        seconds.append(time.perf_counter() - begun)
    return 1e3 * statistics.median(seconds)


# ── the whole ─────────────────────────────────────────────────────────────────────────────────────────────────────


def measure_embedder(embedder: Embedder, questions: Sequence[str]) -> tuple[dict[str, Any], Vectors]:
    """Texts a second, and the vectors."""
    embedder.embed(questions[:8])
    begun = time.perf_counter()
    for question in questions[:64]:
        embedder.embed([question])
    single = 64 / (time.perf_counter() - begun)
    begun = time.perf_counter()
    vectors = embedder.embed(questions)
    batched = len(questions) / (time.perf_counter() - begun)
    figures = {
        "minilm_one_by_one_per_second": round(single),
        "minilm_batched_per_second": round(batched),
        "minilm_one_ms": round(1e3 / single, 2),
    }
    return figures, vectors


def measure(sizes: Sequence[int], folder: Path, *, uniform: bool, most_questions: int) -> dict[str, Any]:
    generator = numpy.random.default_rng(0)
    questions, embedder = shared_questions(most_questions), minilm()
    report: dict[str, Any] = {"machine": machine(), "sizes": {}}
    if questions and embedder is not None:
        say(f"Embedding {len(questions)} shared questions with MiniLM…")
        figures, seeds = measure_embedder(embedder, questions)
        report |= {"vectors": f"MiniLM of {len(questions)} shared questions, jittered", **figures}
    else:
        seeds = random_vectors(2_000, generator)
        report["vectors"] = "random clusters: no MIA_DATA, or the extra `local` is not installed"
    for size in sizes:
        say(f"{size} memories…")
        report["sizes"][size] = measure_size(folder / str(size), jittered(seeds, size, generator), seeds, generator)
    for size in sizes if uniform else ():
        say(f"{size} memories with uniformly random vectors…")
        vectors = random_vectors(size, generator)
        report.setdefault("uniformly_random", {})[size] = measure_size(
            folder / f"uniform-{size}", vectors, vectors, generator, writes=False
        )
    for figures in report["sizes"].values():
        if "minilm_one_ms" in report:
            whole = report["minilm_one_ms"] + figures["recall_p50_ms"]
            figures["minilm_share_of_a_recall"] = round(report["minilm_one_ms"] / whole, 2)
    return report


def measure_size(
    folder: Path, vectors: Vectors, seeds: Vectors, generator: numpy.random.Generator, *, writes: bool = True
) -> dict[str, Any]:
    folder.mkdir(parents=True)
    path = folder / "memory.db"
    figures: dict[str, Any] = {"batched_inserts_per_second": round(fill(path, vectors))}
    queries = jittered(seeds, 1_001, generator)
    # The first process builds the index and keeps it; the figures are those of the next.
    measure_recall(path, vectors, queries)
    figures |= measure_recall(path, vectors, queries)
    files = [file for file in folder.rglob("*") if file.is_file()]
    figures["bytes_on_disk_per_memory"] = round(sum(file.stat().st_size for file in files) / len(vectors))
    figures["list_scan_ms"] = round(scan_a_list(vectors, queries), 1)
    figures["list_scan_to_ours"] = round(figures["list_scan_ms"] / figures["recall_p50_ms"])
    if writes:
        with open_store(path) as store:
            figures |= measure_writes(folder, store, vectors, len(vectors))
    shutil.rmtree(folder)
    return figures


def machine() -> str:
    return f"{os.cpu_count()} CPUs, {platform.system()} {platform.machine()}, Python {platform.python_version()}"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def print_table(report: dict[str, Any]) -> None:
    sizes = list(report["sizes"])
    print(f"{report['machine']}\nvectors: {report['vectors']}")
    for name, value in report.items():
        if name.startswith("minilm"):
            print(f"{name:36} {value}")
    for title in ("sizes", "uniformly_random"):
        table = report.get(title, {})
        if table:
            print(f"\n{title:36} " + " ".join(f"{size:>10}" for size in sizes))
            for name in next(iter(table.values())):
                print(f"{name:36} " + " ".join(f"{table[size].get(name, ''):>10}" for size in sizes))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--sizes", default="1000,10000,100000", help="with commas between")
    parser.add_argument("--random", action="store_true", help="also uniformly random vectors")
    parser.add_argument("--questions", type=int, default=4_000, help="shared questions to embed")
    parser.add_argument("--folder", type=Path, help="on the disk to measure; a temporary one by default")
    parser.add_argument("--probe", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.probe:
        print(json.dumps(probe(arguments.probe, numpy.load(arguments.probe.with_name("queries.npy")))))
        return
    sizes = [int(size) for size in arguments.sizes.split(",")]
    with tempfile.TemporaryDirectory(prefix="mia-memory-", dir=arguments.folder) as folder:
        report = measure(sizes, Path(folder), uniform=arguments.random, most_questions=arguments.questions)
    if arguments.json:
        print(json.dumps(report, indent=2))
    else:
        print_table(report)


if __name__ == "__main__":
    main()
