"""`mia config`: the resolved settings, as a page that can be kept as mia.toml."""

from __future__ import annotations

import json as json_module
from collections.abc import Iterator
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import typer

from mia.cli import options, output

if TYPE_CHECKING:
    from pydantic import BaseModel


def config(context: typer.Context, json: output.JsonFlag = False) -> None:
    """Show every setting with its value here and what it means; `mia config > mia.toml` keeps the page.

    Secrets are not shown. What stands behind a # is not set.
    """
    page = options.shared(context).config()
    if json:
        output.result_json(page.resolved())
    else:
        output.result("\n".join(_toml(page, "")).strip())


def _toml(section: BaseModel, prefix: str) -> Iterator[str]:
    """The section's own settings, then its subsections, each with its comment."""
    from pydantic import BaseModel, SecretStr

    subsections: list[tuple[str, BaseModel]] = []
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            subsections.append((name, value))
            continue
        if isinstance(value, SecretStr):
            value = None
        for line in (field.description or "").splitlines():
            yield f"# {line.strip()}"
        yield f"# {name} =" if value is None else f"{name} = {_value(value)}"
    for name, value in subsections:
        yield ""
        yield f"[{prefix}{name}]"
        yield from _toml(value, f"{prefix}{name}.")


def _value(value: Any) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    return json_module.dumps(str(value) if isinstance(value, PurePath) else value, ensure_ascii=False)
