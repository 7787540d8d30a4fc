"""A web server on loopback that sends what a test tells it to, byte for byte, over real sockets.

    async with WebServer({"/page": page("<p>Hello</p>")}) as server:
        ... server.url + "/page" ...; server.requests[0].headers["host"]

A list of behaviours is served one after the other, and its last one stays. An unknown path is answered with 404.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    """With its query."""
    headers: dict[str, str]
    body: bytes


Behaviour = Callable[[Request, asyncio.StreamWriter], Awaitable[None]]


class WebServer:
    def __init__(
        self, pages: Mapping[str, Behaviour | Sequence[Behaviour]], *, ssl_context: ssl.SSLContext | None = None
    ) -> None:
        self.pages = {path: list(page) if isinstance(page, Sequence) else [page] for path, page in pages.items()}
        self.requests: list[Request] = []
        self._ssl_context = ssl_context
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> WebServer:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=self._ssl_context)
        self.port: int = self._server.sockets[0].getsockname()[1]
        self.url = f"{'https' if self._ssl_context else 'http'}://127.0.0.1:{self.port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.sleep(0.01)  # A connection that is accepted while the server closes would never be closed.
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.sleep(0)  # The loop closes a socket one turn after it was aborted.
        await self._server.wait_closed()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while not writer.is_closing():
                request = await _read(reader)
                self.requests.append(request)
                queue = self.pages.get(request.path.partition("?")[0], [page("nothing here", status=404)])
                await (queue.pop(0) if len(queue) > 1 else queue[0])(request, writer)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            pass
        finally:
            writer.close()


async def _read(reader: asyncio.StreamReader) -> Request:
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    method, path, _ = first.split()
    return Request(method, path, headers, await reader.readexactly(int(headers.get("content-length", "0"))))


def page(content: str | bytes, content_type: str = "text/html", *, status: int = 200, **headers: str) -> Behaviour:
    """A whole answer; an empty content type is not sent."""
    body = content.encode() if isinstance(content, str) else content

    async def behave(request: Request, writer: asyncio.StreamWriter) -> None:
        typed = {"content_type": content_type} if content_type else {}
        writer.write(head(status, content_length=str(len(body)), **typed, **headers) + body)

    return behave


def redirect(location: str, status: int = 302) -> Behaviour:
    return page("", status=status, location=location)


def floods(piece: bytes, content_type: str = "text/plain") -> Behaviour:
    """The same bytes again and again, until the client hangs up."""

    async def behave(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(head(200, content_type=content_type, connection="close"))
        while True:
            writer.write(piece)
            await writer.drain()

    return behave


def drips(seconds: float) -> Behaviour:
    """A byte at a time, for ever: no single read takes long."""

    async def behave(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(head(200, content_type="text/plain", content_length="1000000"))
        while True:
            writer.write(b".")
            await writer.drain()
            await asyncio.sleep(seconds)

    return behave


async def hangs(request: Request, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(3600)


async def hangs_up(request: Request, writer: asyncio.StreamWriter) -> None:
    writer.close()


def head(status: int, **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} -", *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode()
