"""The model servers of this machine, and what to type to have one of them answer.

Only loopback addresses are asked, those where the servers listen unless told otherwise, and only for their list of
models.
"""

from __future__ import annotations

import asyncio
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mia.config import Config

LOCAL_ENDPOINTS = {
    "Ollama": "http://localhost:11434/v1",
    "vLLM": "http://localhost:8000/v1",
    "llama.cpp": "http://localhost:8080/v1",
    "LM Studio": "http://localhost:1234/v1",
    "SGLang": "http://localhost:30000/v1",
}
"""Where these servers listen unless told otherwise."""

PROBE_SECONDS = 2.0
"""For an endpoint's list of models, all of it."""
GLANCE_SECONDS = 0.7
"""The same where an answer or passages are what is waited for."""
_NO_CHAT = ("embed", "rerank", "minilm", "bge-", "whisper")
"""In the name of a model that does not chat; servers list these beside the others."""


@dataclass(frozen=True)
class LocalEndpoint:
    """A server of this machine that answers."""

    name: str
    url: str
    models: tuple[str, ...]

    @property
    def model(self) -> str:
        """The first that is made to chat, by its name; empty where it serves none."""
        return next((model for model in self.models if not any(mark in model.lower() for mark in _NO_CHAT)), "")


@dataclass(frozen=True)
class Advice:
    """How to have a question answered by a model."""

    says: str
    command: str
    """For a shell; NAME and URL stand for what only the user knows."""


async def local_endpoints(seconds: float = PROBE_SECONDS) -> list[LocalEndpoint]:
    """Those of `LOCAL_ENDPOINTS` that answer within `seconds`, in their order."""
    asked = await asyncio.gather(*(models_at(url, seconds=seconds) for url in LOCAL_ENDPOINTS.values()))
    return [
        LocalEndpoint(name, url, tuple(models))
        for (name, url), models in zip(LOCAL_ENDPOINTS.items(), asked, strict=True)
        if isinstance(models, list)
    ]


async def advise(config: Config, typed: Sequence[str], *, documents: bool = False) -> Advice:
    """The user's own command with what it lacks to be answered by a model: the first that this machine serves, else
    the general form.

    `typed`: the words after the program's name, as the shell gave them; `documents`: they lack documents too. An
    endpoint that is configured stays, and then only the name of a model is missing.
    """
    lacking = "--corpus ./docs " if documents else ""
    served = [endpoint for endpoint in await local_endpoints(GLANCE_SECONDS) if endpoint.model]
    configured = config.models.default.base_url
    if configured:
        endpoint = next((one for one in served if one.url.rstrip("/") == configured.rstrip("/")), None)
        name = shlex.quote(endpoint.model) if endpoint else "NAME"
        return Advice(
            f"{configured} is configured, and no model of it is named", _completed(typed, f"{lacking}--model {name}")
        )
    if served:
        first = served[0]
        return Advice(
            f"{first.name} on this machine serves '{first.model}'",
            _completed(typed, f"{lacking}--base-url {first.url} --model {shlex.quote(first.model)}"),
        )
    for variable, whose in (("OPENAI_BASE_URL", "the endpoint of"), ("OPENAI_API_KEY", "OpenAI with")):
        if os.environ.get(variable):
            return Advice(f"{whose} {variable} can be asked", _completed(typed, f"{lacking}--model NAME"))
    return Advice(
        "any OpenAI-compatible endpoint can be asked", _completed(typed, f"{lacking}--base-url URL --model NAME")
    )


def _completed(typed: Sequence[str], options: str) -> str:
    """The command with more options: at its end, or before the `--` behind which nothing is one."""
    end = typed.index("--") if "--" in typed else len(typed)
    return " ".join(part for part in (shlex.join(("mia", *typed[:end])), options, shlex.join(typed[end:])) if part)


async def models_at(url: str, key: str = "", *, seconds: float = PROBE_SECONDS) -> list[str] | str:
    """The models an endpoint lists, or in words why it gives none."""
    import httpx2

    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        # Of the whole, for the client's own limit is for each byte.
        async with asyncio.timeout(seconds), httpx2.AsyncClient(timeout=seconds, trust_env=False) as client:
            reply = await client.get(f"{url.rstrip('/')}/models", headers=headers)
        if reply.status_code != 200:
            return f"it answers {reply.status_code}" + (
                " (the key is missing or wrong)" if reply.status_code == 401 else ""
            )
        page: Any = reply.json()
        return [str(entry["id"]) for entry in page["data"]]
    except TimeoutError:
        return f"it gave no answer within {seconds:g} s"
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        return f"it cannot be reached ({type(error).__name__})"
    except (ValueError, KeyError, TypeError):
        return "it answers, but not as an OpenAI-compatible endpoint"
