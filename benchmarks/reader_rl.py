"""What the reader learns by reinforcement, on texts of test worlds that nothing has seen, far longer than in training.

    python benchmarks/reader_rl.py --out runs/reader-rl runs/reader-1 runs/reader-2 runs/reader-3
    python benchmarks/reader_rl.py --out runs/reader-rl --train 3 [--learn "--steps 60 …"]

A reader is the folder of a training (`mia learn reader`), which holds its warm-up and what reinforcement made of it;
`--train` makes the trainings first, one for each seed from 1 on, in the folder itself.

Both versions of each read the same texts of 8, 16, 32, 64 and 128 chunks, in the line's own reader, greedy; trainings
saw 8 chunks at most. A question asks for one fact or, every other time, for two; an answer is right by the strict
verifier. By depth, each fact that was asked for counts by itself: whether the answer names it in its place.

Differences are taken in pairs, world by world, after the mean over all trainings in each world; intervals are 95 % t
intervals over worlds. They tell how far other worlds would differ; how far other trainings would, the single ones show.
Nothing is chosen by these figures: trainings choose by validation worlds. Outcomes are kept one by one; the same
command goes on with what is there.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from trainings import note, percent, train

from mia.config import ReaderSettings
from mia.errors import ConfigError, MiaError
from mia.evals.ladder import digest
from mia.judges.verifiers import boxed
from mia.learn.reading import LongQuestion, ReaderStage, text_tokens
from mia.learn.spool import append_line, read_lines
from mia.models import build_model
from mia.models.base import ChatModel
from mia.reader.chunks import token_counter
from mia.statistics import Interval, clustered, paired
from mia.world import preset
from mia.world.facts import World
from mia.world.longtexts import MOST_FACTS, LongText, make_text
from mia.world.seeds import TEST, check_unseen

LEARN = "--warm-up 6000 --steps 30 --questions-per-step 24 --samples 12 --rate 5e-4 --exam-every 5"
"""About 45 minutes on one free core."""
LENGTHS = (8, 16, 32, 64, 128)
"""Chunks."""
WARM_UP, LEARNT = "warm-up", "reinforcement"
DEPTHS = 5
"""Parts of a text that facts are counted in."""
BATCH = 128
"""Texts that are read side by side."""


@dataclass(frozen=True)
class Version:
    """One state of one reader."""

    training: str
    stage: str
    folder: Path
    digest: str


@dataclass(frozen=True)
class Outcome:
    """One text that was read by one version; a line of the file."""

    weights: str
    length: int
    """Chunks that were asked for."""
    world: int
    number: int
    correct: bool
    hits: tuple[bool, ...]
    """For each fact that was asked for."""
    depths: tuple[float, ...]
    chunks: int
    """Chunks that were read."""
    tokens: int
    seconds: float

    @property
    def key(self) -> tuple[str, int, int, int]:
        return self.weights, self.length, self.world, self.number


def versions_of(path: Path) -> list[Version]:
    """The two of a training. Raises ConfigError."""
    folders = {WARM_UP: path / "warm-up" / "adapter", LEARNT: path / "adapter"}
    for folder in folders.values():
        if not (folder / "adapter_config.json").is_file():
            raise ConfigError(
                f"'{folder}' holds no adapter.",
                wanted="a training with a warm-up that has ended, as `mia learn reader` leaves it",
            )
    return [Version(str(path), stage, folder, digest(folder)) for stage, folder in folders.items()]


# ── reading ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def read_all(
    version: Version, wanted: argparse.Namespace, known: dict[tuple[str, int, int, int], Outcome]
) -> None:
    """What the file does not hold of this version, length by length."""
    settings = ReaderSettings(**preset.READER)
    model = build_model(preset.model_settings(adapter=str(version.folder), batch=BATCH))
    stage = ReaderStage(settings, "compact", token_counter(model))
    gate = asyncio.Semaphore(BATCH)
    try:
        for length in wanted.lengths:
            texts = [
                (seed, number)
                for seed in range(wanted.first_seed, wanted.first_seed + wanted.worlds)
                for number in range(wanted.texts)
                if (version.digest, length, seed, number) not in known
            ]
            begun = time.monotonic()

            async def one(seed: int, number: int, length: int = length) -> None:
                async with gate:
                    outcome = await read_one(version, stage, model, length, seed, number)
                append_line(wanted.out / "outcomes.jsonl", asdict(outcome))
                known[outcome.key] = outcome

            await asyncio.gather(*(one(*text) for text in texts))
            if texts:
                note(f"{version.training} {version.stage}: {length} chunks, {time.monotonic() - begun:.0f} s")
    finally:
        await model.close()


async def read_one(
    version: Version, stage: ReaderStage, model: ChatModel, length: int, seed: int, number: int
) -> Outcome:
    made = make_text(
        World.make(seed),
        number,
        text_tokens(length, stage.settings),
        stage.counter.count,
        facts=1 + number % MOST_FACTS,
    )
    begun = time.monotonic()
    answered = await stage.answer(LongQuestion.of(made), model)
    if answered.unheard:
        raise answered.reading.failure or MiaError(answered.unheard)
    return Outcome(
        version.digest,
        length,
        seed,
        number,
        answered.score == 1.0,
        named(made, answered.reading.reply),
        made.depths,
        answered.reading.chunks,
        answered.reading.tokens,
        time.monotonic() - begun,
    )


def named(made: LongText, reply: str) -> tuple[bool, ...]:
    """For each fact whether the boxed answer names it in its place."""
    values = [value.strip() for value in (boxed(reply) or "").split(",")]
    return tuple(
        number < len(values) and len(values) == len(made.facts) and values[number] == fact.value
        for number, fact in enumerate(made.facts)
    )


def read_outcomes(path: Path) -> dict[tuple[str, int, int, int], Outcome]:
    found = (
        Outcome(**{**page, "hits": tuple(page["hits"]), "depths": tuple(page["depths"])}) for page in read_lines(path)
    )
    return {outcome.key: outcome for outcome in found}


# ── tables ────────────────────────────────────────────────────────────────────────────────────────────────────────


class Results:
    """All outcomes that are asked for."""

    def __init__(self, outcomes: Sequence[Outcome], versions: Sequence[Version], wanted: argparse.Namespace) -> None:
        self._outcomes = outcomes
        self._versions = versions
        self._worlds = range(wanted.first_seed, wanted.first_seed + wanted.worlds)
        self._texts = wanted.texts
        self.lengths: Sequence[int] = wanted.lengths

    def of(self, stage: str, length: int, training: str = "") -> list[Outcome]:
        weights = {one.digest for one in self._versions if one.stage == stage and training in ("", one.training)}
        return [
            one
            for one in self._outcomes
            if one.weights in weights
            and one.length == length
            and one.world in self._worlds
            and one.number < self._texts
        ]

    def by_world(self, stage: str, length: int, training: str = "") -> list[float]:
        """The share that is right, in each world, over all trainings or of one."""
        marks: dict[int, list[float]] = {world: [] for world in self._worlds}
        for one in self.of(stage, length, training):
            marks[one.world].append(float(one.correct))
        return [fmean(marks[world]) for world in self._worlds]

    def accuracy(self, stage: str, length: int, training: str = "") -> Interval | None:
        return clustered([[mean] for mean in self.by_world(stage, length, training)])

    def gain(self, length: int, training: str = "") -> Interval | None:
        """Reinforcement over warm-up."""
        return paired(self.by_world(WARM_UP, length, training), self.by_world(LEARNT, length, training))

    def longer(self, stage: str) -> Interval | None:
        """The longest texts over the shortest."""
        return paired(self.by_world(stage, min(self.lengths)), self.by_world(stage, max(self.lengths)))

    def at_depth(self, stage: str, length: int, part: int) -> Interval | None:
        """Facts that stand in one part of the text, over the worlds that have any there."""
        marks: dict[int, list[float]] = {}
        for one in self.of(stage, length):
            for hit, depth in zip(one.hits, one.depths, strict=True):
                if int(DEPTHS * depth) == part:
                    marks.setdefault(one.world, []).append(float(hit))
        return clustered(list(marks.values()))


def length_table(results: Results, trainings: Sequence[str]) -> Iterator[str]:
    yield "| chunks | tokens | warm-up | reinforcement | over warm-up, paired | each training |"
    yield "|---:|---:|---|---|---|---|"
    for length in results.lengths:
        tokens = fmean(one.tokens for one in results.of(LEARNT, length))
        each = ", ".join(
            f"{100 * fmean(results.by_world(WARM_UP, length, name)):.1f} → "
            f"{100 * fmean(results.by_world(LEARNT, length, name)):.1f}"
            for name in trainings
        )
        yield (
            f"| {length} | {tokens:,.0f} | {percent(results.accuracy(WARM_UP, length))} | "
            f"{percent(results.accuracy(LEARNT, length))} | {percent(results.gain(length), sign=True)} | {each} |"
        )
    first, last = min(results.lengths), max(results.lengths)
    yield (
        f"| {last} over {first}, paired | | {percent(results.longer(WARM_UP), sign=True)} | "
        f"{percent(results.longer(LEARNT), sign=True)} | | |"
    )


def depth_table(results: Results) -> Iterator[str]:
    parts = [f"{100 * part // DEPTHS} to {100 * (part + 1) // DEPTHS} %" for part in range(DEPTHS)]
    yield f"| chunks | | {' | '.join(parts)} |"
    yield f"|---:|---|{'---|' * DEPTHS}"
    for length in (min(results.lengths), max(results.lengths)):
        for stage in (WARM_UP, LEARNT):
            cells = " | ".join(percent(results.at_depth(stage, length, part)) for part in range(DEPTHS))
            yield f"| {length} | {stage} | {cells} |"


# ── all of it ─────────────────────────────────────────────────────────────────────────────────────────────────────


def main() -> None:
    wanted = arguments()
    try:
        measure(wanted)
    except MiaError as error:
        sys.exit(str(error))


def measure(wanted: argparse.Namespace) -> None:
    check_unseen(wanted.first_seed, wanted.worlds)
    begun = time.monotonic()
    paths = list(dict.fromkeys([*train("reader", wanted.train, wanted.learn, wanted.out), *wanted.readers]))
    versions = [version for path in paths for version in versions_of(path)]
    known = read_outcomes(wanted.out / "outcomes.jsonl")
    for version in versions:
        asyncio.run(read_all(version, wanted, known))
    results = Results(list(known.values()), versions, wanted)
    settings = ReaderSettings(**preset.READER)
    page = "\n".join(
        [
            f"{wanted.worlds} test worlds from seed {wanted.first_seed}, {wanted.texts} texts of each length in each; "
            f"{len(paths)} training(s); chunks of {settings.chunk_tokens} tokens, a memory of "
            f"{settings.memory_tokens}; mean ± half of the 95 % t interval over worlds, in percent; "
            f"{platform.machine()}, "
            f"{time.monotonic() - begun:.0f} s in this call.",
            "",
            "### Answers by length",
            "",
            *length_table(results, [str(path) for path in paths]),
            "",
            "### Facts by their place in the text",
            "",
            *depth_table(results),
        ]
    )
    (wanted.out / "reader.md").write_text(page + "\n", encoding="utf-8")
    print(page)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("readers", type=Path, nargs="*", help="folders of trainings")
    parser.add_argument("--out", type=Path, required=True, help="a folder; the same command goes on with it")
    parser.add_argument("--train", type=int, default=0, metavar="SEEDS", help="train so many readers first")
    parser.add_argument("--learn", default=LEARN, metavar="OPTIONS", help="of `mia learn reader`, in one string")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, help="chunks of the texts")
    parser.add_argument("--worlds", type=int, default=24)
    parser.add_argument("--first-seed", type=int, default=TEST.start)
    parser.add_argument("--texts", type=int, default=4, help="of each length in each world")
    wanted = parser.parse_args()
    if not wanted.readers and not wanted.train:
        parser.error("name a training's folder, or --train 3")
    wanted.out.mkdir(parents=True, exist_ok=True)
    return wanted


if __name__ == "__main__":
    main()
