"""Dialogues as rows of token ids: exactly what the chat template makes of them, in shards that survive a crash."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
from tiny_training import Words

from mia.errors import LearnError
from mia.learn.warmup import lessons
from mia.learn.warmup.dialogues import Dialogue, dialogues
from mia.learn.warmup.tokenizer import END
from mia.world.seeds import TRAIN


@pytest.fixture
def build(tmp_path: Path, words: Words) -> Callable[..., list[Path]]:
    """Build shards of one world in a folder of their own; the number of shards, and what is otherwise."""
    words.save_pretrained(tmp_path / "tokenizer")

    def run(count: int, **others: Any) -> list[Path]:
        given = {"worlds": 1, "seed": 1, "processes": 1, "on_shard": lambda done, total: None} | others
        return lessons.build_shards(tmp_path / "lessons", tmp_path / "tokenizer", count, **given)

    return run


def test_ids_are_those_of_the_chat_template_and_learned_are_the_teachers_words(
    words: Words, taught: list[Dialogue]
) -> None:
    for dialogue in taught:
        ids, learned = lessons.encode(dialogue, words.backend_tokenizer)
        messages = [{"role": turn.message.role, "content": turn.message.content} for turn in dialogue.turns]
        assert ids == words.apply_chat_template(messages, tokenize=True, return_dict=False)
        own = words.decode([id for id, counts in zip(ids, learned, strict=True) if counts])
        assert own == "".join(turn.message.content + END for turn in dialogue.turns if turn.learned)
        # What is learned last ends the turn: so the model will know when to stop.
        assert (words.decode(ids[-1:]), learned[-1]) == (END, True)


def test_a_prompt_for_generation_is_how_the_learned_turn_begins(words: Words, taught: list[Dialogue]) -> None:
    dialogue = taught[0]
    ids, learned = lessons.encode(dialogue, words.backend_tokenizer)
    number = next(number for number, turn in enumerate(dialogue.turns) if turn.learned)
    messages = [{"role": turn.message.role, "content": turn.message.content} for turn in dialogue.turns[:number]]
    prompt = words.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
    assert prompt == ids[: learned.index(True)]


def test_a_shard_holds_the_rows_of_its_worlds_and_no_long_ones(
    build: Callable[..., list[Path]], words: Words, monkeypatch: pytest.MonkeyPatch
) -> None:
    (whole,) = build(1, worlds=2)
    wanted = [
        lessons.encode(one, words.backend_tokenizer)
        for world in lessons.train_worlds(0, 2)
        for one in dialogues(world, 1)
    ]
    rows = list(lessons.load_shard(whole).rows())
    assert [row[0].tolist() for row in rows] == [ids for ids, _ in wanted if len(ids) <= lessons.LONGEST]
    assert [row[1].tolist() for row in rows] == [learned for ids, learned in wanted if len(ids) <= lessons.LONGEST]
    whole.unlink()
    monkeypatch.setattr(lessons, "LONGEST", 100)
    short = list(lessons.load_shard(build(1, worlds=2)[0]).rows())
    assert 0 < len(short) < len(rows)
    assert max(len(ids) for ids, _ in short) <= 100


def test_shards_are_of_different_worlds_and_a_tenth_of_all_is_shifted(build: Callable[..., list[Path]]) -> None:
    first, second = (lessons.load_shard(path) for path in build(2))
    assert first.ids.tolist() != second.ids.tolist()
    worlds = list(lessons.train_worlds(5, 20))
    assert [world.seed for world in worlds] == list(TRAIN[5:25])
    assert [world.seed for world in worlds if world.shifted] == [10, 20]


def test_what_is_there_is_kept_and_what_is_torn_is_built_anew(build: Callable[..., list[Path]]) -> None:
    paths = build(4)
    contents = [path.read_bytes() for path in paths]
    paths[0].write_bytes(contents[0][: len(contents[0]) // 2])  # Cut short.
    paths[1].write_bytes(b"")  # Empty, as after a power cut.
    middle = len(contents[2]) // 2
    paths[2].write_bytes(contents[2][:middle] + b"\0" * 64 + contents[2][middle + 64 :])  # A block that went bad.
    untouched = paths[3].stat().st_mtime_ns
    left_over = paths[0].with_suffix(".123.tmp.npz")
    left_over.write_bytes(b"half")
    told: list[tuple[int, int]] = []
    assert build(4, on_shard=lambda done, total: told.append((done, total))) == paths
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert paths[3].stat().st_mtime_ns == untouched
    assert not left_over.exists()
    for path, content in zip(paths, contents, strict=True):
        with numpy.load(path) as now:
            assert {name: now[name].tobytes() for name in now.files} == parts(content, path.parent)


def parts(content: bytes, folder: Path) -> dict[str, bytes]:
    copy = folder / "copy.npz"
    copy.write_bytes(content)
    with numpy.load(copy) as kept:
        return {name: kept[name].tobytes() for name in kept.files}


def test_a_process_that_is_killed_is_told_of_and_what_was_built_stays(build: Callable[..., list[Path]]) -> None:
    def kill(done: int, total: int) -> None:
        """As a machine short of memory does it."""
        for process in multiprocessing.active_children():
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)

    with pytest.raises(LearnError, match="was killed") as raised:
        build(4, processes=2, on_shard=kill)
    assert "--processes 1" in raised.value.hint
    assert not multiprocessing.active_children()
    told: list[int] = []
    build(4, on_shard=lambda done, total: told.append(done))
    assert told[0] >= 1


@pytest.mark.slow
def test_several_processes_build_what_one_does(build: Callable[..., list[Path]]) -> None:
    alone = [parts(path.read_bytes(), path.parent) for path in build(2)]
    for path in build(2):
        path.unlink()
    told: list[int] = []
    side_by_side = build(2, processes=2, on_shard=lambda done, total: told.append(done))
    assert [parts(path.read_bytes(), path.parent) for path in side_by_side] == alone
    assert told == [0, 1, 2]


@pytest.mark.slow
def test_an_interrupt_does_not_wait_for_what_is_under_way(build: Callable[..., list[Path]]) -> None:
    def interrupt(done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(200, processes=2, on_shard=interrupt)
    assert not multiprocessing.active_children()
    assert len(list(build(1)[0].parent.glob("shard-*.npz"))) < 100
