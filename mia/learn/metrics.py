"""Where the numbers of learning go: a line on the console, JSON lines, TensorBoard, Weights & Biases without a network.

A sink takes a step and numbers by name; a name may stand for several: {"parts": {"final": 0.5}}, which trackers call
"parts/final". What is written survives a kill, and a training that goes on from a checkpoint cuts what was written
after it (`JsonlMetrics`), so that no step stands there twice. Numbers that are none (NaN, infinite) are written as such
by all but JSON, which has none: there they are null.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from mia.errors import LearnError, require
from mia.learn.folder import read_rows, write_rows

Values = Mapping[str, Any]
"""Name → number, None where there is none, or a mapping of the same kind."""


class MetricsSink(Protocol):
    def write(self, step: int, values: Values) -> None:
        """Note the numbers of a step. Raises LearnError where they cannot be kept."""
        ...

    def close(self) -> None:
        """Nothing more comes; calling it twice is harmless."""
        ...


class ConsoleMetrics:
    """A line for each step, of the numbers that a reader wants to see go by."""

    def __init__(self, show: Callable[[str], None], names: Sequence[str] = ("reward", "loss", "entropy")) -> None:
        """`show` is handed each line; `names`: the numbers in it, where a step has them."""
        self._show = show
        self._names = names

    def write(self, step: int, values: Values) -> None:
        numbers = flat(values)
        told = [f"{name.replace('_', ' ')} {numbers[name]:.4g}" for name in self._names if name in numbers]
        self._show("  ".join([f"step {step}", *told]))

    def close(self) -> None:
        pass


class JsonlMetrics:
    """A file of JSON lines: {"step": 1, "loss": 0.5, …}, flushed at each."""

    def __init__(self, path: Path, *, after: int | None = None) -> None:
        """Go on writing to a file. `after`: the step that a training goes on from; rows of later steps, and such that a
        crash tore, are cut; None: keep all that is whole. Raises LearnError for a file that cannot be written."""
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_rows(path, [row for row in read_metrics(path) if after is None or row["step"] <= after])
            self._file = path.open("a", encoding="utf-8")
        except OSError as error:
            raise self._unwritten(error) from error

    def write(self, step: int, values: Values) -> None:
        try:
            self._file.write(json.dumps({"step": step, **_plain(values)}) + "\n")
            self._file.flush()
        except OSError as error:
            raise self._unwritten(error) from error

    def close(self) -> None:
        with contextlib.suppress(OSError):  # A last line that could not be flushed was told when it was written.
            self._file.close()

    def _unwritten(self, error: OSError) -> LearnError:
        return LearnError(
            f"the metrics cannot be written to '{self._path}' ({error.strerror}).",
            wanted="a file on a disk with room",
            hint="free some space, or choose another folder",
        )


def flat(values: Values, prefix: str = "") -> dict[str, float]:
    """The numbers alone, those of a mapping behind its name and a slash."""
    numbers: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            numbers |= flat(value, f"{prefix}{name}/")
        elif value is not None:
            numbers[f"{prefix}{name}"] = float(value)
    return numbers


def _plain(values: Values) -> dict[str, Any]:
    """As JSON can hold it."""
    return {
        name: _plain(value)
        if isinstance(value, Mapping)
        else None
        if isinstance(value, float) and not math.isfinite(value)
        else value
        for name, value in values.items()
    }


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines; such as a crash tore are passed over. No file: none."""
    return [row for row in read_rows(path) if isinstance(row.get("step"), int)]


class TensorBoardMetrics:
    """Event files for TensorBoard, in a folder."""

    def __init__(self, folder: Path, *, after: int | None = None) -> None:
        """`after`: the step that a training goes on from; TensorBoard then hides what was written beyond it. Raises
        MissingExtra without torch or tensorboard."""
        require("tensorboard", extra="trackers", purpose="metrics for TensorBoard")
        writer: Any = require("torch.utils.tensorboard", extra="local", purpose="metrics for TensorBoard")
        self._writer = writer.SummaryWriter(str(folder), purge_step=None if after is None else after + 1)

    def write(self, step: int, values: Values) -> None:
        for name, value in flat(values).items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WandbMetrics:
    """A run of Weights & Biases on this machine's disk. Nothing is sent: `wandb sync` does, when its user wants."""

    def __init__(self, folder: Path, *, project: str = "mia", name: str = "") -> None:
        """Each call begins a run of its own. Raises MissingExtra without wandb."""
        wandb: Any = require("wandb", extra="trackers", purpose="metrics for Weights & Biases")
        folder.mkdir(parents=True, exist_ok=True)
        settings = wandb.Settings(silent=True, console="off", disable_git=True, disable_code=True, x_disable_meta=True)
        self._run = wandb.init(mode="offline", dir=str(folder), project=project, name=name or None, settings=settings)

    def write(self, step: int, values: Values) -> None:
        self._run.log(flat(values), step=step)

    def close(self) -> None:
        self._run.finish()


class Metrics:
    """Several sinks as one; a context manager that closes them."""

    def __init__(self, *sinks: MetricsSink) -> None:
        self._sinks = list(sinks)

    def add(self, sink: MetricsSink) -> None:
        """One more, from the next step on."""
        self._sinks.append(sink)

    def __enter__(self) -> Metrics:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def write(self, step: int, values: Values) -> None:
        for sink in self._sinks:
            sink.write(step, values)

    def close(self) -> None:
        for sink in self._sinks:
            sink.close()
