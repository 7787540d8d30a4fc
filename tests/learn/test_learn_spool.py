"""The spool: what is in it is whole, comes back as it was, and has one owner."""

from __future__ import annotations

import contextlib
import gzip
import json
import multiprocessing
import os
import resource
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mia.errors import LearnError, RecordError
from mia.learn.rollouts import Conversation, Dropped, Rollout
from mia.learn.spool import Group, Spool, append_line, load_group, read_group, read_lines, read_rollouts
from mia.types import Answer, Attempt, Episode, Plan, Question, Stop, StopReason, Trace

STOP = Stop(reason=StopReason.ANSWERED, sentence="It answered.")


def group(question_id: str = "q", epoch: int = 0, *, text: str = "Where?", **changes: Any) -> Group:
    question = Question(id=question_id, text=text)
    episodes = tuple(
        Episode(
            id=f"ep-{question_id}-{epoch}-{number}",
            question=question,
            started_at=1.0,
            attempts=(Attempt(plan=Plan(text="1. Look."), trace=Trace(stop=STOP), answer=Answer(text=text)),),
        )
        for number in range(3)
    )
    rollouts = tuple(
        Rollout(
            group=f"{question_id}/{epoch}",
            reward=number / 3,
            conversations=(Conversation((1, 2, 3), (False, True, True), (0.0, -0.1 * number, -1.5)),),
            adapter_version="planner-1-v000001",
            episode_id=episodes[number].id,
            parts={"final": 1.0},
        )
        for number in range(2)
    )
    return Group(
        question_id,
        epoch,
        1,
        episodes,
        rollouts,
        (Dropped("q", "the judge was down"),),
        {"first": 0, "random": 2},
        "planner-1-v000001",
        **changes,
    )


@given(st.text(min_size=1, max_size=40), st.integers(0, 9))
def test_a_group_comes_back_as_it_was(question_id: str, epoch: int) -> None:
    one = group(question_id.encode("utf-8", "replace").decode(), epoch)
    assert load_group(json.loads(json.dumps(one.as_dict()))) == one


def test_a_group_goes_from_answered_to_ready_to_learnt(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    groups = [group(name) for name in ("b", "a", "../c", "d")]
    for one in groups:
        spool.put(one)
    assert spool.answered() == groups
    assert spool.ready() == []
    for one in groups[:3]:
        spool.make_ready(one)
    spool.finish(groups[3])
    spool.finish(groups[3])
    assert spool.answered() == []
    assert [read_group(path) for path in spool.ready()] == groups[:3]
    assert read_rollouts(spool.ready()) == [rollout for one in groups[:3] for rollout in one.rollouts]
    spool.remove(spool.ready()[:2])
    spool.close()

    again = Spool(tmp_path / "spool")
    assert [read_group(path) for path in again.ready()] == [groups[2]]
    again.put(group("e"))
    again.make_ready(group("e"))
    # In the order in which they came, also after a restart.
    assert [read_group(path).question_id for path in again.ready()] == ["../c", "e"]
    assert {path.name for path in tmp_path.iterdir()} == {"spool"}, "an id is no path"
    again.close()


def test_the_groups_learnt_last_are_kept_as_long_as_they_are_wanted(tmp_path: Path) -> None:
    with contextlib.closing(Spool(tmp_path)) as spool:
        for name in "abcd":
            spool.put(group(name))
            spool.make_ready(group(name))
        files = spool.ready()
        spool.retire(files[:3], 2)
        assert [read_group(path).question_id for path in spool.learnt()] == ["b", "c"]
        assert spool.ready() == files[3:]
        spool.retire(files[:3], 2)  # As after a death in the middle.
        assert len(spool.learnt()) == 2
    with contextlib.closing(Spool(tmp_path)) as again:
        again.put(group("e"))
        again.make_ready(group("e"))
        again.retire(again.ready(), 2)
        assert [read_group(path).question_id for path in again.learnt()] == ["d", "e"]
        again.retire([], 0)
        assert not again.learnt()


def test_two_passes_of_one_question_are_two_groups(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    for epoch in range(2):
        spool.put(group("q", epoch))
    spool.make_ready(group("q", 1))
    assert [one.epoch for one in spool.answered()] == [0]
    assert [read_group(path).epoch for path in spool.ready()] == [1]
    spool.close()


def test_it_has_one_owner_at_a_time(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    with pytest.raises(LearnError, match="another process"):
        Spool(tmp_path)
    spool.close()
    Spool(tmp_path).close()


def test_secrets_are_blacked_out_and_odd_texts_survive(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.put(group("q", text="What is ghp_abcdefghijklmnopqrstuvwxyz0123456789AB?"))
    odd = replace(group("r"), dropped=(Dropped("r", "half a pair: \ud800, and \0"),))
    spool.put(odd)
    (path, other) = sorted((tmp_path / "answered").iterdir())
    assert b"ghp_abcdef" not in gzip.decompress(path.read_bytes())
    assert path.stat().st_mode & 0o777 == 0o600
    (first, second) = spool.answered()
    assert "redacted" in first.episode.question.text
    assert second.dropped[0].why == "half a pair: \ufffd, and \0"
    assert read_group(other) == second
    spool.close()


def test_what_nobody_wrote_is_refused_by_name(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.put(group())
    spool.make_ready(group())
    (path,) = spool.ready()
    whole = path.read_bytes()
    for broken in (b"", whole[:-40], gzip.compress(b"[]"), gzip.compress(b'{"format": 9}'), gzip.compress(b"{}")):
        path.write_bytes(broken)
        with pytest.raises(LearnError):
            read_group(path)
        with pytest.raises(LearnError, match=path.name.removesuffix(".json.gz")):
            read_rollouts([path])
    spool.close()


def _fill(folder: Path, limit: int, told: Any) -> None:
    spool = Spool(folder)
    append_line(folder / "lines.jsonl", {"number": 0})
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    refused: list[str] = []
    for work in (
        lambda: spool.put(group("large", text=" ".join(map(str, range(100_000))))),
        lambda: append_line(folder / "lines.jsonl", {"text": "x" * 100_000}),
    ):
        try:
            work()
        except LearnError as error:
            refused.append(error.got)
    told.put((refused, [path.name for path in (folder / "answered").iterdir()]))


def test_a_disk_that_takes_no_more_leaves_nothing_behind(tmp_path: Path) -> None:
    Spool(tmp_path).close()
    context = multiprocessing.get_context("spawn")
    told = context.Queue()
    # A limit on the size of files, which for a process is like a full disk.
    process = context.Process(target=_fill, args=(tmp_path, 1000, told))
    process.start()
    refused, left = told.get(timeout=60)
    process.join()
    assert [text.split("'")[0] for text in refused] == ["cannot write ", "cannot write "]
    assert left == []
    assert read_lines(tmp_path / "lines.jsonl") == [{"number": 0}]


def test_lines_are_whole_whatever_a_death_tore(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    assert read_lines(path) == []
    pages: list[Mapping[str, Any]] = [{"number": number, "text": "ü\ud800\n"} for number in range(3)]
    for page in pages:
        append_line(path, page)
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        before = len(read_lines(path))
        assert before == whole[:cut].count(b"\n")
        append_line(path, {"number": 9})
        assert [one["number"] for one in read_lines(path)] == [*range(before), 9]
    path.write_bytes(b"nothing\n")
    with pytest.raises(RecordError, match="line 1"):
        read_lines(path)


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LearnError, match="cannot open"):
        Spool(tmp_path / "file" / "spool")
    if os.geteuid():  # Root may write everywhere.
        spool = Spool(tmp_path / "spool")
        (tmp_path / "spool" / "answered").chmod(0o500)
        with pytest.raises(LearnError, match="cannot write"):
            spool.put(group())
        spool.close()
