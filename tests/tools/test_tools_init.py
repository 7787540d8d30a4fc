"""Tools from a configuration."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from mia.config import Config, load_config
from mia.errors import ConfigError
from mia.tools import build_tools
from mia.types import Passage


class Empty:
    name = "empty"

    async def search(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        return [[] for _ in queries]

    async def close(self) -> None:
        pass


def config(*tools: str, **flags: object) -> Config:
    named = {name.replace("__", "."): value for name, value in flags.items()}
    return load_config(flags={"executor.tools": tools, **named})


@pytest.fixture(autouse=True)
def _no_configuration_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_every_tool_of_the_settings_can_be_built(tmp_path: Path) -> None:
    names = ("fetch", "search", "lookup", "web_image_to_image_search")
    tools = build_tools(config(*names, search__images=str(tmp_path), search__k=7), Empty())
    assert tuple(tool.schema.name for tool in tools) == names
    assert "up to 7 passages" in tools[1].schema.description


def test_a_tool_named_twice_is_built_once() -> None:
    assert len(build_tools(config("lookup", "lookup"), None)) == 1


def test_search_without_an_engine_says_what_to_type() -> None:
    with pytest.raises(ConfigError, match="--corpus"):
        build_tools(config("search"), None)


def test_image_search_without_a_cache_says_what_to_set() -> None:
    with pytest.raises(ConfigError, match=r"search\.images"):
        build_tools(config("web_image_to_image_search"), None)


async def test_tools_close_without_having_been_used(tmp_path: Path) -> None:
    names = ("fetch", "search", "lookup", "web_image_to_image_search")
    for tool in build_tools(config(*names, search__images=str(tmp_path)), Empty()):
        await tool.close()
        await tool.close()


def test_importing_the_package_loads_no_tool() -> None:
    code = "import sys, mia.tools; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"httpx2", "trafilatura", "pypdf", "mia.tools.fetch"} & set(loaded)
