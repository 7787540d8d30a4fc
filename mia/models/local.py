"""A causal language model of transformers in this process, as a `TokenModel`: it tells the very tokens it sampled.

It answers as an endpoint does, and needs none. Many tasks ask at once; one thread samples for all of them
(`mia.models.sampling`), so that the event loop never waits for arithmetic. Models of the same folder share weights,
batch and adapters (`Loaded`), and differ in their window, their sampling and their current adapter.

What a reply promises:
- `prompt_ids` and `ids` are what was read and sampled; nothing is re-tokenised. `logprobs` are those of `ids` at
  temperature 1, of the whole distribution.
- With temperature 0, and with a seed, in float32 (on a CPU), the tokens depend on the request alone and not on what
  else is being answered. Logprobs agree to about 1e-5: sums of another order round otherwise.
- A temperature that neither request nor settings name is that of the folder's generation_config.json, else 0 (greedy).

JSON schemas are not enforced. Images, and tools offered natively, are refused.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mia.errors import ConfigError, ContextOverflow, ModelError, ModelRefused, ModelUnavailable, require
from mia.models.base import ChatRequest, Price, TokenReply, measured_usage
from mia.models.decoding import TextStream
from mia.types import Message

if TYPE_CHECKING:
    from mia.models.sampling import Job, Sampled, Sampler
    from mia.models.weights import Weights

EMBEDDED = Path(__file__).parent / "embedded"
"""The folder of the model that comes with MIA."""


@dataclass(eq=False)
class Loaded:
    """Weights with the thread that samples from them: what models of one folder share. It ends with its last user."""

    weights: Weights
    sampler: Sampler
    users: int = 0
    leaving: set[str] = field(default_factory=set)
    """Adapters that take no new requests, because they are about to be unloaded."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def open(cls, path: str | Path = "", *, device: str = "cpu", batch: int = 32, threads: int = 1) -> Loaded:
        """Read a model (`Weights.load`); empty: the embedded one. Raises ConfigError and MissingExtra."""
        for library in ("torch", "transformers"):
            require(library, extra="local", purpose="models that run in this process")
        from mia.models.sampling import Sampler
        from mia.models.weights import Weights

        if not str(path) and not EMBEDDED.is_dir():
            raise ConfigError(
                f"the embedded model is not there: '{EMBEDDED}' is no folder.",
                hint="install MIA anew, or set models.*.path to a folder of transformers",
            )
        weights = Weights.load(str(path) or str(EMBEDDED), device=device)
        return cls(weights, Sampler(weights, batch=batch, threads=threads))

    def acquire(self) -> None:
        with self.lock:
            self.users += 1

    def release(self) -> None:
        with self.lock:
            self.users -= 1
            last = self.users == 0
        if last:
            self.sampler.close()


class LocalModel:
    """One model of this process. See the module's docstring for what a reply promises."""

    price: Price | None = None

    def __init__(
        self,
        loaded: Loaded,
        *,
        context_window: int = 128_000,
        max_tokens: int = 2048,
        temperature: float | None = None,
        top_p: float | None = None,
    ) -> None:
        """`context_window`: at most what the model can read. `max_tokens`: at most half of that. Raises ConfigError for
        sampling settings that mean nothing."""
        _check_sampling(
            ConfigError, temperature, top_p, "set models.*.temperature to 0 or more, and top_p within (0, 1]"
        )
        from mia.models.weights import default_sampling

        own_temperature, own_top_p = default_sampling(loaded.weights.network)
        self.name = f"{loaded.weights.name} @ this process"
        self.context_window = min(context_window, loaded.weights.window or context_window)
        self.max_tokens = min(max_tokens, max(1, self.context_window // 2))
        self._loaded = loaded
        self._temperature = own_temperature if temperature is None else temperature
        self._top_p = own_top_p if top_p is None else top_p
        self._adapter = ""
        loaded.acquire()
        # Also when a program ends, or forgets a model, without closing it.
        self._release = weakref.finalize(self, loaded.release)

    @classmethod
    def open(
        cls, path: str | Path = "", *, device: str = "cpu", batch: int = 32, threads: int = 1, **settings: Any
    ) -> LocalModel:
        """A model of its own weights; `settings` as for the constructor. Empty path: the embedded model. Raises
        ConfigError and MissingExtra."""
        return cls(Loaded.open(path, device=device, batch=batch, threads=threads), **settings)

    @property
    def tokenizer(self) -> Any:
        """The tokenizer, as transformers made it: what counts its tokens and says where they stand in a text."""
        return self._loaded.weights.tokenizer

    def __repr__(self) -> str:
        return f"LocalModel({self.name!r})"

    # ── answering ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def complete(self, request: ChatRequest) -> TokenReply:
        """Raises ModelRefused for a request that cannot be served, ContextOverflow before anything is sampled,
        ModelUnavailable once closed, ModelError if sampling fails; CancelledError passes through, and the request
        leaves the batch."""
        from mia.models.sampling import Job

        self._refuse_when_closed()
        begun = time.monotonic()
        adapter = self._wanted_adapter(request)
        temperature = self._temperature if request.temperature is None else request.temperature
        top_p = self._top_p if request.top_p is None else request.top_p
        _check_sampling(
            ModelRefused, temperature, top_p, "ask for a temperature of 0 or more, and a top_p within (0, 1]"
        )
        prompt_ids = self._read(request)
        max_tokens = self._room(request, len(prompt_ids))

        loop = asyncio.get_running_loop()
        arrived: asyncio.Queue[str | Sampled | BaseException] = asyncio.Queue()

        def send(item: str | Sampled | BaseException) -> None:
            try:
                loop.call_soon_threadsafe(arrived.put_nowait, item)
            except RuntimeError:
                job.cancelled = True  # The loop is closed: nobody waits any more.

        stream = TextStream(self._loaded.weights.decode, request.stop)
        watched = bool(request.stop) or request.on_text is not None
        job = Job(
            prompt_ids=prompt_ids,
            max_tokens=max_tokens,
            done=send,
            take=_watcher(stream, send if request.on_text is not None else None) if watched else _never,
            temperature=temperature,
            top_p=top_p,
            seed=request.seed,
            adapter=adapter,
        )
        self._loaded.sampler.submit(job)
        sampled = await self._sampled(job, arrived, request.on_text)
        weights = self._loaded.weights
        if request.adapter and not adapter and sampled.version != request.adapter:
            raise ModelRefused(
                f"the weights of {self.name} were replaced by '{sampled.version}' while a request for "
                f"'{request.adapter}' waited.",
                hint="ask anew, for the version that is there",
            )
        if watched:
            rest, text = stream.finish(), stream.text
            if rest and request.on_text is not None:
                request.on_text(rest)
        else:
            text = weights.decode([token for token in sampled.ids if token not in weights.end_ids])
        usage = measured_usage(len(prompt_ids), len(sampled.ids), self.price)
        return TokenReply(
            text=text,
            finish_reason="stop" if stream.stopped else sampled.ended,
            usage=usage.model_copy(update={"seconds": time.monotonic() - begun}),
            model=weights.name,
            prompt_ids=prompt_ids,
            ids=sampled.ids,
            logprobs=sampled.logprobs,
            adapter=adapter or sampled.version,
        )

    async def _sampled(
        self,
        job: Job,
        arrived: asyncio.Queue[str | Sampled | BaseException],
        on_text: Callable[[str], None] | None,
    ) -> Sampled:
        """What comes of a job; text is told as it arrives. Whoever waits no more takes the job out of the batch."""
        from mia.models.sampling import Sampled

        try:
            while not isinstance(item := await arrived.get(), Sampled):
                if isinstance(item, BaseException):
                    raise item
                if on_text is not None:
                    on_text(item)
        except BaseException:
            self._loaded.sampler.cancel(job)
            raise
        return item

    async def close(self) -> None:
        """Let go of the weights; the last model that shares them ends their thread, and what it still answers fails.
        Calling it twice is harmless."""
        await asyncio.to_thread(self._release)

    def _read(self, request: ChatRequest) -> tuple[int, ...]:
        """The prompt's tokens, by the chat template. Raises ModelRefused."""
        if request.tools or any(message.tool_calls for message in request.messages):
            raise ModelRefused(
                f"{self.name} has no native function calls, and the request offers tools that way.",
                hint='set models.executor.protocol = "text"',
            )
        if any(message.images for message in request.messages):
            raise ModelRefused(
                f"{self.name} reads text, and the request holds images.",
                hint="give the role a model that sees, with models.*.base_url",
            )
        from jinja2 import TemplateError

        try:
            text = self._loaded.weights.render([_plain(message) for message in request.messages])
        except (TemplateError, TypeError, ValueError) as error:
            raise ModelRefused(
                f"the chat template of {self.name} takes no conversation like this ({error}).",
                wanted="roles in the order the template knows",
                hint="take a model whose template has a system turn and turns of user and assistant",
            ) from error
        return tuple(self._loaded.weights.encode(text))

    def _room(self, request: ChatRequest, prompt: int) -> int:
        """Tokens that the reply may have. Raises ContextOverflow where prompt and reply have no room together."""
        if request.max_tokens is not None and request.max_tokens < 1:
            raise ModelRefused(
                f"a reply of {request.max_tokens} tokens was asked for.", wanted="max_tokens of 1 or more"
            )
        reserve = request.max_tokens or self.max_tokens
        if not prompt:
            raise ModelRefused(f"the chat template of {self.name} makes an empty prompt of this conversation.")
        if prompt + reserve > self.context_window:
            raise ContextOverflow(
                f"the prompt has {prompt} tokens and the reply may have {reserve}: {prompt + reserve} together, too "
                f"many for the window of {self.name}.",
                wanted=f"at most {self.context_window} tokens (the model's own limit, or models.*.context_window)",
                hint="a shorter prompt, a smaller models.*.max_tokens, or a model with a larger window",
            )
        return reserve

    def _refuse_when_closed(self) -> None:
        if not self._release.alive:
            raise ModelUnavailable(f"{self.name} is closed.", hint="build the models anew")

    @property
    def folder(self) -> Path:
        """Where its weights were read from."""
        return self._loaded.weights.folder

    @property
    def digest(self) -> str:
        """Which weights these are (`Weights.digest`)."""
        return self._loaded.weights.digest()

    # ── adapters ──────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names of the adapters that are loaded."""
        return self._loaded.weights.adapters

    @property
    def adapter(self) -> str:
        """The adapter that answers requests which name none; empty: the base model."""
        return self._adapter

    async def load_adapter(self, name: str, folder: Path | str) -> None:
        """Load a LoRA adapter of peft under a name, between two steps of the batch; every model with the same weights
        may ask for it then. Raises ConfigError if it does not fit, and for a name in use; MissingExtra without peft."""
        self._refuse_when_closed()
        load = partial(self._loaded.weights.load_adapter, name, Path(folder))
        await asyncio.wrap_future(self._loaded.sampler.call(load))

    async def unload_adapter(self, name: str) -> None:
        """Take no more requests for an adapter, wait for those under way, then forget it. Raises ConfigError for a name
        that is not loaded, or that is this model's current one."""
        self._refuse_when_closed()
        if name == self._adapter:
            raise ConfigError(f"the adapter '{name}' is the current one.", hint="set_adapter to another, or to ''")
        self._known(name, ConfigError)
        self._loaded.leaving.add(name)
        try:
            await asyncio.wrap_future(self._loaded.sampler.call(partial(self._unload, name), after=name))
        finally:
            self._loaded.leaving.discard(name)

    def set_adapter(self, name: str) -> None:
        """Let requests that name no adapter be answered with this one from now on; empty: with the base model. Those
        under way go on as they began. Raises ConfigError for a name that is not loaded."""
        if name:
            self._known(name, ConfigError)
        self._adapter = name

    # ── whole weights ─────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def version(self) -> str:
        """The name of the whole weights that answer now; empty: those that the model was opened with."""
        return self._loaded.weights.version

    async def replace_weights(self, folder: Path | str, version: str) -> None:
        """Answer with the weights in a folder from now on. They are read while the model goes on answering; requests
        under way end with the old ones, those that come meanwhile wait for the new ones. Replies then name `version` as
        their adapter, and a request may ask for it by that name.

        Raises ConfigError for weights that do not fit, which leaves everything as it was; for a name in use; where
        adapters are loaded, which belong to the old weights; and where another model shares these weights, since it
        would change too.
        """
        self._refuse_when_closed()
        weights = self._loaded.weights
        if not version or version == weights.version or version in weights.adapters:
            raise ConfigError(f"the weights cannot be called '{version}'.", wanted="a name that was not used before")
        self._refuse_to_replace()
        fresh = await asyncio.to_thread(type(weights).load, str(folder), device=str(weights.device))
        weights.check_fits(fresh)

        def replace() -> None:
            self._refuse_to_replace()  # Reading took time.
            weights.adopt(fresh, version)

        await asyncio.wrap_future(self._loaded.sampler.change(replace))

    def _refuse_to_replace(self) -> None:
        if self.adapters:
            raise ConfigError(
                f"{self.name} has adapters loaded, which belong to the weights that it has.",
                hint="unload_adapter first",
            )
        if self._loaded.users > 1:
            raise ConfigError(
                f"{self._loaded.users} models share the weights of {self.name}, and all of them would change.",
                wanted="weights of its own for a model that learns",
                hint="LocalModel.open(folder)",
            )

    def _unload(self, name: str) -> None:
        self._loaded.weights.unload_adapter(name)
        self._loaded.sampler.forget(name)

    def _wanted_adapter(self, request: ChatRequest) -> str:
        """The adapter to answer with; empty: none, also where the request names the whole weights that are there."""
        if request.adapter and request.adapter == self._loaded.weights.version:
            return ""
        name = request.adapter or self._adapter
        if name:
            self._known(name, ModelRefused)
        return name

    def _known(self, name: str, error: type[ConfigError] | type[ModelRefused]) -> None:
        leaving = name in self._loaded.leaving
        if leaving or name not in self.adapters:
            raise error(
                f"{self.name} {'is unloading the' if leaving else 'has no'} adapter '{name}'.",
                wanted="" if leaving else self._loaded.weights.known_adapters(),
                hint="load_adapter(name, folder) first",
            )


def _watcher(stream: TextStream, send: Callable[[str], None] | None) -> Callable[[int], bool]:
    """What the sampling thread calls with each token: the text grows, is shown, and ends at a stop string."""

    def take(token: int) -> bool:
        piece = stream.take(token)
        if piece and send is not None:
            send(piece)
        return stream.stopped

    return take


def _never(token: int) -> bool:
    return False


def _plain(message: Message) -> dict[str, str]:
    # Halves of surrogate pairs, which no tokenizer takes, become "?".
    return {"role": message.role, "content": message.content.encode("utf-8", "replace").decode()}


def _check_sampling(
    error: type[ConfigError] | type[ModelError], temperature: float | None, top_p: float | None, hint: str
) -> None:
    if temperature is not None and not (math.isfinite(temperature) and temperature >= 0):
        raise error(f"the temperature {temperature} means nothing.", wanted="a number from 0 up", hint=hint)
    if top_p is not None and not 0 < top_p <= 1:
        raise error(f"the top_p {top_p} means nothing.", wanted="a number above 0, up to 1", hint=hint)
