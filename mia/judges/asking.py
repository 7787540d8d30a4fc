"""How a judge asks its model: once, read strictly, and once more with a reminder if the reply cannot be read.

A reader takes the reply without its thinking and returns what it says, or None where that is not beyond doubt: nothing
here or in a reader guesses. What is judged is data: callers fence it and defuse it before it comes here.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar

from mia.errors import ModelReplyError
from mia.models.base import ChatModel, ChatRequest, estimate_tokens
from mia.models.ledger import Ledger
from mia.prompt import Prompt, defuse, split_thinking
from mia.transcript import TRACE_WORDS, cut_words
from mia.types import Message, Question, Role

REASON_WORDS = 50
"""A reason is cut to this (mia.md, section 4)."""

T = TypeVar("T")
Reader = Callable[[str], T | None]


class StrictAsker:
    """A model as judges ask it. Safe to use concurrently."""

    def __init__(self, model: ChatModel) -> None:
        self._model = model

    async def ask(self, request: str, *, purpose: str, read: Reader[T], reminder: Prompt, ledger: Ledger) -> T:
        """What the model says. Raises ModelError (ModelReplyError for two unreadable replies) and BudgetExceeded."""
        messages: tuple[Message, ...] = (Message(role="user", content=request),)
        for _ in range(2):
            reply = await ledger.complete(
                self._model,
                ChatRequest(
                    messages=messages,
                    role=Role.JUDGE,
                    question_id=ledger.question_id,
                    purpose=purpose,
                ),
            )
            parts = split_thinking(reply.text)
            said = parts[1] if parts else ""
            value = read(said) if said else None
            if value is not None:
                return value
            # Some endpoints refuse an empty turn.
            shown = Message(role="assistant", content=said or "(nothing)")
            messages = (*messages, shown, Message(role="user", content=reminder.text))
        # The reply is not quoted: it may name the reference, and this sentence is stored.
        raise ModelReplyError(f"two replies to '{purpose}' could not be read.", wanted="the form the prompt asks for")

    def fit(self, write: Callable[[int], str]) -> str:
        """A request that fits the model's window: `write` gets the words that an observation may keep."""
        room = self._model.context_window - self._model.max_tokens
        words = TRACE_WORDS
        while True:
            request = write(words)
            if words <= 16 or estimate_tokens((Message(role="user", content=request),)) <= room:
                return request
            words //= 2


# Marks that dress a word up and change nothing about it. No "!", "?", "/" or "~": they may deny or doubt.
_DRESSING = re.compile(r"[\s*_`\"'().:\[\]-]+")


def bare_words(text: str) -> str:
    """The text in lower case with Markdown, quotes, brackets, full stops and white space folded to single spaces."""
    return _DRESSING.sub(" ", text).strip().lower()


def read_labelled(text: str, label: str) -> tuple[str, str] | None:
    """(value, reason) of a reply `<label>: value`, then `Reason: …` on a new line; None for any other form.

    A second line with the label makes it ambiguous. The reason may run over lines; it is folded and cut.
    """
    mark = r"[ \t#*_]*{0}[ \t*_]*:"
    form = re.compile(rf"{mark.format(label)}([^\n]*)\n\s*{mark.format('reason')}(.+)", re.IGNORECASE | re.DOTALL)
    match = form.fullmatch(text)
    if match is None or re.search(rf"^{mark.format(label)}", match[2], re.IGNORECASE | re.MULTILINE):
        return None
    reason = " ".join(match[2].split()).lstrip("*_ ")
    return (match[1].strip(" \t*_`"), cut_words(reason, REASON_WORDS)) if reason else None


def show_question(question: Question) -> str:
    """The question as a prompt shows it: defused, with the caption of its image where it has one."""
    caption = f"\n(It comes with an image that shows: {question.caption})" if question.caption else ""
    return defuse(question.text + caption)
