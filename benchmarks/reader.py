"""What reading costs as texts grow, and how busy many questions keep an endpoint.

    python benchmarks/reader.py [--json] [--parts growth memory questions] [--megabytes 1000] [--delay 2]

1. growth: files of 64, 128, … 1024 chunks with the scripted model, which takes 2 ms for a reply: tokens, seconds, and
   seconds of the processor, at best over rounds (what else runs on the machine only adds). Wanted: at most 2.1 times as
   much for a text twice as long.
2. memory: the peak resident memory of a process of its own that reads 1 MB, then 1 GB of text with the scripted model;
   and half as much on one line, and packed as .gz. Wanted: within 10 % of that of 1 MB.
3. questions: 32 questions over one text of a million tokens, through an endpoint of this script's own in another
   process, which has 32 slots and takes about `--delay` seconds for a reply (± 10 %, by chance). Overhead is what the
   wall clock has above the endpoint's own time. Wanted: below 3 %, and the slots busy for at least 95 % of the time.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from mia.config import ModelSettings, ReaderSettings
from mia.models import build_model
from mia.models.base import ChatRequest
from mia.models.scripted import ScriptedModel
from mia.reader.read import Reader
from mia.reader.texts import TextSource
from mia.types import Question

SETTINGS = ReaderSettings()
SENTENCE = "The tide turns about every six hours, and nobody in the harbour has ever asked it to wait. "
MEMORY = "- The tide turns about every six hours.\n- Nobody asked it to wait.\n" * 12
ANSWER = "The answer is in \\boxed{six hours}."
REPLY_SECONDS = 0.002
"""Of the scripted model while growth is measured; ten times what reading a chunk takes here."""
TAKEN = ("tokens", "seconds", "cpu_seconds")
QUESTIONS = 32
TOKENS = 1_000_000


def scripted(delay: float = 0.0) -> ScriptedModel:
    def say(request: ChatRequest) -> str:
        return ANSWER if request.purpose == "answer" else MEMORY

    return ScriptedModel(say, delay=delay, keep_requests=False)


# ── growth ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def growth(rounds: int) -> list[dict[str, float]]:
    rows: dict[int, dict[str, float]] = {}
    question = Question.of("When does the tide turn?")
    with tempfile.TemporaryDirectory() as folder:
        paths = {wanted: Path(folder) / f"{wanted}.txt" for wanted in (64, 128, 256, 512, 1024)}
        for wanted, path in paths.items():
            characters = SETTINGS.chunk_tokens * 4 * wanted
            path.write_text((SENTENCE * (characters // len(SENTENCE) + 1))[:characters])
        # Round by round, so that a busy minute of the machine meets every length.
        for wanted, path in list(paths.items()) * rounds:
            cpu, begun = time.process_time(), time.perf_counter()
            with TextSource.open([path]) as source:
                (reading,) = await Reader(scripted(REPLY_SECONDS), SETTINGS).read([question], source)
            seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
            row = rows.setdefault(wanted, {"seconds": seconds, "cpu_seconds": cpu})
            row |= {"chunks": reading.chunks, "tokens": reading.usage.tokens}
            row |= {"seconds": min(row["seconds"], seconds), "cpu_seconds": min(row["cpu_seconds"], cpu)}
    found = list(rows.values())
    for before, row in itertools.pairwise(found):
        row |= {f"{name}_ratio": row[name] / before[name] for name in TAKEN}
    return found


# ── memory ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def read_file(path: Path) -> dict[str, float]:
    """In a process of its own: reads one file, and tells what it took."""
    begun = time.perf_counter()
    with TextSource.open([path]) as source:
        (reading,) = await Reader(scripted(), SETTINGS).read([Question.of("When does the tide turn?")], source)
    assert reading.failure is None
    return {"chunks": reading.chunks, "peak_mib": peak_mib(), "seconds": time.perf_counter() - begun}


def peak_mib() -> float:
    """Of this program alone: what getrusage tells counts the parent that it was forked from, too."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def memory(megabytes: int) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    paragraph = (SENTENCE * 11).strip() + "\n\n"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "text.txt"
        for name, size, unit in (
            ("1 MB", 1, paragraph),
            (f"{megabytes} MB", megabytes, paragraph),
            (f"{megabytes // 2} MB on one line", megabytes // 2, SENTENCE),
        ):
            content = (unit * (1_000_000 // len(unit) + 1)).encode()[:1_000_000]
            with path.open("wb") as file:
                for _ in range(size):
                    file.write(content)
            found[name] = measured(path)
        packed = Path(folder) / "text.txt.gz"
        subprocess.run(["gzip", "-1", "-k", str(path)], check=True)
        found[f"{megabytes // 2} MB packed"] = measured(packed)
    smallest = found["1 MB"]["peak_mib"]
    for row in found.values():
        row["growth"] = row["peak_mib"] / smallest - 1
    return found


def measured(path: Path) -> dict[str, float]:
    ran = subprocess.run(
        [sys.executable, __file__, "--read", str(path)], capture_output=True, text=True, check=True, timeout=3600
    )
    row: dict[str, float] = json.loads(ran.stdout)
    return row


# ── many questions ────────────────────────────────────────────────────────────────────────────────────────────────


def wire(page: dict[str, Any]) -> bytes:
    body = json.dumps(page).encode()
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body


def completion(text: str) -> bytes:
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    usage = {"prompt_tokens": 6000, "completion_tokens": 200, "total_tokens": 6200}
    return wire(
        {"id": "c", "object": "chat.completion", "created": 0, "model": "b", "choices": [choice], "usage": usage}
    )


async def serve(delay: float) -> None:
    """A minimal endpoint with a slot for each question; prints its port, and tells what it did at GET /stats."""
    update, answer = completion(MEMORY), completion(ANSWER)
    slots = asyncio.Semaphore(QUESTIONS)
    chance = random.Random(4)
    busy: list[float] = []
    first, last = 0.0, 0.0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal first, last
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                if head.startswith(b"GET"):
                    writer.write(wire({"calls": len(busy), "busy": sum(busy), "seconds": last - first}))
                    await writer.drain()
                    continue
                length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
                request = await reader.readexactly(length)
                async with slots:
                    begun = time.monotonic()
                    first = first or begun
                    await asyncio.sleep(delay * chance.uniform(0.9, 1.1))
                    last = time.monotonic()
                    busy.append(last - begun)
                writer.write(update if b"<chunk>" in request else answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0, backlog=512, limit=1 << 20)
    print(server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await server.serve_forever()


def many_questions(delay: float) -> dict[str, float]:
    command = [sys.executable, __file__, "--serve", str(delay)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            return asyncio.run(ask_many(f"http://127.0.0.1:{int(process.stdout.readline())}"))
        finally:
            process.terminate()


async def ask_many(url: str) -> dict[str, float]:
    model = build_model(ModelSettings(base_url=f"{url}/v1", model="bench", concurrency=QUESTIONS))
    questions = [Question.of(f"When does the tide turn? ({number})") for number in range(QUESTIONS)]
    # Loads what a first call loads, and opens a connection.
    await Reader(model, SETTINGS).read(questions[:1], TextSource.of("warm"))
    before = await asyncio.to_thread(stats, url)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "text.txt"
        path.write_text(SENTENCE * (TOKENS * 4 // len(SENTENCE)))
        cpu, begun = time.process_time(), time.perf_counter()
        with TextSource.open([path]) as source:
            readings = await Reader(model, SETTINGS).read(questions, source)
        wall, cpu = time.perf_counter() - begun, time.process_time() - cpu
    assert all(reading.answer == "six hours" for reading in readings), readings[0]
    after = await asyncio.to_thread(stats, url)
    await model.close()
    calls, busy = after["calls"] - before["calls"], after["busy"] - before["busy"]
    return {
        "questions": QUESTIONS,
        "chunks": readings[0].chunks,
        "tokens": readings[0].tokens,
        "calls": calls,
        "seconds": wall,
        "slots_busy": busy / (QUESTIONS * wall),
        "overhead": 1 - busy / (QUESTIONS * wall),
        "client_cpu_ms_per_call": 1000 * cpu / calls,
    }


def stats(url: str) -> dict[str, float]:
    with urllib.request.urlopen(f"{url}/stats") as reply:
        found: dict[str, float] = json.loads(reply.read())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parts = ("growth", "memory", "questions")
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--delay", type=float, default=2.0)
    parser.add_argument("--serve", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve is not None:
        asyncio.run(serve(arguments.serve))
        return
    if arguments.read is not None:
        print(json.dumps(asyncio.run(read_file(arguments.read))))
        return
    result: dict[str, Any] = {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    }
    if "growth" in arguments.parts:
        result["growth"] = asyncio.run(growth(arguments.rounds))
    if "memory" in arguments.parts:
        result["memory"] = memory(arguments.megabytes)
    if "questions" in arguments.parts:
        result["questions"] = many_questions(arguments.delay)
    print(json.dumps(result, indent=2) if arguments.json else text_of(result))


def text_of(result: dict[str, Any]) -> str:
    lines = [result["machine"]]
    for row in result.get("growth", ()):
        ratios = "".join(f"  × {row[f'{name}_ratio']:.3f}" for name in TAKEN) if "tokens_ratio" in row else ""
        lines.append(
            f"{row['chunks']:>5} chunks  {row['tokens']:>10,} tokens  {row['seconds']:6.2f} s  "
            f"{row['cpu_seconds']:6.3f} s of CPU{ratios}"
        )
    for name, row in result.get("memory", {}).items():
        lines.append(
            f"{name:<20} {row['chunks']:>7,} chunks  peak {row['peak_mib']:.1f} MiB ({row['growth']:+.1%})  "
            f"{row['seconds']:.1f} s"
        )
    if many := result.get("questions"):
        lines.append(
            f"{many['questions']} questions, {many['chunks']} chunks, {many['calls']:,.0f} calls in "
            f"{many['seconds']:.1f} s: slots busy {many['slots_busy']:.1%}, overhead {many['overhead']:.1%}, "
            f"{many['client_cpu_ms_per_call']:.2f} ms of CPU a call"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
