"""What the benchmarks of trained weights share: trainings by the very command, and how figures are told."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

from mia.statistics import Interval


def train(role: str, count: int, learn: str, out: Path, *more: str) -> list[Path]:
    """A training of `mia learn ROLE` for each seed from 1 on; one that is done is not done again. `learn`: its options
    in one string; `more`: further ones. Ends the program where a training does not end well."""
    folders = [out / f"training-{seed}" for seed in range(1, count + 1)]
    for seed, folder in enumerate(folders, start=1):
        words = ["learn", role, "--out", str(folder), "--seed", str(seed), *more, *shlex.split(learn)]
        note(shlex.join(["mia", *words]))
        ended = subprocess.run([sys.executable, "-m", "mia.cli.main", *words], stdout=sys.stderr)
        if ended.returncode:
            sys.exit(ended.returncode)
    return folders


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def percent(interval: Interval | None, *, sign: bool = False) -> str:
    """For a table: the estimate and half of its interval."""
    if interval is None:
        return "–"
    return f"{100 * interval.estimate:{'+' if sign else ''}.1f} ± {100 * (interval.high - interval.estimate):.1f}"
