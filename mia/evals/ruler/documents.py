"""A user's questions with the documents they are asked about, from files in the formats of HotpotQA and SQuAD.

Accepted, as JSON or JSON Lines, also .gz:

- HotpotQA: objects with `question`, `answer` (or `answers`), `context` (a list of [title, sentences], or {"title": […],
  "sentences": [[…]]}) and `supporting_facts` (a list of [title, sentence], or {"title": […]});
- SQuAD: {"data": [{"title", "paragraphs": [{"context", "qas": [{"question", "answers": [{"text"}]}]}]}]};
- flat: objects with `question`, `answers` (texts, or {"text": […]}), `context` (a text) and `title`.

Questions without an answer (SQuAD 2.0 has some) are left out. All documents of a file, each once, are the pool that
others are drawn from; a corpus of {"title", "text"} objects can add to it.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mia.errors import RecordError


@dataclass(frozen=True)
class Document:
    title: str
    text: str


@dataclass(frozen=True)
class Asked:
    """A question, its answers, and the documents that come with it."""

    id: str
    question: str
    answers: tuple[str, ...]
    own: tuple[Document, ...]
    supporting: frozenset[str]
    """Titles of those that the answer needs; all of its own where the file does not say."""


@dataclass(frozen=True)
class Corpus:
    """Questions, and all documents that are known."""

    name: str
    questions: tuple[Asked, ...]
    pool: tuple[Document, ...]
    digest: str


def read_corpus(path: Path, more: Path | None = None) -> Corpus:
    """Questions of one file; `more`: a file of further documents. Raises RecordError for what cannot be read as such,
    naming the first broken entry."""
    digest = hashlib.sha256()
    questions = tuple(_questions(_entries(path, digest), path))
    if not questions:
        raise RecordError(f"'{path}' holds no question with an answer.", wanted="a file of HotpotQA or SQuAD")
    pool = dict.fromkeys(document for asked in questions for document in asked.own)
    if more is not None:
        pool |= dict.fromkeys(_documents(_entries(more, digest), more))
    return Corpus(path.name, questions, tuple(pool), digest.hexdigest()[:12])


def write_documents(documents: Iterable[Document]) -> str:
    """`Document i:`, title and text, with a blank line between (MemAgent's form)."""
    return "\n\n".join(
        f"Document {number}:\n{document.title}\n{document.text}" for number, document in enumerate(documents, start=1)
    )


def _entries(path: Path, digest: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Objects, each with where it stands."""
    try:
        content = path.read_bytes()
        digest.update(content)
        text = (gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content).decode("utf-8-sig")
    except (OSError, EOFError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise RecordError(f"cannot read '{path}': {reason}.") from error
    except UnicodeDecodeError as error:
        raise RecordError(f"'{path}' is no UTF-8 text ({error.reason} at byte {error.start}).") from error
    for where, entry in _parse(text, path):
        if not isinstance(entry, dict):
            raise RecordError(f"'{path}', {where}, is no JSON object.")
        yield where, entry


def _parse(text: str, path: Path) -> Iterator[tuple[str, Any]]:
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError):
        # Not one document: a line each. (Not splitlines: it also breaks at characters that JSON allows in strings.)
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                try:
                    yield f"line {number}", json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise RecordError(f"'{path}', line {number}, is no JSON ({error}).") from error
        return
    if isinstance(whole, dict) and isinstance(whole.get("data"), list):
        whole = whole["data"]
    for number, entry in enumerate(whole if isinstance(whole, list) else [whole], start=1):
        yield f"entry {number}", entry


def _questions(entries: Iterable[tuple[str, dict[str, Any]]], path: Path) -> Iterator[Asked]:
    number = 0
    for where, entry in entries:
        try:
            for asked in _read_entry(entry, number):
                number += 1
                if asked.answers:
                    yield asked
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise RecordError(
                f"'{path}', {where}, is no question with documents ({type(error).__name__}: {error}).",
                wanted="an entry of HotpotQA or SQuAD",
            ) from error


def _read_entry(entry: dict[str, Any], number: int) -> Iterator[Asked]:
    if "paragraphs" in entry:
        for paragraph in entry["paragraphs"]:
            document = Document(str(entry.get("title", "")), _text(paragraph["context"]))
            for asked in paragraph["qas"]:
                yield _asked(asked, (document,), number)
                number += 1
        return
    context = entry["context"]
    if isinstance(context, str):
        yield _asked(entry, (Document(str(entry.get("title", "")), _text(context)),), number)
        return
    pairs = zip(context["title"], context["sentences"], strict=True) if isinstance(context, dict) else context
    own = tuple(Document(_text(title), "".join(_sentences(text)).strip()) for title, text in pairs)
    yield _asked(entry, own, number)


def _asked(entry: dict[str, Any], own: tuple[Document, ...], number: int) -> Asked:
    facts = entry.get("supporting_facts") or []
    named = facts["title"] if isinstance(facts, dict) else [fact[0] for fact in facts]
    titles = frozenset(document.title for document in own)
    answers = entry.get("answers", entry.get("answer", []))
    return Asked(
        id=str(entry.get("id", entry.get("_id", number))),
        question=_text(entry["question"]).strip(),
        answers=tuple(dict.fromkeys(answer.strip() for answer in _answers(answers) if answer.strip())),
        own=own,
        supporting=frozenset(named) & titles or titles,
    )


def _answers(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        value = value["text"]
    for answer in value if isinstance(value, list) else [value]:
        yield _text(answer["text"] if isinstance(answer, dict) else answer)


def _sentences(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else [_text(sentence) for sentence in value]


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.40} is no text")
    return value


def _documents(entries: Iterable[tuple[str, dict[str, Any]]], path: Path) -> Iterator[Document]:
    for where, entry in entries:
        title, text = entry.get("title", ""), entry.get("text")
        if not isinstance(title, str) or not isinstance(text, str):
            raise RecordError(f"'{path}', {where}, is no document.", wanted='{"title": "…", "text": "…"}')
        yield Document(title, text)
