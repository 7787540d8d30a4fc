"""`/v1/adapters`: the versions of trained weights, which of them answers, and what became of what.

They are made of the questions that were asked in `memory.scope`: whoever sees that scope sees them. Which of them
answers is everybody's affair, and takes a token without a scope. A server that learns follows what is decided here, or
on the command line, with the next question.
"""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import StringConstraints

from mia.errors import LearnError, RecordError
from mia.learn import lineage as chains
from mia.learn.adapters import BASE, AdapterStore, Version, open_stores
from mia.service.auth import Forbidden, Principal
from mia.service.context import ThePrincipal, TheService
from mia.service.core import Service
from mia.service.problems import NotFound
from mia.service.schemas import PROBLEMS, Body, Id, Reply
from mia.types import Role

router = APIRouter(prefix="/v1/adapters", tags=["adapters"], responses=PROBLEMS)

Trained = Literal["planner", "executor"]
WhoseVersions = Annotated[Trained | None, Query(alias="role", description="Whose versions; left out: both.")]


class VersionReply(Reply):
    """A version of a role's weights, as far as its record goes."""

    name: str
    number: int
    role: Role
    base: str
    """Digest of the model that it belongs to."""
    parent: str
    """The version that training went on from; empty: the base model."""
    kind: Literal["lora", "full"]
    state: str
    """candidate, promoted, rejected or rolled_back."""
    current: bool
    """It answers."""
    there: bool
    """Its weights are on the disk: not pruned."""
    created_at: float
    changed_at: float
    reason: str
    before: str
    """What answered when it was promoted, and what a rollback returns to; empty: the base model."""
    reward: float | None
    """The mean of the rollouts that made it."""
    rollouts: int
    metrics: dict[str, float | None]
    canary: dict[str, Any] | None

    @classmethod
    def of(cls, store: AdapterStore, version: Version) -> VersionReply:
        current = store.current()
        page = version.model_dump(mode="json")
        page["rollouts"] = len(version.rollouts)
        shown = {name: page[name] for name in cls.model_fields if name in page}
        return cls(**shown, current=current is not None and current.name == version.name, there=store.is_there(version))


class VersionsReply(Reply):
    versions: list[VersionReply]
    """The oldest first."""
    learning: bool
    """This server learns while it answers."""
    trouble: str
    """What kept the weights from learning last; empty: nothing."""


class RolloutReply(Reply):
    id: str
    group: str
    reward: float
    parts: dict[str, float]
    adapter_version: str
    """The version that sampled it; empty: the base model."""
    episode_id: str
    tokens: int


class OneVersionReply(Reply):
    version: VersionReply
    rollouts: list[RolloutReply]


class PromoteBody(Body):
    reason: Annotated[str, StringConstraints(max_length=2_000)] = ""


class RollbackBody(Body):
    to: Id = ""
    """A version that has answered before, or `base`: the model as it came. Empty: the last good one before."""
    role: Trained | None = None
    """Needed where both have versions, and `to` does not say which."""
    quarantine: bool = False
    """Also put aside the memories of what the versions that are taken back have answered."""
    reason: Annotated[str, StringConstraints(max_length=2_000)] = ""


class RollbackReply(Reply):
    role: Role
    was: str
    now: str
    """Empty: the base model."""
    rolled_back: list[str]
    quarantined: list[str]
    """Memories that were put aside; `POST /v1/memories/{id}/restore` brings them back."""


class LineageReply(Reply):
    """The chain through one of its links: memory → episode → reward → version → the episodes that it answered."""

    subject: str
    kind: Literal["memory", "episode", "rollout", "version"]
    memories: list[str]
    origin: str
    episodes: list[dict[str, Any]]
    rewards: list[dict[str, Any]]
    versions: list[str]
    parents: list[str]
    answered: list[dict[str, Any]]


@router.get("", response_model=VersionsReply, summary="List all versions, the oldest first")
async def list_versions(service: TheService, principal: ThePrincipal, role: WhoseVersions = None) -> VersionsReply:
    """Empty where nothing was ever learnt. Pruned ones are listed too: what made them stays known."""
    _may_look(service, principal)
    learner = service.learner
    return VersionsReply(
        versions=await asyncio.to_thread(_all, service, role),
        learning=learner is not None,
        trouble=learner.trouble.got if learner is not None and learner.trouble is not None else "",
    )


@router.get("/lineage/{id}", response_model=LineageReply, summary="What became of what")
async def lineage(id: str, service: TheService, principal: ThePrincipal) -> LineageReply:
    """Of a memory, an episode, a rollout or a version, by its id."""
    _may_look(service, principal)
    return await asyncio.to_thread(_lineage, service, principal, id)


@router.get("/{name}", response_model=OneVersionReply, summary="One version, and what made it")
async def show(name: str, service: TheService, principal: ThePrincipal, role: WhoseVersions = None) -> OneVersionReply:
    """By name, number, or `current`."""
    _may_look(service, principal)
    return await asyncio.to_thread(_one, service, role, name)


@router.post("/{name}/promote", response_model=VersionReply, summary="Let a candidate answer")
async def promote(
    name: str,
    service: TheService,
    principal: ThePrincipal,
    body: PromoteBody | None = None,
    role: WhoseVersions = None,
) -> VersionReply:
    principal.require_admin("decide which version answers")
    return await asyncio.to_thread(_promote, service, role, name, body.reason if body is not None else "")


@router.post("/rollback", response_model=RollbackReply, summary="Let an earlier version answer again")
async def rollback(body: RollbackBody, service: TheService, principal: ThePrincipal) -> RollbackReply:
    """Nothing is removed: a rollback to the later version undoes it."""
    principal.require_admin("decide which version answers")
    return await asyncio.to_thread(_rollback, service, body)


def _may_look(service: Service, principal: Principal) -> None:
    """Raises Forbidden."""
    scope = service.config.memory.scope
    if not principal.may_see(scope):
        raise Forbidden("this token does not see what the weights learn from.", wanted=f"one for the scope '{scope}'")


def _stores(service: Service, role: str | None) -> tuple[AdapterStore, ...]:
    """Raises LearnError."""
    found = open_stores(service.config.home / "adapters")
    return tuple(store for store in found if role in (None, store.role.value))


def _find(service: Service, role: str | None, name: str) -> tuple[AdapterStore, Version]:
    """Raises NotFound, RecordError, LearnError."""
    stores = _stores(service, role)
    if not any(store.find(name) for store in stores):
        raise NotFound(f"no version '{name[:100]}'.", hint="GET /v1/adapters lists them")
    return chains.find_version(name, stores)


def _all(service: Service, role: str | None) -> list[VersionReply]:
    return [VersionReply.of(store, version) for store in _stores(service, role) for version in store.versions()]


def _one(service: Service, role: str | None, name: str) -> OneVersionReply:
    store, version = _find(service, role, name)
    rows = [RolloutReply(**row.model_dump()) for row in store.rollouts(version.name)]
    return OneVersionReply(version=VersionReply.of(store, version), rollouts=rows)


def _promote(service: Service, role: str | None, name: str, reason: str) -> VersionReply:
    store, version = _find(service, role, name)
    return VersionReply.of(store, store.promote(version.name, reason=reason))


def _rollback(service: Service, body: RollbackBody) -> RollbackReply:
    """Raises NotFound, LearnError, StoreError."""
    stores = _stores(service, body.role)
    if body.to not in ("", BASE):
        store, _ = _find(service, body.role, body.to)
    elif not stores:
        raise LearnError("there is nothing to roll back: the model as it came answers.", hint="mia serve --learn")
    elif len(stores) > 1:
        raise RecordError("planner and executor both have versions.", wanted='"role": "planner", or "executor"')
    else:
        store = stores[0]
    if body.quarantine and service.config.memory.frozen:
        raise LearnError("the memory is frozen, and nothing in it can be put aside.", hint="memory.frozen = false")
    done = store.rollback(body.to, reason=body.reason)
    put_aside: tuple[str, ...] = ()
    if body.quarantine and done.rolled_back:
        put_aside = chains.quarantine(done.rolled_back, _stores(service, None), service.store, reason=body.reason)
    return RollbackReply(
        role=store.role,
        was=done.was,
        now=done.now,
        rolled_back=list(done.rolled_back),
        quarantined=list(put_aside),
    )


def _lineage(service: Service, principal: Principal, id: str) -> LineageReply:
    """Raises NotFound, StoreError, LearnError."""
    try:
        found = chains.lineage(id, _stores(service, None), service.store, scope=principal.scope)
        hidden = found.kind == "memory" and not principal.may_see(service.store.memory(found.subject).scope)
    except RecordError:
        hidden = True
    if hidden:
        # Without the ids that begin alike: they may be somebody else's.
        raise NotFound(f"nothing, or more than one thing, has the id '{id[:100]}'.", wanted="a whole id")
    return LineageReply(
        subject=found.subject,
        kind=found.kind,
        memories=list(found.memories),
        origin=found.origin,
        episodes=[_episode(one) for one in found.episodes],
        rewards=[{**one.row.model_dump(mode="json"), "version": one.version} for one in found.rewards],
        versions=[version.name for version in found.versions],
        parents=list(found.parents),
        answered=[_episode(one) for one in found.answered],
    )


def _episode(one: chains.Answered) -> dict[str, Any]:
    return {**asdict(one), "adapters": {role.value: name for role, name in one.adapters.items()}}
