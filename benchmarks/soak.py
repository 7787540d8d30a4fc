"""A server under mixed load for minutes: does it grow, does it slow down, does it leave anything open?

    python benchmarks/soak.py [--minutes 10] [--rate 8] [--json]

`mia serve` over 5,000 memories, with a model at an endpoint of ours that answers after a second. Each second so many
requests begin, of a fixed mix: recalls by vector and by text, questions streamed and not, questions that are hung up
on, memories added, metrics, and requests that are wrong. A line a minute: the median and the slowest hundredth of the
recalls by vector and of the questions, the server's resident memory, its open descriptors and threads, what failed.

Wanted: from the third minute on (the first embeds, fills caches and pools) memory and latency stay as they are; at the
end as many descriptors as at the beginning.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import psutil
import service

KINDS = (
    *("recall by vector",) * 6,
    *("recall by text",) * 4,
    *("ask",) * 2,
    *("ask, streamed",) * 2,
    "ask, hung up on",
    *("remember",) * 2,
    "page",
    "wrong",
)
WRONG = (b"{", b"[" * 5_000, b'{"question": 5}', b'{"question_vector": [NaN]}', b"\xff", b'{"question_vector": [1]}')


class Soak:
    def __init__(self, one: service.Server, vectors: Any, texts: list[str]) -> None:
        self.server = one
        self.process = psutil.Process(one.process.pid)
        self._vectors = vectors
        self._texts = texts
        self._random = random.Random(0)
        self.latencies: dict[str, list[float]] = {}
        self.failed: dict[str, int] = {}
        self._count = 0

    async def request(self, kind: str) -> None:
        self._count += 1
        number = self._count
        connection = service.Connection(self.server.port)
        begun = time.perf_counter()
        try:
            await connection.open()
            if kind == "ask, hung up on":
                work = asyncio.create_task(connection.post("/v1/ask", self._body("ask, streamed", number)))
                await asyncio.sleep(self._random.random())
                work.cancel()
                await asyncio.gather(work, return_exceptions=True)
                return
            path = {"remember": "/v1/memories?wait=false", "page": "/metrics"}.get(kind, "/v1/recall")
            path = "/v1/ask" if kind.startswith("ask") else path
            if kind == "page":
                await asyncio.to_thread(service.metrics_of, self.server)
                status = 200
            else:
                status, content = await connection.post(path, self._body(kind, number))
                if kind == "ask, streamed" and b"event: answer" not in content:
                    status = 599
            expected = range(400, 500) if kind == "wrong" else range(200, 300)
            if status not in expected:
                self.failed[f"{kind}: {status}"] = self.failed.get(f"{kind}: {status}", 0) + 1
        except (OSError, asyncio.IncompleteReadError) as error:
            name = f"{kind}: {type(error).__name__}"
            self.failed[name] = self.failed.get(name, 0) + 1
        finally:
            connection.close()
        self.latencies.setdefault(kind, []).append(time.perf_counter() - begun)

    def _body(self, kind: str, number: int) -> bytes:
        text = self._texts[number % len(self._texts)]
        if kind == "wrong":
            return WRONG[number % len(WRONG)]
        if kind == "recall by vector":
            return json.dumps(
                {"question_vector": [float(x) for x in self._vectors[number % len(self._vectors)]]}
            ).encode()
        if kind == "remember":
            steps = f'1. search ("{text}" → "Passage {number}")\n2. answer (→ "{number}")'
            return json.dumps({"question": f"{text} ({number})", "workflow": steps, "judgement": "correct"}).encode()
        return json.dumps({"question": text} | ({"stream": True} if kind == "ask, streamed" else {})).encode()

    def figures(self) -> dict[str, Any]:
        """Of the time since the last call."""
        recalls = sorted(self.latencies.get("recall by vector", [0.0]))
        asks = sorted([*self.latencies.get("ask", []), *self.latencies.get("ask, streamed", [])] or [0.0])
        requests = sum(map(len, self.latencies.values()))
        self.latencies.clear()
        with self.process.oneshot():
            return {
                "requests": requests,
                "recall p50, ms": 1e3 * statistics.median(recalls),
                "recall p99, ms": 1e3 * recalls[int(len(recalls) * 0.99)],
                "ask p50, s": statistics.median(asks),
                "ask p99, s": asks[int(len(asks) * 0.99)],
                "MB": self.process.memory_info().rss / 1e6,
                "descriptors": self.process.num_fds(),
                "threads": self.process.num_threads(),
                "failed": sum(self.failed.values()),
            }


async def soak(soaked: Soak, minutes: float, rate: float) -> list[dict[str, Any]]:
    rows = []
    under_way: set[asyncio.Task[None]] = set()
    generator = random.Random(1)
    begun = time.monotonic()
    next_row, turn = begun + 60, begun
    while (now := time.monotonic()) < begun + 60 * minutes:
        task = asyncio.create_task(soaked.request(generator.choice(KINDS)))
        under_way.add(task)
        task.add_done_callback(under_way.discard)
        if now >= next_row:
            rows.append(soaked.figures())
            print_row(len(rows), rows[-1])
            next_row += 60
        turn += 1 / rate
        await asyncio.sleep(max(0.0, turn - time.monotonic()))
    await asyncio.gather(*under_way)
    return rows


def print_row(minute: int, row: dict[str, Any]) -> None:
    if minute == 1:
        print("minute  " + "  ".join(row), flush=True)
    cells = (f"{value:>{len(name)}.4g}" for name, value in row.items())
    print(f"{minute:>6}  " + "  ".join(cells), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--rate", type=float, default=8, help="requests that begin in a second")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, service.slow_endpoint() as port:
        home = Path(folder) / "soak"
        vectors = service.fill(home, 5_000)
        with service.server(home, port) as one:
            one.post("/v1/recall", {"question": "warm up"})
            soaked = Soak(one, vectors, service.questions(5_000))
            before = soaked.figures()
            rows = asyncio.run(soak(soaked, options.minutes, options.rate))
            time.sleep(15)
            after = soaked.figures()
    result = {
        "load average": os.getloadavg()[0],
        "before": before,
        "minutes": rows,
        "15 s after": after,
        "failed": soaked.failed,
    }
    if options.json:
        print(json.dumps(result, indent=2))
        return
    print(
        f"descriptors {before['descriptors']} before, {after['descriptors']} 15 s after the end; failed {soaked.failed}"
    )


if __name__ == "__main__":
    main()
