"""Sockets are blocked: everything that is local still works, and nothing even tries to go out.

Where nothing is configured, servers of this very machine are looked for; then loopback is open, and nothing else.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from embedded_team import needs_embedded_model

from mia.config import WORLD_SEED
from mia.world.facts import World
from mia.world.questions import tasks

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "examples" / "solar_system" / "docs"

# Runs in the child before anything else: every way to a socket ends the process with a code of its own.
BLOCK = """
import os, socket, sys
LOOPBACK = ("localhost", "127.0.0.1", "::1") if {loopback} else ()
def refuse(*addresses):
    for address in addresses:
        if isinstance(address, tuple) and address[0] in LOOPBACK: continue
        sys.stderr.write(f"SOCKET TOUCHED: {{address}}\\n"); os._exit(97)
class Blocked(socket.socket):
    def _guard(self, name, *a):
        if self.family != socket.AF_UNIX: refuse(a[-1])
        return getattr(super(), name)(*a)
    def connect(self, *a): return self._guard("connect", *a)
    def connect_ex(self, *a): return self._guard("connect_ex", *a)
    def bind(self, *a): return self._guard("bind", *a)
    def sendto(self, *a): return self._guard("sendto", *a)
resolve = socket.getaddrinfo
def getaddrinfo(host, *a, **k):
    refuse((host.decode() if isinstance(host, bytes) else host,))
    return resolve(host, *a, **k)
socket.socket, socket.getaddrinfo = Blocked, getaddrinfo
{first}
from mia.cli.main import main
for number, command in enumerate({commands}):
    if number: print("{between}")
    sys.argv = ["mia", "--home", {home!r}, *command]
    try: main()
    except SystemExit as left:
        if left.code: raise
"""
BETWEEN = "-- the next command --"


def mia(folder: Path, *commands: Sequence[str], loopback: bool = False, first: str = "") -> list[str]:
    """What commands of the program print, one after the other in one process without sockets. `loopback`: but those of
    this machine; `first`: what the process does before it begins."""
    home = str(folder / "home")
    block = BLOCK.format(loopback=loopback, first=first, commands=commands, home=home, between=BETWEEN)
    environment = {**os.environ, "MIA_SEARCH__VECTORS": "off", "MIA_MEMORY__EMBEDDER": "hashing"}
    done = subprocess.run(
        [sys.executable, "-c", block], capture_output=True, text=True, env=environment, timeout=120, check=False
    )
    assert "SOCKET TOUCHED" not in done.stderr, done.stderr
    assert done.returncode == 0, done.stderr
    return done.stdout.split(f"{BETWEEN}\n")


@pytest.mark.parametrize(
    ("first", "loopback", "refused"),
    [
        ("socket.create_connection(('example.org', 80))", True, True),
        ("socket.socket().connect_ex(('10.1.2.3', 80))", True, True),
        ("socket.socket().connect_ex(('127.0.0.1', 9))", False, True),
        ("socket.socket().connect_ex(('127.0.0.1', 9))", True, False),
    ],
)
def test_the_block_blocks(first: str, loopback: bool, refused: bool, tmp_path: Path) -> None:
    """Else the rest of this file proves nothing."""
    if not refused:
        mia(tmp_path, loopback=loopback, first=first)
        return
    with pytest.raises(AssertionError, match="SOCKET TOUCHED"):
        mia(tmp_path, loopback=loopback, first=first)


def test_index_search_memory_and_replay_work_without_a_network(tmp_path: Path) -> None:
    question, workflow = "Who found Titan?", "1. Search Titan (Titan → its finder)"
    recording = tmp_path / "recording.jsonl"
    entry = {
        "question_id": "q",
        "role": "executor",
        "purpose": "execute",
        "turn": 0,
        "text": "<answer>Huygens</answer>",
    }
    recording.write_text(json.dumps({"format": "mia-recording", "version": 1}) + "\n" + json.dumps(entry) + "\n")
    _, hits, _, listed, found, answer, shown, settings = mia(
        tmp_path,
        ("index", str(DOCS)),
        ("search", "moons of Saturn", "--json"),
        ("memory", "add", "--question", question, "--workflow", workflow, "--judgement", "correct"),
        ("memory", "list"),
        ("memory", "search", "who discovered Titan"),
        ("ask", question, "--id", "q", "--replay", str(recording), "--no-plan", "--judge", "reference"),
        ("show", "last"),
        ("config",),
    )
    assert json.loads(hits)
    assert "Titan" in listed
    assert "Titan" in found
    assert answer.strip() == "Huygens"
    assert question in shown
    assert "best_of" in settings


def test_a_corpus_is_answered_from_without_a_network_too(tmp_path: Path) -> None:
    (found,) = mia(tmp_path, ("search", "moons of Saturn", "--corpus", str(DOCS)))
    assert "Saturn" in found


@needs_embedded_model
def test_the_embedded_model_answers_without_a_network(tmp_path: Path) -> None:
    """`mia ask` and `mia demo` as they are after installation; of the demonstration only a part."""
    (task,) = tasks(World.make(WORLD_SEED), 1)
    answer, demonstration = mia(
        tmp_path,
        ("ask", task.question.text),
        ("demo", "--json"),
        loopback=True,
        first="import mia.cli.demo.world as shown; shown.FULL_SIZE = shown.Size(watched=1, worlds=1, questions=2)",
    )
    assert answer.strip().isalpha()
    assert json.loads(demonstration)
    assert (tmp_path / "home" / "world" / "memory.db").exists()
