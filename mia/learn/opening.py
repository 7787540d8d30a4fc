"""What a stream learns with, as a configuration describes it: for all doors that learn while they answer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mia.config import Config
from mia.errors import ConfigError
from mia.learn.adapters import AdapterStore
from mia.learn.online import Training
from mia.learn.publishing import LocalPublisher
from mia.learn.trainers import Beginning, ProcessTrainer
from mia.models import Models
from mia.models.base import ChatModel
from mia.models.memo import MemoModel
from mia.types import Role


def learning_models(models: Models, config: Config) -> Models:
    """The models, with a judge that is asked the same thing once: tries of a question often end alike."""
    return replace(models, judge=MemoModel(models.judge, greedy=config.models.of(Role.JUDGE).temperature == 0))


def build_training(model: ChatModel, config: Config, folder: Path) -> Training | None:
    """What trains the Planner's weights, in a process of its own, whose log goes into a folder; None where they do
    not learn. Raises ConfigError, LearnError."""
    from mia.models.local import LocalModel

    if config.learn.into in ("memory", "nothing"):
        return None
    if not isinstance(model, LocalModel):
        raise ConfigError(
            f"the Planner's weights are to learn, and {model.name} does not run in this process.",
            wanted="a model whose weights are here",
            hint='models.planner.provider = "local", with a path; or --into memory',
        )
    settings = config.models.of(Role.PLANNER)
    beginning = Beginning(settings.path, settings.adapter, settings.device)
    store = AdapterStore(config.home / "adapters" / Role.PLANNER, model.digest, Role.PLANNER)
    trainer = ProcessTrainer(beginning, config.learn, store, log=folder / "worker.log")
    return Training(store, trainer, LocalPublisher(model))
