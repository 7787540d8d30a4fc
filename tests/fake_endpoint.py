"""A chat endpoint on loopback that does whatever a test tells it to, over real sockets.

    async with FakeEndpoint(status(500), says("Paris")) as endpoint:
        ... endpoint.base_url ...; endpoint.requests[0].body["messages"]

Each request takes the next behaviour; the last one stays. A behaviour is a coroutine function of (received, writer).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Received:
    """One request as it came."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any] = field(default_factory=dict)


Behaviour = Callable[[Received, asyncio.StreamWriter], Awaitable[None]]


class FakeEndpoint:
    def __init__(self, *behaviours: Behaviour) -> None:
        self.behaviours = list(behaviours)
        self.requests: list[Received] = []
        self.active = 0
        self.most_active = 0
        self.connections = 0

    async def __aenter__(self) -> FakeEndpoint:
        self._tasks: set[asyncio.Task[None]] = set()
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.base_url = f"http://127.0.0.1:{port}/v1"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while not writer.is_closing():
                received = await _read_request(reader)
                self.requests.append(received)
                behaviour = self.behaviours.pop(0) if len(self.behaviours) > 1 else self.behaviours[0]
                self.active += 1
                self.most_active = max(self.most_active, self.active)
                try:
                    await behaviour(received, writer)
                    await writer.drain()
                finally:
                    self.active -= 1
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


async def _read_request(reader: asyncio.StreamReader) -> Received:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    first, *lines = head.strip().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    content = await reader.readexactly(int(headers.get("content-length", "0")))
    return Received(first.split()[1], headers, json.loads(content) if content else {})


def head(status: int = 200, **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} -", *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode()


def sends(body: bytes | str, *, status: int = 200, content_type: str = "application/json", **headers: str) -> Behaviour:
    """A whole answer."""
    content = body.encode() if isinstance(body, str) else body

    async def behave(received: Received, writer: asyncio.StreamWriter) -> None:
        length = str(len(content))
        writer.write(head(status, content_type=content_type, content_length=length, **headers) + content)

    return behave


def completion(text: str | None, *, finish: str | None = "stop", usage: bool = True, **message: Any) -> dict[str, Any]:
    """A chat completion as an endpoint sends it."""
    content: dict[str, Any] = {
        "id": "c",
        "object": "chat.completion",
        "created": 1,
        "model": "tiny-1",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": text, **message}, "finish_reason": finish}
        ],
    }
    if usage:
        content["usage"] = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
    return content


def says(text: str | None, **changes: Any) -> Behaviour:
    """A reply with this text."""
    return sends(json.dumps(completion(text, **changes)))


def fails(status: int, message: str = "no", **headers: str) -> Behaviour:
    """An error in the usual form."""
    return sends(json.dumps({"error": {"message": message, "type": "error"}}), status=status, **headers)


def after(seconds: float, behaviour: Behaviour) -> Behaviour:
    async def behave(received: Received, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(seconds)
        await behaviour(received, writer)

    return behave


async def hangs(received: Received, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(3600)


async def hangs_up(received: Received, writer: asyncio.StreamWriter) -> None:
    writer.close()


def drips(seconds: float) -> Behaviour:
    """A byte at a time, for ever: no read ever times out."""

    async def behave(received: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(head(content_type="application/json", content_length="1000000"))
        while True:
            writer.write(b" ")
            await writer.drain()
            await asyncio.sleep(seconds)

    return behave


def breaks_off(body: str) -> Behaviour:
    """Promises more than it sends, and hangs up."""

    async def behave(received: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(head(content_type="application/json", content_length=str(len(body) + 100)) + body.encode())
        await writer.drain()
        writer.close()

    return behave


class Flood:
    """More than anyone wants; stops when the client hangs up. `sent` says how many megabytes it got rid of."""

    def __init__(self, *, status: int = 200, content_type: str = "application/json", line: bytes = b"x") -> None:
        self.sent = 0
        self._head = head(status, content_type=content_type, connection="close")
        self._megabyte = line * ((1 << 20) // len(line))

    async def __call__(self, received: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(self._head)
        for _ in range(200):
            writer.write(self._megabyte)
            await writer.drain()
            self.sent += 1
        writer.close()


def event(content: dict[str, Any] | str) -> str:
    return f"data: {content if isinstance(content, str) else json.dumps(content)}\n\n"


def piece(text: str = "", *, finish: str | None = None, **delta: Any) -> str:
    """One event of a streamed reply."""
    choice = {"index": 0, "delta": {"content": text, **delta}, "finish_reason": finish}
    return event({"id": "c", "model": "tiny-1", "object": "chat.completion.chunk", "choices": [choice]})


def streams(*events: str) -> Behaviour:
    """Server-sent events, in chunks, the connection kept."""

    async def behave(received: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(head(content_type="text/event-stream", transfer_encoding="chunked"))
        for text in events:
            data = text.encode()
            writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            await writer.drain()
        await asyncio.sleep(0.01)
        writer.write(b"0\r\n\r\n")

    return behave
