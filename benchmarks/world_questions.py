"""Whole questions of the offline world a second: one by one, and 32 at once through the same model and line.

    python benchmarks/world_questions.py [--rounds 5] [--json]

Plan, searches, reflection, replan and reference judge, without memory (with it, the questions of a stream wait for each
other). Both sides of a ratio are measured in the same round; the figures are medians. It is checked that the episodes
are the same, text by text.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import statistics
import time

from mia.config import Config, JudgeSettings, LineSettings, MemorySettings, ModelsSettings, SearchSettings
from mia.episode import answer
from mia.models.ledger import Ledger
from mia.team import Team, build_team
from mia.types import Episode, Task
from mia.world import preset
from mia.world.facts import World
from mia.world.questions import tasks

WORLD = 500_900
AT_ONCE = 32
QUESTIONS = 3 * AT_ONCE


def config() -> Config:
    return Config(
        models=ModelsSettings(default=preset.model_settings()),
        search=SearchSettings(engine="world", world=WORLD, k=preset.PASSAGES),
        memory=MemorySettings(enabled=False),
        line=LineSettings(),
        judge=JudgeSettings(kind="reference"),
    )


async def side_by_side(asked: list[Task], team: Team, at_once: int) -> tuple[list[Episode], float]:
    """The episodes, and questions a second."""
    limit = asyncio.Semaphore(at_once)

    async def one(task: Task) -> Episode:
        async with limit:
            return await answer(task, team, Ledger(task.question.id))

    begun = time.perf_counter()
    episodes = await asyncio.gather(*(one(task) for task in asked))
    return episodes, len(asked) / (time.perf_counter() - begun)


async def measure(rounds: int) -> list[tuple[float, float]]:
    asked = tasks(World.make(WORLD), QUESTIONS)
    team = build_team(config())
    try:
        await side_by_side(asked[:AT_ONCE], team, AT_ONCE)
        rates = []
        for _ in range(rounds):
            alone, slow = await side_by_side(asked[:AT_ONCE], team, 1)
            company, fast = await side_by_side(asked, team, AT_ONCE)
            for one, other in zip(alone, company, strict=False):
                assert [step.text for step in one.steps] == [step.text for step in other.steps], one.question.text
            rates.append((slow, fast))
        return rates
    finally:
        await team.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    rates = asyncio.run(measure(given.rounds))
    slow, fast = (statistics.median(side) for side in zip(*rates, strict=True))
    ratio = statistics.median(many / one for one, many in rates)
    if given.json:
        print(json.dumps({"one_by_one": slow, "at_once": fast, "ratio": ratio, "rounds": rates}))
        return
    print(f"{platform.machine()}, Python {platform.python_version()}; medians of {given.rounds} rounds")
    print(f"one by one {slow:.1f} questions a second, {AT_ONCE} at once {fast:.1f}: {ratio:.2f} times")


if __name__ == "__main__":
    main()
