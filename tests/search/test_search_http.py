"""The `/retrieve` protocol, and every way in which a server can fail it, over real sockets."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

import pytest
from web_server import Behaviour, WebServer, drips, floods, hangs, hangs_up, page, redirect

from mia.errors import ConfigError, ToolError
from mia.search.http import HttpSearch, Patience
from mia.types import Passage

QUICK = Patience(attempts=3, silent_seconds=0.3, seconds=5, backoff_seconds=0.01)


def answers(value: Any, status: int = 200, **headers: str) -> Behaviour:
    return page(json.dumps(value), "application/json", status=status, **headers)


def hit(contents: str, score: Any = 0.5, **document: Any) -> dict[str, Any]:
    return {"document": {"contents": contents, **document}, "score": score}


async def search(
    behaviour: Behaviour | Sequence[Behaviour], *queries: str, k: int = 3, patience: Patience = QUICK
) -> tuple[list[list[Passage]], WebServer]:
    async with WebServer({"/retrieve": behaviour}) as server:
        engine = HttpSearch(server.url, patience=patience)
        try:
            return await engine.search(queries or ("moons",), k), server
        finally:
            await engine.close()


async def requests_of(behaviour: Behaviour | Sequence[Behaviour], match: str, patience: Patience = QUICK) -> int:
    """How many requests were made before the search failed with this reason."""
    async with WebServer({"/retrieve": behaviour}) as server:
        engine = HttpSearch(server.url, patience=patience)
        try:
            with pytest.raises(ToolError, match=match):
                await engine.search(["moons"], 3)
        finally:
            await engine.close()
        return len(server.requests)


async def test_a_batch_is_one_request() -> None:
    results, server = await search(answers({"result": [[hit("Titan\nA moon.")], []]}), "moons", "rings", k=7)
    (request,) = server.requests
    assert (request.method, request.path) == ("POST", "/retrieve")
    assert json.loads(request.body) == {"queries": ["moons", "rings"], "topk": 7, "return_scores": True}
    assert [[passage.title for passage in passages] for passages in results] == [["Titan"], []]


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (hit("Titan\nA moon.", 0.9, id="t-1"), Passage(id="t-1", title="Titan", text="A moon.", score=0.9)),
        (hit('"Titan"\nA moon.\nSmall.', 1, id=7), Passage(id="7", title="Titan", text="A moon.\nSmall.", score=1)),
        ({"contents": "Titan\nA moon.", "id": "t-1"}, Passage(id="t-1", title="Titan", text="A moon.")),
        (hit("A moon.", None, id="t-1"), Passage(id="t-1", text="A moon.")),
        (hit("A moon.", "high", id="t-1"), Passage(id="t-1", text="A moon.")),
        ({"id": "t-1", "title": "Titan", "text": "A moon."}, Passage(id="t-1", title="Titan", text="A moon.")),
        (hit("Titan \ud800\nA moon.\0", 0.5, id="t-1"), Passage(id="t-1", title="Titan ?", text="A moon.", score=0.5)),
    ],
)  # fmt: skip
async def test_forms_of_a_hit(found: dict[str, Any], expected: Passage) -> None:
    ((passage,),), _ = await search(answers({"result": [[found]]}))
    assert passage == expected


async def test_documents_without_an_id_get_one_from_their_content() -> None:
    ((one, two),), _ = await search(answers({"result": [[hit("Titan\nA moon."), hit("Rhea\nA moon.")]]}))
    ((again,),), _ = await search(answers({"result": [[hit('"Titan"\nA moon.', 0.1, id="")]]}))
    assert one.id == again.id != two.id
    assert len(one.id) == 16


async def test_scores_that_are_no_number() -> None:
    body = '{"result": [[{"document": {"contents": "a\\nb"}, "score": NaN}]]}'
    ((passage,),), _ = await search(page(body, "application/json"))
    assert passage.score == 0.0


async def test_no_more_than_was_asked_for_and_nothing_for_nothing() -> None:
    ((*passages,),), _ = await search(answers({"result": [[hit(f"T\n{number}") for number in range(9)]]}), k=2)
    assert len(passages) == 2
    assert await HttpSearch("http://127.0.0.1:1").search([], 3) == []


async def test_the_path_is_the_users_where_there_is_one() -> None:
    async with WebServer({"/v2/find": answers({"result": [[]]})}) as server:
        engine = HttpSearch(server.url + "/v2/find", patience=QUICK)
        assert await engine.search(["moons"], 3) == [[]]
        assert engine.name == f"http:127.0.0.1:{server.port}"
        await engine.close()
        await engine.close()


# ── failures that may pass ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("failure", [answers({}, 429), answers({}, 503), page("<h1>", status=500), hangs_up, hangs])
async def test_what_may_pass_is_tried_again(failure: Behaviour) -> None:
    results, server = await search([failure, failure, answers({"result": [[hit("Titan\nA moon.")]]})])
    assert results[0][0].title == "Titan"
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (answers({"detail": "too many"}, 429), "answers 429: too many"),
        (page("<h1>Oops</h1>", status=500), r"answers 500\."),
        (hangs_up, "cannot be reached, or broke off"),
        (hangs, r"sent nothing for 0\.3 s"),
    ],
)
async def test_tries_are_counted(failure: Behaviour, reason: str) -> None:
    assert await requests_of(failure, reason) == 3


async def test_time_in_all_is_capped() -> None:
    patience = Patience(attempts=100, silent_seconds=5, seconds=0.5, backoff_seconds=0.01)
    for failure, reason in ((hangs, "no answer within"), (drips(0.02), "no answer within"), (answers({}, 503), "503")):
        begun = time.monotonic()
        assert await requests_of(failure, reason, patience) >= 1
        assert time.monotonic() - begun < 2


async def test_the_wait_that_a_server_asks_for() -> None:
    begun = time.monotonic()
    await search([answers({}, 429, retry_after="1"), answers({"result": [[]]})])
    assert time.monotonic() - begun >= 1
    assert await requests_of(answers({}, 429, retry_after="3600"), "answers 429") == 1, "too long to wait for"
    assert await requests_of(answers({}, 429, retry_after="Wed, 21 Oct 2015 07:28:00 GMT"), "answers 429") == 3


async def test_a_server_that_is_not_there() -> None:
    async with WebServer({}) as server:
        pass
    with pytest.raises(ToolError, match="cannot be reached") as caught:
        await HttpSearch(server.url, patience=QUICK).search(["moons"], 3)
    assert caught.value.hint


async def test_a_failure_is_not_remembered() -> None:
    async with WebServer({"/retrieve": [answers({}, 404), answers({"result": [[]]})]}) as server:
        engine = HttpSearch(server.url, patience=QUICK)
        with pytest.raises(ToolError, match="404"):
            await engine.search(["moons"], 3)
        assert await engine.search(["moons"], 3) == [[]]
        await engine.close()


# ── failures that stay ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        (page("<html><h1>Welcome</h1></html>"), "an HTML page instead"),
        (page("<html>", "application/json"), "an HTML page instead"),
        (page("", "application/json"), "an empty body"),
        (page('{"result": [', "application/json"), "no JSON"),
        (page("[" * 100_000, "application/json"), "no JSON"),
        (page(b"\xff\xfe\xfd", "application/json"), "no JSON"),
        (answers([]), "not understood"),
        (answers({"results": [[]]}), "not understood"),
        (answers({"result": [hit("a\nb")]}), "not understood"),
        (answers({"result": [[], []]}), "2 lists of results for 1 queries"),
        (answers({"result": [["text"]]}), "no document"),
        (answers({"result": [[{"document": "text"}]]}), "no document"),
        (answers({"result": [[{"document": {}}]]}), "contents"),
        (answers({"result": [[hit(" \n ")]]}), "contents"),
        (answers({"error": "no such topk"}, 400), "answers 400: no such topk"),
        (page("gone", status=404), r"answers 404\."),
        (redirect("http://127.0.0.1/"), "redirects"),
        (page("xx", "application/json", content_encoding="gzip"), "cannot be unpacked"),
        (floods(b" " * 65_536, "application/json"), "more than 8 MB"),
    ],
)
async def test_what_will_not_pass_is_not_tried_again(behaviour: Behaviour, reason: str) -> None:
    assert await requests_of(behaviour, reason) == 1


@pytest.mark.parametrize("url", ["", "localhost:8000", "ftp://127.0.0.1/", "http://", "http://[::"])
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(ConfigError, match="address") as caught:
        HttpSearch(url)
    assert "search.url" in caught.value.hint


async def test_a_password_in_the_address_is_not_told() -> None:
    engine = HttpSearch("http://reader:sesame@127.0.0.1:1/retrieve", patience=QUICK)
    with pytest.raises(ToolError) as caught:
        await engine.search(["moons"], 3)
    assert "sesame" not in f"{caught.value} {engine.name}"
    await engine.close()
