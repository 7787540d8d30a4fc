"""The teacher's readings are the reader's own requests, with what a perfect reader writes; and never repeat."""

from __future__ import annotations

from mia.config import ReaderSettings
from mia.learn.reading import MOST_CHUNKS
from mia.learn.warmup.dialogues import Dialogue
from mia.learn.warmup.readings import readings
from mia.reader.chunks import EstimatedTokens
from mia.reader.read import NO_MEMORY, PROMPTS
from mia.types import Role
from mia.world import preset
from mia.world.facts import World

SETTINGS = ReaderSettings(**preset.READER)


def made(seed: int, texts: int = 4) -> list[Dialogue]:
    return readings(World.make(seed), SETTINGS, EstimatedTokens(), texts=texts)


def said(dialogue: Dialogue) -> tuple[str, str]:
    asked, answered = (turn.message.content for turn in dialogue.turns)
    return asked, answered


def test_each_chunk_and_each_answer_is_a_dialogue_of_the_readers_own_prompts() -> None:
    dialogues = made(1)
    styled = PROMPTS.styled("compact")
    for dialogue in dialogues:
        assert dialogue.role is Role.READER
        assert [turn.learned for turn in dialogue.turns] == [False, True]
    answers = [one for one in dialogues if said(one)[0].startswith(styled.answer.text.partition("{")[0])]
    assert len(answers) == 4
    assert all(said(one)[1].startswith("\\boxed{") for one in answers)
    updates = [one for one in dialogues if one not in answers]
    assert all(said(one)[0].startswith(styled.update.text.partition("{")[0]) for one in updates)
    assert 4 <= len(updates) <= 4 * (MOST_CHUNKS + 2)


def test_what_the_teacher_wrote_is_the_memory_of_the_next_chunk() -> None:
    memory = ""
    for dialogue in made(2):
        asked, answered = said(dialogue)
        assert (memory or NO_MEMORY) in asked
        memory = "" if answered.startswith("\\boxed{") else answered


def test_the_teacher_answers_what_every_question_asks_for() -> None:
    answers = [said(one)[1] for one in made(3) if said(one)[1].startswith("\\boxed{")]
    assert not any("unknown" in answer for answer in answers)


def test_the_same_world_gives_the_same_dialogues_and_another_others() -> None:
    assert made(4) == made(4)
    assert made(4) != made(5)
