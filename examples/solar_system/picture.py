"""Draws the picture of the demonstration for the README: one question that is replanned, and the table at the end.

    python examples/solar_system/picture.py

plays the demonstration in a folder that it removes again, and writes docs/images/demo.svg.
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
from mia.evals.tasks import read_tasks
from mia.models import build_models

PICTURE = Path(__file__).parents[2] / "docs" / "images" / "demo.svg"
SHOWN = "solar-03"
WIDTH = 100


def draw(home: Path) -> str:
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
    picture = console.export_svg(title="mia demo", unique_id="demo")
    # Whoever looks at it is to load nothing from elsewhere: the font is the viewer's own. Some renderers drop leading
    # spaces unless told not to.
    picture = re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL)
    return picture.replace("<text ", '<text xml:space="preserve" ')


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        PICTURE.parent.mkdir(parents=True, exist_ok=True)
        PICTURE.write_text(draw(Path(folder)), encoding="utf-8")
