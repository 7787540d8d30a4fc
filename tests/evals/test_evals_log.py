"""The log of a run: what append returned for is on the disk, whatever comes after."""

from __future__ import annotations

import asyncio
import resource
from pathlib import Path

import pytest

from mia.errors import RecordError, StoreError
from mia.evals.log import EpisodeLog, read_episodes
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
