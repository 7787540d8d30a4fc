"""Search of the web: SearXNG (a metasearch server of your own), Serper (Google, by key), ddgs (no server, no key).

What an engine finds becomes passages alike: the id and source are the page's URL, the text is its snippet. A query is
one request; those of a batch run together, a few at once. A failure is a `ToolError` for the whole batch, and nothing
is cached.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

from mia.config import SearchSettings
from mia.errors import ConfigError, ToolError, require
from mia.search.base import SearchEngine
from mia.search.http import HttpSearch, JsonEndpoint, Patience, plain
from mia.types import Passage

SERPER_URL = "https://google.serper.dev/search"
_AT_ONCE = 4
"""Queries under way at one engine."""


class SearxngSearch:
    """A SearXNG server, asked for JSON."""

    def __init__(self, url: str, *, patience: Patience = Patience()) -> None:
        """Raises ConfigError."""
        allow_json = "allow the format in its settings.yml: search: formats: [html, json]"
        endpoint = JsonEndpoint(
            "SearXNG", url, setting="search.url", hints={200: allow_json, 403: allow_json}, patience=patience
        )
        path = endpoint.url.path.rstrip("/")
        endpoint.url = endpoint.url.copy_with(path=path if path.endswith("/search") else f"{path}/search")
        self._endpoint = endpoint
        self.name = f"searxng:{endpoint.url.netloc.decode()}"

    async def search(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        """Raises ToolError."""

        async def one(query: str) -> list[Passage]:
            answer = await self._endpoint.ask("GET", params={"q": query, "format": "json"})
            results = answer.get("results") if isinstance(answer, dict) else None
            if not isinstance(results, list):
                raise self._endpoint.unusable('no {"results": […]}')
            return _passages(results, k, url="url", text="content")

        return await _together(queries, one)

    async def close(self) -> None:
        await self._endpoint.close()


class SerperSearch:
    """Google's results through serper.dev; the key is SERPER_API_KEY of the environment unless given."""

    def __init__(self, key: str = "", *, url: str = SERPER_URL, patience: Patience = Patience()) -> None:
        """Raises ConfigError without a key."""
        key = (key or os.environ.get("SERPER_API_KEY", "")).strip()
        if not key or not key.isascii() or not key.isprintable():
            raise ConfigError(
                "Serper's key is not one that can be sent." if key else "there is no key for Serper.",
                hint="export SERPER_API_KEY=…",
            )
        refused = "check SERPER_API_KEY, and the credits that are left"
        self._endpoint = JsonEndpoint(
            "Serper",
            url,
            headers={"X-API-KEY": key},
            secret=key,
            hints=dict.fromkeys((400, 401, 402, 403), refused),
            patience=patience,
        )
        self.name = "serper"

    async def search(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        """Raises ToolError."""

        async def one(query: str) -> list[Passage]:
            answer = await self._endpoint.ask("POST", body={"q": query, "num": k})
            # A query that finds nothing is answered without "organic"; the echo of the query shows that it is Serper.
            results = answer.get("organic", []) if isinstance(answer, dict) else None
            if not isinstance(results, list) or not ("organic" in answer or "searchParameters" in answer):
                raise self._endpoint.unusable('no {"organic": […]}')
            return _passages([*_direct_answers(answer), *results], k, url="link", text="snippet")

        return await _together(queries, one)

    async def close(self) -> None:
        await self._endpoint.close()


class DdgsSearch:
    """The metasearch library `ddgs`, which asks public engines from this machine."""

    def __init__(self, *, patience: Patience = Patience()) -> None:
        """Raises MissingExtra."""
        self._ddgs = require("ddgs", extra="web", purpose="the search engine 'ddgs'")
        self._patience = patience
        self.name = "ddgs"

    async def search(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        """Raises ToolError."""

        async def one(query: str) -> list[Passage]:
            try:
                async with asyncio.timeout(self._patience.seconds):
                    return _passages(await asyncio.to_thread(self._find, query, k), k, url="href", text="body")
            except TimeoutError:
                raise ToolError(f"ddgs gave no answer within {self._patience.seconds:g} s.") from None

        return await _together(queries, one)

    async def close(self) -> None:
        """There is nothing to close."""

    def _find(self, query: str, k: int) -> list[dict[str, Any]]:
        """One query, in a thread. The library asks several engines for it, which is its own kind of retry."""
        from ddgs.exceptions import DDGSException

        seconds = max(1, int(min(self._patience.silent_seconds, self._patience.seconds)))
        try:
            found: list[dict[str, Any]] = self._ddgs.DDGS(timeout=seconds).text(query, max_results=k)
        except DDGSException as error:
            if str(error) == "No results found.":
                return []
            raise ToolError(f"ddgs failed ({' '.join(str(error).split())[:200]}).") from error
        return found


def build_remote_engine(settings: SearchSettings) -> SearchEngine:
    """The engine that `search.engine` names, of those that are not on this disk. Raises ConfigError, MissingExtra."""
    if settings.engine == "http":
        return HttpSearch(settings.url)
    if settings.engine == "searxng":
        return SearxngSearch(settings.url)
    if settings.engine == "serper":
        return SerperSearch()
    if settings.engine == "ddgs":
        return DdgsSearch()
    raise ConfigError(f"the search engine '{settings.engine}' is not a remote one.")


async def _together(queries: Sequence[str], one: Callable[[str], Awaitable[list[Passage]]]) -> list[list[Passage]]:
    """The results of each query, in order; the first failure ends them all."""
    slots = asyncio.Semaphore(_AT_ONCE)

    async def when_free(query: str) -> list[Passage]:
        async with slots:
            return await one(query)

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(when_free(query)) for query in queries]
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]


def _passages(results: Iterable[Any], k: int, *, url: str, text: str) -> list[Passage]:
    """The first k results that are results: with an address, and with words. `url` and `text` name their fields."""
    found: dict[str, Passage] = {}
    for result in results:
        if not isinstance(result, Mapping):
            continue
        address, title = plain(result.get(url)), " ".join(plain(result.get("title")).split())
        words = plain(result.get(text)) or title
        if address and words and address not in found:
            rank = float(len(found) + 1)
            found[address] = Passage(id=address, title=title, text=words, source=address, parts={"rank": rank})
        if len(found) == k:
            break
    return list(found.values())


def _direct_answers(answer: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Serper's answer box and knowledge graph as results, where they say where they come from."""
    box, graph = answer.get("answerBox"), answer.get("knowledgeGraph")
    found: list[dict[str, Any]] = []
    if isinstance(box, dict):
        found.append({**box, "snippet": box.get("answer") or box.get("snippet")})
    if isinstance(graph, dict):
        snippet, link = graph.get("description"), graph.get("descriptionLink")
        found.append({"title": graph.get("title"), "snippet": snippet, "link": link})
    return found
