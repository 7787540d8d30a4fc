"""What it brings, and what it costs, to choose memories that together cover the question's words.

    python benchmarks/memory_coverage.py [--embedder minilm|hashing] [--worlds 24] [--json]

1. use: streams of 60 questions in validation worlds, each asked of the memory of those before it. No model runs: a
   memory is the oracle's route, and half of them, drawn by chance, are judged incorrect. Of the relations that a
   question asks for, how many does one of the three positives shown tell the source of? In the second half of the
   stream; means over worlds with their standard errors, the gains over no weight paired by world. `room`: had all that
   reaches the floor been shown.
2. cost: whole recalls over 1,000 and 10,000 memories of 660 characters with the vector given, medians in milliseconds
   with and without the weight, in turns. The vectors are random clusters.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy
from memory_store import SPACE, fill, jittered, random_vectors

from mia.config import MemorySettings, load_config
from mia.embeddings import build_embedder
from mia.embeddings.base import Embedder
from mia.memory.manager import MemoryManager
from mia.memory.questions import Vectorizer
from mia.memory.recalling import Recaller
from mia.store import open_store
from mia.store.base import MemoryStore, MemoryVectors
from mia.types import Recall
from mia.world.facts import World
from mia.world.language import PARAPHRASES, Chain, Outcome, Query, Try, read_workflow, write_question, write_workflow
from mia.world.questions import chains
from mia.world.seeds import VALIDATION

WEIGHTS = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)
QUESTIONS = 60
FLOOR = 0.3


# ── 1: use ────────────────────────────────────────────────────────────────────────────────────────────────────────


def served(store: MemoryStore, recall: Recall, chain: Chain) -> float:
    """The share of the chain's relations that a shown positive tells of."""
    positives = [one.memory_id for one in recall.shown if one.judgement == "correct"]
    told = {
        one.query.step.relation
        for memory in store.memories(positives).values()
        for one in read_workflow(memory.workflow)
    }
    return sum(relation in told for relation in chain.relations) / len(chain.relations)


def tries(world: World, chain: Chain) -> list[Try]:
    """The oracle's route. Whom each step is about does not matter here: it is the source that is to be known."""
    return [Try(Query(step, chain.entity), Outcome("found", chain.entity)) for step in world.oracle(chain)]


def measure_world(seed: int, embedder: Embedder) -> dict[str, float]:
    """Weight → share served in the second half."""
    world, chance = World.make(seed), random.Random(seed)
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder, open_store(Path(folder) / "memory.db") as store:
        manager, vectorizer = MemoryManager(store, embedder, MemorySettings()), Vectorizer(store, embedder)
        recallers = {
            f"{weight:g}": Recaller(
                store, MemorySettings(coverage_weight=weight, floor=FLOOR, k_positive=3, k_negative=1)
            )
            for weight in WEIGHTS
        }
        recallers["room"] = Recaller(store, MemorySettings(floor=FLOOR, k_positive=QUESTIONS, k_negative=0))
        for number, chain in enumerate(islice(chains(world), QUESTIONS)):
            text = write_question(chain, chance.randrange(PARAPHRASES))
            if number >= QUESTIONS // 2:
                vectors = vectorizer.vectors(text)
                for name, recaller in recallers.items():
                    recall = recaller.recall(vectors, question=text)
                    found.setdefault(name, []).append(served(store, recall, chain))
            manager.add(text, write_workflow(tries(world, chain)), chance.choice(("correct", "incorrect")))
    return {name: statistics.fmean(shares) for name, shares in found.items()}


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """The mean over worlds, and its standard error."""
    return statistics.fmean(values), statistics.stdev(values) / len(values) ** 0.5


def measure_use(embedder: Embedder, worlds: int) -> dict[str, Any]:
    by_world = [measure_world(VALIDATION.start + number, embedder) for number in range(worlds)]
    return {
        name: {
            "served": mean_and_error([world[name] for world in by_world]),
            "gain": mean_and_error([world[name] - world["0"] for world in by_world]),
        }
        for name in by_world[0]
    }


# ── 2: cost ───────────────────────────────────────────────────────────────────────────────────────────────────────


def measure_cost(size: int, recalls: int = 400) -> dict[str, float]:
    generator = numpy.random.default_rng(0)
    seeds = random_vectors(1_000, generator)
    seconds: dict[float, list[float]] = {0.0: [], 1.0: []}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "memory.db"
        fill(path, jittered(seeds, size, generator))
        with open_store(path) as store:
            recallers = {
                weight: Recaller(store, MemorySettings(floor=-1, coverage_weight=weight)) for weight in seconds
            }
            for number in range(recalls):
                question = (
                    f"Which of the two films that director number {number} made with actor {number % 977} is old?"
                )
                for weight, recaller in recallers.items():
                    begun = time.perf_counter()
                    recaller.recall(MemoryVectors(SPACE, seeds[number]), question=question)
                    seconds[weight].append(time.perf_counter() - begun)
    return {f"{weight:g}": 1e3 * statistics.median(taken[1:]) for weight, taken in seconds.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--embedder", choices=("minilm", "hashing"), default="hashing")
    parser.add_argument("--worlds", type=int, default=24)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    use = measure_use(build_embedder(options.embedder, load_config()), options.worlds)
    cost = {size: measure_cost(size) for size in (1_000, 10_000)}
    if options.json:
        print(json.dumps({"embedder": options.embedder, "use": use, "recall_milliseconds": cost}, indent=2))
        return
    print(
        f"{options.embedder}, {options.worlds} worlds: share of a question's relations that a shown positive tells of"
    )
    for name, figures in use.items():
        served_by, gain = (
            f"{100 * mean:.1f} ± {100 * error:.1f}" for mean, error in (figures["served"], figures["gain"])
        )
        print(f"  {name:>5}  {served_by}  gain {gain}")
    for size, medians in cost.items():
        print(f"{size:,} memories: {medians['0']:.2f} ms without the weight, {medians['1']:.2f} ms with it")


if __name__ == "__main__":
    main()
