"""`mia serve` as a process of its own, on loopback, with a model endpoint of this process."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx2
from fake_endpoint import Behaviour, FakeEndpoint, Received, says
from nursery import Nursery, Worker
from slow_endpoint import COMPRESSED, REPLIES

T = TypeVar("T")

PATIENCE = 60.0
RIGHT = "Huygens"


def speech(received: Received) -> str:
    """What the model says: it plans, searches once, and answers rightly."""
    last = str(received.body["messages"][-1]["content"])
    if "workflow" in last and "Write the plan" not in last:
        return COMPRESSED
    return next(reply for mark, reply in REPLIES.items() if mark in last)


async def answers(received: Received, writer: asyncio.StreamWriter) -> None:
    await says(speech(received))(received, writer)


class Endpoint:
    """A model endpoint on a thread of its own, whose behaviour a story may change at any time."""

    def __init__(self) -> None:
        self.behave: Behaviour = answers
        self.server: FakeEndpoint

    @contextmanager
    def running(self) -> Iterator[Endpoint]:
        async def behave(received: Received, writer: asyncio.StreamWriter) -> None:
            await self.behave(received, writer)

        ready, done = threading.Event(), asyncio.Event()
        loop = asyncio.new_event_loop()

        async def serve() -> None:
            self.server = FakeEndpoint(behave)
            async with self.server:
                ready.set()
                await done.wait()

        def end() -> None:
            done.set()

        thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), daemon=True)
        thread.start()
        assert ready.wait(PATIENCE)
        try:
            yield self
        finally:
            loop.call_soon_threadsafe(end)
            thread.join(PATIENCE)
            loop.close()


def variables_of(endpoint: Endpoint | None) -> dict[str, str]:
    """The settings of a server that asks this endpoint; None: the embedded model."""
    if endpoint is None:
        return {}
    return {
        "MIA_SEARCH__ENGINE": "world",
        "MIA_JUDGE__KIND": "reference",
        "MIA_MODELS__DEFAULT__MODEL": "tiny-1",
        "MIA_MODELS__DEFAULT__BASE_URL": endpoint.server.base_url,
    }


class Server:
    """One `mia serve`."""

    def __init__(self, nursery: Nursery, home: Path, endpoint: Endpoint | None, *options: str, **settings: str) -> None:
        variables = variables_of(endpoint) | settings
        arguments = ["--home", str(home), "serve", "--port", "0", *options]
        self.worker: Worker = nursery.start("cli", arguments=arguments, settings=variables)
        said = []
        while True:
            line = self.worker.stderr.readline()
            said.append(line)
            assert line, f"it ended: {''.join(said)}"
            if found := re.search(r"listens at (http://\S+)", line):
                break
        self.said = ""
        # Nobody reads what it says from here on, and a full pipe would hold it up.
        threading.Thread(target=self._listen, daemon=True).start()
        self.url = found[1]
        self.client = httpx2.Client(base_url=self.url, timeout=PATIENCE)
        self.wait_for(self._is_ready)

    def _listen(self) -> None:
        for line in self.worker.stderr:
            self.said += line

    def _is_ready(self) -> bool:
        try:
            return self.client.get("/readyz").status_code == 200
        except httpx2.TransportError:
            return False

    def get(self, path: str, **parameters: Any) -> Any:
        reply = self.client.get(path, params=parameters)
        assert reply.status_code == 200, reply.text
        return reply.json()

    def post(self, path: str, body: Any = None) -> Any:
        reply = self.client.post(path, json=body)
        assert reply.status_code < 300, reply.text
        return reply.json()

    def ask(self, question: str) -> Any:
        return self.post("/v1/ask", {"question": question, "references": [RIGHT]})

    def absorb_all(self) -> None:
        self.wait_for(lambda: not self.get("/v1/queue")["accepted_total"])

    def wait_for(self, what: Callable[[], T], seconds: float = PATIENCE) -> T:
        until = time.monotonic() + seconds
        while not (found := what()):
            assert time.monotonic() < until, f"in vain for {seconds} s: {self.said}"
            time.sleep(0.02)
        return found

    def close(self) -> None:
        """End it at once, if it has not ended."""
        if self.worker._status is None:
            self.worker.kill()
        self.client.close()

    def kill(self) -> None:
        """`kill -9`."""
        self.worker.kill()
        self.client.close()


class Serving:
    """Starts servers, and ends them with the story. Its processes need not load what a server loads."""

    def __init__(self, nursery: Nursery) -> None:
        self.nursery = nursery
        self._servers: list[Server] = []

    def __call__(self, home: Path, endpoint: Endpoint | None = None, *options: str, **settings: str) -> Server:
        self._servers.append(Server(self.nursery, home, endpoint, *options, **settings))
        return self._servers[-1]

    @classmethod
    @contextmanager
    def open(cls, *imports: str) -> Iterator[Serving]:
        with Nursery(imports=("mia.service.app", "uvicorn", "openai", *imports)) as nursery:
            serving = cls(nursery)
            try:
                yield serving
            finally:
                for server in serving._servers:
                    server.close()


def hold(mark: Callable[[str], bool]) -> tuple[Behaviour, threading.Event, threading.Event]:
    """An endpoint that keeps calls waiting whose last message is so; what is set when it met one, and what lets them
    go on."""
    met, go_on = threading.Event(), threading.Event()

    async def behave(received: Received, writer: asyncio.StreamWriter) -> None:
        if mark(json.dumps(received.body["messages"])):
            met.set()
            await asyncio.to_thread(go_on.wait, PATIENCE)
        await answers(received, writer)

    return behave, met, go_on
