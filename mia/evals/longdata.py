"""Training data for reading long texts: questions among many documents, without those that need no text (MemAgent,
arXiv 2507.02259, section 4).

A sample is a question with its own documents among others, so many in all (200 are some 30,000 tokens), and its
answers. It is left out if *any* model answers it in *any* of some tries without the text: such a question would reward
knowing instead of reading. Lines are written one by one in the order of the questions; a second call goes on behind
the last question that was decided.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from mia.errors import ConfigError, ModelReplyError, RecordError, StoreError
from mia.evals.ruler.documents import Asked, Corpus, write_documents
from mia.evals.ruler.hotpotqa import mix
from mia.judges.verifiers import lenient
from mia.models.base import ChatModel, ChatRequest
from mia.models.ledger import Ledger
from mia.prompt import Prompt, defuse
from mia.store.base import storable
from mia.types import Message, Record, Role

_PROMPT = Prompt.beside(__file__, "longdata_guess")
DOCUMENTS = 200
TRIES = 2
"""Of each model."""


class Sample(Record):
    """One line: a question that was decided."""

    id: str
    question: str
    answers: tuple[str, ...]
    text: str
    """Empty where the question was answered without one."""
    known_by: str = ""
    """The model that did."""

    @property
    def kept(self) -> bool:
        return not self.known_by


@dataclass(frozen=True)
class Filter:
    """Which questions need no text."""

    models: Sequence[ChatModel]
    tries: int = TRIES
    temperature: float = 1.0

    async def known_by(self, asked: Asked) -> str:
        """The name of the first model with a right answer in any of its tries; empty for none.

        Right is lenient: a question that is nearly known is left out too. All tries of a model run at once. Raises
        ModelError where a model cannot be asked; a reply that cannot be used is a wrong one.
        """
        prompt = _PROMPT.fill(question=defuse(asked.question))

        async def guess(model: ChatModel, number: int) -> bool:
            request = ChatRequest(
                messages=(Message(role="user", content=prompt),),
                role=Role.READER,
                question_id=asked.id,
                purpose="guess",
                temperature=self.temperature,
                seed=number,
            )
            try:
                reply = await Ledger(f"{asked.id}-{number}").complete(model, request)
            except ModelReplyError:
                return False
            return lenient(reply.text, asked.answers) == 1.0

        for model in self.models:
            if any(await asyncio.gather(*(guess(model, number) for number in range(self.tries)))):
                return model.name
        return ""


@dataclass
class Built:
    """What a file of samples holds."""

    kept: int = 0
    known: int = 0

    def count(self, sample: Sample) -> None:
        if sample.kept:
            self.kept += 1
        else:
            self.known += 1


async def build(
    corpus: Corpus,
    out: Path,
    *,
    documents: int = DOCUMENTS,
    seed: int = 0,
    only: Filter | None = None,
    limit: int | None = None,
    concurrency: int = 8,
    on_progress: Callable[[Built], None] = lambda built: None,
) -> Built:
    """Write the samples of a corpus, or go on with a file that a stop cut short. `limit`: kept samples, at most.

    Raises ConfigError where the corpus has too few documents, or the file was begun with other settings; RecordError
    for a broken line, StoreError if it cannot be written, ModelError if a model cannot be asked: what is written stays.
    """
    header = {
        "corpus": corpus.digest,
        "documents": documents,
        "seed": seed,
        "filter": [[model.name for model in only.models], only.tries, only.temperature] if only else None,
    }
    done = _open(out, header)
    built = Built()
    for earlier in done:
        built.count(earlier)
    on_progress(built)
    async for sample in _decide(corpus.questions[len(done) :], corpus, documents, seed, only, concurrency):
        if limit is not None and built.kept >= limit:
            break
        await asyncio.to_thread(_append, out, sample)
        built.count(sample)
        on_progress(built)
    return built


def read_samples(path: Path) -> list[Sample]:
    """The samples that were kept. Raises RecordError."""
    return [sample for sample in _read(path)[1] if sample.kept]


async def _decide(
    questions: Sequence[Asked], corpus: Corpus, documents: int, seed: int, only: Filter | None, concurrency: int
) -> AsyncIterator[Sample]:
    """In order, so many questions ahead at a time."""
    for begin in range(0, len(questions), concurrency):
        group = questions[begin : begin + concurrency]
        known = await asyncio.gather(*(only.known_by(asked) for asked in group)) if only else [""] * len(group)
        for asked, by in zip(group, known, strict=True):
            text = ""
            if not by:
                chance = random.Random(f"long data {seed} {asked.id} {asked.question}")
                text = write_documents(mix(asked, corpus.pool, documents, chance))
            yield Sample(id=asked.id, question=asked.question, answers=asked.answers, text=text, known_by=by)


def _open(path: Path, header: dict[str, object]) -> list[Sample]:
    """The samples of a file, which is begun where it is not there; what a crash tore off is cut away."""
    mark = {"long_data": 1, "settings": hashlib.sha256(json.dumps(header).encode()).hexdigest()[:16]}
    try:
        if path.exists():
            with path.open("r+b") as file:
                content = file.read()
                file.truncate(content.rfind(b"\n") + 1)
        if not path.exists() or path.stat().st_size == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(_line(mark))
    except OSError as error:
        raise StoreError(f"cannot write '{path}': {error.strerror}.") from error
    found, samples = _read(path)
    if found != mark:
        raise ConfigError(
            f"'{path}' was begun with other questions or settings.", hint="set them as they were, or name another file"
        )
    return samples


def _append(path: Path, sample: Sample) -> None:
    """Whole and on the disk, or not at all."""
    try:
        with path.open("ab", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            try:
                line = memoryview(_line(sample.model_dump(mode="json")))
                while line:
                    line = line[file.write(line) :]
                os.fsync(file.fileno())
            except OSError:
                file.truncate(end)
                raise
    except OSError as error:
        raise StoreError(
            f"cannot write '{path}': {error.strerror}.", hint="make room on the disk; the same call goes on"
        ) from error


def _read(path: Path) -> tuple[object, list[Sample]]:
    mark: object = None
    samples: list[Sample] = []
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    if number == 1:
                        mark = json.loads(line)
                    else:
                        samples.append(Sample.model_validate_json(line))
                except (ValidationError, ValueError) as error:
                    raise RecordError(f"'{path}', line {number}, is no training sample.") from error
    except OSError as error:
        raise RecordError(f"cannot read '{path}': {error.strerror}.") from error
    return mark, samples


def _line(page: object) -> bytes:
    return storable(json.dumps(page, ensure_ascii=False)).encode() + b"\n"
