"""Models by role: what the settings say, built; and the switch that forbids real calls.

Light to import: the SDK of an endpoint is loaded when a model that needs it is built. Roles with the same settings
share one model, and all models at one address with one key share its connections and its limit on concurrent calls.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mia.config import ModelSettings, ModelsSettings, resolve_key, resolve_url
from mia.errors import ConfigError
from mia.models.base import ChatModel, Price
from mia.types import Role

if TYPE_CHECKING:
    from mia.models.local import Loaded
    from mia.models.openai import Endpoint
    from mia.models.replay import RecordingWriter, ReplayModel

_forbidden = False


def forbid_real_calls(forbidden: bool = True) -> None:
    """Let no model of this process call an endpoint; `MIA_FORBID_REAL_CALLS=1` in the environment does the same."""
    global _forbidden
    _forbidden = forbidden


def real_calls_forbidden() -> bool:
    return _forbidden or os.environ.get("MIA_FORBID_REAL_CALLS", "") not in ("", "0")


@dataclass(frozen=True)
class Models:
    """One model per role."""

    planner: ChatModel
    executor: ChatModel
    manager: ChatModel
    judge: ChatModel
    cold_start: ChatModel | None = None
    """Writes the plan while the memory is cold; None: the planner does."""
    reader: ChatModel | None = None
    """Reads long texts; None: the executor's model does."""
    replays: tuple[ReplayModel, ...] = ()
    """The recordings among them, whoever is wrapped around them."""

    def of(self, role: Role) -> ChatModel:
        model: ChatModel | None = getattr(self, role.value)
        return model or self.executor

    async def close(self) -> None:
        for model in (self.planner, self.executor, self.manager, self.judge, self.cold_start, self.reader):
            if model is not None:
                await model.close()


def build_models(settings: ModelsSettings) -> Models:
    """A model for every role. Raises ConfigError, and RecordError for a recording that cannot be used."""
    sections: dict[str, ModelSettings] = {role.value: settings.of(role) for role in Role}
    if settings.cold_start is not None:
        sections["cold_start"] = settings.of("cold_start")
    builder = _Builder(sections.values())
    built = {name: builder.build(section, name) for name, section in sections.items()}
    if settings.record:
        built = _recorded(built, Path(settings.record))
    return Models(
        planner=built["planner"],
        executor=built["executor"],
        manager=built["manager"],
        judge=built["judge"],
        cold_start=built.get("cold_start"),
        reader=built["reader"],
        replays=builder.replays,
    )


def build_model(settings: ModelSettings, *, section: str = "default") -> ChatModel:
    """One model; `section` names its settings in errors. Raises ConfigError and RecordError."""
    return _Builder([settings]).build(settings, section)


class _Builder:
    """Builds models that share what can be shared."""

    def __init__(self, sections: Iterable[ModelSettings]) -> None:
        self._sections = tuple(sections)
        self._models: dict[ModelSettings, ChatModel] = {}
        self._endpoints: dict[tuple[str, str], Endpoint] = {}
        self._replays: dict[str, ReplayModel] = {}
        self._loaded: dict[tuple[str, str, int, int], Loaded] = {}

    @property
    def replays(self) -> tuple[ReplayModel, ...]:
        """The recordings that were built so far."""
        return tuple(self._replays.values())

    def build(self, settings: ModelSettings, section: str) -> ChatModel:
        if settings not in self._models:
            makers = {"replay": self._replay, "local": self._local, "openai": self._openai}
            self._models[settings] = makers[settings.provider](settings, section)
        return self._models[settings]

    def _replay(self, settings: ModelSettings, section: str) -> ChatModel:
        from mia.models.replay import ReplayModel

        if not settings.path:
            raise ConfigError(f"models.{section} replays a recording and names none.", hint="--replay RECORDING.jsonl")
        if settings.path not in self._replays:
            self._replays[settings.path] = ReplayModel(
                Path(settings.path),
                context_window=settings.context_window,
                max_tokens=settings.max_tokens,
                price=_price(settings),
            )
        return self._replays[settings.path]

    def _local(self, settings: ModelSettings, section: str) -> ChatModel:
        from mia.models.local import Loaded, LocalModel

        if settings.protocol == "native":
            raise ConfigError(
                f"models.{section} runs in this process, where there are no native function calls.",
                wanted='protocol "text"',
                hint=f'set models.{section}.protocol = "text"',
            )
        # Models that differ in their sampling alone share weights and batch.
        key = (settings.path, settings.device, settings.batch, settings.threads)
        if key not in self._loaded:
            self._loaded[key] = Loaded.open(
                settings.path, device=settings.device, batch=settings.batch, threads=settings.threads
            )
        model = LocalModel(
            self._loaded[key],
            context_window=settings.context_window,
            max_tokens=settings.max_tokens,
            temperature=settings.temperature,
            top_p=settings.top_p,
        )
        if settings.adapter:
            model.set_adapter(self._adapter(self._loaded[key], Path(settings.adapter)))
        return model

    def _adapter(self, loaded: Loaded, folder: Path) -> str:
        """The name of the adapter in a folder, which is loaded if it is not yet."""
        name = _adapter_name(folder)
        if name not in loaded.weights.adapters:
            loaded.sampler.call(partial(loaded.weights.load_adapter, name, folder)).result()
        return name

    def _openai(self, settings: ModelSettings, section: str) -> ChatModel:
        from mia.models.openai import OpenAIModel

        if not settings.model:
            raise ConfigError(
                f"no model is named for the {section}.",
                wanted="the name of a model, and the address that serves it unless that is OpenAI's own",
                hint="`mia doctor` finds endpoints on this machine; then --model NAME --base-url URL "
                "(without a model, `mia search` shows what your documents hold)",
            )
        return OpenAIModel(
            self._endpoint(settings, section),
            settings.model,
            context_window=settings.context_window,
            max_tokens=settings.max_tokens,
            temperature=settings.temperature,
            top_p=settings.top_p,
            price=_price(settings),
            timeout_seconds=settings.timeout_seconds,
            max_attempts=settings.max_attempts,
            max_retry_seconds=settings.max_retry_seconds,
        )

    def _endpoint(self, settings: ModelSettings, section: str) -> Endpoint:
        from mia.models.openai import OPENAI_URL, Endpoint

        base_url, key = _address(settings)
        if (base_url, key) in self._endpoints:
            return self._endpoints[base_url, key]
        if settings.api_key_env:
            hint = f"export {settings.api_key_env}=…"
        elif settings.base_url in ("", os.environ.get("OPENAI_BASE_URL", "")):
            hint = "export OPENAI_API_KEY=…"
        else:
            hint = f"export MIA_MODELS__{section.upper()}__API_KEY_ENV=NAME, the variable that holds the key"
        endpoint = Endpoint(
            base_url,
            key,
            key_hint=hint,
            # Where roles disagree, the most careful one counts.
            concurrency=min(other.concurrency for other in self._sections if _shares(other, settings)),
        )
        if endpoint.base_url == OPENAI_URL and not key:
            raise ConfigError(
                f"there is no key for OpenAI's own endpoint, where models.{section} is to be asked.",
                hint=f"{hint} (or --base-url URL for another endpoint)",
            )
        self._endpoints[base_url, key] = endpoint
        return endpoint


def _shares(other: ModelSettings, settings: ModelSettings) -> bool:
    return other.provider == "openai" and _address(other) == _address(settings)


def _address(settings: ModelSettings) -> tuple[str, str]:
    return resolve_url(settings.base_url).rstrip("/"), resolve_key(
        settings.base_url, settings.api_key, settings.api_key_env
    )


def _price(settings: ModelSettings) -> Price | None:
    if settings.price_prompt is None or settings.price_completion is None:
        return None
    return Price(settings.price_prompt, settings.price_completion)


def _adapter_name(folder: Path) -> str:
    """The name of the version, in a store of versions (`mia.learn.adapters`); else the folder's own, with the digest of
    its weights, since a folder may be written anew."""
    for place in folder.resolve().parents[:2]:
        page = place / "version.json"
        if page.is_file():
            return str(json.loads(page.read_text(encoding="utf-8"))["name"])
    weights = folder / "adapter_model.safetensors"
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()[:8] if weights.is_file() else ""
    return f"{folder.resolve().name}-{digest}"


def _recorded(models: Mapping[str, ChatModel], path: Path) -> dict[str, ChatModel]:
    from mia.models.replay import Recorder, RecordingWriter

    writer: RecordingWriter = RecordingWriter(path)
    return {name: Recorder(model, writer) for name, model in models.items()}
