"""Sockets are blocked: everything that is local still works, and nothing even tries to go out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "examples" / "solar_system" / "docs"

# Runs in the child before anything else: every way to a socket ends the process with a code of its own.
BLOCK = """
import os, socket, sys
def refuse(*args, **kwargs):
    if args and args[0] == socket.AF_UNIX: return
    sys.stderr.write("SOCKET TOUCHED\\n"); os._exit(97)
class Blocked(socket.socket):
    def connect(self, *a): refuse()
    def connect_ex(self, *a): refuse()
    def bind(self, *a): refuse()
    def sendto(self, *a): refuse()
socket.socket = Blocked
socket.create_connection = socket.getaddrinfo = refuse
from mia.cli.main import main
main()
"""


def mia(folder: Path, *arguments: str, status: int = 0) -> str:
    command = [sys.executable, "-c", BLOCK, "--home", str(folder / "home"), *arguments]
    environment = {**os.environ, "MIA_SEARCH__VECTORS": "off", "MIA_MEMORY__EMBEDDER": "hashing"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
    assert "SOCKET TOUCHED" not in done.stderr
    assert done.returncode == status, done.stderr
    return done.stdout


def test_index_search_memory_and_replay_work_without_a_network(tmp_path: Path) -> None:
    mia(tmp_path, "index", str(DOCS))
    hits = json.loads(mia(tmp_path, "search", "moons of Saturn", "--json"))
    assert hits
    question, workflow = "Who found Titan?", "1. Search Titan (Titan → its finder)"
    mia(tmp_path, "memory", "add", "--question", question, "--workflow", workflow, "--judgement", "correct")
    assert "Titan" in mia(tmp_path, "memory", "list")
    assert "Titan" in mia(tmp_path, "memory", "search", "who discovered Titan")
    recording = tmp_path / "recording.jsonl"
    entry = {
        "question_id": "q",
        "role": "executor",
        "purpose": "execute",
        "turn": 0,
        "text": "<answer>Huygens</answer>",
    }
    recording.write_text(json.dumps({"format": "mia-recording", "version": 1}) + "\n" + json.dumps(entry) + "\n")
    answer = mia(
        tmp_path, "ask", question, "--id", "q", "--replay", str(recording), "--no-plan", "--judge", "reference"
    )
    assert answer.strip() == "Huygens"
    assert "Who found Titan?" in mia(tmp_path, "show", "last")
    assert "best_of" in mia(tmp_path, "config")


def test_a_corpus_is_answered_from_without_a_network_too(tmp_path: Path) -> None:
    mia(tmp_path, "search", "moons of Saturn", "--corpus", str(DOCS))
