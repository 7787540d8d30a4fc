"""Tools of other programs: what servers of the Model Context Protocol offer, and `mcp.NAME.allow` lets through.

Each server has a thread with an event loop of its own, which holds the connection for as long as its tools live: so
they can be built where no loop runs, and called from any. A call that brings no result (an error, a time limit, a
caller who went away) puts the connection in doubt: before the next one the server is asked whether it is still there,
and begun anew if it is not. The call that failed is not made again by itself: it may have done something.

What a server says is text from outside. Descriptions and schemas are cut and defused here, before they reach a prompt;
results are cut here, and defused by the Executor like any other.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import os
import re
import threading
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mia import __version__
from mia.config import Config, McpServerSettings
from mia.errors import ConfigError, ToolError, require
from mia.models.base import ToolSchema
from mia.prompt import defuse
from mia.tools.base import BadArguments, ToolContext
from mia.types import Observation, Passage

if TYPE_CHECKING:
    from mcp import Client
    from mcp_types import CallToolResult, ContentBlock
    from mcp_types import Tool as Offered

T = TypeVar("T")

MAX_NAME = 64
"""Letters of a tool's name, as endpoints take them."""
MAX_DESCRIPTION = 1_000
"""Characters of a description, the tool's and each within its schema."""
MAX_SCHEMA = 20_000
"""Characters of a schema as JSON; a tool with a longer one is refused."""
MAX_RESULT = 20_000
"""Characters of one result; what is longer is cut, and says so."""
MAX_REASON = 1_000
"""Characters of an error."""
MAX_PAGES = 50
"""Of a list of tools."""
CLOSING_SECONDS = 10.0
"""For a server to end; then it is left alone."""
PROBE_SECONDS = 5.0
"""For a server in doubt to say that it is there."""


def open_tools(config: Config) -> tuple[McpTool, ...]:
    """The allowed tools of every server of `config.mcp`, in that order; a server of which nothing is allowed is not
    begun. Waits until all have said what they offer. Raises ConfigError, MissingExtra."""
    allowed = {name: settings for name, settings in config.mcp.items() if settings.allow}
    if allowed:
        require("mcp", extra="service", purpose="the tools of MCP servers")
    servers: list[Server] = []
    try:
        tools: list[McpTool] = []
        for name, settings in allowed.items():
            servers.append(Server(name, settings, config.home / "mcp" / f"{name}.log"))
            tools += _tools(servers[-1], settings)
        names = [tool.schema.name for tool in tools]
        twice = next((name for name in names if names.count(name) > 1), "")
        if twice:
            raise ConfigError(f"two tools of MCP servers would be called '{twice}'.", hint="rename a server: mcp.NAME")
    except BaseException:
        for server in servers:
            server.close_now()
        raise
    return tuple(tools)


def _tools(server: Server, settings: McpServerSettings) -> list[McpTool]:
    """Raises ConfigError."""
    offered = {tool.name: tool for tool in server.offered()}
    unknown = [name for name in settings.allow if name not in offered]
    if unknown:
        raise ConfigError(
            f"the MCP server '{server.name}' offers no tool '{unknown[0]}'.",
            wanted=f"names out of: {', '.join(defuse(name)[:MAX_NAME] for name in list(offered)[:50]) or 'none'}",
            hint=f"mcp.{server.name}.allow",
        )
    return [McpTool(server, offered[name]) for name in dict.fromkeys(settings.allow)]


class McpTool:
    """One tool of a server, called `SERVER__TOOL`, so that it never clashes with one of ours."""

    def __init__(self, server: Server, offered: Offered) -> None:
        """Raises ConfigError for a tool whose schema is too long for a prompt."""
        self._server = server
        self._offered = offered.name
        name = re.sub(r"[^A-Za-z0-9_-]", "_", f"{server.name}__{offered.name}")[:MAX_NAME]
        parameters = _harmless(offered.input_schema)
        length = len(json.dumps(parameters))
        if length > MAX_SCHEMA:
            raise ConfigError(
                f"the schema of '{offered.name[:MAX_NAME]}', a tool of the MCP server '{server.name}', has {length:,} "
                "characters.",
                wanted=f"up to {MAX_SCHEMA:,}: each question's prompt would hold it",
                hint=f"leave it out of mcp.{server.name}.allow",
            )
        said = _cut(offered.description or offered.title or "", MAX_DESCRIPTION)
        self.schema = ToolSchema(
            name=name,
            description=f"A tool of the server '{server.name}'. {defuse(' '.join(said.split()))}".strip(),
            parameters=parameters,
        )

    async def call(self, arguments: dict[str, Any], context: ToolContext) -> Observation:
        """Raises ToolError or BadArguments."""
        result = await self._server.call(self._offered, arguments)
        text = _text(result)
        if result.is_error:
            raise ToolError(_cut(text, MAX_REASON) or "it said that it failed, and not why.")
        text = _cut(text, MAX_RESULT)
        if not text.strip():
            return Observation(text="It gave back nothing.")
        name = self.schema.name
        return Observation(
            text=f"[{name}]\n{text}", passages=(Passage(id=name, text=text, source=f"mcp:{self._server.name}"),)
        )

    async def close(self) -> None:
        """Ends the server, for all of its tools."""
        await self._server.close()


class Server:
    """The connection to one server. Its methods may be called from any thread or loop."""

    def __init__(self, name: str, settings: McpServerSettings, log: Path) -> None:
        """`log`: where what it writes to stderr goes; from its last start only."""
        self.name = name
        self._settings = settings
        self._log = log
        self._changing = threading.Lock()
        """Of the two below."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=f"mcp-{name}", daemon=True)
        """A daemon: a team that was never closed must not keep the program from ending."""
        # What follows belongs to the loop.
        self._connecting = asyncio.Lock()
        self._client: Client | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._end = asyncio.Event()
        self._in_doubt = False

    def offered(self) -> Sequence[Offered]:
        """What it offers, all of it. Blocks until it answers. Raises ConfigError where it cannot be reached."""
        try:
            return self._submit(self._list()).result()
        except ToolError as error:
            raise ConfigError(error.got, wanted=error.wanted, hint=error.hint) from error

    async def call(self, tool: str, arguments: Mapping[str, Any]) -> CallToolResult:
        """Raises ToolError, BadArguments."""
        return await asyncio.wrap_future(self._submit(self._call(tool, dict(arguments))))

    async def close(self) -> None:
        """End it, for good."""
        await asyncio.to_thread(self.close_now)

    def close_now(self) -> None:
        """`close`, for callers that are not async."""
        with self._changing:
            loop, self._loop, self._closed = self._loop, None, True
        if loop is None:
            return
        try:
            asyncio.run_coroutine_threadsafe(self._disconnect(), loop).result(2 * CLOSING_SECONDS)
        finally:
            loop.call_soon_threadsafe(loop.stop)
            self._thread.join(CLOSING_SECONDS)

    # ── in the thread ─────────────────────────────────────────────────────────────────────────────────────────────

    def _submit(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Raises ToolError when it has been closed."""
        with self._changing:
            if self._closed:
                work.close()
                raise ToolError(f"the MCP server '{self.name}' has been closed.")
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread.start()
            return asyncio.run_coroutine_threadsafe(work, self._loop)

    def _run(self) -> None:
        loop = self._loop
        assert loop is not None
        try:
            loop.run_forever()
            loop.run_until_complete(loop.shutdown_asyncgens())
        finally:
            loop.close()

    async def _list(self) -> list[Offered]:
        client = await self._connected()
        offered: list[Offered] = []
        cursor = None
        for _ in range(MAX_PAGES):
            page = await self._answered(client.list_tools(cursor=cursor))
            offered += page.tools
            cursor = page.next_cursor
            if not cursor:
                break
        return offered

    async def _call(self, tool: str, arguments: dict[str, Any]) -> CallToolResult:
        client = await self._connected()
        return await self._answered(client.call_tool(tool, arguments))

    async def _answered(self, asked: Coroutine[Any, Any, T]) -> T:
        """What it answers within its time. Raises ToolError, BadArguments."""
        from mcp.shared.exceptions import MCPError
        from mcp_types import CONNECTION_CLOSED, INVALID_PARAMS
        from pydantic import ValidationError

        seconds = self._settings.timeout_seconds
        try:
            async with asyncio.timeout(seconds):
                return await asked
        except BaseException as error:
            self._in_doubt = True
            if isinstance(error, TimeoutError):
                raise ToolError(f"the MCP server '{self.name}' did not answer within {seconds:g} seconds.") from None
            if isinstance(error, MCPError) and error.code == INVALID_PARAMS:
                raise BadArguments(_cut(error.message, MAX_REASON)) from error
            if isinstance(error, MCPError) and error.code == CONNECTION_CLOSED:
                raise ToolError(
                    f"the MCP server '{self.name}' has ended; the next call begins it anew.", hint=self._where
                ) from error
            if isinstance(error, MCPError):
                raise ToolError(f"the MCP server '{self.name}': {_cut(error.message, MAX_REASON)}") from error
            if isinstance(error, ValidationError | RuntimeError):
                raise ToolError(
                    f"the MCP server '{self.name}' answered against the protocol ({_cut(str(error), 200)})."
                ) from error
            raise

    async def _connected(self) -> Client:
        """The connection, made anew where there is none that works. Raises ToolError."""
        async with self._connecting:
            client = self._client
            if client is not None and (not self._in_doubt or await self._is_there(client)):
                self._in_doubt = False
                return client
            await self._disconnect()
            return await self._connect()

    async def _is_there(self, client: Client) -> bool:
        from mcp.shared.exceptions import MCPError

        try:
            async with asyncio.timeout(PROBE_SECONDS):
                await client.list_tools()
        except (MCPError, TimeoutError):
            return False
        return True

    async def _connect(self) -> Client:
        ready: asyncio.Future[Client] = asyncio.get_running_loop().create_future()
        self._end = asyncio.Event()
        keeper = self._keeper = asyncio.create_task(self._keep(ready, self._end))
        seconds = self._settings.start_seconds
        await asyncio.wait((ready, keeper), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if ready.done():
            self._client, self._in_doubt = ready.result(), False
            return self._client
        error = keeper.exception() if keeper.done() else TimeoutError(f"nothing within {seconds:g} seconds")
        await self._disconnect()
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        if isinstance(error, ConfigError):
            raise ToolError(error.got, wanted=error.wanted, hint=error.hint) from error
        why = _cut(" ".join(f"{type(error).__name__} {error}".split()).rstrip("."), 300)
        raise ToolError(f"the MCP server '{self.name}' cannot be reached: {why}.", hint=self._where) from error

    async def _keep(self, ready: asyncio.Future[Client], end: asyncio.Event) -> None:
        """Hold the connection, from its making to its end: the package wants both in one task."""
        from mcp import Client
        from mcp_types import Implementation

        async with AsyncExitStack() as stack:
            client = Client(
                await self._transport(stack), client_info=Implementation(name="mia", version=__version__), cache=None
            )
            await stack.enter_async_context(client)
            ready.set_result(client)
            await end.wait()

    async def _transport(self, stack: AsyncExitStack) -> Any:
        """Raises ConfigError for a variable that is not set, OSError."""
        settings = self._settings
        if settings.url:
            import httpx2
            from mcp.client.streamable_http import streamable_http_client

            headers = {}
            if settings.token_env:
                headers["Authorization"] = f"Bearer {self._variable(settings.token_env)}"
            http = httpx2.AsyncClient(headers=headers, timeout=httpx2.Timeout(settings.timeout_seconds))
            return streamable_http_client(settings.url, http_client=await stack.enter_async_context(http))
        from mcp.client.stdio import DEFAULT_INHERITED_ENV_VARS, StdioServerParameters, stdio_client

        # The package hands on a few more of ours than we want to: they are given empty.
        environment = {name: "" for name in DEFAULT_INHERITED_ENV_VARS if name not in ("PATH", "HOME")}
        environment |= {name: self._variable(name) for name in settings.env}
        self._log.parent.mkdir(parents=True, exist_ok=True)
        written = stack.enter_context(
            os.fdopen(os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8")
        )
        command, *arguments = settings.command
        return stdio_client(StdioServerParameters(command=command, args=arguments, env=environment), errlog=written)

    def _variable(self, name: str) -> str:
        try:
            return os.environ[name]
        except KeyError:
            raise ConfigError(
                f"the environment variable {name}, which the MCP server '{self.name}' is to be given, is not set.",
                hint=f"export {name}=…",
            ) from None

    async def _disconnect(self) -> None:
        keeper, client = self._keeper, self._client
        self._keeper = self._client = None
        if keeper is None:
            return
        if client is not None:
            # Not cancelled: that would leave the process of a server behind.
            self._end.set()
            await asyncio.wait((keeper,), timeout=CLOSING_SECONDS)
        keeper.cancel()
        await asyncio.wait((keeper,), timeout=CLOSING_SECONDS)
        if keeper.done() and not keeper.cancelled():
            # Looked at, so that it is not reported as forgotten: whatever it was, the connection is gone.
            keeper.exception()

    @property
    def _where(self) -> str:
        """A hint where to look."""
        return f"what it wrote is in {self._log}" if self._settings.command else f"look at mcp.{self.name}.url"


# ── what it says ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _text(result: CallToolResult) -> str:
    """What a result says, with a note in the place of what is no text."""
    parts = [_said(block) for block in result.content]
    if not parts and result.structured_content is not None:
        parts = [json.dumps(result.structured_content, ensure_ascii=False)]
    return "\n\n".join(parts)


def _said(block: ContentBlock) -> str:
    if block.type == "text":
        return block.text
    if block.type == "resource":
        held = block.resource
        text = getattr(held, "text", None)
        return text if text is not None else f"(a file of type {held.mime_type or 'unknown'}, not shown: {held.uri})"
    if block.type == "resource_link":
        return f"(a link: {block.name}, {block.uri})"
    return f"(an {block.type} of type {block.mime_type}, not shown)"


def _harmless(value: Any) -> Any:
    """A schema with every text in it defused, and descriptions cut."""
    if isinstance(value, str):
        return defuse(_cut(value, MAX_DESCRIPTION))
    if isinstance(value, Mapping):
        return {defuse(str(key)): _harmless(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_harmless(item) for item in value]
    return value


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]} … [{len(text) - most:,} characters cut]"
