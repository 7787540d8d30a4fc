"""Group commit: each its own result and its own error, and nothing that was acknowledged is ever missing."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from stored import SPACE, a_memory, vector

from mia.errors import RecordError, StoreError
from mia.store import open_store
from mia.store.base import MemoryVectors, Writing
from mia.store.sqlite import SqliteStore


def run_all(works: list[Callable[[], object]]) -> None:
    threads = [threading.Thread(target=work, daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)


def put(writing: Writing, id: str, text: str = "x") -> str:
    writing.insert(a_memory(text, id=id), MemoryVectors(SPACE, vector(1, 0)))
    return id


def test_each_thread_gets_its_own_result_or_its_own_error(store: SqliteStore) -> None:
    """Every third piece raises, after it has written; a bug, a refusal and a taken id among them."""
    outcomes: dict[str, object] = {}

    def piece(name: int, number: int) -> None:
        id = f"mem-{name}-{number}"

        def work(writing: Writing) -> str:
            put(writing, id)
            if number % 3 == 1:
                raise (KeyError, StoreError)[name % 2](id)
            if number % 3 == 2:
                put(writing, id)
            return id

        try:
            outcomes[id] = store.transaction(work)
        except (KeyError, StoreError, RecordError) as error:
            outcomes[id] = error

    run_all([lambda name=name: [piece(name, number) for number in range(30)] for name in range(8)])  # type: ignore[misc]
    assert len(outcomes) == 240
    for id, outcome in outcomes.items():
        name, number = map(int, id.split("-")[1:])
        if number % 3 == 0:
            assert outcome == id
        else:
            assert id in str(outcome)
            kind = ((KeyError, StoreError)[name % 2], RecordError)[number % 3 - 1]
            assert type(outcome) is kind
    held = {memory.id for memory in store.list_memories(None, limit=999)}
    assert held == {id for id, outcome in outcomes.items() if outcome == id}
    assert len(store.audit(limit=999)) == len(held)


def test_on_a_full_disk_every_thread_is_told_and_nothing_is_half_written(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect: Callable[..., sqlite3.Connection] = sqlite3.connect

    def on_a_small_disk(*arguments: object, **options: object) -> sqlite3.Connection:
        connection = connect(*arguments, **options)
        connection.execute("PRAGMA max_page_count = 120")
        return connection

    acknowledged: list[str] = []
    refused: list[str] = []

    def fill(name: int) -> None:
        for number in range(100):
            id = f"mem-{name}-{number}"
            try:
                acknowledged.append(store.transaction(lambda writing, id=id: put(writing, id, "x" * 5000)))  # type: ignore[misc]
            except StoreError as error:
                refused.append(error.got)
                return

    with monkeypatch.context() as patch:
        patch.setattr(sqlite3, "connect", on_a_small_disk)
        with open_store(path) as store:
            run_all([lambda name=name: fill(name) for name in range(8)])  # type: ignore[misc]
    assert len(refused) == 8
    assert all("the disk is full" in sentence for sentence in refused)
    with open_store(path) as store:
        assert {memory.id for memory in store.list_memories(None, limit=999)} == set(acknowledged)
        assert store.check().sound


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals of POSIX")
def test_nothing_acknowledged_is_missing_after_a_kill(path: Path) -> None:
    """Eight threads write flat out and print what was acknowledged; killed at drawn instants."""
    code = f"""
import sys, threading
from pathlib import Path
sys.path.insert(0, {os.path.dirname(__file__)!r})
from stored import insert, credit, RIGHT
from mia.store import open_store
store = open_store(Path({str(path)!r}))
guard = threading.Lock()
def work():
    while True:
        memory = insert(store)
        credit(store, memory.id, {{memory.id}}, RIGHT)
        with guard:
            print(memory.id, flush=True)
for _ in range(8):
    threading.Thread(target=work).start()
"""
    chance = random.Random(5)
    acknowledged: set[str] = set()
    for _ in range(4):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        first = process.stdout.readline()
        time.sleep(chance.uniform(0, 0.15))
        os.kill(process.pid, signal.SIGKILL)
        lines = (first + process.communicate(timeout=30)[0]).splitlines(keepends=True)
        acknowledged |= {line.strip() for line in lines if line.endswith("\n")}
        with open_store(path) as store:
            held = {memory.id: memory for memory in store.list_memories(None, limit=99_999)}
            assert acknowledged <= held.keys()
            assert all((held[id].uses, held[id].wins) == (2, 2) for id in acknowledged)
            assert store.check().sound
    assert len(acknowledged) > 50


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals of POSIX")
def test_ctrl_c_in_a_waiting_writer_does_not_stop_the_others(path: Path) -> None:
    """The main thread is interrupted wherever it is; then the other threads must still be able to write."""
    code = f"""
import os, signal, sys, threading, time
from pathlib import Path
sys.path.insert(0, {os.path.dirname(__file__)!r})
from stored import insert
from mia.store import open_store
store = open_store(Path({str(path)!r}))
stop = threading.Event()
written = [0] * 4
def work(place):
    while not stop.is_set():
        insert(store)
        written[place] += 1
threads = [threading.Thread(target=work, args=(place,), daemon=True) for place in range(4)]
for thread in threads:
    thread.start()
interrupted = 0
while interrupted < 60:
    try:
        threading.Timer(0.002 + 0.0003 * (interrupted % 17), os.kill, (os.getpid(), signal.SIGINT)).start()
        while True:
            insert(store)
    except KeyboardInterrupt:
        interrupted += 1
before = list(written)
time.sleep(0.5)
assert all(now > then for now, then in zip(written, before)), (written, before)
stop.set()
for thread in threads:
    thread.join(5)
assert not any(thread.is_alive() for thread in threads)
insert(store)
print(store.check().sound)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "True\n", done.stderr[-2000:]


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals of POSIX")
@pytest.mark.parametrize("slow_ends", ["after both", "between them"])
def test_two_ctrl_c_in_a_waiting_writer_do_not_stop_the_others(path: Path, slow_ends: str) -> None:
    """The second one takes the main thread out of the line, before or while it would have been handed the lead."""
    code = f"""
import os, signal, sys, threading, time
from pathlib import Path
sys.path.insert(0, {os.path.dirname(__file__)!r})
from stored import insert
from mia.store import open_store
store = open_store(Path({str(path)!r}))
begun, go_on, second = (threading.Event() for _ in range(3))
def slow(writing):
    begun.set()
    go_on.wait(30)
def interrupt():
    time.sleep(0.2)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.2)
    if {slow_ends == "between them"}:
        go_on.set()
    os.kill(os.getpid(), signal.SIGINT)
first = threading.Thread(target=store.transaction, args=(slow,), daemon=True)
first.start()
begun.wait()
threading.Thread(target=interrupt, daemon=True).start()
try:
    store.transaction(lambda writing: None)
except KeyboardInterrupt:
    print("interrupted")
go_on.set()
first.join(10)
late = threading.Thread(target=insert, args=(store,), daemon=True)
late.start()
late.join(10)
print(late.is_alive(), store.count_memories(), flush=True)
os._exit(0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "interrupted\nFalse 1\n", done.stderr[-2000:]
