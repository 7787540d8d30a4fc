"""The options that stand before the command, and how a command gets its configuration."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from mia.config import Config


@dataclass(frozen=True)
class Shared:
    """The options before the command."""

    config_file: Path | None
    home: Path | None

    def config(self, flags: Mapping[str, Any] | None = None) -> Config:
        """The resolved configuration under a command's flags (dotted names; None where a flag was not given). Raises
        ConfigError, also for a home that is no folder and cannot become one."""
        from mia.config import load_config

        config = load_config(self.config_file, {"home": self.home, **(flags or {})})
        _check_home(config.home)
        return config

    def command(self, *words: str) -> str:
        """A command line that finds what this one found: `mia`, the options before the command as given, the words."""
        given = {"--config": self.config_file, "--home": self.home}
        before = [part for name, value in given.items() if value is not None for part in (name, str(value))]
        return shlex.join(("mia", *before, *words))


def _check_home(home: Path) -> None:
    """Every command would fail over this in words of its own. Raises ConfigError."""
    there = next((path for path in (home, *home.parents) if os.path.exists(path)), None)
    if there is None or there.is_dir():
        return
    from mia.errors import ConfigError

    which = "it" if there == home else f"'{there}'"
    raise ConfigError(
        f"the home '{home}' cannot be used: {which} is a file.",
        wanted="a folder, which is made where there is none (--home, MIA_HOME, or `home` in mia.toml)",
        hint="mia --home FOLDER …, or leave it out for .mia in this folder",
    )


def shared(context: typer.Context) -> Shared:
    """The options before the command, from any command's context."""
    found = context.find_object(Shared)
    assert found is not None
    return found


Corpus = Annotated[
    list[Path] | None,
    typer.Option("--corpus", "-c", help="Files and folders to answer from; indexed on first use. Repeatable."),
]
Index = Annotated[Path | None, typer.Option(help="An index made by `mia index`.")]
Model = Annotated[str | None, typer.Option("--model", "-m", help="The model's name at the endpoint.")]
BaseUrl = Annotated[
    str | None, typer.Option(help="The endpoint, e.g. http://localhost:11434/v1.", show_default="OPENAI_BASE_URL")
]
Replay = Annotated[Path | None, typer.Option(help="Answer model calls from this recording instead of an endpoint.")]
Record = Annotated[Path | None, typer.Option(help="Write every model call to this recording.")]
Plan = Annotated[bool | None, typer.Option("--plan/--no-plan", help="Write a search plan first.", show_default="on")]
Replan = Annotated[str | None, typer.Option(help="reflect, verdict or never.", show_default="reflect")]
UseMemory = Annotated[bool | None, typer.Option("--memory/--no-memory", help="Recall and remember.", show_default="on")]
Frozen = Annotated[bool | None, typer.Option("--frozen", help="Recall from the memory, and learn nothing.")]
JudgeKind = Annotated[
    str | None, typer.Option("--judge", help="auto, reference, llm, peer, trust or none.", show_default="auto")
]
MaxCalls = Annotated[
    int | None, typer.Option(min=1, help="The Executor's model calls per question.", show_default="20")
]
Tool = Annotated[
    list[str] | None,
    typer.Option(
        "--tool", help="search, lookup, fetch, read or web_image_to_image_search. Repeatable.", show_default="search"
    ),
]
Learn = Annotated[bool | None, typer.Option("--learn", help="Learn from the questions while they are answered.")]
"""Of a service."""


def team_flags(
    *,
    corpus: list[Path] | None,
    index: Path | None,
    model: str | None,
    base_url: str | None,
    replay: Path | None,
    record: Path | None,
    plan: bool | None,
    replan: str | None,
    memory: bool | None,
    frozen: bool | None,
    judge: str | None,
    max_calls: int | None,
    tool: list[str] | None,
) -> dict[str, Any]:
    """The flags of who answers, which `ask`, `run`, `serve` and `mcp` share, under their dotted names."""
    return {
        "search.corpus": tuple(str(path) for path in corpus) if corpus else None,
        "search.index": str(index) if index else None,
        "models.default.model": model,
        "models.default.base_url": base_url,
        "models.default.provider": "replay" if replay else None,
        "models.default.path": str(replay) if replay else None,
        "models.record": str(record) if record else None,
        "line.plan": plan,
        "line.replan": replan,
        "memory.enabled": memory,
        "memory.frozen": frozen,
        "judge.kind": judge,
        "executor.max_calls": max_calls,
        "executor.tools": tuple(tool) if tool else None,
    }
