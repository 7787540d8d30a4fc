"""Making versions answerable: in this process, or at a vLLM server.

    publish(version, folder)   from now on a request may name it (`ChatRequest.adapter = version.name`)
    using(name)                it is in use as long as this stands: an episode of many calls, say
    retire(version)            takes no new users, waits until the last has gone, then unloads it

All of it is idempotent: to publish what is there, or to retire what is not, does nothing. Names are never used for
other weights: a version's name has its store's own mark in it (`mia.learn.adapters`), and what a server remembers of a
name is therefore always true.

Which version answers requests that name none is `switch`; at a vLLM server those are answered by the base model
whatever is said here, so that callers read `serving` and name it.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import httpx2

from mia.errors import ConfigError, LearnError
from mia.learn.adapters import Version

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from mia.models.local import LocalModel

_MAX_BODY_BYTES = 1024 * 1024
_RETRIED = frozenset((408, 425, 429, 500, 502, 503, 504))
_SERVE = (
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve MODEL --enable-lora --max-lora-rank RANK --max-loras N, N being "
    "learn.max_staleness + 2 or more"
)


class Publisher(Protocol):
    """See the module's docstring. For one event loop."""

    @property
    def serving(self) -> str:
        """The version that answers; empty: the base model."""
        ...

    async def publish(self, version: Version, folder: Path) -> None:
        """Raises LearnError if it cannot be: whatever answered before goes on answering."""
        ...

    async def switch(self, version: Version | None) -> None:
        """Let a published version answer from now on; None: the base model. Raises LearnError."""
        ...

    def using(self, name: str) -> AbstractContextManager[None]:
        """Raises LearnError for a version that is being retired. The base model (an empty name) is always there."""
        ...

    async def retire(self, version: Version) -> None:
        """Raises LearnError for the one that is serving, and if it cannot be unloaded."""
        ...

    async def close(self) -> None:
        """Let go of connections. What is published stays."""
        ...


class _Users:
    """Counts who uses which version."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._leaving: dict[str, asyncio.Event] = {}

    @contextmanager
    def using(self, name: str) -> Iterator[None]:
        if name in self._leaving:
            raise LearnError(f"'{name}' is being retired, and takes no new requests.", hint="ask for the serving one")
        self._counts[name] += 1
        try:
            yield
        finally:
            self._counts[name] -= 1
            if not self._counts[name]:
                del self._counts[name]
                if name in self._leaving:
                    self._leaving[name].set()

    @contextmanager
    def leaving(self, name: str) -> Iterator[asyncio.Event]:
        """No new users meanwhile; the event is set once there are none."""
        idle = self._leaving.setdefault(name, asyncio.Event())
        if not self._counts[name]:
            idle.set()
        try:
            yield idle
        finally:
            self._leaving.pop(name, None)


class LocalPublisher:
    """To a model of this process. Adapters stand side by side, and requests under way end as they began. Whole weights
    (`learn.weights = "full"`) do not: publishing such a version replaces the ones before, for every request."""

    def __init__(self, model: LocalModel) -> None:
        self._model = model
        self._users = _Users()
        self._whole = ""
        """The version whose whole weights the model has."""

    @property
    def serving(self) -> str:
        return self._model.adapter or self._whole

    async def publish(self, version: Version, folder: Path) -> None:
        """Raises LearnError for weights that do not fit; MissingExtra."""
        try:
            if version.kind == "full":
                if version.name != self._whole:
                    await self._model.replace_weights(folder, version.name)
                    self._whole = version.name
            elif version.name not in self._model.adapters:
                await self._model.load_adapter(version.name, folder)
        except ConfigError as error:
            raise _refused(version.name, error) from error

    async def switch(self, version: Version | None) -> None:
        """Whole weights answer as soon as they are published, and the base model is then gone."""
        name = version.name if version is not None else ""
        if name == self.serving:
            return
        if self._whole and not name:
            raise LearnError(
                f"'{self._whole}' took the place of the base model's weights.", hint="publish the base's folder anew"
            )
        try:
            self._model.set_adapter(name)
        except ConfigError as error:
            raise _refused(name, error) from error

    def using(self, name: str) -> AbstractContextManager[None]:
        return self._users.using(name)

    async def retire(self, version: Version) -> None:
        if version.name == self.serving:
            raise LearnError(f"'{version.name}' is serving.", hint="switch to another one first")
        if version.name not in self._model.adapters:
            return
        with self._users.leaving(version.name) as idle:
            await idle.wait()
            # Several may have waited.
            if version.name in self._model.adapters:
                await self._model.unload_adapter(version.name)

    async def close(self) -> None:
        """The model is its owner's."""


class VllmPublisher:
    """To a vLLM server that may load LoRA adapters while it runs, by its `/v1/load_lora_adapter` and
    `/v1/unload_lora_adapter`. It reads the adapter's folder itself: both see the same file system.

    A request whose reply was lost is not lost: what the server lists (`/v1/models`) decides. Only users of this
    publisher are counted; other processes that ask for a version need a publisher that retires it for all of them.
    """

    def __init__(
        self, base_url: str, *, api_key: str = "", timeout: float = 120.0, attempts: int = 4, backoff: float = 0.5
    ) -> None:
        """`base_url`: as of an OpenAI-compatible endpoint, e.g. http://localhost:8000/v1. `timeout`: seconds for one
        request; a large adapter takes its time. `backoff`: seconds of the first wait, doubled with each try. Raises
        ConfigError for an address that is none."""
        self._url = _check_url(base_url)
        self._key = api_key
        self._timeout = timeout
        self._attempts = attempts
        self._backoff = backoff
        self._users = _Users()
        self._serving = ""
        self._client: httpx2.AsyncClient | None = None

    @property
    def serving(self) -> str:
        return self._serving

    async def publish(self, version: Version, folder: Path) -> None:
        """Raises LearnError: the server cannot be reached, loads no adapters while it runs, or refuses this one."""
        if version.kind == "full":
            raise LearnError(
                f"'{version.name}' is a whole model, and a vLLM server loads adapters alone while it runs.",
                hint='learn.weights = "lora", or begin a server with this version\'s folder',
            )
        place = str(folder.resolve())
        status, said = await self._ask("POST", "load_lora_adapter", {"lora_name": version.name, "lora_path": place})
        if status == 200:
            return
        # It may be there: an earlier try whose reply was lost, or an earlier process of ours.
        root = (await self._loaded()).get(version.name)
        if root == place:
            return
        if root is not None:
            said = f"it has an adapter of that name from '{root}'"
        raise self._error(f"does not load '{version.name}' from '{place}' ({status}: {said})", status, said)

    async def switch(self, version: Version | None) -> None:
        """Raises LearnError if the server does not have it."""
        name = version.name if version is not None else ""
        if name and name not in await self._loaded():
            raise self._error(f"has no adapter '{name}'", hint="publish it first")
        self._serving = name

    def using(self, name: str) -> AbstractContextManager[None]:
        return self._users.using(name)

    async def retire(self, version: Version) -> None:
        name = version.name
        if name == self._serving:
            raise LearnError(f"'{name}' is serving.", hint="switch to another one first")
        with self._users.leaving(name) as idle:
            await idle.wait()
            status, said = await self._ask("POST", "unload_lora_adapter", {"lora_name": name})
        if status != 200 and name in await self._loaded():
            raise self._error(f"does not unload '{name}' ({status}: {said})", status, said)

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    # ── asking ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _loaded(self) -> dict[str, str]:
        """Name → folder of the adapters that the server has: of its models those that have a parent."""
        status, said = await self._ask("GET", "models", None)
        models = said.get("data") if status == 200 and isinstance(said, dict) else None
        if not isinstance(models, list):
            raise self._error(f"does not list its models ({status})")
        cards = [card for card in models if isinstance(card, dict)]
        return {str(card.get("id")): str(card.get("root")) for card in cards if card.get("parent")}

    async def _ask(self, method: str, path: str, body: dict[str, str] | None) -> tuple[int, Any]:
        """Status, and what was said: the JSON of a list, else a sentence. Raises LearnError if nobody answers."""
        attempt = 0
        while True:
            attempt += 1
            try:
                return await self._try(method, path, body, last=attempt >= self._attempts)
            except _TryAgain as failure:
                if attempt >= self._attempts:
                    raise self._error(
                        f"cannot be asked ({failure.why})", hint="is it running, and at this address?"
                    ) from None
            await asyncio.sleep(self._backoff * 2 ** (attempt - 1) * (0.5 + random.random() / 2))

    async def _try(self, method: str, path: str, body: dict[str, str] | None, *, last: bool) -> tuple[int, Any]:
        if self._client is None:
            headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
            self._client = httpx2.AsyncClient(headers=headers, timeout=self._timeout, follow_redirects=False)
        try:
            async with self._client.stream(method, f"{self._url}/{path}", json=body) as response:
                content = bytearray()
                async for chunk in response.aiter_bytes():
                    content += chunk
                    if len(content) > _MAX_BODY_BYTES:
                        raise self._error(f"sends more than {_MAX_BODY_BYTES >> 20} MB from /{path}")
        except httpx2.TimeoutException:
            raise _TryAgain(f"no reply within {self._timeout:g} s") from None
        except (httpx2.TransportError, httpx2.DecodingError) as error:
            raise _TryAgain(" ".join(str(error).split()) or type(error).__name__) from None
        if response.status_code in _RETRIED and not last:
            raise _TryAgain(f"status {response.status_code}")
        return response.status_code, _said(bytes(content), whole=method == "GET")

    def _error(self, what: str, status: int = 0, said: Any = "", *, hint: str = "") -> LearnError:
        off = status in (404, 405) and said in ("Not Found", "Method Not Allowed")
        if off:
            what, hint = "does not load adapters while it runs", _SERVE
        got = f"the vLLM server at {self._url} {what}."
        return LearnError(got.replace(self._key, "***") if self._key else got, hint=hint)


class _TryAgain(Exception):
    """A try failed in a way that may pass."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


def _said(content: bytes, *, whole: bool) -> Any:
    """What an answer says: of a list its JSON, of an error its message, in any of the forms that servers gave it."""
    text = " ".join(content.decode("utf-8", "replace").split())[:300]
    try:
        answer = json.loads(content)
    except (ValueError, RecursionError):
        return text
    if whole:
        return answer
    inner = answer.get("error") if isinstance(answer, dict) else None
    for holder in (inner, answer):
        for key in ("message", "detail"):
            if isinstance(holder, dict) and isinstance(holder.get(key), str):
                return " ".join(holder[key].split())[:300].rstrip(".")
    return text


def _check_url(url: str) -> str:
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise ConfigError(f"the address of the vLLM server is none: {error}.", hint="http://HOST:PORT/v1") from None
    if parsed.scheme not in ("http", "https") or not parsed.host or parsed.userinfo:
        raise ConfigError(
            "the address of the vLLM server is none.",
            wanted="http://… or https://…, without a name and a password",
            hint="http://localhost:8000/v1",
        )
    return url.rstrip("/")


def _refused(name: str, error: ConfigError) -> LearnError:
    return LearnError(f"'{name}' cannot be published: {error.got}", wanted=error.wanted, hint=error.hint)
