"""Whose memories these are: a path `tenant`, `tenant/project` or `tenant/project/user`.

A scope sees itself and the levels above it: a user sees what his project and his tenant share. It never sees what is
beside it or below it.
"""

from __future__ import annotations

from mia.errors import ConfigError

LEVELS = ("tenant", "project", "user")


def check_scope(scope: str) -> str:
    """The scope, if it is one. Raises ConfigError."""
    parts = scope.split("/")
    if len(parts) > len(LEVELS) or any(part != part.strip() or not part or part in (".", "..") for part in parts):
        raise ConfigError(
            f"no scope: {scope!r}.",
            wanted="one to three names with slashes between, as tenant/project/user",
            hint="--scope acme/research/ann",
        )
    if any(ord(letter) < 32 for letter in scope):
        raise ConfigError("a scope with control characters.", wanted="names of letters, digits, dashes, spaces")
    return scope


def lineage(scope: str) -> tuple[str, ...]:
    """The scopes whose memories this one sees: itself first, then the levels above it."""
    parts = scope.split("/")
    return tuple("/".join(parts[:count]) for count in range(len(parts), 0, -1))


def covers(scope: str, other: str) -> bool:
    """Whether `other` is this scope or lies below it."""
    return other == scope or other.startswith(f"{scope}/")
