"""What `mia ask` shows where there are documents and no model: passages, as what they are, and how to get an answer."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from mia.cli import output
from mia.cli.embedded import names_documents, names_model
from mia.cli.endpoints import Advice, advise

if TYPE_CHECKING:
    from mia.config import Config
    from mia.search.sentences import Sentence
    from mia.types import Passage

EXIT_STATUS = 1
"""As wherever `mia ask` ends without an answer, so that no script takes a passage for one."""
SAYS = "No model is configured: these are passages, and not an answer."
_FOUND_NOTHING = "No model is configured, and the search found no passage."

_SHOWN_CONTEXT = 240
"""Characters of the text beside the best sentences."""
_SHOWN_SENTENCE = 600
_INDENT = 3


@dataclass(frozen=True)
class _Found:
    """What was found; `sentences` are those of each passage."""

    passages: tuple[Passage, ...]
    sentences: tuple[tuple[Sentence, ...], ...]
    notice: str
    """Where the search is less than it could be."""


def shows_passages(config: Config) -> bool:
    """Whether there is something to search in and no model to answer from it."""
    return names_documents(config) and not names_model(config)


def show_passages(question: str, config: Config, typed: Sequence[str], *, quiet: bool, json: bool) -> None:
    """Search for the words of the question; passages to stdout, all else to stderr.

    `typed`: the words after the program's name. Raises CorpusError, ToolError, ConfigError.
    """
    found = _search(question, config)
    if json:
        output.result_json(_page(question, found, asyncio.run(advise(config, typed))))
        return
    output.warn(SAYS if found.passages else _FOUND_NOTHING)
    _print(found)
    if quiet:
        return
    if found.notice:
        output.note(found.notice)
    # After the passages: whoever reads them does not wait for servers that hang.
    advice = asyncio.run(advise(config, typed))
    output.note(f"For an answer, {advice.says}:")
    output.note(f"  {advice.command}")


def _search(question: str, config: Config) -> _Found:
    from mia.search.sentences import mark_sentences
    from mia.tools.search import MAX_QUERY_CHARACTERS

    query = " ".join(question.split())[:MAX_QUERY_CHARACTERS]
    if config.search.engine == "corpus":
        passages, notice = _search_documents(query, config)
    else:
        passages, notice = asyncio.run(_search_elsewhere(query, config)), ""
    return _Found(tuple(passages), tuple(mark_sentences(question, passages)), notice)


def _search_documents(query: str, config: Config) -> tuple[list[Passage], str]:
    from mia.cli.index import announce_first_use, showing_progress
    from mia.search.corpus import open_configured

    announce_first_use(config)
    with showing_progress() as on_progress:
        index = open_configured(config, on_progress=on_progress)
    (passages,) = asyncio.run(index.search([query], config.search.k))
    return passages, index.notice


async def _search_elsewhere(query: str, config: Config) -> list[Passage]:
    from mia.search.web import build_remote_engine

    engine = build_remote_engine(config.search)
    try:
        (passages,) = await engine.search([query], config.search.k)
        return passages
    finally:
        await engine.close()


# ── for programs ──


def _page(question: str, found: _Found, advice: Advice) -> dict[str, Any]:
    return {
        "kind": "passages",
        "question": question,
        "answer": None,
        "says": SAYS if found.passages else _FOUND_NOTHING,
        "notice": found.notice,
        "passages": [
            {
                **passage.model_dump(mode="json"),
                "best_sentences": [
                    {"text": sentence.text, "score": sentence.score} for sentence in sentences if sentence.best
                ],
            }
            for passage, sentences in zip(found.passages, found.sentences, strict=True)
        ],
        "for_an_answer": asdict(advice),
    }


# ── for people ──


def _print(found: _Found) -> None:
    for rank, (passage, sentences) in enumerate(zip(found.passages, found.sentences, strict=True), start=1):
        if rank > 1:
            output.result("")
        output.result(f"{rank}. {passage.title or passage.id}")
        where = passage.id if passage.source in ("", passage.id) else f"{passage.id} · {passage.source}"
        output.result(f"{'':{_INDENT}}{where}")
        _print_marked(list(_pieces(sentences)))


def _print_marked(pieces: Sequence[tuple[bool, str]]) -> None:
    """Pieces of a passage in their order, the best sentences behind a ">", on a terminal also bold."""
    console = output.result_console()
    if not console.is_terminal:
        for best, text in pieces:
            output.result(f"{'':{_INDENT}}{'>' if best else ' '} {text}")
        return
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_column(width=_INDENT + 1, justify="right")
    table.add_column()
    for best, text in pieces:
        table.add_row(">" if best else "", Text(output.visible(text), style="bold" if best else ""))
    console.print(table)


def _pieces(sentences: Sequence[Sentence]) -> Iterator[tuple[bool, str]]:
    """The best sentences one by one, and what stands between them, cut to what touches them."""
    runs = [(best, list(run)) for best, run in groupby(sentences, key=lambda sentence: sentence.best)]
    for place, (best, run) in enumerate(runs):
        if best:
            yield from ((True, _cut_end(sentence.text, _SHOWN_SENTENCE)) for sentence in run)
            continue
        text = " ".join(sentence.text for sentence in run)
        if place == 0 and len(runs) > 1:
            yield False, _cut_start(text, _SHOWN_CONTEXT)
        else:
            yield False, _cut_end(text, _SHOWN_CONTEXT)


def _cut_end(text: str, longest: int) -> str:
    """The text's beginning, cut between words where it has any."""
    return text if len(text) <= longest else f"{text[:longest].rsplit(' ', 1)[0]} …"


def _cut_start(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"… {text[-longest:].split(' ', 1)[-1]}"
