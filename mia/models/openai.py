"""Any OpenAI-compatible endpoint as a `ChatModel`, through the `openai` SDK.

The contract: a reply comes back whole or not at all. Whatever else an endpoint may send (an error, an HTML page, half a
stream, a flood) ends as a `ModelError` after the retries that make sense, and no key ever stands in it.

- Retried: no connection, timeouts, 408, 409, 425, 429, 5xx, empty bodies, bodies that are no JSON, torn streams.
- Not retried: every other 4xx (`ModelRefused`), a prompt that is too long (`ContextOverflow`), a reply that the
  endpoint filtered or that is larger than any reply (`ModelReplyError`).
- An endpoint that refuses an optional part of a request (`response_format`, `stream_options`, `stop`, the name
  `max_tokens`) is asked again without it, and that is remembered. Stop strings are applied here in any case.
- Tokens are the endpoint's own count; where it sends none they are estimated (`estimate_usage`).
- With streaming, a retry begins the text anew; `on_retry` is called in between.

The SDK's typed `create` spends about 2 ms a call on walking the request and building typed replies; its documented
plain `post` does neither, and reading the body here lets us bound it.
"""

from __future__ import annotations

import asyncio
import email.utils
import json
import random
import re
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, cast

import httpx2
import openai

from mia.errors import (
    ConfigError,
    ContextOverflow,
    ModelError,
    ModelRefused,
    ModelReplyError,
    ModelUnavailable,
    RealCallForbidden,
)
from mia.models import real_calls_forbidden
from mia.models.base import (
    ChatReply,
    ChatRequest,
    FinishReason,
    Price,
    estimate_prompt,
    estimate_usage,
    measured_usage,
)
from mia.types import Message, ToolCall, Usage, new_id

OPENAI_URL = "https://api.openai.com/v1"
MAX_REPLY_BYTES = 8 * 1024 * 1024
MAX_STREAM_BYTES = 4 * MAX_REPLY_BYTES
"""A stream wraps every token in some 250 bytes of JSON: room for 130,000 tokens."""
_MAX_ERROR_BYTES = 64 * 1024
_MAX_WAIT_SECONDS = 30.0
_POOL_SIZE = 16
_DRAIN_SECONDS = 0.2
_CONNECT_SECONDS = 15.0
"""A host that is there accepts a connection at once, however long its model then thinks."""

_RETRIED = frozenset((408, 409, 425, 429))
_OVERFLOW_STATUS = frozenset((400, 413, 422, 500))
_OVERFLOW = re.compile(
    r"context.{0,3}(length|window|size)|(prompt|input) (is |has )?too (long|many tokens)|exceeds? .{0,40}\bcontext\b",
    re.IGNORECASE,
)
_OPTIONAL = ("response_format", "stream_options", "stop")
"""Parts that a request can do without; the replies stay right, since callers validate and stops are applied here."""


class _TryAgain(Exception):
    """A try failed in a way that may pass. `error` is raised if it does not; `wait` is what the endpoint asked for."""

    def __init__(self, error: ModelError, wait: float | None = None) -> None:
        super().__init__(error.got)
        self.error = error
        self.wait = wait


class _Client(httpx2.AsyncClient):
    """An HTTP client that reads no more than the beginning of an error's body: the SDK reads those whole."""

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        response = await super().send(request, **options)
        if response.status_code >= 300 and not response.is_stream_consumed:
            response.stream = _Beginning(cast(httpx2.AsyncByteStream, response.stream))
        return response


class _Beginning(httpx2.AsyncByteStream):
    def __init__(self, stream: httpx2.AsyncByteStream) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        left = _MAX_ERROR_BYTES
        async for chunk in self._stream:
            yield chunk[:left]
            left -= len(chunk)
            if left <= 0:
                return

    async def aclose(self) -> None:
        await self._stream.aclose()


class Endpoint:
    """One address with one key: a shared HTTP client, and the limit on calls under way over all models there."""

    def __init__(self, base_url: str = "", api_key: str = "", *, key_hint: str = "", concurrency: int = 32) -> None:
        """`key_hint`: what to type when the key is refused. Raises ConfigError for an address that is none."""
        self.base_url = base_url.rstrip("/") or OPENAI_URL
        try:
            url = httpx2.URL(self.base_url)
        except httpx2.InvalidURL as error:
            raise ConfigError(
                f"the base URL of a model is none: {error}.", hint="--base-url http://HOST:PORT/v1"
            ) from None
        if url.scheme not in ("http", "https") or not url.host:
            raise ConfigError(
                f"the base URL of a model names no address: '{url.scheme}://{url.netloc.decode()}{url.path}'.",
                wanted="http://… or https://…",
                hint="--base-url http://HOST:PORT/v1",
            )
        self.host = url.netloc.decode()
        self.key_hint = key_hint
        self.concurrency = concurrency
        self._slots = asyncio.Semaphore(concurrency)
        self._key = api_key
        self._pools: list[_Pool] = []
        self._tls: ssl.SSLContext | None = None
        # Given with each request, so that no key, organisation or header of the environment goes to a stranger.
        self._headers: dict[str, Any] = {
            "Authorization": f"Bearer {api_key}" if api_key else openai.Omit(),
            "Accept-Encoding": "identity",
        }
        if self.base_url != OPENAI_URL:
            self._headers |= {"OpenAI-Organization": openai.Omit(), "OpenAI-Project": openai.Omit()}

    def __repr__(self) -> str:
        return f"Endpoint({self.host!r})"

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[openai.AsyncOpenAI]:
        """Wait for leave to make one call, and a client to make it with."""
        async with self._slots:
            pool = next((pool for pool in self._pools if pool.under_way < _POOL_SIZE), None) or self._new_pool()
            pool.under_way += 1
            try:
                yield pool.client
            finally:
                pool.under_way -= 1

    async def post(self, client: openai.AsyncOpenAI, body: dict[str, Any], timeout: httpx2.Timeout) -> httpx2.Response:
        """Send a chat request; the body of the answer is still unread. Raises the SDK's errors."""
        response = await client.post(
            "/chat/completions",
            cast_to=httpx2.Response,
            body=body,
            options={"headers": self._headers, "timeout": timeout},
            stream=True,
            stream_cls=openai.AsyncStream[Any],
        )
        # Asked for a plain Response, the SDK gives it whatever `stream_cls` says; `stream` leaves the body unread.
        return cast(httpx2.Response, response)

    def scrub(self, text: str) -> str:
        """The text without our key."""
        return text.replace(self._key, "***") if self._key else text

    async def close(self) -> None:
        """Let go of connections; a later call opens new ones."""
        pools, self._pools = self._pools, []
        for pool in pools:
            await pool.client.close()

    def _new_pool(self) -> _Pool:
        # Shared: reading the certificates takes longer than the rest of a client.
        self._tls = self._tls or httpx2.create_ssl_context()
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=_POOL_SIZE)
        client = openai.AsyncOpenAI(
            base_url=self.base_url,
            api_key=self._key or "none",
            max_retries=0,
            http_client=_Client(limits=limits, verify=self._tls),
        )
        self._pools.append(_Pool(client))
        return self._pools[-1]


@dataclass
class _Pool:
    """One client with its connections. A pool walks over all of its connections at every request, so many calls at
    once are spread over several small pools; the first ones are filled first, and few calls need only one."""

    client: openai.AsyncOpenAI
    under_way: int = 0


class OpenAIModel:
    """One model at one endpoint. See the module's docstring for what a call may end in."""

    def __init__(
        self,
        endpoint: Endpoint,
        model: str,
        *,
        context_window: int = 128_000,
        max_tokens: int = 2048,
        temperature: float | None = None,
        top_p: float | None = None,
        price: Price | None = None,
        timeout_seconds: float = 120.0,
        max_attempts: int = 4,
        max_retry_seconds: float = 300.0,
        backoff_seconds: float = 0.5,
        allow_when_forbidden: bool = False,
    ) -> None:
        """`backoff_seconds`: the longest first wait; it doubles with each attempt. `allow_when_forbidden`: for tests
        against a server of their own."""
        self.endpoint = endpoint
        self.model = model
        self.name = f"{model} @ {endpoint.host}"
        self.context_window = context_window
        self.max_tokens = max_tokens
        self.price = price
        self._sampling = {"temperature": temperature, "top_p": top_p}
        self._timeout_seconds = timeout_seconds
        self._timeout = httpx2.Timeout(timeout_seconds, connect=min(timeout_seconds, _CONNECT_SECONDS), pool=None)
        self._max_attempts = max_attempts
        self._max_retry_seconds = max_retry_seconds
        self._backoff_seconds = backoff_seconds
        self._allowed = allow_when_forbidden
        self._refused_parts: set[str] = set()

    def __repr__(self) -> str:
        return f"OpenAIModel({self.name!r})"

    async def complete(self, request: ChatRequest) -> ChatReply:
        """Raises ModelError; CancelledError passes through."""
        if real_calls_forbidden() and not self._allowed:
            raise RealCallForbidden(
                f"a call to {self.name} was stopped: real calls are switched off in this process.",
                hint="unset MIA_FORBID_REAL_CALLS, or use a scripted or replayed model",
            )
        prompt_tokens = estimate_prompt(request)
        if prompt_tokens >= self.context_window:
            raise self._overflow(f"the prompt has about {prompt_tokens} tokens")
        body = self._body(request, prompt_tokens)
        begun = time.monotonic()
        reply = await self._retry(request, body)
        return replace(reply, usage=reply.usage.model_copy(update={"seconds": time.monotonic() - begun}))

    async def close(self) -> None:
        await self.endpoint.close()

    async def _retry(self, request: ChatRequest, body: dict[str, Any]) -> ChatReply:
        """Try until a reply is there. A loop of our own and not a library's: the endpoint may name the wait
        (Retry-After), the slot is given back while waiting, and time spent in the queue for a slot does not count."""
        left = self._max_retry_seconds
        attempt = 0
        while True:
            attempt += 1
            async with self.endpoint.slot() as client:
                begun = time.monotonic()
                try:
                    return await self._try(client, request, body, min(5 * self._timeout_seconds, left))
                except _TryAgain as failure:
                    error, asked = failure.error, failure.wait
            left -= time.monotonic() - begun
            if asked is None:
                wait = random.random() * min(_MAX_WAIT_SECONDS, self._backoff_seconds * 2 ** (attempt - 1))
            else:
                wait = asked + random.random() * self._backoff_seconds
            if attempt >= self._max_attempts or wait >= left:
                tries = "1 attempt" if attempt == 1 else f"{attempt} attempts"
                why = tries if asked is None else f"{tries}; it asks to wait {asked:.0f} s"
                raise type(error)(f"{error.got.rstrip('.')} ({why}).", hint=error.hint)
            left -= wait
            if request.on_retry is not None:
                request.on_retry(attempt, wait, error.got)
            await asyncio.sleep(wait)

    async def _try(
        self, client: openai.AsyncOpenAI, request: ChatRequest, body: dict[str, Any], seconds: float
    ) -> ChatReply:
        """One attempt, with everything that the SDK and the HTTP client raise translated."""
        try:
            async with asyncio.timeout(seconds):
                return await self._ask(client, request, body)
        except TimeoutError:
            raise self._unavailable(f"gave no complete reply within {seconds:.3g} s") from None
        except openai.APIStatusError as error:
            raise self._status_error(error.status_code, self._error_text(error.response), error.response) from None
        except (openai.APITimeoutError, httpx2.TimeoutException):
            raise self._unavailable(f"sent nothing for {self._timeout_seconds:.3g} s") from None
        except (openai.APIConnectionError, httpx2.TransportError) as error:
            cause = error.__cause__ if isinstance(error, openai.APIConnectionError) else error
            reason = self.endpoint.scrub(str(cause) or type(cause).__name__)
            raise self._unavailable(f"cannot be reached, or broke off ({reason[:200]})") from None
        except httpx2.DecodingError:
            raise self._unusable("a body that cannot be decompressed") from None

    async def _ask(self, client: openai.AsyncOpenAI, request: ChatRequest, body: dict[str, Any]) -> ChatReply:
        """Post, leaving out optional parts that the endpoint refuses, and read the reply."""
        body = dict(body)
        refused: set[str] = set()
        while True:
            try:
                response = await self.endpoint.post(client, body, self._timeout)
                break
            except openai.APIStatusError as error:
                part = self._optional_part(body, error)
                if part is None:
                    raise
                refused.add(part)
                _leave_out(body, part)
        self._refused_parts |= refused
        try:
            return await self._read(request, response)
        finally:
            await response.aclose()

    # ── writing a request ─────────────────────────────────────────────────────────────────────────────────────────

    def _body(self, request: ChatRequest, prompt_tokens: int) -> dict[str, Any]:
        wanted = request.max_tokens or self.max_tokens
        body: dict[str, Any] = {
            # An adapter is served under a name of its own, as vLLM does it.
            "model": request.adapter or self.model,
            "messages": [_wire_message(message) for message in request.messages],
            "max_tokens": min(wanted, self.context_window - prompt_tokens),
        }
        for name, own in self._sampling.items():
            value = getattr(request, name)
            if value is not None or own is not None:
                body[name] = own if value is None else value
        if request.seed is not None:
            body["seed"] = request.seed
        if request.stop:
            body["stop"] = list(request.stop)
        if request.tools:
            body["tools"] = [
                {
                    "type": "function",
                    "function": {"name": t.name, "description": t.description, "parameters": t.parameters},
                }
                for t in request.tools
            ]
        if request.json_schema is not None:
            schema = {"name": "reply", "schema": request.json_schema, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        if request.on_text is not None:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        for part in self._refused_parts:
            _leave_out(body, part)
        return body

    def _optional_part(self, body: dict[str, Any], error: openai.APIStatusError) -> str | None:
        """The part of this request to leave out after a refusal; None if the refusal is about something else."""
        if error.status_code not in (400, 422):
            return None
        text = self._error_text(error.response)
        if _OVERFLOW.search(text):
            return None
        if "max_tokens" in body and "max_completion_tokens" in text:
            return "max_tokens"
        named = [part for part in _OPTIONAL if part in body and part in text]
        # Some endpoints refuse a part without naming it. Of the three, only a stop list is understood by all.
        unnamed = [part for part in _OPTIONAL if part in body and part != "stop"]
        return next(iter(named + unnamed), None)

    # ── reading a reply ───────────────────────────────────────────────────────────────────────────────────────────

    async def _read(self, request: ChatRequest, response: httpx2.Response) -> ChatReply:
        if request.on_text is not None and "event-stream" in response.headers.get("content-type", ""):
            content = await self._read_stream(response, request.on_text)
            return self._reply(request, content)
        raw = b"".join([chunk async for chunk in self._chunks(response, MAX_REPLY_BYTES)])
        content = self._decode(raw)
        reply = self._reply(request, content)
        if request.on_text is not None and reply.text:
            request.on_text(reply.text)
        return reply

    async def _chunks(self, response: httpx2.Response, limit: int) -> AsyncGenerator[bytes, None]:
        size = 0
        async for chunk in response.aiter_bytes():
            size += len(chunk)
            if size > limit:
                raise ModelReplyError(
                    f"{self.name} sent more than {limit >> 20} MB, which is no reply.",
                    hint="look at what answers at this base URL",
                )
            yield chunk

    def _decode(self, raw: bytes) -> dict[str, Any]:
        """The JSON object in a body, or in one event of a stream."""
        text = raw.strip()
        if not text:
            raise self._unusable("an empty body")
        if text.startswith(b"<"):
            raise self._unusable("an HTML page instead of a reply")
        try:
            content = json.loads(text)
        except (ValueError, RecursionError):
            raise self._unusable("a body that is torn or no JSON") from None
        if not isinstance(content, dict):
            raise self._unusable("JSON that is no object")
        if content.get("error"):
            raise self._error_in_body(content["error"])
        return content

    async def _read_stream(self, response: httpx2.Response, on_text: Callable[[str], None]) -> dict[str, Any]:
        assembled = _Assembled()
        async with aclosing(self._chunks(response, MAX_STREAM_BYTES)) as chunks, aclosing(_lines(chunks)) as lines:
            async for line in lines:
                event = line[5:].strip() if line.startswith(b"data:") else b""
                if event == b"[DONE]":
                    assembled.done = True
                    break
                delta = assembled.add(self._decode(event)) if event else ""
                if delta:
                    on_text(_whole(delta))
            # The connection can be used again only if the stream is read to its end, which follows at once.
            with suppress(TimeoutError):
                async with asyncio.timeout(_DRAIN_SECONDS):
                    async for _ in chunks:
                        pass
        if not assembled.done:
            raise self._unusable("a stream that broke off")
        return assembled.content()

    def _reply(self, request: ChatRequest, content: dict[str, Any]) -> ChatReply:
        choices = content.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        message = choice.get("message") if isinstance(choice, dict) else None
        if not isinstance(choice, dict) or not isinstance(message, dict):
            raise self._unusable("JSON without a choice")
        finish = choice.get("finish_reason")
        if finish == "content_filter":
            raise ModelReplyError(
                f"{self.name} withheld its reply (content filter).", hint="put the question otherwise"
            )
        if finish == "error":
            raise self._unusable("a reply that ended in an error")
        text = _whole(_plain_text(message.get("content")) or _plain_text(message.get("refusal")))
        text = _cut_at_stop(text, request.stop)
        thinking = _whole(_plain_text(message.get("reasoning_content")) or _plain_text(message.get("reasoning")))
        calls, malformed = _tool_calls(message.get("tool_calls"))
        if not text.strip() and not calls and not malformed and finish != "length":
            raise _TryAgain(ModelReplyError(f"{self.name} sent a reply without text.", hint="mia doctor"))
        reason: FinishReason = "length" if finish == "length" else "tool_calls" if calls or malformed else "stop"
        return ChatReply(
            text=text,
            tool_calls=calls,
            finish_reason=reason,
            usage=self._usage(request, content.get("usage"), text + thinking + str(message.get("tool_calls") or "")),
            model=str(content.get("model") or self.model),
            malformed_call=malformed,
            thinking=thinking,
        )

    def _usage(self, request: ChatRequest, counted: Any, written: str) -> Usage:
        if isinstance(counted, dict):
            prompt, completion = counted.get("prompt_tokens"), counted.get("completion_tokens")
            if isinstance(prompt, int) and isinstance(completion, int) and prompt > 0 and completion >= 0:
                return measured_usage(prompt, completion, self.price)
        return estimate_usage(request, written, self.price)

    # ── saying what went wrong ────────────────────────────────────────────────────────────────────────────────────

    def _unavailable(self, what: str) -> _TryAgain:
        return _TryAgain(ModelUnavailable(f"{self.name} {what}.", hint="mia doctor"))

    def _unusable(self, what: str) -> _TryAgain:
        """No reply of the model's at all, so nothing that could be held against it."""
        return _TryAgain(ModelUnavailable(f"{self.name} sent {what}.", hint="mia doctor"))

    def _overflow(self, what: str) -> ContextOverflow:
        return ContextOverflow(
            f"{what}, too many for the window of {self.name}.",
            wanted=f"less than {self.context_window} tokens (models.*.context_window)",
            hint="set models.*.context_window to the window the model really has",
        )

    def _error_in_body(self, error: Any) -> ModelError | _TryAgain:
        """An error that came with status 200: some endpoints put the real status into its code."""
        code = error.get("code") if isinstance(error, dict) else None
        status = code if isinstance(code, int) and 400 <= code < 600 else 500
        return self._status_error(status, self._message_of({"error": error}), None)

    def _status_error(self, status: int, text: str, response: httpx2.Response | None) -> ModelError | _TryAgain:
        said = f"{self.name} answered {status}" + (f": {text.rstrip('.')}." if text else ".")
        if status in _OVERFLOW_STATUS and _OVERFLOW.search(text):
            return self._overflow(said.rstrip("."))
        if status in _RETRIED or status >= 500:
            wait = _retry_after(response.headers.get("retry-after", "")) if response is not None else None
            return _TryAgain(ModelUnavailable(said, hint="try again later, or lower models.*.concurrency"), wait)
        if 300 <= status < 400:
            return ModelRefused(said, hint="set --base-url to the address it redirects to")
        hints = {
            401: self.endpoint.key_hint or "give the endpoint the right key (models.*.api_key_env)",
            403: "check what this key may use, and the name of the model (--model)",
            404: f"check --model ('{self.model}') and that --base-url ends as the endpoint wants it (often /v1)",
        }
        return ModelRefused(said, hint=hints.get(status, "check the model's settings (models.*)"))

    def _error_text(self, response: httpx2.Response) -> str:
        try:
            content = json.loads(response.text)
        except (ValueError, RecursionError):
            content = response.text
        return self._message_of(content)

    def _message_of(self, content: Any) -> str:
        """What an endpoint says of an error: one line without markup and, before anything is cut, without our key."""
        while isinstance(content, dict):
            content = content.get("error") or content.get("message") or content.get("detail") or json.dumps(content)
        text = re.sub(
            r"<(script|style)\b.*?</\1>|<[^>]{0,2000}>", " ", self.endpoint.scrub(str(content)), flags=re.S | re.I
        )
        text = " ".join(text.split())
        return text if len(text) <= 300 else text[:300] + " …"


class _Assembled:
    """A streamed reply put together again, in the shape of a whole one."""

    def __init__(self) -> None:
        self.done = False
        self._texts: dict[str, list[str]] = {"content": [], "reasoning": []}
        self._calls: dict[int, dict[str, Any]] = {}
        self._finish: str | None = None
        self._rest: dict[str, Any] = {}

    def add(self, chunk: dict[str, Any]) -> str:
        """Take in one event; returns the text in it."""
        for name in ("model", "usage"):
            if chunk.get(name):
                self._rest[name] = chunk[name]
        choices = chunk.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(choice, dict):
            return ""
        if choice.get("finish_reason"):
            # Some endpoints end a stream without [DONE].
            self._finish, self.done = choice["finish_reason"], True
        delta = choice.get("delta")
        if not isinstance(delta, dict):
            return ""
        text = _plain_text(delta.get("content"))
        self._texts["content"].append(text)
        self._texts["reasoning"].append(_plain_text(delta.get("reasoning_content") or delta.get("reasoning")))
        for call in delta.get("tool_calls") or ():
            self._add_call(call)
        return text

    def _add_call(self, piece: Any) -> None:
        if not isinstance(piece, dict):
            return
        index = piece.get("index")
        function = piece.get("function")
        call = self._calls.setdefault(index if isinstance(index, int) else len(self._calls), {"function": {}})
        if piece.get("id"):
            call["id"] = piece["id"]
        for name in ("name", "arguments"):
            value = function.get(name) if isinstance(function, dict) else None
            if isinstance(value, str):
                call["function"][name] = call["function"].get(name, "") + value

    def content(self) -> dict[str, Any]:
        message: dict[str, Any] = {name: "".join(texts) for name, texts in self._texts.items()}
        message["tool_calls"] = [self._calls[index] for index in sorted(self._calls)]
        return {**self._rest, "choices": [{"message": message, "finish_reason": self._finish}]}


async def _lines(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """Lines of a stream; what stands after the last line break is a line too."""
    held: list[bytes] = []
    async for chunk in chunks:
        first, *others = chunk.split(b"\n")
        held.append(first)
        if others:
            yield b"".join(held)
            for line in others[:-1]:
                yield line
            held = [others[-1]]
    yield b"".join(held)


def _wire_message(message: Message) -> dict[str, Any]:
    text = _whole(message.content)
    wire: dict[str, Any] = {"role": message.role, "content": text}
    if message.images:
        pictures = [{"type": "image_url", "image_url": {"url": image.data_url()}} for image in message.images]
        wire["content"] = [{"type": "text", "text": text}, *pictures]
    if message.tool_calls:
        wire["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)},
            }
            for call in message.tool_calls
        ]
    if message.role == "tool":
        wire["tool_call_id"] = message.tool_call_id
    return wire


def _leave_out(body: dict[str, Any], part: str) -> None:
    value = body.pop(part, None)
    if part == "max_tokens" and value is not None:
        body["max_completion_tokens"] = value


def _plain_text(content: Any) -> str:
    """The text of a content that is a string, or a list of parts."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str))
    return ""


def _whole(text: str) -> str:
    """The text with halves of surrogate pairs joined, or replaced where one is alone: UTF-8 cannot carry a half."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _cut_at_stop(text: str, stops: tuple[str, ...]) -> str:
    for stop in stops:
        text = text.partition(stop)[0]
    return text


def _tool_calls(wire: Any) -> tuple[tuple[ToolCall, ...], str]:
    """The calls of a reply, and the first one that is no call, as it came."""
    calls: list[ToolCall] = []
    malformed = ""
    for item in wire if isinstance(wire, list) else ():
        function = item.get("function") if isinstance(item, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        arguments = function.get("arguments") if isinstance(function, dict) else None
        if isinstance(arguments, str):
            try:
                # Twice, because a half of a pair may stand in the JSON as an escape.
                arguments = json.loads(_whole(json.dumps(json.loads(arguments), ensure_ascii=False)))
            except (ValueError, RecursionError):
                arguments = None
        if isinstance(name, str) and name and isinstance(arguments, dict):
            calls.append(ToolCall(name=name, arguments=arguments, id=str(item.get("id") or new_id("call"))))
        else:
            malformed = malformed or json.dumps(function if function is not None else item, ensure_ascii=False)
    return tuple(calls), malformed


def _retry_after(value: str) -> float | None:
    """Seconds to wait, from a Retry-After header: a number or an HTTP date."""
    if re.fullmatch(r"\d{1,9}(\.\d+)?", value):
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None
