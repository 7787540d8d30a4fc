"""Pages of the database are overwritten: every command says so and what to type, none shows a traceback, and what can
still be read is saved and taken into a new memory."""

from __future__ import annotations

import json
import random
import re
import shutil
import sys
from pathlib import Path

import pytest
from memory_work import fill
from nursery import Nursery

from mia.store import open_store
from mia.types import Memory

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs processes of POSIX")

SIZE = 400
PAGE = 4_096


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, shared_nursery: Nursery) -> tuple[Path, dict[str, Memory]]:
    """The file of a store with memories made by hand and of episodes, and what is in it."""
    path = tmp_path_factory.mktemp("whole") / "memory.db"
    fill(path, SIZE)
    shared_nursery.do("remember_many", path=str(path), name="the younger", size=100)
    with open_store(path) as store:
        return path, {memory.id: memory for memory in store.list_memories(None, limit=10_000)}


def overwrite(path: Path, seed: int, *, pages: int) -> None:
    """Random bytes in random pages; the first one, without which it is no database, is another story."""
    drawn = random.Random(seed)
    content = bytearray(path.read_bytes())
    for number in drawn.sample(range(1, len(content) // PAGE), pages):
        content[number * PAGE : (number + 1) * PAGE] = drawn.randbytes(PAGE)
    path.write_bytes(content)


COMMANDS = (
    ("memory", "list", "-k", "10000"),
    ("memory", "search", "the diary"),
    ("memory", "stats"),
    ("memory", "audit"),
    ("memory", "check"),
    ("memory", "add", "--question", "Who was it?", "--workflow", "1. look (it → her)", "--judgement", "correct"),
)


@pytest.mark.parametrize(("seed", "pages"), [(1, 1), (2, 3), (3, 20), (4, 90)])
def test_damage_is_said_and_the_rest_is_saved(
    nursery: Nursery, whole: tuple[Path, dict[str, Memory]], tmp_path: Path, seed: int, pages: int
) -> None:
    path, memories = whole
    shutil.copy(path, tmp_path)
    overwrite(tmp_path / "memory.db", seed, pages=pages)
    home = ("--home", tmp_path)
    for command in COMMANDS:
        ended = nursery.mia(*home, *command)
        assert ended.code in (0, 1), (command, ended)
        assert "Traceback" not in ended.stderr, command
        if ended.code:
            assert re.search("damaged", ended.stdout + ended.stderr), (command, ended)
            assert "mia memory check --salvage" in ended.stdout + ended.stderr, (command, ended)
    # Whatever the others happened to read, this one has looked at all of it.
    assert nursery.mia(*home, "memory", "check").code == 1
    rescued = tmp_path / "rescued.jsonl"
    saved = nursery.mia(*home, "memory", "check", "--salvage", rescued)
    assert saved.code == 0, saved.stderr
    found = [json.loads(line) for line in rescued.read_text(encoding="utf-8").splitlines()]
    known = {one["memory"]["id"]: Memory.model_validate(one["memory"]) for one in found if "memory" in one}
    # Nothing is made up, and a page takes only what was on it with it: the narrow rows of a memory stand closest.
    added = [id for id in known if id not in memories]
    assert all(known[id].question == "Who was it?" for id in added)
    assert all(known[id] == memories[id] for id in known if id in memories)
    assert len(known) >= max(0, len(memories) - 30 * pages)
    new = ("--home", tmp_path / "new")
    taken = nursery.mia(*new, "memory", "import", rescued)
    assert taken.code == 0, taken.stderr
    with open_store(tmp_path / "new" / "memory.db") as store:
        assert {one.id for one in store.list_memories(None, limit=10_000)} == set(known)
        assert store.check().sound
    if known:
        assert nursery.mia(*new, "memory", "search", "the diary").stdout


@pytest.mark.parametrize("beginning", [b"", b"SQLite format 3\0", bytes(PAGE)], ids=repr)
def test_a_file_that_begins_otherwise_is_no_memory(
    nursery: Nursery, whole: tuple[Path, dict[str, Memory]], tmp_path: Path, beginning: bytes
) -> None:
    """The first page is gone: a store of which nothing can be asked any more, and everything be saved."""
    path, memories = whole
    content = path.read_bytes()
    drawn = random.Random(7).randbytes(PAGE)
    (tmp_path / "memory.db").write_bytes(beginning + drawn[len(beginning) :] + content[PAGE:])
    home = ("--home", tmp_path)
    for command in COMMANDS:
        ended = nursery.mia(*home, *command)
        assert ended.code == 1, (command, ended)
        assert "Traceback" not in ended.stderr, command
        assert "mia memory check --salvage" in ended.stdout + ended.stderr, (command, ended)
    saved = nursery.mia(*home, "memory", "check", "--salvage", tmp_path / "rescued.jsonl", "--json")
    assert saved.code == 0, saved.stderr
    assert json.loads(saved.stdout)["memories"] == len(memories)


def test_a_file_cut_in_the_middle(nursery: Nursery, whole: tuple[Path, dict[str, Memory]], tmp_path: Path) -> None:
    path, memories = whole
    content = path.read_bytes()
    (tmp_path / "memory.db").write_bytes(content[: len(content) // 2 - 1_000])
    home = ("--home", tmp_path)
    for command in COMMANDS:
        ended = nursery.mia(*home, *command)
        assert ended.code in (0, 1), (command, ended)
        assert "Traceback" not in ended.stderr, command
    assert nursery.mia(*home, "memory", "check").code == 1
    saved = nursery.mia(*home, "memory", "check", "--salvage", tmp_path / "rescued.jsonl", "--json")
    assert saved.code == 0, saved.stderr
    assert len(memories) // 4 < json.loads(saved.stdout)["memories"] < len(memories)
