"""What the reader of long texts learns from before it learns by itself: a teacher reads texts of training worlds.

Nothing here writes a prompt: the reader itself asks the teacher, in the compact style and with the chunks and the
memory that the embedded model is served with, and what it asked is kept. Each chunk, and the answer, is a dialogue.
"""

from __future__ import annotations

import asyncio
import random

from mia.config import ReaderSettings
from mia.learn.reading import MOST_CHUNKS, text_tokens
from mia.learn.warmup.dialogues import STYLE, Dialogue, Recorder
from mia.reader.chunks import TokenCounter
from mia.reader.read import Reader
from mia.reader.texts import TextSource
from mia.types import Question
from mia.world.facts import World
from mia.world.longtexts import MOST_FACTS, make_text
from mia.world.teacher import Teacher


def readings(
    world: World, settings: ReaderSettings, counter: TokenCounter, *, texts: int, seed: int = 0
) -> list[Dialogue]:
    """The dialogues of so many texts of a world, of 1 to `MOST_CHUNKS` chunks, in which a question asks for 1 or 2
    facts; the same arguments give the same dialogues."""
    chance = random.Random(f"readings {world.seed} {world.shifted} {seed}")
    recorder = Recorder(Teacher(chance))
    reader = Reader(recorder, settings, style=STYLE, counter=counter)

    async def read_all() -> None:
        for number in range(texts):
            chunks, facts = chance.randint(1, MOST_CHUNKS), chance.randint(1, MOST_FACTS)
            made = make_text(world, number, text_tokens(chunks, settings), counter.count, facts=facts)
            with TextSource.of(made.text) as source:
                await reader.read([Question(id=made.id, text=made.question)], source)

    asyncio.run(read_all())
    return recorder.dialogues
