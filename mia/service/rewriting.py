"""The last turn of a chat as a question that stands alone: "and where was he born?" names nobody.

The Manager's model writes it, and its reply is read strictly: one question between its tags, or nothing. Nothing here
fails a question: what cannot be rewritten is asked as it stands. What was said before is data: it is fenced, defused,
and folded to one line a turn, so that no turn can pose as another.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mia.errors import MiaError
from mia.models.base import ChatModel, ChatRequest, estimate_tokens
from mia.models.ledger import Ledger
from mia.prompt import Prompt, PromptStyle, defuse, split_thinking
from mia.transcript import cut_words
from mia.types import Message, Role

_PROMPT = Prompt.beside(__file__, "rewriting")

TURNS = 20
"""The last so many turns before the question are shown."""
TURN_WORDS = 200
"""To so many words each of them is cut, or to fewer where the model's window asks for it."""
LONGEST = 2_000
"""Characters of a turn that is rewritten, and of what comes of it; a longer one is asked as it stands."""

_TAG = re.compile(r"</?question>", re.IGNORECASE)
_BETWEEN_TAGS = re.compile(r"<question>(.*)</question>", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True)
class Turn:
    """What was said before the question."""

    role: Literal["user", "assistant"]
    text: str


class Rewriter:
    """Rewrites with one model. A model that is spoken to in the compact style knows no such task."""

    def __init__(self, model: ChatModel, *, style: PromptStyle = "full") -> None:
        self._model = model
        self._able = style == "full"

    async def rewrite(self, before: Sequence[Turn], last: str, ledger: Ledger) -> str | None:
        """The last turn as a question of its own; None: it is to be asked as it stands, for there is nothing before it,
        it is too long, or the model failed or said something else."""
        before = [turn for turn in before if turn.text.strip()][-TURNS:]
        if not self._able or not before or len(last) > LONGEST:
            return None
        request = ChatRequest(
            messages=(Message(role="user", content=self._fitting(before, last)),),
            role=Role.MANAGER,
            question_id=ledger.question_id,
            purpose="rewrite",
        )
        try:
            reply = await ledger.complete(self._model, request)
        except MiaError:
            return None
        return read_question(reply.text)

    def _fitting(self, before: Sequence[Turn], last: str) -> str:
        """The request, with turns cut until it fits the model's window."""
        room = self._model.context_window - self._model.max_tokens
        words = TURN_WORDS
        while True:
            conversation = "\n".join(
                f"{turn.role.capitalize()}: {defuse(cut_words(' '.join(turn.text.split()), words))}" for turn in before
            )
            text = _PROMPT.fill(conversation=conversation, message=defuse(last))
            if words <= 16 or estimate_tokens((Message(role="user", content=text),)) <= room:
                return text
            words //= 2


def read_question(reply: str) -> str | None:
    """The question of a reply that is one question between its tags, and nothing else; None for any other."""
    parts = split_thinking(reply)
    found = _BETWEEN_TAGS.fullmatch(parts[1]) if parts else None
    if found is None or _TAG.search(found[1]):
        return None
    question = " ".join(found[1].split())
    return question if 0 < len(question) <= LONGEST else None
