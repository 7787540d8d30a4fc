"""Too much, too often, too long, too slow: refused with what to do, and nothing is left behind."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from listening import listening, until
from service_team import make_service
from starlette.testclient import TestClient

from mia.service import middleware
from mia.service.app import create_app
from mia.service.auth import add_token, tokens_path
from mia.service.core import Service
from mia.service.wire import PunctualProtocol

QUESTION = "Where was the discoverer of Titan born?"
JSON = {"Content-Type": "application/json"}


@contextmanager
def client_of(service: Service) -> Iterator[TestClient]:
    with TestClient(create_app(service), raise_server_exceptions=False) as client:
        yield client


@contextmanager
def connected(url: str) -> Iterator[socket.socket]:
    host, port = url[7:].split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        yield connection


def head(url: str, path: str = "/v1/recall", *lines: str) -> bytes:
    return "\r\n".join(
        [f"POST {path} HTTP/1.1", f"Host: {url[7:]}", "Content-Type: application/json", *lines, "", ""]
    ).encode()


def received(connection: socket.socket) -> bytes:
    content = b""
    try:
        while piece := connection.recv(65_536):
            content += piece
    except OSError:
        pass
    return content


# ── too much ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_body_that_is_too_large_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with client_of(make_service(tmp_path, serve__max_body_mb=0.01)) as client:
        body = json.dumps({"question": "q" * 9_000}).encode()
        assert client.post("/v1/recall", content=body, headers=JSON).status_code == 200
        reply = client.post("/v1/recall", content=body + b" " * 2_000, headers=JSON)
        assert (reply.status_code, reply.json()["error"]["type"]) == (413, "TooLarge")
        assert reply.headers["connection"] == "close"
        for length in ("99999999999999999999", "9" * 5_000, "-5", "1e3", "x"):
            assert (
                client.post("/v1/recall", content=b"{}", headers=JSON | {"Content-Length": length}).status_code == 413
            )


@pytest.mark.parametrize("chunked", [False, True])
def test_who_sends_all_of_a_large_body_before_he_reads_sees_why_it_is_refused(tmp_path: Path, chunked: bool) -> None:
    """As urllib and most clients do, whether they say the length or not."""
    body = b" " * 6_000_000
    with listening(make_service(tmp_path, serve__max_body_mb=1), http=PunctualProtocol) as url:
        given = (body[at : at + 65_536] for at in range(0, len(body), 65_536)) if chunked else body
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(urllib.request.Request(f"{url}/v1/recall", given, JSON), timeout=10)
        with refused.value as reply:
            assert (reply.code, json.load(reply)["error"]["type"]) == (413, "TooLarge")
            assert reply.headers["connection"] == "close"


@pytest.mark.parametrize("pause", [0.0, 0.02])
def test_the_rest_of_a_large_body_is_not_read_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pause: float
) -> None:
    """Neither of one that sends without end, nor of one that drips; the answer is there from the beginning."""
    monkeypatch.setattr(middleware, "_DROPPED_BYTES", 1_000_000 if not pause else 10**12)
    monkeypatch.setattr(middleware, "_DROPPED_SECONDS", 60.0 if not pause else 0.3)
    with listening(make_service(tmp_path), http=PunctualProtocol) as url, connected(url) as connection:
        connection.sendall(head(url, "/v1/recall", "Content-Length: 900000000000"))
        assert connection.recv(12) == b"HTTP/1.1 413"
        begun, sent = time.monotonic(), 0
        try:
            while time.monotonic() - begun < 10:
                connection.sendall(b" " * 0x10000)
                sent += 0x10000
                time.sleep(pause)
        except OSError:
            pass
        assert time.monotonic() - begun < 10
        # And what lies between the two ends of a connection.
        assert sent < 30_000_000


def test_who_waits_to_be_told_to_go_on_is_refused_at_once(tmp_path: Path) -> None:
    with listening(make_service(tmp_path), http=PunctualProtocol) as url, connected(url) as connection:
        begun = time.monotonic()
        connection.sendall(head(url, "/v1/recall", "Content-Length: 90000000", "Expect: 100-continue"))
        assert connection.recv(12) == b"HTTP/1.1 413"
        assert time.monotonic() - begun < 1.5


def test_a_body_without_a_length_is_counted_while_it_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(middleware, "_DROPPED_BYTES", 1_000_000)
    with listening(make_service(tmp_path, serve__max_body_mb=0.1)) as url, connected(url) as connection:
        connection.sendall(head(url, "/v1/recall", "Transfer-Encoding: chunked"))
        sent = 0
        try:
            for _ in range(10_000):
                connection.sendall(b"1000\r\n" + b" " * 0x1000 + b"\r\n")
                sent += 0x1000
        except OSError:
            pass
        reply = received(connection)
        assert reply == b"" or reply.startswith(b"HTTP/1.1 413"), reply[:300]
        assert sent < 30_000_000


def test_a_counted_body_that_ends_gets_its_answer(tmp_path: Path) -> None:
    with client_of(make_service(tmp_path, serve__max_body_mb=0.01)) as client:

        def pieces() -> Iterator[bytes]:
            yield b'{"question": "'
            for _ in range(30):
                yield b"q" * 1_000
            yield b'"}'

        reply = client.post("/v1/recall", content=pieces(), headers=JSON)
        assert (reply.status_code, reply.json()["error"]["type"]) == (413, "TooLarge")


# ── too often, too many ───────────────────────────────────────────────────────────────────────────────────────────


def test_more_than_so_many_a_minute_are_sent_away_each_token_by_itself(tmp_path: Path) -> None:
    service = make_service(tmp_path / "home", serve__requests_per_minute=5)
    path = tokens_path(service.config)
    ann, ben = ({"Authorization": f"Bearer {add_token(path, one, scope=None, days=None)}"} for one in ("ann", "ben"))
    with client_of(service) as client:
        replies = [client.get("/v1/nothing", headers=ann) for _ in range(8)]
        assert [one.status_code for one in replies] == [404] * 5 + [429] * 3
        assert replies[-1].json()["error"]["type"] == "RateLimited"
        assert replies[-1].headers["retry-after"] == "12"
        assert client.get("/v1/nothing", headers=ben).status_code == 404
        assert client.get("/healthz").status_code == 200


def test_more_than_so_many_at_once_are_told_to_come_again(tmp_path: Path) -> None:
    service = make_service(tmp_path, delay=0.4, serve__max_concurrency=3)
    statuses: list[int] = []
    with client_of(service) as client:

        def ask() -> None:
            statuses.append(client.post("/v1/ask", json={"question": QUESTION}).status_code)

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for one in threads:
            one.start()
        for one in threads:
            one.join()
        assert sorted(statuses) == [200] * 3 + [503] * 5
        assert client.get("/healthz").status_code == 200
        assert client.post("/v1/ask", json={"question": QUESTION}).status_code == 200


def test_one_token_takes_half_of_the_places_and_no_more(tmp_path: Path) -> None:
    """Whoever holds places with bodies that never come, logged in or not, keeps nobody else out."""
    service = make_service(tmp_path / "home", serve__max_concurrency=6)
    path = tokens_path(service.config)
    ann, ben = (f"Authorization: Bearer {add_token(path, one, scope=None, days=None)}" for one in ("ann", "ben"))
    body = b'{"question": "Titan?"}'
    with listening(service, http=PunctualProtocol) as url, ExitStack() as held:

        def status(path: str, *lines: str) -> int:
            with connected(url) as connection:
                connection.sendall(head(url, path, *lines, f"Content-Length: {len(body)}", "Connection: close") + body)
                return int(received(connection).split()[1])

        def hold(path: str, *lines: str, form: bool = False) -> None:
            begin = head(url, path, *lines, "Content-Length: 100")
            if form:
                begin = begin.replace(b"application/json", b"application/x-www-form-urlencoded")
            for _ in range(3):
                held.enter_context(connected(url)).sendall(begin + b"{")

        assert status("/v1/recall", ann) == 200
        hold("/v1/recall", ann)
        until(lambda: status("/v1/recall", ann) == 429)
        assert status("/v1/recall", ben) == 200
        hold("/login", form=True)
        until(lambda: status("/v1/recall", ben) == 503)


# ── too long ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_takes_too_long_is_broken_off(tmp_path: Path) -> None:
    service = make_service(tmp_path, delay=30, serve__max_seconds=0.5)
    with client_of(service) as client:
        begun = time.monotonic()
        reply = client.post("/v1/ask", json={"question": QUESTION})
        assert time.monotonic() - begun < 5
        assert (reply.status_code, reply.json()["error"]["type"]) == (504, "TimedOut")
        until(lambda: service.live.under_way == 0)


def test_a_body_that_comes_too_slowly_is_broken_off(tmp_path: Path) -> None:
    service = make_service(tmp_path, serve__max_seconds=0.5)
    with listening(service, http=PunctualProtocol) as url, connected(url) as connection:
        connection.sendall(head(url, "/v1/recall", "Content-Length: 100") + b"{")
        assert received(connection).startswith(b"HTTP/1.1 504")


@pytest.mark.parametrize("pieces", [0, 100])
def test_a_body_that_is_not_there_in_time_is_waited_for_no_longer(tmp_path: Path, pieces: int) -> None:
    """Nor is one that drips: what counts is when all of it is there."""
    service = make_service(tmp_path, serve__max_body_seconds=0.5)
    with listening(service, http=PunctualProtocol) as url, connected(url) as connection:
        connection.sendall(head(url, "/v1/recall", "Content-Length: 1000") + b"{")
        begun = time.monotonic()
        try:
            for _ in range(pieces):
                connection.sendall(b" ")
                time.sleep(0.02)
        except OSError:
            pass
        reply = received(connection)
        assert time.monotonic() - begun < 5
        assert reply == b"" or reply.startswith(b"HTTP/1.1 408"), reply[:300]
        assert reply or pieces


def test_work_may_take_longer_than_a_body(tmp_path: Path) -> None:
    with client_of(make_service(tmp_path, delay=0.6, serve__max_body_seconds=0.3)) as client:
        assert client.post("/v1/ask", json={"question": QUESTION}).status_code == 200


@pytest.mark.parametrize("said", [b"", b"POST /v1/rec", b"POST /v1/recall HTTP/1.1\r\nHost: localhost\r\n"])
def test_who_does_not_say_what_he_wants_is_let_go_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    monkeypatch.setattr(PunctualProtocol, "head_seconds", 0.4)
    with listening(make_service(tmp_path), http=PunctualProtocol) as url, connected(url) as connection:
        begun = time.monotonic()
        connection.sendall(said)
        # A letter now and then does not help.
        for _ in range(3):
            time.sleep(0.1)
            connection.sendall(b"x" if said else b"")
        assert b"HTTP/1.1 2" not in received(connection)
        assert time.monotonic() - begun < 3


def test_a_connection_that_is_kept_outlives_that_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PunctualProtocol, "head_seconds", 0.3)
    service = make_service(tmp_path, delay=0.2)
    with listening(service, http=PunctualProtocol) as url, connected(url) as connection:
        # The first takes longer than the time for a head, and there is a pause before the second.
        for path in ("/v1/ask", "/v1/recall"):
            body = json.dumps({"question": QUESTION}).encode()
            connection.sendall(head(url, path, f"Content-Length: {len(body)}") + body)
            reply = b""
            while b"\r\n\r\n" not in reply or not reply.endswith(b"}"):
                piece = connection.recv(65_536)
                assert piece, "the connection was closed"
                reply += piece
            assert reply.startswith(b"HTTP/1.1 200"), reply[:200]
            time.sleep(0.6)


# ── gone ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("stream", [True, False])
def test_who_hangs_up_cancels_the_work(tmp_path: Path, stream: bool) -> None:
    service = make_service(tmp_path, delay=20)
    with listening(service) as url:
        with connected(url) as connection:
            body = json.dumps({"question": QUESTION, "stream": stream}).encode()
            connection.sendall(head(url, "/v1/ask", f"Content-Length: {len(body)}") + body)
            until(lambda: service.live.under_way == 1)
        until(lambda: service.live.under_way == 0)
        assert service.live.asks()[0].error == "cancelled"


def test_no_descriptor_is_left_behind_by_those_who_leave(tmp_path: Path) -> None:
    service = make_service(tmp_path, delay=0.3)
    with listening(service, http=PunctualProtocol) as url:

        def visit(number: int) -> None:
            with connected(url) as connection:
                body = json.dumps({"question": QUESTION, "stream": bool(number % 2)}).encode()
                whole = head(url, "/v1/ask", f"Content-Length: {len(body)}") + body
                connection.sendall(whole[: len(whole) - number % 3 * 20])
                time.sleep(0.02)

        for number in range(6):
            visit(number)
        until(lambda: service.live.under_way == 0)
        before = len(os.listdir("/proc/self/fd"))
        for number in range(60):
            visit(number)
        until(lambda: service.live.under_way == 0 and len(os.listdir("/proc/self/fd")) <= before + 4)


def test_a_slow_reader_holds_up_nobody_else(tmp_path: Path) -> None:
    service = make_service(tmp_path)
    with listening(service) as url, connected(url) as slow:
        body = json.dumps({"question": QUESTION, "stream": True}).encode()
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1_024)
        for _ in range(20):
            slow.sendall(head(url, "/v1/ask", f"Content-Length: {len(body)}") + body)
        with connected(url) as other:
            other.sendall(head(url, "/v1/recall", "Content-Length: 17", "Connection: close") + b'{"question": "q"}')
            assert received(other).startswith(b"HTTP/1.1 200")


async def test_a_reader_of_events_that_is_too_far_behind_is_let_go_of() -> None:
    from mia.service.live import SLOW_READER, ReaderTooSlow, Subscription

    reader = Subscription()
    for number in range(SLOW_READER + 10):
        reader.put(number)
    with pytest.raises(ReaderTooSlow):
        await asyncio.wait_for(reader.next(), 1)
