"""Read a text of any length for one or many questions, in a fixed window (MemAgent, arXiv 2507.02259, section 2).

    memory = "nothing yet"
    for chunk in text:   memory = model(question, memory, chunk)     each a fresh conversation of one turn
    answer = model(question, memory)                                 and another

Always true: no conversation holds more than prompt, memory, chunk and reply, which is checked against the window before
the first chunk; a memory has at most `memory_tokens`, and where a model writes more, its end is cut with a mark; where
it writes nothing, the memory stays. Thinking is kept out of memory and answer. What comes from the text, and from the
memory that was written of it, stands between tags that it cannot close.

Many questions share one pass over the text, each at its own pace. The answer is what stands in the last `\\boxed{…}`,
else behind the last "the answer is", else all that was said; how it was given is told with it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from mia.config import ReaderSettings
from mia.errors import ConfigError, MiaError, ModelReplyError
from mia.models.base import ChatModel, ChatReply, ChatRequest
from mia.models.ledger import Ledger
from mia.prompt import Prompt, PromptSet, PromptStyle, defuse, split_thinking
from mia.reader.bookmarks import Bookmark, Bookmarks
from mia.reader.chunks import Cap, Chunk, SharedChunks, TokenCounter, split_chunks, token_counter
from mia.reader.texts import TextSource
from mia.reader.trace import ChunkRead, Form, Kept, OnTold, ReadingFinished, changes, ignore
from mia.types import Message, Question, Role, Usage

NO_MEMORY = "(No memory yet: this is the first section.)"
"""What stands for the memory before the first chunk."""
CUT_MARK = " […cut here]"
"""At the end of a memory that was too long."""
_TURN_TOKENS = 32
"""What a chat template may add to a turn."""
_WORDS_PER_TOKEN = 0.7
_WRAPPED = re.compile(r"<memory>(.*)</memory>", re.DOTALL | re.IGNORECASE)
_BRACES = re.compile(r"\\boxed\s*+\{|\\.|[{}]", re.DOTALL)
_PHRASE = re.compile(r"\bthe\s+(?:final\s+)?answer\s+is\b:?", re.IGNORECASE)
_MARKS = " \t*_`\"':"


@dataclass(frozen=True)
class ReaderPrompts(PromptSet):
    update: Prompt
    answer: Prompt


PROMPTS = ReaderPrompts.beside(__file__)


@dataclass(frozen=True)
class Reading:
    """What became of one question."""

    question: Question
    answer: str
    """Empty where there is none."""
    form: Form
    memory: str
    reply: str
    """The last one, its thinking left out."""
    chunks: int
    tokens: int
    """Of the text, as it was shown."""
    kept: int
    """Chunks after which the memory stayed as it was, because the model wrote none."""
    cut: int
    """Chunks after which the memory was cut."""
    left_out: int
    """Characters of the text that a cap left out."""
    usage: Usage
    """With that of what was read before a stop."""
    failure: MiaError | None = None
    """Why it ended early. What was read until then is kept, where there are bookmarks."""


class Reader:
    """Reads texts with one model."""

    def __init__(
        self,
        model: ChatModel,
        settings: ReaderSettings = ReaderSettings(),
        *,
        style: PromptStyle = "full",
        counter: TokenCounter | None = None,
    ) -> None:
        """`counter`: what counts tokens; None: the model's own tokenizer, or the estimate."""
        self.model = model
        self.settings = settings
        self.counter = counter or token_counter(model)
        self.reply_tokens = settings.reply_tokens or settings.memory_tokens
        self._prompts = PROMPTS.styled(style)
        self._words = str(int(settings.memory_tokens * _WORDS_PER_TOKEN))

    @property
    def prompts(self) -> dict[str, str]:
        """Prompt name → version."""
        return {prompt.name: prompt.version for prompt in (self._prompts.update, self._prompts.answer)}

    def check_window(self, question: str = "") -> None:
        """Raises ConfigError, with the sum, where prompt, memory, chunk and reply do not fit the model's window."""
        settings, window = self.settings, self.model.context_window
        prompt = _TURN_TOKENS + self.counter.count(self._update_prompt(question, "", ""))
        total = prompt + settings.memory_tokens + settings.chunk_tokens + self.reply_tokens
        if total <= window:
            return
        rest = window - prompt - settings.memory_tokens - self.reply_tokens
        raise ConfigError(
            f"the window of {self.model.name} is too small to read with: prompt {prompt} + memory "
            f"{settings.memory_tokens} + chunk {settings.chunk_tokens} + reply {self.reply_tokens} = {total} tokens, "
            f"and it has {window}.",
            wanted="reader.chunk_tokens, reader.memory_tokens and reader.reply_tokens that fit",
            hint=f"set reader.chunk_tokens = {rest}"
            if rest >= 64
            else f"set reader.chunk_tokens and reader.memory_tokens to {max(16, (window - prompt) // 4)}, or take a "
            "model with a larger window (models.reader.context_window)",
        )

    async def read(
        self,
        questions: Sequence[Question],
        source: TextSource,
        *,
        ledger: Callable[[Question], Ledger] = lambda question: Ledger(question.id),
        bookmarks: Bookmarks | None = None,
        resume: bool = True,
        on_told: OnTold = ignore,
    ) -> list[Reading]:
        """The questions' readings, in their order. A question that fails (its model, its budget, the text) ends with
        its `failure`, and the others go on.

        `ledger`: makes what a question's calls are counted in. `bookmarks`: where to keep how far each question has
        come; `resume`: go on from there, else begin anew. They are removed once every question has its answer. Raises
        ConfigError before the first chunk if the window is too small, or a question stands there twice.
        """
        if len({question.id for question in questions}) < len(questions):
            raise ConfigError("a question is asked twice.", wanted="questions that differ")
        for question in questions:
            self.check_window(question.text)
        places = [self.place(question, source) for question in questions]
        begun = [
            (bookmarks.get(place) if bookmarks and resume else None)
            or Bookmark(question=question.text, text=source.name)
            for question, place in zip(questions, places, strict=True)
        ]
        pieces, cap = source.pieces(), None
        if self.settings.max_tokens:
            cap = Cap(self.counter, self.settings.max_tokens)
            pieces = cap.apply(pieces)
        still = {question.id: one for question, one in zip(questions, begun, strict=True) if not one.read}
        first = min(still.values(), key=lambda one: one.chunk, default=Bookmark(question="", text=source.name))
        chunks = SharedChunks(
            split_chunks(pieces, self.counter, self.settings.chunk_tokens, number=first.chunk, start=first.start),
            {id: one.chunk for id, one in still.items()},
        )

        def read_one(question: Question, place: str, at: Bookmark) -> Coroutine[Any, Any, Reading]:
            def keep(bookmark: Bookmark) -> None:
                if bookmarks is not None:
                    bookmarks.put(place, bookmark)

            one = _One(self, question, at, ledger(question), keep, on_told)
            return one.read(chunks, source.characters, cap)

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(read_one(question, place, at))
                    for question, place, at in zip(questions, places, begun, strict=True)
                ]
        finally:
            await chunks.close()
        readings = [task.result() for task in tasks]
        if bookmarks is not None and not any(reading.failure for reading in readings):
            for place in places:
                bookmarks.remove(place)
        return readings

    def place(self, question: Question, source: TextSource) -> str:
        """The name of the bookmark of a question in a text: it tells all that decides what a memory holds."""
        settings = self.settings
        parts = {
            "question": question.text,
            "text": source.digest,
            "model": self.model.name,
            "tokens": self.counter.name,
            "prompts": self.prompts,
            "chunk_tokens": settings.chunk_tokens,
            "memory_tokens": settings.memory_tokens,
            "reply_tokens": self.reply_tokens,
            "max_tokens": settings.max_tokens,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]

    async def update(self, question: Question, memory: str, chunk: Chunk, ledger: Ledger) -> tuple[str, Kept, bool]:
        """One conversation of a turn: the new memory, why it is the old one if it is, and whether it was cut. Raises
        ModelError and BudgetExceeded."""
        reply = await self._complete(self._update_prompt(question.text, memory, chunk.text), "read", ledger)
        parts = split_thinking(reply.text)
        if parts is None:
            return memory, "thinking", False
        wrapped = _WRAPPED.fullmatch(parts[1])
        text = defuse(wrapped.group(1) if wrapped else parts[1]).strip()
        if not text:
            return memory, "thinking" if parts[0] else "empty", False
        cut = reply.finish_reason == "length" or self.counter.count(text) > self.settings.memory_tokens
        if cut:
            room = self.settings.memory_tokens - self.counter.count(CUT_MARK)
            text = text[: self.counter.head(text, max(1, room))].rstrip() + CUT_MARK
        return text, "", cut

    async def answer(self, question: Question, memory: str, ledger: Ledger) -> str:
        """The last conversation: what was said, its thinking left out. Raises ModelReplyError where that is nothing,
        ModelError and BudgetExceeded."""
        prompt = self._prompts.answer.fill(question=defuse(question.text), memory=memory or NO_MEMORY)
        reply = await self._complete(prompt, "answer", ledger)
        parts = split_thinking(reply.text)
        if parts is None or not parts[1]:
            raise ModelReplyError(
                f"asked for the answer, {self.model.name} "
                f"{'only thought' if parts is None or parts[0] else 'said nothing'}.",
                hint=f"give replies more room: reader.reply_tokens (now {self.reply_tokens})",
            )
        return parts[1]

    def _update_prompt(self, question: str, memory: str, chunk: str) -> str:
        return self._prompts.update.fill(
            question=defuse(question), memory=memory or NO_MEMORY, chunk=defuse(chunk), words=self._words
        )

    async def _complete(self, prompt: str, purpose: str, ledger: Ledger) -> ChatReply:
        request = ChatRequest(
            messages=(Message(role="user", content=prompt),),
            role=Role.READER,
            question_id=ledger.question_id,
            purpose=purpose,
            max_tokens=self.reply_tokens,
        )
        return await ledger.complete(self.model, request)


class _One:
    """One question on its way through the text."""

    def __init__(
        self,
        reader: Reader,
        question: Question,
        at: Bookmark,
        ledger: Ledger,
        keep: Callable[[Bookmark], None],
        on_told: OnTold,
    ) -> None:
        self._reader = reader
        self._question = question
        self._at = at
        self._ledger = ledger
        self._keep = keep
        self._on_told = on_told
        self._before = at.usage - ledger.usage.get(Role.READER, Usage())

    async def read(self, chunks: SharedChunks, of_characters: int, cap: Cap | None) -> Reading:
        failure: MiaError | None = None
        try:
            while not self._at.read:
                chunk = await chunks.get(self._question.id, self._at.chunk)
                if chunk is not None:
                    await self._take(chunk, of_characters)
                else:
                    self._move(read=True, left_out=cap.left_out if cap else 0)
            chunks.leave(self._question.id)
            if self._at.answer is None:
                reply = await self._reader.answer(self._question, self._at.memory, self._ledger)
                answer, form = final_answer(reply)
                self._move(answer=answer, form=form, reply=reply)
        except MiaError as error:
            failure = error
        finally:
            chunks.leave(self._question.id)
        return self._finish(failure)

    async def _take(self, chunk: Chunk, of_characters: int) -> None:
        begun, before = time.monotonic(), self._at.memory
        memory, kept, cut = await self._reader.update(self._question, before, chunk, self._ledger)
        added, removed = changes(before, memory)
        self._on_told(
            ChunkRead(
                question_id=self._question.id,
                chunk=chunk.number,
                start=chunk.start,
                characters=len(chunk.text),
                of_characters=of_characters,
                tokens=chunk.tokens,
                memory=memory,
                memory_tokens=self._reader.counter.count(memory),
                added=added,
                removed=removed,
                kept=kept,
                cut=cut,
                seconds=time.monotonic() - begun,
            )
        )
        self._move(
            chunk=chunk.number + 1,
            start=chunk.end,
            memory=memory,
            tokens=self._at.tokens + chunk.tokens,
            kept=self._at.kept + bool(kept),
            cut=self._at.cut + cut,
        )

    def _move(self, **changed: Any) -> None:
        self._at = self._at.evolve(**changed, usage=self._before + self._ledger.usage.get(Role.READER, Usage()))
        self._keep(self._at)

    def _finish(self, failure: MiaError | None) -> Reading:
        at = self._at
        self._on_told(
            ReadingFinished(
                question_id=self._question.id,
                question=self._question.text,
                answer=at.answer or "",
                form=at.form,
                memory=at.memory,
                chunks=at.chunk,
                tokens=at.tokens,
                left_out=at.left_out,
                failure=failure.got if failure else "",
            )
        )
        return Reading(
            question=self._question,
            answer=at.answer or "",
            form=at.form,
            memory=at.memory,
            reply=at.reply,
            chunks=at.chunk,
            tokens=at.tokens,
            kept=at.kept,
            cut=at.cut,
            left_out=at.left_out,
            usage=self._before + self._ledger.usage.get(Role.READER, Usage()),
            failure=failure,
        )


# ── the answer in a reply ─────────────────────────────────────────────────────────────────────────────────────────


def final_answer(said: str) -> tuple[str, Form]:
    """The answer in a reply without its thinking, and how it was given."""
    for form, find in (("boxed", boxed), ("phrase", behind_phrase)):
        if answer := find(said):
            return answer, form  # type: ignore[return-value]
    whole = said.strip()
    return whole, "whole" if whole else "none"


def boxed(said: str) -> str:
    """What stands in the last `\\boxed{…}` that is closed, the outermost where one holds another; braces inside it
    count, escaped ones do not. Empty where there is none. Takes time in proportion to the text."""
    found = ""
    opened: list[int | None] = []
    for brace in _BRACES.finditer(said):
        mark = brace.group()
        if mark == "}" and opened:
            start = opened.pop()
            found = said[start : brace.start()].strip() if start is not None else found
        elif mark.endswith("{") and mark != "\\{":
            opened.append(brace.end() if mark != "{" else None)
    return found


def behind_phrase(said: str) -> str:
    """What follows the last "the answer is" on its line, or on the next one where the line ends there; without the
    marks around it. Empty where there is none."""
    phrases = list(_PHRASE.finditer(said))
    rest = said[phrases[-1].end() :].strip() if phrases else ""
    answer = rest.partition("\n")[0].strip(_MARKS)
    last = answer.rpartition(" ")[2]
    # The full stop of the sentence goes; that of "U.S." belongs to it.
    return answer[:-1].strip(_MARKS) if last.endswith(".") and "." not in last[:-1] else answer
