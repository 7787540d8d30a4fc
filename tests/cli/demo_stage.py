"""What the tests of the demonstration share: streams of a world that a symbolic model lives through."""

from __future__ import annotations

import random
from pathlib import Path

from mia.cli.demo.streams import Stream
from mia.evals.ladder import choose
from mia.models import Models
from mia.world.facts import World
from mia.world.preset import model_settings
from mia.world.questions import tasks
from mia.world.teacher import Teacher

WORLD = World.make(900_001)


def teachers(seed: int = 0) -> Models:
    """One teacher in every role."""
    teacher = Teacher(random.Random(seed))
    return Models(planner=teacher, executor=teacher, manager=teacher, judge=teacher)


def stream(home: Path, rung: str = "plan-memory-replan", questions: int = 6) -> Stream:
    """A stream of the world of the demonstration."""
    (chosen,) = choose([rung])
    return Stream(WORLD, tasks(WORLD, questions), chosen.config(model_settings(), home), teachers())
