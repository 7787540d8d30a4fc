"""Test-time learning on worlds that nothing has seen: what the weights, the memory and both learn from equal tries.

    python benchmarks/test_time_learning.py --out runs/ttl [--shifted] [--unsupervised] [--epochs 3]
                                            [--against runs/other]

Four arms answer the same streams of questions with the same number of tries, the same sampling seeds and the same
verdicts, and differ in what the tries go into (`mia.learn.laboratory`). A question's score is fixed before anything is
learnt from it. Reported: accuracy in the first and in the second half of a stream; differences between arms are taken
in pairs, world by world; intervals are 95 % t intervals over worlds. With several sampling seeds the mean over seeds is
taken in each world first. With `--epochs` the same questions come several times, and each pass has a column of its own
in place of the halves. `--against` takes the arms in pairs with the same arms of another folder, e.g. peer review with
the reference as judge.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean

from trainings import note, percent

from mia.config import LearnSettings
from mia.learn.laboratory import ARMS, Outcome, Trial, read_outcomes, run_trials
from mia.statistics import clustered, paired
from mia.world import preset
from mia.world.seeds import TEST, check_unseen

HALVES = ("first half", "second half")
STEPS = (("memory", "frozen"), ("weights", "frozen"), ("both", "frozen"), ("both", "memory"))


def main() -> None:
    wanted = _arguments()
    check_unseen(wanted.first_seed, wanted.worlds)
    settings = LearnSettings(**preset.LEARN).model_copy(
        update={
            "samples": wanted.samples,
            "supervised": not wanted.unsupervised,
            "rate": wanted.rate,
            "epochs": wanted.epochs,
        }
    )
    trials = [
        Trial(
            arm,
            world,
            seed,
            wanted.questions,
            settings,
            shifted=wanted.shifted,
            judge="peer" if wanted.unsupervised else "reference",
            adapter=str(wanted.planner or ""),
        )
        for world in range(wanted.first_seed, wanted.first_seed + wanted.worlds)
        for seed in range(1, wanted.seeds + 1)
        for arm in wanted.arms
    ]
    begun = time.monotonic()

    def tell(done: int, total: int) -> None:
        note(f"{done} of {total} streams, {time.monotonic() - begun:.0f} s")

    outcomes = run_trials(
        trials, wanted.out / "outcomes.jsonl", processes=wanted.processes, at_once=wanted.at_once, on_outcome=tell
    )
    others = read_outcomes(wanted.against / "outcomes.jsonl") if wanted.against else []
    others = [one for one in others if one.seed <= wanted.seeds]
    page = "\n".join(table(outcomes, wanted.arms, wanted.epochs, others, str(wanted.against)))
    kind = "shifted worlds" if wanted.shifted else "worlds"
    head = (
        f"{wanted.worlds} {kind} from seed {wanted.first_seed}, {wanted.questions} questions in each, "
        f"{wanted.samples} tries a question, {wanted.epochs} pass(es), {wanted.seeds} sampling seed(s), "
        f"{'peer review' if wanted.unsupervised else 'reference'} as judge; {platform.machine()}, "
        f"{time.monotonic() - begun:.0f} s."
    )
    (wanted.out / "table.md").write_text(f"{head}\n\n{page}\n", encoding="utf-8")
    (wanted.out / "settings.json").write_text(json.dumps(settings.model_dump(mode="json"), indent=1) + "\n")
    print(f"{head}\n\n{page}")


def table(
    outcomes: Sequence[Outcome], arms: Sequence[str], epochs: int, others: Sequence[Outcome], elsewhere: str
) -> Iterator[str]:
    """Markdown: arms, then the steps between them, and those over the same arms elsewhere."""
    found = {arm: _by_world(outcomes, arm, epochs) for arm in arms}
    spans = ["all", *([f"pass {number}" for number in range(1, epochs + 1)] if epochs > 1 else HALVES)]
    yield f"| arm | {' | '.join(spans)} | tries right | versions | s a question |"
    yield "|---" * (len(spans) + 4) + "|"
    for arm, worlds in found.items():
        own = [one for one in outcomes if one.arm == arm]
        shares = [percent(clustered([[values[span]] for values in worlds.values()])) for span in range(len(spans))]
        tries = 100 * fmean(fmean(one.tries) for one in own)
        versions = fmean(one.versions for one in own)
        seconds = fmean(one.seconds / len(one.correct) for one in own)
        yield f"| {arm} | {' | '.join(shares)} | {tries:.1f} | {versions:.0f} | {seconds:.2f} |"
    yield ""
    yield f"| step, paired | {' | '.join(spans)} |"
    yield "|---" * (len(spans) + 1) + "|"
    steps = [
        (f"{above} over {below}", found[above], found[below])
        for above, below in STEPS
        if above in found and below in found
    ]
    there = {arm: _by_world(others, arm, epochs) for arm in arms}
    steps += [(f"{arm} over {arm} of {elsewhere}", found[arm], there[arm]) for arm in arms if there[arm]]
    for name, above, below in steps:
        shared = [world for world in below if world in above]
        pairs = [
            percent(
                paired([below[world][span] for world in shared], [above[world][span] for world in shared]), sign=True
            )
            for span in range(len(spans))
        ]
        yield f"| {name} | {' | '.join(pairs)} |"
    if epochs > 1:
        for arm, worlds in found.items():
            pairs = [
                percent(
                    paired([values[1] for values in worlds.values()], [values[span] for values in worlds.values()]),
                    sign=True,
                )
                for span in range(2, len(spans))
            ]
            yield f"| {arm}, later passes over the first | – | – | {' | '.join(pairs)} |"


def _by_world(outcomes: Sequence[Outcome], arm: str, epochs: int) -> dict[int, tuple[float, ...]]:
    """World → accuracy over all, then in each half, or in each pass where there are several; the mean over sampling
    seeds."""
    worlds: dict[int, list[list[float]]] = {}
    for one in outcomes:
        if one.arm == arm:
            parts = epochs if epochs > 1 else len(HALVES)
            cuts = [len(one.correct) * number // parts for number in range(parts + 1)]
            spans = [one.correct, *(one.correct[start:end] for start, end in pairwise(cuts))]
            worlds.setdefault(one.world, []).append([fmean(span) for span in spans])
    return {world: tuple(fmean(values) for values in zip(*seeds, strict=True)) for world, seeds in worlds.items()}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, required=True, help="a folder; the same command goes on with it")
    parser.add_argument("--planner", type=Path, help="the adapter that the Planner begins with")
    parser.add_argument("--worlds", type=int, default=24)
    parser.add_argument("--first-seed", type=int, default=TEST.start)
    parser.add_argument("--questions", type=int, default=60)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--rate", type=float, default=preset.LEARN["rate"])
    parser.add_argument("--shifted", action="store_true")
    parser.add_argument("--unsupervised", action="store_true", help="peer review as judge")
    parser.add_argument("--epochs", type=int, default=1, help="passes over the questions of a world")
    parser.add_argument("--against", type=Path, help="the folder of another run, on the same worlds")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--at-once", type=int, default=24, help="worlds that share a process's model")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    return parser.parse_args()


if __name__ == "__main__":
    main()
