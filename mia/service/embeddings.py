"""`/v1/embeddings`: the vectors that the memory compares with.

What many requests send at a time is embedded together (`together.py`). Of its texts a request has no more in line than
go into one batch, so that a long one does not hold up the short ones.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Sequence
from typing import Annotated, Literal

import numpy
from fastapi import APIRouter, Depends, Request, Response
from pydantic import Field

from mia.embeddings.base import Embedder, Vectors, unit_rows
from mia.service.chat_problems import OPENAI_PROBLEMS, OpenAIRoute, Unsupported
from mia.service.chat_schemas import MODEL, Lenient, Written, check_model
from mia.service.context import ClientGone, TheService, while_connected
from mia.service.schemas import Reply
from mia.service.together import Together
from mia.store.base import storable

router = APIRouter(prefix="/v1", tags=["chat"], responses=OPENAI_PROBLEMS, route_class=OpenAIRoute)

TEXTS = 2_048
"""Most in one request."""
BATCH = 64
"""Texts that are embedded together."""


class EmbeddingsBody(Lenient):
    model: Annotated[str, Field(max_length=300)] = MODEL
    input: Written | Annotated[list[Written], Field(min_length=1, max_length=TEXTS)]
    """One text, or several. Tokens are not taken: they would be those of another model."""
    encoding_format: Literal["float", "base64"] | None = None
    """base64: of the numbers as 32-bit floats, the lowest byte first."""
    dimensions: int | None = None
    """No other than the embedder has."""


class Embedding(Reply):
    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class Read(Reply):
    """Estimated."""

    prompt_tokens: int
    total_tokens: int


class Space(Reply):
    space: str
    """Vectors of two spaces cannot be compared."""


class Embeddings(Reply):
    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: Read
    mia: Space


class Embedded:
    """Texts to vectors, for many callers at a time."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self._together: Together[str, Vectors] = Together(self._embed, most=BATCH)

    async def __call__(self, texts: Sequence[str]) -> Vectors:
        """Unit-length rows, shape (len(texts), dimension). Raises ModelError, MissingExtra."""
        rows: list[Vectors] = []
        for start in range(0, len(texts), BATCH):
            rows += await asyncio.gather(*map(self._together, texts[start : start + BATCH]))
        return numpy.stack(rows)

    def _embed(self, texts: Sequence[str]) -> list[Vectors | Exception]:
        return [*unit_rows(self._embedder.embed([storable(text) for text in texts]))]


def _embedded(request: Request) -> Embedded:
    state = request.app.state
    if not hasattr(state, "embedded"):
        state.embedded = Embedded(state.service.embedder)
    embedded: Embedded = state.embedded
    return embedded


@router.post("/embeddings", response_model=Embeddings, summary="Texts to vectors")
async def embed(
    request: Request,
    body: EmbeddingsBody,
    service: TheService,
    embedded: Annotated[Embedded, Depends(_embedded)],
) -> Response:
    """As OpenAI's endpoint of this name, by the embedder of the memory: unit length, the same for the same text."""
    check_model(body.model)
    texts = [body.input] if isinstance(body.input, str) else body.input
    if not all(text.strip() for text in texts):
        raise Unsupported("a text is empty.", param="input", wanted="texts with something in them")
    try:
        rows = await while_connected(request, embedded(texts))
    except ClientGone:
        return Response(status_code=499)
    if body.dimensions not in (None, rows.shape[1]):
        raise Unsupported(
            f"vectors of {body.dimensions} numbers.",
            param="dimensions",
            wanted=f"{rows.shape[1]}, which the embedder has",
        )
    page = await asyncio.to_thread(_page, rows, body.encoding_format or "float", texts, service.embedder)
    return Response(page, media_type="application/json")


def _page(rows: Vectors, form: str, texts: Sequence[str], embedder: Embedder) -> bytes:
    read = sum(len(text.encode("utf-8", "surrogatepass")) // 4 + 1 for text in texts)
    little = rows.astype("<f4")
    vectors = [base64.b64encode(row.tobytes()).decode() for row in little] if form == "base64" else rows.tolist()
    return json.dumps(
        {
            "object": "list",
            "data": [
                {"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(vectors)
            ],
            "model": MODEL,
            "usage": {"prompt_tokens": read, "total_tokens": read},
            "mia": {"space": embedder.space},
        }
    ).encode()
