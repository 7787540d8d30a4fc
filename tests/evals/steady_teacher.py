"""The world's teacher as a function of the request alone: what a model is at temperature 0, without one."""

from __future__ import annotations

import os
import random
from collections.abc import Callable

from mia.config import ModelsSettings
from mia.models import Models
from mia.models.base import ChatReply, ChatRequest, Price, estimate_usage
from mia.world.facts import World
from mia.world.teacher import Teacher


class SteadyTeacher:
    """Draws its guesses from the request, so that order, concurrency and process change nothing."""

    name = "steady teacher"
    context_window = 100_000
    max_tokens = 1_000
    price: Price | None = None

    def __init__(
        self, *, oracle: World | None = None, watch: Callable[[ChatRequest], None] = lambda request: None
    ) -> None:
        """`watch`: called with each request before it is answered, and may raise."""
        self._oracle = oracle
        self._watch = watch

    async def complete(self, request: ChatRequest) -> ChatReply:
        self._watch(request)
        said = "\n".join(message.content for message in request.messages)
        text = Teacher(random.Random(f"{request.role} {said}"), oracle=self._oracle).reply(request)
        return ChatReply(text, usage=estimate_usage(request, text, None), model=self.name)

    async def close(self) -> None:
        """Nothing to let go of."""

    def for_all(self, settings: ModelsSettings) -> Models:
        """This teacher in every role."""
        return Models(planner=self, executor=self, manager=self, judge=self)


def steady_models(settings: ModelsSettings) -> Models:
    """Picklable by its name, as spawned processes need it."""
    return SteadyTeacher().for_all(settings)


def dying_models(settings: ModelsSettings) -> Models:
    """The process ends as if it was killed."""
    os._exit(9)
