"""`mia demo --recorded`: what it prints where, the folder it keeps, and when it fails."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

import mia
from mia.cli.demo import recorded
from mia.cli.main import app
from mia.errors import CorpusError, ReplayMismatch


def run(home: Path, *arguments: str) -> Result:
    result = CliRunner().invoke(app, ["demo", "--recorded", "--home", str(home), *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_it_says_first_that_the_models_are_recorded(tmp_path: Path) -> None:
    result = run(tmp_path)
    first, *others = result.stderr.splitlines()
    assert first == "Recorded: every word of the models below was written by hand, and is replayed."
    told = " ".join(" ".join(others).split())
    assert "they say nothing about any model" in told
    assert "--base-url URL --model NAME" in told


def test_the_table_goes_to_stdout_and_the_stories_to_stderr(tmp_path: Path) -> None:
    result = run(tmp_path)
    rows = [line for line in result.stdout.splitlines() if line.strip()]
    assert len(rows) == 1 + 1 + 10 + 1  # head, rule, questions, totals
    assert rows[-1].split() == ["correct", "3", "6", "of", "10", "9", "of", "10"]
    for word in ("recall", "plan", "search", "reflect", "replan", "judge", "remember", "source"):
        assert f"    {word} " in result.stderr
    assert "\x1b" not in result.output


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_no_line_is_wider_than_the_terminal(width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    result = run(tmp_path)
    # What is to be copied is not broken.
    assert max(len(line) for line in result.output.splitlines() if str(tmp_path) not in line) <= width
    assert "9 of 10" in result.stdout


def test_json_holds_the_figures_and_the_whole_episodes(tmp_path: Path) -> None:
    page = json.loads(run(tmp_path, "--json").stdout)
    assert (page["questions"], page["first_correct"], page["final_correct"], page["replanned"]) == (10, 6, 9, 3)
    assert len(page["memories"]) == 10
    assert [episode["question"]["id"] for episode in page["episodes"]][::9] == ["solar-01", "solar-10"]
    assert "written by hand" in page["note"]


def test_it_begins_afresh_in_a_folder_of_its_own(tmp_path: Path) -> None:
    home = tmp_path / "demo"
    first = json.loads(run(home, "--json").stdout)
    again = json.loads(run(home, "--json").stdout)
    assert not set(first["memories"]) & set(again["memories"])
    assert again["episodes"][0]["recall"]["shown"] == []


def test_settings_of_the_machine_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIA_MODELS__PLANNER__PROVIDER", "openai")
    monkeypatch.setenv("MIA_MEMORY__ENABLED", "false")
    monkeypatch.setenv("MIA_SEARCH__K", "1")
    assert json.loads(run(tmp_path, "--json").stdout)["final_correct"] == 9


def test_it_fails_where_recording_and_documents_do_not_match(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = shutil.copytree(recorded.demo_data(), tmp_path / "data")
    (data / "docs" / "triton.md").unlink()
    monkeypatch.setattr(recorded, "demo_data", lambda: data)
    with pytest.raises(ReplayMismatch, match=r"solar-06: nothing that was found holds .*Triton"):
        run(tmp_path / "home")


def test_the_data_are_found_inside_a_wheel_and_missed_where_they_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mia, "__file__", str(tmp_path / "mia" / "__init__.py"))
    with pytest.raises(CorpusError, match="not installed"):
        recorded.demo_data()
    inside = tmp_path / "mia" / "examples" / "solar_system"
    inside.mkdir(parents=True)
    (inside / "recording.jsonl").touch()
    assert recorded.demo_data() == inside
