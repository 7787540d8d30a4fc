"""Who answers: the one place that chooses implementations.

`build_team` turns a configuration into a team; every part can be handed in instead, which is how tests, rollouts and
comparisons change one thing and leave the rest. What stands above the line (a learner) is built by the door and handed
in.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from mia.agents.captioner import Captioner
from mia.agents.executor import Executor
from mia.agents.planner import Planner
from mia.config import Config, LimitSettings, LineSettings
from mia.errors import ConfigError, StoreError
from mia.judges import build_judge
from mia.judges.base import Judge
from mia.memory.base import MemoryStrategy
from mia.models import Models, build_models
from mia.models.ledger import Budget
from mia.tools.base import Tool
from mia.types import Episode, Role

if TYPE_CHECKING:
    from mia.models.replay import ReplayModel
    from mia.search.base import SearchEngine
    from mia.store.base import MemoryStore


class Learner(Protocol):
    """What the line needs of a learner: a durable place to put an episode. Learning itself is another process."""

    async def enqueue(self, episode: Episode) -> None: ...


class Archive(Protocol):
    """Keeps episodes where no memory does."""

    def save_episode(self, episode: Episode) -> None:
        """Idempotent by id. Raises StoreError."""
        ...


@dataclass(frozen=True)
class StoreArchive:
    """Keeps episodes of one scope."""

    store: MemoryStore
    scope: str

    def save_episode(self, episode: Episode) -> None:
        self.store.save_episode(episode, scope=self.scope)


@dataclass(frozen=True)
class Team:
    """Who answers. Every part may be missing but the Executor, and every part may be another."""

    executor: Executor
    planner: Planner | None = None
    memory: MemoryStrategy | None = None
    judge: Judge | None = None
    captioner: Captioner | None = None
    learner: Learner | None = None
    archive: Archive | None = None
    """Where episodes go when the memory is off or frozen."""
    line: LineSettings = field(default_factory=LineSettings)
    withhold: bool = False
    """Hold back a reported answer that the judge finds weakly supported."""
    replays: tuple[ReplayModel, ...] = ()
    """The recordings that its models answer from."""
    config: str = ""
    """Digest of the configuration that built it."""
    resources: AsyncExitStack = field(default_factory=AsyncExitStack)
    """What `close` lets go of."""

    @property
    def prompts(self) -> dict[str, str]:
        """Prompt name → version, over all parts."""
        parts = (self.executor, self.planner, self.memory, self.judge, self.captioner)
        return {name: version for part in parts if part is not None for name, version in part.prompts.items()}

    def check_replays(self, question_ids: Collection[str] = ()) -> None:
        """Raises ReplayMismatch if a recording had no entry for a call, or nobody asked for an entry of these
        questions."""
        for replay in self.replays:
            replay.assert_exhausted(question_ids)

    async def close(self) -> None:
        """Let go of connections, files and indexes."""
        await self.resources.aclose()


def build_team(
    config: Config,
    *,
    models: Models | None = None,
    tools: Sequence[Tool] | None = None,
    engine: SearchEngine | None = None,
    memory: MemoryStrategy | None = None,
    judge: Judge | None = None,
    learner: Learner | None = None,
) -> Team:
    """The team that a configuration describes; what is handed in is used as it is. Models, tools and memory that are
    handed in are not closed with the team; an engine is, with the tool that it serves.

    Raises ConfigError, CorpusError, StoreError, MissingExtra: before any question is asked.
    """
    resources = AsyncExitStack()
    if models is None:
        if tools is None and engine is None:
            refuse_babble(config)
        models = build_models(config.models)
        resources.push_async_callback(models.close)
    if tools is None:
        tools = _build_tools(config, engine, models, resources)
    archive = None
    if memory is None:
        store = _open_store(config, resources)
        if config.memory.enabled:
            try:
                memory = _build_memory(config, store, models)
            except BaseException:
                store.close()
                raise
            resources.push_async_callback(memory.close)
        if not config.memory.enabled or config.memory.frozen:
            archive = StoreArchive(store, config.memory.scope)
    planner = Planner(
        models.planner,
        cold_start=models.cold_start,
        best_of=config.line.best_of,
        style=config.models.of(Role.PLANNER).prompts,
        cold_start_style=config.models.of("cold_start").prompts,
    )
    executor_model = config.models.of(Role.EXECUTOR)
    return Team(
        executor=Executor(
            models.executor,
            tools,
            config.executor,
            native=executor_model.protocol == "native",
            style=executor_model.prompts,
        ),
        planner=planner if config.line.plan else None,
        memory=memory,
        judge=judge or build_judge(config.judge, models.judge, style=config.models.of(Role.JUDGE).prompts),
        captioner=Captioner(models.manager, config.home / "captions"),
        learner=learner,
        archive=archive,
        replays=models.replays,
        line=config.line,
        withhold=config.judge.withhold,
        config=config.digest,
        resources=resources,
    )


def budget(limits: LimitSettings) -> Budget:
    """Limits of the configuration as the ledger takes them."""
    return Budget(calls=limits.calls, tokens=limits.tokens, money=limits.money, seconds=limits.seconds)


def _build_tools(
    config: Config, engine: SearchEngine | None, models: Models, resources: AsyncExitStack
) -> Sequence[Tool]:
    from mia.tools import build_tools

    if engine is None and "search" in config.executor.tools:
        engine = _build_engine(config)
    # The search tool closes its engine.
    tools = build_tools(config, engine, _build_reading_tools(config, models))
    for tool in tools:
        resources.push_async_callback(tool.close)
    return tools


def _build_reading_tools(config: Config, models: Models) -> Mapping[str, Tool]:
    if not {"read", "fetch"} & {*config.executor.tools}:
        return {}
    from mia.reader.tool import build_reading_tools

    return build_reading_tools(config, models.of(Role.READER))


def _build_engine(config: Config) -> SearchEngine:
    if config.search.engine == "corpus":
        from mia.search.corpus import open_configured

        return open_configured(config)
    if config.search.engine == "world":
        from mia.world.engine import WorldEngine
        from mia.world.facts import World

        return WorldEngine(World.make(config.search.world))
    from mia.search.web import build_remote_engine

    return build_remote_engine(config.search)


def refuse_babble(config: Config) -> None:
    """The embedded model speaks the small language of the offline world; over any other text it makes things up."""
    executor = config.models.of(Role.EXECUTOR)
    if config.search.engine != "world" and executor.provider == "local" and not executor.path:
        raise ConfigError(
            "the Executor's model is the embedded one, which knows the offline world alone, and something else is to "
            "be searched.",
            wanted="a model that reads your documents",
            hint="set models.default.path to a folder of transformers; or provider to openai, with model and base_url; "
            'or search.engine = "world"',
        )


def _open_store(config: Config, resources: AsyncExitStack) -> MemoryStore:
    from mia.store import open_store

    store = open_store(config.store_path, redact=config.memory.redact)
    resources.callback(store.close)
    return store


def _build_memory(config: Config, store: MemoryStore, models: Models) -> MemoryStrategy:
    from mia.embeddings import memory_embedder
    from mia.memory.manager import MemoryManager

    space = store.space()
    maker = space.partition("/")[0]
    if maker and config.memory.embedder not in ("auto", maker):
        # Found now and not when an answer that was paid for cannot be remembered.
        raise StoreError(
            f"the memory '{store.location}' was made with the embedder '{maker}', and memory.embedder is "
            f"'{config.memory.embedder}'.",
            hint=f'memory.embedder = "{maker}" (or "auto"); or `mia memory reembed` to change the embedder',
        )
    style = config.models.of(Role.MANAGER).prompts
    return MemoryManager(store, memory_embedder(config, space), config.memory, models.manager, style=style)
