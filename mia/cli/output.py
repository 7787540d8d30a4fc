"""How commands speak: results to stdout, everything else to stderr, errors in three parts.

Text from models, documents and tools is printed with its control characters made visible, so that none of it can drive
the terminal.
"""

from __future__ import annotations

import json
import re
import sys
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mia.errors import ConfigError, MiaError, RecordError

if TYPE_CHECKING:
    from rich.console import Console

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of text for people.")]
"""The `--json` flag that every command has. Results alone are JSON on stdout; errors stay text on stderr."""

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    """The text with control and direction characters as `\\x..` escapes; tabs and line ends stay."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match.group()):02x}", text.replace("\r\n", "\n"))


def result(text: str) -> None:
    """A result, for stdout."""
    _write(sys.stdout, visible(text) + "\n")


def result_json(value: Any) -> None:
    """A result as one JSON document, for stdout."""
    text = json.dumps(value, ensure_ascii=False, indent=2)
    # JSON itself escapes only the characters below the space; the same text must not steer a terminal.
    _write(sys.stdout, _CONTROL.sub(lambda match: f"\\u{ord(match.group()):04x}", text) + "\n")


@cache
def console() -> Console:
    """The console of stderr, for notes, tables of progress and bars."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


@cache
def result_console() -> Console:
    """The console of stdout, for results laid out as tables."""
    from rich.console import Console

    return Console(highlight=False)


def note(text: str) -> None:
    """A dim line for people, on stderr."""
    console().print(visible(text), style="dim", markup=False, soft_wrap=True)


def warn(text: str) -> None:
    """A line that people should see, on stderr."""
    console().print(visible(text), style="yellow", markup=False, soft_wrap=True)


def show_error(error: MiaError) -> int:
    """Print an error in its three parts; returns the exit status: 2 for a misuse, 1 for a failure."""
    _write(sys.stderr, f"Error: {visible(str(error))}\n")
    return 2 if isinstance(error, ConfigError | RecordError) else 1


def plural(count: int, noun: str) -> str:
    """`1 memory`, `2 memories`."""
    if count == 1:
        return f"1 {noun}"
    return f"{count:,} {noun[:-1]}ies" if noun.endswith("y") else f"{count:,} {noun}s"


def _write(stream: Any, text: str) -> None:
    stream.write(text.encode("utf-8", "backslashreplace").decode())
    stream.flush()
