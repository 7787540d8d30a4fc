"""The recording of the demonstration is what its script writes, and says that it was written by hand."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

from mia.models.replay import write_calls

FOLDER = Path(__file__).parents[2] / "examples" / "solar_system"


def test_the_recording_is_what_the_script_writes(tmp_path: Path) -> None:
    script = runpy.run_path(str(FOLDER / "write_recording.py"))
    write_calls(script["recorded_calls"](), tmp_path / "recording.jsonl", note=script["NOTE"])
    again = (tmp_path / "recording.jsonl").read_text(encoding="utf-8")
    assert again == (FOLDER / "recording.jsonl").read_text(encoding="utf-8"), (
        "the recording and its script differ: python examples/solar_system/write_recording.py"
    )


def test_the_header_says_where_the_words_come_from() -> None:
    with (FOLDER / "recording.jsonl").open(encoding="utf-8") as file:
        header = json.loads(next(file))
    assert header["note"] == "Written by hand for the demonstration; no model was asked."
