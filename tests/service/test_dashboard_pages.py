"""The pages over HTTP: what they show, what they change, and to whom."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

import pytest
from listening import until
from service_team import RIGHT, make_service, says
from starlette.testclient import TestClient

from mia.models.base import ChatRequest
from mia.service.app import create_app
from mia.service.auth import add_token, tokens_path
from mia.service.core import LEARNING

QUESTION = "Where was the discoverer of Titan born?"
PAGES = ("/", "/episodes", "/memories", "/learning", "/queue", "/status", "/docs")


def ask(client: TestClient, question: str = QUESTION, **headers: str) -> str:
    """Its episode, which has been absorbed."""
    reply = client.post("/v1/ask", json={"question": question, "references": [RIGHT]}, headers=headers)
    assert reply.status_code == 200, reply.text
    id: str = reply.json()["episode_id"]
    for _ in range(200):
        if "It is not absorbed yet" not in client.get(f"/episodes/{id}", headers=headers).text:
            return id
        time.sleep(0.02)
    raise AssertionError("it was not absorbed")


def memories(client: TestClient, address: str = "/memories") -> list[str]:
    return re.findall(r'<li id="m-([^"]+)"', client.get(address).text)


@pytest.mark.parametrize("path", PAGES)
def test_every_page_is_whole_and_loads_nothing_from_elsewhere(client: TestClient, path: str) -> None:
    ask(client)
    page = client.get(path)
    assert page.status_code == 200
    assert page.text.rstrip().endswith("</html>")
    assert not re.findall(r'(?:src|href|action)="(?!/|#)', page.text)
    assert " style=" not in page.text
    assert not re.findall(r"<script(?! src=)", page.text)
    assert not re.findall(r"\son\w+=", page.text)
    assert "script-src 'self'" in page.headers["content-security-policy"]
    for source in re.findall(r'(?:src|href)="(/static/[^"]+)"', page.text):
        assert client.get(source).status_code == 200


def test_htmx_is_the_one_of_the_package(client: TestClient) -> None:
    reply = client.get("/static/htmx.js")
    assert reply.headers["content-type"].startswith("text/javascript")
    assert "htmx" in reply.text[:200]


def test_a_story_tells_everything(client: TestClient) -> None:
    ask(client, "Who found Titan, and where was he born?")
    text = client.get(f"/episodes/{ask(client)}").text
    for said in ("The Hague", "✓ correct", "Remembered", "Planned", "Look up Titan", "Searched", "Reflected", "Judged"):
        assert said in text, said
    assert "A success" in text
    assert "similarity" in text


def test_a_citation_leads_to_the_step_that_it_was_found_in(tmp_path: Path) -> None:
    def finder(request: ChatRequest) -> str:
        return says(request).replace(RIGHT, "Christiaan Huygens").replace('"Titan"', '"titan"')

    with TestClient(create_app(make_service(tmp_path, answers=finder))) as client:
        text = client.get(f"/episodes/{ask(client, 'Who found Titan?')}").text
    step = re.search(r'href="#step-(\d+)"', text)
    assert step is not None
    assert f'id="step-{step[1]}"' in text
    assert "<blockquote" in text


def test_feedback_turns_what_was_learnt(client: TestClient) -> None:
    id = ask(client)
    (before,) = memories(client)
    reply = client.post(
        f"/episodes/{id}/feedback", data={"verdict": "wrong", "reason": "It is not."}, follow_redirects=False
    )
    assert reply.status_code == 303
    text = client.get(reply.headers["location"]).text
    assert "✗ incorrect" in text
    assert "by a reader" in text
    assert "It is not." in text
    (after,) = memories(client)
    assert after != before
    assert "✗ a failure" in client.get(f"/memories/{after}").text
    assert client.post(f"/episodes/{id}/feedback", data={"verdict": "maybe"}).status_code == 422


def test_a_memory_is_forgotten_and_restored_with_its_history(client: TestClient) -> None:
    ask(client)
    (id,) = memories(client)
    assert client.post(f"/memories/{id}/forget", data={"reason": "stale"}, follow_redirects=False).status_code == 303
    assert memories(client) == []
    assert memories(client, "/memories?state=forgotten") == [id]
    row = client.post(f"/memories/{id}/restore", headers={"hx-request": "true"}).text
    assert row.strip().startswith("<li")
    assert "Forget" in row
    assert memories(client) == [id]
    history = client.get(f"/memories/{id}").text
    assert "stale" in history
    assert history.index("<strong>restore") < history.index("<strong>forget") < history.index("<strong>add")
    assert client.post(f"/memories/{id}/purge").status_code == 422
    client.post(f"/memories/{id}/quarantine")
    assert memories(client, "/memories?state=quarantined") == [id]


def test_memories_are_searched_and_filtered(client: TestClient) -> None:
    ask(client)
    ask(client, "Which wrong town?")
    assert len(memories(client)) == 2
    (wrong,) = memories(client, "/memories?judgement=incorrect")
    assert memories(client, "/memories?q=Which+wrong+town%3F")[0] == wrong
    assert memories(client, "/memories?q=town&judgement=incorrect") == [wrong]
    assert "1.00 alike" in client.get("/memories?q=Which+wrong+town%3F").text
    part = client.get("/memories", headers={"hx-request": "true"}).text
    assert part.lstrip().startswith('<div id="found"')


def test_a_question_asked_in_a_page_is_answered_without_it(client: TestClient) -> None:
    reply = client.post("/asks", data={"question": QUESTION, "known": RIGHT}, follow_redirects=False)
    assert reply.status_code == 303
    for _ in range(200):
        page = client.get(reply.headers["location"]).text
        if "Read the whole story" in page:
            break
        time.sleep(0.02)
    assert RIGHT in page
    assert "✓ correct" in page
    assert "hx-trigger" not in page
    assert "dashboard" in client.get("/").text
    assert 'mia_answers_total{door="dashboard",outcome="correct"} 1.0' in client.get("/metrics").text


def test_a_question_under_way_is_broken_off(tmp_path: Path) -> None:
    with TestClient(create_app(make_service(tmp_path, delay=30.0))) as client:
        address = client.post("/asks", data={"question": QUESTION}, follow_redirects=False).headers["location"]
        assert "Break off" in client.get(address).text
        begun = time.monotonic()
        client.post(f"{address}/cancel")
        while "It was broken off." not in (page := client.get(address).text):
            assert time.monotonic() - begun < 10, page
            time.sleep(0.02)


def test_the_live_part_is_left_alone_when_nothing_changed(client: TestClient) -> None:
    ask(client)
    stamp = re.search(r"/now\?seen=(\w+)", client.get("/").text)
    assert stamp is not None
    assert client.get(f"/now?seen={stamp[1]}").status_code == 204
    ask(client, "And who found it?")
    changed = client.get(f"/now?seen={stamp[1]}")
    assert changed.status_code == 200
    assert "And who found it?" in changed.text
    assert "100 %" in changed.text


def test_a_job_is_submitted_watched_and_its_episodes_found(client: TestClient) -> None:
    lines = "Where was the discoverer of Titan born?\n\nWho found it?\n"
    address = client.post("/queue/jobs", data={"questions": lines}, follow_redirects=False).headers["location"]
    for _ in range(300):
        page = client.get(address).text
        if "finished" in page:
            break
        time.sleep(0.02)
    assert "2 of 2 questions" in page
    assert page.count('class="item"') == 2
    assert address in client.get("/queue").text
    assert client.post("/queue/jobs", data={"questions": " \n"}).status_code == 422
    assert client.get("/queue/jobs/job-nope").status_code == 404


def test_learning_says_plainly_that_it_is_off_and_how_to_switch_it_on(client: TestClient) -> None:
    text = client.get("/learning").text
    assert "does not train" in text
    assert "mia serve --learn" in text


def test_learning_draws_what_the_stream_kept(tmp_path: Path) -> None:
    folder = tmp_path / "home" / LEARNING
    folder.mkdir(parents=True)
    trained = "planner-ab-v000001"
    scores = [
        {"correct": number > 10, "rewards": [number / 20] * 2, "version": trained if number > 10 else ""}
        for number in range(20)
    ]
    rows = [json.dumps(one) for one in scores]
    (folder / "scores.jsonl").write_text("\n".join([*rows, '{"torn']), encoding="utf-8")
    update = {"version": trained, "rollouts": 8, "questions": 4, "seconds": 3.0, "at": 1e9}
    update |= {"metrics": {"reward": 0.25, "loss": None}, "kept": True, "canary": "as good"}
    (folder / "updates.jsonl").write_text(json.dumps(update) + "\n", encoding="utf-8")
    with TestClient(create_app(make_service(tmp_path / "home"))) as client:
        text = client.get("/learning").text
    assert text.count("<polyline") == 2
    assert 'aria-label="Accuracy: 0 % at first, 100 % at last, over 20 questions."' in text
    assert ">v1</text>" in text
    assert "as good" in text


def test_the_reference_shows_every_operation_with_an_example(client: TestClient) -> None:
    schema = client.get("/openapi.json").json()
    text = client.get("/docs").text
    operations = [(path, method) for path, methods in schema["paths"].items() for method in methods]
    assert text.count('class="operation card"') == len(operations) == text.count('class="curl"')
    assert "curl -X POST http://testserver/v1/ask" in text
    assert not [path for path in schema["paths"] if path in PAGES]


def test_no_get_changes_anything(client: TestClient) -> None:
    ask(client)
    (id,) = memories(client)
    for path in (
        f"/memories/{id}/forget",
        f"/episodes/{id}/feedback",
        "/learning/rollback",
        "/logout",
        "/queue/jobs/x/cancel",
    ):
        assert client.get(path).status_code in (404, 405)
    assert memories(client) == [id]


def test_a_form_of_another_site_is_refused(client: TestClient) -> None:
    ask(client)
    (id,) = memories(client)
    for headers in ({"origin": "http://evil.example"}, {"origin": "null"}, {"sec-fetch-site": "cross-site"}):
        assert client.post(f"/memories/{id}/forget", headers=headers).status_code == 403
    assert memories(client) == [id]


# ── who sees what ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[tuple[TestClient, dict[str, str]]]:
    """A server that asks for a token, and the tokens of two tenants and the admin."""
    service = make_service(tmp_path / "home")
    path = tokens_path(service.config)
    scopes = {"acme": "acme", "umbra": "umbra", "admin": None}
    tokens = {name: add_token(path, name, scope=scope, days=None) for name, scope in scopes.items()}
    with TestClient(create_app(service), raise_server_exceptions=False) as client:
        yield client, tokens


def log_in(client: TestClient, token: str) -> Any:
    client.cookies.clear()
    return client.post("/login", data={"token": token}, follow_redirects=False)


def test_a_token_becomes_a_session_and_ends_with_it(guarded: tuple[TestClient, dict[str, str]]) -> None:
    client, tokens = guarded
    asked = client.get("/", headers={"accept": "text/html"}, follow_redirects=False)
    assert (asked.status_code, asked.headers["location"]) == (303, "/login")
    wrong = log_in(client, "mia_wrong<script>")
    assert wrong.status_code == 401
    assert "set-cookie" not in wrong.headers
    reply = log_in(client, tokens["acme"])
    assert reply.status_code == 303
    cookie = reply.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert tokens["acme"] not in reply.headers["set-cookie"]
    assert "scope acme" in client.get("/").text
    session = dict(client.cookies)
    client.post("/logout")
    client.cookies.update(session)
    assert client.get("/", headers={"accept": "text/html"}, follow_redirects=False).status_code == 303


def test_a_tenant_sees_and_changes_its_own_alone(guarded: tuple[TestClient, dict[str, str]]) -> None:
    client, tokens = guarded
    log_in(client, tokens["acme"])
    episode = ask(client, "The secret question of acme?")
    (memory,) = memories(client)
    log_in(client, tokens["umbra"])
    for path in ("/", "/now", "/episodes", "/memories", "/memories?q=secret", "/queue"):
        assert "secret question" not in client.get(path).text
    for path in (f"/episodes/{episode}", f"/memories/{memory}", f"/asks/{episode}"):
        assert client.get(path).status_code == 404
    assert client.post(f"/memories/{memory}/forget").status_code == 404
    assert client.post(f"/episodes/{episode}/feedback", data={"verdict": "wrong"}).status_code == 404
    assert client.post("/asks", data={"question": "x", "scope": "acme"}).status_code == 403
    assert client.post("/queue/jobs", data={"questions": "x", "scope": "acme"}).status_code == 403
    assert client.post("/learning/rollback", data={"role": "planner", "to": "base"}).status_code == 403
    assert "Settings" not in client.get("/status").text
    log_in(client, tokens["admin"])
    assert "secret question" in client.get("/episodes").text
    assert client.get(f"/memories/{memory}").status_code == 200
    assert "Settings" in client.get("/status").text


def test_status_masks_secrets(tmp_path: Path) -> None:
    service = make_service(tmp_path, models__default__api_key="sk-very-secret")
    with TestClient(create_app(service)) as client:
        text = client.get("/status").text
    assert "api_key" in text
    assert "very-secret" not in text


def test_status_has_the_settings_section_by_section_with_units_and_what_was_changed(tmp_path: Path) -> None:
    service = make_service(tmp_path, reader__chunk_tokens=777)
    with TestClient(create_app(service)) as client:
        text = client.get("/status").text
    sections = {name: opened for opened, name in re.findall(r"<details[^>]*?( open)?><summary><strong>([\w.]+)", text)}
    assert {"general", "models.default", "memory", "reader", "serve"} <= set(sections)
    assert {name for name, opened in sections.items() if opened} == {"general", "memory", "judge", "reader"}
    reader = re.sub(r"<[^>]+>", " ", text[text.index("<strong>reader</strong>") :])
    assert re.search(r"1 changed\s", reader)
    assert re.search(r"chunk_tokens\s+777\s+tokens", reader)
    assert re.search(
        r"max_seconds\s+[\d.]+\s+s\s", re.sub(r"<[^>]+>", " ", text[text.index("<strong>serve</strong>") :])
    )
    assert text.count('class="changed"') == sum(map(int, re.findall(r", (\d+) changed", text)))


# ── errors in a browser ───────────────────────────────────────────────────────────────────────────────────────────

BROWSER = {"accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}


def test_a_browser_gets_errors_as_pages_and_a_program_as_json(client: TestClient) -> None:
    for path, status in (("/nope", 404), ("/v1/episodes/ep-nope", 404), ("/v1/jobs?limit=x", 422), ("/v1/ask", 405)):
        said = client.get(path)
        assert said.headers["content-type"] == "application/json"
        page = client.get(path, headers=BROWSER)
        assert (said.status_code, page.status_code) == (status, status)
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert "script-src 'self'" in page.headers["content-security-policy"]
        assert page.text.rstrip().endswith("</html>")
        assert page.headers["x-request-id"] in page.text
        if hint := said.json()["error"]["hint"]:
            assert escape(hint) in page.text
    assert "There is nothing at /nope" in client.get("/nope", headers=BROWSER).text
    assert "<script>" not in client.get("/%3Cscript%3Ealert(1)", headers=BROWSER).text
    assert client.head("/nope", headers=BROWSER).content == b""
    assert client.get("/healthz", headers=BROWSER).json()["status"] == "ok"


def test_a_bug_is_a_page_too_and_tells_nothing(tmp_path: Path) -> None:
    app = create_app(make_service(tmp_path))

    @app.get("/bug")
    def bug() -> None:
        raise ZeroDivisionError("a secret")

    with TestClient(app, raise_server_exceptions=False) as client:
        page = client.get("/bug", headers=BROWSER)
    assert page.status_code == 500
    assert "a fault of the server" in page.text
    assert "a secret" not in page.text


def test_what_a_token_may_not_do_is_a_page_and_not_offered(guarded: tuple[TestClient, dict[str, str]]) -> None:
    client, tokens = guarded
    log_in(client, tokens["acme"])
    assert 'href="/metrics"' not in client.get("/status").text
    page = client.get("/metrics", headers=BROWSER)
    assert page.status_code == 403
    assert "a token without a scope" in page.text
    assert "scope acme" in page.text
    log_in(client, tokens["admin"])
    assert 'href="/metrics"' in client.get("/status").text


def test_a_tenant_sees_what_waits_of_its_own(tmp_path: Path) -> None:
    """However much of others waits before it; and what its jobs cost."""
    service = make_service(tmp_path / "home")
    path = tokens_path(service.config)
    token = add_token(path, "acme", scope="acme", days=None)
    with TestClient(create_app(service)) as client:
        log_in(client, token)
        job = client.post("/queue/jobs", data={"questions": "Where was he born?"}, follow_redirects=False)
        until(lambda: "finished" in client.get(job.headers["location"]).text, 30.0)
        for address in ("/queue", job.headers["location"]):
            assert re.search(r" · [\d,]+ tokens · no price is known", client.get(address).text)
    service = make_service(tmp_path / "home")
    for scope, count in (("umbra", 260), ("acme/ann", 2)):
        for number in range(count):
            service.durable.accept_memory({"question": f"Of {scope}, {number}?"}, scope)
    # Nothing is absorbed: the service is not started.
    client = TestClient(create_app(service))
    log_in(client, token)
    text = client.get("/queue").text
    assert text.count("Of acme/ann") == 2
    assert "umbra" not in text
    assert "of the scope acme and below" in text
    assert "2 waiting to be absorbed" in client.get("/").text
    service.durable.close()


def test_a_server_that_closes_breaks_off_what_was_asked_in_pages(tmp_path: Path) -> None:
    app = create_app(make_service(tmp_path, delay=60.0))
    begun = time.monotonic()
    with TestClient(app) as client:
        client.post("/asks", data={"question": QUESTION}, follow_redirects=False)
        assert len(app.state.asking) == 1
    assert len(app.state.asking) == 0
    assert [one.error for one in app.state.service.live.asks()] == ["cancelled"]
    assert time.monotonic() - begun < 30
