"""A model of this process, asked as an endpoint is: many at once, with the tokens told and every refusal clear."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_model import asking, write_adapter, write_model

from mia.config import ModelSettings, ModelsSettings
from mia.errors import ConfigError, ContextOverflow, MissingExtra, ModelError, ModelRefused, ModelUnavailable
from mia.models import build_model, build_models
from mia.models.base import ChatRequest, TokenModel, ToolSchema
from mia.models.local import Loaded, LocalModel
from mia.models.weights import Weights
from mia.types import Image, Message, Role, ToolCall


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_model(tmp_path_factory.mktemp("models") / "tiny", tie_word_embeddings=False)


@pytest.fixture(scope="module")
def weights(folder: str) -> Weights:
    return Weights.load(folder)


@pytest.fixture
async def model(folder: str) -> AsyncIterator[LocalModel]:
    model = LocalModel.open(folder, max_tokens=24)
    yield model
    await model.close()


def settings(folder: str, **changes: Any) -> ModelSettings:
    return ModelSettings(provider="local", path=folder, **changes)


# ── replies ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_reply_tells_its_tokens(model: LocalModel, weights: Weights) -> None:
    reply = await model.complete(asking("hello there", max_tokens=12))
    assert reply.prompt_ids == tuple(weights.encode("<|user|>hello there<|end|><|assistant|>"))
    assert reply.text == weights.decode([token for token in reply.ids if token not in weights.end_ids])
    assert len(reply.ids) == len(reply.logprobs) == reply.usage.completion_tokens
    assert (reply.usage.calls, reply.usage.prompt_tokens, reply.usage.cost) == (1, len(reply.prompt_ids), None)
    assert reply.finish_reason == ("stop" if reply.ids[-1] in weights.end_ids else "length")
    with torch.inference_mode():
        whole = torch.tensor([reply.prompt_ids + reply.ids])
        told = weights.network(whole).logits[0].float().log_softmax(-1)
    first = len(reply.prompt_ids)
    expected = [float(told[first + number - 1, token]) for number, token in enumerate(reply.ids)]
    assert reply.logprobs == pytest.approx(expected, abs=1e-4)
    assert model.name == "tiny @ this process"


async def test_it_is_a_token_model(folder: str) -> None:
    model: TokenModel = LocalModel.open(folder, context_window=300, max_tokens=40)
    assert (model.context_window, model.max_tokens, model.price) == (300, 40, None)
    await model.close()


async def test_the_end_of_a_turn_ends_the_reply(folder: str) -> None:
    loaded = Loaded.open(folder)
    model = LocalModel(loaded, max_tokens=24)
    free = await model.complete(asking("tell me", max_tokens=10))
    loaded.weights.end_ids = frozenset({free.ids[4]})
    ended = await model.complete(asking("tell me", max_tokens=10))
    assert ended.ids == free.ids[: free.ids.index(free.ids[4]) + 1]
    assert ended.finish_reason == "stop"
    assert ended.text == loaded.weights.decode(ended.ids[:-1]), "the end itself is no text"
    await model.close()


async def test_a_stop_string_cuts_the_text_and_leaves_the_tokens(model: LocalModel) -> None:
    free = await model.complete(asking("go", max_tokens=24))
    stop = free.text[5:8]
    seen: list[str] = []
    stopped = await model.complete(asking("go", max_tokens=24, stop=("never", stop), on_text=seen.append))
    assert stopped.text == free.text[: free.text.index(stop)] == "".join(seen)
    assert stopped.finish_reason == "stop"
    assert stopped.ids == free.ids[: len(stopped.ids)]
    assert len(stopped.ids) < len(free.ids)


async def test_streaming_happens_in_the_callers_thread_and_whole(model: LocalModel) -> None:
    threads: set[int] = set()
    pieces: list[str] = []

    def on_text(piece: str) -> None:
        threads.add(threading.get_ident())
        pieces.append(piece)

    reply = await model.complete(asking("stream", max_tokens=24, on_text=on_text))
    assert "".join(pieces) == reply.text == (await model.complete(asking("stream", max_tokens=24))).text
    assert len(pieces) > 3
    assert threads == {threading.get_ident()}


async def test_an_error_of_the_callers_own_comes_back_to_it(model: LocalModel) -> None:
    def on_text(piece: str) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await model.complete(asking("stream", on_text=on_text))
    assert (await model.complete(asking("still there", max_tokens=2))).ids


async def test_the_loop_is_free_while_it_samples(model: LocalModel) -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.001)
            ticks += 1

    ticking = asyncio.create_task(tick())
    await asyncio.gather(*(model.complete(asking(f"question {number}", max_tokens=100)) for number in range(16)))
    ticking.cancel()
    assert ticks > 10


async def test_conversations_in_all_roles_are_read(model: LocalModel, weights: Weights) -> None:
    turns = (
        Message(role="system", content="be brief"),
        Message(role="user", content="hi \ud800"),
        Message(role="assistant", content="hm"),
        Message(role="tool", content="found", tool_call_id="1"),
    )
    reply = await model.complete(ChatRequest(turns, Role.PLANNER, "q", "plan", max_tokens=3))
    text = "<|system|>be brief<|end|><|user|>hi ?<|end|><|assistant|>hm<|end|><|tool|>found<|end|><|assistant|>"
    assert reply.prompt_ids == tuple(weights.encode(text))


# ── sampling ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_seed_gives_the_same_again_in_any_company(model: LocalModel) -> None:
    hot = asking("once", temperature=1.0, seed=11, max_tokens=20)
    alone = await model.complete(hot)
    company = [asking(f"other {number}", temperature=1.0, max_tokens=20) for number in range(20)]
    together = await asyncio.gather(*(model.complete(request) for request in (*company, hot)))
    assert together[-1].ids == alone.ids
    unseeded = asking("once", temperature=1.0, max_tokens=20)
    assert len({(await model.complete(unseeded)).ids for _ in range(3)}) > 1


async def test_temperature_comes_from_request_then_settings_then_folder(folder: str, tmp_path: Path) -> None:
    warm = LocalModel.open(folder, temperature=1.0)
    texts = {(await warm.complete(asking("x", max_tokens=16))).text for _ in range(3)}
    assert len(texts) > 1
    greedy = [(await warm.complete(asking("x", max_tokens=16, temperature=0.0))).text for _ in range(2)]
    assert greedy[0] == greedy[1]
    await warm.close()
    plain = LocalModel.open(folder)
    assert (await plain.complete(asking("x", max_tokens=16))).text == greedy[0], "a folder that names none is greedy"
    await plain.close()


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": float("inf")},
        {"temperature": float("nan")},
        {"temperature": -1.0},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"top_p": float("nan")},
        {"max_tokens": 0},
    ],
)
async def test_sampling_that_means_nothing_is_refused(bad: dict[str, Any], model: LocalModel, folder: str) -> None:
    with pytest.raises(ModelRefused) as raised:
        await model.complete(asking("x", **bad))
    assert raised.value.wanted
    if "max_tokens" not in bad:
        with pytest.raises(ConfigError, match="means nothing"):
            LocalModel.open(folder, **bad)


# ── refusals ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_prompt_without_room_is_refused_before_sampling(model: LocalModel) -> None:
    long = asking("word " * 300)
    with pytest.raises(
        ContextOverflow, match=r"prompt has \d+ tokens and the reply may have 24: \d+ together"
    ) as raised:
        await model.complete(long)
    assert "512" in raised.value.wanted
    assert model._loaded.sampler.steps == model._loaded.sampler.read_tokens == 0
    with pytest.raises(ContextOverflow):
        await model.complete(asking("short", max_tokens=510))
    used = len((await model.complete(asking("short", max_tokens=1))).prompt_ids)
    full = await model.complete(asking("short", max_tokens=512 - used))
    assert len(full.ids) <= 512 - used, "to the last token of the window"


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
async def test_the_last_position_of_the_window_can_be_used(kind: str, tmp_path: Path) -> None:
    shape = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64} if kind == "gpt2" else {}
    model = LocalModel.open(write_model(tmp_path / "m", kind, **{"max_position_embeddings": 64, **shape}), max_tokens=4)
    model._loaded.weights.end_ids = frozenset()
    room = 64 - len((await model.complete(asking("a", max_tokens=1))).prompt_ids)
    replies = await asyncio.gather(
        model.complete(asking("a", max_tokens=room)), *(model.complete(asking("bcd" * n)) for n in range(8))
    )
    assert len(replies[0].ids) == room
    await model.close()


async def test_images_and_native_tools_are_refused(model: LocalModel) -> None:
    image = Image(sha256="0", media_type="image/png")
    call = Message(role="assistant", content="", tool_calls=(ToolCall(name="search", arguments={}),))
    tool = ToolSchema("search", "Search.", {})
    for request, word in (
        (ChatRequest((Message(role="user", content="?", images=(image,)),), Role.EXECUTOR, "q", "x"), "images"),
        (asking("x", tools=(tool,)), "native"),
        (ChatRequest((call,), Role.EXECUTOR, "q", "x"), "native"),
    ):
        with pytest.raises(ModelRefused, match=word) as raised:
            await model.complete(request)
        assert raised.value.hint


async def test_a_conversation_that_the_template_refuses_is_refused(tmp_path: Path) -> None:
    template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}x"
    model = LocalModel.open(write_model(tmp_path / "m", template=template))
    with pytest.raises(ModelRefused, match="no system turn"):
        await model.complete(ChatRequest((Message(role="system", content="s"),), Role.JUDGE, "q", "judge"))
    await model.close()


# ── cancel and close ──────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_cancelled_task_leaves_the_batch_and_harms_nobody(model: LocalModel) -> None:
    model._loaded.weights.end_ids = frozenset()
    alone = await model.complete(asking("stay", max_tokens=60))
    begun = asyncio.Event()
    leaving = asyncio.create_task(model.complete(asking("go", max_tokens=400, on_text=lambda _: begun.set())))
    staying = asyncio.create_task(model.complete(asking("stay", max_tokens=60)))
    await begun.wait()
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    assert (await staying).ids == alone.ids
    steps = model._loaded.sampler.steps
    await asyncio.sleep(0.05)
    assert model._loaded.sampler.steps <= steps + 1
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await model.complete(asking("late", max_tokens=480))


async def test_closing_in_mid_answer_fails_it_cleanly(folder: str) -> None:
    model = LocalModel.open(folder)
    model._loaded.weights.end_ids = frozenset()
    begun = asyncio.Event()
    answering = asyncio.create_task(model.complete(asking("go", max_tokens=400, on_text=lambda _: begun.set())))
    await begun.wait()
    await model.close()
    await model.close()
    with pytest.raises(ModelUnavailable, match="closed"):
        await answering
    with pytest.raises(ModelUnavailable, match="closed"):
        await model.complete(asking("again"))


async def test_out_of_memory_fails_the_request_and_the_model_goes_on(model: LocalModel) -> None:
    network = model._loaded.weights.network

    def exhausted(*_: object) -> None:
        torch.empty(1 << 60)

    hook = network.register_forward_pre_hook(exhausted)
    with pytest.raises(ModelError, match=r"failed while sampling.*(memory|size)"):
        await model.complete(asking("too much"))
    hook.remove()
    assert (await model.complete(asking("fine", max_tokens=3))).ids


def sampling_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("sampling tiny")}


async def test_the_thread_ends_with_its_last_model(folder: str) -> None:
    before = sampling_threads()
    models = build_models(ModelsSettings(default=settings(folder), judge=ModelSettings(temperature=0.5)))
    assert models.planner is models.executor
    planner, judge = models.planner, models.judge
    assert isinstance(planner, LocalModel)
    assert isinstance(judge, LocalModel)
    assert judge is not planner
    assert judge._loaded is planner._loaded, "settings that differ in temperature share weights"
    await asyncio.gather(*(models.of(role).complete(asking("x", max_tokens=2)) for role in Role))
    (thread,) = sampling_threads() - before
    await planner.close()
    assert (await judge.complete(asking("x", max_tokens=2))).ids
    await models.close()
    assert not thread.is_alive()


async def test_a_forgotten_model_ends_its_thread(folder: str) -> None:
    before = sampling_threads()
    model = LocalModel.open(folder)
    await model.complete(asking("x", max_tokens=2))
    (thread,) = sampling_threads() - before
    del model
    gc.collect()
    thread.join(5)
    assert not thread.is_alive()


def test_a_program_that_does_not_close_ends_all_the_same(folder: str) -> None:
    program = f"""
import asyncio
from mia.models.local import LocalModel
from mia.models.base import ChatRequest
from mia.types import Message, Role
model = LocalModel.open({folder!r})
request = ChatRequest((Message(role="user", content="x"),), Role.EXECUTOR, "q", "x", max_tokens=3)
async def main():
    task = asyncio.create_task(model.complete(ChatRequest(request.messages, request.role, "q", "y", max_tokens=400)))
    print(len((await model.complete(request)).ids))
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "3\n", "")


# ── adapters ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_adapters_by_request_by_default_and_unloaded_when_idle(
    model: LocalModel, folder: str, tmp_path: Path
) -> None:
    model._loaded.weights.end_ids = frozenset()
    base = await model.complete(asking("hm", max_tokens=12))
    await model.load_adapter("planner-1", write_adapter(folder, tmp_path / "one", seed=1))
    await model.load_adapter("planner-2", write_adapter(folder, tmp_path / "two", seed=2))
    one = await model.complete(asking("hm", max_tokens=12, adapter="planner-1"))
    assert (one.adapter, base.adapter) == ("planner-1", "")
    assert one.ids != base.ids
    model.set_adapter("planner-2")
    two = await model.complete(asking("hm", max_tokens=12))
    assert two.adapter == model.adapter == "planner-2"
    assert two.ids not in (one.ids, base.ids)
    with pytest.raises(ConfigError, match="current"):
        await model.unload_adapter("planner-2")
    begun = asyncio.Event()
    answering = asyncio.create_task(
        model.complete(asking("hm", max_tokens=200, adapter="planner-1", on_text=lambda _: begun.set()))
    )
    await begun.wait()
    unloading = asyncio.create_task(model.unload_adapter("planner-1"))
    await asyncio.sleep(0)
    with pytest.raises(ModelRefused, match="unloading the adapter 'planner-1'"):
        await model.complete(asking("hm", adapter="planner-1"))
    await unloading
    assert answering.done() or model._loaded.sampler.steps
    assert (await answering).ids[:12] == one.ids, "who was under way was answered with it to the end"
    assert model.adapters == ("planner-2",)
    for unknown in ("planner-1", "nobody"):
        with pytest.raises(ModelRefused, match=f"no adapter '{unknown}'") as raised:
            await model.complete(asking("hm", adapter=unknown))
        assert "planner-2" in raised.value.wanted
        with pytest.raises(ConfigError, match="no adapter"):
            model.set_adapter(unknown)
    model.set_adapter("")
    assert (await model.complete(asking("hm", max_tokens=12))).ids == base.ids


async def test_a_name_used_again_finds_nothing_of_the_old_adapter(
    model: LocalModel, folder: str, tmp_path: Path
) -> None:
    """Keys and values that an adapter left must go with it."""
    request = asking("remember this long enough to be kept", max_tokens=12, adapter="a")
    answers = {}
    for seed in (1, 2):
        await model.load_adapter("a", write_adapter(folder, tmp_path / str(seed), seed=seed))
        answers[seed] = await model.complete(request)
        await model.unload_adapter("a")
    await model.load_adapter("fresh", tmp_path / "2")
    fresh = await model.complete(asking("remember this long enough to be kept", max_tokens=12, adapter="fresh"))
    assert answers[2].ids == fresh.ids != answers[1].ids


# ── from settings ─────────────────────────────────────────────────────────────────────────────────────────────────


async def test_it_is_built_from_settings(folder: str) -> None:
    model = build_model(settings(folder, context_window=256, max_tokens=200, temperature=0.0, batch=2))
    assert (model.name, model.context_window, model.max_tokens) == ("tiny @ this process", 256, 128)
    assert (await model.complete(asking("x", max_tokens=4))).text is not None
    await model.close()


def test_native_function_calls_are_refused_before_anything_is_read() -> None:
    with pytest.raises(ConfigError, match=r"models\.executor .* no native function calls"):
        build_model(settings("/nowhere", protocol="native"), section="executor")


def test_without_its_embedded_model_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("mia.models.local.EMBEDDED", tmp_path / "none")
    with pytest.raises(ConfigError, match="embedded model is not there"):
        build_model(settings(""))


@pytest.mark.parametrize("library", ["torch", "transformers"])
def test_without_its_libraries_it_names_the_extra(library: str, monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingExtra, match=library) as raised:
        build_model(settings(folder))
    assert "[local]" in raised.value.hint


def test_importing_it_is_light() -> None:
    program = "import sys, mia.models.local; print([m for m in ('torch', 'transformers', 'peft') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
