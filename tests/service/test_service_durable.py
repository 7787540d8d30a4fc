"""The file of what a server must not lose."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from memory.past import episode

from mia.errors import HomeTaken, StoreError
from mia.service.durable import Durable, ItemState, JobState
from mia.types import Image, Question, Task

KEY = "sk-abcdefghijklmnopqrstuvwxyz0123456789ABCD"


def test_what_was_accepted_is_there_for_the_next_one(tmp_path: Path) -> None:
    first = Durable(tmp_path / "service.db")
    for address in ("", "http://127.0.0.1:8321"):
        first.listens_at(address)
        with pytest.raises(HomeTaken, match="another server works in") as taken:
            Durable(tmp_path / "service.db")
        assert (taken.value.pid, taken.value.address) == (os.getpid(), address)
        assert address in str(taken.value)
    one = episode(question=Question.of("Who?"))
    first.accept(one, "acme/a")
    first.accept(one, "acme/a")
    receipt = first.accept_memory({"question": "How?"}, "acme/b")
    first.close()
    first.close()
    second = Durable(tmp_path / "service.db")
    assert [(entry.id, entry.scope) for entry in second.pending()] == [(one.id, "acme/a"), (receipt, "acme/b")]
    assert second.pending_episode(one.id) == (one, "acme/a")
    assert [entry.id for entry in second.pending(scope="acme/b")] == [receipt]
    assert second.pending_count("acme") == 2
    # "%" and "_" are letters, and so is a capital.
    assert [second.pending_count(scope) for scope in ("acm_", "ACME", "%", "acme/")] == [0, 0, 0, 0]
    second.put_off(receipt, "not now", 100)
    assert [entry.id for entry in second.pending(due_at=0)] == [one.id]
    assert second.hasten("acme/a") == 0
    assert second.hasten("acme") == 1
    second.absorbed([one.id])
    assert second.pending_one(one.id) is None
    second.close()
    with pytest.raises(StoreError, match="closed"):
        second.pending_count()


def test_a_question_that_failed_is_asked_again_without_its_key(tmp_path: Path) -> None:
    durable = Durable(tmp_path / "service.db")
    asked = Question.of(f"Is {KEY} a key?").model_copy(update={"images": (Image.from_bytes(b"GIF8"),)})
    job = durable.submit([Task(question=asked, references=("no",))], "default")
    (due,) = durable.open_items(job.id)
    durable.begin_job(job.id)
    durable.finish_item(job.id, due.number, None, "the model is down")
    durable.finish_job(job.id)
    assert durable.retry_job(job.id) == 1
    (again,) = durable.open_items(job.id)
    assert KEY not in again.task.question.text
    assert (again.task.question.images, again.task.references) == (asked.images, ("no",))
    durable.close()
    assert not any(KEY.encode() in file.read_bytes() for file in tmp_path.iterdir())


@pytest.mark.skipif(os.name != "posix", reason="needs file modes of POSIX")
def test_nobody_else_on_the_machine_can_read_it(tmp_path: Path) -> None:
    Durable(tmp_path / "service.db").close()
    assert (tmp_path / "service.db").stat().st_mode & 0o077 == 0


def test_no_key_is_kept_but_in_a_question_that_is_still_to_be_asked(tmp_path: Path) -> None:
    durable = Durable(tmp_path / "service.db")
    durable.accept(episode(question=Question.of(f"What is {KEY}?")), "default")
    job = durable.submit([Task(question=Question.of(f"Is {KEY} a key?"), references=(KEY,))], "default")
    (due,) = durable.open_items(job.id)
    assert KEY in due.task.question.text
    durable.begin_job(job.id)
    durable.finish_item(job.id, due.number, episode(question=due.task.question))
    durable.finish_job(job.id)
    (item,) = durable.items(job.id)
    assert item.state is ItemState.ANSWERED
    assert durable.job(job.id).state is JobState.FINISHED
    assert KEY not in item.question
    assert KEY not in str(durable.pending())
    durable.close()


def test_jobs_of_a_scope_and_below_it_alone_are_listed(tmp_path: Path) -> None:
    durable = Durable(tmp_path / "service.db")
    task = Task(question=Question.of("Who?"))
    ids = {scope: durable.submit([task], scope).id for scope in ("acme", "acme/a", "ACME/a", "acme_/a", "acmeX")}
    assert {job.id for job in durable.jobs(scope="acme")} == {ids["acme"], ids["acme/a"]}
    assert [job.id for job in durable.jobs(scope="acme_")] == [ids["acme_/a"]]
    assert len(durable.jobs()) == 5
    durable.close()


def test_a_file_of_a_newer_mia_is_refused_and_let_go_of(tmp_path: Path) -> None:
    import sqlite3

    path = tmp_path / "service.db"
    Durable(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    for _ in range(2):
        with pytest.raises(StoreError, match="newer MIA"):
            Durable(path)
