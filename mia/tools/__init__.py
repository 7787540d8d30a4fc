"""The tools that a configuration names, built.

Light to import: what a tool needs is loaded when that tool is built.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from mia.config import Config
from mia.errors import ConfigError
from mia.search.base import SearchEngine
from mia.tools.base import Tool


def build_tools(
    config: Config, engine: SearchEngine | None, built: Mapping[str, Tool] = MappingProxyType({})
) -> tuple[Tool, ...]:
    """The Executor's tools, in the order of `executor.tools`, then those of MCP servers. Raises ConfigError for a tool
    that lacks what it needs, MissingExtra.

    `engine`: what `search` asks; from then on it belongs to that tool, which closes it. `built`: tools that need more
    than settings (those that read with a model), by name.
    """
    tools = tuple(built.get(name) or _build(name, config, engine) for name in dict.fromkeys(config.executor.tools))
    if not config.mcp:
        return tools
    from mia.tools.mcp import open_tools

    return (*tools, *open_tools(config))


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
    if name == "read":
        raise ConfigError("the tool 'read' needs a model to read with, and there is none here.")
    from mia.tools.images import ImageSearchTool

    if not config.search.images:
        raise ConfigError(
            f"the tool '{name}' has no cache folder to read from.",
            wanted="search.images: a folder with one folder per question id",
            hint="export MIA_SEARCH__IMAGES=./image-search",
        )
    return ImageSearchTool(Path(config.search.images))
