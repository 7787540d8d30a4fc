"""Dialogues as rows of token ids, kept on disk in shards that a killed run finds again."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy
from numpy.typing import NDArray

from mia.learn.warmup.dialogues import Dialogue, dialogues
from mia.learn.warmup.tokenizer import END
from mia.world.facts import World
from mia.world.seeds import TRAIN

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

WORLDS_PER_SHARD = 100
LONGEST = 1_200
"""Tokens of a dialogue; longer ones are left out."""

Ids = NDArray[numpy.int32]


@dataclass(frozen=True)
class Shard:
    """Rows of one shard, end to end."""

    ids: Ids
    learned: NDArray[numpy.bool_]
    """Which tokens are the teacher's own."""
    starts: NDArray[numpy.int64]
    """Where each row begins, and at the end where the last one ends."""

    def rows(self) -> Iterator[tuple[Ids, NDArray[numpy.bool_]]]:
        for start, end in zip(self.starts[:-1], self.starts[1:], strict=True):
            yield self.ids[start:end], self.learned[start:end]


def encode(dialogue: Dialogue, tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], list[bool]]:
    """A dialogue in the chat template, token by token, and which tokens are the teacher's: its words and their end."""
    ids: list[int] = []
    learned: list[bool] = []
    end: int = tokenizer.convert_tokens_to_ids(END)
    for turn in dialogue.turns:
        said = tokenizer.encode(turn.message.content, add_special_tokens=False)
        ids += [tokenizer.convert_tokens_to_ids(f"<|{turn.message.role}|>"), *said, end]
        learned += [False, *[turn.learned] * (len(said) + 1)]
    return ids, learned


def build_shards(
    folder: Path,
    tokenizer_folder: Path,
    count: int,
    *,
    seed: int,
    processes: int,
    on_shard: Callable[[int, int], None],
) -> list[Path]:
    """Shards 0 to count - 1; those that are there are kept. `on_shard`: told how many of how many are ready."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"shard-{number:04}.npz" for number in range(count)]
    missing = [(number, path) for number, path in enumerate(paths) if not path.is_file()]
    on_shard(count - len(missing), count)
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        jobs = [pool.submit(_build_shard, str(tokenizer_folder), str(path), number, seed) for number, path in missing]
        for done, job in enumerate(jobs, start=count - len(missing) + 1):
            job.result()
            on_shard(done, count)
    return paths


def load_shard(path: Path) -> Shard:
    with numpy.load(path) as kept:
        return Shard(kept["ids"].astype(numpy.int32), kept["learned"], kept["starts"])


def train_worlds(first: int, count: int) -> Iterator[World]:
    """Worlds of the training split; a tenth of them are shifted, so that the prior is no law."""
    for seed in TRAIN[first : first + count]:
        yield World.make(seed, shifted=seed % 10 == 0)


def _build_shard(tokenizer_folder: str, path: str, number: int, seed: int) -> None:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(tokenizer_folder)
    rows = [
        encode(dialogue, tokenizer)
        for world in train_worlds(number * WORLDS_PER_SHARD, WORLDS_PER_SHARD)
        for dialogue in dialogues(world, seed)
    ]
    _save(Path(path), [row for row in rows if len(row[0]) <= LONGEST])


def _save(path: Path, rows: Sequence[tuple[list[int], list[bool]]]) -> None:
    lengths = [len(ids) for ids, _ in rows]
    fresh = path.with_suffix(f".{os.getpid()}.tmp.npz")
    numpy.savez(
        fresh,
        ids=numpy.concatenate([numpy.array(ids, dtype=numpy.uint16) for ids, _ in rows]),
        learned=numpy.concatenate([numpy.array(learned, dtype=numpy.bool_) for _, learned in rows]),
        starts=numpy.concatenate([[0], numpy.cumsum(lengths)]),
    )
    fresh.replace(path)
