"""What the line costs: CPU per model call above the bare SDK, throughput against a slow endpoint, memory over time.

    python benchmarks/line_overhead.py [--json]

Three measurements in one run, against an endpoint of this script's own in another process:

1. CPU time of this process per model call, through the whole line (plan, search, answer, reflect) and through the bare
   `openai` SDK with the same messages; medians over rounds that alternate. Wanted: at most 1 ms apart.
2. 128 questions at once against an endpoint that answers after one second; four calls in a row make a question, so the
   ideal is 128 questions in four seconds. Wanted: at least 90 % of that rate.
3. Resident memory after 1,000 and after 10,000 questions. Wanted: flat.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from typing import Any

import psutil

from mia.agents.executor import Executor
from mia.agents.planner import Planner
from mia.config import ExecutorSettings, ModelSettings
from mia.episode import answer
from mia.judges.reference import ReferenceJudge
from mia.models import build_model
from mia.models.base import ChatModel, ToolSchema
from mia.models.ledger import Ledger
from mia.team import Team
from mia.tools.base import ToolContext
from mia.types import Observation, Passage, Question, Task

CALLS_PER_QUESTION = 4
PASSAGE = Passage(id="p-1", title="Titan", text="Titan is a moon of Saturn, found by Christiaan Huygens in 1655. " * 8)
REPLIES = [
    "<think>One fact is missing.</think>\n1. Search for who found Titan.\n2. Read the name; then the search is done.",
    '<think>I search.</think>\n<tool_call>{"name": "search", "arguments": {"query_list": ["who found Titan"]}}'
    "</tool_call>",
    "<think>Found.</think>\n<evidence>\n[p-1] found by Christiaan Huygens in 1655\n</evidence>\n"
    "<answer>Christiaan Huygens</answer>",
    "<think>All there.</think>\nno",
]


class OnePassage:
    """A search that costs nothing, so that the line alone is measured."""

    schema = ToolSchema("search", "Search.", {"type": "object", "properties": {"query_list": {"type": "array"}}})

    async def call(self, arguments: dict[str, Any], context: ToolContext) -> Observation:
        return Observation(text=f"[{PASSAGE.id}] {PASSAGE.title}\n{PASSAGE.text}", passages=(PASSAGE,))

    async def close(self) -> None:
        pass


# ── the endpoint, in a process of its own ─────────────────────────────────────────────────────────────────────────


MARKS = (b"Write the plan", b"<question>", b"<tool_response>\\n", b"yes (a supplementary plan")
"""What the four requests end in, in the order of the replies; the last mark in a request tells which one it is."""


def wire(text: str) -> bytes:
    """A whole HTTP response that holds one completion."""
    page = {
        "id": "c",
        "object": "chat.completion",
        "created": 0,
        "model": "bench",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
        "usage": {"prompt_tokens": 500, "completion_tokens": 40, "total_tokens": 540},
    }
    body = json.dumps(page).encode()
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body


async def serve(delay: float) -> None:
    """A minimal chat-completions endpoint, as light as can be so as not to be what is measured; prints its port."""
    responses = [wire(reply) for reply in REPLIES]

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
                request = await reader.readexactly(length)
                await asyncio.sleep(delay)
                last = max(range(len(MARKS)), key=lambda number: request.rfind(MARKS[number]))
                writer.write(responses[last])
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0, backlog=512)
    print(server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await server.serve_forever()


class Endpoint:
    """Starts and ends the endpoint's process."""

    def __init__(self, delay: float) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--serve", str(delay)], stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self.url = f"http://127.0.0.1:{int(self._process.stdout.readline())}/v1"

    def __enter__(self) -> Endpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()


# ── the measurements ──────────────────────────────────────────────────────────────────────────────────────────────


def build(url: str, concurrency: int) -> tuple[Team, ChatModel]:
    model = build_model(ModelSettings(base_url=url, model="bench", concurrency=concurrency))
    executor = Executor(model, [OnePassage()], ExecutorSettings())
    return Team(executor=executor, planner=Planner(model), judge=ReferenceJudge()), model


async def ask(team: Team, number: int) -> None:
    task = Task(question=Question.of(f"Who found Titan? ({number})"), references=("Christiaan Huygens",))
    episode = await answer(task, team, Ledger(task.question.id))
    assert episode.verdict is not None
    assert episode.verdict.correct, episode
    assert episode.total_usage.calls == CALLS_PER_QUESTION


async def cpu_per_call(rounds: int, questions: int) -> dict[str, float]:
    """Milliseconds of this process's CPU per model call: the line, the bare SDK, and the difference."""
    from openai import AsyncOpenAI

    line, bare = [], []
    with Endpoint(0.0) as endpoint:
        team, model = build(endpoint.url, 8)
        recorded = await record_messages(team, model)
        client = AsyncOpenAI(base_url=endpoint.url, api_key="none", max_retries=0)
        for number in range(rounds + 1):
            begun = time.process_time()
            for question in range(questions):
                await ask(team, question)
            line.append((time.process_time() - begun) * 1000 / (questions * CALLS_PER_QUESTION))
            begun = time.process_time()
            for _ in range(questions):
                for messages in recorded:
                    await client.chat.completions.create(model="bench", messages=messages, max_tokens=2048)
            bare.append((time.process_time() - begun) * 1000 / (questions * CALLS_PER_QUESTION))
            if number == 0:  # Warm-up: imports, connections.
                line.clear()
                bare.clear()
        await client.close()
        await model.close()
    above = [ours - theirs for ours, theirs in zip(line, bare, strict=True)]
    return {
        "line_ms": statistics.median(line),
        "sdk_ms": statistics.median(bare),
        "above_ms": statistics.median(above),
        "ratio": statistics.median(line) / statistics.median(bare),
    }


async def record_messages(team: Team, model: ChatModel) -> list[list[Any]]:
    """The messages of one question's calls, for the bare SDK to send too."""
    seen: list[list[Any]] = []
    complete = model.complete

    async def recording(request: Any) -> Any:
        seen.append([{"role": message.role, "content": message.content} for message in request.messages])
        return await complete(request)

    model.complete = recording  # type: ignore[method-assign]
    await ask(team, 0)
    model.complete = complete  # type: ignore[method-assign]
    return seen


async def throughput(questions: int, delay: float) -> dict[str, float]:
    """Questions at once against a slow endpoint, as a share of the ideal rate; the median of three rounds."""
    with Endpoint(delay) as endpoint:
        team, model = build(endpoint.url, questions)
        await ask(team, 0)
        rounds = []
        for _ in range(3):
            begun = time.perf_counter()
            await asyncio.gather(*(ask(team, number) for number in range(questions)))
            rounds.append(time.perf_counter() - begun)
        seconds = statistics.median(rounds)
        await model.close()
    return {"questions": questions, "seconds": seconds, "share_of_ideal": delay * CALLS_PER_QUESTION / seconds}


async def memory(questions: int) -> dict[str, float]:
    """Resident MB after a tenth of the questions and after all of them."""
    process = psutil.Process(os.getpid())
    marks = {}
    with Endpoint(0.0) as endpoint:
        team, model = build(endpoint.url, 32)
        for first in range(0, questions, 100):
            await asyncio.gather(*(ask(team, number) for number in range(first, first + 100)))
            if first + 100 in (questions // 10, questions):
                gc.collect()
                marks[first + 100] = process.memory_info().rss / 1e6
        await model.close()
    early, late = marks[questions // 10], marks[questions]
    return {"questions": questions, "early_mb": early, "late_mb": late, "growth": late / early - 1}


async def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        "cpu_per_call": await cpu_per_call(arguments.rounds, 50),
        "throughput": await throughput(128, 1.0),
        "memory": await memory(arguments.questions),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--questions", type=int, default=10_000, help="for the memory measurement")
    parser.add_argument("--serve", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve is not None:
        asyncio.run(serve(arguments.serve))
        return
    result = asyncio.run(measure(arguments))
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    cpu, rate, held = result["cpu_per_call"], result["throughput"], result["memory"]
    print(result["machine"])
    print(f"CPU a call    line {cpu['line_ms']:.2f} ms, SDK {cpu['sdk_ms']:.2f} ms, above {cpu['above_ms']:.2f} ms")
    print(
        f"throughput    {rate['questions']} at once in {rate['seconds']:.2f} s: {rate['share_of_ideal']:.0%} of ideal"
    )
    print(f"memory        {held['early_mb']:.0f} MB, then {held['late_mb']:.0f} MB: {held['growth']:+.1%}")


if __name__ == "__main__":
    main()
