"""`/retrieve` and the web tools: the server's own engine, the envelope and its cache, and nothing that was not asked
for."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from service_team import make_service, models, settings
from starlette.testclient import TestClient

from mia.errors import ToolError
from mia.service.app import create_app
from mia.service.core import Service
from mia.tools.base import ToolContext
from mia.tools.fetch import FetchTool
from mia.tools.search import SearchTool
from mia.types import Observation, Passage

PNG = b"\x89PNG\r\n\x1a\n" + b"0" * 16


class Engine:
    name = "shelf"

    def __init__(self) -> None:
        self.asked: list[tuple[tuple[str, ...], int]] = []
        self.broken = False

    async def search(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        if self.broken:
            raise ToolError("the engine is down.")
        self.asked.append((tuple(queries), k))
        return [
            [
                Passage(
                    id=f"{query}-{n}", title=query, text=f"text {n}", score=1 / (n + 1), source=f"https://x/{query}/{n}"
                )
                for n in range(k)
            ]
            for query in queries
        ]

    async def close(self) -> None: ...


class Page(FetchTool):
    """A page without a network."""

    async def call(self, arguments: dict[str, Any], context: ToolContext) -> Observation:
        if "example.org" not in arguments["url"]:
            return await super().call(arguments, context)
        passage = Passage(id="p", title="A page", text="Words.")
        return Observation(text="A page\nWords.", passages=(passage,))


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def web(tmp_path: Path, engine: Engine) -> Iterator[TestClient]:
    config = settings(tmp_path / "web", search__engine="ddgs", search__images=str(tmp_path / "images"))
    tools = [SearchTool(engine), Page()]
    with TestClient(create_app(Service(config, models=models(), tools=tools))) as client:
        yield client


# ── /retrieve ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_retrieve_with_and_without_scores(web: TestClient, engine: Engine) -> None:
    body = {"queries": ["titan", "", "rhea"], "topk": 2, "return_scores": True}
    result = web.post("/retrieve", json=body).json()["result"]
    assert [len(one) for one in result] == [2, 0, 2]
    assert result[0][1]["document"]["contents"] == "titan\ntext 1"
    assert result[0][1]["score"] == 0.5
    bare = web.post("/retrieve", json={**body, "return_scores": False}).json()["result"]
    assert bare[2][0]["contents"] == "rhea\ntext 0"
    assert "document" not in bare[2][0]
    assert "score" not in bare[2][0]
    web.post("/retrieve", json={"queries": ["x"]})
    assert engine.asked == [(("titan", "rhea"), 2), (("titan", "rhea"), 2), (("x",), 3)]


def test_our_own_client_of_the_protocol_reads_it(web: TestClient) -> None:
    from mia.search.http import HttpSearch

    hits = web.post("/retrieve", json={"queries": ["titan"], "topk": 2, "return_scores": True}).json()["result"][0]
    reader = HttpSearch("http://127.0.0.1:1")
    passages = [reader._passage(hit) for hit in hits]
    assert [(one.id, one.title, one.text) for one in passages] == [
        ("titan-0", "titan", "text 0"),
        ("titan-1", "titan", "text 1"),
    ]


@pytest.mark.parametrize(
    "body", [{}, {"queries": "titan"}, {"queries": [1]}, {"queries": ["x"], "topk": 0}, {"queries": ["x" * 5_000]}, []]
)
def test_retrieve_refuses_what_is_wrong(web: TestClient, body: Any) -> None:
    assert web.post("/retrieve", json=body).status_code == 422


def test_an_engine_that_fails_and_one_that_is_not_there(web: TestClient, engine: Engine, client: TestClient) -> None:
    engine.broken = True
    reply = web.post("/retrieve", json={"queries": ["x"]})
    assert (reply.status_code, reply.json()["error"]["message"]) == (502, "the engine is down.")
    # What no later try can change: a setting.
    reply = client.post("/retrieve", json={"queries": ["x"]})
    assert reply.status_code == 400
    assert "--corpus" in reply.json()["error"]["hint"]


# ── search ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_search_comes_in_an_envelope_and_from_the_cache(web: TestClient, engine: Engine) -> None:
    address = "/server/search?q=titan&max_results=2&engine=serper"
    missing = web.get("/server/search?q=titan&max_results=2&engine=deterministic", headers={"X-Request-ID": "r-0"})
    assert missing.status_code == 404
    assert (missing.json()["request_id"], missing.headers["x-request-id"]) == ("r-0", "r-0")
    assert missing.json()["result"] is None
    assert missing.json()["stat"] == {"cache": "DISABLED"}
    first = web.get(address, headers={"X-Request-ID": "r-1"}).json()
    assert first["request_id"] == "r-1"
    assert first["tool"]["name"] == "search"
    assert first["tool"]["version"]
    assert first["stat"] == {"cache": "MISS"}
    assert first["result"][0] == {"title": "titan", "link": "https://x/titan/0", "snippet": "text 0"}
    again = web.get(address).json()
    assert (again["stat"], again["result"]) == ({"cache": "HIT"}, first["result"])
    known = web.get("/server/search?q=titan&max_results=2&engine=deterministic").json()
    assert known["result"] == first["result"]
    both = web.get("/server/search?q=titan&q=rhea&max_results=1").json()["result"]
    assert [one[0]["title"] for one in both] == ["titan", "rhea"]
    assert len(engine.asked) == 2


def test_a_failure_is_an_envelope_and_is_not_kept(web: TestClient, engine: Engine) -> None:
    engine.broken = True
    reply = web.get("/server/search?q=titan")
    assert reply.status_code == 502
    assert reply.json()["error"]["message"] == "the engine is down."
    assert reply.json()["tool"]["name"] == "search"
    engine.broken = False
    assert web.get("/server/search?q=titan").json()["stat"] == {"cache": "MISS"}


def test_nothing_reaches_the_web_unless_the_server_was_told_to(client: TestClient) -> None:
    for path in ("/server/search?q=x", "/web_scrape?url=https://example.org", "/image_search?q=x"):
        reply = client.get(path)
        assert reply.status_code == 400, reply.text
        assert reply.json()["error"]["hint"]
        assert reply.json()["result"] is None


def test_a_web_engine_without_the_tool_that_asks_it_is_a_setting_too(tmp_path: Path) -> None:
    config = settings(tmp_path, search__engine="ddgs")
    with TestClient(create_app(Service(config, models=models(), tools=[Page()]))) as client:
        reply = client.get("/server/search?q=x")
        assert (reply.status_code, reply.json()["error"]["message"]) == (400, "this server has no search.")
        assert reply.json()["error"]["hint"]


@pytest.mark.parametrize("query", ["", "q=", "q=x&max_results=0", "q=x&max_results=many", "q=" + "x" * 500])
def test_a_search_refuses_what_is_wrong(web: TestClient, query: str) -> None:
    assert web.get(f"/server/search?{query}").status_code == 422


# ── pages ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("path", ["/web_scrape", "/server/web_scrape"])
def test_a_page_is_read_and_kept(web: TestClient, path: str) -> None:
    parameters = {"url": "https://example.org/a", "goal": "its words"}
    first = web.get(path, params=parameters).json()
    assert first["result"] == {
        "url": "https://example.org/a",
        "title": "A page",
        "text": "A page\nWords.",
        "goal": "its words",
    }
    assert (first["stat"], web.get(path, params=parameters).json()["stat"]) == ({"cache": "MISS"}, {"cache": "HIT"})


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:80/",
        "http://169.254.169.254/latest",
        "file:///etc/passwd",
        "http://localhost/",
        "http://[::1]/",
    ],
)
def test_the_guard_stands_before_every_address(web: TestClient, url: str) -> None:
    reply = web.get("/web_scrape", params={"url": url})
    assert reply.status_code == 502, reply.text
    assert reply.json()["error"]["type"] in ("AddressForbidden", "ToolError")


# ── the image search ──────────────────────────────────────────────────────────────────────────────────────────────


def test_the_image_search_reads_its_folder(web: TestClient, tmp_path: Path) -> None:
    folder = tmp_path / "images" / "q-1"
    folder.mkdir(parents=True)
    (folder / "meta.json").write_text(json.dumps({"search_results": [{"title": "Titan"}, {"title": "Saturn"}]}))
    for number in range(5):
        (folder / f"img_{number:03}.png").write_bytes(PNG)
    for path in ("/image_search?data_id=q-1", "/server/image_search?cache_id=q-1", "/image_search?q=q-1"):
        page = web.get(path).json()
        assert "Titan" in page["text"]
        assert "Saturn" in page["text"]
        assert [base64.b64decode(one) for one in page["images"]] == [PNG] * 3
        assert page["stat"] == {"cache": "DISABLED"}


def test_the_image_search_reads_nothing_else(web: TestClient, tmp_path: Path) -> None:
    images, outside = tmp_path / "images", tmp_path / "outside"
    (images / "linked").mkdir(parents=True)
    outside.mkdir()
    (outside / "meta.json").write_text(json.dumps({"title_list": ["SECRET"]}))
    (outside / "img_000.png").write_bytes(PNG)
    (images / "away").symlink_to(outside)
    (images / "linked" / "img_000.png").symlink_to(outside / "img_000.png")
    for id in ("../outside", "away", "..", ".", "linked", "absent", "a\x00b", "../../etc", "/etc", "..%2foutside", ""):
        reply = web.get("/image_search", params={"data_id": id})
        assert reply.status_code in (404, 422), (id, reply.text)
        assert "SECRET" not in reply.text
        assert reply.json()["result"] is None


def test_the_cache_outlasts_the_process(tmp_path: Path, engine: Engine) -> None:
    for cache in ("MISS", "HIT"):
        config = settings(tmp_path / "home", search__engine="ddgs")
        with TestClient(create_app(Service(config, models=models(), tools=[SearchTool(engine)]))) as client:
            assert client.get("/server/search?q=titan").json()["stat"] == {"cache": cache}


def test_the_services_say_hallo(tmp_path: Path) -> None:
    with TestClient(create_app(make_service(tmp_path))) as client:
        for path in ("/hallo", "/agent-service/hallo", "/memory-service/hallo"):
            assert client.get(path).status_code == 200
        assert client.get("/metrics").text.startswith("# HELP")
