"""Delete my data: after it, no file under the home or in a run folder holds a word of it, and nothing else is gone."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest

from mia.config import Config, MemorySettings
from mia.embeddings.hashing import HashingEmbedder
from mia.erasure import CAPTIONS, LEARNING, SPOOL, Erasure, erase_everywhere
from mia.errors import StoreError
from mia.evals.log import EpisodeLog, read_episodes
from mia.evals.run import LOG, open_run
from mia.learn.spool import Group, Spool
from mia.memory.manager import MemoryManager
from mia.models.ledger import Ledger
from mia.store import open_store
from mia.store.sqlite import SqliteStore
from mia.types import (
    Answer,
    Attempt,
    Episode,
    Image,
    Observation,
    Outcome,
    Plan,
    Question,
    Recall,
    RecalledMemory,
    Step,
    Stop,
    StopReason,
    Task,
    ToolCall,
    Trace,
    Verdict,
)

PLANTED = "the zanzibar parrot"
"""In the question, plan, search, observation and answer of what is to be erased, and nowhere else."""
OTHER = "the lisbon ferry"
ANN, BOB = "acme/ann", "acme/bob"


def image(content: bytes) -> Image:
    return Image.from_bytes(b"\x89PNG\r\n\x1a\n" + content).without_data()


def episode(id: str, text: str, *, subject: str, run: str = "", shown: str = "", picture: bytes = b"") -> Episode:
    """One judged question about a subject; `shown`: the id of a memory about the parrot."""
    question = Question.of(text, id=f"q-{id}", images=(image(picture),) if picture else ())
    step = Step(
        index=0,
        text=f"I look for {subject}.",
        tool_call=ToolCall(name="search", arguments={"query_list": [subject]}),
        observation=Observation(text=f"A page about {subject}."),
    )
    stop = Stop(reason=StopReason.ANSWERED, sentence="")
    answer = Answer(text=f"It is {subject}.")
    recall = None
    if shown:
        recalled = RecalledMemory(
            memory_id=shown, judgement="correct", question=f"Where is {PLANTED}?", rank=1, score=1.0, parts={}
        )
        recall = Recall(for_planner=f"See {PLANTED}.", for_executor=f"{PLANTED}", shown=(recalled,), considered=1)
    return Episode(
        id=f"ep-{id}",
        question=question,
        run=run,
        started_at=time.time(),
        recall=recall,
        attempts=(
            Attempt(plan=Plan(text=f"1. Find {subject}."), trace=Trace(steps=(step,), stop=stop), answer=answer),
        ),
        answer=answer,
        stop=stop,
        verdict=Verdict(outcome=Outcome.CORRECT, judge="reference"),
    )


class World:
    """A home with a store of two people, the run folder of each, captions, a cache and a backup."""

    def __init__(self, root: Path) -> None:
        self.root, self.home = root, root / "home"
        self.store_path = self.home / "memory.db"
        self.runs = {ANN: root / "runs" / "ann", BOB: root / "runs" / "bob"}
        self.vector = HashingEmbedder().embed([f"Where is {PLANTED}?"])[0].astype("<f4").tobytes()

    def fill(self) -> None:
        asyncio.run(self._fill())
        captions = self.home / CAPTIONS
        captions.mkdir()
        (captions / f"{image(b'ann').sha256}.v1.json").write_text(json.dumps({"caption": PLANTED}))
        (captions / f"{image(b'bob').sha256}.v1.json").write_text(json.dumps({"caption": OTHER}))
        shutil.copy(self.store_path, self.home / "memory.db.v1-backup")
        cache = self.home / "memory.db.cache"
        cache.mkdir(exist_ok=True)
        (cache / "old.vectors").write_bytes(self.vector)

    async def _fill(self) -> None:
        made = await self._live(ANN, [episode("1", f"Where is {PLANTED}?", subject=PLANTED, picture=b"ann")])
        others = [
            episode("2", f"When leaves {OTHER}?", subject=OTHER, picture=b"bob"),
            # As a recall of the level above could have shown it.
            episode("3", "How fast is the tram?", subject="the tram", shown=made),
        ]
        await self._live(BOB, others)
        # A run was killed between the line of an answer and its memory.
        await self._log(ANN, [episode("4", f"Who owns {PLANTED}?", subject=PLANTED)])

    async def _live(self, scope: str, episodes: list[Episode]) -> str:
        """Log and remember; the id of the first memory."""
        await self._log(scope, episodes)
        store = open_store(self.store_path)
        store.register_copy(self.runs[scope])
        manager = MemoryManager(store, HashingEmbedder(), MemorySettings(scope=scope))
        made = [await manager.remember([one], Ledger(one.question.id)) for one in episodes]
        await manager.close()
        return made[0][0].id

    async def _log(self, scope: str, episodes: list[Episode]) -> None:
        folder = self.runs[scope]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "run.json").write_text(json.dumps({"config": {"memory": {"scope": scope}}}))
        log = EpisodeLog.open(folder / LOG)
        for one in episodes:
            await log.append(one)
        await log.close()

    def store(self) -> SqliteStore:
        return open_store(self.store_path, create=False)

    def erase(self, **what: Any) -> Erasure:
        with self.store() as store:
            return erase_everywhere(store, self.home, **what)

    def files_with(self, trace: bytes) -> list[str]:
        """Every file below the root that holds these bytes."""
        files = (path for path in self.root.rglob("*") if path.is_file())
        return sorted(str(path.relative_to(self.root)) for path in files if trace.lower() in path.read_bytes().lower())

    def logged(self, scope: str) -> dict[str, bytes]:
        lines = (self.runs[scope] / LOG).read_bytes().splitlines(keepends=True)
        return {json.loads(line)["id"]: line for line in lines}


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path)
    made.fill()
    return made


def test_after_a_scope_is_erased_no_file_holds_a_word_of_it_and_the_other_is_untouched(world: World) -> None:
    with world.store() as store:
        before = list(store.export(BOB))
    bob, places = world.logged(BOB), world.files_with(PLANTED.encode())
    # It was everywhere: else the search below would prove nothing.
    assert {"runs/ann/episodes.jsonl", "runs/bob/episodes.jsonl", "home/memory.db.v1-backup"} <= set(places)
    assert any("captions" in place for place in places)
    assert {"home/memory.db", "home/memory.db.cache/old.vectors"} <= set(world.files_with(world.vector))

    erasure = world.erase(scope=ANN)

    assert world.files_with(PLANTED.encode()) == []
    assert world.files_with(world.vector) == []
    assert erasure.logged == {"ep-1", "ep-4"}
    assert erasure.blotted == {"ep-3"}
    assert (erasure.captions, erasure.unreached, erasure.missing) == (1, (), ())
    with world.store() as store:
        after = list(store.export(BOB))
        assert store.count_memories(ANN) == 0
    assert [memory for memory, _ in after] == [memory for memory, _ in before]
    for (_, old), (_, new) in zip(before, after, strict=True):
        numpy.testing.assert_array_equal(old.question, new.question)
    assert world.logged(BOB)["ep-2"] == bob["ep-2"]
    assert [kept.id for kept in read_episodes(world.runs[BOB] / LOG)] == ["ep-2", "ep-3"]
    assert any(OTHER in path.read_text() for path in (world.home / CAPTIONS).iterdir())


@pytest.mark.parametrize(
    "what",
    [{"questions": [f"where is {PLANTED.upper()}"]}, {"episode_ids": ["ep-1"]}, {"question_ids": ["q-1"]}],
    ids=["words", "episode", "question"],
)
def test_one_question_goes_and_the_others_of_its_scope_stay(world: World, what: dict[str, Any]) -> None:
    erasure = world.erase(**what)
    assert erasure.logged == {"ep-1"}
    assert set(world.logged(ANN)) == {"ep-4"}
    with world.store() as store:
        assert store.count_memories(ANN) == 0
        assert store.count_memories(BOB) == 2
    assert world.files_with(f"Where is {PLANTED}".encode()) == []


def test_what_a_run_is_still_to_learn_goes_with_it(world: World) -> None:
    for scope, subject in ((ANN, PLANTED), (BOB, OTHER)):
        one = episode("9", f"What eats {subject}?", subject=subject)
        spool = Spool(world.runs[scope] / LEARNING / SPOOL)
        spool.put(Group(one.question.id, 0, 0, (one,)))
        spool.make_ready(Group(one.question.id, 0, 0, (one,)))
        if scope == ANN:
            (busy,) = world.erase(scope=ANN).unreached
            assert "another process is learning" in busy.reason
        spool.close()
    assert world.erase(scope=ANN).unreached == ()
    left = [path.relative_to(world.root).parts[1] for path in world.root.rglob("*.json.gz")]
    assert left == ["bob"]


def test_a_question_whose_run_was_killed_before_it_was_remembered_goes_by_its_words(world: World) -> None:
    erasure = world.erase(questions=[f"Who owns {PLANTED}?"])
    assert erasure.logged == {"ep-4"}
    assert world.files_with(f"owns {PLANTED}".encode()) == []


def test_a_memory_goes_without_its_episode_and_what_others_were_shown_of_it_is_blotted_out(world: World) -> None:
    with world.store() as store:
        (memory,) = store.list_memories(ANN, limit=2)
    erasure = world.erase(memory_ids=[memory.id])
    assert erasure.erased.memories == (memory.id,)
    assert (erasure.logged, erasure.blotted) == (frozenset(), frozenset({"ep-3"}))
    (kept,) = [one for one in read_episodes(world.runs[BOB] / LOG) if one.id == "ep-3"]
    assert kept.recall is not None
    assert {kept.recall.for_planner, kept.recall.for_executor, kept.recall.shown[0].question} == {"[erased]"}
    assert kept.recall.shown[0].memory_id == memory.id


def test_twice_is_once(world: World) -> None:
    world.erase(scope=ANN)
    files = {
        path: path.read_bytes() for path in world.root.rglob("*") if path.is_file() and "memory.db" not in path.name
    }
    again = world.erase(scope=ANN)
    assert (again.erased.memories, again.logged, again.blotted, again.captions) == ((), frozenset(), frozenset(), 0)
    assert all(path.read_bytes() == content for path, content in files.items())


def test_the_run_still_resumes_and_asks_the_erased_question_again(tmp_path: Path) -> None:
    config = Config(home=tmp_path / "home", memory=MemorySettings(scope=ANN))
    tasks = [Task(question=Question.of(text, id=f"q-{id}")) for id, text in (("1", PLANTED), ("2", OTHER))]
    folder = tmp_path / "run"

    async def begin() -> None:
        opened = open_run(folder, tasks, config, resume=False)
        for task in tasks:
            await opened.log.append(episode(task.question.id[2:], task.question.text, subject="x", run=opened.id))
        await opened.log.close()

    asyncio.run(begin())
    with open_store(config.store_path) as store:
        store.register_copy(folder)
        erase_everywhere(store, config.home, question_ids=["q-1"])
    opened = open_run(folder, tasks, config, resume=True)
    opened.log.release()
    assert opened.done == {"q-2"}


def test_what_cannot_be_reached_is_said_and_reached_another_time(world: World) -> None:
    shutil.rmtree(world.runs[BOB])
    busy = EpisodeLog.open(world.runs[ANN] / LOG)
    erasure = world.erase(scope=ANN)
    assert erasure.missing == (world.runs[BOB].resolve(),)
    (trouble,) = erasure.unreached
    assert trouble.place == world.runs[ANN].resolve() / LOG
    assert "another process is writing" in trouble.reason
    assert world.files_with(PLANTED.encode()) == ["runs/ann/episodes.jsonl"]
    busy.release()
    assert world.erase(scope=ANN).logged == {"ep-1", "ep-4"}
    assert world.files_with(PLANTED.encode()) == []


def test_lines_that_are_no_episodes_are_left_and_said(world: World) -> None:
    log = world.runs[BOB] / LOG
    log.write_bytes(b"not json\n[]\n" + log.read_bytes())
    erasure = world.erase(scope=ANN)
    assert [trouble.reason for trouble in erasure.unreached] == [
        "it has lines that are no episodes, which were left as they are"
    ]
    assert log.read_bytes().startswith(b"not json\n[]\n")
    assert erasure.blotted == {"ep-3"}


def test_a_run_that_does_not_say_whose_it_is_gives_only_what_the_store_knew(world: World) -> None:
    (world.runs[ANN] / "run.json").unlink()
    erasure = world.erase(scope=ANN)
    assert erasure.logged == {"ep-1"}
    assert ["run.json does not say" in trouble.reason for trouble in erasure.unreached] == [True]


def test_a_folder_of_captions_that_cannot_be_written_is_said_before_anything_is_erased(world: World) -> None:
    mark = world.home / CAPTIONS / ".erasing"
    mark.symlink_to(world.root / "gone" / "folder")
    with pytest.raises(StoreError, match="nothing was erased"):
        world.erase(scope=ANN)
    with world.store() as store:
        assert store.count_memories(ANN) == 1


def _erase_slowly(root: Path) -> None:
    World(root).erase(scope=ANN)


@pytest.mark.parametrize("moment", range(8))
def test_killed_at_any_moment_the_same_call_finishes_it(world: World, moment: int) -> None:
    process = multiprocessing.get_context("fork").Process(target=_erase_slowly, args=(world.root,))
    process.start()
    time.sleep(0.01 * moment)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    world.erase(scope=ANN)
    assert world.files_with(PLANTED.encode()) == []
    assert world.files_with(world.vector) == []
    assert list(world.logged(BOB)) == ["ep-2", "ep-3"]


def test_a_kill_after_the_store_and_before_the_captions_costs_captions_and_leaves_none_behind(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    with world.store() as store:
        erased = store.erase

        def killed(**what: Any) -> Iterator[None]:
            erased(**what)
            raise KeyboardInterrupt

        monkeypatch.setattr(store, "erase", killed)
        with pytest.raises(KeyboardInterrupt):
            erase_everywhere(store, world.home, scope=ANN)
    assert world.files_with(PLANTED.encode()) != []
    assert world.erase(scope=ANN).captions == 2
    assert world.files_with(PLANTED.encode()) == []
    assert list((world.home / CAPTIONS).iterdir()) == []
