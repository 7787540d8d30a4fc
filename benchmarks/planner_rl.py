"""What the Planner learns by reinforcement, on test worlds that nothing has seen: answers, and what they are made of.

    python benchmarks/planner_rl.py --out runs/planner-rl runs/planner-1 runs/planner-2 runs/planner-3 [--shifted]
    python benchmarks/planner_rl.py --out runs/planner-rl --train 3 [--learn "--steps 150 --weights full …"] [--shifted]

A Planner is the folder of a training (`mia learn planner`), of an adapter or of a whole model; `--train` makes the
trainings first, one for each sampling seed from 1 on, in the folder itself.

1. answers: streams of plan + memory + replan (`mia.evals.ladder`), the same questions before and after.
2. what was learnt, taken apart (`mia.learn.learnt`): the same cases before and after, greedy. The favourites of 6
   relations were known to the teacher of the warm-up, those of the 14 others to nobody.

Differences are taken in pairs, world by world, after the mean over all Planners in each world; intervals are 95 % t
intervals over worlds. They tell how far other worlds would differ; how far other trainings would, the single Planners
show. Nothing is chosen by these figures: trainings choose by validation worlds. The same command goes on with what is
there, and `--shifted` adds tables of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from trainings import note, percent, train

from mia.config import ModelSettings, ModelsSettings
from mia.errors import ConfigError, MiaError
from mia.evals.ladder import LadderSettings, Progress, choose, digest, run_ladder
from mia.evals.ladder_results import Result
from mia.learn.learnt import MEASURES, Case, Findings, examine, make_cases
from mia.learn.stages import read_result
from mia.models import Models, build_models
from mia.models.local import EMBEDDED
from mia.statistics import Interval, clustered, paired
from mia.types import Role
from mia.world import preset
from mia.world.facts import World
from mia.world.seeds import TEST, check_unseen

LEARN = "--steps 120 --questions-per-step 32 --questions-per-world 12 --hops 2 --rate 1e-3 --exam-every 40"
"""What made the Planner that comes with the package."""
BATCH = 128
"""Conversations that the model answers side by side."""
LEAST = 6
"""Worlds that a difference is told of."""
BEFORE = "plan-memory-replan"
AFTER = "planner-rl"
"""Rungs of the ladder."""
CHANCE = {
    "favourite, one that the teacher knew": 1 / 6,
    "favourite, one of the others": 1 / 6,
    "replan at the favourite, teacher knew": 1 / 5,
    "replan at the favourite, others": 1 / 5,
}
"""What an even choice among the sources (that were not tried) would come to."""

ByWorld = Mapping[int, Sequence[float]]
"""World → what was measured there."""


@dataclass(frozen=True)
class Version:
    """A Planner that has learnt."""

    name: str
    folder: Path
    digest: str

    @classmethod
    def of(cls, path: Path, name: str) -> Version:
        """`path`: of a training, or of its weights. Raises ConfigError, LearnError."""
        result = read_result(path)
        folder = path if result is None else result.weights
        if not any((folder / mark).is_file() for mark in ("adapter_config.json", "config.json")):
            raise ConfigError(
                f"'{folder}' holds neither an adapter nor a model.",
                wanted="what `mia learn planner` left behind",
                hint="where a training was stopped, go on with it first",
            )
        return cls(name, folder, digest(folder))


def with_planner(settings: ModelsSettings) -> Models:
    """The models, with a Planner whose adapter may be a whole model."""
    folder = Path(settings.of(Role.PLANNER).adapter)
    if (folder / "config.json").is_file() and not (folder / "adapter_config.json").is_file():
        whole = settings.of(Role.PLANNER).model_copy(update={"path": str(folder), "adapter": ""})
        settings = settings.model_copy(update={"planner": whole})
    return build_models(settings)


# ── 1: answers ────────────────────────────────────────────────────────────────────────────────────────────────────


def answers(wanted: argparse.Namespace, model: ModelSettings, version: Version | None, folder: Path) -> list[Result]:
    """The streams of all worlds, before (None) or after. What the folder holds is not asked again."""
    settings = LadderSettings(
        worlds=wanted.worlds,
        first_seed=wanted.first_seed,
        questions=wanted.questions,
        shifted=wanted.shifted,
        rungs=choose([BEFORE if version is None else AFTER]),
        model=model,
        weights=digest(wanted.model or EMBEDDED),
        planner="" if version is None else str(version.folder),
        planner_weights="" if version is None else version.digest,
    )
    say = Saying(f"answers {'before' if version is None else version.name}")

    def tell(progress: Progress) -> None:
        say(progress.questions, progress.of_questions)

    make = build_models if version is None else with_planner
    return list(run_ladder(settings, folder=folder, processes=wanted.processes, make_models=make, on_progress=tell))


def accuracy(results: Sequence[Result]) -> dict[int, list[float]]:
    return {result.seed: [float(one.correct) for one in result.questions] for result in results}


def spent(results: Sequence[Result]) -> tuple[float, float]:
    """Replans and searches of a question."""
    questions = [one for result in results for one in result.questions]
    return fmean(one.replans for one in questions), fmean(one.searches for one in questions)


# ── 2: what was learnt ────────────────────────────────────────────────────────────────────────────────────────────


async def abilities(
    wanted: argparse.Namespace, model: ModelSettings, versions: Mapping[str, Version | None], folder: Path
) -> dict[str, Findings]:
    """Of each version by its name. Those whose file is there are not examined again."""
    made_under = {
        "model": digest(wanted.model or EMBEDDED),
        "worlds": [wanted.first_seed, wanted.worlds],
        "shifted": wanted.shifted,
        "seed": wanted.seed,
    }
    found: dict[str, Findings] = {}
    cases: list[Case] = []
    for name, version in versions.items():
        told = made_under | {"planner": version.digest if version else ""}
        path = folder / f"{told['planner'] or 'before'}.json"
        kept = read_findings(path, told)
        if kept is None:
            adapter = "" if version is None else str(version.folder)
            planner = model.model_copy(update={"adapter": adapter})
            models = with_planner(ModelsSettings(default=model, planner=planner))
            try:
                # Made by the Executor as it is, whoever plans: the same for all.
                cases = cases or await make_cases(
                    [
                        World.make(seed, shifted=wanted.shifted)
                        for seed in range(wanted.first_seed, wanted.first_seed + wanted.worlds)
                    ],
                    models.executor,
                    seed=wanted.seed,
                    on_world=Saying("cases of worlds"),
                )
                kept = await examine(models.planner, cases, on_case=Saying(f"cases {name}"))
            finally:
                await models.close()
            write_json(path, {"made_under": told, "findings": kept})
        found[name] = kept
    return found


def read_findings(path: Path, made_under: Mapping[str, Any]) -> Findings | None:
    """None where there are none, or of other cases."""
    if not path.is_file():
        return None
    page = json.loads(path.read_text(encoding="utf-8"))
    if page["made_under"] != made_under or list(page["findings"]) != list(MEASURES):
        return None
    return {name: {int(seed): marks for seed, marks in worlds.items()} for name, worlds in page["findings"].items()}


# ── tables ────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Compared:
    """One thing that was measured, before and after."""

    before: Interval | None
    after: Interval | None
    """The mean over Planners."""
    gain: Interval | None
    """In pairs, over worlds that all have cases of; None where these are too few."""
    each: tuple[float | None, ...]
    """After, of each Planner."""
    cases: int

    @classmethod
    def of(cls, before: ByWorld, after: Sequence[ByWorld]) -> Compared:
        means = [fmean(values) for values in before.values()]
        learnt = [{world: fmean(values) for world, values in one.items()} for one in after]
        every = [world for world in before if all(world in one for one in learnt)]
        anywhere = [world for world in learnt[0] if all(world in one for one in learnt)]
        return cls(
            before=clustered([[mean] for mean in means]),
            after=clustered([[fmean(one[world] for one in learnt)] for world in anywhere]),
            gain=paired(
                [fmean(before[world]) for world in every], [fmean(one[world] for one in learnt) for world in every]
            )
            if len(every) >= LEAST
            else None,
            each=tuple(fmean(one.values()) if one else None for one in learnt),
            cases=sum(map(len, before.values())),
        )

    def as_dict(self) -> dict[str, Any]:
        return {"before": self.before, "after": self.after, "gain": self.gain, "each": self.each, "cases": self.cases}


def answer_table(compared: Compared, before: Sequence[Result], after: Mapping[str, Sequence[Result]]) -> Iterator[str]:
    yield "| Planner | right answers | over before, paired | replans | searches |"
    yield "|---|---|---|---|---|"
    replans, searches = spent(before)
    yield f"| before | {percent(compared.before)} | | {replans:.2f} | {searches:.2f} |"
    if len(after) > 1:
        replans, searches = (fmean(values) for values in zip(*map(spent, after.values()), strict=True))
        yield (
            f"| after, mean of {len(after)} | {percent(compared.after)} | {percent(compared.gain, sign=True)} | "
            f"{replans:.2f} | {searches:.2f} |"
        )
    for name, results in after.items():
        one = Compared.of(accuracy(before), [accuracy(results)])
        replans, searches = spent(results)
        yield (f"| {name} | {percent(one.after)} | {percent(one.gain, sign=True)} | {replans:.2f} | {searches:.2f} |")


def ability_table(compared: Mapping[str, Compared]) -> Iterator[str]:
    yield "| | cases | by chance | before | after | difference, paired | each Planner |"
    yield "|---|---|---|---|---|---|---|"
    for name, one in compared.items():
        # A difference is itself one of pairs; its own sign matters.
        sign = "use of" in name
        chance = f"{100 * CHANCE[name]:.0f}" if name in CHANCE else ""
        each = ", ".join("–" if value is None else f"{100 * value:.1f}" for value in one.each)
        title = name.replace("  ", "&nbsp;&nbsp;")
        yield (
            f"| {title} | {one.cases} | {chance} | {percent(one.before, sign=sign)} | {percent(one.after, sign=sign)} "
            f"| {percent(one.gain, sign=True)} | {each} |"
        )
    yield ""
    yield from (f"- *{name.strip()}*: {meaning}." for name, meaning in MEASURES.items())


# ── all of it ─────────────────────────────────────────────────────────────────────────────────────────────────────


class Saying:
    """Tells now and then how many of how many are done."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._begun = time.monotonic()
        self._said = 0.0

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._said > 10 or done == total:
            self._said = now
            note(f"{self._what}: {done:,} of {total:,}, {now - self._begun:.0f} s")


def write_json(path: Path, page: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".tmp")
    fresh.write_text(json.dumps(page, indent=1) + "\n", encoding="utf-8")
    fresh.replace(path)


def main() -> None:
    wanted = arguments()
    try:
        measure(wanted)
    except MiaError as error:
        sys.exit(str(error))


def measure(wanted: argparse.Namespace) -> None:
    check_unseen(wanted.first_seed, wanted.worlds)
    begun = time.monotonic()
    model_flags = () if wanted.model is None else ("--model", str(wanted.model))
    trained = train("planner", wanted.train, wanted.learn, wanted.out, *model_flags)
    paths = list(dict.fromkeys([*trained, *wanted.planners]))
    short = len({path.name for path in paths}) == len(paths)
    versions = [Version.of(path, path.name if short else str(path)) for path in paths]
    kind = "shifted" if wanted.shifted else "normal"
    model = preset.model_settings(path=str(wanted.model or ""), batch=BATCH)

    streams = wanted.out / f"answers-{kind}"
    before = answers(wanted, model, None, streams / "before")
    after = {one.name: answers(wanted, model, one, streams / one.digest) for one in versions}
    right = Compared.of(accuracy(before), [accuracy(results) for results in after.values()])

    named: dict[str, Version | None] = {"before": None, **{one.name: one for one in versions}}
    findings = asyncio.run(abilities(wanted, model, named, wanted.out / f"abilities-{kind}"))
    learnt = {
        name: Compared.of(findings["before"][name], [findings[one.name][name] for one in versions]) for name in MEASURES
    }

    head = (
        f"{wanted.worlds} {kind} worlds from seed {wanted.first_seed}, {wanted.questions} questions in each; "
        f"{len(versions)} Planner(s); mean ± half of the 95 % t interval over worlds, in percent; "
        f"{platform.machine()}, {time.monotonic() - begun:.0f} s in this call."
    )
    tables = ["### Answers", "", *answer_table(right, before, after), ""]
    tables += ["### What was learnt", "", *ability_table(learnt)]
    page = "\n".join([head, "", *tables])
    (wanted.out / f"{kind}.md").write_text(page + "\n", encoding="utf-8")
    write_json(
        wanted.out / f"{kind}.json",
        {
            "worlds": wanted.worlds,
            "first_seed": wanted.first_seed,
            "questions": wanted.questions,
            "shifted": wanted.shifted,
            "seed": wanted.seed,
            "planners": [{"name": one.name, "weights": one.digest} for one in versions],
            "answers": right.as_dict(),
            "learnt": {name.strip(): one.as_dict() for name, one in learnt.items()},
            "answers_by_world": {
                "before": accuracy(before),
                **{name: accuracy(results) for name, results in after.items()},
            },
            "learnt_by_world": findings,
        },
    )
    print(page)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("planners", type=Path, nargs="*", help="folders of trainings, adapters or whole models")
    parser.add_argument("--out", type=Path, required=True, help="a folder; the same command goes on with it")
    parser.add_argument("--train", type=int, default=0, metavar="SEEDS", help="train so many Planners first")
    parser.add_argument("--learn", default=LEARN, metavar="OPTIONS", help="of `mia learn planner`, in one string")
    parser.add_argument("--model", type=Path, help="the model of all roles; default: the embedded one")
    parser.add_argument("--worlds", type=int, default=24)
    parser.add_argument("--first-seed", type=int, default=TEST.start)
    parser.add_argument("--questions", type=int, default=60, help="in each world's stream")
    parser.add_argument("--seed", type=int, default=0, help="of the cases")
    parser.add_argument("--shifted", action="store_true", help="worlds without favourites instead")
    parser.add_argument("--processes", type=int, default=2)
    wanted = parser.parse_args()
    if not wanted.planners and not wanted.train:
        parser.error("name a Planner's folder, or --train 3")
    wanted.out.mkdir(parents=True, exist_ok=True)
    return wanted


if __name__ == "__main__":
    main()
