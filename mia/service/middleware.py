"""What every request goes through, from the outside in.

Envelope   a request id, the metrics, the headers that protect a browser; a bug becomes a 500 without a traceback
Guard      whose name it was asked under, where it comes from, who asks, how often
Limits     how many at a time, and of these how many from one token; how large, how long
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import re
import time
import uuid
from collections import Counter, OrderedDict
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mia.config import ServeSettings
from mia.errors import MiaError
from mia.redaction import Redactor
from mia.service.auth import LOCAL, Gate, Principal, Unauthorized, is_loopback
from mia.service.metrics import Metrics
from mia.service.problems import answer_of, problem
from mia.service.sessions import COOKIE, Sessions

log = logging.getLogger("mia.service")

PUBLIC = ("/healthz", "/readyz", "/login", "/static/")
"""What may be asked without a token."""
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_SAFE = frozenset(("GET", "HEAD", "OPTIONS"))
_DROPPED_BYTES, _DROPPED_SECONDS = 32_000_000, 2.0
"""So much of a body that is too large is read once it is refused, and no longer."""
_HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; font-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
}


class Envelope:
    """The outermost."""

    def __init__(self, app: ASGIApp, metrics: Metrics, redactor: Redactor) -> None:
        self._app = app
        self._metrics = metrics
        self._redactor = redactor

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = _header(scope, b"x-request-id")
        id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = id
        begun, status = time.perf_counter(), 0

        async def tagged(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = list(message.get("headers", []))
                present = {name.lower() for name, _ in headers}
                extra = {**_HEADERS, "x-request-id": id}
                if not scope["path"].startswith("/static/"):
                    extra["cache-control"] = "no-store"
                headers += [
                    (name.encode(), value.encode()) for name, value in extra.items() if name.encode() not in present
                ]
                message = {**message, "headers": headers}
            await send(message)

        self._metrics.under_way.inc()
        try:
            await self._app(scope, receive, tagged)
        except Exception:
            # A bug: told to whoever runs the server, not to whoever asked.
            import traceback

            log.error("request %s: %s", id, self._redactor(traceback.format_exc()))
            if status:
                raise
            message = "this is a fault of the server; its log has more under this request id."
            await _send_json(tagged, 500, problem(500, message, kind="InternalError", request_id=id))
        finally:
            self._metrics.under_way.dec()
            route = getattr(scope.get("route"), "path", "") or "other"
            self._metrics.observe(scope["method"], route, status or 499, time.perf_counter() - begun)


class Guard:
    """Lets in who may."""

    def __init__(self, app: ASGIApp, settings: ServeSettings, gate: Gate, sessions: Sessions) -> None:
        self._app = app
        self._settings = settings
        self._gate = gate
        self._sessions = sessions
        # "testserver" is what test clients without a socket call every server; no name of the internet has one part.
        self._names = {settings.host.strip("[]").lower(), "testserver", *(one.lower() for one in settings.hosts)}
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """Principal → requests left, and when that was."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
                return
            await self._app(scope, receive, send)
            return
        id, path = scope["state"]["request_id"], scope["path"]
        public = any(path == one or (one.endswith("/") and path.startswith(one)) for one in PUBLIC)
        try:
            trouble = self._stranger(scope)
            if trouble:
                await _send_json(send, 403, problem(403, trouble, kind="Forbidden", request_id=id))
                return
            principal = self._principal(scope)
        except MiaError as error:
            if not public:
                if (
                    isinstance(error, Unauthorized)
                    and scope["method"] == "GET"
                    and "text/html" in _header(scope, b"accept")
                ):
                    await RedirectResponse("/login", 303)(scope, receive, send)
                else:
                    await answer_of(error, id)(scope, receive, send)
                return
            principal = Principal("nobody", "")
        scope["state"]["principal"] = principal
        if not public and not self._admits(principal):
            most = self._settings.requests_per_minute
            message, pause = f"more than {most} requests a minute.", math.ceil(60 / most)
            hint = f"try again in {pause} s, or raise serve.requests_per_minute"
            body = problem(429, message, kind="RateLimited", hint=hint, request_id=id)
            await _send_json(send, 429, body, {"retry-after": str(pause)})
            return
        await self._app(scope, receive, send)

    def _principal(self, scope: Scope) -> Principal:
        """Raises Unauthorized, GateStuck."""
        if not self._gate.closed:
            return LOCAL
        kind, _, token = _header(scope, b"authorization").partition(" ")
        if token and kind.lower() == "bearer":
            return self._gate.principal(token.strip())
        # Pages come with their session.
        session = Request(scope).cookies.get(COOKIE, "")
        if session:
            principal = self._sessions.principal(session)
            if principal is None:
                raise Unauthorized("this session has ended.", hint="log in again")
            return principal
        return self._gate.principal(_header(scope, b"x-api-key"))

    def _stranger(self, scope: Scope) -> str:
        """Why a request does not come from where it should: another page's, or under a name that is not ours."""
        host = _header(scope, b"host")
        name = _name_in(f"//{host}")
        if not self._gate.closed and not is_loopback(name) and name not in self._names:
            return "this server is asked for by a name that is not its own; serve.hosts may list it."
        site = _header(scope, b"sec-fetch-site")
        navigates = scope["method"] in _SAFE and _header(scope, b"sec-fetch-mode") == "navigate"
        if site in ("cross-site", "same-site") and not navigates:
            return "the request comes from a page of another site."
        origin = _header(scope, b"origin")
        if origin and scope["method"] not in _SAFE and _place_of(origin) != host.lower():
            return "the request comes from a page of another site."
        return ""

    def _admits(self, principal: Principal) -> bool:
        """A bucket that fills evenly, and holds a minute's worth."""
        most = self._settings.requests_per_minute
        if not most:
            return True
        now = time.monotonic()
        left, since = self._buckets.pop(principal.name, (float(most), now))
        left = min(float(most), left + (now - since) * most / 60)
        self._buckets[principal.name] = (left - 1 if left >= 1 else left, now)
        while len(self._buckets) > 10_000:
            self._buckets.popitem(last=False)
        return left >= 1


class _Refused(Exception):
    """More came than may, or too slowly. Whoever reads the body may take it for a fault of his own; `Limits` knows
    better."""


class Limits:
    """Sends away what is too much."""

    def __init__(self, app: ASGIApp, settings: ServeSettings) -> None:
        self._app = app
        self._settings = settings
        self._most_bytes = int(settings.max_body_mb * 1_000_000)
        self._under_way: Counter[str] = Counter()
        """By principal."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in ("/healthz", "/readyz"):
            await self._app(scope, receive, send)
            return
        id, name = scope["state"]["request_id"], scope["state"]["principal"].name
        if busy := self._busy(name):
            status, kind, message = busy
            body = problem(status, message, kind=kind, hint="try again, or raise serve.max_concurrency", request_id=id)
            await _send_json(send, status, body, {"retry-after": "1"})
            return
        most_mb, most_seconds = self._settings.max_body_mb, self._settings.max_body_seconds
        too_large = problem(
            413, f"the body is larger than {most_mb:g} MB.", kind="TooLarge", hint="serve.max_body_mb", request_id=id
        )
        length = _header(scope, b"content-length")
        # Python reads no number of thousands of digits.
        if length and (not length.isdecimal() or len(length) > 18 or int(length) > self._most_bytes):
            await _send_json(send, 413, too_large, {"connection": "close"}, rest=receive)
            return
        taken, whole, started = 0, False, False
        refused: tuple[int, dict[str, Any]] | None = None
        body_until = asyncio.get_running_loop().time() + most_seconds

        async def counted() -> Message:
            nonlocal taken, whole, refused
            try:
                # Once the body is there, what comes next is that somebody hangs up.
                async with asyncio.timeout_at(None if whole else body_until) as deadline:
                    message = await receive()
            except TimeoutError:
                if not deadline.expired():
                    raise
                said = f"the body was not there within {most_seconds:g} seconds."
                refused = 408, problem(408, said, kind="TimedOut", hint="serve.max_body_seconds", request_id=id)
                raise _Refused from None
            taken += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if taken > self._most_bytes:
                refused = 413, too_large
                raise _Refused
            return message

        async def noted(message: Message) -> None:
            nonlocal started
            if refused and not started:
                # What the app makes of it; the right answer comes below.
                return
            started = True
            await send(message)

        self._under_way[name] += 1
        try:
            async with asyncio.timeout(self._settings.max_seconds) as deadline:
                await self._app(scope, counted, noted)
        except _Refused:
            pass
        except TimeoutError:
            if not deadline.expired():
                raise
            if not started:
                message = f"this took longer than {self._settings.max_seconds:g} seconds, and was broken off."
                body = problem(504, message, kind="TimedOut", hint="serve.max_seconds; or a job", request_id=id)
                await _send_json(send, 504, body)
        finally:
            self._under_way[name] -= 1
            if not self._under_way[name]:
                del self._under_way[name]
        if refused and not started:
            status, body = refused
            rest = receive if status == 413 and not whole else None
            await _send_json(send, status, body, {"connection": "close"}, rest=rest)

    def _busy(self, name: str) -> tuple[int, str, str] | None:
        """Why no more is taken from this principal for now: status, kind and sentence. Where there are tokens, none of
        them holds more than half of the places, nor do all together who come without one (they may log in)."""
        most, under_way = self._settings.max_concurrency, self._under_way.total()
        if under_way >= most:
            return 503, "Busy", f"{under_way} requests are under way; no more are taken for now."
        if name != LOCAL.name and self._under_way[name] >= max(1, most // 2):
            return 429, "RateLimited", f"{self._under_way[name]} requests of this token are under way."
        return None


def _header(scope: Scope, name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), "")


def _name_in(url: str) -> str:
    """The host of a URL in lower case, without its port; empty where there is none, or it is no URL."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _place_of(url: str) -> str:
    """Host and port of a URL as they stand; empty where it is no URL."""
    try:
        return urlsplit(url).netloc.lower()
    except ValueError:
        return ""


async def _send_json(
    send: Send, status: int, body: Mapping[str, Any], headers: Mapping[str, str] = {}, *, rest: Receive | None = None
) -> None:
    """`rest`: what still comes of the request is dropped for a while before the answer ends, and the connection with
    it. Most clients read no answer before they have sent everything, and never see that of a connection which is closed
    in the middle."""
    content = json.dumps(body).encode()
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(content)).encode()),
                *((name.encode(), value.encode()) for name, value in headers.items()),
            ],
        }
    )
    await send({"type": "http.response.body", "body": content, "more_body": rest is not None})
    if rest is not None:
        await _drop(rest)
        await send({"type": "http.response.body"})


async def _drop(rest: Receive) -> None:
    dropped = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_DROPPED_SECONDS):
            while dropped < _DROPPED_BYTES:
                message = await rest()
                dropped += len(message.get("body", b""))
                if not message.get("more_body", False):
                    return
