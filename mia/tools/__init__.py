"""The tools that a configuration names, built.

Light to import: what a tool needs is loaded when that tool is built.
"""

from __future__ import annotations

from pathlib import Path

from mia.config import Config
from mia.errors import ConfigError
from mia.search.base import SearchEngine
from mia.tools.base import Tool


def build_tools(config: Config, engine: SearchEngine | None) -> tuple[Tool, ...]:
    """The Executor's tools, in the order of `executor.tools`. Raises ConfigError for a tool that lacks what it needs.

    `engine`: what `search` asks; from then on it belongs to that tool, which closes it.
    """
    return tuple(_build(name, config, engine) for name in dict.fromkeys(config.executor.tools))


def _build(name: str, config: Config, engine: SearchEngine | None) -> Tool:
    if name == "search":
        from mia.tools.search import SearchTool

        if engine is None:
            raise ConfigError(
                "there is nothing to search in: the tool 'search' has no engine.",
                wanted="a corpus (search.corpus) or another engine (search.engine)",
                hint='mia ask "…" --corpus ./docs',
            )
        return SearchTool(engine, config.search.k)
    if name == "lookup":
        from mia.tools.lookup import LookupTool

        return LookupTool()
    if name == "fetch":
        from mia.tools.fetch import FetchTool

        return FetchTool()
    from mia.tools.images import ImageSearchTool

    if not config.search.images:
        raise ConfigError(
            f"the tool '{name}' has no cache folder to read from.",
            wanted="search.images: a folder with one folder per question id",
            hint="export MIA_SEARCH__IMAGES=./image-search",
        )
    return ImageSearchTool(Path(config.search.images))
