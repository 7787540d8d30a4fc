"""Sixteen threads hand in work at once, and some of it fails: each is told what became of its own; what failed leaves
no trace, though it shared a commit with what did not; and a kill in the middle changes nothing of that."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest
from nursery import Nursery

from mia.store import open_store

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs signals of POSIX")

THREADS = 16
KILLS = 5


def test_each_is_told_its_own_outcome_and_a_kill_undoes_no_answer(nursery: Nursery, tmp_path: Path) -> None:
    path = tmp_path / "memory.db"
    moments = random.Random(16)
    kept: set[str] = set()
    undone: set[str] = set()
    for life in range(KILLS):
        worker = nursery.start("commit_together", path=str(path), name=f"l{life}", threads=THREADS)
        told = [worker.hear() for _ in range(moments.randrange(60, 300))]
        worker.kill()
        # It was we who ended it, and not an outcome that was another's.
        assert worker.wait() == -9, worker.stderr.read()
        for line in [*told, *worker.stdout.read().splitlines()]:
            what, id = line.split(" ")
            (kept if what == "kept" else undone).add(id)
        with open_store(path) as store:
            held = {memory.id for memory in store.list_memories(None, limit=1_000_000)}
            assert kept <= held
            assert not undone & held
            # Besides what was told, each thread may have had one piece in the last commit.
            assert len(held) <= len(kept) + THREADS * (life + 1)
            assert sorted(change.memory_id for change in store.audit(limit=1_000_000)) == sorted(held)
            assert store.check().sound
    assert len(kept) > 100
    assert len(undone) > 50
