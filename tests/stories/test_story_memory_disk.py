"""The disk is full in the middle of writing: it is said clearly, nothing is half written, and all goes on when there is
room again. A full disk costs the vector cache, and nobody notices.

A disk of a few megabytes is mounted where nobody but the workers of a nursery sees it. Where that is not allowed, the
stories with a quota, a limit on the size of files, remain.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from memory_work import about, fill
from nursery import Nursery, Worker

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs limits of POSIX")

MEGABYTE = 1_000_000
_MOUNT = 'mount -t tmpfs -o size="$0" none "$1" && shift && exec "$@"'


@dataclass(frozen=True)
class Disk:
    """A small disk and those who work on it."""

    folder: Path
    nursery: Nursery

    @property
    def path(self) -> Path:
        return self.folder / "memory.db"

    def leave(self, size: int) -> None:
        self.nursery.do("fill_disk", folder=str(self.folder), leave=size)

    def free(self) -> None:
        self.nursery.do("free_disk", folder=str(self.folder))

    def look(self) -> tuple[str, set[str]]:
        return look(self.nursery, self.path)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """Twelve megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    for allowed in (["unshare", "-m"], ["unshare", "-r", "-m"]):
        command = [*allowed, "sh", "-c", _MOUNT, "12m", str(folder)]
        if (
            shutil.which("unshare")
            and subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0
        ):
            with Nursery(*command) as nursery:
                yield Disk(folder, nursery)
            return
    pytest.skip("no disk may be mounted here")


def look(nursery: Nursery, path: Path) -> tuple[str, set[str]]:
    """Whether there is a cache, and what is in a store that is sound."""
    kept, ids = nursery.do("look", path=str(path))
    return kept, set(ids.split())


def left_behind(nursery: Nursery, path: Path) -> list[str]:
    """The files beside the store that take room."""
    return [one for one in nursery.do("sizes", folder=f"{path}.cache") if not one.endswith(" 0")]


def read_until_refused(writer: Worker) -> tuple[set[str], list[str]]:
    """What was acknowledged, and what the four threads were told in the end."""
    done: set[str] = set()
    refused: list[str] = []
    while not (line := writer.hear()).startswith("still recalls"):
        assert line, writer.stderr.read()
        what, _, rest = line.partition(" ")
        if what == "done":
            done.add(rest)
        else:
            refused.append(rest)
    assert int(line.split()[-1]) == len(done)
    return done, refused


def add_a_long_one() -> tuple[str, ...]:
    """The command that adds a memory of some 20 kB."""
    workflow = "\n".join(f"{number}. look her up in record {number} (it → her)" for number in range(1, 500))
    return ("memory", "add", "--question", "Who was it?", "--workflow", workflow, "--judgement", "correct")


def test_writers_are_told_that_the_disk_is_full_and_go_on_when_there_is_room(disk: Disk) -> None:
    disk.leave(2 * MEGABYTE)
    writer = disk.nursery.start("write_until_refused", path=str(disk.path))
    done, refused = read_until_refused(writer)
    assert len(done) > 20
    assert len(refused) == 4
    assert all("the disk is full" in one and "free some space" in one for one in refused), refused
    # Others are told the same, and read as before. A write-ahead log that was just copied into the database has room
    # for some more on a full disk: they are acknowledged, and there.
    disk.leave(0)
    failed = disk.nursery.mia("--home", disk.folder, *add_a_long_one())
    while failed.code == 0 and len(done) < 1_000:
        done.add(failed.stdout.strip())
        failed = disk.nursery.mia("--home", disk.folder, *add_a_long_one())
    assert failed.code == 1
    assert "disk" in failed.stderr
    assert "Traceback" not in failed.stderr
    listed = disk.nursery.mia("--home", disk.folder, "memory", "list", "-k", 1000)
    assert (listed.code, len(listed.stdout.splitlines())) == (0, len(done)), listed.stderr
    disk.free()
    writer.say("there is room")
    later = {line.removeprefix("done ") for line in writer.finish()}
    assert len(later) == 8
    assert disk.look()[1] == done | later


def test_writers_under_a_quota_are_told_and_go_on_when_it_is_lifted(nursery: Nursery, tmp_path: Path) -> None:
    path = tmp_path / "memory.db"
    writer = nursery.start("write_until_refused", path=str(path), limit=MEGABYTE)
    done, refused = read_until_refused(writer)
    assert len(done) > 20
    assert len(refused) == 4
    assert all("nothing was half written" in one for one in refused), refused
    writer.say("there is room")
    later = {line.removeprefix("done ") for line in writer.finish()}
    assert len(later) == 8
    assert look(nursery, path)[1] == done | later


def test_a_cache_that_does_not_fit_on_the_disk_costs_only_time(disk: Disk, nursery: Nursery, tmp_path: Path) -> None:
    kept = tmp_path / "memory.db"
    ids = set(fill(kept, 2_100))
    questions = [about("the elder", number).text for number in (3, 1_000)]
    truth = nursery.do("warm", path=str(kept), questions=questions)
    disk.nursery.do("copy", source=str(kept), target=str(disk.path))
    disk.leave(MEGABYTE)
    assert disk.nursery.do("warm", path=str(disk.path), questions=questions) == truth
    assert disk.look() == ("no cache", ids)
    assert left_behind(disk.nursery, disk.path) == []
    disk.free()
    assert disk.nursery.do("warm", path=str(disk.path), questions=questions) == truth
    assert disk.look() == ("kept", ids)
    assert disk.nursery.do("warm", path=str(disk.path), questions=questions) == truth


def test_a_cache_beyond_a_quota_costs_only_time(nursery: Nursery, tmp_path: Path) -> None:
    path = tmp_path / "memory.db"
    ids = set(fill(path, 2_100))
    questions = [about("the elder", number).text for number in (3, 1_000)]
    truth = nursery.do("warm", path=str(path), questions=questions, limit=MEGABYTE)
    assert look(nursery, path) == ("no cache", ids)
    assert left_behind(nursery, path) == []
    assert nursery.do("warm", path=str(path), questions=questions) == truth
    assert look(nursery, path) == ("kept", ids)
