"""`mia serve`, the real program: what it refuses to listen at, and what it does not load."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from embedded_team import needs_embedded_model
from program import Program

from mia.cli import serve

pytest.importorskip("fastapi", reason="the extra `service` is not installed")

SETTINGS = """
[models.default]
model = "m"
base_url = "http://127.0.0.1:9/v1"
[memory]
embedder = "hashing"
[search]
engine = "world"
"""
QUIET = ("serve", "--model", "m", "--base-url", "http://127.0.0.1:9/v1", "--judge", "reference")


@contextmanager
def served(folder: Path, *arguments: str, settings: str = SETTINGS) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process and its address."""
    (folder / "mia.toml").write_text(settings, encoding="utf-8")
    command = [sys.executable, "-m", "mia", "serve", "--port", "0", *arguments]
    with subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            first = process.stderr.readline()
            address = re.search(r"http://\S+", first)
            assert address, first + process.stderr.read()
            yield process, address[0]
        finally:
            process.kill()


def ready(address: str) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            with urllib.request.urlopen(f"{address}/readyz", timeout=5) as reply:
                assert reply.status == 200
                return
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_an_address_that_others_reach_needs_a_token(program: Program, host: str) -> None:
    ended = program(*QUIET, "--host", host, "--port", "0")
    assert ended.code == 2
    assert "no token was made" in ended.stderr
    assert "mia token add" in ended.stderr


def test_a_name_that_leads_elsewhere_than_it_says_is_seen(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    def everywhere(host: str, port: int) -> socket.socket:
        listening = socket.socket()
        listening.bind(("0.0.0.0", 0))
        return listening

    monkeypatch.setattr(serve, "_listen", everywhere)
    ended = program(*QUIET, "--host", "localhost", "--port", "0")
    assert ended.code == 2
    assert "no token was made" in ended.stderr


def test_a_port_in_use_is_told(program: Program) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        ended = program(*QUIET, "--port", str(other.getsockname()[1]))
    assert ended.code == 2
    assert "something listens at port" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_an_unknown_host_is_told(program: Program) -> None:
    program("token", "add", "ann")
    ended = program(*QUIET, "--host", "nowhere.invalid")
    assert ended.code == 2
    assert "cannot listen at 'nowhere.invalid'" in ended.stderr


@pytest.mark.parametrize(
    "command", [("serve", "--port", "0"), ("mcp",), ("ask", "Who?"), ("token", "list"), ("doctor",)]
)
@pytest.mark.parametrize("home", ["/dev/null", "a-file", "a-file/below"])
def test_a_home_that_is_a_file_is_told_in_the_same_words_by_all(
    program: Program, command: tuple[str, ...], home: str
) -> None:
    Path("a-file").touch()
    ended = program("--home", home, *command)
    assert ended.code == 2
    assert f"the home '{home}' cannot be used" in ended.stderr
    assert "is a file" in ended.stderr


def test_broken_tokens_and_short_ones_are_told(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    program("token", "add", "ann")
    Path(".mia/tokens.json").write_text('{"sha256": "a-hash"}')
    ended = program(*QUIET, "--port", "0")
    assert ended.code == 2
    assert "tokens.json" in ended.stderr
    assert "a-hash" not in ended.stderr
    Path(".mia/tokens.json").unlink()
    monkeypatch.setenv("MIA_SERVE_TOKEN", "swordfish")
    ended = program(*QUIET, "--port", "0")
    assert ended.code == 2
    assert "MIA_SERVE_TOKEN" in ended.stderr
    assert "swordfish" not in ended.stderr


def test_the_program_serves_loads_nothing_heavy_and_ends_when_told(tmp_path: Path) -> None:
    with served(tmp_path) as (process, address):
        assert address.startswith("http://127.0.0.1:")
        ready(address)
        mapped = Path(f"/proc/{process.pid}/maps").read_text()
        for library in ("libtorch", "tokenizers", "matplotlib"):
            assert library not in mapped, f"{library} is loaded before it is needed"
        with socket.create_server(("127.0.0.1", 0)):
            second = subprocess.run(
                [sys.executable, "-m", "mia", "serve", "--port", "0"], cwd=tmp_path, capture_output=True, text=True
            )
        assert second.returncode == 1
        assert f"another server works in '.mia' (process {process.pid}, at {address})" in second.stderr
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) in (0, -signal.SIGTERM)
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()
    # What it held is free again.
    with served(tmp_path) as (_, address):
        ready(address)


@pytest.mark.parametrize("again", [False, True])
def test_ctrl_c_says_what_is_finished_and_a_second_one_ends_at_once(tmp_path: Path, again: bool) -> None:
    """The model hangs: the question under way is given its time, unless a second Ctrl-C comes."""
    with socket.create_server(("127.0.0.1", 0)) as hanging:
        settings = SETTINGS.replace("127.0.0.1:9", f"127.0.0.1:{hanging.getsockname()[1]}")
        with served(tmp_path, settings=settings) as (process, address), ExitStack() as opened:
            ready(address)
            asking = opened.enter_context(socket.socket())
            host, port = address.removeprefix("http://").split(":")
            asking.connect((host, int(port)))
            body = b'{"question": "Who found Titan?"}'
            asking.sendall(
                b"POST /v1/ask HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
                % (host.encode(), len(body), body)
            )
            hanging.settimeout(30)
            asked = opened.enter_context(hanging.accept()[0])  # Its model is being asked.
            assert asked.recv(1)
            process.send_signal(signal.SIGINT)
            assert process.stderr is not None
            told = next(line for line in process.stderr if "Finishing" in line)
            assert "1 question under way (for 10 s at most)" in told
            assert "Ctrl-C again stops at once" in told
            if again:
                process.send_signal(signal.SIGINT)
                assert process.wait(3) == 130
            else:
                asking.close()  # Whoever asked hangs up, so that there is nothing left to finish.
                assert process.wait(15) == 130
            assert "Traceback" not in process.stderr.read()


@needs_embedded_model
def test_with_nothing_configured_a_token_counts_too(tmp_path: Path) -> None:
    add = [sys.executable, "-m", "mia", "token", "add", "ann"]
    token = subprocess.run(add, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.strip()
    # At all addresses: the one that is said is one that can be typed.
    with served(tmp_path, "--host", "0.0.0.0", settings="") as (_, address):
        assert address.startswith("http://127.0.0.1:")
        ready(address)
        for given, status in ((None, 401), ("mia_wrong", 401), (token, 200)):
            headers = {"Authorization": f"Bearer {given}"} if given else {}
            try:
                with urllib.request.urlopen(urllib.request.Request(f"{address}/v1/memories", headers=headers)) as reply:
                    got = reply.status
            except urllib.error.HTTPError as error:
                got = error.code
            assert got == status


def test_a_server_that_cannot_start_says_why_and_no_more(tmp_path: Path) -> None:
    """Learning needs a memory that takes in; the service finds out when it starts."""
    (tmp_path / "mia.toml").write_text(
        f"{SETTINGS}\n[learn]\nenabled = true\n".replace("[memory]\n", "[memory]\nfrozen = true\n")
    )
    ended = subprocess.run(
        [sys.executable, "-m", "mia", "serve", "--port", "0"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONWARNINGS": "ignore"},
    )
    assert ended.returncode == 2
    assert "Error: the service is to learn, and the memory takes nothing in." in ended.stderr
    assert "Traceback" not in ended.stderr
