"""Where memories and episodes are kept: one store, one transaction for row, vector and statistics."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mia.errors import StoreError

if TYPE_CHECKING:
    from mia.redaction import Level
    from mia.store.sqlite import SqliteStore


def open_store(path: Path, *, create: bool = True, redact: Level = "secrets") -> SqliteStore:
    """The store in this file; made where there is none, unless `create` is False. `redact`: what is blacked out of
    episodes. Raises StoreError."""
    from mia.redaction import Redactor
    from mia.store.sqlite import SqliteStore

    if not create and not path.exists():
        raise StoreError(
            f"no memory at '{path}'.",
            wanted="a file made by `mia ask`, `mia run` or `mia memory add`",
            hint="name another file with memory.path, or another folder with --home",
        )
    return SqliteStore(path, Redactor(redact))
