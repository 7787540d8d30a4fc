"""`mia index`: make the index of some documents, or bring it up to date."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mia.cli import options, output

if TYPE_CHECKING:
    from mia.config import Config
    from mia.embeddings.base import Embedder
    from mia.search.indexing import IndexReport, OnProgress, Progress, VectorReport

_SHOWN = 20


def index(
    context: typer.Context,
    paths: Annotated[
        list[Path], typer.Argument(metavar="PATH…", help="Files and folders: JSONL, text, Markdown, HTML, PDF.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The index's folder.", show_default="one in --home")
    ] = None,
    vectors: Annotated[
        Literal["auto", "static", "minilm", "openai", "off"] | None,
        typer.Option(help="What makes the vectors that are fused with the words.", show_default="auto"),
    ] = None,
    json: output.JsonFlag = False,
) -> None:
    """Index documents. Run again, it reads only what changed.

    Searching by words works as soon as the passages are in, while the vectors are still being made. Ctrl-C keeps what
    is done; the next call goes on from there.
    """
    from mia.embeddings import corpus_embedder
    from mia.search.corpus import index_folder
    from mia.search.indexing import make_vectors, update_index

    config = options.shared(context).config({"search.vectors": vectors})
    folder = out or index_folder(paths, config.home)
    embedder = corpus_embedder(config)
    made: VectorReport | None = None
    with showing_progress() as on_progress:
        report = update_index(folder, paths, on_progress=on_progress)
        _say_passages(report)
        if embedder is not None:
            announce(embedder)
            try:
                made = make_vectors(folder, embedder, on_progress=on_progress)
            except KeyboardInterrupt:
                output.warn("Stopped. The vectors made so far are kept; run the same command again to go on.")
                raise
    if json:
        page = {"index": str(folder), **asdict(report), "vectors": asdict(made) if made else None}
        output.result_json(page)
        return
    if made:
        output.note(f"vectors   {made.made:,} made, {made.present:,} of {made.total:,} there  {made.seconds:.1f} s")
    output.result(str(folder))


@contextlib.contextmanager
def showing_progress() -> Iterator[OnProgress]:
    """A bar on stderr for what takes a while, with the time left where it is known."""
    from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    # The extractors log every oddity of every page; what matters of it is among the reasons for skipping a file.
    for name in ("pypdf", "trafilatura", "htmldate"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    columns = (TextColumn("{task.description:9}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, console=output.console(), transient=True, disable=not output.console().is_terminal) as bar:
        tasks: dict[str, TaskID] = {}

        def on_progress(progress: Progress) -> None:
            if progress.stage not in tasks:
                tasks[progress.stage] = bar.add_task(progress.stage, total=progress.total)
            bar.update(tasks[progress.stage], completed=progress.done, total=progress.total)

        yield on_progress


def announce(embedder: Embedder) -> None:
    """Say so where the embedder has to be made first."""
    if not getattr(embedder, "ready", True):
        output.note("Distilling static vectors from MiniLM, once on this machine: about half a minute…")


def announce_first_use(config: Config) -> None:
    """Say so where a first question has to wait for vectors to be made."""
    from mia.embeddings import corpus_embedder

    if config.search.engine == "corpus" and config.search.corpus:
        embedder = corpus_embedder(config)
        if embedder is not None:
            announce(embedder)


def _say_passages(report: IndexReport) -> None:
    for skipped in report.skipped[:_SHOWN]:
        output.warn(f"skipped   {skipped.key}: {skipped.reason}")
    if len(report.skipped) > _SHOWN:
        output.warn(f"skipped   {len(report.skipped) - _SHOWN:,} more (--json lists them)")
    changes = f"{report.added:,} added, {report.removed:,} removed" if report.added or report.removed else "no change"
    output.note(
        f"passages  {report.passages:,} from {report.files:,} files ({changes})  {report.seconds:.1f} s; "
        "searching by words works now"
    )
