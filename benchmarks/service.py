"""The service under load: one server on loopback, a client in a process of its own, one table.

    MIA_DATA=… python benchmarks/service.py [--json] [--only recall,text,asks,remember,start] [--seconds 10]

Vectors are those of random clusters under MiniLM's name (so that texts can be asked for too); texts are the shared
questions, each asked once, or made-up ones without `MIA_DATA`. The server is `mia serve` with a model at an endpoint of
ours that answers after a second; it is a process of its own, as are the endpoint and the client, so they share the
cores of the machine.

recall    `POST /v1/recall` at 10,000 memories with vectors given, 8 connections. Wanted: at least 400 a second, the
          slowest hundredth within 50 ms.
text      The same by texts never asked before, 64 connections, beside the embedder's own rate in batches of 64, in this
          process, before and after. Wanted: at least 0.8 of it.
asks      128 streamed questions at once, against the endpoint of a second. Wanted: none fails.
remember  `POST /v1/memories?wait=false`, 32 connections, each acknowledged when it is on the disk. Wanted: at least 200
          a second. Then the server is killed (-9) while it is written to, and started again: every memory that was
          acknowledged must be there, and a job that was under way must finish.
start     Seconds from the start of the process to the first `/readyz` that is ready, at 100,000 memories (wanted: 3);
          resident memory before the first embedding (wanted: 250 MB) and after (800 MB).

Figures are medians over the rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import memory_store
import numpy
import psutil

from mia.config import MemorySettings
from mia.embeddings.base import Vectors
from mia.embeddings.minilm import MiniLMEmbedder
from mia.memory.recalling import Recaller
from mia.store import open_store
from mia.store.base import MemoryVectors

ROUNDS = 3
MADE_UP = "Which of the two towns number {0} and {1} has the older bridge, and who built it?"


# ── a client, in a process of its own ─────────────────────────────────────────────────────────────────────────────


class Connection:
    """HTTP/1.1 over one socket, as little of it as costs little."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._writer: asyncio.StreamWriter | None = None

    async def open(self) -> None:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 22)

    async def post(self, path: str, body: bytes) -> tuple[int, bytes]:
        assert self._writer is not None
        head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
        self._writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        head_lines = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        status = int(head_lines[9:12])
        if b"transfer-encoding: chunked" in head_lines:
            content = b""
            while size := int(await self._reader.readline(), 16):
                content += (await self._reader.readexactly(size + 2))[:-2]
            await self._reader.readline()
            return status, content
        length = int(head_lines.split(b"content-length: ", 1)[1].split(b"\r\n", 1)[0])
        return status, await self._reader.readexactly(length)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


async def load(port: int, path: str, file: str, connections: int, seconds: float) -> dict[str, Any]:
    """Post the bodies of a file, one a line, over so many connections until they or the time run out."""
    bodies = iter(Path(file).read_bytes().splitlines())
    latencies: list[float] = []
    statuses: dict[str, int] = {}
    replies: list[str] = []
    ends = time.perf_counter() + seconds

    async def one() -> None:
        connection = Connection(port)
        try:
            await connection.open()
            for body in bodies:
                begun = time.perf_counter()
                status, content = await connection.post(path, body)
                latencies.append(time.perf_counter() - begun)
                statuses[str(status)] = statuses.get(str(status), 0) + 1
                if path != "/v1/recall":
                    replies.append(content.decode())
                if time.perf_counter() > ends:
                    break
            connection.close()
        except (OSError, asyncio.IncompleteReadError) as error:
            statuses[type(error).__name__] = statuses.get(type(error).__name__, 0) + 1

    begun = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(connections)))
    took = time.perf_counter() - begun
    latencies.sort()
    return {
        "rate": len(latencies) / took,
        "p50_ms": 1000 * latencies[len(latencies) // 2] if latencies else None,
        "p99_ms": 1000 * latencies[int(len(latencies) * 0.99)] if latencies else None,
        "statuses": statuses,
        "replies": replies,
    }


def run_client(port: int, path: str, bodies: Sequence[Any], connections: int, seconds: float) -> dict[str, Any]:
    with tempfile.NamedTemporaryFile("wb", suffix=".jsonl") as file:
        file.write(b"\n".join(json.dumps(body).encode() for body in bodies))
        file.flush()
        client = start_client(port, path, file.name, connections, seconds)
        output, _ = client.communicate()
    result: dict[str, Any] = json.loads(output)
    return result


def start_client(port: int, path: str, file: str, connections: int, seconds: float) -> subprocess.Popen[str]:
    arguments = [str(port), path, file, str(connections), str(seconds)]
    return subprocess.Popen([sys.executable, __file__, "--client", *arguments], stdout=subprocess.PIPE, text=True)


# ── an endpoint whose model takes a second ────────────────────────────────────────────────────────────────────────


async def endpoint() -> None:
    """Plans, and answers at once; the first word of an answer comes after a second."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = int(head.split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
                asked = json.loads(await reader.readexactly(length))
                await asyncio.sleep(1.0)
                planning = b'"plan"' in json.dumps(asked).encode()
                text = "1. Look it up." if planning else "<think>I know it.</think><answer>Delft</answer>"
                usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
                if not asked.get("stream"):
                    message = {"role": "assistant", "content": text}
                    choice = {"index": 0, "message": message, "finish_reason": "stop"}
                    content = json.dumps(
                        {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice],
                         "usage": usage}
                    ).encode()  # fmt: skip
                    kind = b"application/json"
                else:
                    delta = {"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": "stop"}
                    base = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
                    pieces = [base | {"choices": [delta]}, base | {"choices": [], "usage": usage}]
                    content = "".join(f"data: {json.dumps(one)}\n\n" for one in pieces).encode() + b"data: [DONE]\n\n"
                    kind = b"text/event-stream"
                writer.write(
                    b"HTTP/1.1 200 OK\r\ncontent-type: %s\r\ncontent-length: %d\r\n\r\n" % (kind, len(content))
                    + content
                )
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=512)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@contextmanager
def slow_endpoint() -> Iterator[int]:
    with subprocess.Popen([sys.executable, __file__, "--endpoint"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()


# ── the server ────────────────────────────────────────────────────────────────────────────────────────────────────


class Server:
    """`mia serve` over a home, from its start on."""

    def __init__(self, home: Path, endpoint_port: int) -> None:
        settings = home / "mia.toml"
        settings.write_text(
            '[models.default]\nprovider = "openai"\nmodel = "m"\n'
            f'base_url = "http://127.0.0.1:{endpoint_port}/v1"\n'
            '[memory]\nembedder = "minilm"\n[search]\nengine = "world"\n[line]\nreplan = "never"\n'
            '[judge]\nkind = "reference"\n',
            encoding="utf-8",
        )
        begun = time.perf_counter()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mia", "--config", settings, "--home", home, "serve", "--port", "0"],
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stderr is not None
        first = self.process.stderr.readline()
        if "http://127.0.0.1:" not in first:
            raise SystemExit(first + self.process.stderr.read())
        self.port = int(first.split("http://127.0.0.1:")[1].split()[0])
        while not self.ready():
            time.sleep(0.02)
        self.seconds_to_ready = time.perf_counter() - begun

    def ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=10) as reply:
                return bool(reply.status == 200)
        except (urllib.error.URLError, ConnectionError):
            return False

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=60) as reply:
            return json.load(reply)

    def post(self, path: str, body: Any) -> Any:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=120) as reply:
            return json.load(reply)

    @property
    def megabytes(self) -> float:
        return psutil.Process(self.process.pid).memory_info().rss / 1e6

    @property
    def cpu_seconds(self) -> float:
        """Of the process so far: what the figures would come to if nobody else used the cores."""
        times = psutil.Process(self.process.pid).cpu_times()
        return float(times.user + times.system)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.kill()


@contextmanager
def server(home: Path, endpoint_port: int) -> Iterator[Server]:
    one = Server(home, endpoint_port)
    try:
        yield one
    finally:
        one.stop()


def fill(home: Path, size: int) -> Vectors:
    """A home with so many memories and the cache of their vectors; returns some of those vectors, moved a little."""
    home.mkdir(parents=True)
    memory_store.SPACE = MiniLMEmbedder().space
    generator = numpy.random.default_rng(0)
    vectors = memory_store.jittered(memory_store.random_vectors(500, generator), size, generator)
    memory_store.fill(home / "memory.db", vectors)
    with open_store(home / "memory.db") as store:
        recaller = Recaller(store, MemorySettings())
        recaller.recall(MemoryVectors(memory_store.SPACE, vectors[0]))
        recaller.settled(600)
        recaller.close()
    return memory_store.jittered(vectors[:2_000], 1_000, generator)


def questions(most: int) -> list[str]:
    folder = os.environ.get("MIA_DATA")
    if not folder:
        return [MADE_UP.format(number, number * 7 % 1_000) for number in range(most)]
    found: dict[str, None] = {}
    for name in memory_store.QUESTION_FILES:
        with gzip.open(Path(folder) / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
            found |= dict.fromkeys(json.loads(line)["question"] for line in lines)
    return list(found)[:most]


# ── what is measured ──────────────────────────────────────────────────────────────────────────────────────────────


def median(runs: Sequence[dict[str, Any]], name: str) -> float:
    return statistics.median(float(run[name]) for run in runs)


def failed(runs: Sequence[dict[str, Any]]) -> int:
    return sum(count for run in runs for status, count in run["statuses"].items() if not status.startswith("2"))


def measure_recall(folder: Path, endpoint_port: int, seconds: float) -> dict[str, Any]:
    vectors = fill(folder / "recall", 10_000)
    bodies = [{"question_vector": [round(float(x), 6) for x in vector]} for vector in vectors] * 20
    with server(folder / "recall", endpoint_port) as one:
        run_client(one.port, "/v1/recall", bodies[:200], 8, seconds)
        before = one.cpu_seconds
        runs = [run_client(one.port, "/v1/recall", bodies, 8, seconds) for _ in range(ROUNDS)]
        used = one.cpu_seconds - before
    return {
        "recalls a second, vectors given": median(runs, "rate"),
        "CPU of the server, ms a recall": 1e3 * used / sum(sum(run["statuses"].values()) for run in runs),
        "p50, ms": median(runs, "p50_ms"),
        "p99, ms": median(runs, "p99_ms"),
        "failed": failed(runs),
    }


def measure_text(folder: Path, endpoint_port: int, seconds: float) -> dict[str, Any]:
    if not (folder / "recall").exists():
        fill(folder / "recall", 10_000)
    texts = questions(60_000)
    share = len(texts) // (2 * ROUNDS)
    embedder = MiniLMEmbedder()
    embedder.embed(texts[:2])

    def alone(own: Sequence[str]) -> float:
        begun, done = time.perf_counter(), 0
        while time.perf_counter() - begun < seconds / 2:
            embedder.embed([own[(done + place) % len(own)] for place in range(64)])
            done += 64
        return done / (time.perf_counter() - begun)

    runs, rates = [], []
    with server(folder / "recall", endpoint_port) as one:
        one.post("/v1/recall", {"question": "warm up"})
        for number in range(ROUNDS):
            own = texts[2 * number * share : (2 * number + 2) * share]
            before = alone(own[share:])
            run = run_client(one.port, "/v1/recall", [{"question": text} for text in own[:share]], 64, seconds)
            run["ratio"] = run["rate"] / statistics.mean((before, alone(own[share:])))
            rates.append(before)
            runs.append(run)
    return {
        "recalls a second, by text": median(runs, "rate"),
        "p99, ms": median(runs, "p99_ms"),
        "embedder alone, texts a second": statistics.median(rates),
        "ratio": median(runs, "ratio"),
        "failed": failed(runs),
    }


def measure_asks(folder: Path, endpoint_port: int, seconds: float) -> dict[str, Any]:
    home = folder / "asks"
    fill(home, 1_000)
    bodies = [{"question": text, "stream": True, "references": ["Delft"]} for text in questions(256)]
    with server(home, endpoint_port) as one:
        one.post("/v1/recall", {"question": "warm up"})
        run = run_client(one.port, "/v1/ask", bodies[:128], 128, 300)
    answered = sum("event: answer" in reply for reply in run["replies"])
    return {"streamed asks at once": 128, "answered": answered, "p50, s": run["p50_ms"] / 1e3,
            "p99, s": run["p99_ms"] / 1e3}  # fmt: skip


def measure_remember(folder: Path, endpoint_port: int, seconds: float) -> dict[str, Any]:
    home = folder / "remember"
    fill(home, 1_000)
    path = "/v1/memories?wait=false"

    def bodies(word: str, count: int) -> list[dict[str, str]]:
        return [
            {
                "question": f"Which {word} bridge has number {number}?",
                "workflow": f'1. search ("{word} bridges" → "Bridge {number}")\n2. answer (→ "Bridge {number}")',
                "judgement": "correct",
            }
            for number in range(count)
        ]

    one = Server(home, endpoint_port)
    # Loads the embedder, which the background needs.
    one.post("/v1/recall", {"question": "warm up"})
    runs = [run_client(one.port, path, bodies(f"kind {number}", 20_000), 32, seconds) for number in range(ROUNDS)]
    job = one.post("/v1/jobs", {"questions": [{"question": text} for text in questions(40)]})
    with tempfile.NamedTemporaryFile("wb", suffix=".jsonl") as file:
        file.write(b"\n".join(json.dumps(body).encode() for body in bodies("last", 20_000)))
        file.flush()
        client = start_client(one.port, path, file.name, 32, 60)
        time.sleep(3)
        one.kill()
        last = json.loads(client.communicate()[0])
    acknowledged = sum(run["statuses"].get("202", 0) for run in (*runs, last))
    begun = time.perf_counter()
    with server(home, endpoint_port) as again:
        while (state := again.get(f"/v1/jobs/{job['id']}"))["state"] not in ("finished", "cancelled"):
            time.sleep(0.5)
        while "mia_pending 0.0" not in metrics_of(again):
            time.sleep(0.5)
    with open_store(home / "memory.db") as store:
        found = sum("bridge has number" in one.question for one in everything(store))
    return {
        "remember, acknowledged a second": median(runs, "rate"),
        "p99, ms": median(runs, "p99_ms"),
        "acknowledged before kill -9": acknowledged,
        "there after the restart": found,
        "job after the restart": state["state"],
        "seconds to store the rest": time.perf_counter() - begun,
    }


def metrics_of(one: Server) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{one.port}/metrics", timeout=60) as reply:
        text: str = reply.read().decode()
        return text


def everything(store: Any) -> Iterator[Any]:
    offset = 0
    while page := store.list_memories("default", limit=1_000, offset=offset):
        yield from page
        offset += len(page)


def measure_start(folder: Path, endpoint_port: int, seconds: float) -> dict[str, Any]:
    home = folder / "start"
    vectors = fill(home, 100_000)
    starts, used, idle, recalled, embedded = [], [], [], [], []
    for _ in range(ROUNDS):
        with server(home, endpoint_port) as one:
            starts.append(one.seconds_to_ready)
            used.append(one.cpu_seconds)
            idle.append(one.megabytes)
            one.post("/v1/recall", {"question_vector": [float(x) for x in vectors[0]]})
            recalled.append(one.megabytes)
            for text in questions(20):
                one.post("/v1/recall", {"question": text})
            embedded.append(one.megabytes)
    return {
        "seconds to ready, 100,000 memories": statistics.median(starts),
        "CPU seconds until then": statistics.median(used),
        "MB, idle": statistics.median(idle),
        "MB, after a recall by vector": statistics.median(recalled),
        "MB, after embedding": statistics.median(embedded),
    }


MEASURES: dict[str, Callable[[Path, int, float], dict[str, Any]]] = {
    "recall": measure_recall,
    "text": measure_text,
    "asks": measure_asks,
    "remember": measure_remember,
    "start": measure_start,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", default=",".join(MEASURES))
    parser.add_argument("--seconds", type=float, default=10.0, help="of each round")
    parser.add_argument("--endpoint", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--client", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.endpoint:
        asyncio.run(endpoint())
        return
    if options.client:
        port, path, file, connections, seconds = options.client
        print(json.dumps(asyncio.run(load(int(port), path, file, int(connections), float(seconds)))))
        return
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    results: dict[str, Any] = {"machine": machine, "load average": os.getloadavg()[0]}
    with ExitStack() as held:
        folder = Path(held.enter_context(tempfile.TemporaryDirectory()))
        port = held.enter_context(slow_endpoint())
        for name in options.only.split(","):
            results[name] = MEASURES[name](folder, port, options.seconds)
            if not options.json:
                for figure, value in results[name].items():
                    print(f"{name:<10}{figure:<40}{value:.4g}" if isinstance(value, float) else
                          f"{name:<10}{figure:<40}{value}", flush=True)  # fmt: skip
    if options.json:
        print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
