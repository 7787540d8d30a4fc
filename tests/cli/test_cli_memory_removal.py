"""`mia memory purge`: for good what is out of sight, and all of somebody; never unasked."""

from __future__ import annotations

import json
import os
import pty
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from program import Program

from mia.evals.log import EpisodeLog, read_episodes
from mia.store import open_store

DOCS = Path(__file__).parents[2] / "examples" / "solar_system" / "docs"


def add(program: Program, question: str, *arguments: str) -> str:
    workflow = f"1. look ({question} → found)"
    return program(
        "memory", "add", "--question", question, "--workflow", workflow, "--judgement", "correct", *arguments
    ).stdout.strip()


def listed(program: Program, *arguments: str) -> list[str]:
    return [page["id"] for page in json.loads(program("memory", "list", "--state", "all", "--json", *arguments).stdout)]


def test_only_what_is_out_of_sight_goes_and_a_dry_run_says_what(program: Program) -> None:
    seen, forgotten, expired = (add(program, f"Who found moon {name}?") for name in ("Io", "Rhea", "Ariel"))
    program("memory", "forget", forgotten)
    program("memory", "forget", expired, "--expire", "2001-01-01")
    told = program("memory", "purge", "--dry-run")
    assert {line.split()[0] for line in told.stdout.splitlines()} == {forgotten, expired}
    assert "2 memories would be removed for good." in told.stderr
    assert len(listed(program)) == 3
    assert program("memory", "purge", seen, "--yes").stdout == ""
    page = json.loads(program("memory", "purge", "--yes", "--json").stdout)
    assert (page["dry_run"], set(page["memories"])) == (False, {forgotten, expired})
    assert listed(program) == [seen]


def test_what_a_dry_run_names_is_what_goes_whatever_the_age(program: Program) -> None:
    ids = [add(program, f"Who found moon {name}?") for name in ("Io", "Rhea", "Ariel", "Puck", "Mimas")]
    program("memory", "forget", *ids[:3])
    program("memory", "restore", ids[1])
    program("memory", "forget", ids[3], "--expire", "2001-01-01")
    days = 86_400.0
    with sqlite3.connect(".mia/memory.db") as connection:
        # Ten days ago, all but the last forgetting: forgotten, restored and forgotten anew counts from the latter.
        connection.execute("UPDATE audit SET at = at - ?", (10 * days,))
        connection.execute("UPDATE memories SET created_at = created_at - ?, updated_at = updated_at", (10 * days,))
    program("memory", "forget", ids[1])
    for older_than in ("0", "5", "9.99", "20"):
        named = json.loads(program("memory", "purge", "--older-than", older_than, "--dry-run", "--json").stdout)
        copy = Path(f"copy-{older_than}")
        with open_store(Path(".mia/memory.db")) as store:
            store.transaction(lambda writing: None)
            with sqlite3.connect(".mia/memory.db") as source, sqlite3.connect(copy) as target:
                source.backup(target)
        with open_store(copy) as store:
            gone = store.purge(scope="default", before=time.time() - float(older_than) * days).memories
        assert set(named["memories"]) == set(gone)
    assert set(named["memories"]) == set()


def test_it_asks_at_a_terminal_and_takes_no_for_an_answer(program: Program) -> None:
    forgotten = add(program, "Who found Io?")
    program("memory", "forget", forgotten)
    unasked = program("memory", "purge")
    assert (unasked.code, unasked.stdout) == (2, "")
    assert "add --yes" in unasked.stderr
    for reply, code, left in ((b"n\n", 1, [forgotten]), (b"y\n", 0, [])):
        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            [sys.executable, "-m", "mia.cli.main", "memory", "purge"], stdin=theirs, stderr=theirs, stdout=theirs
        )
        os.close(theirs)
        os.write(ours, reply)
        assert process.wait(30) == code
        told = os.read(ours, 4_096).decode()
        os.close(ours)
        assert "Remove 1 memory for good? They cannot be restored." in told
        assert listed(program) == left


@pytest.mark.parametrize(
    "arguments",
    [
        ("--everything",),
        ("--everything", "--scope", "a", "--memory", "mem-1"),
        ("--memory", "mem-1", "--scope", "a"),
        ("--question", "Who?", "--dry-run"),
        ("mem-1", "--episode", "ep-1"),
        ("--episode", "ep-1", "--older-than", "3"),
        ("--older-than", "-1"),
        ("mem-9",),
        ("--older-than", "1e12"),
    ],
    ids=" ".join,
)
def test_misuse_exits_with_2_and_removes_nothing(program: Program, arguments: tuple[str, ...]) -> None:
    kept = add(program, "Who found Io?")
    program("memory", "forget", kept)
    ended = program("memory", "purge", *arguments, "--yes")
    assert (ended.code, ended.stdout) == (2, "")
    assert listed(program) == [kept]


def test_everything_of_a_scope_goes_and_the_others_stay(program: Program) -> None:
    gone = add(program, "Who found Io?", "--scope", "acme/ann")
    kept = add(program, "Who found Rhea?", "--scope", "acme/bob")
    assert program("memory", "purge", "--everything", "--scope", "acme/ann").code == 2
    done = program("memory", "purge", "--everything", "--scope", "acme/ann", "--yes")
    assert done.stdout == "deleted: 1 memory, 0 episodes, 0 lines of run logs, 0 captions\n"
    assert "yours to delete" in done.stderr
    assert listed(program, "--all-scopes") == [kept]
    assert gone in program("memory", "audit", "--all-scopes").stdout
    assert b"found Io" not in Path(".mia/memory.db").read_bytes()


def test_one_memory_and_all_of_one_question(program: Program) -> None:
    io, rhea, ariel = (add(program, f"Who found moon {name}?") for name in ("Io", "Rhea", "Ariel"))
    assert program("memory", "purge", "--memory", "mem-", "--yes").code == 2
    page = json.loads(program("memory", "purge", "--memory", io[:-1], "--yes", "--json").stdout)
    assert page["memories"] == [io]
    page = json.loads(program("memory", "purge", "--question", "who found moon RHEA", "--yes", "--json").stdout)
    assert page["memories"] == [rhea]
    assert listed(program) == [ariel]


def test_a_run_leaves_its_folder_known_and_a_question_of_it_goes_from_there_too(
    program: Program, endpoint: str
) -> None:
    lines = [{"id": f"q{n}", "question": f"Who found moon {n}?", "answers": ["Huygens"]} for n in range(2)]
    Path("questions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    run = ("run", "questions.jsonl", "--corpus", DOCS, "--base-url", endpoint, "--model", "slow")
    assert program(*run).code == 0
    log = Path("runs/questions/episodes.jsonl")
    kept = [line for line in log.read_bytes().splitlines() if b'"q1"' in line]

    done = program("memory", "purge", "--question", "Who found moon 0?", "--yes", "--json")
    page = json.loads(done.stdout)
    assert (len(page["episodes"]), len(page["logged"]), page["unreached"]) == (1, 1, [])
    assert [episode.question.id for episode in read_episodes(log)] == ["q1"]
    assert log.read_bytes().splitlines() == kept
    everywhere = [path for path in Path().rglob("*") if path.is_file() and path.name != "questions.jsonl"]
    assert not [path for path in everywhere if b"found moon 0" in path.read_bytes()]
    resumed = json.loads(program(*run, "--resume", "--json").stdout)
    assert resumed["answered"] == 2

    busy = EpisodeLog.open(log)
    unreached = program("memory", "purge", "--question", "Who found moon 0?", "--yes")
    busy.release()
    assert unreached.code == 1
    assert "Not reached" in unreached.stderr
    again = program("memory", "purge", "--question", "Who found moon 0?", "--yes")
    assert (again.code, again.stdout.split(", ")[2]) == (0, "1 line of run logs")


def test_what_was_found_nowhere_is_said(program: Program) -> None:
    io = add(program, "Who found moon Io?")
    for arguments in (("--memory", "mem-typo"), ("--episode", "ep-typo"), ("--question", "Who fond moon Io?")):
        ended = program("memory", "purge", *arguments, "--yes")
        assert ended.code == 1
        assert f"Found nowhere, or gone already: '{arguments[1]}'" in ended.stderr
    asked = ("--question", "Who found moon Io?", "--question", "Who fond moon Io?")
    page = json.loads(program("memory", "purge", *asked, "--yes", "--json").stdout)
    assert (page["memories"], page["unknown"]) == ([io], ["Who fond moon Io?"])
    # What the audit still names was there once: the same deletion again has nothing to complain of.
    assert program("memory", "purge", "--memory", io, "--yes").code == 0


def test_before_a_question_is_deleted_what_matches_it_is_named(program: Program) -> None:
    add(program, "Who found moon Io?")
    for asked, named in (
        ("who found moon IO", "(in the store: 'Who found moon Io?')"),
        ("Who?", "(in the store: none)"),
    ):
        unasked = program("memory", "purge", "--question", asked)
        assert (unasked.code, unasked.stdout) == (2, "")
        assert named in " ".join(unasked.stderr.split())


def test_a_memory_is_not_purged_from_a_scope_that_it_is_not_in(program: Program) -> None:
    hidden = add(program, "Who found Io?", "--scope", "acme/ann")
    program("memory", "forget", hidden)
    refused = program("memory", "purge", hidden, "--scope", "globex", "--yes")
    assert (refused.code, refused.stdout) == (2, "")
    assert "'acme/ann'" in refused.stderr
    assert program("memory", "purge", hidden, "--scope", "acme", "--yes").stdout == "1 memory removed for good\n"
