"""Where the reading of a text for a question stands: kept after each chunk, so that it can go on after a stop.

A bookmark belongs to one question, one text, one model and one set of settings: with any other it is not found, because
its memory would not be the one that an unbroken reading has there. Each is a file of its own, named by all of that
(`Reader.place`), and written whole, by renaming; so a death leaves the one before it. One that cannot be read counts as
none.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from pydantic import ValidationError

from mia.errors import StoreError
from mia.reader.trace import Form
from mia.types import Record, Usage

BOOKMARK_VERSION = 1


class Bookmark(Record):
    version: int = BOOKMARK_VERSION
    question: str
    text: str
    """What the text is called, for people."""
    chunk: int = 0
    """The number of the next chunk."""
    start: int = 0
    """Of its first character."""
    memory: str = ""
    """Empty: nothing was kept yet."""
    tokens: int = 0
    """Of the chunks so far."""
    kept: int = 0
    """Chunks after which the memory stayed as it was, because the model wrote none."""
    cut: int = 0
    """Chunks after which the memory was cut."""
    left_out: int = 0
    """Characters that a cap left out, once the text is read."""
    read: bool = False
    """Whether all of the text was read, and only the answer is missing."""
    answer: str | None = None
    form: Form = "none"
    reply: str = ""
    usage: Usage = Usage()


class Bookmarks:
    """The bookmarks in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, key: str) -> Bookmark | None:
        try:
            found = Bookmark.model_validate_json((self.folder / f"{key}.json").read_bytes())
        except (OSError, ValidationError):
            return None
        return found if found.version == BOOKMARK_VERSION else None

    def put(self, key: str, bookmark: Bookmark) -> None:
        """Raises StoreError."""
        path = self.folder / f"{key}.json"
        part = path.with_suffix(f".{os.getpid()}.part")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            part.write_text(bookmark.model_dump_json(), encoding="utf-8")
            part.replace(path)
        except OSError as error:
            raise StoreError(
                f"where the reading stands cannot be kept in '{self.folder}': {error.strerror}."
            ) from error

    def remove(self, key: str) -> None:
        with suppress(OSError):
            (self.folder / f"{key}.json").unlink()
