"""`/episodes`: what was asked, and each as a story that can be read from recall to lineage."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from fastapi import APIRouter, Form, Request, Response

from mia.service.context import ThePrincipal, TheService, episode_of
from mia.service.core import Service, given_verdict
from mia.service.dashboard.rendering import (
    PageRoute,
    ShortField,
    ShortQuery,
    by_htmx,
    page,
    plural,
    see_other,
    slice_of,
)
from mia.types import Episode, Memory, Recall, RecalledMemory

router = APIRouter(prefix="/episodes", include_in_schema=False, route_class=PageRoute)

PAGE = 25
PASSED_OVER = 8


@dataclass(frozen=True)
class Part:
    """One part of a memory's score."""

    name: str
    value: float
    weight: float | None
    """None where the recall does not say."""

    @property
    def share(self) -> float:
        """Of the full length of a bar."""
        return min(1.0, max(0.0, self.value))


@dataclass(frozen=True)
class Lineage:
    """What came of an episode."""

    lessons: tuple[Memory, ...]
    absorbed: bool


@router.get("")
async def list_(
    request: Request, service: TheService, principal: ThePrincipal, before: ShortQuery = "", run: ShortQuery = ""
) -> Response:
    """The last saved first. `before`: an episode's id; `run`: of one run or job only."""
    found = await asyncio.to_thread(
        service.store.list_episodes, run=run or None, scope=principal.scope, before=before, limit=PAGE + 1
    )
    shown, more = slice_of(found, PAGE)
    count = await asyncio.to_thread(service.store.count_episodes, principal.scope)
    return page(request, "episodes.html", episodes=shown, more=more, before=before, run=run, count=count)


@router.get("/{id}")
async def show(request: Request, id: str, service: TheService, principal: ThePrincipal) -> Response:
    episode, scope = await episode_of(service, principal, id)
    shown, passed_over = _recalled(episode.recall)
    return page(
        request,
        "episode.html",
        episode=episode,
        scope=scope,
        shown=shown,
        passed_over=passed_over,
        lineage=await _lineage(service, episode),
        note="",
    )


@router.post("/{id}/feedback")
async def feedback(
    request: Request,
    id: str,
    service: TheService,
    principal: ThePrincipal,
    verdict: Annotated[Literal["right", "wrong"], Form()],
    reason: ShortField = "",
) -> Response:
    """A reader's verdict; for htmx, verdict and lineage as they are then."""
    episode, scope = await episode_of(service, principal, id)
    settled = await service.feedback(episode.id, given_verdict(verdict == "right", reason.strip()))
    if not by_htmx(request):
        return see_other(f"/episodes/{episode.id}#outcome")
    were = "was" if settled.credited == 1 else "were"
    note = f"Noted. {plural(settled.credited, 'memory')} that helped to answer {were} credited."
    return page(
        request,
        "_outcome.html",
        episode=settled.episode,
        scope=scope,
        lineage=await _lineage(service, settled.episode),
        note=note if settled.credited else "Noted. No memory had helped to answer.",
    )


def _recalled(
    recall: Recall | None,
) -> tuple[list[tuple[RecalledMemory, list[Part]]], list[tuple[RecalledMemory, list[Part]]]]:
    """What was shown, and the best of what was passed over, each with the parts of its score."""
    if recall is None:
        return [], []
    return (
        [(one, _parts(one, recall.weights)) for one in recall.shown],
        [(one, _parts(one, recall.weights)) for one in recall.passed_over[:PASSED_OVER]],
    )


def _parts(memory: RecalledMemory, weights: Mapping[str, float]) -> list[Part]:
    """Those that count, as they were measured. What a form makes of a part before it weighs it is named after it
    ("similarity_z"); its weight is told with the part itself."""
    parts = []
    for name, value in memory.parts.items():
        if any(name.startswith(f"{other}_") for other in memory.parts):
            continue
        weight = next((weights[one] for one in weights if one == name or one.startswith(f"{name}_")), None)
        if weight or not weights:
            parts.append(Part(name, value, weight))
    return parts


async def _lineage(service: Service, episode: Episode) -> Lineage:
    kept = await asyncio.to_thread(service.store.kept_episode, episode.id)
    if kept is None:
        return Lineage((), False)
    lessons = await asyncio.to_thread(service.store.memories, kept.lessons) if kept.lessons else {}
    return Lineage(tuple(lessons[id] for id in kept.lessons if id in lessons), kept.absorbed)
