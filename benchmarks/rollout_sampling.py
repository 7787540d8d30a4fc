"""Sampling for rollouts, first plans a second: 16 questions, 8 samples of each, one by one and all at once.

    python benchmarks/rollout_sampling.py [--rounds 5] [--json]

Through the learner (`mia.learn.learner`), which reads a prompt once for all samples of a question; a fresh adapter is
in its place. Both sides of a ratio are measured in the same round; the figures are medians. It is checked that the
plans are the same, text by text: a seed decides a sample, not its company.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import statistics
import time
from dataclasses import dataclass, replace

from mia.agents.planner import Planner
from mia.config import LearnSettings
from mia.learn.learner import Learner
from mia.learn.warmup.dialogues import STYLE
from mia.models.base import ChatReply, ChatRequest, Price
from mia.models.ledger import Ledger
from mia.types import Recall, Task
from mia.world import preset
from mia.world.facts import World
from mia.world.questions import tasks

WORLD = 500_900
QUESTIONS = 16
SAMPLES = 8
MEMORIES = "Memories of earlier searches:\n" + "[+] mayor birthplace | birthplace in archive, mayor in census\n" * 4
"""About as long as what a Planner is shown."""


@dataclass
class Sampled:
    """The learner as a model that samples with a seed."""

    learner: Learner
    seed: int
    name: str = "learner"
    context_window: int = preset.MODEL["context_window"]
    max_tokens: int = preset.MODEL["max_tokens"]
    price: Price | None = None

    async def complete(self, request: ChatRequest) -> ChatReply:
        reply: ChatReply = await self.learner.sample(
            replace(request, temperature=1.0, seed=self.seed, max_tokens=self.max_tokens)
        )
        return reply

    async def close(self) -> None:
        """The learner is its owner's."""


async def plan(learner: Learner, task: Task, sample: int) -> str:
    planner = Planner(Sampled(learner, sample), style=STYLE)
    planned = await planner.plan(task.question, Recall(for_planner=MEMORIES), "", Ledger(task.question.id))
    return planned.plan.text


async def measure(rounds: int) -> list[tuple[float, float]]:
    learner = Learner.open("", LearnSettings(), batch=QUESTIONS * SAMPLES)
    asked = [(task, sample) for task in tasks(World.make(WORLD), QUESTIONS) for sample in range(SAMPLES)]
    rates = []
    try:
        await asyncio.gather(*(plan(learner, *one) for one in asked))
        for _ in range(rounds):
            begun = time.perf_counter()
            alone = [await plan(learner, *one) for one in asked]
            between = time.perf_counter()
            company = await asyncio.gather(*(plan(learner, *one) for one in asked))
            rates.append((len(asked) / (between - begun), len(asked) / (time.perf_counter() - between)))
            assert alone == company
    finally:
        await learner.close()
    return rates


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
    print(f"one by one {slow:.1f} plans a second, {QUESTIONS} × {SAMPLES} at once {fast:.1f}: {ratio:.2f} times")


if __name__ == "__main__":
    main()
