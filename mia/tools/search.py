"""`search`: a batch of queries to the search engine, whichever it is, and the passages as the model reads them.

The observation groups passages by query; a passage that an earlier query of the batch has already shown is named, and
not printed twice. Whatever the engine, a passage has its bounds; what is longer is cut, says so, and can be cited as
it was shown. A failure of the engine is a `ToolError`, and nothing is cached.
"""

from __future__ import annotations

from typing import Any

from mia.errors import CorpusError, ToolError
from mia.models.base import ToolSchema
from mia.search.base import SearchEngine
from mia.tools.base import BadArguments, ToolContext
from mia.types import Observation, Passage

MAX_QUERIES = 8
MAX_QUERY_CHARACTERS = 400
MAX_PASSAGE_CHARACTERS = 4_000
"""Of the text of one passage; those of our own indexes are shorter."""
MAX_TITLE_CHARACTERS = 500
MAX_ID_CHARACTERS = 2_048
_EXAMPLE = '{"query_list": ["first query", "second query"]}'


class SearchTool:
    """The tool owns its engine: closing the one closes the other."""

    def __init__(self, engine: SearchEngine, k: int = 3) -> None:
        """`k`: passages per query."""
        self.engine = engine
        self.schema = ToolSchema(
            name="search",
            description=f"Search for passages. Give one or more queries; each brings back up to {k} passages.",
            parameters={
                "type": "object",
                "properties": {
                    "query_list": {
                        "type": "array",
                        "items": {"type": "string", "minLength": 1, "maxLength": MAX_QUERY_CHARACTERS},
                        "minItems": 1,
                        "maxItems": MAX_QUERIES,
                        "description": "Queries that are independent of each other.",
                    }
                },
                "required": ["query_list"],
                "additionalProperties": False,
            },
        )
        self._k = k

    async def call(self, arguments: dict[str, Any], context: ToolContext) -> Observation:
        """Raises ToolError or BadArguments."""
        queries = _read_queries(arguments)
        try:
            results = await self.engine.search(queries, self._k)
        except CorpusError as error:
            raise ToolError(error.got, wanted=error.wanted, hint=error.hint) from error
        shown: dict[tuple[str, str], Passage] = {}
        groups: list[str] = []
        for query, found in zip(queries, results, strict=True):
            passages = [_cut(passage) for passage in found[: self._k]]
            lines = [_line(passage, (passage.id, passage.text) in shown) for passage in passages]
            shown |= {(passage.id, passage.text): passage for passage in passages}
            groups.append("\n\n".join([f"Query: {query}", *(lines or ["Nothing was found for this query."])]))
        return Observation(text="\n\n".join(groups), passages=tuple(shown.values()))

    async def close(self) -> None:
        await self.engine.close()


def _read_queries(arguments: dict[str, Any]) -> list[str]:
    queries = arguments.get("query_list")
    if arguments.keys() != {"query_list"} or not isinstance(queries, list) or not queries:
        raise BadArguments('search takes "query_list", a list of queries, and nothing else.', hint=_EXAMPLE)
    if not all(isinstance(query, str) and query.strip() for query in queries):
        raise BadArguments("every query must be a string that is not empty.", hint=_EXAMPLE)
    folded = list(dict.fromkeys(" ".join(query.split()) for query in queries))
    if len(folded) > MAX_QUERIES:
        raise BadArguments(f"{len(folded)} queries are too many; search takes up to {MAX_QUERIES} at once.")
    longest = max(len(query) for query in folded)
    if longest > MAX_QUERY_CHARACTERS:
        raise BadArguments(
            f"a query of {longest} characters is too long; search takes up to {MAX_QUERY_CHARACTERS}. Use key words."
        )
    return folded


def _cut(passage: Passage) -> Passage:
    """The passage within its bounds, with a mark where its text was cut."""
    text = passage.text
    if len(text) > MAX_PASSAGE_CHARACTERS:
        text = f"{text[:MAX_PASSAGE_CHARACTERS]} … [{len(text) - MAX_PASSAGE_CHARACTERS:,} characters cut]"
    return passage.evolve(id=passage.id[:MAX_ID_CHARACTERS], title=passage.title[:MAX_TITLE_CHARACTERS], text=text)


def _line(passage: Passage, shown_before: bool) -> str:
    head = f"[{passage.id}] {passage.title}".rstrip()
    return f"{head}\n(shown above)" if shown_before else f"{head}\n{passage.text}"
