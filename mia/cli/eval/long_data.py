"""`mia eval long-data`: training samples for the reader, from a user's questions."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mia.cli import options, output
from mia.cli.eval import options as own

if TYPE_CHECKING:
    from mia.config import Config
    from mia.evals.longdata import Built
    from mia.evals.ruler.documents import Corpus


def long_data(
    context: typer.Context,
    questions: own.QuestionsFile,
    out: Annotated[Path, typer.Argument(help="The JSON Lines file to write; one that holds a part goes on.")],
    documents: Annotated[int, typer.Option(min=1, help="In each sample.")] = 200,
    without: Annotated[
        list[str] | None,
        typer.Option(help="Leave out what this model answers without the text. Repeatable.", show_default="keep all"),
    ] = None,
    tries: Annotated[int, typer.Option(min=1, help="Of each of these models.")] = 2,
    limit: Annotated[int | None, typer.Option(min=1, help="Samples to keep, at most.")] = None,
    seed: Annotated[int, typer.Option(help="Of the choice and order of documents.")] = 0,
    pool: own.Pool = None,
    concurrency: own.Concurrency = None,
    base_url: options.BaseUrl = None,
    json: output.JsonFlag = False,
) -> None:
    """Mix each question's documents with others, and leave out questions that need no text (MemAgent, 2507.02259)."""
    from mia.evals.ruler.documents import read_corpus

    config = options.shared(context).config(own.model_flags(None, base_url, None, None, concurrency))
    corpus = read_corpus(questions, pool)
    built = asyncio.run(
        _build(config, corpus, out, documents=documents, without=without or [], tries=tries, limit=limit, seed=seed)
    )
    if json:
        output.result_json({"file": str(out), "kept": built.kept, "answered_without_text": built.known})
    else:
        output.result(f"{built.kept:,} samples kept, {built.known:,} left out: {out}")


async def _build(
    config: Config,
    corpus: Corpus,
    out: Path,
    *,
    documents: int,
    without: list[str],
    tries: int,
    limit: int | None,
    seed: int,
) -> Built:
    from mia.evals.longdata import Filter, build
    from mia.models import build_model
    from mia.types import Role

    settings = config.models.of(Role.READER)
    models = [build_model(settings.model_copy(update={"model": name}), section="reader") for name in without]
    try:
        return await build(
            corpus,
            out,
            documents=documents,
            seed=seed,
            only=Filter(models, tries) if models else None,
            limit=limit,
            concurrency=config.run.concurrency,
        )
    finally:
        for model in models:
            await model.close()
