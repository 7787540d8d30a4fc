"""The MCP door, proven with the official client: over HTTP against a real server, and over stdio with `mia mcp`."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import jsonschema
import pytest

pytest.importorskip("mcp", reason="the extra `service` is not installed")

import httpx2
import uvicorn
from embedded_team import needs_embedded_model
from fake_endpoint import FakeEndpoint
from fake_endpoint import says as replies
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError
from mcp_types import CallToolResult, TextContent, TextResourceContents
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS
from service_team import RIGHT, WORKFLOW, make_service, says
from shelf import PASSAGES, call
from starlette.testclient import TestClient

from mia.episode import absorb
from mia.errors import ModelUnavailable
from mia.models.base import ChatRequest
from mia.service.app import create_app
from mia.service.auth import add_token, tokens_path
from mia.service.core import Service
from mia.service.mcp.server import AGENT_TOOLS

QUESTION = "Where was the discoverer of Titan born?"
LESSON = {"question": QUESTION, "workflow": WORKFLOW, "judgement": "correct"}


class Running:
    """A service behind a real socket of loopback."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._server = uvicorn.Server(
            uvicorn.Config(create_app(service), log_config=None, timeout_graceful_shutdown=2, ws="none")
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    def __enter__(self) -> Running:
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive()
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(20)
        self._socket.close()
        assert not self._thread.is_alive()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        await self._server.serve(sockets=[self._socket])

    async def absorbed(self, id: str) -> bool:
        """`Service.absorbed`, in the loop that the service belongs to: an event of its own wakes nobody in another."""
        assert self._loop is not None
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self.service.absorbed(id), self._loop))

    @asynccontextmanager
    async def client(self, token: str = "", scope: str = "", **more: Any) -> AsyncIterator[Client]:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        if scope:
            headers["X-MIA-Scope"] = scope
        async with (
            httpx2.AsyncClient(headers=headers, timeout=30) as http,
            Client(streamable_http_client(f"{self.url}/mcp", http_client=http), cache=None, **more) as client,
        ):
            yield client


def cited(request: ChatRequest) -> Any:
    """Like the model of `service_team`, but that it finds where the answer stands."""
    said = says(request)
    return call("huygens") if request.purpose == "execute" and "<answer>" not in said else said


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    with Running(make_service(tmp_path / "home", answers=cited)) as running:
        yield running


def data(result: CallToolResult) -> Any:
    """What a tool gave: structured, and the same as text."""
    (block,) = result.content
    assert isinstance(block, TextContent)
    assert not result.is_error, block.text
    assert json.loads(block.text) == result.structured_content
    return result.structured_content


def said(result: CallToolResult) -> str:
    assert result.is_error
    (block,) = result.content
    assert isinstance(block, TextContent)
    return block.text


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():  # noqa: ASYNC110  # Of another thread.
            await asyncio.sleep(0.02)


async def read(client: Client, uri: str) -> Any:
    (content,) = (await client.read_resource(uri)).contents
    assert isinstance(content, TextResourceContents)
    return json.loads(content.text)


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_a_question_is_researched_recalled_and_judged(running: Running, mode: Any) -> None:
    stages: list[str] = []

    async def progress(number: float, total: float | None, message: str | None) -> None:
        assert number == len(stages) + 1
        stages.append(message or "")

    async with running.client(mode=mode) as client:
        assert client.server_info is not None
        assert client.server_info.name == "mia"
        found = data(await client.call_tool("research", {"question": QUESTION}, progress_callback=progress))
        assert found["answer"] == RIGHT
        assert found["citations"][0]["quote"] == PASSAGES["huygens"].text
        assert [one.split()[0] for one in stages if one.endswith("…")] == [
            "recall", "plan", "execute", "reflect", "judge",
        ]  # fmt: skip
        assert "step 1: shelf" in stages

        judged = data(
            await client.call_tool("feedback", {"episode_id": found["episode_id"], "correct": True, "reason": "Yes."})
        )
        (memory_id,) = judged["memories"]
        recalled = data(await client.call_tool("recall", {"text": QUESTION}))
        (memory,) = recalled["memories"]
        assert (memory["id"], memory["judgement"], memory["workflow"]) == (memory_id, "correct", WORKFLOW)
        assert memory["parts"]["similarity"] == pytest.approx(1, abs=1e-3)
        unrelated = {"text": "What does a loaf of rye bread cost in Oslo?"}
        assert data(await client.call_tool("recall", unrelated))["memories"] == []
        anything = data(await client.call_tool("recall", {**unrelated, "floor": -1}))
        assert ([one["id"] for one in anything["memories"]], anything["floor"]) == ([memory_id], -1)

        episode = await read(client, f"mia://episodes/{found['episode_id']}")
        assert episode["verdict"]["outcome"] == "correct"
        assert (await read(client, f"mia://memories/{memory_id}"))["workflow"] == WORKFLOW
    assert [ask.door for ask in running.service.live.asks()] == ["mcp"]


async def test_what_is_remembered_is_on_the_disk_and_shown_to_the_next_question(running: Running) -> None:
    async with running.client() as client:
        kept = data(await client.call_tool("remember", LESSON))
        assert kept["state"] == "active"
        assert running.service.store.memories([kept["memory_id"]])[kept["memory_id"]].workflow == WORKFLOW
        found = data(await client.call_tool("research", {"question": QUESTION}))
        assert found["memories"] == [kept["memory_id"]]
        given = {"episode_id": found["episode_id"], "correct": True}
        judged = data(await client.call_tool("feedback", given))
        assert judged["credited"] == 1
        memory = running.service.store.memories([kept["memory_id"]])[kept["memory_id"]]
        assert (memory.uses, memory.wins) == (2, 2)


async def test_a_long_document_is_read_chunk_by_chunk(tmp_path: Path) -> None:
    pytest.importorskip("mia.reader", reason="there is no reader yet")

    def reads(request: ChatRequest) -> str:
        text = " ".join(message.content for message in request.messages)
        if "found by Huygens" in text or "Huygens found" in text:
            return "<memory>Huygens found Titan.</memory> \\boxed{Huygens}"
        return "nothing new"

    chunks: list[str] = []

    async def progress(number: float, total: float | None, message: str | None) -> None:
        chunks.append(message or "")

    padding = "The tide turns about every six hours. " * 400
    text = f"{padding}Titan was found by Huygens. {padding}"
    flags = {"reader__chunk_tokens": 1_000, "reader__memory_tokens": 64}
    with Running(make_service(tmp_path / "home", answers=reads, **flags)) as running:
        async with running.client() as client:
            given = {"text": text, "question": "Who found Titan?"}
            found = data(await client.call_tool("read_document", given, progress_callback=progress))
            assert found["chunks"] == len(chunks) > 3
            assert found["left_out"] == 0
            assert found["usage"]["calls"] >= len(chunks)
            assert (found["answer"], "Huygens found Titan." in found["notes"]) == ("Huygens", True)
            assert "there is no text" in said(await client.call_tool("read_document", given | {"text": " "}))


async def test_schemas_are_told_and_what_comes_holds_them(running: Running) -> None:
    async with running.client() as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert set(tools) == {tool.name for tool in AGENT_TOOLS} >= {"research", "recall", "remember", "feedback"}
        for tool in tools.values():
            jsonschema.Draft202012Validator.check_schema(tool.input_schema)
            assert tool.output_schema is not None
            jsonschema.Draft202012Validator.check_schema(tool.output_schema)
            assert tool.description
        assert tools["recall"].annotations is not None
        assert tools["recall"].annotations.read_only_hint
        found = data(await client.call_tool("research", {"question": QUESTION}))
        jsonschema.validate(found, tools["research"].output_schema or {})
        uris = [str(resource.uri) for resource in (await client.list_resources()).resources]
        assert uris == ["mia://episodes", "mia://memories"]
        templates = [one.uri_template for one in (await client.list_resource_templates()).resource_templates]
        assert "mia://episodes/{id}" in templates
        assert "mia://memories/{id}" in templates


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_errors_are_told_with_what_to_do(running: Running, mode: Any) -> None:
    async with running.client(mode=mode) as client:
        for name, arguments, wrong in (
            ("research", {}, "question"),
            ("research", {"question": "  "}, "question"),
            ("recall", {"text": "x", "more": 1}, "more"),
            ("remember", LESSON | {"judgement": "perhaps"}, "judgement"),
            ("remember", LESSON | {"category": "nonsense"}, "category"),
            ("feedback", {"episode_id": "ep-none", "correct": True}, "no episode"),
        ):
            text = said(await client.call_tool(name, arguments))
            assert wrong in text
            assert "Wanted:" in text or "Try:" in text
        with pytest.raises(MCPError, match=r"no tool 'burn'.*research"):
            await client.call_tool("burn", {})
        for uri in (
            "mia://episodes/none",
            "mia://memories/none",
            "mia://elsewhere",
            "file:///etc/passwd",
            "mia://memories?offset=-1",
        ):
            with pytest.raises(MCPError, match=r"no |nothing"):
                await client.read_resource(uri)
        # And it goes on.
        assert data(await client.call_tool("recall", {"text": QUESTION}))["memories"] == []


async def test_a_model_that_is_down_is_a_tool_error_and_recall_works(tmp_path: Path) -> None:
    def down(request: object) -> Exception:
        return ModelUnavailable("the endpoint is down.")

    with Running(make_service(tmp_path, answers=down)) as running:
        async with running.client() as client:
            data(await client.call_tool("remember", LESSON))
            text = said(await client.call_tool("research", {"question": QUESTION}))
            assert "the endpoint is down" in text
            assert "recall" in text
            assert data(await client.call_tool("recall", {"text": QUESTION}))["memories"]


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_a_bug_tells_nothing_of_itself(
    running: Running, mode: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(scope: str) -> Any:
        raise KeyError("a secret place")

    monkeypatch.setattr(running.service, "memory", broken)
    async with running.client(mode=mode) as client:
        with pytest.raises(MCPError) as raised:
            await client.call_tool("recall", {"text": QUESTION})
        assert "secret" not in str(raised.value)
        assert "fault of the server" in str(raised.value)
    assert "a secret place" in caplog.text


async def test_a_token_sees_its_scope_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def absorb_late(*given: Any) -> Any:
        # As under load: the answer is told before it is absorbed.
        await asyncio.sleep(0.3)
        return await absorb(*given)

    monkeypatch.setattr("mia.service.core.absorb", absorb_late)
    service = make_service(tmp_path / "home")
    path = tokens_path(service.config)
    ann, bob = (add_token(path, name, scope=f"acme/{name}", days=None) for name in ("ann", "bob"))
    everything = add_token(path, "root", scope=None, days=None)
    with Running(service) as running:
        async with running.client(ann) as client:
            kept = data(await client.call_tool("remember", LESSON))
            found = data(await client.call_tool("research", {"question": QUESTION}))
            assert service.store.memories([kept["memory_id"]])[kept["memory_id"]].scope == "acme/ann"
            assert await running.absorbed(found["episode_id"])
            assert len((await read(client, "mia://memories"))["memories"]) == 1
            assert len((await read(client, "mia://episodes"))["episodes"]) == 1
        async with running.client(bob) as client:
            assert data(await client.call_tool("recall", {"text": QUESTION}))["memories"] == []
            assert (await read(client, "mia://memories"))["memories"] == []
            assert (await read(client, "mia://episodes"))["episodes"] == []
            for uri in (f"mia://memories/{kept['memory_id']}", f"mia://episodes/{found['episode_id']}"):
                with pytest.raises(MCPError, match=r"no (memory|episode)"):
                    await client.read_resource(uri)
            given = {"episode_id": found["episode_id"], "correct": False}
            assert "no episode" in said(await client.call_tool("feedback", given))
        async with running.client(bob, scope="acme/ann") as client:
            assert "does not see the scope" in said(await client.call_tool("recall", {"text": QUESTION}))
        async with running.client(everything, scope="acme/ann") as client:
            (memory,) = data(await client.call_tool("recall", {"text": QUESTION}))["memories"]
            assert memory["id"] == kept["memory_id"]
        async with running.client(everything) as client:
            assert len((await read(client, "mia://memories"))["memories"]) == 1
            with pytest.raises(MCPError):
                await read(client, "mia://memories?offset=x")
        for wrong in ({}, {"Authorization": "Bearer mia_wrong"}):
            refused = httpx2.post(f"{running.url}/mcp", json={}, headers={**ACCEPT, **wrong})
            assert (refused.status_code, refused.json()["error"]["type"]) == (401, "Unauthorized")


async def test_a_quarantined_memory_is_not_read_to_an_agent(running: Running) -> None:
    async with running.client() as client:
        kept = data(await client.call_tool("remember", LESSON))
        running.service.memory("default").quarantine([kept["memory_id"]])
        with pytest.raises(MCPError, match="quarantined"):
            await client.read_resource(f"mia://memories/{kept['memory_id']}")
        assert (await read(client, "mia://memories"))["memories"] == []


async def test_lists_go_on_page_by_page(running: Running) -> None:
    manager = running.service.memory("default")
    for number in range(60):
        manager.add(f"What is the {number}th digit of number {number * 7}?", f"1. Count to {number}", "correct")
    async with running.client() as client:
        first = await read(client, "mia://memories")
        second = await read(client, first["next"])
        uris = {one["uri"] for one in first["memories"] + second["memories"]}
        assert (len(first["memories"]), len(uris), second["next"]) == (50, 60, None)


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_a_client_that_goes_away_cancels_the_work(tmp_path: Path, mode: Any) -> None:
    with Running(make_service(tmp_path / "home", delay=1.0)) as running:
        async with running.client(mode=mode) as client:
            asking = asyncio.create_task(client.call_tool("research", {"question": QUESTION}))
            await until(lambda: running.service.live.under_way == 1)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
        await until(lambda: running.service.live.under_way == 0)
        (ask,) = running.service.live.asks()
        assert ask.error == "cancelled"


async def test_it_ends_cleanly_with_a_question_under_way(tmp_path: Path) -> None:
    with Running(make_service(tmp_path / "home", delay=30.0)) as running:
        async with running.client() as client:
            asking = asyncio.create_task(client.call_tool("research", {"question": QUESTION}))
            await until(lambda: running.service.live.under_way == 1)
            begun = time.monotonic()
            await asyncio.to_thread(running.__exit__)
            assert time.monotonic() - begun < 15
            (ended,) = await asyncio.gather(asking, return_exceptions=True)
            assert isinstance(ended, MCPError)


def test_the_door_takes_posts_alone_of_its_own_pages(tmp_path: Path) -> None:
    with TestClient(create_app(make_service(tmp_path / "home"))) as client:
        assert client.get("/mcp", headers={"Accept": "text/event-stream"}).status_code == 405
        assert client.delete("/mcp").status_code == 405
        foreign = client.post("/mcp", json={}, headers={"Origin": "https://elsewhere.example"})
        assert foreign.status_code == 403
        for body in ("", "{", "[]", '{"jsonrpc": "2.0"}', "[" * 5_000):
            answer = client.post("/mcp", content=body, headers={"Content-Type": "application/json", **ACCEPT})
            assert answer.status_code in (400, 202), (body[:20], answer.status_code)
        # The app may be started again.
    assert "/mcp" not in create_app(make_service(tmp_path / "other")).openapi()["paths"]


ACCEPT = {"Accept": "application/json, text/event-stream"}


# ── stdio ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def program(home: Path, *flags: str) -> StdioServerParameters:
    return StdioServerParameters(
        command=sys.executable,
        args=["-m", "mia", "--home", str(home), "mcp", *flags],
        env={"MIA_MEMORY__EMBEDDER": "hashing", "MIA_SEARCH__VECTORS": "off", "OPENAI_API_KEY": "k"},
        cwd=home.parent,
    )


async def spoken_to(home: Path, *flags: str, said: bytes | None = None) -> tuple[int | None, bytes, bytes]:
    """The program's status, stdout and stderr; `said`: all that comes over its stdin."""
    parameters = program(home, *flags)
    process = await asyncio.create_subprocess_exec(
        parameters.command, *parameters.args, stdin=-1, stdout=-1, stderr=-1, cwd=parameters.cwd,
        env={"PATH": "", "HOME": str(home.parent), **(parameters.env or {})},
    )  # fmt: skip
    out, err = await process.communicate(said)
    return process.returncode, out, err


def corpus(folder: Path) -> Path:
    folder.mkdir()
    (folder / "titan.md").write_text("# Titan\n\nTitan was found by Christiaan Huygens of The Hague.\n")
    return folder


@pytest.mark.slow
async def test_over_stdio_an_agent_researches_and_remembers(tmp_path: Path) -> None:
    home = tmp_path / "home"
    async with FakeEndpoint(replies(f"<think>t</think><answer>{RIGHT}</answer>")) as endpoint:
        flags = ("--corpus", str(corpus(tmp_path / "docs")), "--base-url", endpoint.base_url, "--model", "m")
        flags += ("--no-plan", "--replan", "never", "--judge", "none")
        async with Client(program(home, *flags)) as client:
            names = [tool.name for tool in (await client.list_tools()).tools]
            assert names == [tool.name for tool in AGENT_TOOLS]
            kept = data(await client.call_tool("remember", LESSON))
            found = data(await client.call_tool("research", {"question": QUESTION}))
            assert found["answer"] == RIGHT
            assert found["memories"] == [kept["memory_id"]]
            assert (await read(client, f"mia://episodes/{found['episode_id']}"))["id"] == found["episode_id"]


@needs_embedded_model
async def test_the_first_example_of_the_page_runs_with_nothing_configured(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "mcp.md").read_text(encoding="utf-8")
    blocks = [json.loads(one) for one in re.findall(r"```json\n(.*?)```", page, re.DOTALL)]
    first, second = [one["mcpServers"]["mia"] for one in blocks if "command" in one["mcpServers"]["mia"]]
    question = re.search(r'try "([^"]+)"', page)
    assert question is not None
    assert first["command"] == "mia"
    arguments = [word.replace("/home/ann", str(tmp_path)) for word in first["args"]]
    started = StdioServerParameters(command=sys.executable, args=["-m", "mia", *arguments], cwd=tmp_path)
    async with Client(started) as client:
        kept = data(await client.call_tool("remember", LESSON))
        assert data(await client.call_tool("recall", {"text": QUESTION}))["memories"][0]["id"] == kept["memory_id"]
        found = data(await client.call_tool("research", {"question": question[1]}))
        assert found["answer"]  # Perhaps "unknown": the world does not say everything in the first place one looks.
        assert (await read(client, f"mia://episodes/{found['episode_id']}"))["attempts"][0]["trace"]["steps"]
    # The second names a model and documents, and needs both.
    assert {"--corpus", "--base-url", "--model"} <= set(second["args"])


async def test_stdout_holds_the_protocol_alone_and_the_program_ends_with_stdin(tmp_path: Path) -> None:
    home = tmp_path / "home"
    flags = ("--corpus", str(corpus(tmp_path / "docs")), "--base-url", "http://127.0.0.1:9/v1", "--model", "m")
    hello = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "initialize",
        "params": {
            "protocolVersion": HANDSHAKE_PROTOCOL_VERSIONS[-1],
            "capabilities": {},
            "clientInfo": {"name": "t", "version": "0"},
        },
    }
    broken = "this is no message\n"
    code, out, err = await spoken_to(home, *flags, said=(json.dumps(hello) + "\n" + broken).encode())
    assert code == 0, err
    lines = [json.loads(line) for line in out.decode().splitlines()]
    assert all(line["jsonrpc"] == "2.0" for line in lines)
    assert next(line for line in lines if line.get("id") == 1)["result"]["serverInfo"]["name"] == "mia"
    assert b"home:" in err


async def test_a_home_that_a_server_holds_is_told_with_what_to_do(tmp_path: Path) -> None:
    home = tmp_path / "home"
    service = make_service(home)
    try:
        code, out, err = await spoken_to(home, "--corpus", str(corpus(tmp_path / "docs")), "--model", "m")
        assert code == 1
        assert out == b""
        assert b"another server works in" in err
        assert b"/mcp of its address" in err
        assert b"mia --home ELSEWHERE mcp" in err
        assert b'"url"' not in err  # This one listens nowhere.
    finally:
        await service.close()


async def test_a_home_that_mia_serve_holds_is_told_with_the_address_to_use_instead(tmp_path: Path) -> None:
    home = tmp_path / "home"
    service = make_service(home)
    service.durable.listens_at("http://127.0.0.1:8765")
    try:
        code, _, err = await spoken_to(home, "--corpus", str(corpus(tmp_path / "docs")), "--model", "m")
        assert code == 1
        assert b'{"type": "http", "url": "http://127.0.0.1:8765/mcp"}' in err
    finally:
        await service.close()


def test_the_protocol_is_loaded_by_the_first_who_asks() -> None:
    script = "import sys, mia.service.app; sys.exit('mcp' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], timeout=120, check=False).returncode == 0
