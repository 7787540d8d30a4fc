"""What the workers of a nursery do on a memory; each function is one work, and what it says goes to stdout by lines.

A line is written by one call of the system, after whatever it tells of has returned: so it arrives whole or not at all,
also from a worker that is killed.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import count
from pathlib import Path

import numpy
from memory.past import episode

from mia.cli import main
from mia.config import MemorySettings
from mia.embeddings.base import Embedder, Vectors
from mia.embeddings.hashing import HashingEmbedder
from mia.errors import ModelUnavailable, RecordError, StoreError
from mia.memory import cache
from mia.memory.manager import MemoryManager
from mia.models.ledger import Ledger
from mia.store import open_store
from mia.store.base import MemoryVectors, Writing
from mia.types import Memory, Outcome, Question, Verdict, new_id

RIGHT = Verdict(outcome=Outcome.CORRECT, judge="story")
WRONG = Verdict(outcome=Outcome.INCORRECT, judge="story")
SETTINGS = MemorySettings(k_positive=3, k_negative=3, floor=0.1)
TRIO = 3
"""Memories that a small credit counts at once."""


def say(*words: object) -> None:
    os.write(sys.stdout.fileno(), f"{' '.join(map(str, words))}\n".encode())


def hear() -> Iterator[str]:
    """The lines of stdin as they come."""
    for line in sys.stdin:
        yield line.removesuffix("\n")


def manager(path: Path | str, embedder: Embedder | None = None) -> MemoryManager:
    return MemoryManager(open_store(Path(path)), embedder or HashingEmbedder(), SETTINGS)


def about(name: str, number: int) -> Question:
    """A question of its own words."""
    return Question.of(f"What did {name} write on page p{number} of the diary?")


def fill(path: Path, size: int, embedder: Embedder | None = None) -> list[str]:
    """Put memories about the elder into a store, at once; their ids."""
    embedder = embedder or HashingEmbedder()
    memories = [
        Memory(
            id=new_id("mem"),
            question=about("the elder", number).text,
            workflow=f"1. open the diary (page p{number} → a line about the {number % 7}th day)",
            judgement="incorrect" if number % 2 else "correct",
            created_at=number,
            updated_at=number,
        )
        for number in range(size)
    ]
    rows = embedder.embed([memory.question for memory in memories])
    with open_store(path) as store:
        store.transaction(
            lambda writing: [
                writing.insert(memory, MemoryVectors(embedder.space, row))
                for memory, row in zip(memories, rows, strict=True)
            ]
        )
    return [memory.id for memory in memories]


def trio(group: str, old: list[str]) -> list[str]:
    """The memories that a credit of this group counts: three of the old ones, or all."""
    kind, _, number = group.rpartition("/")
    start = int(number) * TRIO % (len(old) - TRIO)
    return old if kind.endswith("all") else old[start : start + TRIO]


def together(works: Sequence[Callable[[], object]]) -> None:
    """Each work in a thread of its own. One that raises ends the process."""

    def do(work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException:  # noqa: BLE001 - it is told, and shows in the exit status
            traceback.print_exc()
            os._exit(1)

    threads = [threading.Thread(target=do, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def for_ever(work: Callable[[int], object]) -> Callable[[], None]:
    """The work again and again, with a number that counts."""

    def repeat() -> None:
        for number in count():
            work(number)

    return repeat


def cli(*, arguments: Sequence[str], settings: Mapping[str, str] | None = None) -> None:
    """The program itself: `mia …`, with settings of the environment."""
    os.environ.update({"MIA_MEMORY__EMBEDDER": "hashing", **(settings or {})})
    sys.argv = ["mia", *arguments]
    main.main()


# ── kill -9 ───────────────────────────────────────────────────────────────────────────────────────────────────────


def write_flat_out(path: str, name: str, old: str) -> None:
    """Threads that remember, add, credit and keep the vector cache, and say each thing that has returned, until
    somebody kills the process. `old`: a file with the ids of the memories to credit."""
    memory = manager(path)
    elders = Path(old).read_text().split()

    def remember(thread: str) -> Callable[[int], None]:
        def work(number: int) -> None:
            question = about(f"{name}{thread}", number)
            (one,) = asyncio.run(memory.remember([episode(question=question)], Ledger(question.id)))
            say("remembered", one.id, one.provenance.episode_id)

        return work

    def add(number: int) -> None:
        one = memory.add(about(f"{name}add", number).text, f"1. open the diary (page {number} → a line)", "correct")
        say("added", one.id)

    def credit(number: int) -> None:
        group = f"{name}/trio/{number}"
        for verdict in (WRONG, RIGHT):
            asyncio.run(memory.credit(group, frozenset(trio(group, elders)), verdict))
            say("credited", group, int(verdict.correct))

    def keep(number: int) -> None:
        """A credit for all changes enough for the cache to be written when the memory is closed."""
        group = f"{name}/all/{number}"
        asyncio.run(memory.credit(group, frozenset(elders), RIGHT))
        say("credited", group, 1)
        beside = manager(path)
        asyncio.run(beside.recall(about("nobody", 0)))
        say("saving", number)
        beside.close_now()
        say("saved", number)

    together([for_ever(work) for work in (remember("one"), remember("two"), add, credit, keep)])


def keep_list() -> None:
    """Hold what others say until nobody is left to say anything, then say it all at once."""
    heard = sys.stdin.read()
    sys.stdout.write(heard)


# ── many at once ──────────────────────────────────────────────────────────────────────────────────────────────────


def ring(path: str, name: str, common: str, rounds: int) -> None:
    """One of a ring of processes, each of which talks to the next one: in each round remember a question, credit the
    common memory, and hand the new one on; look at once for what was handed to us. Every third that comes to us is
    forgotten here, and the next in the ring must not find it. Raises AssertionError."""
    memory = manager(path)
    heard = hear()

    async def shown(question: str) -> list[str]:
        return [one.memory_id for one in (await memory.recall(Question.of(question))).shown]

    async def live() -> None:
        for number in range(rounds):
            question = about(name, number)
            (new,) = await memory.remember([episode(question=question)], Ledger(question.id))
            # Only now, when `remember` has returned, anybody hears of it.
            say("new", new.id, question.text)
            await memory.credit(f"{name}/{number}", frozenset([common]), RIGHT if number % 2 else WRONG)
            what, id, text = next(heard).split(" ", 2)
            assert what == "new"
            assert id in await shown(text), f"{name} does not see {id}"
            if number % 3 == 0:
                assert memory.forget([id]) == (id,)
            say("gone" if number % 3 == 0 else "here", id, text)
            what, id, text = next(heard).split(" ", 2)
            assert (id in await shown(text)) == (what == "here"), f"{name} is wrong about {id}, which is {what}"

    asyncio.run(live())
    memory.close_now()


def same_questions(path: str, rounds: int) -> None:
    """Remember the same questions as everybody else; say what is in sight for each."""
    memory = manager(path)
    for number in range(rounds):
        question = about("everybody", number)
        for one in asyncio.run(memory.remember([episode(question=question)], Ledger(question.id))):
            say(one.id)
    memory.close_now()


def follow(path: str) -> None:
    """Recall each question that comes, and say the ids of what is shown."""
    memory = manager(path)
    for line in hear():
        say(*(one.memory_id for one in asyncio.run(memory.recall(Question.of(line))).shown))


# ── disks and caches ──────────────────────────────────────────────────────────────────────────────────────────────


def warm(path: str, questions: Sequence[str], limit: int = 0) -> None:
    """Recall, and say all of it that does not depend on the clock; on closing, the cache may be written. `limit`: no
    file may grow beyond so many bytes."""
    memory = manager(path)
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    for question in questions:
        recall = asyncio.run(memory.recall(Question.of(question)))
        listed = [f"{one.memory_id}:{one.score:.6f}:{one.passed_over}" for one in (*recall.shown, *recall.passed_over)]
        say(recall.considered, *listed)
    memory.close_now()


def write_until_refused(path: str, limit: int = 0) -> None:
    """Threads write until the disk takes no more, and say so; when they are told that there is room again, each does
    what it was refused, and one thing more. `limit`: as in `warm`."""
    memory = manager(path)
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    left: list[Callable[[], None]] = []

    def remember(question: Question, plan: str) -> None:
        finished = episode(question=question, plan=plan)
        (one,) = asyncio.run(memory.remember([finished], Ledger(question.id)))
        say("done", one.id)

    def add(question: Question, plan: str) -> None:
        one = memory.add(question.text, f"1. open the diary (its page → a line about the rain)\n{plan}", "correct")
        say("done", one.id)

    def write(do: Callable[[Question, str], None], name: str) -> Callable[[], None]:
        def work() -> None:
            for number in count():
                piece = partial(do, about(name, number), f"1. Read page {number}. " + "It rains. " * 400)
                try:
                    piece()
                except StoreError as error:
                    say("refused", error.got, "|", error.hint)
                    left.append(piece)
                    left.append(partial(do, about(name, number + 1), "1. Read on."))
                    return

        return work

    together([write(remember, "one"), write(remember, "two"), write(add, "three"), write(add, "four")])
    say("still recalls", asyncio.run(memory.recall(about("one", 0))).considered)
    for line in hear():
        assert line == "there is room"
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        together(left)
    memory.close_now()


def look(path: str) -> None:
    """Say how a store is, and the ids in it."""
    with open_store(Path(path)) as store:
        report = store.check()
        assert report.sound, report.problems
        assert cache.verify(store, "default") == []
        say("kept" if cache.load(store, "default", store.census("default")) else "no cache")
        say(*(memory.id for memory in store.list_memories(None, limit=1_000_000)))


def fill_disk(folder: str, leave: int) -> None:
    """A file that takes all room but so many bytes."""
    ballast = Path(folder, "ballast")
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(65_536)):
            pass
    os.truncate(ballast, max(0, ballast.stat().st_size - leave))


def free_disk(folder: str) -> None:
    Path(folder, "ballast").unlink()


def copy(source: str, target: str) -> None:
    shutil.copyfile(source, target)


def sizes(folder: str) -> None:
    """Say which files are in a folder, and how large each is."""
    for path in Path(folder).iterdir():
        say(path.name, path.stat().st_size)


def remember_many(path: str, name: str, size: int) -> None:
    memory = manager(path)
    groups = [[episode(question=about(name, number))] for number in range(size)]
    assert asyncio.run(memory.remember_many(groups, Ledger(name))) == size
    # Not by the manager, which might keep its cache.
    memory.store.close()


def forget_some(path: str, step: int) -> None:
    """Every so manieth memory."""
    memory = manager(path)
    ids = [one.id for one in memory.list(limit=1_000_000)][::step]
    assert len(memory.forget(ids)) == len(ids)
    memory.store.close()


# ── other embedders ───────────────────────────────────────────────────────────────────────────────────────────────


class OldEmbedder:
    """Another space than that of `HashingEmbedder`: its numbers from the last to the first, and sixteen more."""

    space = "old/1/400"
    dimension = 400

    def __init__(self) -> None:
        self._inner = HashingEmbedder()

    def embed(self, texts: Sequence[str]) -> Vectors:
        return numpy.pad(self._inner.embed(texts)[:, ::-1], ((0, 0), (0, 16)))


class BrokenEmbedder(HashingEmbedder):
    """Gives a number in place of every other vector; or in all places of them."""

    def __init__(self, number: float) -> None:
        self._number = number

    def embed(self, texts: Sequence[str]) -> Vectors:
        rows = super().embed(texts)
        for row, text in zip(rows, texts, strict=True):
            if "broken" in text:
                row[::2] = self._number
                row[1::2] *= self._number if self._number == 0 else 1
        return rows


def use_with_old_embedder(path: str) -> None:
    """As long as the store is in the old space: remember, and recall what was remembered first; say each, and at last
    how it was refused. Raises AssertionError where a memory is not found."""
    first: Question | None = None
    memory = manager(path, OldEmbedder())
    for number in count():
        question = about(f"whoever{os.getpid()}", number)
        try:
            (one,) = asyncio.run(memory.remember([episode(question=question)], Ledger(question.id)))
            say("remembered", one.id)
            first = first or question
            recall = asyncio.run(memory.recall(first))
        except StoreError as error:
            say("refused", str(error).replace("\n", " "))
            return
        assert first.text in [shown.question for shown in recall.shown], recall
        say("recalled", recall.considered)
        time.sleep(0.01)


def reembed(path: str) -> None:
    """As `mia memory reembed --embedder hashing`, and say how far it is."""
    with open_store(Path(path)) as store:
        store.reembed(HashingEmbedder(), lambda state: say(state.done, state.total, state.kept))


# ── shared commits ────────────────────────────────────────────────────────────────────────────────────────────────


def commit_together(path: str, name: str, threads: int) -> None:
    """Threads that hand in work at once, of which a part raises when it has written already: each must get what its own
    work returned or raised. Says what was kept and what was undone, until somebody kills the process."""
    embedder = HashingEmbedder()
    store = open_store(Path(path))
    (vector,) = embedder.embed(["the diary"])

    def insert(writing: Writing, id: str) -> str:
        now = time.time()
        memory = Memory(
            id=id, question=f"What is {id}?", workflow="1. look", judgement="correct", created_at=now, updated_at=now
        )
        writing.insert(memory, MemoryVectors(embedder.space, vector))
        return id

    def insert_and_raise(writing: Writing, id: str) -> str:
        insert(writing, id)
        raise LookupError(id)

    def insert_twice(writing: Writing, id: str) -> str:
        insert(writing, id)
        return insert(writing, id)

    def hand_in(thread: int) -> Callable[[int], None]:
        def work(number: int) -> None:
            id = f"mem-{name}-{thread}-{number}"
            # Not all threads fail at the same time.
            do = (insert, insert, insert_and_raise, insert, insert_twice)[(number + thread) % 5]
            outcome: str | Exception
            try:
                outcome = store.transaction(lambda writing: do(writing, id))
            except (LookupError, RecordError) as error:
                outcome = error
            kind = {insert: str, insert_and_raise: LookupError, insert_twice: RecordError}[do]
            assert type(outcome) is kind, f"{id} got {outcome!r}"
            assert id in str(outcome), f"{id} got {outcome!r}"
            say("kept" if do is insert else "undone", id)

        return work

    together([for_ever(hand_in(thread)) for thread in range(threads)])


# ── late verdicts ─────────────────────────────────────────────────────────────────────────────────────────────────


def judge_late(path: str, episodes: Sequence[str], outcome: str, shown: Sequence[str], slowly: float = 0.0) -> None:
    """Remember each episode anew with this outcome, and credit what it had been shown; say each that is done."""
    memory = manager(path)
    for id in episodes:
        stored = memory.store.load_episode(id)
        verdict = Verdict(outcome=Outcome(outcome), judge="late")
        made = asyncio.run(memory.remember([stored.evolve(verdict=verdict)], Ledger(stored.question.id)))
        asyncio.run(memory.credit(id, frozenset(shown), verdict))
        say(id, *(one.id for one in made))
        time.sleep(slowly)
    memory.store.close()


# ── clocks ────────────────────────────────────────────────────────────────────────────────────────────────────────


class DownEmbedder(HashingEmbedder):
    """Cannot be reached."""

    def embed(self, texts: Sequence[str]) -> Vectors:
        raise ModelUnavailable("the embedder is down")


def _set_clock(now: float) -> None:
    """For the whole process: it goes on from there."""
    begun = time.monotonic()
    time.time = lambda: now + time.monotonic() - begun


def credit_at(path: str, now: float, group: str, shown: str) -> None:
    _set_clock(now)
    memory = manager(path)
    assert asyncio.run(memory.credit(group, frozenset([shown]), RIGHT)) == 1
    memory.close_now()


def live_at(path: str, now: float, name: str, size: int) -> None:
    """A process whose clock shows another time. It remembers a few questions, of which the last one waits, since the
    embedder goes down; says the ids, and for each whether it is recalled."""
    _set_clock(now)
    settings = SETTINGS.model_copy(update={"recency_weight": 0.2, "expire_days": 10})
    store = open_store(Path(path))
    memory = MemoryManager(store, HashingEmbedder(), settings)
    for number in range(size):
        question = about(name, number)
        (one,) = asyncio.run(memory.remember([episode(question=question)], Ledger(question.id)))
        recall = asyncio.run(memory.recall(question))
        assert all(0 <= shown.parts["recency"] <= 1 for shown in recall.shown), recall
        say(one.id, one.id in [shown.memory_id for shown in recall.shown], recall.considered)
    down = MemoryManager(store, DownEmbedder(), settings)
    question = about(name, size)
    assert asyncio.run(down.remember([episode(question=question)], Ledger(question.id))) == ()
    memory.close_now()


# ── texts and vectors ─────────────────────────────────────────────────────────────────────────────────────────────


def add_texts(path: str, texts: str, embedder: float | None = None) -> None:
    """Add each text of a JSON file as question and as workflow, or remember it in an episode; say the ids. `embedder`:
    the number that takes the places of other numbers in its vectors."""
    chosen = HashingEmbedder() if embedder is None else BrokenEmbedder(embedder)
    # Some of the texts might be taken for orders.
    memory = MemoryManager(open_store(Path(path)), chosen, SETTINGS.model_copy(update={"quarantine": False}))
    for place, text in enumerate(json.loads(Path(texts).read_text())):
        if place % 2:
            say(memory.add(text, f"1. open the diary (it → {text})", "correct").id)
        else:
            finished = episode(question=Question.of(text), plan=f"1. Read {text}.", answer=text)
            (one,) = asyncio.run(memory.remember([finished], Ledger(finished.question.id)))
            say(one.id)
    memory.close_now()


def recall_texts(path: str, texts: str) -> None:
    """For each text of a JSON file, say the ids of what is shown."""
    memory = manager(path)
    for text in json.loads(Path(texts).read_text()):
        say(*(one.memory_id for one in asyncio.run(memory.recall(Question.of(text))).shown))
    memory.close_now()
