"""Web engines against servers on loopback that answer as the real ones do, or worse."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from web_server import Behaviour, Request, WebServer, hangs, page

from mia.config import SearchSettings
from mia.errors import ConfigError, MissingExtra, ToolError
from mia.search.http import HttpSearch, Patience
from mia.search.web import DdgsSearch, SearxngSearch, SerperSearch, build_remote_engine
from mia.types import Passage

QUICK = Patience(attempts=2, silent_seconds=0.3, seconds=5, backoff_seconds=0.01)
KEY = "serper-key-0123456789"


def answers(value: Any, status: int = 200) -> Behaviour:
    return page(json.dumps(value), "application/json", status=status)


# ── SearXNG ───────────────────────────────────────────────────────────────────────────────────────────────────────

SEARXNG = {
    "query": "titan",
    "results": [
        {"url": "https://a.example/titan", "title": "Titan  moon", "content": "Titan is a moon.", "engine": "x"},
        {"url": "https://b.example/", "title": "Only a title", "content": ""},
        {"url": "https://c.example/", "title": "", "content": None},
        {"title": "no address", "content": "lost"},
        "no result",
        {"url": "https://a.example/titan", "title": "again", "content": "again"},
        {"url": "https://d.example/", "title": "Half \ud800", "content": "words"},
    ],
}  # fmt: skip


async def test_searxng() -> None:
    async with WebServer({"/search": answers(SEARXNG)}) as server:
        engine = SearxngSearch(server.url, patience=QUICK)
        ((first, second, third),) = await engine.search(["titan & rhea"], 10)
        ((only,),) = await engine.search(["titan"], 1)
        await engine.close()
    assert first == Passage(
        id="https://a.example/titan", title="Titan moon", text="Titan is a moon.", source="https://a.example/titan",
        parts={"rank": 1},
    )  # fmt: skip
    assert (second.text, second.parts) == ("Only a title", {"rank": 2})
    assert third.title == "Half ?"
    assert only == first
    query = parse_qs(urlsplit(server.requests[0].path).query)
    assert query == {"q": ["titan & rhea"], "format": ["json"]}


@pytest.mark.parametrize("path", ["/searx", "/searx/", "/searx/search", "/searx/search/"])
async def test_searxng_below_a_path(path: str) -> None:
    async with WebServer({"/searx/search": answers({"results": []})}) as server:
        engine = SearxngSearch(server.url + path, patience=QUICK)
        assert await engine.search(["titan"], 3) == [[]]
        await engine.close()


@pytest.mark.parametrize(
    ("behaviour", "reason", "hint"),
    [
        (page("<html>Forbidden</html>", status=403), "answers 403", "formats"),
        (page("<html>results</html>"), "an HTML page", "formats"),
        (answers({"result": []}), "not understood", ""),
        (answers([]), "not understood", ""),
        (answers({}, 500), "answers 500", ""),
        (answers({}, 429), "answers 429", ""),
        (hangs, "sent nothing", ""),
    ],
)
async def test_searxng_failing(behaviour: Behaviour, reason: str, hint: str) -> None:
    async with WebServer({"/search": behaviour}) as server:
        engine = SearxngSearch(server.url, patience=QUICK)
        with pytest.raises(ToolError, match=reason) as caught:
            await engine.search(["titan", "rhea"], 3)
        await engine.close()
    assert hint in caught.value.hint


async def test_a_batch_runs_together_in_order_and_a_few_at_once() -> None:
    under_way = most = 0

    async def slow(request: Request, writer: asyncio.StreamWriter) -> None:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        query = parse_qs(urlsplit(request.path).query)["q"][0]
        await asyncio.sleep(0.05 if query != "query 0" else 0.15)
        under_way -= 1
        await answers({"results": [{"url": f"https://a.example/{query}", "title": query}]})(request, writer)

    async with WebServer({"/search": slow}) as server:
        engine = SearxngSearch(server.url, patience=QUICK)
        queries = [f"query {number}" for number in range(8)]
        results = await engine.search(queries, 3)
        await engine.close()
    assert [passages[0].title for passages in results] == queries
    assert 2 <= most <= 4


async def test_cancelling_passes_through() -> None:
    async with WebServer({"/search": hangs}) as server:
        engine = SearxngSearch(server.url, patience=Patience(silent_seconds=30))
        task = asyncio.create_task(engine.search(["titan", "rhea"], 3))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await engine.close()


# ── Serper ────────────────────────────────────────────────────────────────────────────────────────────────────────

SERPER = {
    "searchParameters": {"q": "titan"},
    "answerBox": {"title": "Who found Titan", "answer": "C. Huygens", "link": "https://box.example/"},
    "knowledgeGraph": {"title": "Titan", "description": "A moon.", "descriptionLink": "https://graph.example/"},
    "organic": [{"title": "Titan", "link": "https://a.example/", "snippet": "Titan is a moon.", "position": 1}],
}


async def serper(value: Behaviour, *queries: str, k: int = 5) -> tuple[list[list[Passage]], WebServer]:
    async with WebServer({"/search": value}) as server:
        engine = SerperSearch(KEY, url=server.url + "/search", patience=QUICK)
        try:
            return await engine.search(queries or ("titan",), k), server
        finally:
            await engine.close()


async def test_serper() -> None:
    (passages,), server = await serper(answers(SERPER))
    assert [(passage.id, passage.text) for passage in passages] == [
        ("https://box.example/", "C. Huygens"),
        ("https://graph.example/", "A moon."),
        ("https://a.example/", "Titan is a moon."),
    ]
    (request,) = server.requests
    assert json.loads(request.body) == {"q": "titan", "num": 5}
    assert request.headers["x-api-key"] == KEY


async def test_serper_finding_nothing() -> None:
    assert (await serper(answers({"searchParameters": {"q": "titan"}})))[0] == [[]]
    assert (await serper(answers({"organic": []})))[0] == [[]]
    box = {"organic": [], "answerBox": {"answer": "no link"}, "knowledgeGraph": "no graph"}
    assert (await serper(answers(box)))[0] == [[]]


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        (answers({"message": f"Unauthorized: key {KEY} is wrong."}, 403), r"answers 403: Unauthorized: key \*\*\*"),
        (answers({"message": "Not enough credits"}, 400), "answers 400: Not enough credits"),
        (answers({}), "not understood"),
        (answers([]), "not understood"),
        (answers({"organic": "none"}), "not understood"),
        (page("<html>", status=502), "answers 502"),
        (hangs, "sent nothing"),
    ],
)
async def test_serper_failing(behaviour: Behaviour, reason: str) -> None:
    with pytest.raises(ToolError, match=reason) as caught:
        await serper(behaviour)
    assert KEY not in f"{caught.value!r} {caught.value} {caught.value.hint}"


async def test_the_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERPER_API_KEY", KEY)
    async with WebServer({"/search": answers(SERPER)}) as server:
        engine = SerperSearch(url=server.url + "/search")
        await engine.search(["titan"], 1)
        await engine.close()
    assert server.requests[0].headers["x-api-key"] == KEY


@pytest.mark.parametrize("key", [None, "", "  ", "käse", "line\nbreak"])
def test_without_a_key_there_is_no_engine(monkeypatch: pytest.MonkeyPatch, key: str | None) -> None:
    monkeypatch.delenv("SERPER_API_KEY", raising=False)
    if key is not None:
        monkeypatch.setenv("SERPER_API_KEY", key)
    with pytest.raises(ConfigError, match="Serper") as caught:
        SerperSearch()
    assert "SERPER_API_KEY" in caught.value.hint
    assert not key or not key.strip() or key not in str(caught.value)


# ── ddgs ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def text(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Stands where the library asks public engines, which no test may; returns or raises what is put in here."""
    ddgs = pytest.importorskip("ddgs", reason="needs the extra 'web'")
    replies: list[Any] = []

    def find(self: object, query: str, max_results: int) -> list[dict[str, Any]]:
        reply = replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        if isinstance(reply, threading.Event):
            reply.wait(5)
            return []
        return reply[:max_results]

    monkeypatch.setattr(type(ddgs.DDGS()), "text", find)
    return replies


async def test_ddgs(text: list[Any]) -> None:
    text.append([{"title": "Titan", "href": "https://a.example/", "body": "Titan is a moon."}, {"title": "no address"}])
    ((passage,),) = await DdgsSearch().search(["titan"], 3)
    assert (passage.id, passage.title, passage.text) == ("https://a.example/", "Titan", "Titan is a moon.")


async def test_ddgs_finding_nothing_is_no_failure(text: list[Any]) -> None:
    from ddgs.exceptions import DDGSException, TimeoutException

    text.append(DDGSException("No results found."))
    assert await DdgsSearch().search(["titan"], 3) == [[]]
    text.append(TimeoutException("engines timed out"))
    with pytest.raises(ToolError, match="timed out"):
        await DdgsSearch().search(["titan"], 3)


async def test_ddgs_that_does_not_come_back(text: list[Any]) -> None:
    released = threading.Event()
    text.append(released)
    with pytest.raises(ToolError, match=r"within 0\.2 s"):
        await DdgsSearch(patience=Patience(seconds=0.2)).search(["titan"], 3)
    released.set()


async def test_the_real_library_behind_a_proxy_that_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that the library would send goes to a closed port of this machine: its own errors become ours."""
    pytest.importorskip("ddgs", reason="needs the extra 'web'")
    async with WebServer({}) as server:
        pass
    monkeypatch.setenv("DDGS_PROXY", server.url)
    with pytest.raises(ToolError, match="ddgs failed"):
        await DdgsSearch(patience=Patience(silent_seconds=2, seconds=20)).search(["titan"], 3)


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "ddgs", None)
    with pytest.raises(MissingExtra, match=r"\.\[web\]"):
        DdgsSearch()


# ── from settings ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_engines_from_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERPER_API_KEY", KEY)
    url = "http://127.0.0.1:8000"
    assert isinstance(build_remote_engine(SearchSettings(engine="http", url=url)), HttpSearch)
    assert isinstance(build_remote_engine(SearchSettings(engine="searxng", url=url)), SearxngSearch)
    assert isinstance(build_remote_engine(SearchSettings(engine="serper")), SerperSearch)
    pytest.importorskip("ddgs", reason="needs the extra 'web'")
    assert isinstance(build_remote_engine(SearchSettings(engine="ddgs")), DdgsSearch)


@pytest.mark.parametrize("engine", ["http", "searxng"])
def test_an_engine_that_needs_an_address(engine: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        build_remote_engine(SearchSettings(engine=engine))
    assert "search.url" in caught.value.hint


def test_the_corpus_is_not_remote() -> None:
    with pytest.raises(ConfigError, match="corpus"):
        build_remote_engine(SearchSettings(engine="corpus"))
