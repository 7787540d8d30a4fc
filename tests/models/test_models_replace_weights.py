"""Whole weights are replaced while a model answers: every reply is of one version and names it."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import torch
from tiny_model import asking, write_adapter, write_model

from mia.errors import ConfigError, ModelRefused, ModelUnavailable
from mia.models.local import Loaded, LocalModel


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_model(tmp_path_factory.mktemp("models") / "first")


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_model(tmp_path_factory.mktemp("models") / "second", seed=1)


@pytest.fixture
async def model(first: str) -> AsyncIterator[LocalModel]:
    model = LocalModel.open(first, max_tokens=16)
    yield model
    await model.close()


async def alone(folder: str, text: str) -> tuple[int, ...]:
    model = LocalModel.open(folder, max_tokens=16)
    try:
        return (await model.complete(asking(text))).ids
    finally:
        await model.close()


async def test_replies_are_of_the_new_weights_and_say_so(model: LocalModel, first: str, second: str) -> None:
    text = "a conversation that is long enough to be kept for the next turn"
    before = await model.complete(asking(text))
    assert (model.version, before.adapter, before.ids) == ("", "", await alone(first, text))
    await model.replace_weights(second, "v1")
    after = await model.complete(asking(text))
    assert (model.version, after.adapter) == ("v1", "v1")
    assert after.ids == await alone(second, text), "nothing that the old weights read is left"
    assert after.ids != before.ids
    assert (await model.complete(asking(text, adapter="v1"))).ids == after.ids
    with pytest.raises(ModelRefused, match="has no adapter 'v0'"):
        await model.complete(asking(text, adapter="v0"))
    await model.replace_weights(first, "v2")
    assert (await model.complete(asking(text))).ids == before.ids


async def test_a_reply_under_way_ends_with_the_weights_it_began_with(
    model: LocalModel, first: str, second: str
) -> None:
    texts = [f"question {number} " * (number + 1) for number in range(12)]
    old = [await alone(first, text) for text in texts]
    new = [await alone(second, text) for text in texts]
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()
    early = [
        asyncio.create_task(model.complete(asking(text, on_text=lambda _: loop.call_soon_threadsafe(begun.set))))
        for text in texts
    ]
    await begun.wait()
    replacing = asyncio.create_task(model.replace_weights(second, "v1"))
    while not replacing.done():  # The line goes on asking all the while.
        early.append(asyncio.create_task(model.complete(asking(texts[len(early) % len(texts)]))))
        await asyncio.sleep(0.02)
    await replacing
    early += [
        asyncio.create_task(model.complete(asking(texts[number % 12]))) for number in range(len(early), len(early) + 12)
    ]
    replies = await asyncio.gather(*early)
    for number, reply in enumerate(replies):
        assert reply.ids == {"": old, "v1": new}[reply.adapter][number % len(texts)]
    assert replies[0].adapter == ""
    assert replies[-1].adapter == "v1"


async def test_who_asked_for_a_version_gets_it_or_a_refusal(model: LocalModel, first: str, second: str) -> None:
    await model.replace_weights(second, "v1")
    changed = model._loaded.sampler.change(lambda: model._loaded.weights.adopt(model._loaded.weights, "v2"))
    asked = asyncio.create_task(model.complete(asking("hello", adapter="v1")))
    await asyncio.wrap_future(changed)
    try:
        assert (await asked).adapter == "v1"
    except ModelRefused as error:
        assert "'v1'" in error.got  # noqa: PT017 — either is right, by who came first.


async def test_what_does_not_fit_changes_nothing(model: LocalModel, first: str, second: str, tmp_path: Path) -> None:
    before = (await model.complete(asking("hello"))).ids
    wide = write_model(tmp_path / "wide", hidden_size=64)
    deep = write_model(tmp_path / "deep", num_hidden_layers=3)
    template = write_model(tmp_path / "template", template="{{ messages[0].content }}")
    torn = Path(shutil.copytree(second, tmp_path / "torn"))
    (torn / "model.safetensors").write_bytes(b"torn")
    for folder, message in {
        wide: "has shape .* and .* here",
        deep: "has shape .* and none here",
        template: "chat template is another",
        str(torn): "cannot read",
        str(tmp_path / "none"): "no folder",
    }.items():
        with pytest.raises(ConfigError, match=message):
            await model.replace_weights(folder, "v1")
    with pytest.raises(ConfigError, match="cannot be called ''"):
        await model.replace_weights(second, "")
    assert model.version == ""
    assert (await model.complete(asking("hello"))).ids == before
    await model.replace_weights(second, "v1")
    with pytest.raises(ConfigError, match="cannot be called 'v1'"):
        await model.replace_weights(second, "v1")


async def test_adapters_and_models_that_share_the_weights_forbid_it(first: str, second: str, tmp_path: Path) -> None:
    loaded = Loaded.open(first)
    model, other = LocalModel(loaded, max_tokens=16), LocalModel(loaded, max_tokens=8)
    with pytest.raises(ConfigError, match="2 models share the weights"):
        await model.replace_weights(second, "v1")
    await other.close()
    await model.load_adapter("a", write_adapter(first, tmp_path / "a"))
    with pytest.raises(ConfigError, match="has adapters loaded"):
        await model.replace_weights(second, "v1")
    await model.unload_adapter("a")
    await model.replace_weights(second, "v1")
    assert (await model.complete(asking("hello"))).ids == await alone(second, "hello")
    await model.load_adapter("b", write_adapter(second, tmp_path / "b"))
    reply = await model.complete(asking("hello", adapter="b"))
    assert reply.adapter == "b"
    with torch.inference_mode():
        assert not torch.equal(torch.tensor(reply.ids), torch.tensor(await alone(second, "hello")))
    await model.close()
    with pytest.raises(ModelUnavailable):
        await model.replace_weights(first, "v2")
