"""Draws the pictures of the documentation: two questions of the demonstration and the table at its end, one recorded
question that is replanned, and what `mia memory why` says of another.

    python examples/pictures.py                  # all of them; the demonstration takes a minute or two
    python examples/pictures.py demo memory_why  # those of the recording, in seconds

plays the demonstrations in a folder that it removes again, and writes docs/images/demo_world.svg, demo.svg and
memory_why.svg.
"""

from __future__ import annotations

import asyncio
import io
import re
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from rich.console import Console, RenderableType
from rich.text import Text

from mia.cli.demo import recorded, world
from mia.cli.demo.telling import tell, tell_question
from mia.cli.demo.watching import Played
from mia.cli.memory.why import picture
from mia.evals.tasks import read_tasks
from mia.models import build_models

PICTURES = Path(__file__).parents[1] / "docs" / "images"
SHOWN_RECORDED = "solar-03"
ASKED_WHY = "solar-08"
WIDTH = 100
_MORE = Text("\n    …", style="dim")


def draw_demo_world(home: Path) -> str:
    """The introduction, the first question that was replanned with memories in sight, and the table.

    Which question that is depends on the model; the first one where there is none.
    """
    config = world.prepare(home)
    shown = asyncio.run(world.demonstrate_with(build_models(config.models), config, world.FULL_SIZE, pause=0.0))
    workflows = {memory.id: memory.workflow for one in shown.watched for memory in one.memories}
    number = next((place for place, one in enumerate(shown.watched) if _is_telling(one)), 0)
    one = shown.watched[number]
    rows = [
        next(world.introduction()),
        *tell_question(number + 1, one.episode.question.text),
        *tell(one, workflows),
        _MORE,
        world.table(shown.rows),
    ]
    return as_svg(rows, "mia demo", "demo_world")


def _is_telling(one: Played) -> bool:
    return len(one.episode.attempts) > 1 and one.episode.recall is not None and bool(one.episode.recall.shown)


def draw_demo(home: Path) -> str:
    """One question of the recording, and its table."""
    played = _play_recorded(home)
    rows: list[RenderableType] = [next(recorded.introduction(recorded.demo_data()))]
    for number, one in enumerate(played, start=1):
        if one.episode.question.id == SHOWN_RECORDED:
            rows += [*tell_question(number, one.episode.question.text), *tell(one)]
    return as_svg([*rows, _MORE, recorded.summary(played)], "mia demo --recorded", "demo")


def draw_memory_why(home: Path) -> str:
    (asked,) = (one.episode for one in _play_recorded(home) if one.episode.question.id == ASKED_WHY)
    return as_svg(picture(asked), "mia memory why", "why", width=WIDTH + 10)


def _play_recorded(home: Path) -> list[Played]:
    data = recorded.demo_data()
    config = recorded.prepare(home, data)
    tasks = read_tasks(data / "questions.jsonl")
    return asyncio.run(recorded.play(config, tasks, build_models(config.models), lambda number, played: None))


def as_svg(rows: Iterable[RenderableType], title: str, id: str, *, width: int = WIDTH) -> str:
    console = Console(record=True, width=width, file=io.StringIO(), force_terminal=True, highlight=False)
    for row in rows:
        console.print(row)
    drawn = console.export_svg(title=title, unique_id=id)
    # Whoever looks at it is to load nothing from elsewhere: the font is the viewer's own. Some renderers drop leading
    # spaces unless told not to.
    drawn = re.sub(r"@font-face \{.*?\}\s*", "", drawn, flags=re.DOTALL)
    return drawn.replace("<text ", '<text xml:space="preserve" ')


DRAWN: dict[str, Callable[[Path], str]] = {
    "demo_world": draw_demo_world,
    "demo": draw_demo,
    "memory_why": draw_memory_why,
}

if __name__ == "__main__":
    PICTURES.mkdir(parents=True, exist_ok=True)
    for name in sys.argv[1:] or DRAWN:
        with tempfile.TemporaryDirectory() as folder:
            (PICTURES / f"{name}.svg").write_text(DRAWN[name](Path(folder)), encoding="utf-8")
