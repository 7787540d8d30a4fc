"""`mia doctor`, through the command: what it finds, what it misses, and what it says to type."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fake_endpoint import FakeEndpoint, fails, sends

from mia.search.indexing import update_index

Findings = list[dict[str, object]]


def models(*names: str) -> str:
    return json.dumps({"object": "list", "data": [{"id": name, "object": "model"} for name in names]})


def doctor(folder: Path, *arguments: str, status: int = 0, toml: str = "", **environment: str) -> str:
    """What the command prints, in a folder of its own."""
    (folder / "mia.toml").write_text(toml)
    ours = ("MIA_", "OPENAI_", "SERPER_")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    done = subprocess.run(
        [sys.executable, "-m", "mia.cli.main", "--home", str(folder / "home"), "doctor", *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**clean, "PYTHONPATH": str(Path(__file__).parents[2]), **environment},
        timeout=60,
        check=False,
    )
    assert done.returncode == status, done.stderr
    return done.stdout


def found(topic: str, page: str) -> Findings:
    return [finding for finding in json.loads(page) if finding["topic"] == topic]


def only(topic: str, page: str) -> dict[str, object]:
    (finding,) = found(topic, page)
    return finding


def test_nothing_is_configured(tmp_path: Path) -> None:
    page = doctor(tmp_path, "--json")
    model = only("model", page)
    assert not model["ok"]
    assert model["says"].startswith("no endpoint is configured; until one is, the embedded model")
    index = only("index", page)
    assert (index["ok"], index["hint"]) == (False, "mia index ./docs")
    assert only("store", page)["ok"]
    assert not (tmp_path / "home").exists()


def test_people_are_told_line_by_line(tmp_path: Path) -> None:
    lines = doctor(tmp_path).splitlines()
    assert any(line.startswith("--  model        no endpoint is configured; until one is") for line in lines)
    assert "try: mia index ./docs" in [line.strip() for line in lines]


def test_a_broken_store_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "memory.db").write_text("no database" * 100)
    page = doctor(tmp_path, "--json", status=1, MIA_MEMORY__PATH="memory.db")
    assert not only("store", page)["ok"]


# ── the index and the engine ──


@pytest.mark.parametrize("there", ["nothing", "an empty folder", "an index begun"])
def test_an_index_that_is_named_and_missing_is_no_index(tmp_path: Path, there: str) -> None:
    if there != "nothing":
        (tmp_path / "gone").mkdir()
    if there == "an index begun":
        (tmp_path / "gone" / "mia-index.json").write_text('{"format": "mia-index", "version": 1}')
    finding = only("index", doctor(tmp_path, "--json", MIA_SEARCH__INDEX="gone"))
    assert not finding["ok"]
    assert "'gone'" in str(finding["says"])
    assert "mia index" in str(finding["hint"])


def test_an_index_is_opened_and_counted(tmp_path: Path) -> None:
    (tmp_path / "moons.txt").write_text("Titan is a moon of Saturn.")
    update_index(tmp_path / "mine", [tmp_path / "moons.txt"])
    assert only("index", doctor(tmp_path, "--json", MIA_SEARCH__INDEX="mine"))["says"] == "'mine': 1 passage"
    update_index(tmp_path / "home/indexes/one", [tmp_path / "moons.txt"])
    assert only("index", doctor(tmp_path, "--json"))["ok"]


def test_documents_that_are_not_there_are_named(tmp_path: Path) -> None:
    toml = '[search]\ncorpus = ["docs"]\n'
    finding = only("index", doctor(tmp_path, "--json", toml=toml))
    assert (finding["ok"], finding["says"]) == (False, "there is nothing at 'docs'")
    (tmp_path / "docs").mkdir()
    assert only("index", doctor(tmp_path, "--json", toml=toml))["ok"]


def test_serper_needs_its_key_and_no_index(tmp_path: Path) -> None:
    page = doctor(tmp_path, "--json", MIA_SEARCH__ENGINE="serper")
    finding = only("search", page)
    assert (finding["ok"], finding["hint"]) == (False, "export SERPER_API_KEY=…")
    assert found("index", page) == []
    page = doctor(tmp_path, "--json", MIA_SEARCH__ENGINE="serper", SERPER_API_KEY="key-of-mine")
    assert only("search", page)["ok"]
    assert "key-of-mine" not in page


def test_a_server_needs_its_address(tmp_path: Path) -> None:
    assert not only("search", doctor(tmp_path, "--json", MIA_SEARCH__ENGINE="searxng"))["ok"]
    page = doctor(tmp_path, "--json", MIA_SEARCH__ENGINE="searxng", MIA_SEARCH__URL="http://127.0.0.1:1")
    assert only("search", page)["ok"]


# ── models ──


async def test_one_model_for_all_roles_is_one_finding(tmp_path: Path) -> None:
    async with FakeEndpoint(sends(models("small", "large"))) as endpoint:
        toml = f'[models.default]\nbase_url = "{endpoint.base_url}"\nmodel = "small"\n'
        page = await asyncio.to_thread(doctor, tmp_path, "--json", toml=toml)
        finding = only("model", page)
        assert (finding["ok"], finding["says"]) == (True, f"{endpoint.base_url} answers and serves 'small'")
        page = await asyncio.to_thread(doctor, tmp_path, "--json", toml=toml, MIA_MODELS__DEFAULT__MODEL="gone")
        finding = only("model", page)
        assert (finding["ok"], finding["hint"]) == (False, "--model small")
        assert {request.path for request in endpoint.requests} == {"/v1/models"}


async def test_a_role_with_a_section_of_its_own_is_looked_at(tmp_path: Path) -> None:
    refused = fails(401)
    async with FakeEndpoint(sends(models("small"))) as endpoint, FakeEndpoint(refused) as other:
        toml = (
            f'[models.default]\nbase_url = "{endpoint.base_url}"\nmodel = "small"\n'
            '[models.planner]\nmodel = "large"\n'
            f'[models.judge]\nbase_url = "{other.base_url}"\n'
            '[models.cold_start]\nprovider = "replay"\npath = "gone.jsonl"\n'
            "[models.manager]\ntemperature = 0.0\n"
        )
        findings = found("model", await asyncio.to_thread(doctor, tmp_path, "--json", toml=toml))
    told = {str(finding["says"]).partition(":")[0]: finding for finding in findings}
    assert set(told) == {"planner", "executor, manager, reader", "judge", "cold_start"}
    assert told["executor, manager, reader"]["ok"]
    assert "does not list 'large'" in str(told["planner"]["says"])
    assert told["planner"]["hint"] == 'models.planner.model = "small"'
    assert "it answers 401" in str(told["judge"]["says"])
    assert told["judge"]["hint"] == "check models.judge.base_url and the key"
    assert told["cold_start"]["hint"] == "set models.cold_start.path"


async def test_an_endpoint_that_is_none_is_said_to_be_none(tmp_path: Path) -> None:
    async with FakeEndpoint(sends("<html>hello</html>", content_type="text/html")) as endpoint:
        page = await asyncio.to_thread(doctor, tmp_path, "--json", MIA_MODELS__DEFAULT__BASE_URL=endpoint.base_url)
    assert "not as an OpenAI-compatible endpoint" in str(only("model", page)["says"])


@pytest.mark.parametrize(
    ("path", "ok", "says"),
    [
        ("", True, "the embedded model, in this process"),
        ("whole", True, "the folder 'whole', in this process"),
        ("torn", False, "cannot read '"),
        (".", False, "'.' holds no model: there is no config.json"),
        ("some/name", True, "'some/name' of the hub or its cache here"),
        ("./gone", False, "there is no folder 'gone'"),
    ],
)
def test_a_model_in_this_process_is_looked_at_and_not_loaded(tmp_path: Path, path: str, ok: bool, says: str) -> None:
    for name in ("whole", "torn"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        # A header of two bytes, and no tensor.
        (tmp_path / name / "model.safetensors").write_bytes(b"\x02" + bytes(7) + b"{}")
    (tmp_path / "torn" / "model.safetensors").write_bytes(b"\x02")
    toml = f'[models.default]\nprovider = "local"\npath = "{path}"\n[search]\nengine = "world"\nworld = 7\n'
    page = doctor(tmp_path, "--json", toml=toml)
    finding = only("model", page)
    if importlib.util.find_spec("torch") is None:
        assert (finding["ok"], "[local]" in str(finding["hint"])) == (False, True)
    else:
        assert (finding["ok"], str(finding["says"])[: len(says)]) == (ok, says)
        assert ok or finding["hint"]
    assert (only("search", page)["ok"], only("search", page)["says"]) == (True, "the offline world 7")
