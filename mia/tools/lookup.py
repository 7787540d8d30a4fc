"""`lookup`: the next sentence that holds a term, in what the latest search or fetch brought.

The tool remembers nothing. The passages are those of the last step that brought any (its own steps aside), and the
position is how often the same term has been looked up since.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from mia.models.base import ToolSchema
from mia.tools.base import BadArguments, ToolContext
from mia.types import Observation, Passage, Step

_SENTENCE_END = re.compile(r"(?<=[.!?…])(?<!\b[A-Z]\.)\s+|(?<=[。！？])|\n+")
"""After a full stop, but not after an initial: "J. Smith" is one sentence."""


class LookupTool:
    schema = ToolSchema(
        name="lookup",
        description=(
            "Find the next sentence that contains a term in the passages of your latest search or fetch. "
            "The same term again gives the sentence after that."
        ),
        parameters={
            "type": "object",
            "properties": {"term": {"type": "string", "minLength": 1, "description": "A word or a phrase."}},
            "required": ["term"],
            "additionalProperties": False,
        },
    )

    async def call(self, arguments: dict[str, Any], context: ToolContext) -> Observation:
        """Raises BadArguments."""
        term = arguments.get("term")
        if arguments.keys() != {"term"} or not isinstance(term, str) or not term.strip():
            raise BadArguments(
                'lookup takes "term", a string that is not empty, and nothing else.', hint='{"term": "word or phrase"}'
            )
        term = _fold(term)
        passages, since = _latest_passages(context.steps)
        if not passages:
            return Observation(text="There is nothing to look into yet: search first, then look a term up.")
        hits = [hit for passage in passages for hit in _sentences_with(term, passage)]
        seen = sum(_looked_up(step) == term for step in since)
        if not hits:
            return Observation(text=f"No sentence of the latest results contains '{term}'.")
        if seen >= len(hits):
            return Observation(text=f"No more results for '{term}': there were {len(hits)}.")
        hit = hits[seen]
        head = f"[{hit.id}] {hit.title}".rstrip()
        return Observation(text=f"(Result {seen + 1} / {len(hits)}) {head}\n{hit.text}", passages=(hit,))

    async def close(self) -> None:
        """There is nothing to close."""


def _latest_passages(steps: Sequence[Step]) -> tuple[tuple[Passage, ...], Sequence[Step]]:
    """The passages that a lookup looks into, and the steps since they came."""
    for position in range(len(steps) - 1, -1, -1):
        call, observation = steps[position].tool_call, steps[position].observation
        if (
            call is not None
            and call.name != LookupTool.schema.name
            and observation is not None
            and observation.passages
        ):
            return observation.passages, steps[position + 1 :]
    return (), ()


def _looked_up(step: Step) -> str | None:
    """The term that a step looked up with success."""
    call, observation = step.tool_call, step.observation
    if call is None or call.name != LookupTool.schema.name or observation is None or not observation.ok:
        return None
    return _fold(str(call.arguments["term"]))


def _sentences_with(term: str, passage: Passage) -> Iterator[Passage]:
    for sentence in _SENTENCE_END.split(passage.text):
        if term in _fold(sentence):
            yield passage.evolve(text=sentence.strip())


def _fold(text: str) -> str:
    return " ".join(text.casefold().split())
