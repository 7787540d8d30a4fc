"""Search engines behind HTTP: the patience and suspicion they share, and the `/retrieve` protocol of Search-R1.

`JsonEndpoint` asks one server for JSON. An answer comes whole and as JSON, or a `ToolError` says why not: retries are
few and bounded in time, bodies are bounded in size, nothing is cached, redirects are not followed (a key could go
along), and no key ever stands in an error. The user chose the address, so it may be on this machine.

The protocol: POST {"queries": […], "topk": k, "return_scores": true}, answered by {"result": [[hit, …], …]}, a list per
query. A hit is {"document": {"contents": "title\\ntext"}, "score": 0.5}, or the document alone.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx2

from mia import __version__
from mia.errors import ConfigError, ToolError
from mia.types import Passage

_RETRIED = frozenset((408, 425, 429, 500, 502, 503, 504))
_MAX_BODY_BYTES = 8 * 1024 * 1024


@dataclass(frozen=True)
class Patience:
    """How long an engine is waited for."""

    attempts: int = 3
    silent_seconds: float = 20.0
    """For one try: no byte of an answer for so long."""
    seconds: float = 45.0
    """For all tries together."""
    backoff_seconds: float = 0.5
    """The longest first wait; it doubles with each try."""


class _TryAgain(Exception):
    """A try failed in a way that may pass; `wait` is what the server asked for."""

    def __init__(self, error: ToolError, wait: float = 0.0) -> None:
        super().__init__(error.got)
        self.error = error
        self.wait = wait


class JsonEndpoint:
    """One address that answers JSON. Safe to use concurrently."""

    def __init__(
        self,
        name: str,
        url: str,
        *,
        setting: str = "",
        headers: Mapping[str, str] | None = None,
        secret: str = "",
        hints: Mapping[int, str] | None = None,
        patience: Patience = Patience(),
    ) -> None:
        """`name`: the engine, in errors. `setting`: where its address is set. `secret`: what must stand in no error.
        `hints`: what to try on a status. Raises ConfigError for an address that is none."""
        self.url = _check_url(name, url, setting)
        self._name = f"{name} ({self.url.host})"
        self._headers = {"User-Agent": f"mia-agent/{__version__}", "Accept": "application/json", **(headers or {})}
        self._secret = secret
        self._hints = hints or {}
        self._patience = patience
        self._client: httpx2.AsyncClient | None = None

    async def ask(self, method: str, *, params: Mapping[str, str] | None = None, body: Any = None) -> Any:
        """The JSON of the answer. Raises ToolError."""
        patience = self._patience
        deadline = time.monotonic() + patience.seconds
        attempt = 0
        while True:
            attempt += 1
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    return await self._try(method, params, body)
            except TimeoutError:
                raise self._error(f"gave no answer within {patience.seconds:g} s") from None
            except _TryAgain as failure:
                pause = failure.wait + random.random() * patience.backoff_seconds * 2 ** (attempt - 1)
                if attempt >= patience.attempts or time.monotonic() + pause >= deadline:
                    raise failure.error from None
            await asyncio.sleep(pause)

    async def close(self) -> None:
        """Let go of connections; a later call opens new ones."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def _try(self, method: str, params: Mapping[str, str] | None, body: Any) -> Any:
        try:
            async with self._connected().stream(method, self.url, params=params, json=body) as response:
                content = await self._read(response)
        except httpx2.TimeoutException:
            raise _TryAgain(self._error(f"sent nothing for {self._patience.silent_seconds:g} s")) from None
        except httpx2.TransportError as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise _TryAgain(
                self._error(f"cannot be reached, or broke off ({reason})", hint="is it running, and at this address?")
            ) from None
        except httpx2.DecodingError:
            raise self._error("sent a body that cannot be unpacked") from None
        if not response.is_success:
            raise self._status_error(response, content)
        return self._parse(response, content)

    async def _read(self, response: httpx2.Response) -> bytes:
        content = bytearray()
        async for chunk in response.aiter_bytes():
            content += chunk
            if len(content) > _MAX_BODY_BYTES:
                raise self._error(f"sent more than {_MAX_BODY_BYTES >> 20} MB, which is no list of results")
        return bytes(content)

    def _parse(self, response: httpx2.Response, content: bytes) -> Any:
        try:
            return json.loads(content)
        except (ValueError, RecursionError):
            markup = "html" in response.headers.get("content-type", "") or content.lstrip().startswith(b"<")
            what = "an HTML page" if markup else "no JSON" if content.strip() else "an empty body"
            raise self._error(f"sent {what} instead of results", hint=self._hints.get(200, "")) from None

    def _status_error(self, response: httpx2.Response, content: bytes) -> ToolError | _TryAgain:
        status = response.status_code
        if 300 <= status < 400:
            return self._error(f"redirects (status {status}), which is not followed", hint="set the address it names")
        said = _message(content)
        error = self._error(f"answers {status}" + (f": {said}" if said else ""), hint=self._hints.get(status, ""))
        if status not in _RETRIED:
            return error
        asked = response.headers.get("retry-after", "")
        return _TryAgain(error, float(asked) if asked.isascii() and asked.isdecimal() else 0.0)

    def _error(self, what: str, hint: str = "") -> ToolError:
        got = f"{self._name} {what}."
        return ToolError(got.replace(self._secret, "***") if self._secret else got, hint=hint)

    def unusable(self, what: str) -> ToolError:
        """The error of an answer that is JSON, and not what was asked for."""
        return self._error(f"answers in a form that is not understood ({what})")

    def _connected(self) -> httpx2.AsyncClient:
        if self._client is None:
            silent = self._patience.silent_seconds
            timeout = httpx2.Timeout(silent, connect=min(silent, 10.0), pool=None)
            self._client = httpx2.AsyncClient(headers=self._headers, timeout=timeout, follow_redirects=False)
        return self._client


class HttpSearch:
    """A server of Search-R1's `/retrieve`."""

    def __init__(self, url: str, *, patience: Patience = Patience()) -> None:
        """Raises ConfigError."""
        endpoint = JsonEndpoint("the retrieval server", url, setting="search.url", patience=patience)
        if endpoint.url.path == "/":
            endpoint.url = endpoint.url.copy_with(path="/retrieve")
        self._endpoint = endpoint
        self.name = f"http:{endpoint.url.netloc.decode()}"

    async def search(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        """Raises ToolError."""
        if not queries:
            return []
        body = {"queries": list(queries), "topk": k, "return_scores": True}
        answer = await self._endpoint.ask("POST", body=body)
        results = answer.get("result") if isinstance(answer, dict) else None
        if not isinstance(results, list) or not all(isinstance(hits, list) for hits in results):
            raise self._endpoint.unusable('no {"result": [[…], …]}')
        if len(results) != len(queries):
            raise self._endpoint.unusable(f"{len(results)} lists of results for {len(queries)} queries")
        return [[self._passage(hit) for hit in hits[:k]] for hits in results]

    async def close(self) -> None:
        await self._endpoint.close()

    def _passage(self, hit: Any) -> Passage:
        """Raises ToolError for a hit that holds no document."""
        document = hit.get("document", hit) if isinstance(hit, dict) else None
        if not isinstance(document, dict):
            raise self._endpoint.unusable("a result that is no document")
        contents = plain(document.get("contents"))
        title, _, text = contents.partition("\n") if "\n" in contents else ("", "", contents)
        title = plain(document.get("title")) or title.strip().strip('"')
        text = text.strip() or plain(document.get("text"))
        if not text:
            raise self._endpoint.unusable('a document without "contents"')
        given = document.get("id")
        known = plain(str(given)) if isinstance(given, (str, int)) and not isinstance(given, bool) else ""
        content_hash = hashlib.sha256(f"{title}\n{text}".encode()).hexdigest()[:16]
        score = hit.get("score")
        usable = isinstance(score, (int, float)) and math.isfinite(score)
        return Passage(id=known or content_hash, title=title, text=text, score=float(score) if usable else 0.0)


def plain(value: Any) -> str:
    """The text in a field of a JSON answer, without what no text holds; empty where it is no text."""
    if not isinstance(value, str):
        return ""
    return value.encode("utf-8", "replace").decode().replace("\x00", " ").strip()


def _message(content: bytes) -> str:
    """What an error's JSON says of itself; empty for anything else, since an error page is no reason."""
    try:
        answer = json.loads(content)
    except (ValueError, RecursionError):
        return ""
    for key in ("message", "error", "detail"):
        said = plain(answer.get(key)) if isinstance(answer, dict) else ""
        if said:
            return " ".join(said.split())[:200].rstrip(".")
    return ""


def _check_url(name: str, url: str, setting: str) -> httpx2.URL:
    hint = f"{setting} = http://HOST:PORT" if setting else ""
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise ConfigError(f"the address of {name} is none: {error}.", hint=hint) from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        got = f"the address of {name} is none: '{parsed.scheme}://{parsed.host}'." if url else f"{name} has no address."
        raise ConfigError(got, wanted="http://… or https://…", hint=hint)
    return parsed
