"""The reference's web tools: search, the image search, and reading a page, each in an envelope with a cache.

    {"request_id", "tool": {"name", "version"}, "result", "stat": {"cache": HIT | MISS | DISABLED}}

They reach the web only where the server was told to: searching asks the web engine that is configured, whatever engine
a client names; pages are read through the address guard. The image search reads its cache folder and nothing else. An
error stands in the envelope too. What was found is kept for a week; failures never are.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse
from pydantic import StringConstraints

import mia
from mia.errors import ConfigError, MiaError, RecordError, ToolError
from mia.search.base import SearchEngine
from mia.service.compat import wire
from mia.service.compat.context import Compatibility, TheCompatibility
from mia.service.compat.retrieve import engine_of
from mia.service.context import TheScope, TheService
from mia.service.core import Service
from mia.service.problems import NotFound, answer_of, request_id
from mia.service.schemas import PROBLEMS
from mia.tools.base import ToolContext
from mia.tools.fetch import FetchTool
from mia.tools.images import MAX_RESULTS, ImageSearchTool
from mia.types import Image, Observation, Passage, Question

router = APIRouter(tags=["reference: web tools"], responses=PROBLEMS)

WEB_ENGINES = ("searxng", "serper", "ddgs")
CACHE_SECONDS = 7 * 86_400.0
_ANY_IMAGE = Image(sha256="", media_type="image/png")

Url = Annotated[str, StringConstraints(min_length=1, max_length=2_048)]
Words = Annotated[str, StringConstraints(min_length=1, max_length=400, strip_whitespace=True)]


class ToolName(wire.Given):
    name: str
    version: str


class Statistics(wire.Given):
    cache: Literal["HIT", "MISS", "DISABLED"]


class Envelope(wire.Given):
    request_id: str
    tool: ToolName
    result: Any
    stat: Statistics


class ImagesFound(wire.Given):
    text: str
    images: list[str]
    """In base64."""
    stat: Statistics


@router.get("/server/search", response_model=Envelope, summary="Search the web")
async def search(
    request: Request,
    service: TheService,
    compatibility: TheCompatibility,
    scope: TheScope,
    q: Annotated[list[Words], Query(min_length=1, max_length=16)],
    max_results: Annotated[int, Query(ge=1, le=50)] = 10,
    engine: Annotated[str, Query(max_length=40)] = "",
) -> Envelope | JSONResponse:
    """A list of `{title, link, snippet}`; where `q` is repeated, a list for each. `engine=deterministic` answers from
    the cache alone, and 404 where it does not have it."""

    async def find() -> Any:
        if engine == "deterministic":
            raise NotFound("the cache does not have this search.", hint="search once with another engine")
        found = await _web_engine(service, scope).search(q, max_results)
        lists = [[_result(passage) for passage in one] for one in found]
        return lists[0] if len(q) == 1 else lists

    key = json.dumps([q, max_results], ensure_ascii=False)
    return await _enveloped(request, compatibility, "search", key, find)


@router.get("/server/image_search", response_model=ImagesFound, summary="What the image search once found")
@router.get("/image_search", response_model=ImagesFound, summary="What the image search once found")
async def image_search(
    request: Request,
    service: TheService,
    scope: TheScope,
    data_id: Annotated[str, Query(max_length=200)] = "",
    cache_id: Annotated[str, Query(max_length=200)] = "",
    q: Annotated[str, Query(max_length=400)] = "",
) -> ImagesFound | JSONResponse:
    """From the folder of the cache that is named by `data_id` (or `cache_id`, or `q`): the titles of pages with similar
    images, and up to three of these images."""
    try:
        observation, images = await _images(service, data_id or cache_id or q)
    except MiaError as error:
        return _failed(request, "image_search", error)
    return ImagesFound(
        text=observation.text, images=[image.data for image in images], stat=Statistics(cache="DISABLED")
    )


@router.get("/server/web_scrape", response_model=Envelope, summary="Read a page of the web")
@router.get("/web_scrape", response_model=Envelope, summary="Read a page of the web")
async def web_scrape(
    request: Request,
    service: TheService,
    compatibility: TheCompatibility,
    scope: TheScope,
    url: Annotated[Url, Query()],
    goal: Annotated[str, Query(max_length=4_000)] = "",
) -> Envelope | JSONResponse:
    """Its text, whole or cut. `goal` is said again: no model reads the page here."""

    async def read() -> Any:
        tool = service.team(scope).executor.tools.get("fetch")
        if tool is None and service.config.search.engine not in WEB_ENGINES:
            raise ConfigError("this server reads no pages of the web.", hint='executor.tools = ["search", "fetch"]')
        question = Question.of(goal or url)
        observation = await (tool or FetchTool()).call({"url": url}, ToolContext(question=question))
        title = observation.passages[0].title if observation.passages else ""
        return {"url": url, "title": title, "text": observation.text}

    answer = await _enveloped(request, compatibility, "web_scrape", url, read)
    if isinstance(answer, Envelope):
        answer.result = {**answer.result, "goal": goal}
    return answer


async def _enveloped(
    request: Request, compatibility: Compatibility, tool: str, key: str, find: Callable[[], Awaitable[Any]]
) -> Envelope | JSONResponse:
    """From the cache, or found now and kept."""
    registry = compatibility.registry
    try:
        result = await asyncio.to_thread(registry.found, tool, key, not_before=time.time() - CACHE_SECONDS)
        hit = result is not None
        if not hit:
            result = await find()
            await asyncio.to_thread(registry.keep_found, tool, key, result)
    except MiaError as error:
        return _failed(request, tool, error)
    return Envelope(
        request_id=request_id(request),
        tool=ToolName(name=tool, version=mia.__version__),
        result=result,
        stat=Statistics(cache="HIT" if hit else "MISS"),
    )


def _failed(request: Request, tool: str, error: MiaError) -> JSONResponse:
    """An error in the envelope, with the status that it has everywhere."""
    id = request_id(request)
    answer = answer_of(error, id)
    page = {
        "request_id": id,
        "tool": {"name": tool, "version": mia.__version__},
        "result": None,
        "stat": {"cache": "DISABLED"},
        **json.loads(bytes(answer.body)),
    }
    headers = {name: answer.headers[name] for name in ("retry-after",) if name in answer.headers}
    return JSONResponse(page, answer.status_code, headers)


def _web_engine(service: Service, scope: str) -> SearchEngine:
    """Raises ConfigError where the server does not search the web."""
    if service.config.search.engine not in WEB_ENGINES:
        raise ConfigError(
            "this server does not search the web.",
            wanted=f"search.engine = {' or '.join(WEB_ENGINES)}",
            hint="POST /retrieve searches what it has",
        )
    return engine_of(service.team(scope))


def _result(passage: Passage) -> dict[str, str]:
    return {"title": passage.title, "link": passage.source or passage.id, "snippet": passage.text}


async def _images(service: Service, id: str) -> tuple[Observation, list[Image]]:
    """Raises ConfigError, RecordError for no id, ToolError for one that is no plain name or is not there."""
    if not service.config.search.images:
        raise ConfigError("this server has no cache of image searches.", hint="search.images = ./image-search")
    if not id:
        raise RecordError("the request names no image.", wanted="data_id")
    cache = Path(service.config.search.images)
    # Looks at the id, and at where the folder's links lead.
    context = ToolContext(question=Question.of("image", id=id, images=(_ANY_IMAGE,)))
    try:
        observation = await ImageSearchTool(cache).call({"img_idx": "0"}, context)
    except ToolError as error:
        raise NotFound(error.got) from error
    return observation, await asyncio.to_thread(_pictures, cache.resolve(), id)


def _pictures(cache: Path, id: str) -> list[Image]:
    """Those that lie in a folder which the tool has looked at, and are pictures."""
    found = []
    for number in range(MAX_RESULTS):
        for suffix in (".jpg", ".png", ".webp"):
            path = cache / id / f"img_{number:03}{suffix}"
            try:
                resolved = path.resolve(strict=True)
                if resolved.is_relative_to(cache) and resolved.is_file() and resolved.stat().st_size <= 20 * 2**20:
                    found.append(Image.from_file(resolved))
                    break
            except (OSError, RuntimeError, RecordError):
                continue
    return found
