"""A process of its own on a store, for tests: `python memory_worker.py PATH ORDER NAME COUNT [MEMORY]`.

write   remember COUNT questions and credit MEMORY for each; print each memory's id once it is acknowledged, or an
        empty line where another's memory was kept.
cancel  remember a question while another connection holds the file, break it off, close, and print "closed".
follow  keep one manager open; for each line on stdin, recall that question and print the ids shown.
"""

from __future__ import annotations

import asyncio
import sqlite3
import sys
from collections.abc import Sequence
from pathlib import Path

from past import episode

from mia.config import MemorySettings
from mia.embeddings.base import Vectors
from mia.embeddings.hashing import HashingEmbedder
from mia.memory.manager import MemoryManager
from mia.models.ledger import Ledger
from mia.store import open_store
from mia.types import Outcome, Question, Verdict


def manager(path: Path) -> MemoryManager:
    return MemoryManager(open_store(path), HashingEmbedder(), MemorySettings(k_positive=3, floor=0.1))


async def write(memory: MemoryManager, name: str, count: int, credited: str) -> None:
    for number in range(count):
        question = Question.of(f"What did {name} find on page {number} of the book?")
        stored = await memory.remember([episode(question=question)], Ledger(question.id))
        if credited:
            outcome = Outcome.CORRECT if number % 2 else Outcome.INCORRECT
            verdict = Verdict(outcome=outcome, judge="test")
            await memory.credit(f"{name}/{number}", frozenset([credited]), verdict)
        print(*(one.id for one in stored), flush=True)


async def cancel(path: Path) -> None:
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    held = asyncio.Event()
    loop = asyncio.get_running_loop()

    class Holder(HashingEmbedder):
        """Another process takes the file between the raw save and the memory."""

        def embed(self, texts: Sequence[str]) -> Vectors:
            other.execute("BEGIN IMMEDIATE")
            loop.call_soon_threadsafe(held.set)
            return super().embed(texts)

    memory = MemoryManager(open_store(path), Holder(), MemorySettings())
    remembering = asyncio.create_task(memory.remember([episode()], Ledger("q")))
    await held.wait()
    await asyncio.sleep(0.1)
    remembering.cancel()
    closing = asyncio.create_task(memory.close())
    await asyncio.sleep(0.1)
    other.execute("ROLLBACK")
    other.close()
    await closing
    print("closed", remembering.cancelled())


async def follow(memory: MemoryManager) -> None:
    # The reading blocks the loop, which has nothing else to do.
    for line in sys.stdin:
        recall = await memory.recall(Question.of(line))
        print(*(shown.memory_id for shown in recall.shown), flush=True)


if __name__ == "__main__":
    path, order, name, count, *credited = sys.argv[1:]
    if order == "cancel":
        asyncio.run(cancel(Path(path)))
        sys.exit()
    memory = manager(Path(path))
    if order == "write":
        asyncio.run(write(memory, name, int(count), credited[0] if credited else ""))
    else:
        asyncio.run(follow(memory))
    asyncio.run(memory.close())
