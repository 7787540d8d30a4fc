"""Somebody else's years of work become our memory in one go: 3,724 recorded runs of other agents are imported.

The file holds up to twelve judged runs of a question, right and wrong ones, each with the reference answer beside it.
Every run must be accounted for, no reference answer may come along, and every question must find its own past first.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import re
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mia.config import MemorySettings
from mia.embeddings.hashing import HashingEmbedder
from mia.memory.exchange import Imported, import_trajectories
from mia.memory.manager import MemoryManager
from mia.memory.opened import OpenMemory
from mia.store import open_store
from mia.types import Episode, Memory, MemoryState

DATA = os.environ.get("MIA_DATA", "")
pytestmark = pytest.mark.skipif(not DATA, reason="MIA_DATA does not name the shared data")

RUNS = Path(DATA) / "trajectories" / "react_search.jsonl.gz"
QUESTIONS = 1_689
"""Two of the 1,691 texts are others with a space at the end."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Story:
    """What was read, and what became of it."""

    rows: list[Row]
    imported: Imported
    seconds: float
    memory: OpenMemory
    folder: Path
    row_of: dict[str, Row]
    """The row that an episode was read from, by the episode's id."""
    episodes: dict[str, Episode]
    """By the id of the row."""
    memories: list[Memory]
    """In whatever state."""

    @property
    def by_question(self) -> dict[str, list[Row]]:
        return by_question(self.rows)


def by_question(rows: list[Row]) -> dict[str, list[Row]]:
    runs: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        runs[row["question"].strip()].append(row)
    return dict(runs)


def fresh_memory(folder: Path) -> OpenMemory:
    return OpenMemory(MemoryManager(open_store(folder / "memory.db"), HashingEmbedder(), MemorySettings()))


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    with gzip.open(RUNS, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    folder = tmp_path_factory.mktemp("trajectories")
    with fresh_memory(folder) as memory:
        begun = time.perf_counter()
        imported = asyncio.run(import_trajectories(memory.manager, RUNS, format="react"))
        seconds = time.perf_counter() - begun
        pairs = matched(rows, memory)
        yield Story(
            rows=rows,
            imported=imported,
            seconds=seconds,
            memory=memory,
            folder=folder,
            row_of={episode.id: row for row, episode in pairs},
            episodes={row["id"]: episode for row, episode in pairs},
            memories=[one for one, _ in memory.store.export(None)],
        )


def matched(rows: list[Row], memory: OpenMemory) -> list[tuple[Row, Episode]]:
    """Rows and episodes of a question are in the same order; what the agent did says whether they belong together."""
    kept: dict[str, list[Episode]] = defaultdict(list)
    for episode in reversed(memory.store.list_episodes(limit=2 * len(rows))):
        kept[episode.question.text].append(episode)
    pairs = [
        (row, episode)
        for question, runs in by_question(rows).items()
        for row, episode in zip(runs, kept.pop(question), strict=True)
    ]
    assert not kept
    for row, episode in pairs:
        called = [value for step in episode.steps if step.tool_call for value in step.tool_call.arguments.values()]
        assert [one[0] if isinstance(one, list) else one for one in called] == inputs(row), row["id"]
        assert (episode.answer.text if episode.answer else "") == (row["final"] or "").strip(), row["id"]
    return pairs


def inputs(row: Row) -> list[str]:
    """What the agent asked its tools, until it finished."""
    asked = []
    for step in row["steps"]:
        if step.get("tool") == "finish":
            break
        if step.get("tool") is not None and step.get("tool_input") is not None:
            asked.append(step.get("tool_input"))
    return asked


def worth(episode: Episode) -> tuple[bool, int]:
    """The smaller, the better: a guess after a search, then the longer after the shorter."""
    return not any(step.tool_call is not None for step in episode.steps), len(episode.steps)


def test_every_run_is_a_memory_or_was_folded_into_one_of_its_question(story: Story) -> None:
    assert story.seconds < 60
    assert len(story.rows) == story.imported.episodes == len(story.row_of) == 3_724
    assert not story.imported.refused
    assert story.imported.known == story.imported.unjudged == story.imported.waiting == story.imported.quarantined == 0
    assert len(story.by_question) == QUESTIONS

    assert {one.state for one in story.memories} == {MemoryState.ACTIVE}
    memory_of = {one.provenance.episode_id: one for one in story.memories}
    assert len(memory_of) == len(story.memories) == story.imported.added
    assert memory_of.keys() <= story.row_of.keys()
    fates: Counter[str] = Counter()
    for runs in story.by_question.values():
        for correct in (True, False):
            alike = [row for row in runs if row["correct"] is correct]
            kept = [row for row in alike if story.episodes[row["id"]].id in memory_of]
            # The shortest right one that searched, or the first wrong one, stands for all.
            assert len(kept) == bool(alike)
            for row in alike:
                if row in kept:
                    fates["memory"] += 1
                elif correct:
                    fates["folded into a shorter right one, or the first of that length"] += 1
                    ours, theirs = (worth(story.episodes[one["id"]]) for one in (kept[0], row))
                    assert (*ours, alike.index(kept[0])) < (*theirs, alike.index(row))
                else:
                    fates["folded into the first wrong one"] += 1
                    assert kept[0] is alike[0]
    assert fates["memory"] == len(story.memories) == 1_990
    assert sum(fates.values()) == 3_724


def test_a_positive_memory_comes_from_a_run_that_the_file_calls_right(story: Story) -> None:
    for one in story.memories:
        row = story.row_of[one.provenance.episode_id]
        assert (one.judgement == "correct") is row["correct"]
        assert one.question == row["question"].strip()
        answer = " ".join((row["final"] or "").split())
        assert one.workflow.endswith(f'→ "{answer}")' if 0 < len(answer.split()) <= 30 else ")"), one.workflow
    assert Counter(one.judgement for one in story.memories) == {"correct": 1_112, "incorrect": 878}


def test_no_reference_answer_is_stored_but_what_the_agent_wrote_itself(story: Story) -> None:
    looked_for = 0
    of_episode = {one.provenance.episode_id: one for one in story.memories}
    for row in story.rows:
        gold, episode = plain(str(row["gold"] or "")), story.episodes[row["id"]]
        written = [
            row["question"],
            row["final"],
            *(step.get(key) for step in row["steps"] for key in ("thought", "action")),
        ]
        # What follows the finish never reached the agent: there the old environment told it how it went.
        read = [step.get("observation") for step in row["steps"] if step.get("tool") != "finish"]
        if row["correct"] or not gold.strip() or any(gold in plain(text or "") for text in (*written, *read)):
            continue
        looked_for += 1
        assert gold not in plain(" ".join(texts(episode.model_dump(mode="json")))), row["id"]
        memory = of_episode.get(episode.id)
        assert memory is None or gold not in plain(" ".join(texts(memory.model_dump(mode="json")))), row["id"]
    assert looked_for > 500


def test_other_reference_answers_and_reflections_give_the_same_memory(story: Story, tmp_path: Path) -> None:
    """The same file with other references: nothing of them is in any file, and every memory says the same."""
    planted = [
        {
            **row,
            "gold": f"planted-reference-{number}",
            "reflections": [f"planted-reflection-{number}"],
            "outcome": f"planted-outcome-{number}",
            "steps": [
                {**step, "observation": f"planted-verdict-{number}"} if step.get("tool") == "finish" else step
                for step in row["steps"]
            ],
        }
        for number, row in enumerate(story.rows)
    ]
    file = tmp_path / "planted.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in planted), encoding="utf-8")
    home = tmp_path / "home"
    home.mkdir()
    with fresh_memory(home) as memory:
        asyncio.run(import_trajectories(memory.manager, file, format="react"))
        there = {told(one) for one, _ in memory.store.export(None)}
        held = [path for path in home.rglob("*") if path.is_file()]
        assert any(path.name == "memory.db" for path in held)
        for path in held:
            assert b"planted-" not in path.read_bytes(), path
    assert there == {told(one) for one in story.memories}


def test_every_question_with_several_runs_finds_its_own_first(story: Story) -> None:
    own: dict[str, set[str]] = defaultdict(set)
    for one in story.memories:
        own[one.question].add(one.id)
    several = [question for question, runs in story.by_question.items() if len(runs) > 1]
    assert len(several) == 1_183
    for number, question in enumerate(several):
        recall = story.memory.recall(question)
        first: dict[str, str] = {}
        for shown in recall.shown:
            first.setdefault(shown.judgement, shown.memory_id)
        assert own[question] <= set(first.values()), question
        if number % 10 == 0:
            # The account of a recall: what is weighed adds up, and what is shown reaches the floor.
            assert recall.weights
            assert recall.considered == len(story.memories)
            for listed in (*recall.shown, *recall.passed_over):
                total = sum(weight * listed.parts[part] for part, weight in recall.weights.items())
                assert listed.score == pytest.approx(total, abs=1e-9)
                assert listed.passed_over or listed.parts["similarity"] >= MemorySettings().floor
            assert f"Question: {question}\n" in recall.for_planner


def test_the_same_file_again_changes_nothing(story: Story) -> None:
    changes = story.memory.store.statistics(None).changes
    again = asyncio.run(import_trajectories(story.memory.manager, RUNS, format="react"))
    assert again == Imported(known=3_724)
    assert [one for one, _ in story.memory.store.export(None)] == story.memories
    assert story.memory.store.statistics(None).changes == changes


def plain(text: str) -> str:
    """Its words between single spaces, so that whole words are looked for."""
    words = re.findall(r"\w+", text.casefold())
    return f" {' '.join(words)} "


def texts(value: Any) -> Iterator[str]:
    """Every text in a record; the names of its fields are ours."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from texts(one)
    elif isinstance(value, list):
        for one in value:
            yield from texts(one)


def told(memory: Memory) -> tuple[str, str, str]:
    return memory.question, memory.judgement, memory.workflow
