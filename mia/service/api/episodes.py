"""`/v1/episodes`: what was asked and answered, why, and what a user says of it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import StringConstraints

from mia.erasure import Erasure
from mia.service.api.reach import Limit, Reach
from mia.service.context import ThePrincipal, TheService, episode_of
from mia.service.core import Service, given_verdict
from mia.service.problems import NotFound
from mia.service.schemas import PROBLEMS, Body, Reply
from mia.types import Episode, Outcome, Recall, RecalledMemory, StopReason

router = APIRouter(prefix="/v1/episodes", tags=["episodes"], responses=PROBLEMS)

_LOOKED_THROUGH = 2_000
"""Episodes that one request with a filter reads at most."""
_PAGE = 200
_WAITING = 100
"""Of those not yet absorbed, so many are listed."""


class EpisodeRow(Reply):
    """An episode in a list."""

    id: str
    question: str
    answer: str | None
    outcome: Outcome | None
    """None: it was not judged."""
    stop: StopReason | None
    started_at: float
    seconds: float
    tokens: int
    cost: float | None
    memories: int
    """How many were shown."""
    run: str
    """The job, run or stream that it belongs to; empty: none."""
    waiting: bool
    """It is answered, and not absorbed yet."""

    @classmethod
    def of(cls, episode: Episode, *, waiting: bool = False) -> EpisodeRow:
        usage = episode.total_usage
        return cls(
            id=episode.id,
            question=episode.question.text,
            answer=episode.answer.text if episode.answer is not None else None,
            outcome=episode.verdict.outcome if episode.verdict is not None else None,
            stop=episode.stop.reason if episode.stop is not None else None,
            started_at=episode.started_at,
            seconds=episode.seconds,
            tokens=usage.tokens,
            cost=usage.cost,
            memories=len(episode.recall.shown) if episode.recall is not None else 0,
            run=episode.run,
            waiting=waiting,
        )


class EpisodesReply(Reply):
    episodes: list[EpisodeRow]
    next: str | None
    """What `before` is for the next page; None: there is none. With a filter, a page may hold fewer than asked for and
    still have a next one."""


class EpisodeReply(Reply):
    episode: Episode
    scope: str
    waiting: bool
    """It is answered, and not absorbed yet."""
    memories: list[str]
    """The ids of those in sight that were made of it."""


class WhyReply(Reply):
    """What the memory gave for the question, with the parts of every score, as it was then."""

    episode_id: str
    question: str
    recall: Recall | None
    """None: the memory was off, or could not be asked."""


class WhyOneReply(Reply):
    episode_id: str
    memory: RecalledMemory | None
    """None: it was not among the best that were considered."""


class FeedbackBody(Body):
    correct: bool
    """Whether the answer is right."""
    reason: Annotated[str, StringConstraints(max_length=2_000)] = ""
    """Kept with the verdict."""


class FeedbackReply(Reply):
    episode_id: str
    outcome: Outcome
    credited: int
    """Memories that were shown for the question, and count this verdict now."""
    memories: list[str]
    """The ids of what is in sight because of the episode now."""


class Unreached(Reply):
    place: str
    reason: str


class ErasureReply(Reply):
    """What was removed for good, and what could not be."""

    memories: list[str]
    episodes: list[str]
    logged: list[str]
    """Ids of episodes that were taken out of the logs of runs."""
    captions: int
    unreached: list[Unreached]
    """What the same call may reach another time."""

    @classmethod
    def of(cls, erasure: Erasure) -> ErasureReply:
        return cls(
            memories=list(erasure.erased.memories),
            episodes=list(erasure.erased.episodes),
            logged=sorted(erasure.logged),
            captions=erasure.captions,
            # By their names: where they lie is the server's affair.
            unreached=[Unreached(place=one.place.name, reason=one.reason) for one in erasure.unreached]
            + [Unreached(place=place.name, reason="the folder of this run is gone") for place in erasure.missing],
        )


@dataclass(frozen=True)
class _Wanted:
    outcome: Outcome | None
    text: str

    def takes(self, episode: Episode) -> bool:
        if self.outcome is not None:
            found = episode.verdict.outcome if episode.verdict is not None else Outcome.UNJUDGED
            if found is not self.outcome:
                return False
        answer = episode.answer.text if episode.answer is not None else ""
        return self.text in f"{episode.question.text}\n{answer}".casefold()

    def __bool__(self) -> bool:
        return self.outcome is not None or bool(self.text)


@router.get("", response_model=EpisodesReply, summary="List episodes, the newest first")
async def list_episodes(
    service: TheService,
    reach: Reach,
    limit: Limit = 50,
    before: Annotated[str, Query(max_length=200, description="Only those saved before the one of this id.")] = "",
    outcome: Annotated[Outcome | None, Query(description="Only those judged so.")] = None,
    text: Annotated[str, Query(max_length=1_000, description="Only those whose question or answer has it.")] = "",
) -> EpisodesReply:
    """What is not absorbed yet comes first, on the first page, beside the others."""
    wanted = _Wanted(outcome, text.casefold())
    return await asyncio.to_thread(_listed, service, reach, limit, before, wanted)


@router.get("/{id}", response_model=EpisodeReply, summary="All of an episode")
async def show(id: str, service: TheService, principal: ThePrincipal) -> EpisodeReply:
    """From recall to verdict: plans, every step with what came back, reflections, reviews, what it cost."""
    episode, scope = await episode_of(service, principal, id)
    waiting = await asyncio.to_thread(service.durable.pending_one, id)
    memories = await asyncio.to_thread(service.store.memories_of, [id])
    return EpisodeReply(
        episode=episode, scope=scope, waiting=waiting is not None, memories=[memory.id for memory in memories]
    )


@router.get("/{id}/why", response_model=WhyReply, summary="Why memories were shown, or were not")
async def why(id: str, service: TheService, principal: ThePrincipal) -> WhyReply:
    episode, _ = await episode_of(service, principal, id)
    return WhyReply(episode_id=episode.id, question=episode.question.text, recall=episode.recall)


@router.get("/{id}/why/{memory}", response_model=WhyOneReply, summary="Why one memory was shown, or was not")
async def why_one(id: str, memory: str, service: TheService, principal: ThePrincipal) -> WhyOneReply:
    episode, _ = await episode_of(service, principal, id)
    listed = (*episode.recall.shown, *episode.recall.passed_over) if episode.recall is not None else ()
    return WhyOneReply(episode_id=episode.id, memory=next((one for one in listed if one.memory_id == memory), None))


@router.post("/{id}/feedback", response_model=FeedbackReply, summary="Say whether the answer is right")
async def feedback(id: str, body: FeedbackBody, service: TheService, principal: ThePrincipal) -> FeedbackReply:
    """Credits the memories that were shown for the question, and what was learnt from the episode is learnt again under
    this verdict. A later one takes the place of an earlier one."""
    await episode_of(service, principal, id)
    settled = await service.feedback(id, given_verdict(body.correct, body.reason))
    assert settled.episode.verdict is not None
    return FeedbackReply(
        episode_id=id,
        outcome=settled.episode.verdict.outcome,
        credited=settled.credited,
        memories=[memory.id for memory in settled.memories],
    )


@router.delete("/{id}", response_model=ErasureReply, summary="Remove an episode for good")
async def erase(id: str, service: TheService, principal: ThePrincipal) -> ErasureReply:
    """With the memories that were made of it, the lines in the logs of runs, the captions of its images, and what a job
    holds of it. It cannot be undone. A second call finishes what the first one could not."""
    try:
        await episode_of(service, principal, id)
        known = True
    except NotFound:
        # Its rows may be gone, and the log of some run may still hold it; whose that is, nobody can tell.
        if not principal.is_admin:
            raise
        known = False
    erasure = await service.erase(id)
    if not known and id in erasure.unknown:
        raise NotFound(f"no episode '{id[:100]}'.", hint="GET /v1/episodes lists them")
    return ErasureReply.of(erasure)


def _listed(service: Service, reach: str | None, limit: int, before: str, wanted: _Wanted) -> EpisodesReply:
    """Raises StoreError."""
    waiting: list[Episode] = []
    if not before:
        pending = service.durable.pending(scope=reach, limit=_WAITING)
        waiting = [one.episode for one in reversed(pending) if one.kind == "absorb"]
    absorbing = {episode.id for episode in waiting}
    rows = [EpisodeRow.of(episode, waiting=True) for episode in waiting if wanted.takes(episode)]
    found: list[Episode] = []
    read = 0
    while True:
        page = service.store.list_episodes(scope=reach, before=before, limit=_PAGE if wanted else limit + 1)
        for episode in page:
            if len(found) == limit or read == _LOOKED_THROUGH:
                # There is at least this one more.
                return EpisodesReply(episodes=rows + [EpisodeRow.of(one) for one in found], next=before)
            before, read = episode.id, read + 1
            if episode.id not in absorbing and wanted.takes(episode):
                found.append(episode)
        if len(page) < (_PAGE if wanted else limit + 1):
            return EpisodesReply(episodes=rows + [EpisodeRow.of(one) for one in found], next=None)
