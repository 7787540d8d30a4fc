"""`mia search`: what a query finds in an index, and why."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from mia.cli import options, output
from mia.cli.index import announce_first_use, showing_progress

if TYPE_CHECKING:
    from mia.types import Passage

_SHOWN_CHARACTERS = 400


def search(
    context: typer.Context,
    query: Annotated[str, typer.Argument(help="Words; nothing in it is query syntax.")],
    k: Annotated[int, typer.Option("-k", min=1, max=1000, help="How many passages.")] = 5,
    corpus: options.Corpus = None,
    index: options.Index = None,
    json: output.JsonFlag = False,
) -> None:
    """Search documents, as the agent's search tool does."""
    from mia.search.corpus import open_configured

    paths = tuple(str(path) for path in corpus) if corpus else None
    config = options.shared(context).config({"search.corpus": paths, "search.index": str(index) if index else None})
    announce_first_use(config)
    with showing_progress() as on_progress:
        opened = open_configured(config, on_progress=on_progress)
    (found,) = asyncio.run(opened.search([query], k))
    if opened.notice:
        output.note(opened.notice)
    if json:
        output.result_json({"query": query, "notice": opened.notice, "hits": [hit.model_dump() for hit in found]})
    elif found:
        output.result("\n\n".join(_show(rank, hit) for rank, hit in enumerate(found, start=1)))
    else:
        output.note("Nothing found.")


def _show(rank: int, hit: Passage) -> str:
    text = " ".join(hit.text.split())
    cut = text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS].rsplit(" ", 1)[0] + " …"
    return f"{rank}. {hit.title or hit.id}\n   {hit.id} · {hit.source} · {_score(hit)}\n   {cut}"


def _score(hit: Passage) -> str:
    """The fused score, and where each side ranked the passage."""
    sides = [
        f"{said} {hit.parts[f'{side}_rank']:.0f} ({hit.parts[f'{side}_score']:.2f})"
        for side, said in (("lexical", "words"), ("vector", "vectors"))
        if f"{side}_rank" in hit.parts
    ]
    return f"score {hit.score:.4f}: {', '.join(sides)}"
