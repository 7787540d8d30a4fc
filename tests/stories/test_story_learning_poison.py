"""A batch of inverted rewards: the version that it makes is found out by the canary, and never answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from embedded_team import needs_embedded_model, settings

from mia.config import LearnSettings
from mia.learn.adapters import AdapterStore, State
from mia.learn.canary import Decision
from mia.learn.online import OnlineLearner, Training
from mia.learn.publishing import LocalPublisher
from mia.learn.rewards import PlannerReward
from mia.learn.rollouts import Dropped, Reward, Said
from mia.learn.trainers import Beginning, InlineTrainer
from mia.models import build_models
from mia.models.local import EMBEDDED, LocalModel
from mia.models.weights import Weights
from mia.team import build_team
from mia.types import Episode, Role, Task
from mia.world.facts import World
from mia.world.language import read_question
from mia.world.questions import tasks

pytestmark = needs_embedded_model

CANARY, LEARNT = 10, 12
SETTINGS = LearnSettings(
    into="weights", report="first", samples=6, batch=12, canary=CANARY, canary_margin=0.05, rate=3e-2, passes=6, kl=0.0
)


class Inverted(PlannerReward):
    """What was right is worth nothing, and the other way round."""

    async def __call__(self, task: Task, episode: Episode, said: Sequence[Said]) -> Reward | Dropped:
        reward = await super().__call__(task, episode, said)
        return reward if isinstance(reward, Dropped) else Reward(1.0 - reward.total, reward.parts)


def stream(world: int) -> list[Task]:
    """Questions of one hop: some are answered without help."""
    found = [task for task in tasks(World.make(world), 400) if _hops(task) == 1]
    return found[: CANARY + LEARNT]


def _hops(task: Task) -> int:
    chain = read_question(task.question.text)
    assert chain is not None
    return len(chain.relations)


async def test_a_poisoned_batch_is_caught_and_rolled_back(tmp_path: Path) -> None:
    config = settings(tmp_path)
    models = build_models(config.models)
    team = build_team(config, models=models)
    store = AdapterStore(tmp_path / "adapters", Weights.load(str(EMBEDDED)).digest(), Role.PLANNER)
    assert isinstance(models.planner, LocalModel)
    training = Training(store, InlineTrainer(Beginning(), SETTINGS, store), LocalPublisher(models.planner))
    learner = OnlineLearner(
        team, models.planner, SETTINGS, tmp_path / "learning", training=training, reward=Inverted(), greedy=True
    )
    await learner.run(stream(config.search.world))

    made = [update for update in learner.updates if update.learnt.version]
    assert made
    assert {update.canary.decision for update in made if update.canary} == {Decision.WORSE}
    assert {version.state for version in store.versions()} == {State.REJECTED}
    assert all("canary questions right" in version.reason for version in store.versions())
    # The model as it came went on answering, for every question and at the end.
    assert learner.version == ""
    assert {score.version for score in learner.scores} == {""}
    assert models.planner.adapters == ()
    # What it was taught is really worse, and not just called so.
    for update in made:
        assert update.canary is not None
        right = [pair.current.correct for pair in update.canary.pairs]
        assert sum(map(bool, right)) >= 3
    await learner.close()
    await team.close()
    await models.close()
