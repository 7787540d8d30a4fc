"""Who gets in, from where, and what nobody ever gets to see."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from listening import listening
from service_team import WORKFLOW, make_service
from starlette.testclient import TestClient

from mia.errors import ModelRefused
from mia.service.app import create_app
from mia.service.auth import add_token, remove_token, tokens_path
from mia.service.core import Service
from mia.service.sessions import COOKIE
from mia.service.wire import PunctualProtocol

QUESTION = "Where was the discoverer of Titan born?"
OPEN = "/v1/recall", {"question": QUESTION}


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return make_service(tmp_path / "home")


@pytest.fixture
def client(service: Service) -> Iterator[TestClient]:
    with TestClient(create_app(service), raise_server_exceptions=False) as client:
        yield client


def token_of(service: Service, name: str, scope: str | None = None) -> str:
    return add_token(tokens_path(service.config), name, scope=scope, days=None)


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


# ── who ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_with_a_token_nothing_is_to_be_had_without_one(client: TestClient, service: Service) -> None:
    token = token_of(service, "root")
    paths = client.get("/openapi.json", headers=bearer(token)).json()["paths"]
    assert len(paths) > 5
    for path, operations in paths.items():
        for method in operations:
            reply = client.request(method, path, follow_redirects=False)
            if path in ("/healthz", "/readyz", "/login"):
                assert reply.status_code != 401
            else:
                assert reply.status_code == 401, f"{method} {path}: {reply.status_code}"
                assert reply.headers["www-authenticate"] == "Bearer"
    for path in ("/openapi.json", "/metrics", "/", "/docs", "/mcp", "/nothing", "//healthz", "/healthz/", "/HEALTHZ"):
        assert client.get(path, follow_redirects=False).status_code == 401, path
    for path in ("/static/../v1/memories", "/static/%2e%2e/v1/memories", "/login/../metrics", "/static/..%2fmetrics"):
        assert client.get(path, follow_redirects=False).status_code in (401, 404, 405), path


@pytest.mark.parametrize("header", ["Bearer {}", "bearer {}", "Bearer   {}"])
def test_a_token_comes_as_bearer(client: TestClient, service: Service, header: str) -> None:
    token = token_of(service, "root")
    assert client.post(OPEN[0], json=OPEN[1], headers={"Authorization": header.format(token)}).status_code == 200
    assert client.post(OPEN[0], json=OPEN[1], headers={"X-API-Key": token}).status_code == 200


@pytest.mark.parametrize("header", ["{}", "Basic {}", "Bearer", "Bearer ", "Bearer {}x", "Bearer x{}", "Token {}"])
def test_what_is_no_bearer_token_is_none(client: TestClient, service: Service, header: str) -> None:
    token = token_of(service, "root")
    assert client.post(OPEN[0], json=OPEN[1], headers={"Authorization": header.format(token)}).status_code == 401


def test_a_token_that_is_taken_back_ends_at_once_and_its_session_with_it(client: TestClient, service: Service) -> None:
    token, other = token_of(service, "ann"), token_of(service, "ben")
    session = client.app.state.sessions.begin(token)  # type: ignore[attr-defined]
    cookie = {"Cookie": f"{COOKIE}={session}"}
    assert client.post(OPEN[0], json=OPEN[1], headers=cookie).status_code == 200
    remove_token(tokens_path(service.config), "ann")
    assert client.post(OPEN[0], json=OPEN[1], headers=cookie).status_code == 401
    assert client.post(OPEN[0], json=OPEN[1], headers=bearer(token)).status_code == 401
    assert client.post(OPEN[0], json=OPEN[1], headers=bearer(other)).status_code == 200


def test_a_broken_file_of_tokens_is_a_503_for_all_and_names_no_path(client: TestClient, service: Service) -> None:
    token = token_of(service, "ann")
    tokens_path(service.config).write_text("{")
    reply = client.post(OPEN[0], json=OPEN[1], headers=bearer(token))
    assert (reply.status_code, reply.json()["error"]["type"]) == (503, "GateStuck")
    assert str(service.config.home) not in reply.text
    assert client.get("/healthz").status_code == 200


def test_a_stale_cookie_does_not_shut_out_where_no_token_is_needed(client: TestClient) -> None:
    assert client.post(OPEN[0], json=OPEN[1], headers={"Cookie": f"{COOKIE}=old"}).status_code == 200


def test_each_scope_gets_its_own(client: TestClient, service: Service) -> None:
    service.memory("acme").add(QUESTION, WORKFLOW, "correct")
    other = token_of(service, "other", "other")
    page = client.post(OPEN[0], json=OPEN[1], headers=bearer(other)).json()
    assert page["shown"] == []
    assert page["considered"] == 0
    for scope in ("acme", "default", "others", "other/../acme"):
        reply = client.post(OPEN[0], json=OPEN[1], headers=bearer(other) | {"X-MIA-Scope": scope})
        assert reply.status_code in (400, 403)
        assert "Titan" not in reply.text
    inside = client.post(OPEN[0], json=OPEN[1], headers=bearer(other) | {"X-MIA-Scope": "other/x"})
    assert inside.status_code == 200


# ── from where ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "host", ["evil.org", "evil.org:8321", "127.0.0.1.evil.org", "localhost.evil.org", "", "[", "[::1", "a b", "0", "@"]
)
def test_a_name_that_is_not_ours_is_refused(client: TestClient, host: str) -> None:
    reply = client.post(OPEN[0], json=OPEN[1], headers={"Host": host})
    assert reply.status_code == 403
    assert reply.json()["error"]["type"] == "Forbidden"


@pytest.mark.parametrize("host", ["localhost", "LocalHost:1", "127.0.0.1:9", "[::1]:9", "127.3.4.5"])
def test_names_of_this_machine_are_ours(client: TestClient, host: str) -> None:
    assert client.post(OPEN[0], json=OPEN[1], headers={"Host": host}).status_code == 200


def test_a_name_that_is_listed_is_ours(tmp_path: Path) -> None:
    with TestClient(create_app(make_service(tmp_path, serve__hosts="mia.lan"))) as client:
        assert client.post(OPEN[0], json=OPEN[1], headers={"Host": "MIA.lan:443"}).status_code == 200
        assert client.post(OPEN[0], json=OPEN[1], headers={"Host": "x.mia.lan"}).status_code == 403


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.org"},
        {"Origin": "null"},
        {"Origin": "http://["},
        {"Origin": "http://testserver:81"},
        {"Origin": "http://testserver.evil.org"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"},
    ],
)
def test_another_site_can_change_nothing(client: TestClient, headers: dict[str, str]) -> None:
    assert client.post(OPEN[0], json=OPEN[1], headers=headers).status_code == 403


def test_another_site_can_read_nothing_but_may_link(client: TestClient) -> None:
    read = client.get("/metrics", headers={"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors"})
    assert read.status_code == 403
    link = client.get("/metrics", headers={"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"})
    assert link.status_code == 200
    same = {"Origin": "http://testserver", "Sec-Fetch-Site": "same-origin"}
    assert client.post(OPEN[0], json=OPEN[1], headers=same).status_code == 200


def test_every_answer_protects_the_browser(client: TestClient) -> None:
    for reply in (client.get("/healthz"), client.get("/nothing"), client.post("/v1/recall", content=b"{")):
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["x-frame-options"] == "DENY"
        assert "default-src 'none'" in reply.headers["content-security-policy"]
        assert reply.headers["cache-control"] == "no-store"
        assert reply.headers["x-request-id"]
        assert "server" not in reply.headers


def test_a_request_id_is_taken_over_only_where_it_is_one(client: TestClient) -> None:
    assert client.get("/healthz", headers={"X-Request-ID": "abc-1"}).headers["x-request-id"] == "abc-1"
    for wrong in ("a b", "<script>", "x" * 129, "a\tb"):
        assert client.get("/healthz", headers={"X-Request-ID": wrong}).headers["x-request-id"] != wrong


# ── what ──────────────────────────────────────────────────────────────────────────────────────────────────────────

BODIES = {
    "nothing": b"",
    "no JSON": b"{",
    "deep lists": b"[" * 200_000,
    "deep objects": b'{"question": ' + b'{"a":' * 100_000,
    "deep and closed": b'{"question": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    "a huge number": b'{"question": ' + b"9" * 10_000 + b"}",
    "invalid UTF-8": b'{"question": "\xff\xfe"}',
    "half a surrogate": b'{"question": "\\ud800"}',
    "another encoding": '{"question": "q"}'.encode("utf-7") + b"\xff",
    "NaN": b'{"question": NaN}',
    "a list": b"[1]",
    "null": b"null",
    "a text": b'"q"',
    "zeros": b"\x00" * 1000,
    "unknown fields": b'{"question": "q", "__proto__": {}, "constructor": 1}',
    "a number as text": b'{"question": 5}',
}


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("path", ["/v1/recall", "/v1/ask"])
def test_a_body_that_is_wrong_is_a_fault_of_who_sent_it(client: TestClient, path: str, name: str) -> None:
    reply = client.post(path, content=BODIES[name], headers={"Content-Type": "application/json"})
    assert 400 <= reply.status_code < 500, reply.text[:500]
    error = json.loads(reply.content)["error"]
    assert error["code"] == reply.status_code
    assert error["request_id"] == reply.headers["x-request-id"]
    assert len(reply.content) < 5_000
    assert "Traceback" not in reply.text


def test_the_last_of_two_equal_names_counts(client: TestClient) -> None:
    reply = client.post(
        "/v1/recall", content=b'{"question": 5, "question": "q"}', headers={"Content-Type": "application/json"}
    )
    assert reply.status_code == 200


def test_a_form_is_no_json(client: TestClient) -> None:
    """What a page elsewhere can send without asking (a form, plain text) is never read as JSON."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        reply = client.post("/v1/recall", content=b'{"question": "q"}', headers={"Content-Type": kind})
        assert reply.status_code in (415, 422), kind


@pytest.mark.parametrize(
    "id",
    [
        "../../etc/passwd",
        "..%2f..%2fetc%2fpasswd",
        "%00",
        "a%0d%0ab: c",
        "%ff",
        "x" * 5000,
        "'; DROP TABLE x;--",
        "%2e",
    ],
)
@pytest.mark.parametrize("path", ["/v1/episodes/", "/v1/memories/", "/v1/jobs/"])
def test_an_id_is_an_id_and_no_path(client: TestClient, path: str, id: str) -> None:
    reply = client.get(path + id)
    assert reply.status_code in (400, 404, 405, 422), reply.text
    assert "root:" not in reply.text


@pytest.mark.parametrize("method", ["TRACE", "CONNECT", "PROPFIND", "FOO", "HEAD", "OPTIONS", "PUT"])
def test_other_methods_are_refused(client: TestClient, method: str) -> None:
    reply = client.request(method, "/v1/recall", headers={"X-Secret": "swordfish"})
    assert reply.status_code in (404, 405)
    assert "swordfish" not in reply.text


def test_a_websocket_is_refused(client: TestClient) -> None:
    from starlette.websockets import WebSocketDisconnect

    with pytest.raises(WebSocketDisconnect) as refused, client.websocket_connect("/v1/ask"):
        pass
    assert refused.value.code == 1008


def test_an_upgrade_on_the_wire_is_no_websocket(service: Service) -> None:
    with listening(service, http=PunctualProtocol, ws="none", log_level="critical") as url:
        head = (
            f"GET /v1/ask HTTP/1.1\r\nHost: {url[7:]}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        assert exchanged(url, head.encode())[:12] == b"HTTP/1.1 405"


@pytest.mark.parametrize(
    "wire",
    [
        b"GARBAGE\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 2_000_000 + b"\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
        + b"".join(b"X%d: 1\r\n" % one for one in range(20_000))
        + b"\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nHost: evil.org\r\n\r\n",
        b"POST /v1/recall HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"0\r\n\r\n",
        b"POST /v1/recall HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/recall HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        b"POST /v1/recall HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"GET /\x00 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
    ids=range(11),
)
def test_what_is_no_request_is_refused_and_the_next_is_served(
    service: Service, wire: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    with listening(
        service, http=PunctualProtocol, ws="none", log_level="critical", h11_max_incomplete_event_size=65_536
    ) as url:
        reply = exchanged(url, wire)
        assert reply[:10] in (b"HTTP/1.1 4", b""), reply[:200]
        fine = exchanged(url, f"GET /healthz HTTP/1.1\r\nHost: {url[7:]}\r\nConnection: close\r\n\r\n".encode())
        assert fine.startswith(b"HTTP/1.1 200")
    assert "Traceback" not in capfd.readouterr().err


def exchanged(url: str, wire: bytes) -> bytes:
    """What comes back until the other side has nothing more to say."""
    host, port = url[7:].split(":")
    received = b""
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        try:
            connection.sendall(wire)
            connection.shutdown(socket.SHUT_WR)
            while piece := connection.recv(65_536):
                received += piece
        except OSError:
            pass
        return received


# ── what nobody gets to see ───────────────────────────────────────────────────────────────────────────────────────

KEY = "sk-proj-" + "Qm7" * 12


def test_secrets_are_in_no_answer_no_log_and_no_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """A server's own token, a client's, and a key that a failing part shouts out; through every kind of failure."""
    own = "the-servers-own-token-1234"
    monkeypatch.setenv("MIA_SERVE_TOKEN", own)
    caplog.set_level(logging.DEBUG)
    broken: list[Exception] = [
        ModelRefused(f"the endpoint refuses: Authorization: Bearer {KEY}"),
        RuntimeError(f"a bug with api_key={KEY}"),
    ]

    def fails(_: Any) -> Exception:
        return broken[-1]

    service = make_service(tmp_path / "home", answers=fails)
    client_token = token_of(service, "ann")
    seen = []
    with TestClient(create_app(service), raise_server_exceptions=False) as client:
        good = bearer(client_token)
        for _ in range(len(broken)):
            for stream in (False, True):
                seen.append(client.post("/v1/ask", json={"question": QUESTION, "stream": stream}, headers=good))
            broken.pop() if len(broken) > 1 else None
        seen += [
            client.post("/v1/ask", json={"question": QUESTION, client_token: own}, headers=bearer(own)),
            client.post("/v1/recall", json={"question": [own]}, headers=good),
            client.post("/v1/recall", content=own.encode(), headers=good | {"Content-Type": "application/json"}),
            client.post("/v1/recall", json={"question": "q"}, headers=bearer(own + "x")),
            client.get("/v1/episodes", headers=good),
            client.get("/metrics", headers=good),
            client.get("/openapi.json", headers=good),
            client.get("/nothing", headers=good),
        ]
    told = capfd.readouterr()
    text = "\n".join([*(f"{reply.headers} {reply.text}" for reply in seen), caplog.text, told.out, told.err])
    on_disk = b"".join(path.read_bytes() for path in (tmp_path / "home").rglob("*") if path.is_file())
    for secret in (own, KEY):
        assert secret not in text
        assert secret.encode() not in on_disk
    # Somebody who names a field after his token gets its name back; nothing else of it is anywhere.
    assert client_token.encode() not in on_disk
    assert client_token not in caplog.text + told.out + told.err
    assert [
        reply.status_code for reply in seen if reply.status_code >= 500 and reply.status_code not in (502, 503)
    ] in ([], [500])
