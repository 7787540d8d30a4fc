"""Publishing: to a model of this process, and to a server that behaves as vLLM documents it, over real sockets."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from models.tiny_model import asking, write_adapter, write_model
from test_learn_adapters import BASE, writes
from web_server import Behaviour, Request, WebServer, hangs, hangs_up, page

from mia.errors import ConfigError, LearnError, ModelRefused
from mia.learn.adapters import AdapterStore, Version
from mia.learn.publishing import LocalPublisher, Publisher, VllmPublisher
from mia.models.local import LocalModel
from mia.types import Role

# ── in this process ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_model(tmp_path_factory.mktemp("models") / "tiny", tie_word_embeddings=False)


@pytest.fixture
async def model(base: str) -> AsyncIterator[LocalModel]:
    model = LocalModel.open(base, max_tokens=24)
    model._loaded.weights.end_ids = frozenset()
    yield model
    await model.close()


def trained(base: str, store: AdapterStore, seed: int) -> Version:
    return store.create("", lambda folder: write_adapter(base, folder, seed=seed) and None, [])


async def ids(model: LocalModel, adapter: str = "") -> tuple[int, ...]:
    return (await model.complete(asking("hm", max_tokens=12, adapter=adapter))).ids


async def test_versions_side_by_side_switched_and_retired_when_idle(
    base: str, model: LocalModel, tmp_path: Path
) -> None:
    store = AdapterStore(tmp_path, model._loaded.weights.digest(), Role.PLANNER)
    publisher: Publisher = LocalPublisher(model)
    one, two = (trained(base, store, seed) for seed in (1, 2))
    plain = await ids(model)
    for version in (one, two, one):
        await publisher.publish(version, store.weights(version.name))
    assert publisher.serving == ""
    answers = {version.name: await ids(model, version.name) for version in (one, two)}
    assert len({plain, *answers.values()}) == 3
    await publisher.switch(one)
    assert (publisher.serving, await ids(model)) == (one.name, answers[one.name])
    with pytest.raises(LearnError, match="is serving"):
        await publisher.retire(one)
    # An episode of several calls goes on with the version that it began with.
    with publisher.using(one.name):
        await publisher.switch(two)
        retiring = asyncio.create_task(publisher.retire(one))
        await asyncio.sleep(0.01)
        assert await ids(model, one.name) == answers[one.name]
        assert not retiring.done()
        with pytest.raises(LearnError, match="being retired"), publisher.using(one.name):
            pass
    await retiring
    await publisher.retire(one)
    assert model.adapters == (two.name,)
    with pytest.raises(ModelRefused, match="no adapter"):
        await ids(model, one.name)
    with pytest.raises(LearnError, match="cannot be published"):
        await publisher.switch(one)
    # Going back to it: the same name, for the same weights.
    await publisher.publish(one, store.weights(one.name))
    await publisher.switch(one)
    assert await ids(model) == answers[one.name]
    await publisher.switch(None)
    assert await ids(model) == plain
    await publisher.close()


async def test_an_adapter_of_another_base_is_refused_and_all_goes_on(
    base: str, model: LocalModel, tmp_path: Path
) -> None:
    store = AdapterStore(tmp_path / "store", "f" * 16, Role.PLANNER)
    publisher = LocalPublisher(model)
    # Its tensors say another base than the model that shall answer with it.
    stranger = store.create("", writes(base="f" * 16), [])
    plain = await ids(model)
    with pytest.raises(LearnError, match="trained on another base"):
        await publisher.publish(stranger, store.weights(stranger.name))
    assert (publisher.serving, await ids(model)) == ("", plain)


async def test_whole_weights_take_the_place_of_the_ones_before(base: str, model: LocalModel, tmp_path: Path) -> None:
    store = AdapterStore(tmp_path / "store", model._loaded.weights.digest(), Role.PLANNER)
    publisher = LocalPublisher(model)
    one, two = (
        store.create(
            "", lambda folder, seed=seed: write_model(folder, seed=seed, tie_word_embeddings=False) and None, []
        )
        for seed in (7, 8)
    )
    assert (one.kind, two.kind) == ("full", "full")
    before = await ids(model)
    seen = {before}
    for version in (one, two, one):
        await publisher.publish(version, store.weights(version.name))
        await publisher.switch(version)
        reply = await model.complete(asking("hm", max_tokens=12, adapter=version.name))
        assert reply.adapter == publisher.serving == version.name
        seen.add(reply.ids)
    assert len(seen) == 3
    with pytest.raises(LearnError, match="took the place of the base"):
        await publisher.switch(None)


# ── at a server ───────────────────────────────────────────────────────────────────────────────────────────────────


class Vllm:
    """The three addresses of a vLLM server that MIA uses, with their conditions: a name in use cannot be loaded, nor an
    unknown one unloaded; success is told in plain text."""

    def __init__(self) -> None:
        self.loaded: dict[str, str] = {}
        self.names: list[str] = []
        """Every name that was ever loaded."""
        self.pages: dict[str, Behaviour | list[Behaviour]] = {
            "/v1/load_lora_adapter": self.load,
            "/v1/unload_lora_adapter": self.unload,
            "/v1/models": self.models,
        }

    async def load(self, request: Request, writer: asyncio.StreamWriter) -> None:
        body = json.loads(request.body)
        name, place = body["lora_name"], body["lora_path"]
        if name in self.loaded:
            await _fails(400, "InvalidUserInput", f"The lora adapter '{name}' has already been loaded.")(
                request, writer
            )
        elif not (Path(place) / "adapter_config.json").is_file():
            await _fails(404, "NotFoundError", f"Loading lora {name} failed: No adapter found for {place}")(
                request, writer
            )
        else:
            self.loaded[name] = place
            self.names.append(name)
            await page(f"Success: LoRA adapter '{name}' added successfully.")(request, writer)

    async def unload(self, request: Request, writer: asyncio.StreamWriter) -> None:
        name = json.loads(request.body)["lora_name"]
        if name not in self.loaded:
            await _fails(404, "NotFoundError", f"The lora adapter '{name}' cannot be found.")(request, writer)
        else:
            del self.loaded[name]
            await page(f"Success: LoRA adapter '{name}' removed successfully.")(request, writer)

    async def models(self, request: Request, writer: asyncio.StreamWriter) -> None:
        cards = [{"id": "qwen", "object": "model", "root": "/models/qwen", "parent": None}]
        cards += [
            {"id": name, "object": "model", "root": place, "parent": "qwen"} for name, place in self.loaded.items()
        ]
        await page(json.dumps({"object": "list", "data": cards}), "application/json")(request, writer)


def _fails(status: int, kind: str, message: str) -> Behaviour:
    error = {"error": {"message": message, "type": kind, "param": None, "code": status}}
    return page(json.dumps(error), "application/json", status=status)


def loses_the_reply(behaviour: Behaviour) -> Behaviour:
    """What was asked for is done, and nobody hears of it."""

    class Nowhere:
        def write(self, content: bytes) -> None:
            pass

    async def behave(request: Request, writer: asyncio.StreamWriter) -> None:
        await behaviour(request, Nowhere())  # type: ignore[arg-type]
        writer.close()

    return behave


@pytest.fixture
def store(tmp_path: Path) -> AdapterStore:
    return AdapterStore(tmp_path / "adapters", BASE, Role.PLANNER)


@pytest.fixture
def version(store: AdapterStore) -> Version:
    return store.create("", writes(), [])


def publisher(server: WebServer, **options: float | str) -> VllmPublisher:
    return VllmPublisher(f"{server.url}/v1", **{"backoff": 0.01, **options})  # type: ignore[arg-type]


@contextmanager
def refused(said: str, hint: str = "") -> Iterator[None]:
    with pytest.raises(LearnError) as raised:
        yield
    assert said in raised.value.got
    assert hint in raised.value.hint


async def test_a_version_is_loaded_served_and_unloaded_when_idle(store: AdapterStore, version: Version) -> None:
    vllm = Vllm()
    async with WebServer(vllm.pages) as server:
        ours = publisher(server, api_key="s3cret")
        with refused("has no adapter"):
            await ours.switch(version)
        await ours.publish(version, version.folder)
        assert vllm.loaded == {version.name: str(version.folder.resolve())}
        assert server.requests[-1].headers["authorization"] == "Bearer s3cret"
        await ours.publish(version, version.folder)
        await ours.switch(version)
        with refused("is serving"):
            await ours.retire(version)
        other = store.create(version.name, writes(2.0), [])
        await ours.publish(other, other.folder)
        with ours.using(version.name):
            await ours.switch(other)
            retiring = asyncio.create_task(ours.retire(version))
            await asyncio.sleep(0.02)
            assert set(vllm.loaded) == {version.name, other.name}
        await retiring
        assert set(vllm.loaded) == {other.name}
        await ours.retire(version)
        assert vllm.names == [version.name, other.name]
        # A process that begins anew finds what an earlier one has published.
        again = publisher(server)
        await again.publish(other, other.folder)
        await again.switch(other)
        assert again.serving == other.name
        await again.close()
        await ours.close()


async def test_a_lost_reply_and_a_server_that_is_not_ready_yet(version: Version) -> None:
    vllm = Vllm()
    vllm.pages["/v1/load_lora_adapter"] = [page("starting", status=503), loses_the_reply(vllm.load), vllm.load]
    vllm.pages["/v1/unload_lora_adapter"] = [loses_the_reply(vllm.unload), vllm.unload]
    async with WebServer(vllm.pages) as server:
        ours = publisher(server)
        await ours.publish(version, version.folder)
        assert vllm.names == [version.name]
        await ours.retire(version)
        assert vllm.loaded == {}
        await ours.close()


async def test_what_the_server_refuses_is_said(version: Version, tmp_path: Path) -> None:
    vllm = Vllm()
    async with WebServer(vllm.pages) as server:
        ours = publisher(server, api_key="s3cret")
        with refused("No adapter found for"):
            await ours.publish(version, tmp_path / "nowhere")
        vllm.loaded[version.name] = "/somewhere/else"
        with refused("it has an adapter of that name from '/somewhere/else'"):
            await ours.publish(version, version.folder)
        server.pages["/v1/unload_lora_adapter"] = [_fails(400, "BadRequestError", "busy, s3cret")]
        with refused(f"does not unload '{version.name}' (400: busy, ***)"):
            await ours.retire(version)
        server.pages["/v1/models"] = [page("<html>login</html>")]
        with refused("does not list its models"):
            await ours.switch(version)
        with refused("a whole model", hint="lora"):
            await ours.publish(version.evolve(kind="full"), version.folder)
        await ours.close()


async def test_a_server_that_loads_nothing_while_it_runs(version: Version) -> None:
    vllm = Vllm()
    missing = page(json.dumps({"detail": "Not Found"}), "application/json", status=404)
    vllm.pages["/v1/load_lora_adapter"] = missing
    async with WebServer(vllm.pages) as server:
        ours = publisher(server)
        with refused("does not load adapters while it runs", hint="VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"):
            await ours.publish(version, version.folder)
        await ours.close()


async def test_a_server_that_is_down_hangs_or_hangs_up(version: Version) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    down = VllmPublisher(f"http://127.0.0.1:{port}/v1", backoff=0.01)
    with refused("cannot be asked", hint="is it running"):
        await down.publish(version, version.folder)
    async with WebServer({"/v1/load_lora_adapter": [hangs_up, hangs]}) as server:
        ours = publisher(server, timeout=0.1)
        with refused("no reply within 0.1 s"):
            await ours.publish(version, version.folder)
        assert len(server.requests) == 4
        await ours.close()


@pytest.mark.parametrize(
    "address", ["", "localhost:8000", "ftp://host/v1", "http://user:secret@host/v1", "http://host:port/v1"]
)
def test_an_address_that_is_none(address: str) -> None:
    with pytest.raises(ConfigError, match="the address of the vLLM server is none") as raised:
        VllmPublisher(address)
    assert "secret" not in str(raised.value)
