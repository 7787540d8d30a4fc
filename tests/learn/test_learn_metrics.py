"""Numbers of learning: each sink keeps them, a resumed training writes no step twice, a full disk is told."""

from __future__ import annotations

import json
import math
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mia.errors import LearnError, MissingExtra
from mia.learn.metrics import ConsoleMetrics, JsonlMetrics, Metrics, TensorBoardMetrics, WandbMetrics, read_metrics


def test_a_line_shows_what_a_step_has() -> None:
    lines: list[str] = []
    sink = ConsoleMetrics(lines.append, names=("reward", "gradient_norm", "loss"))
    sink.write(3, {"loss": 0.123456, "reward": 1.0, "other": 5.0})
    sink.write(4, {"gradient_norm": math.nan})
    assert lines == ["step 3  reward 1  loss 0.1235", "step 4  gradient norm nan"]


def test_rows_are_there_at_once_and_numbers_that_are_none_are_null(tmp_path: Path) -> None:
    path = tmp_path / "new" / "metrics.jsonl"
    sink = JsonlMetrics(path)
    sink.write(1, {"loss": 0.5, "norm": math.inf, "parts": {"final": 1, "first": math.nan}})
    assert path.read_text() == '{"step": 1, "loss": 0.5, "norm": null, "parts": {"final": 1, "first": null}}\n'
    sink.close()
    sink.close()


def test_going_on_cuts_what_came_after_the_checkpoint_and_what_was_torn(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with Metrics(JsonlMetrics(path)) as metrics:
        for step in range(1, 6):
            metrics.write(step, {"loss": float(step)})
    with path.open("a") as file:
        file.write('{"step": 6, "lo')
    with Metrics(JsonlMetrics(path, after=3)) as metrics:
        metrics.write(4, {"loss": 40.0})
    assert [(row["step"], row["loss"]) for row in read_metrics(path)] == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0)]
    assert all(json.loads(line) for line in path.read_text().splitlines())
    assert read_metrics(tmp_path / "none") == []


def test_a_disk_that_takes_no_more_is_told(tmp_path: Path) -> None:
    """A limit on the size of files, set by the system: the write fails as it does on a full disk."""
    path = tmp_path / "metrics.jsonl"
    sink = JsonlMetrics(path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (64, before[1]))
        sink.write(1, {"loss": 1.0})
        with pytest.raises(LearnError, match=r"cannot be written to '.*metrics\.jsonl' \(File too large\)") as raised:
            sink.write(2, {str(name): 1.0 for name in range(9)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert raised.value.hint
    sink.close()
    with pytest.raises(LearnError, match="cannot be written"):
        JsonlMetrics(Path("/proc/none/metrics.jsonl"))


WITHOUT = """
import sys
sys.modules["tensorboard"] = sys.modules["wandb"] = None
from pathlib import Path
from mia.errors import MissingExtra
from mia.learn.metrics import TensorBoardMetrics, WandbMetrics
for sink in (TensorBoardMetrics, WandbMetrics):
    try:
        sink(Path("nowhere"))
    except MissingExtra as error:
        assert ".[trackers]" in error.hint, error.hint
    else:
        raise AssertionError(sink)
"""


def test_a_tracker_that_is_not_installed_is_named() -> None:
    subprocess.run([sys.executable, "-c", WITHOUT], check=True)
    assert issubclass(MissingExtra, ImportError)


def test_tensorboard_reads_what_was_written(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra `trackers` is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    sink = TensorBoardMetrics(tmp_path)
    sink.write(1, {"loss": 0.5})
    sink.write(2, {"loss": 0.25, "reward": None, "parts": {"final": 0.75}})
    sink.close()
    found = EventAccumulator(str(tmp_path))
    found.Reload()
    assert [(one.step, one.value) for one in found.Scalars("loss")] == [(1, 0.5), (2, 0.25)]
    assert [(one.step, one.value) for one in found.Scalars("parts/final")] == [(2, 0.75)]


@pytest.mark.filterwarnings("ignore")
def test_wandb_writes_to_the_disk_and_to_no_network(tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="the extra `trackers` is not installed")
    sink = WandbMetrics(tmp_path, name="test")
    sink.write(1, {"loss": 0.5})
    sink.close()
    assert list(tmp_path.rglob("*.wandb"))
