"""`mia memory stats | queue | check | reembed`: what there is, what waits, whether it is sound."""

from __future__ import annotations

import json
import random
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from program import Program

from mia.embeddings.base import Vectors
from mia.embeddings.hashing import HashingEmbedder
from mia.store import open_store
from mia.store.base import Task
from mia.types import (
    Answer,
    Attempt,
    Episode,
    Observation,
    Outcome,
    Question,
    Step,
    Stop,
    StopReason,
    ToolCall,
    Trace,
    Verdict,
)

STORE = Path(".mia/memory.db")


def add(program: Program, question: str, *arguments: str) -> str:
    workflow = f"1. look ({question} → found)"
    return program(
        "memory", "add", "--question", question, "--workflow", workflow, "--judgement", "correct", *arguments
    ).stdout.strip()


def test_figures_of_a_scope_or_of_all(program: Program) -> None:
    program("memory", "forget", add(program, "Who found Io?"))
    add(program, "Who found Titan?")
    add(program, "Who found Rhea?", "--scope", "acme")
    told = program("memory", "stats").stdout
    for line in ("scope         default", "memories      1 active, 1 forgotten", "embedder      hashing/"):
        assert line in told
    assert "shown         never yet" in told
    page = json.loads(program("memory", "stats", "--all-scopes", "--json").stdout)
    assert (page["scope"], page["states"], page["changes"]) == (None, {"active": 2, "forgotten": 1}, 4)


def waiting() -> str:
    """An episode that waits for the embedder."""
    step = Step(
        index=0,
        text="…",
        tool_call=ToolCall(name="search", arguments={"query_list": ["Titan discovery"]}),
        observation=Observation(text="Titan was found by Christiaan Huygens."),
    )
    stop = Stop(reason=StopReason.ANSWERED, sentence="")
    answer = Answer(text="Christiaan Huygens")
    episode = Episode(
        id="ep-1",
        question=Question.of("Who found Titan?"),
        started_at=time.time(),
        attempts=(Attempt(trace=Trace(steps=(step,), stop=stop), answer=answer),),
        answer=answer,
        stop=stop,
        verdict=Verdict(outcome=Outcome.CORRECT, judge="reference"),
    )
    with open_store(STORE) as store:
        store.save_episode(episode)
        store.transaction(
            lambda writing: writing.enqueue(
                Task.REMEMBER, "ep-1", scope="default", error="the embedder \x1b[2J was down", delay=60
            )
        )
    return episode.id


def test_what_waits_is_listed_and_done_without_a_model_where_none_is_needed(program: Program) -> None:
    id = waiting()
    told = program("memory", "queue").stdout
    assert f"remember    {id}  tried once, again from " in told
    assert "\\x1b[2J was down" in told
    assert [one["subject"] for one in json.loads(program("memory", "queue", "--json").stdout)] == [id]
    done = program("memory", "queue", "--run")
    assert (done.code, done.stdout) == (0, "1 done, 0 failed\n")
    assert "Nothing waits." in program("memory", "queue").stderr
    (memory,) = json.loads(program("memory", "list", "--json").stdout)
    assert memory["provenance"]["episode_id"] == id


def test_what_needs_a_model_says_so_where_none_is_named(program: Program) -> None:
    id = add(program, "Who found Titan?")
    with open_store(STORE) as store:
        store.transaction(
            lambda writing: writing.enqueue(Task.COMPRESS, id, scope="default", error="it was down", delay=0)
        )
    ended = program("memory", "queue", "--run")
    assert (ended.code, ended.stdout) == (2, "")
    assert "no model is named" in ended.stderr
    assert program("memory", "queue", "--run", "--all-scopes").code == 2


def test_a_sound_memory_and_one_that_can_be_mended(program: Program) -> None:
    id = add(program, "Who found Titan?")
    assert program("memory", "check").stdout == "sound: 1 memory, 0 episodes, 1 change\n"
    with sqlite3.connect(STORE) as connection:
        connection.execute("UPDATE memories SET uses = 7")
    wrong = program("memory", "check")
    assert (wrong.code, "uses 7" in wrong.stdout, "--repair mends 1 of them" in wrong.stderr) == (1, True, True)
    page = json.loads(program("memory", "check", "--repair", "--json").stdout)
    assert (page["sound"], [problem["subject"] for problem in page["repaired"]]) == (True, [id])
    assert Path(page["backup"]).is_file()
    assert program("memory", "check").code == 0


def test_a_wrong_cache_is_found_and_removed(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mia.memory.bank.WORTH_KEEPING", 1)
    add(program, "Who found Titan?")
    program("memory", "search", "Titan")
    cache = Path(".mia/memory.db.cache")
    assert list(cache.iterdir())
    assert program("memory", "check").code == 0
    with sqlite3.connect(STORE) as connection:
        connection.execute("UPDATE memories SET category = 'science'")
    wrong = program("memory", "check")
    assert (wrong.code, wrong.stdout) == (
        1,
        "cache  scope 'default': the cache of workflows says otherwise about 'category'\n",
    )
    assert program("memory", "check", "--repair").code == 0
    assert not list(cache.iterdir())


def test_what_a_damaged_file_still_holds_is_saved_and_comes_back(program: Program) -> None:
    ids = {add(program, f"Who found moon number {number}?") for number in range(30)}
    with open_store(STORE) as store:
        store.transaction(lambda writing: None)
    with sqlite3.connect(STORE) as connection:
        connection.execute("PRAGMA wal_checkpoint (TRUNCATE)")
        # The page that a search in the table begins with.
        (root,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'audit'").fetchone()
    with STORE.open("r+b") as file:
        file.seek((root - 1) * 4096)
        file.write(random.Random(0).randbytes(4096))
    damaged = program("memory", "check")
    assert damaged.code == 1
    assert "--salvage" in damaged.stdout + damaged.stderr
    saved = program("memory", "check", "--salvage", "rescued.jsonl")
    assert (saved.code, saved.stdout) == (0, "rescued.jsonl\n")
    assert "30 memories and 0 episodes saved" in saved.stderr
    assert program("memory", "check", "--salvage", "rescued.jsonl").code == 2
    back = program("--home", "new", "memory", "import", "rescued.jsonl")
    assert back.stdout == "30 memories added, 0 known already\n"
    pages = json.loads(program("--home", "new", "memory", "list", "-k", "99", "--json").stdout)
    assert {page["id"] for page in pages} == ids
    assert program("--home", "gone", "memory", "check", "--salvage", "x.jsonl").code == 1
    assert program("memory", "check", "--salvage", "x.jsonl", "--repair").code == 2


class Reversed(HashingEmbedder):
    """Another space."""

    @property
    def space(self) -> str:
        return "hashing/reversed/384"

    def embed(self, texts: Sequence[str]) -> Vectors:
        return super().embed([text[::-1] for text in texts])


def test_another_embedder(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    add(program, "Who found Titan?")
    same = program("memory", "reembed", "--embedder", "hashing")
    assert (same.code, same.stdout) == (0, "")
    assert "already" in same.stderr
    monkeypatch.setattr("mia.embeddings.hashing.HashingEmbedder", Reversed)
    done = program("memory", "reembed")
    assert done.stdout == "1 memory embedded by 'hashing/reversed/384'\n"
    assert len(program("memory", "search", "Titan").stdout.splitlines()) == 1
    assert program("memory", "reembed", "--embedder", "unheard-of").code == 2


def test_what_is_salvaged_never_lands_on_the_memory_itself(program: Program) -> None:
    add(program, "Who found Titan?")
    before = STORE.read_bytes()
    Path(".mia/memory.db.cache").mkdir(exist_ok=True)
    Path("link.jsonl").symlink_to(STORE.resolve())
    Path("hard.jsonl").hardlink_to(STORE)
    for name in (
        *(".mia/memory.db", ".mia/memory.db-wal", ".mia/memory.db-shm", ".mia/../.mia/memory.db"),
        *("link.jsonl", "hard.jsonl", ".mia/memory.db.cache/x.jsonl", "rescued.txt", "rescued"),
    ):
        refused = program("memory", "check", "--salvage", name, "--force")
        assert (refused.code, refused.stdout) == (2, ""), name
    assert program("memory", "export", "hard.jsonl", "--force").code == 2
    assert (STORE.read_bytes(), Path("link.jsonl").is_symlink()) == (before, True)
    assert not Path("rescued.txt").exists()
    assert program("memory", "check", "--salvage", "rescued.jsonl.gz", "--force").code == 0


@pytest.mark.parametrize(
    "command", [("list",), ("stats",), ("audit",), ("queue",), ("export", "x.jsonl")], ids=" ".join
)
def test_one_scope_and_all_scopes_contradict_each_other(program: Program, command: tuple[str, ...]) -> None:
    add(program, "Who found Titan?")
    ended = program("memory", *command, "--scope", "acme", "--all-scopes")
    assert (ended.code, ended.stdout) == (2, "")
    assert "--scope with --all-scopes" in ended.stderr
    assert program("memory", *command, "--all-scopes").code == 0
