"""Errors as pages: what the API and the guard answer as JSON, a browser shows as a page with what to do."""

from __future__ import annotations

import json
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mia.service.auth import Principal
from mia.service.dashboard.rendering import render


class ErrorPages:
    """The outermost: an error as JSON becomes a page, where whoever asked would rather read one (`Accept: text/html`,
    as browsers send it for what stands in the address bar). Programs, and htmx, get the JSON as ever."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or "text/html" not in Headers(scope=scope).get("accept", ""):
            await self._app(scope, receive, send)
            return
        start: Message | None = None
        body = b""

        async def turned(message: Message) -> None:
            nonlocal start, body
            if message["type"] == "http.response.start" and _is_error(message):
                start = message
            elif start is None:
                await send(message)
            else:
                body += message.get("body", b"")
                if not message.get("more_body"):
                    await _send_page(scope, start, body, send)

        await self._app(scope, receive, turned)


def _is_error(start: Message) -> bool:
    kind = Headers(raw=start.get("headers", [])).get("content-type", "")
    return start["status"] >= 400 and kind.startswith("application/json")


async def _send_page(scope: Scope, start: Message, body: bytes, send: Send) -> None:
    """What is no error of ours is sent as it came."""
    try:
        error: dict[str, Any] = json.loads(body)["error"]
        said = {name: str(error.get(name, "")) for name in ("message", "wanted", "hint", "request_id")}
    except (ValueError, TypeError, KeyError, AttributeError):
        await send(start)
        await send({"type": "http.response.body", "body": body})
        return
    principal: Principal = scope.get("state", {}).get("principal") or Principal("nobody", "")
    page = render(
        "trouble.html",
        Request(scope),
        principal=principal,
        # Whether the gate can say so or not: a page may come of its being stuck.
        closed=principal.name != "local",
        code=start["status"],
        got=said["message"] if said["message"] != "Not Found" else f"There is nothing at {scope['path']}",
        wanted=said["wanted"],
        hint=said["hint"],
        request_id=said["request_id"],
    ).encode()
    headers = MutableHeaders(raw=list(start["headers"]))
    headers["content-type"] = "text/html; charset=utf-8"
    headers["content-length"] = str(len(page))
    await send({**start, "headers": headers.raw})
    await send({"type": "http.response.body", "body": page if scope["method"] != "HEAD" else b""})
