"""The folder of a training."""

from __future__ import annotations

from pathlib import Path

import pytest

from mia.errors import ConfigError
from mia.learn.folder import alone, read_rows, write_rows, write_whole


def test_one_training_at_a_time_and_the_folder_is_free_again_afterwards(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "training"
    with (
        alone(folder),
        pytest.raises(ConfigError, match="another process is training into"),
        alone(folder),
    ):
        pass
    with alone(folder):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot hold a training"), alone(tmp_path / "file"):
        pass


def test_torn_lines_and_what_is_no_object_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert read_rows(path) == []
    path.write_bytes(b'{"step": 1}\n[2]\nnull\n\xff\n{"step": 3}\n{"st')
    assert read_rows(path) == [{"step": 1}, {"step": 3}]
    write_rows(path, read_rows(path)[:1])
    assert path.read_bytes() == b'{"step": 1}\n'


def test_what_cannot_be_written_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_whole(path, b"old")
    (tmp_path / "result.json.tmp").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
