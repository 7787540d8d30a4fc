"""What an agent can read: episodes and memories, one by one and as lists, each only if it is his to see.

mia://episodes            the last of them        mia://episodes?before=ID     the ones saved before that
mia://memories            the newest of them      mia://memories?offset=50     the ones after those
mia://episodes/ID         one, whole              mia://memories/ID            one, whole
"""

from __future__ import annotations

import asyncio
import json
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from mia.errors import RecordError
from mia.service.auth import Principal
from mia.service.core import Service
from mia.service.problems import NotFound
from mia.types import Episode, Memory, MemoryState

PAGE = 50
"""Entries of one list."""
LISTS = {
    "mia://episodes": ("Episodes", "The questions that were answered last, with what came of them."),
    "mia://memories": ("Memories", "What is remembered: workflows that were tried, the newest first."),
}
TEMPLATES = {
    "mia://episodes/{id}": ("Episode", "One question whole: memories shown, plan, steps, answer, citations, verdict."),
    "mia://memories/{id}": ("Memory", "One memory whole: workflow, judgement, uses and wins, where it comes from."),
    "mia://episodes{?before}": ("Older episodes", "The ones saved before an episode."),
    "mia://memories{?offset}": ("Older memories", "The ones after so many."),
}


async def read(service: Service, principal: Principal, sees: str | None, uri: str) -> str:
    """JSON. `sees`: whose lists. Raises NotFound, RecordError for an address that is none, StoreError."""
    try:
        address = urlsplit(uri)
        query = dict(parse_qsl(address.query, strict_parsing=bool(address.query)))
    except ValueError:
        raise RecordError("this is no address.", wanted=", ".join((*LISTS, *TEMPLATES))) from None
    id = unquote(address.path.removeprefix("/"))
    if address.scheme == "mia" and address.netloc == "episodes":
        if id:
            return (await _episode(service, principal, id)).model_dump_json()
        if query.keys() <= {"before"}:
            return json.dumps(await _episodes(service, sees, query.get("before", "")))
    if address.scheme == "mia" and address.netloc == "memories":
        if id:
            return (await _memory(service, principal, id)).model_dump_json()
        if query.keys() <= {"offset"} and query.get("offset", "0").isdecimal():
            return json.dumps(await _memories(service, sees, int(query.get("offset", "0")[:9])))
    raise NotFound("there is nothing at this address.", wanted=", ".join((*LISTS, *TEMPLATES)))


async def _episode(service: Service, principal: Principal, id: str) -> Episode:
    found = await service.episode(id)
    if found is None or not principal.may_see(found[1]):
        raise NotFound(f"no episode '{id[:100]}'.", hint="mia://episodes lists them")
    return found[0]


async def _memory(service: Service, principal: Principal, id: str) -> Memory:
    found = (await asyncio.to_thread(service.store.memories, [id])).get(id)
    if found is None or not principal.may_see(found.scope):
        raise NotFound(f"no memory '{id[:100]}'.", hint="mia://memories lists them")
    if found.state is MemoryState.QUARANTINED:
        # It may give orders to whoever reads it, and an agent would.
        raise NotFound(f"the memory '{id}' is quarantined: a person looks at it first.", hint=f"mia memory show {id}")
    return found


async def _episodes(service: Service, sees: str | None, before: str) -> dict[str, Any]:
    found = await asyncio.to_thread(service.store.list_episodes, scope=sees, before=before, limit=PAGE)
    return {
        "episodes": [
            {
                "uri": f"mia://episodes/{one.id}",
                "question": one.question.text,
                "answer": one.answer.text if one.answer is not None else None,
                "outcome": one.verdict.outcome.value if one.verdict is not None else "unjudged",
                "started_at": one.started_at,
            }
            for one in found
        ],
        "next": f"mia://episodes?before={found[-1].id}" if len(found) == PAGE else None,
    }


async def _memories(service: Service, sees: str | None, offset: int) -> dict[str, Any]:
    found = await asyncio.to_thread(service.store.list_memories, sees, limit=PAGE, offset=offset)
    return {
        "memories": [
            {
                "uri": f"mia://memories/{one.id}",
                "question": one.question,
                "judgement": one.judgement,
                "uses": one.uses,
                "wins": one.wins,
                "scope": one.scope,
            }
            for one in found
        ],
        "next": f"mia://memories?offset={offset + PAGE}" if len(found) == PAGE else None,
    }
