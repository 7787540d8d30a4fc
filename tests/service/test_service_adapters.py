"""`/v1/adapters`: the versions of trained weights over the wire."""

from __future__ import annotations

import json
from pathlib import Path

import numpy
import pytest
from starlette.testclient import TestClient

from mia.learn.adapters import AdapterStore, State
from mia.types import Role

safetensors = pytest.importorskip("safetensors.numpy", reason="the extra `local` is not installed")


def write(folder: Path) -> None:
    """What a learner saves, as small as it can be."""
    (folder / "adapter_config.json").write_text(json.dumps({"r": 1}))
    safetensors.save_file({"a": numpy.zeros(1, numpy.float32)}, folder / "adapter_model.safetensors")


@pytest.fixture
def store(client: TestClient) -> AdapterStore:
    """Two versions that answered, and a candidate."""
    home = client.app.state.service.config.home  # type: ignore[attr-defined]
    store = AdapterStore(home / "adapters" / Role.PLANNER, "base", Role.PLANNER)
    parent = ""
    for number in range(3):
        version = store.create(parent, write, (), {"loss": 1.0 / (number + 1)})
        if number < 2:
            parent = store.promote(version.name).name
    return store


def test_where_nothing_was_learnt_there_is_nothing(client: TestClient) -> None:
    assert client.get("/v1/adapters").json() == {"versions": [], "learning": False, "trouble": ""}
    assert client.get("/v1/adapters/v1").status_code == 404
    assert client.post("/v1/adapters/rollback", json={}).status_code == 409
    assert client.get("/v1/adapters/lineage/no").status_code == 404


def test_versions_are_listed_shown_promoted_and_rolled_back(client: TestClient, store: AdapterStore) -> None:
    one, two, three = client.get("/v1/adapters").json()["versions"]
    assert [version["current"] for version in (one, two, three)] == [False, True, False]
    assert three["state"] == "candidate"
    assert client.get("/v1/adapters/current").json()["version"] == two
    assert client.get("/v1/adapters/v1").json()["rollouts"] == []
    assert client.get("/v1/adapters", params={"role": "executor"}).json()["versions"] == []

    promoted = client.post("/v1/adapters/v3/promote", json={"reason": "I looked"}).json()
    assert (promoted["state"], promoted["current"], promoted["reason"]) == ("promoted", True, "I looked")
    assert client.post("/v1/adapters/v1/promote").status_code == 409

    done = client.post("/v1/adapters/rollback", json={"reason": "worse"}).json()
    assert (done["was"], done["now"], done["rolled_back"]) == (three["name"], two["name"], [three["name"]])
    assert store.get("v3").state is State.ROLLED_BACK
    done = client.post("/v1/adapters/rollback", json={"to": "base", "quarantine": True}).json()
    assert done["now"] == ""
    assert store.current() is None
    assert client.post("/v1/adapters/rollback", json={"to": "v2"}).json()["now"] == two["name"]
    assert client.post("/v1/adapters/rollback", json={"to": "v9"}).status_code == 404
    lineage = client.get(f"/v1/adapters/lineage/{two['name']}").json()
    assert (lineage["kind"], lineage["parents"]) == ("version", [one["name"]])
