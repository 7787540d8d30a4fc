"""The log of a run: what append returned for is on the disk, whatever comes after."""

from __future__ import annotations

import asyncio
import fcntl
import resource
import signal
from pathlib import Path

import pytest

from mia.errors import RecordError, StoreError
from mia.evals.log import EpisodeLog, read_episodes, rewrite
from mia.redaction import Redactor
from mia.types import Answer, Episode, Question


def episode(number: int) -> Episode:
    return Episode(id=f"ep-{number}", question=Question.of(f"question {number} ☂"), started_at=0.0)


async def test_many_appends_at_once_are_all_kept_and_read_back(tmp_path: Path) -> None:
    log = EpisodeLog.open(tmp_path / "episodes.jsonl")
    await asyncio.gather(*(log.append(episode(number)) for number in range(50)))
    await log.close()
    assert {kept.id for kept in read_episodes(log.path)} == {f"ep-{number}" for number in range(50)}


@pytest.mark.parametrize("torn", ['{"version": 1, "id": "ep', "x" * 200_000])
async def test_a_torn_last_line_is_cut_away(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "episodes.jsonl"
    log = EpisodeLog.open(path)
    await log.append(episode(1))
    await log.close()
    with path.open("a") as file:
        file.write(torn)
    log = EpisodeLog.open(path)
    await log.append(episode(2))
    await log.close()
    assert [kept.id for kept in read_episodes(path)] == ["ep-1", "ep-2"]


async def test_a_broken_line_in_the_middle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "episodes.jsonl"
    path.write_text(episode(1).model_dump_json() + "\n{}\n")
    with pytest.raises(RecordError, match="line 2"):
        list(read_episodes(path))


async def test_two_writers_are_refused(tmp_path: Path) -> None:
    log = EpisodeLog.open(tmp_path / "episodes.jsonl")
    with pytest.raises(StoreError, match="another process"):
        EpisodeLog.open(tmp_path / "episodes.jsonl")
    await log.close()
    await EpisodeLog.open(tmp_path / "episodes.jsonl").close()


async def test_a_full_disk_is_said_and_leaves_no_half_line(tmp_path: Path) -> None:
    log = EpisodeLog.open(tmp_path / "episodes.jsonl")
    await log.append(episode(1))
    size = log.path.stat().st_size
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 40, old[1]))
    try:
        with pytest.raises(StoreError, match="--resume"):
            await log.append(episode(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert log.path.stat().st_size == size
    await log.append(episode(3))
    await log.close()
    assert [kept.id for kept in read_episodes(log.path)] == ["ep-1", "ep-3"]


async def test_a_whole_last_line_that_lacks_only_its_line_break_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "episodes.jsonl"
    path.write_text(episode(1).model_dump_json())
    log = EpisodeLog.open(path)
    await log.append(episode(2))
    await log.close()
    assert [kept.id for kept in read_episodes(path)] == ["ep-1", "ep-2"]


async def test_half_a_character_in_an_episode_is_replaced_and_the_rest_kept(tmp_path: Path) -> None:
    log = EpisodeLog.open(tmp_path / "episodes.jsonl")
    await log.append(episode(1).evolve(answer=Answer.model_construct(text="half \ud83d of ☂", citations=())))
    await log.close()
    (kept,) = read_episodes(log.path)
    assert kept.answer is not None
    assert kept.answer.text == "half \ufffd of ☂"


async def test_a_secret_is_blacked_out_before_it_is_written(tmp_path: Path) -> None:
    key = "sk-proj-" + "Ab1" * 12
    leaky = episode(1).evolve(answer=Answer(text=f"The key is {key}."))
    log = EpisodeLog.open(tmp_path / "episodes.jsonl")
    await log.append(leaky)
    await log.close()
    (kept,) = read_episodes(log.path)
    assert kept.answer == Answer(text="The key is [redacted: api key].")
    assert (kept.id, kept.question) == (leaky.id, leaky.question)
    off = EpisodeLog.open(tmp_path / "off.jsonl", Redactor("off"))
    await off.append(leaky)
    await off.close()
    assert list(read_episodes(off.path)) == [leaky]


def test_rewriting_keeps_every_byte_of_the_lines_that_stay(tmp_path: Path) -> None:
    path = tmp_path / "episodes.jsonl"
    path.write_bytes(b'{"a":  1}\n\n{"b": 2}\n{"c" : "\\u00e9"}\n')
    path.chmod(0o640)
    assert rewrite(path, lambda line: b"" if b'"b"' in line else line)
    assert path.read_bytes() == b'{"a":  1}\n\n{"c" : "\\u00e9"}\n'
    assert path.stat().st_mode & 0o777 == 0o640
    assert not rewrite(path, lambda line: line)
    assert [entry.name for entry in tmp_path.iterdir()] == ["episodes.jsonl"]


def test_a_log_that_is_being_written_is_not_rewritten(tmp_path: Path) -> None:
    path = tmp_path / "episodes.jsonl"
    log = EpisodeLog.open(path)
    with pytest.raises(StoreError, match="another process"):
        rewrite(path, lambda line: b"")
    log.release()


def test_a_rewriting_for_which_the_disk_has_no_room_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "episodes.jsonl"
    before = b'{"line": 1}\n' * 1_000
    path.write_bytes(before)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_096, old[1]))
    try:
        with pytest.raises(StoreError, match="cannot write"):
            rewrite(path, lambda line: line.replace(b"1", b"2"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["episodes.jsonl"]


async def test_whoever_opened_the_log_before_it_was_rewritten_gets_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else its lines would go into a file that has no name any more."""
    path = tmp_path / "episodes.jsonl"
    path.write_bytes(b'{"old": 1}\n')
    lock = fcntl.flock
    rewritten: list[bool] = []

    def rewritten_between_opening_and_locking(file: object, operation: int) -> None:
        if not rewritten:
            rewritten.append(True)
            rewrite(path, lambda line: b"")
        lock(file, operation)  # type: ignore[arg-type]

    monkeypatch.setattr(fcntl, "flock", rewritten_between_opening_and_locking)
    log = EpisodeLog.open(path)
    await log.append(episode(1))
    await log.close()
    assert [kept.id for kept in read_episodes(path)] == ["ep-1"]
