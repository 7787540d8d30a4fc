"""The options that stand before the command, and how a command gets its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from mia.config import Config


@dataclass(frozen=True)
class Shared:
    """The options before the command."""

    config_file: Path | None
    home: Path | None

    def config(self, flags: Mapping[str, Any] | None = None) -> Config:
        """The resolved configuration under a command's flags (dotted names; None where a flag was not given)."""
        from mia.config import load_config

        return load_config(self.config_file, {"home": self.home, **(flags or {})})


def shared(context: typer.Context) -> Shared:
    """The options before the command, from any command's context."""
    found = context.find_object(Shared)
    assert found is not None
    return found
