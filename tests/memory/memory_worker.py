"""A process of its own on a store, for tests: `python memory_worker.py PATH`.

It remembers a question while another connection holds the file, breaks it off, closes, and prints "closed" and whether
the remembering was cancelled.
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


if __name__ == "__main__":
    asyncio.run(cancel(Path(sys.argv[1])))
