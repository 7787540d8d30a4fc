"""Recorded answers: a model that serves what a real model really wrote, and the recorder that keeps it.

A recording is a file of JSON Lines, described in docs/recordings.md. The first line is the header
`{"format": "mia-recording", "version": 1, "note": "…"}`; every other line is one `RecordedCall`. A call is found by
its key (question id, role, purpose, turn), never by its place in the file, so concurrent questions replay in any order.
An entry holds a reply, or says in `halted` why the recorded run wrote nothing more.

Always true: a call without an entry raises, entries that nobody asked for can be listed, no take has two entries for
one key, and a file with one broken line is refused as a whole, with the numbers of its broken lines. Where two takes
recorded the same question, role and purpose, the take that began later counts, with all its turns and alone.
"""

from __future__ import annotations

import bisect
import difflib
import errno
import gzip
import hashlib
import json
import os
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from pydantic import Field, ValidationError, model_validator

from mia.errors import ModelRefused, ModelReplyError, ModelUnavailable, RecordError, ReplayMismatch, StoreError
from mia.models.base import Around, ChatModel, ChatReply, ChatRequest, FinishReason, Price, estimate_usage
from mia.types import Record, Role, ToolCall, Usage, new_id

FORMAT = "mia-recording"
VERSION = 1

R = TypeVar("R", bound=Record)


class CallKey(NamedTuple):
    """What names a call in a recording."""

    question_id: str
    role: Role
    purpose: str
    turn: int

    def __str__(self) -> str:
        return f"{self.question_id} · {self.role}/{self.purpose} turn {self.turn}"

    @classmethod
    def of(cls, request: ChatRequest) -> CallKey:
        return cls(request.question_id, request.role, request.purpose, request.turn)


class RecordedCall(Record):
    """One call of a recording, with the reply to it."""

    question_id: str = Field(min_length=1)
    question: str = ""
    """The text of the question, for readers of the file; not used in matching."""
    role: Role
    purpose: str = Field(min_length=1)
    turn: int = Field(ge=0)
    text: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    malformed_call: str = ""
    finish_reason: FinishReason = "stop"
    thinking: str = ""
    usage: Usage | None = None
    """None: estimated when it is replayed."""
    model: str = ""
    prompt_sha: str = ""
    """The `prompt_sha` of the request, for a strict replay."""
    halted: str = ""
    """Why the recorded run wrote nothing more; then there is no reply."""
    take: str = ""
    """Which opening of the file wrote it."""

    @model_validator(mode="after")
    def _reply_or_halt(self) -> RecordedCall:
        replied = {"text", "tool_calls", "malformed_call"} & self.model_fields_set
        if bool(self.halted) == bool(replied):
            raise ValueError("an entry holds either a reply or 'halted'")
        return self

    @property
    def key(self) -> CallKey:
        return CallKey(self.question_id, self.role, self.purpose, self.turn)


class _Header(Record):
    format: Literal["mia-recording"]
    version: int = Field(ge=1)
    note: str = ""


class ReplayModel:
    """Serves a recording. Asked for the same call again, it serves it again (a re-run works), and counts."""

    def __init__(
        self,
        path: Path,
        *,
        strict: bool = False,
        context_window: int = 128_000,
        max_tokens: int = 2048,
        price: Price | None = None,
    ) -> None:
        """`strict`: where an entry has a `prompt_sha`, the prompt must be the recorded one. Raises RecordError."""
        self.name = f"recorded @ {path.name}"
        self.context_window = context_window
        self.max_tokens = max_tokens
        self.price = price
        self.asked: Counter[CallKey] = Counter()
        """How often each call was served."""
        self.mismatches: list[str] = []
        """Every call that had no entry; kept, because a line that survives failures goes on after one."""
        self._strict = strict
        self._calls = read_recording(path)

    async def complete(self, request: ChatRequest) -> ChatReply:
        """Raises ReplayMismatch for a call that is not recorded, ModelReplyError where the recorded run halted."""
        key = CallKey.of(request)
        call = self._calls.get(key)
        if call is None:
            raise self._mismatch(f"the recording has no call {key}.", wanted=self._nearest(key))
        if self._strict and call.prompt_sha and call.prompt_sha != prompt_sha(request):
            raise self._mismatch(f"the prompt of the call {key} is not the recorded one.")
        self.asked[key] += 1
        if call.halted:
            raise ModelReplyError(f"the recorded run ends here: {call.halted}")
        if request.on_text is not None and call.text:
            request.on_text(call.text)
        return ChatReply(
            text=call.text,
            tool_calls=call.tool_calls,
            finish_reason=call.finish_reason,
            usage=call.usage or estimate_usage(request, call.text + call.thinking, self.price),
            model=call.model or self.name,
            malformed_call=call.malformed_call,
            thinking=call.thinking,
        )

    async def close(self) -> None:
        """Nothing to let go of."""

    def left_over(self, question_ids: Collection[str] | None = None) -> list[CallKey]:
        """Calls that nobody asked for, of these questions or of all."""
        return [
            key
            for key in self._calls
            if not self.asked[key] and (question_ids is None or key.question_id in question_ids)
        ]

    def assert_exhausted(self, question_ids: Collection[str] | None = None) -> None:
        """Raises ReplayMismatch if any call was asked for in vain, or any entry (of these questions) was not."""
        if self.mismatches:
            raise ReplayMismatch(f"{len(self.mismatches)} calls had no entry, the first: {self.mismatches[0]}")
        left = self.left_over(question_ids)
        if left:
            raise ReplayMismatch(f"{len(left)} recorded calls were not asked for, the first: {left[0]}.")

    def _mismatch(self, got: str, wanted: str = "") -> ReplayMismatch:
        self.mismatches.append(got)
        return ReplayMismatch(got, wanted=wanted)

    def _nearest(self, key: CallKey) -> str:
        same = [str(other) for other in self._calls if other.question_id == key.question_id]
        if same:
            return "one of " + "; ".join(difflib.get_close_matches(str(key), same, n=3, cutoff=0.0))
        ids = sorted({other.question_id for other in self._calls})
        place = max(0, bisect.bisect(ids, key.question_id) - 2)
        return "one of the recorded questions, such as " + ", ".join(ids[place : place + 3])


class RecordingWriter:
    """Appends calls to one recording, for as many models as like; use it from one event loop.

    An existing recording is continued, as a new take whose entries count instead of older ones (see the module). A
    last line that a kill tore is cut off. A key that this take already holds is refused before its call is made: a
    second episode of the same question (an epoch) belongs in a recording of its own.
    """

    def __init__(self, path: Path, *, note: str = "") -> None:
        """Raises RecordError if the file is no recording, StoreError if it cannot be opened."""
        self.path = path
        self.take = new_id("rec")
        self._taken: set[CallKey] = set()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            started = path.is_file() and _mend(path)
        except OSError as error:
            raise StoreError(f"cannot open the recording '{path}': {error.strerror}.") from error
        if started:
            read_recording(path)  # Nothing is added to a file that could not be read again.
        else:
            self._write(_header(note))

    def claim(self, key: CallKey) -> None:
        """Take a key for a call that is about to be made. Raises ModelRefused if it is taken."""
        if key in self._taken:
            raise ModelRefused(
                f"the recording '{self.path}' already holds the call {key}, made by this same process.",
                wanted="one pass over a question: asked again, it has the same keys",
                hint="set models.record to a new file for each pass",
            )
        self._taken.add(key)

    def release(self, key: CallKey) -> None:
        """Give a claimed key back: the call failed."""
        self._taken.discard(key)

    def append(self, call: RecordedCall) -> None:
        """Raises StoreError if the disk does not take it; the file then ends with the entry before."""
        self._write(_line(call.model_copy(update={"take": self.take})))

    def _write(self, line: bytes) -> None:
        try:
            # Opened for each line, unbuffered: nothing stays open, and one write makes one line. A full disk may cut
            # the line short; then it is taken back.
            with self.path.open("ab", buffering=0) as file:
                end = file.seek(0, 2)
                if file.write(line) != len(line):
                    file.truncate(end)
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise StoreError(f"cannot write the recording '{self.path}': {error.strerror}.") from error


class Recorder(Around[ChatModel]):
    """A model whose every reply is appended to a recording. Failed calls are not recorded."""

    def __init__(self, model: ChatModel, writer: RecordingWriter) -> None:
        super().__init__(model)
        self._writer = writer

    async def complete(self, request: ChatRequest) -> ChatReply:
        """Raises what the model raises; ModelRefused for a call that this process recorded already; ModelUnavailable
        where the disk does not take the reply, which is then not used either."""
        key = CallKey.of(request)
        self._writer.claim(key)
        recorded = False
        try:
            reply = await self.model.complete(request)
            self._writer.append(_recorded(request, reply))
            recorded = True
        except StoreError as error:
            hint = "make room on the disk, or leave models.record unset"
            raise ModelUnavailable(f"its reply could not be recorded: {error.got}", hint=hint) from error
        finally:
            if not recorded:
                self._writer.release(key)
        return reply


def read_recording(path: Path) -> dict[CallKey, RecordedCall]:
    """The calls of a recording that count, by key. Raises RecordError, naming every broken line."""
    lines = read_lines(path)
    number, first = next(lines, (1, b""))
    try:
        header = _Header.model_validate_json(first)
    except ValidationError:
        raise RecordError(
            f"'{path}' is no recording: line {number} is no header.", wanted=_header("…").decode().strip()
        ) from None
    if header.version > VERSION:
        raise RecordError(
            f"the recording '{path}' has version {header.version}; this MIA knows version {VERSION}.",
            hint="install the newer MIA that wrote it",
        )
    # Question, role and purpose → take → its calls; takes stand in the order in which they began.
    series: dict[tuple[str, Role, str], dict[str, dict[CallKey, RecordedCall]]] = {}
    broken: list[str] = []
    for number, call in _parsed(lines, RecordedCall, broken):
        takes = series.setdefault((call.question_id, call.role, call.purpose), {})
        calls = takes.setdefault(call.take, {})
        if call.key in calls:
            broken.append(f"line {number}: a second entry for {call.key}")
        calls[call.key] = call
    _refuse(path, broken)
    return {key: call for takes in series.values() for key, call in list(takes.values())[-1].items()}


def write_calls(calls: Iterable[RecordedCall], path: Path, *, note: str = "") -> None:
    """Write a whole recording, replacing what is there."""
    path.write_bytes(b"".join([_header(note), *map(_line, calls)]))


def prompt_sha(request: ChatRequest) -> str:
    """The first 16 hex digits of the SHA-256 of a request's messages; images count by their own hashes."""
    content = [
        [
            message.role,
            message.content,
            [image.sha256 for image in message.images],
            [[call.name, call.arguments] for call in message.tool_calls],
        ]
        for message in request.messages
    ]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a text file, gzipped or not, that are not blank, with their numbers. Raises RecordError."""
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise RecordError(f"cannot read '{path}': {reason}.") from error
    return ((number, line) for number, line in enumerate(content.split(b"\n"), start=1) if line.strip())


def read_records(path: Path, kind: type[R]) -> list[R]:
    """A file of JSON Lines as records. Raises RecordError, naming every broken line."""
    broken: list[str] = []
    records = [record for _, record in _parsed(read_lines(path), kind, broken)]
    _refuse(path, broken)
    return records


def _parsed(lines: Iterator[tuple[int, bytes]], kind: type[R], broken: list[str]) -> Iterator[tuple[int, R]]:
    for number, line in lines:
        try:
            yield number, kind.model_validate_json(line)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            broken.append(f"line {number}: {where + ': ' if where else ''}{first['msg']}")


def _refuse(path: Path, broken: list[str]) -> None:
    if broken:
        more = f"; and {len(broken) - 5} more" if len(broken) > 5 else ""
        raise RecordError(f"'{path}' has broken lines: {'; '.join(broken[:5])}{more}.", hint="correct or delete them")


def _recorded(request: ChatRequest, reply: ChatReply) -> RecordedCall:
    # `model_construct`: everything here was validated when it was made, and a reply is recorded as it came.
    return RecordedCall.model_construct(
        question_id=request.question_id,
        role=request.role,
        purpose=request.purpose,
        turn=request.turn,
        text=reply.text,
        tool_calls=reply.tool_calls,
        malformed_call=reply.malformed_call,
        finish_reason=reply.finish_reason,
        thinking=reply.thinking,
        usage=reply.usage,
        model=reply.model,
        prompt_sha=prompt_sha(request),
    )


def _header(note: str) -> bytes:
    return json.dumps({"format": FORMAT, "version": VERSION, "note": note}, ensure_ascii=False).encode() + b"\n"


def _line(call: RecordedCall) -> bytes:
    content: dict[str, Any] = call.model_dump(mode="json", exclude_defaults=True)
    if not call.halted:
        content["text"] = call.text
    return json.dumps(content, ensure_ascii=False).encode("utf-8", "replace") + b"\n"


def _mend(path: Path) -> bool:
    """Cut off a last line that was torn; a whole one that only lacks its line break gets it. Returns whether anything
    is left in the file."""
    content = path.read_bytes()
    last = content[content.rfind(b"\n") + 1 :]
    if not last:
        return bool(content)
    try:
        json.loads(last)
    except ValueError:
        with path.open("r+b") as file:
            file.truncate(len(content) - len(last))
        return len(last) < len(content)
    with path.open("ab") as file:
        file.write(b"\n")
    return True
