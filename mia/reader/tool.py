"""The reader as a tool of the Executor: `read` for a page or a document of the corpus, and long pages behind `fetch`.

What comes back are notes that a model wrote of a text from anywhere: they say so, and can be cited as notes. Calls to
the model are counted in the ledger of the question, under the reader's role: so a budget bounds them, and a rollout of
the Executor does not hold them (a recording model records one role). A tool reads at most `reader.tool_tokens` of a
text.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mia.config import Config
from mia.errors import ConfigError, CorpusError, MiaError, RecordError, ToolError
from mia.models.base import ChatModel, ToolSchema
from mia.models.ledger import Ledger
from mia.prompt import defuse
from mia.reader.read import Reader, Reading
from mia.reader.texts import TextSource
from mia.search.documents import find_files, find_row
from mia.tools.base import BadArguments, Tool, ToolContext
from mia.tools.fetch import FetchTool
from mia.types import Observation, Passage, Question, Role

_EXAMPLE = '{"source": "https://… or the id of a document", "question": "…"}'
_MAX_QUESTION_CHARACTERS = 1_000


def build_reading_tools(config: Config, model: ChatModel) -> dict[str, Tool]:
    """Those of `executor.tools` that read: `read`, and `fetch` where `reader.pages` is on and the model's window
    allows it. Raises ConfigError where `read` is wanted and the window is too small."""
    settings = config.reader.model_copy(update={"max_tokens": config.reader.tool_tokens})
    reader = Reader(model, settings, style=config.models.of(Role.READER).prompts)
    tools: dict[str, Tool] = {}
    if "read" in config.executor.tools:
        reader.check_window()
        tools["read"] = ReadTool(reader, FetchTool(), config.search.corpus)
    if "fetch" in config.executor.tools and config.reader.pages and _has_room(reader):
        tools["fetch"] = ReadingFetchTool(FetchTool(), reader)
    return tools


class ReadTool:
    """Reads one source for one question. It owns its `fetch`: closing the one closes the other."""

    schema = ToolSchema(
        name="read",
        description=(
            "Read all of one web page or document, however long, for one question, and get notes and an answer. "
            "Slow: search first, then read what is worth it."
        ),
        parameters={
            "type": "object",
            "properties": {
                "source": {
                    "type": "string",
                    "minLength": 1,
                    "description": "A URL, or the id of a passage whose whole document is to be read.",
                },
                "question": {"type": "string", "minLength": 1, "description": "What you want to know from it."},
            },
            "required": ["source", "question"],
            "additionalProperties": False,
        },
    )

    def __init__(self, reader: Reader, pages: FetchTool, corpus: Sequence[str | Path] = ()) -> None:
        """`corpus`: the files and folders whose documents can be read."""
        self._reader = reader
        self._pages = pages
        self._corpus = tuple(corpus)

    async def call(self, arguments: dict[str, Any], context: ToolContext) -> Observation:
        """Raises ToolError or BadArguments, and what the reader's model and budget raise."""
        source, question = _read_arguments(arguments)
        if source.lower().startswith(("http://", "https://")):
            fetched = await self._pages.page(source)
            page = fetched.page
            text = _Text(page.title, fetched.address, lambda: TextSource.of(page.text, fetched.address), page.whole)
        else:
            text = await asyncio.to_thread(self._document, source)
        reading = await _read(self._reader, text.open, question, context)
        return _observation(reading, text.title, text.address, whole=text.whole)

    async def close(self) -> None:
        await self._pages.close()

    def _document(self, source: str) -> _Text:
        """A file, or a row of one, by its id or that of a passage of it. Raises ToolError."""
        if not self._corpus:
            raise ToolError(f"'{source}' is no URL, and there are no documents to read by their ids.")
        try:
            files, _ = find_files(self._corpus)
        except CorpusError as error:
            raise ToolError(error.got) from error
        wanted = source.strip()
        # A name may hold a "#" itself; so the whole of it first.
        keys = [key for key in (wanted, wanted.rpartition("#")[0]) if key]
        for key in keys:
            for file in files:
                if file.key == key:
                    return _Text(file.path.name, key, partial(TextSource.open, [file.path]))
        for key in keys:
            if (row := find_row(files, key)) is not None:
                return _Text(row.title or key, key, partial(TextSource.of, row.text, key))
        raise ToolError(
            f"there is no document '{source}'.",
            wanted='a URL, the id of a row of JSONL, or what stands before the "#" of a passage',
        )


@dataclass(frozen=True)
class _Text:
    """What is to be read."""

    title: str
    address: str
    open: Callable[[], TextSource]
    whole: bool = True
    """Whether nothing of it was cut before."""


class ReadingFetchTool:
    """`fetch` that reads a long page for the question of the task, where it would otherwise be cut. Where the reading
    fails, the page is cut as before, and that is said."""

    def __init__(self, fetch: FetchTool, reader: Reader) -> None:
        self.schema = fetch.schema
        self._fetch = fetch
        self._reader = reader

    async def call(self, arguments: dict[str, Any], context: ToolContext) -> Observation:
        """Raises ToolError or BadArguments."""
        url = arguments.get("url")
        if arguments.keys() != {"url"} or not isinstance(url, str) or not url.strip():
            return await self._fetch.call(arguments, context)
        fetched = await self._fetch.page(url)
        if self._fetch.fits(fetched):
            return self._fetch.observe(fetched)
        page = fetched.page
        try:
            reading = await _read(
                self._reader, lambda: TextSource.of(page.text, fetched.address), context.question, context
            )
        except MiaError as error:
            cut = self._fetch.observe(fetched)
            return cut.evolve(text=f"{cut.text}\n\n[It could not be read whole: {error.got}]")
        return _observation(reading, page.title, fetched.address, whole=page.whole)

    async def close(self) -> None:
        await self._fetch.close()


async def _read(reader: Reader, make: Callable[[], TextSource], question: Question, context: ToolContext) -> Reading:
    """Raises ToolError for a text that cannot be read, and the failure of the reading."""
    ledger = context.ledger or Ledger(context.question.id)
    try:
        source = await asyncio.to_thread(make)
    except RecordError as error:
        raise ToolError(error.got, wanted=error.wanted) from error
    with source:
        (reading,) = await reader.read([question], source, ledger=lambda question: ledger)
    if reading.failure is not None:
        raise reading.failure
    return reading


def _read_arguments(arguments: dict[str, Any]) -> tuple[str, Question]:
    source, question = arguments.get("source"), arguments.get("question")
    if (
        arguments.keys() != {"source", "question"}
        or not (isinstance(source, str) and source.strip())
        or not (isinstance(question, str) and question.strip())
    ):
        raise BadArguments('read takes "source" and "question", two strings, and nothing else.', hint=_EXAMPLE)
    if len(question) > _MAX_QUESTION_CHARACTERS:
        raise BadArguments(f"a question of {len(question)} characters is too long for read; ask one thing.")
    return source.strip(), Question.of(question)


def _observation(reading: Reading, title: str, address: str, *, whole: bool) -> Observation:
    # Made harmless here already, so that what is cited stands letter for letter in what is shown.
    notes = defuse(reading.memory) or "(nothing of use was found)"
    passage = Passage(id=f"{address}#read", title=title, text=notes, source=address)
    pages = f"{reading.chunks} part{'s' if reading.chunks > 1 else ''}, {reading.tokens:,} tokens"
    parts = [
        f"{title}\n{address}".lstrip(),
        f"[Read for the question “{' '.join(reading.question.text.split())}”: {pages}. What follows are a reader's "
        "notes, not the text itself.]",
        f"[{passage.id}]\n{notes}",
        f"The reader's answer: {reading.answer}",
    ]
    if reading.left_out or not whole:
        left_out = f"{reading.left_out:,} characters of its middle" if reading.left_out else "its end"
        parts.append(f"[The text is longer: {left_out} was not read.]")
    return Observation(text="\n\n".join(parts), passages=(passage,))


def _has_room(reader: Reader) -> bool:
    try:
        reader.check_window()
    except ConfigError:
        return False
    return True
