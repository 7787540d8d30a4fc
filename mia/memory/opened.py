"""The memory by itself, for scripts and other agents: the verbs of `MemoryManager`, without `await`.

    import mia

    with mia.open_memory("memory.db") as memory:
        recall = memory.recall("Who found the largest moon of Jupiter?")
        print(recall.for_planner)

Async code uses `memory.manager`, whose verbs are the same with `await`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

from mia.config import Config, load_config
from mia.embeddings import memory_embedder
from mia.embeddings.base import Embedder
from mia.memory.manager import Judgement, MemoryManager
from mia.memory.recalling import Found
from mia.models.base import ChatModel
from mia.models.ledger import Ledger
from mia.scope import check_scope
from mia.store import open_store
from mia.store.base import MemoryStore
from mia.types import Episode, Memory, MemoryKind, Outcome, Question, Recall, Role, Verdict

T = TypeVar("T")


class OpenMemory:
    """An open memory. Not for use inside a running event loop: there, `manager` is."""

    def __init__(self, manager: MemoryManager) -> None:
        self.manager = manager
        """The same memory, async."""
        self._runner = asyncio.Runner()

    @property
    def store(self) -> MemoryStore:
        """The rows themselves: episodes, audit, queue."""
        return self.manager.store

    def recall(
        self,
        question: str | Question,
        *,
        kind: MemoryKind = MemoryKind.WORKFLOW,
        skip: frozenset[str] = frozenset(),
    ) -> Recall:
        """The few past workflows that matter, or nothing. Raises RecordError (empty question), StoreError, ModelError
        (the embedder's)."""
        return self._run(self.manager.recall(_question(question), kind=kind, skip=skip))

    def remember(self, episodes: Episode | Sequence[Episode]) -> tuple[Memory, ...]:
        """Compress and store the episodes of one question; idempotent by episode id. Raises StoreError."""
        group = [episodes] if isinstance(episodes, Episode) else list(episodes)
        if not group:
            return ()
        return self._run(self.manager.remember(group, Ledger(group[0].question.id)))

    def credit(self, group: str, recall: Recall, verdict: Verdict | bool) -> int:
        """Count how the answer came out for the memories that a recall showed; once per `group` (any name of the
        question's own, such as the episode's id), and a later verdict replaces the earlier. Raises StoreError."""
        if isinstance(verdict, bool):
            verdict = Verdict(outcome=Outcome.CORRECT if verdict else Outcome.INCORRECT, judge="user")
        shown = frozenset(one.memory_id for one in recall.shown)
        return self._run(self.manager.credit(group, shown, verdict))

    def add(self, question: str, workflow: str, judgement: Judgement, *, caption: str = "", plan: str = "") -> Memory:
        """Store what you know. Raises RecordError, ConfigError (frozen), StoreError, ModelError (the embedder's)."""
        return self.manager.add(question, workflow, judgement, caption=caption, plan=plan)

    def search(self, text: str, *, k: int = 10) -> tuple[Found, ...]:
        """The most similar questions, whatever their judgement. Raises StoreError, ModelError (the embedder's)."""
        return self.manager.search(text, k=k)

    def list(self, *, limit: int = 50, offset: int = 0) -> tuple[Memory, ...]:
        """What is in sight, newest first. Raises StoreError."""
        return self.manager.list(limit=limit, offset=offset)

    def show(self, reference: str) -> Memory:
        """By id or unambiguous beginning of one. Raises RecordError, StoreError."""
        return self.manager.show(reference)

    def forget(self, *ids: str, reason: str = "") -> tuple[str, ...]:
        """Put memories out of sight; `restore` undoes it. Raises StoreError, ConfigError (frozen)."""
        return self.manager.forget(ids, reason=reason)

    def restore(self, *ids: str, reason: str = "") -> tuple[str, ...]:
        """Bring memories back into sight. Raises StoreError, ConfigError (frozen)."""
        return self.manager.restore(ids, reason=reason)

    def close(self) -> None:
        """Keep the caches and let go of the file; calling it twice is harmless."""
        self.manager.close_now()
        self._runner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return self._runner.run(work)
        work.close()
        raise RuntimeError("this is called from async code: use `await memory.manager.…` there")


def open_memory(
    path: str | Path | None = None,
    config: Config | None = None,
    *,
    scope: str | None = None,
    embedder: Embedder | None = None,
    model: ChatModel | None = None,
) -> OpenMemory:
    """Open a memory, or begin one.

    `path`: its file; None: as the configuration says. `config`: None: as this machine has it (`mia.load_config`).
    `scope`: tenant/project/user. `embedder`: None: as the configuration says, or as the file was made with. `model`
    writes the workflows; without one, rules do. Raises ConfigError, StoreError, MissingExtra.
    """
    config = config or load_config()
    chosen = {"path": None if path is None else str(path), "scope": None if scope is None else check_scope(scope)}
    settings = config.memory.model_copy(update={name: value for name, value in chosen.items() if value is not None})
    config = config.model_copy(update={"memory": settings})
    store = open_store(config.store_path, redact=settings.redact)
    try:
        embedder = embedder or memory_embedder(config, store.space())
        style = config.models.of(Role.MANAGER).prompts
        return OpenMemory(MemoryManager(store, embedder, settings, model, style=style))
    except BaseException:
        store.close()
        raise


def _question(question: str | Question) -> Question:
    return question if isinstance(question, Question) else Question.of(question)
