"""The vector cache beside a store is damaged in many ways between two processes: the next one recalls the same, and the
cache is made again."""

from __future__ import annotations

import json
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from memory_work import about, fill
from nursery import Nursery

from mia.memory import cache
from mia.store import open_store

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs processes of POSIX")

QUESTIONS = [about("the elder", number).text for number in (3, 700, 2_099)] + ["Who looked at the rain?"]
SIZE = 2_100


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory, shared_nursery: Nursery) -> tuple[Path, list[str]]:
    """A folder with a store and its cache, and what is recalled there."""
    folder = tmp_path_factory.mktemp("kept")
    fill(folder / "memory.db", SIZE)
    truth = shared_nursery.do("warm", path=str(folder / "memory.db"), questions=QUESTIONS)
    assert is_kept(folder / "memory.db")
    return folder, truth


def is_kept(path: Path) -> bool:
    """Whether there is a cache that agrees with the store, and would be used."""
    with open_store(path) as store:
        assert cache.verify(store, "default") == []
        return cache.load(store, "default", store.census("default")) is not None


def files(folder: Path) -> list[Path]:
    """All that have something in them, in a fixed order of their kinds."""
    return sorted((path for path in folder.iterdir() if path.stat().st_size), key=lambda path: path.suffix)


def no_folder(folder: Path) -> None:
    shutil.rmtree(folder)


def nothing_in_the_folder(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def each_without(number: int) -> Callable[[Path], None]:
    return lambda folder: files(folder)[number].unlink()


def each_cut(number: int) -> Callable[[Path], None]:
    def cut(folder: Path) -> None:
        path = files(folder)[number]
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])

    return cut


def each_empty(number: int) -> Callable[[Path], None]:
    return lambda folder: files(folder)[number].write_bytes(b"")


def each_longer(number: int) -> Callable[[Path], None]:
    def lengthen(folder: Path) -> None:
        with files(folder)[number].open("ab") as file:
            file.write(bytes(1_000))

    return lengthen


def one_bit_flipped(seed: int) -> Callable[[Path], None]:
    def flip(folder: Path) -> None:
        drawn = random.Random(seed)
        path = files(folder)[seed % 3]
        content = bytearray(path.read_bytes())
        content[drawn.randrange(len(content))] ^= 1 << drawn.randrange(8)
        path.write_bytes(content)

    return flip


def manifest_of(content: bytes) -> Callable[[Path], None]:
    return lambda folder: next(folder.glob("*.json")).write_bytes(content)


def manifest_with(name: str, value: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        manifest = next(folder.glob("*.json"))
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), name: value}))

    return change


def folders_for_files(folder: Path) -> None:
    for path in files(folder):
        path.unlink()
        path.mkdir()


def exchanged(folder: Path) -> None:
    """The content of one file in the other, and the other way round."""
    one, other = files(folder)[:2]
    one_content, other_content = one.read_bytes(), other.read_bytes()
    one.write_bytes(other_content)
    other.write_bytes(one_content)


def a_link_to_itself(folder: Path) -> None:
    manifest = next(folder.glob("*.json"))
    manifest.unlink()
    manifest.symlink_to(manifest.name)


WAYS: dict[str, Callable[[Path], None]] = {
    "no folder": no_folder,
    "an empty folder": nothing_in_the_folder,
    **{f"file {number} is missing": each_without(number) for number in range(3)},
    **{f"file {number} is cut": each_cut(number) for number in range(3)},
    **{f"file {number} is empty": each_empty(number) for number in range(3)},
    **{f"file {number} is longer": each_longer(number) for number in range(3)},
    **{f"a bit is flipped, {seed}": one_bit_flipped(seed) for seed in range(9)},
    "a manifest of no JSON": manifest_of(b"\xff\xfe{"),
    "a manifest that is a list": manifest_of(b"[]"),
    "a manifest of brackets": manifest_of(b"[" * 100_000),
    "an empty object": manifest_of(b"{}"),
    "another format": manifest_with("format", 999),
    "a later revision": manifest_with("revision", 10**9),
    "an earlier revision": manifest_with("revision", 1),
    "no rows": manifest_with("count", 0),
    "folders in place of files": folders_for_files,
    "contents exchanged": exchanged,
    "a link to itself": a_link_to_itself,
}


@pytest.mark.parametrize("way", WAYS)
def test_a_damaged_cache_is_noticed_and_made_again(
    nursery: Nursery, kept: tuple[Path, list[str]], tmp_path: Path, way: str
) -> None:
    folder, truth = kept
    home = tmp_path / "home"
    shutil.copytree(folder, home)
    WAYS[way](home / "memory.db.cache")
    path = home / "memory.db"
    assert not is_kept(path)
    assert nursery.do("warm", path=str(path), questions=QUESTIONS) == truth
    # Where folders lie in the way, nothing can be written.
    assert is_kept(path) or way == "folders in place of files"


def test_a_file_in_place_of_the_folder_costs_only_time(
    nursery: Nursery, kept: tuple[Path, list[str]], tmp_path: Path
) -> None:
    folder, truth = kept
    shutil.copy(folder / "memory.db", tmp_path)
    (tmp_path / "memory.db.cache").write_text("in the way")
    assert nursery.do("warm", path=str(tmp_path / "memory.db"), questions=QUESTIONS) == truth
    assert not is_kept(tmp_path / "memory.db")


def test_the_cache_of_another_store_is_not_taken(
    nursery: Nursery, kept: tuple[Path, list[str]], tmp_path: Path
) -> None:
    """Same scope, same size, same embedder; other memories."""
    folder, truth = kept
    path = tmp_path / "memory.db"
    fill(path, SIZE)
    shutil.copytree(folder / "memory.db.cache", tmp_path / "memory.db.cache")
    recalled = nursery.do("warm", path=str(path), questions=QUESTIONS)
    assert recalled != truth
    no_folder(tmp_path / "memory.db.cache")
    assert nursery.do("warm", path=str(path), questions=QUESTIONS) == recalled


def test_a_store_put_back_from_a_copy_does_not_take_the_cache_of_its_other_life(
    nursery: Nursery, tmp_path: Path
) -> None:
    """A copy of the file is put back, and then other memories come, more than were lost: their numbers are those of
    the lost ones."""
    path = tmp_path / "memory.db"
    fill(path, SIZE)
    shutil.copy(path, tmp_path / "copy.db")
    nursery.do("remember_many", path=str(path), name="the lost", size=100)
    nursery.do("warm", path=str(path), questions=QUESTIONS)
    assert is_kept(path)
    shutil.copy(tmp_path / "copy.db", path)
    nursery.do("remember_many", path=str(path), name="the later", size=200)
    question = about("the later", 7).text
    (recalled,) = nursery.do("warm", path=str(path), questions=[question])
    shutil.rmtree(tmp_path / "memory.db.cache")
    assert nursery.do("warm", path=str(path), questions=[question]) == [recalled]


def test_a_cache_that_is_behind_is_brought_up_to_date(
    nursery: Nursery, kept: tuple[Path, list[str]], tmp_path: Path
) -> None:
    """Too little has changed for the cache to be written anew: what is new, forgotten and credited is seen all the
    same."""
    folder, _ = kept
    home = tmp_path / "home"
    shutil.copytree(folder, home)
    path = home / "memory.db"
    nursery.do("remember_many", path=str(path), name="the later", size=100)
    nursery.do("forget_some", path=str(path), step=40)
    questions = [*QUESTIONS, about("the later", 7).text]
    recalled = nursery.do("warm", path=str(path), questions=questions)
    assert is_kept(path)
    no_folder(home / "memory.db.cache")
    assert nursery.do("warm", path=str(path), questions=questions) == recalled
