"""What goes over the wire of `/v1/…`, beside the records of `mia.types`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, StringConstraints

from mia.types import Citation, Episode, Stop, Usage, Verdict

Text = Annotated[str, StringConstraints(min_length=1, max_length=100_000, strip_whitespace=True)]
Id = Annotated[str, StringConstraints(max_length=200)]


class Body(BaseModel):
    """What a client sends: a field that is not known is refused, so that a misspelt one is never lost silently."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class Reply(BaseModel):
    """What a client gets."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class Problem(Reply):
    """The body of every error."""

    class Error(Reply):
        model_config = ConfigDict(extra="allow", use_attribute_docstrings=True)

        type: str
        message: str
        wanted: str = ""
        hint: str = ""
        code: int
        request_id: str = ""

    error: Error


References = Annotated[
    list[Annotated[str, StringConstraints(max_length=10_000)]],
    Field(max_length=100, validation_alias=AliasChoices("references", "answers")),
]


class AskBody(Body):
    question: Text
    id: Id = ""
    """Of the question; empty: a hash of it, so that the same question has the same id."""
    references: References = []
    """Right answers, for the judge's eyes only; `answers`, as in the files of `mia run`, is taken too."""
    images: Annotated[list[str], Field(max_length=8)] = []
    """Images that the question is about, in base64."""
    caption: Annotated[str, StringConstraints(max_length=20_000)] = ""
    """What the images show; empty: a model looks at them."""
    stream: bool = False
    """Send every stage as it happens, as server-sent events."""


class AskReply(Reply):
    """The answer, and what there is to know of it."""

    episode_id: str
    question_id: str
    answer: str | None
    """None: there is none, and `stop` says why; or it is withheld."""
    withheld: bool
    citations: tuple[Citation, ...]
    verdict: Verdict | None
    stop: Stop | None
    memories: tuple[str, ...]
    """Ids of the memories that were shown."""
    adapters: dict[str, str]
    """The version of its weights that answered for a role, where that was not the model as it came."""
    usage: Usage
    seconds: float
    failures: tuple[str, ...]
    """What went wrong on the way and did not stop it."""

    @classmethod
    def of(cls, episode: Episode) -> AskReply:
        return cls(
            episode_id=episode.id,
            question_id=episode.question.id,
            answer=episode.answer.text if episode.answer is not None else None,
            withheld=episode.withheld,
            citations=episode.answer.citations if episode.answer is not None else (),
            verdict=episode.verdict,
            stop=episode.stop,
            memories=tuple(one.memory_id for one in episode.recall.shown) if episode.recall is not None else (),
            adapters={role.value: version for role, version in episode.adapters.items()},
            usage=episode.total_usage,
            seconds=episode.seconds,
            failures=tuple(f"{one.stage}: {one.message}" for one in episode.failures),
        )


PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem} for status in (400, 401, 403, 404, 409, 413, 422, 429, 500, 501, 502, 503, 504)
}
"""The errors that any route may answer with."""
