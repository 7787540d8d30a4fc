"""Dialogues as rows of token ids, kept on disk in shards that a killed run finds again."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy
from numpy.typing import NDArray

from mia.errors import LearnError
from mia.learn.warmup.dialogues import Dialogue, dialogues
from mia.learn.warmup.tokenizer import END
from mia.world.facts import World
from mia.world.seeds import TRAIN

if TYPE_CHECKING:
    from tokenizers import Tokenizer

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


def encode(dialogue: Dialogue, tokenizer: Tokenizer) -> tuple[list[int], list[bool]]:
    """A dialogue in the chat template, token by token, and which tokens are the teacher's: its words and their end."""
    ids: list[int] = []
    learned: list[bool] = []
    end = tokenizer.token_to_id(END)
    for turn in dialogue.turns:
        said = tokenizer.encode(turn.message.content, add_special_tokens=False).ids
        ids += [tokenizer.token_to_id(f"<|{turn.message.role}|>"), *said, end]
        learned += [False, *[turn.learned] * (len(said) + 1)]
    return ids, learned


def build_shards(
    folder: Path,
    tokenizer_folder: Path,
    count: int,
    *,
    worlds: int,
    seed: int,
    processes: int,
    on_shard: Callable[[int, int], None],
    stop: Callable[[], bool] | None = None,
) -> list[Path]:
    """Shards 0 to count - 1 of so many worlds each; those that are there and whole are kept.

    `on_shard`: told how many of how many are ready. `stop`: asked before each world where this process builds them
    itself; a yes raises KeyboardInterrupt. Nobody else may write into the folder meanwhile. Raises LearnError
    if a process that builds them dies.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for torn in folder.glob("*.tmp.npz"):
        torn.unlink()
    paths = [folder / f"shard-{number:04}.npz" for number in range(count)]
    jobs = [
        (str(tokenizer_folder), str(path), number, worlds, seed)
        for number, path in enumerate(paths)
        if not _is_whole(path)
    ]
    done = count - len(jobs)
    on_shard(done, count)

    def built() -> None:
        nonlocal done
        done += 1
        on_shard(done, count)

    if processes > 1 and len(jobs) > 1:
        _side_by_side(jobs, min(processes, len(jobs)), built)
    else:
        for job in jobs:
            _build_shard(*job, stop)
            built()
    return paths


def load_shard(path: Path) -> Shard:
    # Opened here, for numpy leaves a torn file open.
    with path.open("rb") as file, numpy.load(file) as kept:
        return Shard(kept["ids"].astype(numpy.int32), kept["learned"], kept["starts"])


def train_worlds(first: int, count: int) -> Iterator[World]:
    """Worlds of the training split; a tenth of them are shifted, so that the prior is no law."""
    for seed in TRAIN[first : first + count]:
        yield World.make(seed, shifted=seed % 10 == 0)


_Job = tuple[str, str, int, int, int]
"""The arguments of `_build_shard`."""


def _side_by_side(jobs: Sequence[_Job], processes: int, built: Callable[[], None]) -> None:
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(
        processes, mp_context=multiprocessing.get_context("spawn"), initializer=_follow_parent
    ) as pool:
        try:
            for job in as_completed([pool.submit(_build_shard, *job) for job in jobs]):
                job.result()
                built()
        except BaseException as error:
            # Leaving the pool waits for all that was submitted; that would be minutes after a Ctrl-C.
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()
            if isinstance(error, BrokenProcessPool):
                raise LearnError(
                    "a process that builds dialogues was killed, maybe for want of memory.",
                    hint="the same command with --processes 1; what is built is kept",
                ) from error
            raise


def _follow_parent() -> None:
    """In a process of the pool: leave Ctrl-C to the parent, and end when it ends, even by SIGKILL."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _build_shard(
    tokenizer_folder: str, path: str, number: int, worlds: int, seed: int, stop: Callable[[], bool] | None = None
) -> None:
    # Without transformers, whose import takes longer than many a shard.
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(f"{tokenizer_folder}/tokenizer.json")
    rows: list[tuple[list[int], list[bool]]] = []
    for world in train_worlds(number * worlds, worlds):
        if stop is not None and stop():
            # Asked for where an exception of the signal's handler was lost, say in a callback.
            raise KeyboardInterrupt
        rows += [encode(dialogue, tokenizer) for dialogue in dialogues(world, seed)]
    _save(Path(path), [row for row in rows if len(row[0]) <= LONGEST])


def _is_whole(path: Path) -> bool:
    """Whether a shard is there and can be read to its end (each part of the file has a checksum)."""
    try:
        load_shard(path)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return False
    return True


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
