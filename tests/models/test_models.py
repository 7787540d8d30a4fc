"""From settings to models: what is shared, what is missing, what is forbidden."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_endpoint import FakeEndpoint, says

import mia.models
from mia.config import ModelSettings, ModelsSettings, load_config
from mia.errors import ConfigError, RealCallForbidden
from mia.models import build_model, build_models, forbid_real_calls
from mia.models.base import ChatRequest, Price, TokenReply
from mia.models.openai import OpenAIModel
from mia.models.replay import Recorder, ReplayModel
from mia.types import Message, Role

LOCAL = ModelSettings(base_url="http://localhost:1/v1", model="tiny")
REQUEST = ChatRequest((Message(role="user", content="?"),), Role.JUDGE, "q", "judge")


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "MIA_FORBID_REAL_CALLS"):
        monkeypatch.delenv(name, raising=False)


def openai_model(model: object) -> OpenAIModel:
    assert isinstance(model, OpenAIModel)
    return model


def test_roles_share_models_and_endpoints() -> None:
    other = ModelSettings(model="big", concurrency=4)
    models = build_models(ModelsSettings(default=LOCAL, judge=other, cold_start=ModelSettings(model="huge")))
    assert models.planner is models.executor is models.manager
    assert models.cold_start is not None
    names = [models.of(role).name.partition(" ")[0] for role in Role]
    assert names == ["tiny", "tiny", "tiny", "big", "tiny"]
    assert models.cold_start.name == "huge @ localhost:1"
    endpoints = {id(openai_model(model).endpoint) for model in (models.planner, models.judge, models.cold_start)}
    assert len(endpoints) == 1
    assert openai_model(models.judge).endpoint.concurrency == 4, "the most careful limit counts"


def test_another_address_or_key_is_another_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTHER_KEY", "sk-other")
    elsewhere = ModelSettings(base_url="http://localhost:2/v1/")
    keyed = ModelSettings(api_key_env="OTHER_KEY")
    models = build_models(ModelsSettings(default=LOCAL, executor=elsewhere, judge=keyed))
    built = [openai_model(models.of(role)) for role in (Role.PLANNER, Role.EXECUTOR, Role.JUDGE)]
    assert len({id(model.endpoint) for model in built}) == 3
    assert models.cold_start is None


def test_settings_reach_the_model() -> None:
    settings = LOCAL.model_copy(
        update={"price_prompt": 1.0, "price_completion": 2.0, "context_window": 4096, "max_tokens": 99}
    )
    model = build_model(settings)
    assert (model.price, model.context_window, model.max_tokens) == (Price(1.0, 2.0), 4096, 99)
    assert build_model(LOCAL).price is None


def test_a_missing_model_says_what_to_type() -> None:
    with pytest.raises(ConfigError, match="planner") as raised:
        build_models(ModelsSettings())
    assert "--model NAME --base-url URL" in raised.value.hint
    assert "mia doctor" in raised.value.hint


def test_a_missing_key_for_openai_is_found_before_the_first_call() -> None:
    with pytest.raises(ConfigError, match="no key") as raised:
        build_model(ModelSettings(model="gpt"))
    assert "export OPENAI_API_KEY" in raised.value.hint


@pytest.mark.parametrize(
    ("settings", "hint"),
    [
        (LOCAL, "MIA_MODELS__JUDGE__API_KEY_ENV"),
        (LOCAL.model_copy(update={"api_key_env": "THE_KEY"}), "export THE_KEY"),
        (ModelSettings(model="tiny"), "export OPENAI_API_KEY"),
    ],
)
def test_each_endpoint_knows_where_its_key_comes_from(
    settings: ModelSettings, hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THE_KEY", "sk-1")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-2")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://localhost:3/v1")
    assert hint in openai_model(build_model(settings, section="judge")).endpoint.key_hint


def test_a_recording_serves_all_roles(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text('{"format": "mia-recording", "version": 1}\n')
    replay = ModelSettings(provider="replay", path=str(path))
    models = build_models(ModelsSettings(default=replay, judge=ModelSettings(temperature=0.0)))
    assert isinstance(models.planner, ReplayModel)
    assert models.planner is models.judge
    with pytest.raises(ConfigError, match=r"models\.judge replays a recording and names none"):
        build_model(ModelSettings(provider="replay"), section="judge")


def test_recording_wraps_every_role_and_continues_one_file(tmp_path: Path) -> None:
    models = build_models(ModelsSettings(default=LOCAL, record=str(tmp_path / "r.jsonl")))
    assert all(isinstance(models.of(role), Recorder) for role in Role)
    assert models.planner.name == "tiny @ localhost:1"


async def test_built_models_answer_and_can_be_closed_twice(tmp_path: Path) -> None:
    async with FakeEndpoint(says("Yes.")) as endpoint:
        settings = ModelsSettings(default=ModelSettings(base_url=endpoint.base_url, model="tiny"))
        models = build_models(settings)
        replies = await asyncio.gather(*(models.of(role).complete(REQUEST) for role in Role))
        assert {reply.text for reply in replies} == {"Yes."}
        await models.close()
        await models.close()


async def test_a_role_answers_with_the_adapter_of_its_settings_and_the_others_do_not(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    from tiny_model import asking, write_adapter, write_model

    base = write_model(tmp_path / "base")
    adapter = write_adapter(base, tmp_path / "planner")
    local: dict[str, Any] = {
        "provider": "local",
        "path": base,
        "max_tokens": 8,
        "context_window": 256,
        "temperature": 0.0,
    }
    settings = ModelsSettings(default=ModelSettings(**local), planner=ModelSettings(**local, adapter=str(adapter)))
    models = build_models(settings)
    try:
        request = asking("hm", temperature=0.0)
        planner, executor = [await model.complete(request) for model in (models.planner, models.executor)]
        assert isinstance(planner, TokenReply)
        assert isinstance(executor, TokenReply)
        assert planner.adapter.startswith("planner-")
        assert executor.adapter == ""
        assert planner.logprobs != executor.logprobs
    finally:
        await models.close()
    missing = ModelsSettings(default=ModelSettings(**local, adapter=str(tmp_path / "nowhere")))
    with pytest.raises(ConfigError, match="holds no adapter"):
        build_models(missing)


async def test_real_calls_can_be_forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model(LOCAL)
    forbid_real_calls()
    try:
        with pytest.raises(RealCallForbidden, match="tiny @ localhost:1"):
            await model.complete(REQUEST)
    finally:
        forbid_real_calls(False)
    assert not mia.models.real_calls_forbidden()
    for value, forbidden in (("1", True), ("0", False), ("", False)):
        monkeypatch.setenv("MIA_FORBID_REAL_CALLS", value)
        assert mia.models.real_calls_forbidden() is forbidden
    load_config()


def test_the_package_is_light() -> None:
    code = "import sys, mia.models; sys.exit(any(name in sys.modules for name in ('openai', 'httpx2', 'torch')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
