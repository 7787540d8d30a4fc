"""The embedded model as a team in the offline world, built through the doors that everybody uses."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import mia
from mia.cli.embedded import missing_library
from mia.config import Config, load_config
from mia.models import Models, build_model
from mia.models.base import Around, ChatModel, ChatReply, ChatRequest
from mia.models.ledger import Ledger
from mia.models.local import EMBEDDED
from mia.team import Team
from mia.types import Episode, Role, Task
from mia.world import preset

_missing = missing_library() or ("" if (EMBEDDED / "model.safetensors").is_file() else f"{EMBEDDED}/model.safetensors")
needs_embedded_model = pytest.mark.skipif(bool(_missing), reason=f"the embedded model cannot run: no {_missing}")


def settings(home: Path, **flags: Any) -> Config:
    """The embedded model in the world of the demonstration; `flags`: more, by dotted names with "__" for the dots."""
    base: dict[str, Any] = {"home": home, "search.engine": "world", "search.k": preset.PASSAGES}
    base |= {f"models.default.{name}": value for name, value in preset.MODEL.items()}
    base |= {f"memory.{name}": value for name, value in preset.MEMORY.items()}
    return load_config(flags=base | {name.replace("__", "."): value for name, value in flags.items()})


def embedded_model(**others: Any) -> ChatModel:
    return build_model(preset.model_settings(**others))


def everybody(model: ChatModel, **others: ChatModel) -> Models:
    """One model in all roles but these."""
    return Models(**{role.value: others.get(role.value, model) for role in Role})


async def answer_all(tasks: Sequence[Task], team: Team) -> list[Episode]:
    """All at once."""
    return await asyncio.gather(*(mia.answer(task, team, Ledger(task.question.id)) for task in tasks))


async def live_all(tasks: Sequence[Task], team: Team, *, at_once: int) -> list[Episode]:
    """So many at a time, and each such group after the one before."""
    episodes: list[Episode] = []
    for start in range(0, len(tasks), at_once):
        group = tasks[start : start + at_once]
        episodes += await asyncio.gather(*(mia.live(task, team, Ledger(task.question.id)) for task in group))
    return episodes


class Watched(Around[ChatModel]):
    """A model, and all that it was asked."""

    def __init__(self, model: ChatModel) -> None:
        super().__init__(model)
        self.requests: list[ChatRequest] = []

    async def complete(self, request: ChatRequest) -> ChatReply:
        self.requests.append(request)
        return await self.model.complete(request)
