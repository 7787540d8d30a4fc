"""One memory as one page of Markdown, for people and for git; its texts come back letter for letter.

A page is a block of fields between two lines `---`, then sections under fixed headings (docs/memory-exchange.md). What
an editor, git or a terminal would change or hide is written as an entity: `&#13;` for a carriage return, `&#32;` for a
blank at the end of a line, and so for every control character. A line of a text that looks like one of our headings
gets a backslash in front. Both are Markdown, and mean the same there.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError

from mia.errors import RecordError
from mia.memory.exchange.base import parse
from mia.types import Memory, Review

FENCE = "---"

# Sections, in the order in which they are written, by the field that they hold.
_SECTIONS = {
    "question": "Question",
    "caption": "Caption",
    "workflow": "Workflow",
    "plan": "Plan",
    "incorrect_plan": "Incorrect plan",
    "reviews": "Reviews",
}
_FIELDS = (
    *("id", "scope", "kind", "judgement", "category", "state", "replaced_by", "counts", "created", "expires"),
    *("episode", "leaned_on", "compressed_by", "origin"),
)
_HEADING_WORDS = "question|caption|workflow|plan|incorrect[ \t]+plan|reviews|reasoning|sourcing|validity"
_LIKE_A_HEADING = re.compile(rf"\\*+#{{2,3}}[ \t]+(?:{_HEADING_WORDS})\b", re.IGNORECASE | re.ASCII)
_SECTION = re.compile(
    r"##[ \t]+(question|caption|workflow|plan|incorrect[ \t]+plan|reviews)[ \t]*", re.IGNORECASE | re.ASCII
)
_REVIEW = re.compile(r"###[ \t]+(reasoning|sourcing|validity):[ \t]*([0-9]{1,2})[ \t]*", re.IGNORECASE | re.ASCII)

# Control characters, line breaks that only some programs see, marks that turn the direction of writing, invisible tags.
_HIDDEN = (
    *(number for number in range(0xA0) if (number < 32 or number >= 0x7F) and number not in (9, 10)),
    *(0x2028, 0x2029, 0xFEFF, 0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)),
    *range(0xE0000, 0xE0080),
)
_ENTITIES = {number: f"&#{number};" for number in _HIDDEN}
_ENTITY_NUMBERS = frozenset((9, 10, 32, *_HIDDEN))
_ENTITY = re.compile(r"&((?:amp;)*+)#([0-9]{1,7});")

_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_./-]*")
_YAML_WORDS = frozenset(("true", "false", "null", "yes", "no", "on", "off", "y", "n"))
_MOMENT = re.compile(r"(\d{4}-\d\d-\d\d)(?:[T ](\d\d:\d\d:\d\d)(?:\.(\d{1,20}))?)?Z?", re.ASCII)
_LAST_MOMENT = datetime(9999, 12, 31, tzinfo=UTC).timestamp()
_PLAIN_ID = re.compile(r"[a-z0-9_-]{1,64}")
_SLUG_LENGTH = 40


@dataclass(frozen=True)
class Page:
    """What a page says."""

    memory: Memory
    """Where the page is silent: id "", the defaults of a memory, and 0 for its times."""
    fields: frozenset[str]
    """The fields that are there."""


def file_name(memory: Memory) -> str:
    """`<id>.<first words of the question>.md`. It never changes, and no id can make it a path."""
    id = memory.id
    if not _PLAIN_ID.fullmatch(id):
        id = "id-" + hashlib.sha256(id.encode("utf-8", "surrogatepass")).hexdigest()[:24]
    plain = unicodedata.normalize("NFKD", memory.question[:400]).encode("ascii", "ignore").decode().lower()
    slug = ""
    for word in re.findall(r"[a-z0-9]+", plain):
        if len(slug) + 1 + len(word) > _SLUG_LENGTH:
            break
        slug = f"{slug}-{word}" if slug else word
    return f"{id}.{slug or 'memory'}.md"


# ── writing ───────────────────────────────────────────────────────────────────────────────────────────────────────


def write_page(memory: Memory) -> str:
    """The page of a memory. A credit changes one line of it."""
    lines = [FENCE, *_front_matter(memory), FENCE]
    for field, heading in _SECTIONS.items():
        if field == "reviews":
            body = "\n\n".join(_review(review) for review in memory.reviews)
        else:
            body = _escaped(getattr(memory, field))
        if body:
            lines += ["", f"## {heading}", "", body]
    return "\n".join(lines) + "\n"


def _front_matter(memory: Memory) -> Iterator[str]:
    provenance = memory.provenance
    yield f"id: {_scalar(memory.id)}"
    yield f"scope: {_scalar(memory.scope)}"
    yield f"kind: {memory.kind.value}"
    yield f"judgement: {memory.judgement}"
    yield f"category: {_scalar(memory.category)}"
    yield f"state: {memory.state.value}"
    if memory.replaced_by:
        yield f"replaced_by: {_scalar(memory.replaced_by)}"
    yield f"counts: {json.dumps({'uses': memory.uses, 'wins': memory.wins})}"
    yield f"created: {_moment(memory.created_at)}"
    if memory.expires_at is not None:
        yield f"expires: {_moment(memory.expires_at)}"
    if provenance.episode_id:
        yield f"episode: {_scalar(provenance.episode_id)}"
    if provenance.leaned_on:
        yield f"leaned_on: {json.dumps(provenance.leaned_on)}"
    if provenance.compressed_by:
        yield f"compressed_by: {_scalar(provenance.compressed_by)}"
    yield f"origin: {provenance.origin}"


def _review(review: Review) -> str:
    reason = _escaped(review.reason)
    return f"### {review.reviewer}: {review.score}" + (f"\n\n{reason}" if reason else "")


def _scalar(text: str) -> str:
    """As YAML reads it: plain where that is safe, else in double quotes."""
    return text if _PLAIN.fullmatch(text) and text.lower() not in _YAML_WORDS else json.dumps(text)


def _moment(seconds: float) -> str:
    """A time in UTC with all its digits; as a number where no calendar has it."""
    whole, _, fraction = repr(float(seconds)).partition(".")
    if not whole.isdigit() or not fraction.isdigit() or seconds >= _LAST_MOMENT:
        return repr(float(seconds))
    return f"{datetime.fromtimestamp(int(whole), UTC):%Y-%m-%dT%H:%M:%S}.{fraction}Z"


def _escaped(text: str) -> str:
    """A text that begins and ends with something visible, and holds no line that looks like a heading of ours."""
    text = _ENTITY.sub(lambda found: f"&amp;{found[0][1:]}" if int(found[2]) in _ENTITY_NUMBERS else found[0], text)
    text = text.translate(_ENTITIES)
    inside = text.strip("\n")
    before = len(text) - len(text.lstrip("\n"))
    after = len(text) - len(inside) - before
    text = "&#10;" * before + inside + "&#10;" * after
    return "\n".join(map(_escaped_line, text.split("\n")))


def _escaped_line(line: str) -> str:
    if line.endswith((" ", "\t")):
        line = f"{line[:-1]}&#{ord(line[-1])};"
    return f"\\{line}" if _LIKE_A_HEADING.match(line) else line


# ── reading ───────────────────────────────────────────────────────────────────────────────────────────────────────


def read_page(content: bytes) -> Page:
    """What `write_page` wrote, or a person. Raises RecordError saying what is wrong."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecordError(f"it is not UTF-8 (byte {error.start})") from error
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    if lines[0].rstrip() != FENCE:
        raise RecordError(f"it does not begin with a line '{FENCE}' and fields")
    end = next((number for number, line in enumerate(lines[1:], start=1) if line.rstrip() == FENCE), None)
    if end is None:
        raise RecordError(f"its fields do not end with a line '{FENCE}'")
    fields, sections = _read_fields(lines[1:end]), _read_sections(lines[end + 1 :])
    if "question" not in sections or not sections["question"].strip():
        raise RecordError("it has no '## Question'")
    if fields.get("judgement") not in ("correct", "incorrect"):
        raise RecordError("it has no 'judgement: correct' or 'judgement: incorrect'")
    reviews = _read_reviews(sections.pop("reviews", ""))
    texts = {field: _unescaped(text) for field, text in sections.items()}
    try:
        return _page(fields, texts, reviews)
    except ValidationError as error:
        first = error.errors()[0]
        raise RecordError(f"'{'.'.join(str(part) for part in first['loc'])}': {first['msg']}") from error
    except (ValueError, TypeError, KeyError) as error:
        raise RecordError(f"a field has a wrong value: {error}") from error


def _page(fields: dict[str, Any], texts: dict[str, str], reviews: tuple[Review, ...]) -> Page:
    counts = fields.get("counts", {})
    if not isinstance(counts, dict) or counts.keys() - {"uses", "wins"}:
        raise ValueError(f"counts: {counts}")
    plain = ("scope", "kind", "judgement", "category", "state", "replaced_by")
    provenance = {"episode_id": "episode", "leaned_on": "leaned_on", "compressed_by": "compressed_by"}
    memory = Memory.model_validate(
        {
            "id": fields.get("id", ""),
            **{name: fields[name] for name in plain if name in fields},
            **counts,
            "created_at": _read_moment(fields.get("created", 0)),
            "updated_at": 0,
            "expires_at": _read_moment(fields["expires"]) if "expires" in fields else None,
            "provenance": {
                "origin": fields.get("origin", "user"),
                **{name: fields[field] for name, field in provenance.items() if field in fields},
            },
            "reviews": reviews,
            **texts,
        }
    )
    return Page(memory, frozenset(fields))


def _read_fields(lines: list[str]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for line in lines:
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, colon, value = line.partition(":")
        name, value = name.strip(), value.strip()
        if not colon or name not in _FIELDS:
            raise RecordError(f"'{line.strip()[:60]}' is no field; there are {', '.join(_FIELDS)}")
        if name in fields:
            raise RecordError(f"it has two fields '{name}'")
        if value.startswith(('"', "[", "{")):
            try:
                fields[name] = parse(value.encode())
            except RecordError as error:
                raise RecordError(f"its field '{name}' cannot be read: {error.got}") from error
        else:
            fields[name] = value
    return fields


def _read_sections(lines: list[str]) -> dict[str, str]:
    """The raw text of each section, by field."""
    sections: dict[str, list[str]] = {}
    current: list[str] | None = None
    for line in lines:
        heading = _SECTION.fullmatch(line)
        if heading:
            field = "_".join(heading[1].lower().split())
            if field in sections:
                raise RecordError(f"it has two sections '## {_SECTIONS[field]}'")
            current = sections[field] = []
        elif current is not None:
            current.append(line)
        elif line.strip():
            raise RecordError(f"'{line.strip()[:60]}' stands before the first section, such as '## Question'")
    return {field: _without_margin(content) for field, content in sections.items()}


def _without_margin(lines: list[str]) -> str:
    """Without the blank lines around it."""
    first = next((number for number, line in enumerate(lines) if line.strip(" \t")), len(lines))
    last = next((number for number in range(len(lines), first, -1) if lines[number - 1].strip(" \t")), first)
    return "\n".join(lines[first:last])


def _read_reviews(text: str) -> tuple[Review, ...]:
    reviews: list[tuple[str, int, list[str]]] = []
    for line in text.split("\n"):
        heading = _REVIEW.fullmatch(line)
        if heading:
            reviews.append((heading[1].lower(), int(heading[2]), []))
        elif reviews:
            reviews[-1][2].append(line)
        elif line.strip():
            raise RecordError(f"'{line.strip()[:60]}' stands before the first review, such as '### reasoning: 7'")
    try:
        return tuple(
            Review.model_validate({"reviewer": name, "score": score, "reason": _unescaped(_without_margin(reason))})
            for name, score, reason in reviews
        )
    except ValidationError as error:
        raise RecordError(f"a review is broken: {error.errors()[0]['msg']}") from error


def _unescaped(text: str) -> str:
    lines = (line[1:] if line.startswith("\\") and _LIKE_A_HEADING.match(line) else line for line in text.split("\n"))
    return _ENTITY.sub(_character, "\n".join(lines))


def _character(found: re.Match[str]) -> str:
    if int(found[2]) not in _ENTITY_NUMBERS:
        return found[0]
    return f"&{found[0][len('&amp;') :]}" if found[1] else chr(int(found[2]))


def _read_moment(value: Any) -> float:
    """Seconds since the epoch. Raises ValueError."""
    found = _MOMENT.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        return float(value)
    moment = datetime.fromisoformat(f"{found[1]}T{found[2] or '00:00:00'}+00:00")
    return float(f"{int(moment.timestamp())}.{found[3] or 0}")
