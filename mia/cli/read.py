"""`mia read`: questions to texts of any length."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mia.cli import options, output

if TYPE_CHECKING:
    from mia.config import Config
    from mia.models.base import ChatModel
    from mia.reader.read import Reader, Reading
    from mia.reader.texts import TextSource
    from mia.reader.trace import OnTold, Told
    from mia.types import Question

NOTE_SECONDS = 30.0
"""How often a reading without a terminal says where it stands."""
FOLDER = "reader"
"""In the home: where it is kept how far readings have come."""
_KEPT = "What was read is kept; the same command with --resume goes on."
_NOTHING_KEPT = "No chunk was read to its end, so that nothing is kept; the same command begins anew."


def read(
    context: typer.Context,
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE… [QUESTION]",
            help="Files and folders, - for standard input; the last word is the question unless --question asks it.",
        ),
    ],
    question: Annotated[
        list[str] | None, typer.Option("--question", "-q", help="A question, in quotes. Repeatable.")
    ] = None,
    resume: Annotated[
        bool | None,
        typer.Option("--resume/--anew", help="Go on with a reading that was stopped, or begin it again."),
    ] = None,
    trace: Annotated[
        Path | None, typer.Option(help="Write the memory after each chunk to this file, as JSON Lines.")
    ] = None,
    changes: Annotated[bool, typer.Option("--changes", help="Show what each chunk changed in the memory.")] = False,
    chunk_tokens: Annotated[
        int | None, typer.Option(min=16, help="Tokens that are read at a time.", show_default="5000")
    ] = None,
    memory_tokens: Annotated[
        int | None, typer.Option(min=16, help="Tokens that the memory may have.", show_default="1024")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=0, help="Read so many tokens at most: both ends.", show_default="all")
    ] = None,
    model: options.Model = None,
    base_url: options.BaseUrl = None,
    replay: options.Replay = None,
    record: options.Record = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Only the answer.")] = False,
    json: output.JsonFlag = False,
) -> None:
    """Answer questions from texts of any length, read chunk by chunk in a fixed window.

    Text, Markdown, JSONL, HTML, PDF, and text packed as .gz. The answer alone goes to stdout; what is read, to stderr.
    """
    from mia.cli.embedded import can_read_here, embedded_reader
    from mia.cli.endpoints import advise
    from mia.errors import ConfigError
    from mia.reader.texts import check_exists
    from mia.types import Question, Role

    config = options.shared(context).config(
        {
            "models.reader.model": model,
            "models.reader.base_url": base_url,
            "models.reader.provider": "replay" if replay else None,
            "models.reader.path": str(replay) if replay else None,
            "models.record": str(record) if record else None,
            "reader.chunk_tokens": chunk_tokens,
            "reader.memory_tokens": memory_tokens,
            "reader.max_tokens": max_tokens,
        }
    )
    files, asked = _sort(words, question or ())
    for file in files:  # Before a model is looked for: a mistyped name is found at once.
        check_exists(file)
    questions = list({one.id: one for one in map(Question.of, asked)}.values())
    settings = config.models.of(Role.READER)
    embedded = settings.provider == "local" and not settings.path
    if settings.provider == "openai" and not settings.model:
        embedded = not settings.base_url and can_read_here(questions)
        if not embedded:
            advice = asyncio.run(advise(config, sys.argv[1:]))
            raise ConfigError(
                "no model is named to read with, and the embedded one reads texts of the offline world alone.",
                wanted=f"a model: {advice.says}; or questions as `mia world text` asks them",
                hint=advice.command,
            )
    if embedded:
        if not quiet:
            output.warn("The embedded model reads, which knows the language of the offline world alone.")
        config = embedded_reader(config)
    readings = asyncio.run(
        _read(files, questions, config, resume=resume, trace=trace, changes=changes, quiet=quiet, json=json)
    )
    if any(reading.failure for reading in readings):
        raise typer.Exit(1)


def _sort(words: Sequence[str], questions: Sequence[str]) -> tuple[list[str], list[str]]:
    """Files and questions. Raises ConfigError where one of the two is missing."""
    from mia.errors import ConfigError

    hint = 'mia read book.txt "Who …?", or mia read -q "Who …?" -q "When …?" book.txt notes/'
    if questions:
        return list(words), list(questions)
    *files, last = words
    if last == "-" or (Path(last).exists() and not last.endswith("?")):
        raise ConfigError(f"no question is asked: '{last}' is something to read.", hint=hint)
    if not files:
        raise ConfigError(f"there is nothing to read for the question '{last}'.", wanted="a file, or -", hint=hint)
    return files, [last]


async def _read(
    files: Sequence[str],
    questions: Sequence[Question],
    config: Config,
    *,
    resume: bool | None,
    trace: Path | None,
    changes: bool,
    quiet: bool,
    json: bool,
) -> list[Reading]:
    from mia.models.ledger import Account, Ledger
    from mia.reader.bookmarks import Bookmarks
    from mia.reader.read import Reader
    from mia.reader.texts import TextSource
    from mia.reader.trace import Trace
    from mia.team import budget
    from mia.types import Role

    folder = config.home / FOLDER
    bookmarks = Bookmarks(folder)
    model = _model(config)
    try:
        with ExitStack() as resources:
            reader = Reader(model, config.reader, style=config.models.of(Role.READER).prompts)
            for question in questions:  # Before a long text is looked through.
                reader.check_window(question.text)
            source = resources.enter_context(TextSource.open(files, stdin=sys.stdin.buffer, folder=folder))
            for skipped in source.skipped:
                output.note(f"left out: {skipped.key}: {skipped.reason}")
            going_on = _check_resume(reader, questions, source, bookmarks, resume)
            listeners: list[OnTold] = []
            if trace is not None:
                listeners.append(resources.enter_context(Trace.open(trace, resume=going_on)))
            if not quiet:
                listeners.append(resources.enter_context(_progress(source, questions, changes=changes)))

            def tell(told: Told) -> None:
                for listener in listeners:
                    listener(told)

            run = Account(budget(config.budget.run), "run")
            try:
                readings = await reader.read(
                    questions,
                    source,
                    ledger=lambda question: Ledger(question.id, budget=budget(config.budget.question), run=run),
                    bookmarks=bookmarks,
                    resume=going_on,
                    on_told=tell,
                )
            except asyncio.CancelledError:
                kept = any(bookmarks.get(reader.place(question, source)) for question in questions)
                output.warn(_KEPT if kept else _NOTHING_KEPT)
                raise
    finally:
        await model.close()
    if json:
        output.result_json(_page(readings, source))
    else:
        _show(readings, quiet=quiet)
    return readings


def _model(config: Config) -> ChatModel:
    from mia.models import build_model
    from mia.models.replay import Recorder, RecordingWriter
    from mia.types import Role

    model = build_model(config.models.of(Role.READER), section=Role.READER)
    return Recorder(model, RecordingWriter(Path(config.models.record))) if config.models.record else model


def _check_resume(
    reader: Reader, questions: Sequence[Question], source: TextSource, bookmarks: Any, resume: bool | None
) -> bool:
    """Whether to go on with what was read before. Raises ConfigError where that is there and nobody said."""
    from mia.errors import ConfigError

    found = [at for question in questions if (at := bookmarks.get(reader.place(question, source))) is not None]
    if found and resume is None:
        raise ConfigError(
            f"{max(at.chunk for at in found)} chunks of {source.name} have been read for "
            f"{'this question' if len(questions) == 1 else f'{len(found)} of these questions'} before, and not all.",
            hint="add --resume to go on, or --anew to begin again",
        )
    if resume and not found:
        raise ConfigError(
            f"nothing of {source.name} that this could go on from was read before.",
            wanted="the same text, questions, model, address and settings",
            hint="leave --resume out to begin",
        )
    return bool(found and resume)


@contextmanager
def _progress(source: TextSource, questions: Sequence[Question], *, changes: bool) -> Iterator[OnTold]:
    """A bar on stderr: chunks, tokens, time left; without a terminal, a line now and then."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    from mia.reader.trace import ChunkRead, describe

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[say]}"),
        TimeRemainingColumn(),
    )
    ends: dict[str, int] = {}
    chunks = tokens = 0
    total = source.characters * len(questions)
    begun = noted = time.monotonic()
    first: int | None = None
    with Progress(*columns, console=output.console(), transient=True) as bar:
        shown = bar.add_task("read", total=total, say="")

        def on_told(told: Told) -> None:
            nonlocal chunks, tokens, noted, first
            if not isinstance(told, ChunkRead):
                ends[told.question_id] = source.characters
                bar.update(shown, completed=sum(ends.values()))
                return
            first = first if first is not None else told.start
            ends[told.question_id] = told.end
            chunks, tokens, done = chunks + 1, tokens + told.tokens, sum(ends.values())
            whole = -(-source.characters // max(1, told.end // (told.chunk + 1)))
            say = f"chunk {told.chunk + 1} of about {whole} · {tokens:,} tokens"
            bar.update(shown, completed=done, say=say)
            if changes:
                output.note(describe(told))
            elif not bar.console.is_terminal and time.monotonic() - noted > NOTE_SECONDS:
                noted = time.monotonic()
                left = (noted - begun) * (total - done) / max(1, done - first * len(questions))
                output.note(f"{say} · about {left:.0f} s left")

        yield on_told


def _show(readings: Sequence[Reading], *, quiet: bool) -> None:
    several = len(readings) > 1
    resumable = any(reading.chunks for reading in readings)
    for reading in readings:
        if reading.failure is None:
            output.result(f"{reading.question.text}\n  {reading.answer}" if several else reading.answer)
        else:
            output.warn(f"Not answered{f': {reading.question.text}' if several else ''}: {reading.failure}")
            if reading.chunks:
                kept = f"{output.plural(reading.chunks, 'chunk')} {'is' if reading.chunks == 1 else 'are'} kept"
                output.warn(f"{kept}; the same command with --resume goes on from there.")
            else:
                again = "the same command with --resume begins it" if resumable else "the same command begins anew"
                output.warn(f"No chunk was read to its end, so that nothing is kept; {again}.")
        if quiet:
            continue
        if reading.left_out:
            output.warn(f"{reading.left_out:,} characters of the middle were not read (reader.max_tokens).")
        counts = ((reading.chunks, "chunk"), (reading.tokens, "token"), (reading.usage.calls, "model call"))
        said = [output.plural(count, noun) for count, noun in counts]
        said += [f"${reading.usage.cost:.4f}"] if reading.usage.cost else []
        said += [f"memory cut {output.plural(reading.cut, 'time')}"] if reading.cut else []
        said += [f"no memory written {output.plural(reading.kept, 'time')}"] if reading.kept else []
        output.note(" · ".join(said))


def _page(readings: Sequence[Reading], source: TextSource) -> dict[str, Any]:
    return {
        "text": {
            "name": source.name,
            "digest": source.digest,
            "characters": source.characters,
            "documents": len(source.parts),
            "left_out": [{"document": one.key, "reason": one.reason} for one in source.skipped],
        },
        "readings": [
            {
                "question": reading.question.text,
                "answer": reading.answer if reading.failure is None else None,
                "form": reading.form,
                "memory": reading.memory,
                "chunks": reading.chunks,
                "tokens": reading.tokens,
                "kept": reading.kept,
                "cut": reading.cut,
                "left_out": reading.left_out,
                "usage": reading.usage.model_dump(mode="json"),
                "failure": reading.failure.got if reading.failure is not None else "",
            }
            for reading in readings
        ],
    }
