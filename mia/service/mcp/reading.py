"""What an agent can do with the reader: have a text of any length read for one question."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from pydantic import StringConstraints

from mia.models.ledger import Ledger
from mia.reader.read import Reader
from mia.reader.texts import TextSource
from mia.reader.trace import ChunkRead
from mia.service.mcp.tools import AgentTool, Caller
from mia.service.schemas import Body, Reply, Text
from mia.team import budget
from mia.types import Question, Role, Usage


class ReadDocument(Body):
    text: Annotated[str, StringConstraints(min_length=1)]
    """All of the document; what a request may hold (serve.max_body_mb) is the only limit."""
    question: Text
    """What you want to know from it."""


class DocumentRead(Reply):
    answer: str
    """Empty: the text does not say."""
    notes: str
    """What was noted of the text, for this question."""
    chunks: int
    tokens: int
    """Of the text, as it was read."""
    left_out: int
    """Characters of the text that were not read (reader.max_tokens)."""
    usage: Usage


async def read_document(caller: Caller, asked: ReadDocument) -> DocumentRead:
    """Raises RecordError, ConfigError (a window that is too small), ModelError, BudgetExceeded."""
    config = caller.service.config
    reader = Reader(caller.service.models.of(Role.READER), config.reader, style=config.models.of(Role.READER).prompts)
    told: asyncio.Queue[ChunkRead | None] = asyncio.Queue()

    def note(event: Any) -> None:
        if isinstance(event, ChunkRead):
            told.put_nowait(event)

    source = await asyncio.to_thread(TextSource.of, asked.text)
    work = asyncio.create_task(
        reader.read(
            [Question.of(asked.question)],
            source,
            ledger=lambda question: Ledger(question.id, budget=budget(config.budget.question)),
            on_told=note,
        )
    )
    work.add_done_callback(lambda _: told.put_nowait(None))
    try:
        while (event := await told.get()) is not None:
            read = f"{event.start + event.characters:,} of {event.of_characters:,} characters"
            await caller.progress(event.chunk + 1, f"chunk {event.chunk + 1}: {read}")
        (reading,) = await work
    finally:
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
    if reading.failure is not None:
        raise reading.failure
    return DocumentRead(
        answer=reading.answer,
        notes=reading.memory,
        chunks=reading.chunks,
        tokens=reading.tokens,
        left_out=reading.left_out,
        usage=reading.usage,
    )


READ_DOCUMENT = AgentTool(
    "read_document",
    "Read a long document",
    "Have a text of any length read from end to end for one question, chunk by chunk in a fixed window, and get the "
    "answer with the notes it was drawn from. Takes seconds for each few thousand words.",
    ReadDocument,
    DocumentRead,
    read_document,
    changes=False,
)
