"""Draws the pictures for the README: one question of the demonstration that is replanned, with the table at the end,
and what `mia memory why` says of another.

    python examples/solar_system/picture.py

plays the demonstration in a folder that it removes again, and writes docs/images/demo.svg and memory_why.svg.
"""

from __future__ import annotations

import asyncio
import io
import re
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

from mia.cli.demo import demo_config, demo_data, introduction, play, prepare, summary, tell
from mia.cli.memory.why import picture
from mia.evals.tasks import read_tasks
from mia.models import build_models

PICTURES = Path(__file__).parents[2] / "docs" / "images"
SHOWN = "solar-03"
ASKED_WHY = "solar-08"
WIDTH = 100


def draw(home: Path) -> dict[str, str]:
    """File names and pictures."""
    data = demo_data()
    prepare(home, data)
    config = demo_config(home, data)
    tasks = read_tasks(data / "questions.jsonl")
    played = asyncio.run(play(config, tasks, build_models(config.models), lambda number, played: None))
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True, highlight=False)
    console.print(next(introduction(data)))
    for number, (episode, memories) in enumerate(played, start=1):
        if episode.question.id == SHOWN:
            for row in tell(number, episode, memories):
                console.print(row)
    console.print(Text("\n    …", style="dim"))
    console.print(summary(played))
    (asked,) = (episode for episode, _ in played if episode.question.id == ASKED_WHY)
    why = Console(record=True, width=WIDTH + 10, file=io.StringIO(), force_terminal=True, highlight=False)
    for row in picture(asked):
        why.print(row)
    return {
        "demo.svg": as_svg(console, "mia demo", "demo"),
        "memory_why.svg": as_svg(why, "mia memory why", "why"),
    }


def as_svg(console: Console, title: str, id: str) -> str:
    picture = console.export_svg(title=title, unique_id=id)
    # Whoever looks at it is to load nothing from elsewhere: the font is the viewer's own. Some renderers drop leading
    # spaces unless told not to.
    picture = re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL)
    return picture.replace("<text ", '<text xml:space="preserve" ')


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        PICTURES.mkdir(parents=True, exist_ok=True)
        for name, picture in draw(Path(folder)).items():
            (PICTURES / name).write_text(picture, encoding="utf-8")
