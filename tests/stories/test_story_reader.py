"""A reading that is killed, and an endpoint that dies: what was read is kept, and a resume goes on from there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from mia.reader.trace import ChunkRead, ReadingFinished, read_trace

SERVER = Path(__file__).parent / "slow_endpoint.py"
TEXT = "".join(f"In the year {year} nothing happened, and nobody minded.\n" for year in range(1200))
QUESTION = "Which moon is named?"


@pytest.fixture
def endpoint() -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process that answers after a quarter of a second until it is told to hurry, and its address: whoever stops a
    reading has half a minute for it."""
    with subprocess.Popen([sys.executable, SERVER, "0.25"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process, f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
        process.kill()


def command(url: str, *more: str) -> Sequence[str]:
    said = ("--base-url", url, "--model", "m", "--chunk-tokens", "200", "--trace", "trace.jsonl", *more)
    return (sys.executable, "-m", "mia", "read", "text.txt", QUESTION, *said)


def environment() -> dict[str, str]:
    return {**os.environ, "MIA_MODELS__DEFAULT__MAX_ATTEMPTS": "1"}


def run(folder: Path, url: str, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(url, *more), cwd=folder, env=environment(), capture_output=True, text=True, timeout=120, check=False
    )


def begin(folder: Path, url: str, chunks: int, *more: str) -> subprocess.Popen[str]:
    """A reading under way that has come at least so far."""
    process = subprocess.Popen(
        command(url, *more),
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Tests that run in the background of a shell are deaf to Ctrl-C, and so is what they start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        marks = list((folder / ".mia/reader").glob("*.json"))
        if marks and json.loads(marks[0].read_text())["chunk"] >= chunks:
            return process
        time.sleep(0.02)
    process.kill()
    raise AssertionError(process.communicate()[1])


def told(folder: Path) -> tuple[dict[int, ChunkRead], int, list[ReadingFinished]]:
    """The last record of each chunk, how many records there are of chunks, and the ends."""
    chunks, count, ends = {}, 0, []
    for one in read_trace(folder / "trace.jsonl"):
        if isinstance(one, ChunkRead):
            chunks[one.chunk] = one
            count += 1
        else:
            ends.append(one)
    return chunks, count, ends


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_reading_that_is_stopped_goes_on(
    tmp_path: Path, endpoint: tuple[subprocess.Popen[str], str], how: signal.Signals
) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    process = begin(tmp_path, endpoint[1], 3)
    process.send_signal(how)
    stderr = process.communicate(timeout=30)[1]
    endpoint[0].send_signal(signal.SIGUSR1)
    if how is signal.SIGINT:
        assert process.returncode == 130
        assert "--resume goes on" in stderr
        assert "Traceback" not in stderr
    ended = run(tmp_path, endpoint[1], "--resume")
    assert ended.returncode == 0, ended.stderr
    chunks, count, ends = told(tmp_path)
    assert sorted(chunks) == list(range(len(chunks)))
    assert sum(chunk.characters for chunk in chunks.values()) == len(TEXT)
    # At most the chunk that was told and not yet kept was read twice.
    assert len(chunks) <= count <= len(chunks) + 1
    assert ends[-1].answer == ended.stdout.strip() != ""
    assert not list((tmp_path / ".mia/reader").glob("*.json"))


def test_an_endpoint_that_dies_ends_it_cleanly_and_nothing_is_lost(
    tmp_path: Path, endpoint: tuple[subprocess.Popen[str], str]
) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    process = begin(tmp_path, endpoint[1], 2)
    endpoint[0].kill()
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (1, "")
    assert "chunks are kept; the same command with --resume goes on from there" in " ".join(stderr.split())
    assert "Traceback" not in stderr
    (mark,) = (tmp_path / ".mia/reader").glob("*.json")
    kept = json.loads(mark.read_text())
    chunks, count, ends = told(tmp_path)
    assert kept["chunk"] == len(chunks) == count >= 2
    assert kept["memory"] == chunks[count - 1].memory
    assert ends[-1].failure
    # Another address is another model, as far as anyone can know here.
    elsewhere = run(tmp_path, "http://127.0.0.1:9/v1", "--resume")
    assert elsewhere.returncode == 2
    assert "the same text, questions, model, address and settings" in elsewhere.stderr
