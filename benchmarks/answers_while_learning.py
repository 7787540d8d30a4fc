"""How long an answer takes while the weights learn in another process, against the same stream without them.

    python benchmarks/answers_while_learning.py [--questions 120] [--rounds 3] [--json]

A stream of the offline world is answered question after question by the released Planner, as `mia run --learn` does it
(the world's settings, a worker of its own for the updates), once with the tries going into the memory alone and once
into memory and weights; it says how many versions answered, and fails where the weights learnt nothing.
Wanted: the 95th percentile of the answers' time at most doubles, every answer comes, and each names the version that
gave it. Both are measured in the same round; the figures are medians over the rounds. It needs two cores that nobody
else uses.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ.setdefault("OMP_NUM_THREADS", "1")

from mia.config import Config, LearnSettings, ModelsSettings
from mia.learn.online import OnlineLearner
from mia.learn.opening import build_training, learning_models
from mia.models import build_models
from mia.models.local import LocalModel
from mia.team import build_team
from mia.types import Role
from mia.world import preset
from mia.world.facts import World
from mia.world.questions import tasks

WORLD = 500_901
BEFORE = 8
"""Questions that are asked before the clock runs."""


async def stream(config: Config, questions: int) -> dict[str, float]:
    """The p50 and p95 of a question's seconds, the versions that answered, and the answers that did not come."""
    folder = config.home / "learning"
    folder.mkdir(parents=True)
    seconds, versions, missing = [], set(), 0
    models = build_models(config.models)
    try:
        team = build_team(config, models=learning_models(models, config))
        training = build_training(models.planner, config, folder)
        assert isinstance(models.planner, LocalModel)
        learner = OnlineLearner(team, models.planner, config.learn, folder, training=training)
        await learner.start()
        try:
            every = tasks(World.make(WORLD), BEFORE + questions)
            for task in every[:BEFORE]:
                await learner.submit(task)
            # The worker loads its libraries at its first update.
            await learner.flush()
            beginning = models.planner.adapter
            for task in every[BEFORE:]:
                begun = time.perf_counter()
                group = await learner.submit(task)
                seconds.append(time.perf_counter() - begun)
                if group is None:
                    missing += 1
                    continue
                versions.add(group.version)
                named = {one.adapters.get(Role.PLANNER, "") for one in group.episodes}
                missing += named != {group.version or beginning}
            updates = sum(update.kept for update in learner.updates)
        finally:
            await learner.close()
            await team.close()
    finally:
        await models.close()
    cuts = statistics.quantiles(seconds, n=20)
    return {"p50": cuts[9], "p95": cuts[18], "versions": len(versions), "updates": updates, "missing": missing}


async def measure(questions: int, rounds: int) -> list[dict[str, dict[str, float]]]:
    found = []
    for _ in range(rounds):
        measured = {}
        for into in ("memory", "both"):
            with TemporaryDirectory(prefix="mia-answers-") as home:
                settings = LearnSettings.model_validate(preset.LEARN | {"into": into})
                models = ModelsSettings(
                    default=preset.model_settings(), planner=preset.model_settings(adapter=str(preset.PLANNER))
                )
                config = preset.page(Path(home), models=models)
                search = config.search.model_copy(update={"world": WORLD})
                config = config.model_copy(update={"learn": settings, "search": search})
                measured[into] = await stream(config, questions)
        if measured["both"]["versions"] < 2:
            sys.exit("No version was made while these questions were answered: more --questions.")
        found.append(measured)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=120)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    wanted = parser.parse_args()
    found = asyncio.run(measure(wanted.questions, wanted.rounds))

    def median(into: str, name: str) -> float:
        return statistics.median(one[into][name] for one in found)

    page = {
        "machine": platform.machine(),
        "p50 without, s": median("memory", "p50"),
        "p50 while learning, s": median("both", "p50"),
        "p95 without, s": median("memory", "p95"),
        "p95 while learning, s": median("both", "p95"),
        "p95, times": statistics.median(one["both"]["p95"] / one["memory"]["p95"] for one in found),
        "versions that answered, of those that were made": median("both", "versions"),
        "versions made": median("both", "updates"),
        "answers that did not come, or name another version": sum(one["both"]["missing"] for one in found),
    }
    if wanted.json:
        print(json.dumps(page))
        return
    for name, value in page.items():
        print(f"{name:<52}{value if isinstance(value, str) else format(value, '.3g')}")


if __name__ == "__main__":
    main()
