"""`/v1/memories`: what is remembered, what happened to it, out of sight and back, out of the store and in.

The texts of a memory never change: what replaces one is another memory. What changes is whether it is in sight, and
until when.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import itertools
import re
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import Field, FiniteFloat, StringConstraints

from mia.errors import RecordError, StoreError
from mia.memory.compress import OTHERS
from mia.memory.exchange import import_jsonl, write_jsonl
from mia.memory.exchange.base import parse
from mia.service.api.episodes import ErasureReply
from mia.service.api.reach import RELATED, Limit, Offset, Reach, Sequence
from mia.service.auth import Principal
from mia.service.context import ThePrincipal, TheScope, TheService, memory_of
from mia.service.core import Service
from mia.service.problems import NotFound, problem, request_id
from mia.service.schemas import PROBLEMS, Body, Reply, Text
from mia.store.audit import is_credit
from mia.store.base import Change, KeptEpisode, MemoryStore, MemoryVectors
from mia.types import Memory, MemoryState

router = APIRouter(prefix="/v1/memories", tags=["memories"], responses=PROBLEMS)

_LINES = "application/jsonl"
_PAGE = 256
_REFUSALS = 1_000
"""Lines of an import that are told why they were refused,"""
_REFUSALS_OF_ALL = 20
"""and where all were."""
_REASONS = 20
_WHERE = re.compile(r"[:(]| at ")
"""What follows in a reason is where in the line it was."""
_END_OF_TIME = 253_402_300_799.0
"""The last second of the year 9999."""
_CREDITS = 100_000

Reason = Annotated[str, StringConstraints(max_length=2_000)]


class MemoriesReply(Reply):
    memories: list[Memory]
    next: int | None
    """What `offset` is for the next page; None: there is none."""


class FoundMemory(Reply):
    memory: Memory
    similarity: float
    """Of the questions, in [-1, 1]."""
    related: bool
    """It is similar enough to be shown for a question like this (0.5); the others share some words at most."""


class SearchReply(Reply):
    found: list[FoundMemory]


class MemoryBody(Body):
    """What a user knows."""

    question: Text
    """That the workflow answers."""
    workflow: Text
    """Numbered steps `purpose (input → output)`: how the question was, or was not, answered."""
    judgement: Literal["correct", "incorrect"] = "correct"
    """Whether it led to the right answer."""
    caption: Annotated[str, StringConstraints(max_length=20_000)] = ""
    """What the images of the question show."""
    category: Annotated[str, StringConstraints(max_length=100)] = OTHERS
    plan: Annotated[str, StringConstraints(max_length=100_000)] = ""


class ReceiptReply(Reply):
    """A memory that is on the disk, and is stored soon; `GET /v1/queue` lists it as long as it is not."""

    receipt: str


class MemoryChange(Body):
    """Only what is given changes."""

    state: Literal["active", "forgotten", "quarantined"] | None = None
    expires_at: Annotated[FiniteFloat, Field(ge=0, le=_END_OF_TIME)] | None = None
    """Seconds since the epoch; null, where it is given: never."""
    reason: Reason = ""
    """Kept in the audit."""


class ReasonBody(Body):
    reason: Reason = ""
    """Kept in the audit."""


class ChangeReply(Reply):
    changed: bool
    """False: it was so already."""
    memory: Memory


class AuditEntry(Reply):
    """What happened to a memory."""

    sequence: int
    at: float
    action: str
    memory_id: str
    """Empty for what concerns no single memory."""
    scope: str
    reason: str
    before: dict[str, Any]
    """The fields that changed, as they were."""
    after: dict[str, Any]

    @classmethod
    def of(cls, change: Change) -> AuditEntry:
        return cls(**asdict(change))


class AuditReply(Reply):
    changes: list[AuditEntry]
    next: int | None
    """What `before` is for the next page; None: there is none."""


class ShownTo(Reply):
    """A question that it was shown for, and that was judged."""

    at: float
    episode_id: str
    """Of a stream that was learnt from: the group of its tries. Empty: it was erased."""
    correct: bool


class Kin(Reply):
    id: str
    question: str
    """Empty: it is not there any more."""


class MemoryWhyReply(Reply):
    """Where a memory comes from, and how it fared."""

    memory: Memory
    made_of: Kin | None
    """The episode; None: it was written by hand, or imported."""
    leaned_on: list[Kin]
    """The memories that were shown to that episode."""
    shown_to: list[ShownTo]


class StatisticsReply(Reply):
    """What a scope and all below it hold."""

    states: dict[str, int]
    expired: int
    judgements: dict[str, int]
    kinds: dict[str, int]
    categories: dict[str, int]
    origins: dict[str, int]
    uses: int
    wins: int
    oldest: float | None
    newest: float | None
    episodes: int
    queue: dict[str, int]
    changes: int
    space: str
    """The embedding space of the store."""
    database_bytes: int
    """Of the whole store, as are the two below."""
    log_bytes: int
    cache_bytes: int
    accepted: int
    """Answers and memories that wait to be stored."""


class RefusalReply(Reply):
    line: int
    reason: str


class ImportReply(Reply):
    """What became of the lines."""

    added: int
    known: int
    replaced: int
    quarantined: int
    """Of those added, kept out of sight, since they read like orders to the agent."""
    episodes: int
    waiting: int
    refused_total: int
    reasons: dict[str, int]
    """Why lines were refused → how many, the most frequent reasons first."""
    refused: list[RefusalReply]
    """Each with its line; the first thousand."""


# ── of a scope ────────────────────────────────────────────────────────────────────────────────────────────────────


@router.get("", response_model=MemoriesReply, summary="List memories, the newest first")
async def list_memories(
    service: TheService,
    reach: Reach,
    limit: Limit = 50,
    offset: Offset = 0,
    state: Annotated[
        Literal["active", "replaced", "forgotten", "quarantined", "all"],
        Query(description="In sight, or why they are not."),
    ] = "active",
    judgement: Annotated[Literal["correct", "incorrect"] | None, Query(description="Only those.")] = None,
) -> MemoriesReply:
    states = tuple(MemoryState) if state == "all" else (MemoryState(state),)
    found = await asyncio.to_thread(
        service.store.list_memories, reach, limit=limit + 1, offset=offset, states=states, judgement=judgement
    )
    return MemoriesReply(memories=list(found[:limit]), next=offset + limit if len(found) > limit else None)


@router.get("/search", response_model=SearchReply, summary="Find memories by their questions")
async def search(
    service: TheService,
    scope: TheScope,
    text: Annotated[str, Query(min_length=1, max_length=10_000, description="A question, or words of one.")],
    k: Annotated[int, Query(ge=1, le=100, description="How many, the most similar first.")] = 10,
    floor: Annotated[float, Query(ge=-1, le=1, description="Of similarity: what is below is left out.")] = -1.0,
) -> SearchReply:
    """As in a recall, those of the scope and of the levels above it; whatever their judgement, and however unlike,
    unless a floor is given: `related` says which are worth a look."""
    found = await asyncio.to_thread(service.memory(scope).search, text, k=k)
    return SearchReply(
        found=[
            FoundMemory(memory=one.memory, similarity=one.similarity, related=one.similarity >= RELATED)
            for one in found
            if one.similarity >= floor
        ]
    )


@router.post(
    "",
    status_code=201,
    response_model=Memory,
    responses={202: {"model": ReceiptReply, "description": "It is on the disk, and is stored soon."}},
    summary="Add what you know",
)
async def add(
    body: MemoryBody,
    service: TheService,
    scope: TheScope,
    wait: Annotated[bool, Query(description="Wait until it is stored, and get the memory.")] = True,
) -> Any:
    """201, with what the store now holds for it (an older near-duplicate, where the rules keep that one); or, with
    `wait=false`, 202 with a receipt. Either way it is on the disk then."""
    if not wait:
        receipt = await service.remember_soon(scope, body.model_dump())
        return JSONResponse(ReceiptReply(receipt=receipt).model_dump(), 202)
    content = body.model_dump()
    question, workflow, judgement = (content.pop(name) for name in ("question", "workflow", "judgement"))
    return await service.remember(scope, question, workflow, judgement, **content)


@router.get("/statistics", response_model=StatisticsReply, summary="What a scope holds, in figures")
async def statistics(service: TheService, reach: Reach) -> StatisticsReply:
    found = await asyncio.to_thread(service.store.statistics, reach)
    accepted = await asyncio.to_thread(service.durable.pending_count, reach)
    return StatisticsReply(**asdict(found), accepted=accepted)


@router.get("/audit", response_model=AuditReply, summary="What happened to the memories, the newest first")
async def audit(service: TheService, reach: Reach, limit: Limit = 50, before: Sequence = None) -> AuditReply:
    return await asyncio.to_thread(_changes, service.store, "", reach, limit, before)


@router.get(
    "/export",
    response_class=Response,
    responses={200: {"content": {_LINES: {"schema": {"type": "string"}}}}},
    summary="All memories as JSON Lines",
)
async def export(
    service: TheService,
    reach: Reach,
    vectors: Annotated[bool, Query(description="With them nothing is embedded again at an import.")] = True,
    episodes: Annotated[bool, Query(description="The episodes, too.")] = False,
) -> Response:
    """In whatever state, the oldest first, as `mia memory export` writes them; `POST /v1/memories/import` takes them.
    Sent as it is read, whatever the size."""
    lines = _lines(service.store, reach, vectors=vectors, episodes=episodes)
    headers = {"Content-Disposition": 'attachment; filename="memories.jsonl"'}
    # The first page before the headers: what cannot be read is an error, and no torn file.
    first = await anext(lines)
    return StreamingResponse(_after(first, lines), media_type=_LINES, headers=headers)


@router.post(
    "/import",
    response_model=ImportReply,
    openapi_extra={"requestBody": {"required": True, "content": {_LINES: {"schema": {"type": "string"}}}}},
    summary="Take in JSON Lines",
)
async def import_(
    request: Request,
    service: TheService,
    principal: ThePrincipal,
    scope: TheScope,
    keep_scopes: Annotated[
        bool, Query(description="Into the scopes that the file names; only for a token without a scope.")
    ] = False,
) -> Any:
    """What `GET /v1/memories/export` gave, put into the scope of the request. Nothing is overwritten, and the same file
    again changes nothing; what is broken is refused alone, and where nothing can be taken the reply is 422, with the
    same reasons. Episodes are taken from a token without a scope only, since they say themselves which memories came
    of them."""
    if keep_scopes:
        principal.require_admin("import into other scopes")
    lines = (await request.body()).split(b"\n")
    refused = [] if principal.is_admin else await asyncio.to_thread(_refuse_episodes, lines)
    imported = await asyncio.to_thread(
        import_jsonl,
        service.store,
        lines,
        settings=service.config.memory,
        embedder=service.embedder,
        scope=None if keep_scopes else scope,
    )
    refused += [RefusalReply(line=one.line, reason=one.reason) for one in imported.refused]
    refused.sort(key=lambda one: one.line)
    reasons = dict(Counter(_WHERE.split(one.reason)[0] for one in refused).most_common(_REASONS))
    if refused and not (imported.added or imported.known or imported.episodes):
        return _nothing_taken(request, refused, reasons)
    return ImportReply(
        added=imported.added,
        known=imported.known,
        replaced=imported.replaced,
        quarantined=imported.quarantined,
        episodes=imported.episodes,
        waiting=imported.waiting,
        refused_total=len(refused),
        reasons=reasons,
        refused=refused[:_REFUSALS],
    )


def _nothing_taken(request: Request, refused: list[RefusalReply], reasons: dict[str, int]) -> JSONResponse:
    """The answer to an import of which every line was refused."""
    first = refused[0]
    body = problem(
        422,
        f"nothing was taken of {len(refused):,} {'line' if len(refused) == 1 else 'lines'}; "
        f"line {first.line}: {first.reason}.",
        kind=RecordError.__name__,
        wanted="JSON Lines as GET /v1/memories/export writes them",
        hint="other formats: mia memory import --format",
        request_id=request_id(request),
        reasons=reasons,
        refused=[one.model_dump() for one in refused[:_REFUSALS_OF_ALL]],
    )
    return JSONResponse(body, 422)


# ── one ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@router.get("/{id}", response_model=Memory, summary="One memory")
async def show(id: str, service: TheService, principal: ThePrincipal) -> Memory:
    return await memory_of(service, principal, id)


@router.get("/{id}/why", response_model=MemoryWhyReply, summary="Where it comes from, and how it fared")
async def why(id: str, service: TheService, principal: ThePrincipal) -> MemoryWhyReply:
    memory = await memory_of(service, principal, id)
    return await asyncio.to_thread(_history, service.store, principal, memory)


@router.get("/{id}/audit", response_model=AuditReply, summary="What happened to it, the newest first")
async def audit_one(
    id: str, service: TheService, principal: ThePrincipal, limit: Limit = 50, before: Sequence = None
) -> AuditReply:
    """Also of one that was purged or erased: that it was there."""
    if await asyncio.to_thread(service.store.memories, [id]):
        await memory_of(service, principal, id)
    found = await asyncio.to_thread(_changes, service.store, id, principal.scope, limit, before)
    if not found.changes and before is None:
        raise NotFound(f"no memory '{id[:100]}'.", hint="GET /v1/memories lists them")
    return found


@router.patch("/{id}", response_model=ChangeReply, summary="Change its state or expiry")
async def change(id: str, body: MemoryChange, service: TheService, principal: ThePrincipal) -> ChangeReply:
    """The texts of a memory never change."""
    memory = await memory_of(service, principal, id)
    if not body.model_fields_set & {"state", "expires_at"}:
        raise RecordError("nothing is to be changed.", wanted="state, or expires_at")
    manager = service.memory(memory.scope)
    changed: tuple[str, ...] = ()
    if body.state is not None:
        act = {"active": manager.restore, "forgotten": manager.forget, "quarantined": manager.quarantine}[body.state]
        changed += await asyncio.to_thread(act, [id], reason=body.reason)
    if "expires_at" in body.model_fields_set:
        changed += await asyncio.to_thread(manager.expire, [id], body.expires_at, reason=body.reason)
    return ChangeReply(changed=bool(changed), memory=await memory_of(service, principal, id))


@router.post("/{id}/forget", response_model=ChangeReply, summary="Put it out of sight")
async def forget(id: str, service: TheService, principal: ThePrincipal, body: ReasonBody | None = None) -> ChangeReply:
    """It is not shown any more; `restore` undoes it."""
    return await _moved(service, principal, id, "forget", body)


@router.post("/{id}/quarantine", response_model=ChangeReply, summary="Put it out of sight until somebody has looked")
async def quarantine(
    id: str, service: TheService, principal: ThePrincipal, body: ReasonBody | None = None
) -> ChangeReply:
    return await _moved(service, principal, id, "quarantine", body)


@router.post("/{id}/restore", response_model=ChangeReply, summary="Bring it back into sight")
async def restore(id: str, service: TheService, principal: ThePrincipal, body: ReasonBody | None = None) -> ChangeReply:
    """One that was forgotten, quarantined or replaced, or has expired."""
    return await _moved(service, principal, id, "restore", body)


@router.delete("/{id}", response_model=ErasureReply, summary="Remove it for good")
async def erase(id: str, service: TheService, principal: ThePrincipal) -> ErasureReply:
    """And every trace of it; the episode that it was made of stays. It cannot be undone: `forget` can."""
    await memory_of(service, principal, id)
    return ErasureReply.of(await service.erase_memory(id))


# ── how ───────────────────────────────────────────────────────────────────────────────────────────────────────────


async def _moved(
    service: Service,
    principal: Principal,
    id: str,
    verb: Literal["forget", "quarantine", "restore"],
    body: ReasonBody | None,
) -> ChangeReply:
    memory = await memory_of(service, principal, id)
    manager = service.memory(memory.scope)
    act = {"forget": manager.forget, "quarantine": manager.quarantine, "restore": manager.restore}[verb]
    changed = await asyncio.to_thread(act, [id], reason=body.reason if body is not None else "")
    return ChangeReply(changed=bool(changed), memory=await memory_of(service, principal, id))


def _changes(store: MemoryStore, id: str, scope: str | None, limit: int, before: int | None) -> AuditReply:
    """Raises StoreError."""
    found = store.audit(memory_id=id, scope=scope, limit=limit + 1, before=before)
    page = found[:limit]
    return AuditReply(
        changes=[AuditEntry.of(change) for change in page], next=page[-1].sequence if len(found) > limit else None
    )


def _history(store: MemoryStore, principal: Principal, memory: Memory) -> MemoryWhyReply:
    """What of it is the asker's to see. Raises StoreError."""
    source = memory.provenance
    made_of = None
    if source.episode_id:
        kept = store.kept_episode(source.episode_id)
        seen = kept is not None and principal.may_see(kept.scope)
        made_of = Kin(id=source.episode_id, question=kept.episode.question.text if kept is not None and seen else "")
    others = store.memories(source.leaned_on)
    leaned_on = [
        Kin(id=id, question=others[id].question if id in others and principal.may_see(others[id].scope) else "")
        for id in source.leaned_on
    ]
    # The verdict that stands for each question: the newest.
    latest: dict[tuple[str, str], Change] = {}
    for change in store.audit(memory_id=memory.id, scope=principal.scope, limit=_CREDITS):
        if is_credit(change):
            latest.setdefault((change.scope, change.reason or str(change.sequence)), change)
    shown_to = [
        ShownTo(at=change.at, episode_id=change.reason, correct=bool(change.after["correct"]))
        for change in latest.values()
        if memory.id in change.after.get("memory_ids", ())
    ]
    return MemoryWhyReply(memory=memory, made_of=made_of, leaned_on=leaned_on, shown_to=shown_to)


async def _lines(store: MemoryStore, scope: str | None, *, vectors: bool, episodes: bool) -> AsyncIterator[bytes]:
    """An export, a page at a time: whoever reads slowly makes nothing pile up, and whoever hangs up ends it."""
    memories = store.export(scope)
    kept = store.export_episodes(scope) if episodes else iter(())
    header = ""
    while True:
        page, space = await asyncio.to_thread(_next_page, memories, kept, vectors)
        start, _, lines = page.partition(b"\n")
        if not header:
            header = space or "-"
            yield start + b"\n" + lines
        elif not lines:
            return
        elif space and space != header:
            raise StoreError("the embedder of the store was changed during the export.", hint="export it again")
        else:
            yield lines


def _next_page(
    memories: Iterator[tuple[Memory, MemoryVectors]], episodes: Iterator[KeptEpisode], vectors: bool
) -> tuple[bytes, str]:
    """A whole small export, header and all, and its embedding space. Raises StoreError."""
    rows: list[tuple[Memory, MemoryVectors | None]] = [
        (memory, row if vectors else None) for memory, row in itertools.islice(memories, _PAGE)
    ]
    kept = list(itertools.islice(episodes, _PAGE)) if len(rows) < _PAGE else []
    page = io.BytesIO()
    write_jsonl(page, rows, kept)
    space = next((row.space for _, row in rows if row is not None), "")
    return page.getvalue(), space


def _refuse_episodes(lines: list[bytes]) -> list[RefusalReply]:
    """Blank the lines that are read as episodes, and say so."""
    refused = []
    for index, line in enumerate(lines):
        # One that cannot be parsed is refused where it is read.
        with contextlib.suppress(RecordError):
            value = parse(line) if b"episode" in line else None
            if isinstance(value, dict) and "episode" in value and not {"mia", "memory"} & value.keys():
                lines[index] = b""
                refused.append(RefusalReply(line=index + 1, reason="an episode, and this token has a scope"))
    return refused


async def _after(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for page in rest:
        yield page
