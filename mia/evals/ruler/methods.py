"""Ways to answer a question about a long text: all of it in one prompt, or read chunk by chunk. One interface, so that
they are measured alike."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

from mia.config import ModelSettings, ReaderSettings
from mia.judges.verifiers import boxed, stated
from mia.models import build_model
from mia.models.base import Around, ChatModel, ChatReply, ChatRequest
from mia.models.ledger import Ledger
from mia.prompt import Prompt, PromptStyle, defuse
from mia.reader.chunks import TokenCounter
from mia.types import Message, Question, Role

TEMPERATURE = 0.7
TOP_P = 0.95
_PROMPT = Prompt.beside(__file__, "direct")


class Method(Protocol):
    """Answers one question about one text. Safe to call concurrently from one event loop."""

    @property
    def name(self) -> str: ...

    @property
    def prompts(self) -> dict[str, str]:
        """Prompt name → version."""
        ...

    async def answer(self, text: str, question: str, ledger: Ledger) -> str:
        """The model's whole last reply; what it took is in the ledger. Raises ModelError, BudgetExceeded."""
        ...


class Direct:
    """The whole text in one prompt: what the model's own window can do."""

    name = "direct"

    def __init__(self, model: ChatModel) -> None:
        self._model = model

    @property
    def prompts(self) -> dict[str, str]:
        return {_PROMPT.name: _PROMPT.version}

    async def answer(self, text: str, question: str, ledger: Ledger) -> str:
        content = _PROMPT.fill(text=defuse(text), question=defuse(question))
        request = ChatRequest(
            messages=(Message(role="user", content=content),),
            role=Role.READER,
            question_id=ledger.question_id,
            purpose="answer",
        )
        return (await ledger.complete(self._model, request)).text


class Reading:
    """Chunk by chunk, by `mia.reader`."""

    name = "reader"

    def __init__(
        self,
        model: ChatModel,
        settings: ReaderSettings = ReaderSettings(),
        *,
        style: PromptStyle = "full",
        counter: TokenCounter | None = None,
    ) -> None:
        """Raises ConfigError where prompt, memory and chunk do not fit the model's window."""
        from mia.reader.read import Reader

        self._reader = Reader(model, settings, style=style, counter=counter)
        self._reader.check_window()

    @property
    def prompts(self) -> dict[str, str]:
        return self._reader.prompts

    async def answer(self, text: str, question: str, ledger: Ledger) -> str:
        from mia.reader.texts import TextSource

        asked = Question.of(question, id=ledger.question_id)
        with TextSource.of(text) as source:
            [reading] = await self._reader.read([asked], source, ledger=lambda _: ledger)
        if reading.failure is not None:
            raise reading.failure
        marked = boxed(reading.reply)
        # The reader asks for a box: its way of saying "the answer is".
        if marked is None or stated(reading.reply) is not None:
            return reading.reply
        return f"{reading.reply}\nThe answer is {marked}"


class Sampled(Around[ChatModel]):
    """A model whose requests are sampled at these settings, unless they say otherwise."""

    def __init__(self, model: ChatModel, *, temperature: float = TEMPERATURE, top_p: float = TOP_P) -> None:
        super().__init__(model)
        self._settings: dict[str, Any] = {"temperature": temperature, "top_p": top_p}

    async def complete(self, request: ChatRequest) -> ChatReply:
        unset = {name: value for name, value in self._settings.items() if getattr(request, name) is None}
        return await self.model.complete(replace(request, **unset))


@dataclass(frozen=True)
class MethodSettings:
    """What a method is built from, here or on another machine."""

    kind: Literal["reader", "direct"] = "reader"
    model: ModelSettings = field(default_factory=ModelSettings)
    reader: ReaderSettings = field(default_factory=ReaderSettings)
    temperature: float = TEMPERATURE
    top_p: float = TOP_P


def build_method(settings: MethodSettings, counter: TokenCounter | None = None) -> Method:
    """A method with a model of its own. Raises ConfigError, RecordError for a recording that cannot be used."""
    return method_of(settings, build_model(settings.model, section="reader"), counter=counter)


def method_of(settings: MethodSettings, model: ChatModel, *, counter: TokenCounter | None = None) -> Method:
    """A method that asks this model, at the settings' sampling. `counter`: what counts tokens; None: the model's own,
    or the estimate. Raises ConfigError for a window that is too small."""
    sampled = Sampled(model, temperature=settings.temperature, top_p=settings.top_p)
    if settings.kind == "direct":
        return Direct(sampled)
    return Reading(sampled, settings.reader, style=settings.model.prompts, counter=counter)
