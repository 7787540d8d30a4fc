"""`/retrieve`: the server's own search, over the protocol of Search-R1."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Field, StringConstraints

from mia.errors import ConfigError
from mia.search.base import SearchEngine
from mia.service.compat import wire
from mia.service.context import TheScope, TheService
from mia.service.schemas import PROBLEMS
from mia.team import Team
from mia.tools.search import SearchTool
from mia.types import Passage

router = APIRouter(tags=["reference: search"], responses=PROBLEMS)


class RetrieveBody(wire.Sent):
    queries: Annotated[list[Annotated[str, StringConstraints(max_length=4_000)]], Field(max_length=wire.MOST_ITEMS)]
    topk: Annotated[int, Field(ge=1, le=100)] | None = None
    """Documents for a query; None: as many as the server's own agent gets."""
    return_scores: bool = False


class Retrieved(wire.Given):
    result: list[list[dict[str, Any]]]
    """For each query, the best first: `{"document": {…}, "score": …}`, or without scores the documents alone."""


@router.post("/retrieve", response_model=Retrieved, summary="Search")
async def retrieve(body: RetrieveBody, service: TheService, scope: TheScope) -> Retrieved:
    engine = engine_of(service.team(scope))
    asked = [" ".join(query.split()) for query in body.queries]
    # A query without words finds nothing, and the others go on.
    words = [query for query in asked if query]
    found = iter(await engine.search(words, body.topk or service.config.search.k) if words else ())
    return Retrieved(
        result=[[_hit(one, body.return_scores) for one in next(found)] if query else [] for query in asked]
    )


def engine_of(team: Team) -> SearchEngine:
    """Raises ConfigError where there is nothing to search."""
    tool = team.executor.tools.get("search")
    if not isinstance(tool, SearchTool):
        raise ConfigError("this server has no search.", hint="mia serve --corpus ./docs")
    return tool.engine


def _hit(passage: Passage, scored: bool) -> dict[str, Any]:
    document = {"id": passage.id, "title": passage.title, "contents": f"{passage.title}\n{passage.text}"}
    return {"document": document, "score": passage.score} if scored else document
