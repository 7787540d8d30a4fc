"""Test-time learning on worlds that nothing has seen: what the weights, the memory and both learn from equal tries.

    python benchmarks/test_time_learning.py --out runs/ttl [--shifted] [--unsupervised]

Four arms answer the same streams of questions with the same number of tries, the same sampling seeds and the same
verdicts, and differ in what the tries go into (`mia.learn.laboratory`). A question's score is fixed before anything is
learnt from it. Reported: accuracy in the first and in the second half of a stream; differences between arms are taken
in pairs, world by world; intervals are 95 % t intervals over worlds. With several sampling seeds the mean over seeds is
taken in each world first.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean

from mia.config import LearnSettings
from mia.learn.laboratory import ARMS, Outcome, Trial, run_trials
from mia.statistics import clustered, paired
from mia.world import preset
from mia.world.seeds import TEST, check_unseen

STEPS = (("memory", "frozen"), ("weights", "frozen"), ("both", "frozen"), ("both", "memory"))


def main() -> None:
    wanted = _arguments()
    check_unseen(wanted.first_seed, wanted.worlds)
    settings = LearnSettings(**preset.LEARN).model_copy(
        update={"samples": wanted.samples, "supervised": not wanted.unsupervised, "rate": wanted.rate}
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
        print(f"{done} of {total} streams, {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)

    outcomes = run_trials(
        trials, wanted.out / "outcomes.jsonl", processes=wanted.processes, at_once=wanted.at_once, on_outcome=tell
    )
    page = "\n".join(table(outcomes, wanted.arms))
    kind = "shifted worlds" if wanted.shifted else "worlds"
    head = (
        f"{wanted.worlds} {kind} from seed {wanted.first_seed}, {wanted.questions} questions in each, "
        f"{wanted.samples} tries a question, {wanted.seeds} sampling seed(s), "
        f"{'peer review' if wanted.unsupervised else 'reference'} as judge; {platform.machine()}, "
        f"{time.monotonic() - begun:.0f} s."
    )
    (wanted.out / "table.md").write_text(f"{head}\n\n{page}\n", encoding="utf-8")
    (wanted.out / "settings.json").write_text(json.dumps(settings.model_dump(mode="json"), indent=1) + "\n")
    print(f"{head}\n\n{page}")


def table(outcomes: Sequence[Outcome], arms: Sequence[str]) -> Iterator[str]:
    """Markdown: arms, then the steps between them."""
    found = {arm: _by_world(outcomes, arm) for arm in arms}
    yield "| arm | all | first half | second half | tries right | versions | s a question |"
    yield "|---|---|---|---|---|---|---|"
    for arm, worlds in found.items():
        own = [one for one in outcomes if one.arm == arm]
        shares = [_percent(clustered([[values[half]] for values in worlds.values()])) for half in (0, 1, 2)]
        tries = 100 * fmean(fmean(one.tries) for one in own)
        versions = fmean(one.versions for one in own)
        seconds = fmean(one.seconds / len(one.correct) for one in own)
        yield f"| {arm} | {' | '.join(shares)} | {tries:.1f} | {versions:.0f} | {seconds:.2f} |"
    yield ""
    yield "| step, paired | all | first half | second half |"
    yield "|---|---|---|---|"
    for above, below in STEPS:
        if above in found and below in found:
            pairs = [
                _percent(
                    paired(
                        [values[half] for values in found[below].values()],
                        [found[above][world][half] for world in found[below]],
                    ),
                    sign=True,
                )
                for half in (0, 1, 2)
            ]
            yield f"| {above} over {below} | {' | '.join(pairs)} |"


def _by_world(outcomes: Sequence[Outcome], arm: str) -> dict[int, tuple[float, float, float]]:
    """World → accuracy over all, in the first half and in the second, the mean over sampling seeds."""
    worlds: dict[int, list[tuple[float, float, float]]] = {}
    for one in outcomes:
        if one.arm == arm:
            half = len(one.correct) // 2
            parts = (one.correct, one.correct[:half], one.correct[half:])
            worlds.setdefault(one.world, []).append(tuple(fmean(part) for part in parts))  # type: ignore[arg-type]
    return {
        world: tuple(fmean(values) for values in zip(*seeds, strict=True))  # type: ignore[misc]
        for world, seeds in worlds.items()
    }


def _percent(interval: tuple[float, float, float] | None, *, sign: bool = False) -> str:
    if interval is None:
        return "–"
    value, _, high = interval
    return f"{100 * value:{'+' if sign else ''}.1f} ± {100 * (high - value):.1f}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, required=True, help="a folder; the same command goes on with it")
    parser.add_argument("--planner", type=Path, help="the adapter that the Planner begins with")
    parser.add_argument("--worlds", type=int, default=24)
    parser.add_argument("--first-seed", type=int, default=TEST.start)
    parser.add_argument("--questions", type=int, default=120)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--rate", type=float, default=preset.LEARN["rate"])
    parser.add_argument("--shifted", action="store_true")
    parser.add_argument("--unsupervised", action="store_true")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--at-once", type=int, default=8, help="worlds that share a process's model")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    return parser.parse_args()


if __name__ == "__main__":
    main()
