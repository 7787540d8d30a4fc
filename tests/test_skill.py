"""The skill of `skills/mia-memory`: its page is one that agent programs load, and its script works as the page says."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

SKILL = Path(__file__).parents[1] / "skills" / "mia-memory"
SCRIPT = SKILL / "scripts" / "mia_memory.py"
PAGE = (SKILL / "SKILL.md").read_text(encoding="utf-8")
QUESTION = "Where was the discoverer of Titan born?"
LESSON = ("--question", QUESTION, "--workflow", "1. Find him (Titan → Huygens)", "--judgement", "correct")

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """The script alone, with the standard library: `-I` keeps every package and folder of ours out."""

    def run(*arguments: str, path: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-I", "-S", str(SCRIPT), *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            cwd=tmp_path,
            env={"PATH": path, "HOME": str(tmp_path), **environment},
        )

    return run


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Any]]:
    """The address of a real server, and its service."""
    pytest.importorskip("fastapi", reason="the extra `service` is not installed")
    import uvicorn
    from service_team import make_service

    from mia.service.app import create_app

    service = make_service(tmp_path / "home")
    listening = socket.create_server(("127.0.0.1", 0))
    running = uvicorn.Server(uvicorn.Config(create_app(service), log_config=None, timeout_graceful_shutdown=2))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]})
    thread.start()
    while not running.started:
        assert thread.is_alive()
        time.sleep(0.01)
    yield f"http://127.0.0.1:{listening.getsockname()[1]}", service
    running.should_exit = True
    thread.join(20)
    listening.close()


def test_the_page_is_one_that_agent_programs_load() -> None:
    head = re.match(r"---\n(.*?)\n---\n", PAGE, re.DOTALL)
    assert head is not None
    fields = dict(line.split(": ", 1) for line in head.group(1).splitlines())
    assert fields["name"] == SKILL.name
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", fields["name"])
    assert 0 < len(fields["description"]) <= 1_024
    assert "<" not in head.group(1)
    named = set(re.findall(r"scripts/\S+\.py", PAGE))
    assert named == {str(SCRIPT.relative_to(SKILL))}


def test_it_remembers_recalls_and_judges_over_http(run: Run, server: tuple[str, Any]) -> None:
    url, service = server
    empty = run("recall", QUESTION, MIA_URL=url)
    assert (empty.returncode, json.loads(empty.stdout)["memories"]) == (0, []), empty.stderr
    kept = json.loads(run("remember", *LESSON, MIA_URL=url).stdout)
    (memory,) = json.loads(run("recall", QUESTION, MIA_URL=url).stdout)["memories"]
    assert (memory["id"], memory["workflow"]) == (kept["memory_id"], LESSON[3])

    import urllib.request

    body = json.dumps({"question": QUESTION}).encode()
    request = urllib.request.Request(f"{url}/v1/ask", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as reply:
        episode_id = json.loads(reply.read())["episode_id"]
    judged = run("feedback", episode_id, "--correct", "--reason", "It is.", MIA_URL=url)
    assert json.loads(judged.stdout)["credited"] == 1, judged.stderr
    assert service.store.memories([memory["id"]])[memory["id"]].wins == 2


def test_what_goes_wrong_is_told_with_status_1(run: Run, server: tuple[str, Any]) -> None:
    from mia.service.auth import add_token, tokens_path

    url, service = server
    for arguments, said in (
        (("feedback", "ep-none", "--incorrect"), "no episode"),
        (("recall", " "), "text"),
    ):
        ended = run(*arguments, MIA_URL=url)
        assert (ended.returncode, ended.stdout) == (1, "")
        assert said in ended.stderr
        assert "Traceback" not in ended.stderr
    token = add_token(tokens_path(service.config), "ann", scope="acme/ann", days=None)
    refused = run("recall", QUESTION, MIA_URL=url)
    assert refused.returncode == 1
    assert "MIA_TOKEN" in refused.stderr
    assert run("remember", *LESSON, MIA_URL=url, MIA_TOKEN=token).returncode == 0
    assert [memory.scope for memory in service.store.list_memories(None, limit=9)] == ["acme/ann"]
    assert run("recall", QUESTION, MIA_URL=url, MIA_TOKEN=token, MIA_SCOPE="acme/bob").returncode == 1


def test_without_a_server_it_uses_the_program(run: Run, tmp_path: Path) -> None:
    refuse_if_taken()
    bin = tmp_path / "bin"
    bin.mkdir()
    (bin / "mia").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m mia "$@"\n')
    (bin / "mia").chmod(0o755)
    environment = {"path": str(bin), "MIA_MEMORY__EMBEDDER": "hashing", "PYTHONPATH": str(SKILL.parents[1])}
    kept = run("remember", *LESSON, **environment)
    assert kept.returncode == 0, kept.stderr
    (memory,) = json.loads(run("recall", QUESTION, **environment).stdout)["memories"]
    assert memory["id"] == json.loads(kept.stdout)["memory_id"]
    assert memory["score"] == pytest.approx(1, abs=1e-3)
    assert json.loads(run("recall", "What does rye bread cost?", **environment).stdout) == {"memories": []}
    feedback = run("feedback", "ep-1", "--correct", **environment)
    assert feedback.returncode == 1
    assert "mia serve" in feedback.stderr


def test_with_neither_server_nor_program_it_says_what_to_start(run: Run) -> None:
    refuse_if_taken()
    ended = run("recall", QUESTION)
    assert ended.returncode == 1
    assert "mia serve" in ended.stderr


def test_an_address_that_was_given_is_not_replaced_by_the_program(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    ended = run("recall", QUESTION, path=os.environ["PATH"], MIA_URL=f"http://127.0.0.1:{port}")
    assert ended.returncode == 1
    assert "nothing listens" in ended.stderr
    assert "MIA_URL" in run("recall", QUESTION, MIA_URL="file:///etc").stderr


def refuse_if_taken() -> None:
    """These tests are about the address where a server is looked for."""
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", 8321)) == 0:
            pytest.skip("something listens at port 8321")
