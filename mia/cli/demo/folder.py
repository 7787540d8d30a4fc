"""The folder of a demonstration: made afresh by each, and never made of a folder that holds other things.

It holds a settings file with which every other command looks around in what was kept. The demonstration itself runs on
that file alone, so that neither the environment nor what the machine has installed changes it.
"""

from __future__ import annotations

import json
import shlex
import shutil
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mia.errors import ConfigError, StoreError

if TYPE_CHECKING:
    from rich.text import Text

    from mia.config import Config

STREAMS = "streams"
"""Where in the folder the stores are that are not the folder's own."""

_MARK = "# Made by `mia demo`, which begins afresh in this folder each time."
_SETTINGS = "mia.toml"


def prepare(folder: Path, sections: Mapping[str, Mapping[str, Any]]) -> Config:
    """Make the folder, or empty it; write its settings file and return what it says.

    `sections`: dotted names to plain values. Raises ConfigError for a folder that holds other things, StoreError if it
    cannot be written.
    """
    from mia.config import Config

    page = _toml(folder.resolve(), sections)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not _is_ours(folder) and any(folder.iterdir()):
            raise ConfigError(
                f"the folder '{folder}' holds something that is not of a demonstration.",
                wanted="a new folder, an empty one, or one that `mia demo` made",
                hint="mia demo --home ANOTHER",
            )
        for name in ("memory.db", "memory.db-wal", "memory.db-shm"):
            (folder / name).unlink(missing_ok=True)
        if (folder / STREAMS).exists():
            shutil.rmtree(folder / STREAMS)
        (folder / _SETTINGS).write_text(page, encoding="utf-8")
    except OSError as error:
        raise StoreError(f"cannot write in the folder '{folder}': {error.strerror}.") from error
    return Config(**tomllib.loads(page))


def commands(folder: Path, rows: Sequence[tuple[str, str]]) -> Iterator[Text]:
    """Lines to copy: what to type after the folder's settings, and what it shows."""
    from rich.text import Text

    command = f"mia --config {shlex.quote(str(folder / _SETTINGS))}"
    for rest, what in rows:
        yield Text.assemble((f"  {command} {rest}", "cyan"), (f"   {what}", "dim"))


def _is_ours(folder: Path) -> bool:
    settings = folder / _SETTINGS
    return settings.is_file() and settings.read_text(encoding="utf-8", errors="replace").startswith(_MARK)


def _toml(home: Path, sections: Mapping[str, Mapping[str, Any]]) -> str:
    # JSON writes texts, numbers, truth values and lists as TOML does.
    lines = [_MARK, f"home = {_value(str(home))}"]
    for name, values in sections.items():
        lines += ["", f"[{name}]", *(f"{key} = {_value(value)}" for key, value in values.items())]
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
