"""What a tool is: a name, a schema, and a call that turns arguments into an observation.

A tool raises `ToolError` when the world fails it and `BadArguments` when the model called it wrongly; the Executor
makes error observations of both. Tools hold no state of a question: what they need of it is in `ToolContext`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from mia.errors import ToolError
from mia.models.base import ToolSchema
from mia.models.ledger import Ledger
from mia.types import Observation, Question, Step


class BadArguments(ToolError, ValueError):
    """The model called a tool with arguments it does not take; the message tells the model what to write instead."""


@dataclass(frozen=True)
class ToolContext:
    """What a tool may know of the run it is called in."""

    question: Question
    steps: tuple[Step, ...] = ()
    """The steps so far, in both executions, for tools that depend on them (look up, once-only)."""
    ledger: Ledger | None = None
    """What a tool's own calls to a model are counted in, under the question's budget."""


class Tool(Protocol):
    @property
    def schema(self) -> ToolSchema: ...

    async def call(self, arguments: dict[str, Any], context: ToolContext) -> Observation:
        """Raises ToolError or BadArguments."""
        ...

    async def close(self) -> None: ...
