"""Taking memories out and in: lossless JSON Lines, Markdown for people and git, and the logs of other agents."""

from __future__ import annotations

from mia.memory.exchange.base import Exported, Imported, OnProgress, Refusal, Source
from mia.memory.exchange.formats import Format, detect_format
from mia.memory.exchange.jsonl import export_jsonl, import_jsonl, write_jsonl
from mia.memory.exchange.markdown import export_markdown, import_markdown
from mia.memory.exchange.trajectories import import_trajectories

__all__ = [
    "Exported",
    "Format",
    "Imported",
    "OnProgress",
    "Refusal",
    "Source",
    "detect_format",
    "export_jsonl",
    "export_markdown",
    "import_jsonl",
    "import_markdown",
    "import_trajectories",
    "write_jsonl",
]
