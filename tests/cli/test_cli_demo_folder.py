"""The folder of a demonstration: begun afresh, never another's, and its settings are what runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from mia.cli.demo.folder import STREAMS, commands, prepare
from mia.config import load_config
from mia.errors import ConfigError, StoreError

SECTIONS = {
    "models.default": {"provider": "local", "temperature": 0.0, "context_window": 1536, "max_tokens": 256},
    "memory": {"k_positive": 3, "enabled": True},
    "search": {"corpus": ["a folder", 'with "quotes", ä and \\']},
}


def test_what_runs_is_what_the_file_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # A relative folder with a name that TOML must escape.
    home = Path('a "demo"')
    config = prepare(home, SECTIONS)
    assert config.home == tmp_path / home
    assert config.search.corpus == tuple(SECTIONS["search"]["corpus"])  # type: ignore[arg-type]
    assert (config.models.default.temperature, config.memory.k_positive) == (0.0, 3)
    assert load_config(home / "mia.toml") == config
    monkeypatch.setenv("MIA_MEMORY__K_POSITIVE", "1")
    assert prepare(home, SECTIONS) == config


def test_it_is_emptied_when_it_is_made_again(tmp_path: Path) -> None:
    prepare(tmp_path, SECTIONS)
    for name in ("memory.db", "memory.db-wal", f"{STREAMS}/one/memory.db"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("old")
    prepare(tmp_path, {"memory": {"k_positive": 1}})
    assert [path.name for path in tmp_path.rglob("*")] == ["mia.toml"]
    assert load_config(tmp_path / "mia.toml").memory.k_positive == 1


@pytest.mark.parametrize("name", ["memory.db", "mia.toml"])
def test_a_folder_of_others_is_left_alone(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("[memory]\n")
    with pytest.raises(ConfigError, match="not of a demonstration"):
        prepare(tmp_path, SECTIONS)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "[memory]\n")]


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot write in the folder"):
        prepare(tmp_path / "file" / "demo", SECTIONS)


def test_it_empties_nothing_outside_of_itself(tmp_path: Path) -> None:
    home, precious = tmp_path / "demo", tmp_path / "precious"
    prepare(home, SECTIONS)
    precious.mkdir()
    (precious / "file").touch()
    (home / STREAMS).symlink_to(precious)
    with pytest.raises(StoreError, match="cannot write in the folder"):
        prepare(home, SECTIONS)
    assert (precious / "file").exists()


def test_the_commands_can_be_copied_whatever_the_folder_is_called() -> None:
    (line,) = commands(Path("my demo"), [("show last", "opened up")])
    assert line.plain.split("   ") == ["  mia --config 'my demo/mia.toml' show last", "opened up"]
