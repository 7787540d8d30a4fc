"""Vectors over the wire: the memory's own, for the `openai` package, many requests at a time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence

import numpy
import openai
import pytest
from listening import listening
from service_team import make_service
from starlette.testclient import TestClient

from mia.embeddings.base import Vectors
from mia.embeddings.hashing import HashingEmbedder
from mia.errors import ModelUnavailable
from mia.service.app import create_app
from mia.service.embeddings import BATCH, TEXTS, Embedded

EMBEDDER = HashingEmbedder()


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    with (
        listening(make_service(tmp_path_factory.mktemp("embeddings"))) as address,
        openai.OpenAI(base_url=f"{address}/v1", api_key="x", max_retries=0) as client,
    ):
        yield client


@pytest.mark.parametrize("form", [None, "float", "base64"])
def test_the_vectors_are_those_of_the_memory(client: openai.OpenAI, form: str | None) -> None:
    texts = ["Where is Titan?", "Wer fand ihn?", "漢字 🪐"]
    more = {} if form is None else {"encoding_format": form}
    reply = client.embeddings.create(model="mia", input=texts, **more)  # type: ignore[call-overload]
    vectors = [one.embedding for one in reply.data]
    if form == "base64":
        import base64

        vectors = [numpy.frombuffer(base64.b64decode(one), dtype="<f4") for one in vectors]
    numpy.testing.assert_allclose(vectors, EMBEDDER.embed(texts), atol=1e-6)
    assert [one.index for one in reply.data] == [0, 1, 2]
    assert reply.usage.total_tokens > 0
    assert reply.mia["space"] == EMBEDDER.space


def test_one_text_and_as_many_as_there_may_be(client: openai.OpenAI) -> None:
    (one,) = client.embeddings.create(model="mia", input="Titan").data
    numpy.testing.assert_allclose(one.embedding, EMBEDDER.embed(["Titan"])[0], atol=1e-6)
    texts = [f"moon {number}" for number in range(2 * BATCH + 3)]
    many = client.embeddings.create(model="mia", input=texts, dimensions=EMBEDDER.dimension)
    numpy.testing.assert_allclose([one.embedding for one in many.data], EMBEDDER.embed(texts), atol=1e-6)


def test_what_cannot_be_embedded_is_said(client: openai.OpenAI) -> None:
    for wrong in ("", " ", ["a", ""]):
        with pytest.raises(openai.BadRequestError, match="empty"):
            client.embeddings.create(model="mia", input=wrong)
    with pytest.raises(openai.BadRequestError, match="numbers") as caught:
        client.embeddings.create(model="mia", input="a", dimensions=3)
    assert (caught.value.param, caught.value.type) == ("dimensions", "invalid_request_error")
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="text-embedding-9", input="a")
    wrong_inputs: list[object] = [[], [1, 2], [[1]], ["a"] * (TEXTS + 1), None]
    for given in wrong_inputs:
        with pytest.raises(openai.UnprocessableEntityError, match="input"):
            client.embeddings.create(model="mia", input=given)  # type: ignore[arg-type]


def test_half_a_character_is_no_fault_of_the_server(client: openai.OpenAI, tmp_path: object) -> None:
    with TestClient(create_app(make_service(tmp_path))) as plain:  # type: ignore[arg-type]
        reply = plain.post("/v1/embeddings", content=b'{"model": "mia", "input": "a\\ud83d"}')
    assert reply.status_code in (200, 422)


class Slow:
    """Counts its batches; the first waits until it is let go."""

    space, dimension = "slow/2", 2

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.begun, self.go = threading.Event(), threading.Event()

    def embed(self, texts: Sequence[str]) -> Vectors:
        self.batches.append(list(texts))
        self.begun.set()
        assert self.go.wait(10)
        if "down" in texts:
            raise ModelUnavailable("the embedder is down.")
        return numpy.array([[len(text), 1.0] for text in texts], numpy.float32)


async def test_texts_that_come_together_are_embedded_together() -> None:
    embedder = Slow()
    embedded = Embedded(embedder)
    first = asyncio.create_task(embedded(["first"]))
    await asyncio.to_thread(embedder.begun.wait, 10)
    others = [asyncio.create_task(embedded(["x" * number])) for number in range(1, 21)]
    gone = asyncio.create_task(embedded(["gone"]))
    long = asyncio.create_task(embedded(["long"] * (3 * BATCH)))
    late = asyncio.create_task(embedded(["late"]))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.sleep(0)
    embedder.go.set()
    rows = await asyncio.gather(*others)
    for number, row in enumerate(rows, 1):
        numpy.testing.assert_allclose(row[0], numpy.array([number, 1]) / numpy.hypot(number, 1), rtol=1e-6)
    await asyncio.gather(first, late)
    assert (await long).shape == (3 * BATCH, 2)
    assert embedder.batches[0] == ["first"]
    assert embedder.batches[1][:20] == ["x" * number for number in range(1, 21)]
    assert "gone" not in {text for batch in embedder.batches for text in batch}
    # Who came late waits for one piece of the long request, not for all of it.
    assert next(place for place, batch in enumerate(embedder.batches) if "late" in batch) <= 2
    assert all(len(batch) <= BATCH for batch in embedder.batches)


async def test_an_embedder_that_fails_fails_those_who_asked_it_then() -> None:
    embedder = Slow()
    embedder.go.set()
    embedded = Embedded(embedder)
    with pytest.raises(ModelUnavailable):
        await embedded(["down"])
    assert (await embedded(["up"])).shape == (1, 2)
