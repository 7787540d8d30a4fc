"""Answers go on while the weights learn in another process, also when that process is killed."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from embedded_team import needs_embedded_model, settings

from mia.config import LearnSettings
from mia.learn.adapters import AdapterStore, State
from mia.learn.online import OnlineLearner, Training
from mia.learn.publishing import LocalPublisher
from mia.learn.spool import Group
from mia.learn.trainers import Beginning, ProcessTrainer
from mia.models import Models, build_models
from mia.models.local import EMBEDDED, LocalModel
from mia.models.weights import Weights
from mia.team import Team, build_team
from mia.types import Role, Task
from mia.world.facts import World
from mia.world.questions import tasks

pytestmark = needs_embedded_model

SETTINGS = LearnSettings(report="first", samples=3, batch=4, canary=0, rank=4)


@dataclass
class Service:
    """A team that answers what comes, one question after the other, and learns from it."""

    folder: Path
    settings: LearnSettings = SETTINGS

    async def open(self) -> None:
        config = settings(self.folder)
        self.tasks: Sequence[Task] = tasks(World.make(config.search.world), 400)
        self.models: Models = build_models(config.models)
        self.team: Team = build_team(config, models=self.models)
        model = self.models.planner
        assert isinstance(model, LocalModel)
        training = None
        if self.settings.into in ("both", "weights"):
            self.store = AdapterStore(self.folder / "adapters", Weights.load(str(EMBEDDED)).digest(), Role.PLANNER)
            log = self.folder / "worker.log"
            self.trainer = ProcessTrainer(Beginning(), self.settings, self.store, log=log)
            training = Training(self.store, self.trainer, LocalPublisher(model))
        self.learner = OnlineLearner(
            self.team, model, self.settings, self.folder / "learning", training=training, greedy=True
        )
        await self.learner.start()
        self.asked = 0

    async def answer(self) -> Group:
        group = await self.learner.submit(self.tasks[self.asked])
        self.asked += 1
        assert group is not None, self.learner.unanswered
        return group

    async def close(self) -> None:
        await self.learner.close()
        await self.team.close()
        await self.models.close()


@asynccontextmanager
async def opened(folder: Path, settings: LearnSettings = SETTINGS) -> AsyncIterator[Service]:
    folder.mkdir(exist_ok=True)
    service = Service(folder, settings)
    await service.open()
    try:
        yield service
    finally:
        await service.close()


async def test_answers_go_on_while_a_version_is_made_and_when_its_maker_is_killed(tmp_path: Path) -> None:
    async with opened(tmp_path) as service:
        groups: list[Group] = []
        while not service.learner.version:
            groups.append(await service.answer())
            assert service.asked < 300
        # Answers came while the first version was being made, all by the model as it came.
        assert len(groups) > SETTINGS.batch
        assert {group.version for group in groups} == {""}

        # Kill an update in the middle, by kill -9.
        while not service.learner.is_learning or service.trainer.pid is None:
            groups.append(await service.answer())
        good, killed = service.learner.version, service.trainer.pid
        os.kill(killed, signal.SIGKILL)
        group = await service.answer()
        assert group.version == good
        groups += [group, await service.answer()]
        # It is begun anew, with what waited.
        await service.learner.flush()
        assert service.learner.trouble is None
        assert service.learner.waiting == 0
        assert service.trainer.pid != killed

        versions = service.store.versions()
        assert len(versions) >= 2
        assert all(version.state is State.PROMOTED for version in versions)
        learnt = [id for version in versions for id in version.rollouts]
        assert len(learnt) == len(set(learnt))
        # No request failed, and every answer names its version.
        names = {"", *(version.name for version in versions)}
        for group in groups:
            assert group.version in names
            for episode in group.episodes:
                assert not episode.failures
                assert episode.adapters.get(Role.PLANNER, "") == group.version
                assert Role.EXECUTOR not in episode.adapters
