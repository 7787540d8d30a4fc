"""`POST /v1/recall`: what the memory would show the agents for a question, without asking any model."""

from __future__ import annotations

from typing import Annotated

import numpy
from fastapi import APIRouter, Request, Response
from numpy.typing import NDArray
from pydantic import Field, FiniteFloat, StringConstraints, model_validator

from mia.service.api.reach import floor_for_agents
from mia.service.context import TheScope, TheService
from mia.service.recalls import Recalls, Wanted
from mia.service.schemas import PROBLEMS, Body, Id
from mia.types import MemoryKind, Recall

router = APIRouter(prefix="/v1", tags=["memories"], responses=PROBLEMS)

Vector = Annotated[list[FiniteFloat], Field(min_length=1, max_length=8_192)]
Count = Annotated[int, Field(ge=0, le=50)]


class RecallBody(Body):
    question: Annotated[str, StringConstraints(max_length=100_000, strip_whitespace=True)] = ""
    """A text, or its vector below."""
    caption: Annotated[str, StringConstraints(max_length=20_000)] = ""
    """What the images of the question show."""
    question_vector: Vector | None = None
    """Of the embedder that made the memory's vectors; of any length. Nothing is embedded then."""
    caption_vector: Vector | None = None
    space: Annotated[str, StringConstraints(max_length=500)] = ""
    """The embedding space that the vectors are of; another than the memory's is refused. Empty: not said."""
    kind: MemoryKind = MemoryKind.WORKFLOW
    skip: Annotated[list[Id], Field(max_length=1_000)] = []
    """Ids of memories to pass over."""
    k_positive: Count | None = None
    """Memories of correct answers to show; left out: as many as the settings say."""
    k_negative: Count | None = None
    """Memories of incorrect answers to show."""
    floor: Annotated[float, Field(ge=-1, le=1)] | None = None
    """Of similarity: what is below is not shown. Left out: `memory.floor`, or 0.5 where that lets everything
    through."""

    @model_validator(mode="after")
    def _something_to_compare(self) -> RecallBody:
        if not self.question and self.question_vector is None:
            raise ValueError("there is neither a question nor a question_vector")
        if self.caption_vector is not None and self.question_vector is None:
            raise ValueError("a caption_vector comes with a question_vector")
        if self.question_vector is not None and self.caption and self.caption_vector is None:
            raise ValueError("beside a question_vector, a caption needs its caption_vector")
        return self


@router.post("/recall", response_model=Recall, summary="Recall memories for a question")
async def recall(request: Request, body: RecallBody, service: TheService, scope: TheScope) -> Response:
    """The memories of the scope, and of the levels above it, that would be shown for a question: their ids, scores and
    the parts of the scores, and the text that the Planner would read."""
    recalls: Recalls = request.app.state.recalls
    wanted = Wanted(
        text=body.question,
        caption=body.caption,
        question_vector=_array(body.question_vector),
        caption_vector=_array(body.caption_vector),
        space=body.space,
        kind=body.kind,
        skip=frozenset(body.skip),
        k_positive=body.k_positive,
        k_negative=body.k_negative,
        floor=floor_for_agents(service.config.memory, body.floor),
    )
    # Made and checked once, in the thread that recalled: it goes out as it is.
    return Response(await recalls.recall(scope, wanted), media_type="application/json")


def _array(vector: list[float] | None) -> NDArray[numpy.float64] | None:
    # Not float32, in which a large number would be infinite before it is scaled.
    return numpy.array(vector, numpy.float64) if vector is not None else None
