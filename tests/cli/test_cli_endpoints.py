"""The model servers of this machine: who answers, which of its models chats, and the command that has it answer."""

from __future__ import annotations

import json
import shlex
import time

import pytest
from fake_endpoint import Behaviour, FakeEndpoint, drips, fails, hangs, hangs_up, sends

from mia.cli import endpoints
from mia.cli.endpoints import advise, local_endpoints, models_at
from mia.config import Config, load_config

TYPED = ("ask", "Who's there?", "--corpus", "my docs")


def listing(*names: str) -> str:
    return json.dumps({"data": [{"id": name} for name in names]})


def listen(monkeypatch: pytest.MonkeyPatch, **urls: str) -> None:
    """Let these be the addresses where servers listen."""
    monkeypatch.setattr(endpoints, "LOCAL_ENDPOINTS", urls)


def config(**settings: str) -> Config:
    return load_config(flags={f"models.default.{name}": value for name, value in settings.items()})


def test_only_loopback_is_asked() -> None:
    assert {url.split("/")[2].split(":")[0] for url in endpoints.LOCAL_ENDPOINTS.values()} == {"localhost"}


async def test_those_that_answer_are_found_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    async with FakeEndpoint(sends(listing("a"))) as one, FakeEndpoint(sends(listing())) as two:
        listen(monkeypatch, two=two.base_url, closed="http://127.0.0.1:9/v1", one=one.base_url)
        found = await local_endpoints()
        assert [(endpoint.name, endpoint.models) for endpoint in found] == [("two", ()), ("one", ("a",))]
        assert [request.path for request in one.requests] == ["/v1/models"]


@pytest.mark.parametrize("behaviour", [hangs, drips(0.01)])
async def test_a_server_that_gives_no_whole_answer_is_left_after_the_time(behaviour: Behaviour) -> None:
    async with FakeEndpoint(behaviour) as slow:
        began = time.monotonic()
        assert isinstance(await models_at(slow.base_url, seconds=0.3), str)
        assert time.monotonic() - began < 1.5


@pytest.mark.parametrize("behaviour", [fails(404), hangs_up, sends("{}"), sends("[1]"), sends('{"data": [{}]}')])
async def test_what_is_no_model_server_is_not_found(behaviour: Behaviour, monkeypatch: pytest.MonkeyPatch) -> None:
    async with FakeEndpoint(behaviour) as other:
        assert isinstance(await models_at(other.base_url), str)
        listen(monkeypatch, other=other.base_url)
        assert await local_endpoints() == []


async def test_an_address_that_is_none_is_said_to_be_none() -> None:
    assert isinstance(await models_at("http://[::1/v1"), str)


# ── what to type ──


async def test_the_first_model_of_this_machine_that_chats_completes_the_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with (
        FakeEndpoint(sends(listing())) as empty,
        FakeEndpoint(sends(listing("nomic-embed-text", "qwen 3"))) as full,
    ):
        listen(monkeypatch, empty=empty.base_url, full=full.base_url)
        advice = await advise(config(), TYPED)
        assert shlex.split(advice.command) == ["mia", *TYPED, "--base-url", full.base_url, "--model", "qwen 3"]
        assert advice.says == "full on this machine serves 'qwen 3'"
        lacking = await advise(config(), ("ask", "--", "-x"), documents=True)
        assert shlex.split(lacking.command) == [
            *("mia", "ask", "--corpus", "./docs", "--base-url", full.base_url, "--model", "qwen 3", "--", "-x")
        ]


async def test_where_nothing_answers_the_general_form_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    listen(monkeypatch, closed="http://127.0.0.1:9/v1")
    assert shlex.split((await advise(config(), TYPED)).command)[-4:] == ["--base-url", "URL", "--model", "NAME"]
    monkeypatch.setenv("OPENAI_API_KEY", "key-of-mine")
    advice = await advise(config(), TYPED)
    assert shlex.split(advice.command) == ["mia", *TYPED, "--model", "NAME"]
    assert "key-of-mine" not in advice.says + advice.command


async def test_an_endpoint_that_is_configured_lacks_only_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    async with FakeEndpoint(sends(listing("first"))) as first, FakeEndpoint(sends(listing("own"))) as own:
        listen(monkeypatch, first=first.base_url, own=own.base_url)
        advice = await advise(config(base_url=own.base_url), TYPED)
        assert shlex.split(advice.command) == ["mia", *TYPED, "--model", "own"]
        elsewhere = await advise(config(base_url="https://models.example/v1"), TYPED)
        assert shlex.split(elsewhere.command) == ["mia", *TYPED, "--model", "NAME"]
