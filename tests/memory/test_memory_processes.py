"""A process that is broken off while another one holds the file. Kills, many processes at once and full disks are told
in `stories/test_story_memory_*.py`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import memory_worker

from mia.store import open_store


def test_a_remember_that_is_broken_off_while_it_waits_does_not_keep_the_memory_from_closing(tmp_path: Path) -> None:
    path = tmp_path / "memory.db"
    command = [sys.executable, memory_worker.__file__, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    assert done.stdout == "closed True\n"
    with open_store(path) as store:
        # What waited for the file went through when it was free.
        (memory,) = store.list_memories(None, limit=9)
        assert store.absorbed([memory.provenance.episode_id])
        assert store.check().sound
