"""Images of questions: registered ahead of the question by `/streaming/register_images`, kept by its id."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Field

from mia.service.compat import wire
from mia.service.compat.context import TheCompatibility
from mia.service.context import TheScope
from mia.service.schemas import PROBLEMS
from mia.types import Image

router = APIRouter(tags=["reference: agent service"], responses=PROBLEMS)

MOST_IMAGES = 8
"""Of one question."""


class ImageEntry(wire.Sent):
    data_id: wire.GivenId
    images: Annotated[list[Any], Field(max_length=MOST_IMAGES)] | str | dict[str, Any] | None = None
    """Base64, data URLs, or objects with `bytes`. Addresses and paths are refused."""


class ImageEntries(wire.Sent):
    entries: Annotated[list[ImageEntry], Field(max_length=10_000)]


class ImagesRegistered(wire.Given):
    status: str = "ok"
    registered: int
    total_data_ids: int


class StreamingHealth(wire.Given):
    status: str = "ok"
    registered_data_ids: int
    total_data_ids: int
    memory_bank_keys: int
    """Questions whose candidates wait to be consolidated."""


@router.post("/streaming/register_images", response_model=ImagesRegistered, summary="Keep the images of questions")
async def register_images(
    body: ImageEntries | ImageEntry, compatibility: TheCompatibility, scope: TheScope
) -> ImagesRegistered:
    entries = body.entries if isinstance(body, ImageEntries) else [body]
    images = await asyncio.to_thread(lambda: {entry.data_id: _images(entry) for entry in entries})
    total = await asyncio.to_thread(compatibility.registry.register_images, scope, images)
    return ImagesRegistered(registered=len(entries), total_data_ids=total)


@router.get("/streaming/health", response_model=StreamingHealth, summary="What is registered")
async def streaming_health(compatibility: TheCompatibility, scope: TheScope) -> StreamingHealth:
    registry = compatibility.registry
    count = await asyncio.to_thread(registry.count_images, scope)
    waiting = await asyncio.to_thread(registry.count_candidates, scope)
    return StreamingHealth(registered_data_ids=count, total_data_ids=count, memory_bank_keys=waiting)


def _images(entry: ImageEntry) -> tuple[Image, ...]:
    """Raises RecordError."""
    if entry.images is None:
        return ()
    given = entry.images if isinstance(entry.images, list) else [entry.images]
    return tuple(wire.decoded_image(one) for one in given if one is not None)
