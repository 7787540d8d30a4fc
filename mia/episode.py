"""The life of one question, in one straight line.

    answer:  recall → plan → execute → (reflect → replan → execute)* → judge
    absorb:  credit → remember (compress, store) → learn
    live   = answer, then absorb

`answer` changes nothing outside the episode that it returns, so evaluations, frozen memories and rollouts call it as
often as they like. A failure of the world (model, tool, disk) becomes data in the episode; a bug still raises. Only the
judge is handed the reference answers; everything else sees the question alone. Cancelling the task cancels the line.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from mia.config import Config, load_config
from mia.errors import MiaError
from mia.events import OnEvent, ignore
from mia.models.ledger import Ledger
from mia.stages import Draft, failure
from mia.team import Team, budget, build_team
from mia.types import Episode, Memory, Question, Task, new_id


async def live(task: Task, team: Team, ledger: Ledger, *, id: str = "", run: str = "") -> Episode:
    """Answer, then absorb. What fails in absorbing is added to the episode's failures."""
    episode = await answer(task, team, ledger, id=id, run=run)
    try:
        await absorb(episode, team, ledger)
    except MiaError as error:
        return episode.evolve(failures=(*episode.failures, failure("remember", error)))
    return episode


async def answer(task: Task, team: Team, ledger: Ledger, *, id: str = "", run: str = "") -> Episode:
    """The whole of one question up to its verdict; nothing outside the returned episode changes."""
    draft = Draft(task, team, ledger)
    question = await draft.caption()
    recall = await draft.recall(question)
    planned = await draft.plan(question, recall)
    execution = await draft.execute(question, planned, recall)
    for _ in range(team.line.max_reflections):
        planned = await draft.replan(planned, execution, recall)
        if planned is None:
            break
        execution = await draft.resume(execution, planned)
    await draft.judge()
    return draft.episode(id or new_id("ep"), run)


async def absorb(episode: Episode, team: Team, ledger: Ledger) -> tuple[Memory, ...]:
    """Credit the memories that were shown, remember the episode, hand it to the learner.

    Idempotent by the episode's id. Returns what the memory now holds because of it. Raises StoreError, LearnError.
    """
    memories: tuple[Memory, ...] = ()
    if team.memory is not None:
        if episode.recall is not None and episode.verdict is not None:
            shown = frozenset(recalled.memory_id for recalled in episode.recall.shown)
            await team.memory.credit(episode.id, shown, episode.verdict)
        memories = await team.memory.remember([episode], ledger)
    if team.archive is not None:
        await asyncio.to_thread(team.archive.save_episode, episode)
    if team.learner is not None:
        await team.learner.enqueue(episode)
    return memories


def ask(
    question: str, config: Config | None = None, *, references: Sequence[str] = (), on_event: OnEvent = ignore
) -> Episode:
    """One question, answered and absorbed, from code that is not async: build the team, live, close.

    `config`: the resolved page of `mia.load_config`; None: as this machine has it. Inside a running event loop use
    `build_team` and `live`. Raises ConfigError, CorpusError, StoreError, MissingExtra for what cannot be built.
    """
    config = config or load_config()
    task = Task(question=Question.of(question), references=tuple(references))

    async def whole() -> Episode:
        team = build_team(config)
        try:
            ledger = Ledger(task.question.id, budget=budget(config.budget.question), on_event=on_event)
            return await live(task, team, ledger)
        finally:
            await team.close()

    return asyncio.run(whole())
