"""Which of the formats a file is in, told by how it begins."""

from __future__ import annotations

import re
import zlib
from pathlib import Path
from typing import Literal, get_args

from mia.errors import RecordError
from mia.memory.exchange.base import GZIP
from mia.memory.exchange.pages import FENCE

Format = Literal["mia", "react", "openai", "markdown"]

SAMPLE = 2**20
"""Bytes that are looked at."""

_TOKEN = re.compile(rb'"((?:[^"\\]|\\.)*+)"|[\[\]{}:,]', re.DOTALL)
_WANTED = (
    "mia (JSON Lines of `mia memory export`), react (JSON Lines with question and steps), "
    "openai (messages of conversations), markdown (pages that begin with ---, or a folder of them)"
)


def detect_format(source: Path | bytes) -> Format:
    """Of a file or folder, or of the first bytes of a file. Raises RecordError if it is none of the four."""
    if isinstance(source, bytes):
        return _detect(source, "this")
    if source.is_dir():
        return "markdown"
    try:
        with source.open("rb") as stream:
            return _detect(stream.read(SAMPLE), f"'{source}'")
    except OSError as error:
        raise RecordError(f"cannot read '{source}': {error.strerror}.") from error


def _detect(sample: bytes, name: str) -> Format:
    if sample.startswith(GZIP):
        try:
            sample = zlib.decompressobj(wbits=31).decompress(sample, SAMPLE)
        except zlib.error as error:
            raise RecordError(f"{name} is damaged: {error}.") from error
    sample = sample.removeprefix(b"\xef\xbb\xbf").lstrip()
    if sample.splitlines()[:1] and sample.splitlines()[0].rstrip() == FENCE.encode():
        return "markdown"
    if sample.startswith((b"{", b"[")):
        keys = _first_keys(sample)
        if keys & {"mia", "memory"}:
            return "mia"
        if keys & {"messages", "role"}:
            return "openai"
        if "steps" in keys:
            return "react"
    beginning = repr(sample[:60].decode("utf-8", "replace"))
    raise RecordError(
        f"{name} is in no format that can be imported; it begins {beginning}.",
        wanted=_WANTED,
        hint=f"name it: --format {'|'.join(get_args(Format))}",
    )


def _first_keys(sample: bytes) -> set[str]:
    """The keys of the first object, as far as the sample goes; in lists, of their first item."""
    keys: set[str] = set()
    depth, last = 0, b""
    inside = 1 + sample.partition(b"{")[0].count(b"[")
    for token in _TOKEN.finditer(sample):
        mark = token[0]
        if mark in (b"{", b"["):
            depth += 1
        elif mark in (b"}", b"]"):
            depth -= 1
            if depth < inside:
                break
        elif mark == b":" and depth == inside and last:
            keys.add(last.decode("utf-8", "replace"))
        last = token[1] or b""
    return keys
