"""The memory on real input: all recorded runs of other agents go in, and every question is asked again.

    MIA_DATA=… python benchmarks/memory_trajectories.py [--embedder minilm|hashing] [--score mia|paper]
                                                        [--sweep] [--examples N] [--json]

The input is `trajectories/react_search.jsonl.gz`: 3,724 judged runs of 1,689 questions, several agents, up to twelve
runs of one question. Nothing is tuned on it but what `--sweep` shows. In one go:

1. import: all runs through `import_trajectories`, workflows written by rules: runs a second, the embedder's share,
   what was kept and what was folded into another run of its question, bytes.
2. latency: a recall with the vector given, and from text to texts with an embedder that has not seen the question.
3. own question: every question with at least two runs is asked again. Is a memory of it shown first in its judgement?
4. positives: of all memories shown as positive, how many are of runs that the source file says were right.
5. other questions: every question asked with its own memories skipped, which is how a new question meets the memory.
   How often is anything shown, and what are the positives good for?
6. in order: the runs once more into an empty memory, one at a time as they stand in the file, each recalled for before
   it is remembered, and credited with its recorded verdict. Here "another run of the same question" is an earlier one.
   The agents never saw these memories, so the counts are as uneven as real ones, and prove nothing about help.
7. forms: `mia` against `paper` on the memory of 1 (no counts yet) and on that of 6 (with counts).

What a shown positive is good for is not recorded anywhere, so it is estimated from what the data holds, by words alone.
On the subject: its question or workflow holds

- a name of the asked question that at most 0.5 % of all questions hold, or
- the reference answer of the asked question (no yes or no, not in the question itself, in at most 1 % of the memories),
- or, for the 123 asked questions whose supporting titles are known, one of these.

Of the same form: the two questions have three quarters of their words in the same order once names and numbers are
masked, so that the workflow is a pattern for the new one. Useful is either. A positive drawn at random, judged by the
same rules, says how much of that is chance.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import os
import platform
import random
import re
import statistics
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy

from mia.config import MemorySettings, load_config
from mia.embeddings import build_embedder
from mia.embeddings.base import Embedder, Vectors
from mia.memory.exchange import import_trajectories
from mia.memory.manager import MemoryManager
from mia.memory.opened import OpenMemory
from mia.memory.recalling import Recaller
from mia.models.ledger import Ledger
from mia.store import open_store
from mia.store.base import MemoryStore, MemoryVectors
from mia.types import Episode, Memory, MemoryState, Recall, RecalledMemory

RUNS = Path("trajectories") / "react_search.jsonl.gz"
TITLED = ("hotpotqa", "2wiki", "musique")
"""Sets whose questions come with supporting titles."""
FLOORS = (-1.0, 0.2, 0.3, 0.4, 0.5, 0.6)
BANDS = (-1.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.01)
"""Edges of the similarities that shown positives are sorted into."""
RARE_NAME = 0.005
RARE_ANSWER = 0.01
SAME_FORM = 0.75

Row = dict[str, Any]


# ── input ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def read(file: Path) -> list[Row]:
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


class Known:
    """An embedder that computes every text once, and knows how long that took."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self._vectors: dict[str, Vectors] = {}
        self.seconds = 0.0

    @property
    def space(self) -> str:
        return self._embedder.space

    @property
    def dimension(self) -> int:
        return self._embedder.dimension

    def embed(self, texts: Sequence[str]) -> Vectors:
        new = [text for text in dict.fromkeys(texts) if text not in self._vectors]
        if new:
            begun = time.perf_counter()
            self._vectors |= zip(new, self._embedder.embed(new), strict=True)
            self.seconds += time.perf_counter() - begun
        return numpy.stack([self._vectors[text] for text in texts])


@contextmanager
def opened(path: Path, embedder: Embedder, **settings: Any) -> Iterator[OpenMemory]:
    with OpenMemory(MemoryManager(open_store(path), embedder, MemorySettings(**settings))) as memory:
        yield memory


def positives(recall: Recall) -> list[RecalledMemory]:
    return [one for one in recall.shown if one.judgement == "correct"]


@dataclass(frozen=True)
class Past:
    """The runs of the file by question, and the memories that were made of them."""

    runs: dict[str, list[Row]]
    """By the text of the question."""
    memories: dict[str, Memory]
    """By id."""
    own: dict[str, frozenset[str]]
    """Ids of the memories of a question, by its text."""
    row_of: dict[str, Row]
    """The row of the file that an episode was read from, by the episode's id."""
    episodes: list[Episode]
    """In the order of the file."""


def by_question(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """In the order of the file; some questions differ by a space at the end only."""
    runs: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        runs[row["question"].strip()].append(row)
    return dict(runs)


def look_back(store: MemoryStore, rows: Sequence[Row]) -> Past:
    runs = by_question(rows)
    kept: dict[str, list[Episode]] = defaultdict(list)
    for episode in reversed(store.list_episodes(limit=2 * len(rows))):
        kept[episode.question.text].append(episode)
    row_of, places = {}, {}
    place_of = {row["id"]: place for place, row in enumerate(rows)}
    for question, theirs in runs.items():
        # The runs of a question are kept in the order of the file.
        for row, episode in zip(theirs, kept[question], strict=True):
            assert (row["final"] or "").strip() == (episode.answer.text if episode.answer else ""), row["id"]
            row_of[episode.id] = row
            places[place_of[row["id"]]] = episode
    memories = {memory.id: memory for memory, _ in store.export(None) if memory.state is MemoryState.ACTIVE}
    own: dict[str, set[str]] = {question: set() for question in runs}
    for memory in memories.values():
        own[memory.question].add(memory.id)
    return Past(
        runs=runs,
        memories=memories,
        own={question: frozenset(ids) for question, ids in own.items()},
        row_of=row_of,
        episodes=[places[place] for place in range(len(rows))],
    )


# ── 1 and 2: import, latency ──────────────────────────────────────────────────────────────────────────────────────


def measure_import(path: Path, embedder: Known, file: Path) -> Row:
    before = embedder.seconds
    with opened(path, embedder) as memory:
        begun = time.perf_counter()
        report = asyncio.run(import_trajectories(memory.manager, file, format="react"))
        seconds = time.perf_counter() - begun
        kept = memory.store.statistics(None)
        records = [
            (len(record.model_dump_json().encode()), vectors.question.nbytes)
            for record, vectors in memory.store.export(None)
        ]
    database = path.stat().st_size
    memories = sum(kept.states.values())
    return {
        "seconds": seconds,
        "runs_per_second": (report.episodes + report.known) / seconds,
        "embedding_share": (embedder.seconds - before) / seconds,
        "episodes": report.episodes,
        "refused": len(report.refused),
        "memories": dict(kept.states),
        "judgements": dict(kept.judgements),
        "folded_into_another_run": report.episodes - memories,
        "database_bytes": database,
        "database_bytes_per_run": database / report.episodes,
        "record_bytes_per_memory": statistics.fmean(record for record, _ in records),
        "vector_bytes_per_memory": statistics.fmean(vector for _, vector in records),
    }


def measure_latency(path: Path, embedder: Known, fresh: Embedder, past: Past, settings: Row) -> Row:
    questions = list(past.runs)
    vectors = [MemoryVectors(embedder.space, vector) for vector in embedder.embed(questions)]
    with open_store(path) as store:
        recaller = Recaller(store, MemorySettings(**settings))
        recaller.recall(vectors[0])
        given = times(recaller.recall, vectors)
        recaller.close()
    with opened(path, fresh, frozen=True, **settings) as memory:
        memory.recall("Is this the text that loads the model?")
        whole = times(memory.recall, questions)
    return {"recalls": len(questions), "vector_given_ms": quantiles(given), "end_to_end_ms": quantiles(whole)}


def times(work: Callable[[Any], object], inputs: Iterable[Any]) -> list[float]:
    seconds = []
    for one in inputs:
        begun = time.perf_counter()
        work(one)
        seconds.append(time.perf_counter() - begun)
    return seconds


def quantiles(seconds: Sequence[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    return {"p50": 1e3 * statistics.median(ordered), "p99": 1e3 * ordered[int(0.99 * len(ordered))]}


# ── 3 and 4: the same question again ──────────────────────────────────────────────────────────────────────────────


def measure_own(path: Path, embedder: Known, past: Past, settings: Row) -> Row:
    repeated = first = both = first_both = 0
    memories = in_first_place = 0
    shown = right = 0
    sums_hold = True
    with opened(path, embedder, frozen=True, **settings) as memory:
        for question, runs in past.runs.items():
            recall = memory.recall(question)
            for one in positives(recall):
                shown += 1
                right += past.row_of[past.memories[one.memory_id].provenance.episode_id]["correct"]
            for one in recall.shown:
                total = sum(weight * one.parts[name] for name, weight in recall.weights.items())
                sums_hold &= abs(total - one.score) < 1e-9
            if len(runs) < 2:
                continue
            wanted = past.own[question]
            found = wanted & leaders(recall)
            repeated += 1
            first += bool(found)
            both += len(wanted) > 1
            first_both += len(wanted) > 1 and found == wanted
            memories += len(wanted)
            in_first_place += len(found)
    return {
        "questions_with_several_runs": repeated,
        "found_first": first / repeated,
        "memories_of_these": memories,
        "first_in_their_judgement": in_first_place / memories,
        "questions_with_both_judgements": both,
        "both_first": first_both / both,
        "positives_shown": shown,
        "positives_of_right_runs": right / shown,
        "parts_sum_to_the_score": sums_hold,
    }


def leaders(recall: Recall) -> frozenset[str]:
    """The first that is shown of each judgement."""
    first: dict[str, str] = {}
    for one in recall.shown:
        first.setdefault(one.judgement, one.memory_id)
    return frozenset(first.values())


# ── 5: other questions ────────────────────────────────────────────────────────────────────────────────────────────

_WORD = re.compile(r"\w+")
_NAME = re.compile(r"(?<!\w)[A-Z0-9][\w'’&-]*(?:[ .,]{1,2}[A-Z0-9][\w'’&-]*)*")
_ASKING = frozenset(
    _WORD.findall(
        "what which who whose whom when where why how is are was were do does did has have had in on at of for the a an"
        " and or by from with to between if both name"
    )
)


def words(text: str) -> str:
    """Lower-case words between single spaces, one before and one after, so that whole words can be looked for."""
    return f" {' '.join(_WORD.findall(text.casefold()))} "


def names(question: str) -> set[str]:
    """Runs of capitalised words and numbers, without the words that questions begin with."""
    found = set()
    for run in _NAME.findall(question):
        own = words(run).split()
        while own and own[0] in _ASKING:
            own = own[1:]
        if own and len(" ".join(own)) > 2:
            found.add(f" {' '.join(own)} ")
    return found


def form(question: str) -> list[str]:
    """The words of a question, its names and numbers masked."""
    first = question[:1].lower() + question[1:]
    return re.findall(r"\w+|_", _NAME.sub("_", first).casefold())


class Usefulness:
    """Estimates what a memory is good for when a question is asked."""

    def __init__(self, past: Past, memories: Mapping[str, Memory], data: Path) -> None:
        self._texts = {id: words(f"{one.question} {one.workflow}") for id, one in memories.items()}
        self._forms = {question: form(question) for question in past.runs}
        self._questions = {id: one.question for id, one in memories.items()}
        asked = [words(question) for question in past.runs]
        most = RARE_NAME * len(asked)
        self._names = {
            question: {name for name in names(question) if sum(name in other for other in asked) <= most}
            for question in past.runs
        }
        self._answers = {question: self._answer(question, runs) for question, runs in past.runs.items()}
        titles = {
            row["question"].strip(): {words(title.partition(" (")[0]) for title in row["supporting_titles"]}
            for name in TITLED
            for row in read(data / name / "questions.jsonl.gz")
        }
        self.titles = {question: titles[question] for question in past.runs if question in titles}

    def _answer(self, question: str, runs: Sequence[Row]) -> str:
        """The reference answer, if finding it in a text says anything."""
        answer = words(str(runs[0]["gold"] or ""))
        if len(answer.strip()) < 3 or answer.strip() in ("yes", "no", "none") or answer in words(question):
            return ""
        held = sum(answer in text for text in self._texts.values())
        return answer if held <= RARE_ANSWER * len(self._texts) else ""

    def kinds(self, question: str, memory_id: str) -> list[str]:
        """ "shown", and what else is true of showing it."""
        text = self._texts[memory_id]
        said = {
            "name": any(name in text for name in self._names[question]),
            "answer": bool(self._answers[question]) and self._answers[question] in text,
            "title": any(title in text for title in self.titles.get(question, ())),
            "form": self._alike(question, self._questions[memory_id]),
        }
        said["subject"] = said["name"] or said["answer"] or said["title"]
        said["useful"] = said["subject"] or said["form"]
        return ["shown", *(kind for kind, holds in said.items() if holds)]

    def _alike(self, question: str, other: str) -> bool:
        matcher = SequenceMatcher(a=self._forms[question], b=self._forms[other], autojunk=False)
        return matcher.quick_ratio() >= SAME_FORM and matcher.ratio() >= SAME_FORM


def measure_others(memory: OpenMemory, past: Past, usefulness: Usefulness) -> Row:
    """Every question with its own memories skipped."""
    anything = any_positive = any_useful = 0
    counted, titled = Counter[str](), Counter[str]()
    for question in past.runs:
        recall = memory.recall(question, skip=past.own[question])
        anything += bool(recall.shown)
        any_positive += bool(positives(recall))
        before = counted["useful"]
        for one in positives(recall):
            held = usefulness.kinds(question, one.memory_id)
            counted.update(held)
            if question in usefulness.titles:
                titled.update(held)
        any_useful += counted["useful"] > before
    return {
        "recalls": len(past.runs),
        "show_anything": anything / len(past.runs),
        "show_a_positive": any_positive / len(past.runs),
        "show_a_useful_positive": any_useful / len(past.runs),
        **shares(counted),
        "of_questions_with_titles": shares(titled),
    }


def by_similarity(memory: OpenMemory, past: Past, usefulness: Usefulness) -> Row:
    """The same without a floor: what positives are good for, by how similar they are."""
    bands: dict[str, Counter[str]] = {f"{low:.1f}": Counter() for low in BANDS[:-1]}
    for question in past.runs:
        for one in positives(memory.recall(question, skip=past.own[question])):
            low = next(low for low, high in pairwise(BANDS) if low <= one.parts["similarity"] < high)
            bands[f"{low:.1f}"].update(usefulness.kinds(question, one.memory_id))
    return {low: shares(counts) for low, counts in bands.items() if counts}


def by_chance(past: Past, usefulness: Usefulness) -> Row:
    """Two positives of other questions, drawn at random for each."""
    dice = random.Random(7)
    good = [one for one in past.memories.values() if one.judgement == "correct"]
    counted: Counter[str] = Counter()
    titled: Counter[str] = Counter()
    for question in past.runs:
        for one in dice.sample([memory for memory in dice.sample(good, 10) if memory.question != question], 2):
            held = usefulness.kinds(question, one.id)
            counted.update(held)
            if question in usefulness.titles:
                titled.update(held)
    return {**shares(counted), "of_questions_with_titles": shares(titled)}


def shares(counts: Counter[str]) -> Row:
    kinds = ("useful", "subject", "form", "name", "answer", "title")
    shown = counts["shown"]
    return {"positives": shown, **{kind: counts[kind] / shown if shown else None for kind in kinds}}


def examples(memory: OpenMemory, past: Past, usefulness: Usefulness, low: float, high: float, most: int) -> list[str]:
    """Positives shown at similarities from `low` to `high`, drawn at random from those of all questions."""
    found = []
    for question in past.runs:
        for one in positives(memory.recall(question, skip=past.own[question])):
            if low <= one.parts["similarity"] < high:
                _, *held = usefulness.kinds(question, one.memory_id)
                found.append(f"{one.parts['similarity']:.2f} {question} ← {one.question} {', '.join(held)}")
    return random.Random(7).sample(found, min(most, len(found)))


# ── 6 and 7: in order, and the two forms ──────────────────────────────────────────────────────────────────────────


def measure_in_order(path: Path, embedder: Known, past: Past, settings: Row) -> Row:
    repeated = first = among = anything_new = new = credited = 0
    missed: list[Row] = []

    async def relive(manager: MemoryManager) -> None:
        nonlocal repeated, first, among, anything_new, new, credited
        seen: set[str] = set()
        for episode in past.episodes:
            question = episode.question.text
            recall = await manager.recall(episode.question)
            if question in seen:
                repeated += 1
                found_first = any(one.question == question for one in recall.shown if one.memory_id in leaders(recall))
                first += found_first
                among += any(one.question == question for one in recall.shown)
                if not found_first:
                    theirs = [one for one in (*recall.shown, *recall.passed_over) if one.question == question]
                    missed.append(
                        {
                            "asked": question,
                            "shown": list(map(told, recall.shown)),
                            "own": [f"{told(one)} ({one.passed_over or 'shown'})" for one in theirs],
                        }
                    )
            else:
                new += 1
                anything_new += bool(recall.shown)
            seen.add(question)
            await manager.remember_many([[episode]], Ledger(episode.question.id), origin="import")
            shown = frozenset(one.memory_id for one in recall.shown)
            assert episode.verdict is not None
            credited += await manager.credit(episode.id, shown, episode.verdict)

    with opened(path, embedder, **settings) as memory:
        begun = time.perf_counter()
        asyncio.run(relive(memory.manager))
        seconds = time.perf_counter() - begun
        kept = memory.store.statistics(None)
    return {
        "seconds": seconds,
        "runs": len(past.episodes),
        "memories": dict(kept.states),
        "judgements": dict(kept.judgements),
        "runs_with_an_earlier_one": repeated,
        "earlier_run_found_first": first / repeated,
        "earlier_run_shown": among / repeated,
        "not_first": missed,
        "new_questions": new,
        "new_questions_shown_anything": anything_new / new,
        "credits": credited,
        "uses": kept.uses,
        "wins": kept.wins,
    }


def compare_forms(path: Path, embedder: Known, past: Past, data: Path) -> Row:
    """Every question, its own memories skipped, by both forms over the same memory: the positives that are shown."""
    differ: Counter[str] = Counter()
    worth: dict[str, Counter[str]] = {"mia": Counter(), "paper": Counter()}
    similarity: dict[str, list[float]] = {"mia": [], "paper": []}
    own_first: Counter[str] = Counter()
    found: list[Row] = []
    with (
        opened(path, embedder, frozen=True, score="mia") as ours,
        opened(path, embedder, frozen=True, score="paper") as theirs,
    ):
        memories = {one.id: one for one, _ in ours.store.export(None) if one.state is MemoryState.ACTIVE}
        usefulness = Usefulness(past, memories, data)
        own: dict[str, frozenset[str]] = defaultdict(frozenset)
        for id, kept in memories.items():
            own[kept.question] |= {id}
        for question in past.runs:
            shown = {}
            for name, memory in (("mia", ours), ("paper", theirs)):
                shown[name] = positives(memory.recall(question, skip=own[question]))
                similarity[name] += [one.parts["similarity"] for one in shown[name]]
                for one in shown[name]:
                    worth[name].update(usefulness.kinds(question, one.memory_id))
                own_first[name] += own[question] <= leaders(memory.recall(question))
            mia, paper = ({one.memory_id for one in shown[name]} for name in ("mia", "paper"))
            differ["same" if mia == paper else "only fewer" if mia < paper else "another choice"] += 1
            if not mia <= paper:
                found.append({"asked": question} | {name: list(map(told, those)) for name, those in shown.items()})
    floor = MemorySettings().floor
    return {
        "recalls": len(past.runs),
        "positives_shown_by_mia_against_paper": {name: count / len(past.runs) for name, count in differ.items()},
        "paper_below_our_floor": statistics.fmean(one < floor for one in similarity["paper"]),
        "own_memories_first": {name: count / len(past.runs) for name, count in own_first.items()},
        "mean_similarity": {name: statistics.fmean(values) for name, values in similarity.items()},
        "what_they_are_good_for": {name: shares(counts) for name, counts in worth.items()},
        "examples": random.Random(7).sample(found, min(5, len(found))),
    }


def told(one: RecalledMemory) -> str:
    worth = one.parts.get("value", one.parts.get("win_rate", 0.0))
    return f"{one.parts['similarity']:.2f}, value {worth:.2f}: {one.question}"


# ── the whole ─────────────────────────────────────────────────────────────────────────────────────────────────────


def measure(arguments: argparse.Namespace, data: Path, folder: Path) -> Row:
    rows, settings = read(data / RUNS), {"score": arguments.score}
    config = load_config()
    embedder = Known(build_embedder(arguments.embedder, config))
    embedder.embed(["Is this the text that loads the model?"])
    path = folder / "imported.db"
    page: Row = {
        "machine": machine(),
        "embedder": embedder.space,
        "score": arguments.score,
        "runs": len(rows),
        "questions": len(by_question(rows)),
    }
    say("Importing…")
    page["import"] = measure_import(path, embedder, data / RUNS)
    with open_store(path) as store:
        past = look_back(store, rows)
    page["without_a_search"] = {
        "memories": sum("\n" not in one.workflow for one in past.memories.values()),
        "positives": sum("\n" not in one.workflow and one.judgement == "correct" for one in past.memories.values()),
        "though_another_right_run_searched": sum(bool(overlooked(one, past)) for one in past.memories.values()),
    }
    say("Asking every question again…")
    page["latency"] = measure_latency(path, embedder, build_embedder(arguments.embedder, config), past, settings)
    page["own_question"] = measure_own(path, embedder, past, settings)
    say("Asking every question without its own memories…")
    usefulness = Usefulness(past, past.memories, data)
    with opened(path, embedder, frozen=True, **settings) as memory:
        page["other_questions"] = measure_others(memory, past, usefulness)
    with opened(path, embedder, frozen=True, floor=-1) as memory:
        page["by_similarity"] = by_similarity(memory, past, usefulness)
    page["by_chance"] = by_chance(past, usefulness)
    say("Living through all runs in order…")
    page["in_order"] = measure_in_order(folder / "in_order.db", embedder, past, settings)
    say("Comparing the two forms…")
    page["forms_without_counts"] = compare_forms(path, embedder, past, data)
    page["forms_with_counts"] = compare_forms(folder / "in_order.db", embedder, past, data)
    if arguments.sweep:
        page["sweep"] = {}
        for floor in FLOORS:
            say(f"Floor {floor}…")
            with opened(path, embedder, frozen=True, floor=floor) as memory:
                page["sweep"][str(floor)] = measure_others(memory, past, usefulness)
    if arguments.examples:
        with opened(path, embedder, frozen=True, floor=-1) as memory:
            page["examples"] = {
                f"{low:.1f} to {high:.1f}": examples(memory, past, usefulness, low, high, arguments.examples)
                for low, high in pairwise(BANDS)
            }
    return page


def overlooked(memory: Memory, past: Past) -> list[Row]:
    """Right runs that searched, of the question of a positive memory that holds no search."""
    if memory.judgement != "correct" or "\n" in memory.workflow:
        return []
    return [
        row
        for row in past.runs[memory.question]
        if row["correct"] and any(step.get("tool") == "search" for step in row["steps"])
    ]


def machine() -> str:
    return f"{os.cpu_count()} CPUs, {platform.system()} {platform.machine()}, Python {platform.python_version()}"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def show(page: Row, indent: str = "") -> None:
    for name, value in page.items():
        if isinstance(value, dict):
            print(f"{indent}{name}")
            show(value, indent + "  ")
        elif isinstance(value, list):
            print(f"{indent}{name}")
            for one in value:
                print(f"{indent}  - {one}")
        else:
            print(f"{indent}{name:32} {round(value, 4) if isinstance(value, float) else value}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--embedder", choices=("minilm", "hashing"), default="minilm")
    parser.add_argument("--score", choices=("mia", "paper"), default="mia")
    parser.add_argument("--sweep", action="store_true", help="other floors")
    parser.add_argument("--examples", type=int, default=0, metavar="N", help="positives shown, N of each similarity")
    arguments = parser.parse_args()
    if not os.environ.get("MIA_DATA"):
        print("Error: MIA_DATA is not set.\n  Wanted: the folder of the recorded runs.", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="mia-trajectories-") as folder:
        page = measure(arguments, Path(os.environ["MIA_DATA"]), Path(folder))
    if arguments.json:
        print(json.dumps(page, indent=2))
    else:
        show(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
