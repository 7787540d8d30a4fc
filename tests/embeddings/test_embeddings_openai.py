"""The embedder for endpoints, against a real HTTP server on loopback that behaves and misbehaves."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy
import pytest

import mia.models
from mia.config import Config, EmbeddingSettings
from mia.embeddings import build_embedder
from mia.embeddings.openai import OpenAIEmbedder
from mia.errors import ConfigError, ModelRefused, ModelReplyError, ModelUnavailable, RealCallForbidden

Answer = tuple[int, bytes]


class Server:
    """Answers with `answer(request)`, and remembers what it was asked."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.answer: Callable[[dict[str, Any]], Answer] = good
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.requests.append(request)
                server.headers.append({name.lower(): value for name, value in self.headers.items()})
                status, body = server.answer(request)
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def vector(text: str) -> list[float]:
    return [float(len(text)), float(text.count("a")), 2.0]


def good(request: dict[str, Any]) -> Answer:
    data = [{"object": "embedding", "index": n, "embedding": vector(text)} for n, text in enumerate(request["input"])]
    return 200, json.dumps({"object": "list", "model": "m", "data": data[::-1], "usage": {}}).encode()


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.close()


@pytest.fixture
def embedder(server: Server) -> OpenAIEmbedder:
    return OpenAIEmbedder(server.url, "some-model", "", timeout_seconds=5, max_retries=0)


def test_texts_become_unit_rows_in_their_order_by_batches(server: Server, embedder: OpenAIEmbedder) -> None:
    texts = [f"{'a' * (number % 7)}x" for number in range(300)]
    texts[5] = "  "
    vectors = embedder.embed(texts)
    expected = numpy.array([vector(text) for text in texts])
    expected /= numpy.linalg.norm(expected, axis=1, keepdims=True)
    expected[5] = 0
    assert vectors == pytest.approx(expected, abs=1e-6)
    assert [len(request["input"]) for request in server.requests] == [1, 128, 128, 43]
    assert {request["encoding_format"] for request in server.requests} == {"float"}
    assert embedder.space == f"openai/some-model@{server.url}/3"


def test_a_very_long_text_is_cut(server: Server, embedder: OpenAIEmbedder) -> None:
    embedder.embed(["a" * 100_000])
    assert len(server.requests[-1]["input"][0]) == 8000


def test_no_key_of_another_endpoint_is_sent(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-not-for-strangers")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-not-for-strangers")
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    config = Config(embeddings=EmbeddingSettings(base_url=server.url, model="m"))
    build_embedder("openai", config).embed(["text"])
    assert "not-for-strangers" not in str(server.headers)
    assert "authorization" not in server.headers[0]


def test_the_named_key_is_sent(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBEDDINGS_KEY", "sk-right")
    config = Config(embeddings=EmbeddingSettings(base_url=server.url, model="m", api_key_env="EMBEDDINGS_KEY"))
    build_embedder("openai", config).embed(["text"])
    assert server.headers[0]["authorization"] == "Bearer sk-right"


def test_without_a_key_openai_itself_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(ConfigError, match="OPENAI_API_KEY"):
        build_embedder("openai", Config())


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ((401, b'{"error": {"message": "bad key sk-secret"}}'), ModelRefused),
        ((404, b"no such model"), ModelRefused),
        ((429, b"{}"), ModelUnavailable),
        ((503, b"<html>busy</html>"), ModelUnavailable),
        ((200, b""), ModelReplyError),
        ((200, b"<html>hello</html>"), ModelReplyError),
        ((200, b'{"data": []}'), ModelReplyError),
        ((200, b'{"data": [{"index": 0, "embedding": []}]}'), ModelReplyError),
        ((200, b'{"data": [{"index": 0, "embedding": ["x", 1]}]}'), ModelReplyError),
        ((200, b'{"data": [{"index": 0, "embedding": [NaN, 1]}]}'), ModelReplyError),
        ((200, b'{"data": [{"index": 1, "embedding": [1, 2]}]}'), ModelReplyError),
        ((200, b'{"error": "overloaded"}'), ModelReplyError),
    ],
)
def test_what_an_endpoint_may_do_wrong(
    server: Server, embedder: OpenAIEmbedder, answer: Answer, error: type[Exception]
) -> None:
    server.answer = lambda request: answer
    with pytest.raises(error) as caught:
        embedder.embed(["text"])
    assert "sk-secret" not in str(caught.value)


def test_a_server_that_is_not_there() -> None:
    with pytest.raises(ModelUnavailable, match="cannot be reached"):
        OpenAIEmbedder("http://127.0.0.1:9/v1", "m", "", timeout_seconds=2, max_retries=0).embed(["text"])


def test_a_vector_of_another_length_in_a_later_batch(server: Server, embedder: OpenAIEmbedder) -> None:
    embedder.embed(["text"])
    server.answer = lambda request: (200, b'{"data": [{"index": 0, "embedding": [1, 2]}]}')
    with pytest.raises(ModelReplyError, match="unlike length"):
        embedder.embed(["text"])


def test_a_busy_server_is_asked_again(server: Server) -> None:
    answers = iter([(503, b"{}"), None])
    server.answer = lambda request: next(answers) or good(request)
    patient = OpenAIEmbedder(server.url, "m", "", timeout_seconds=5, max_retries=2)
    assert patient.dimension == 3
    assert len(server.requests) == 2


def test_forbidden_real_calls_are_not_made(
    server: Server, embedder: OpenAIEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mia.models, "_forbidden", True)
    with pytest.raises(RealCallForbidden):
        embedder.embed(["text"])
    assert not server.requests
