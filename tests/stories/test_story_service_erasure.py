"""What is erased while an answer is under way is not brought back by it: neither where a memory that it was shown goes,
nor where all of its scope does, whoever erases it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from service.test_service_erasing import holding
from serving import RIGHT, Endpoint, Server, Serving, hold, variables_of

from mia.store import open_store
from mia.types import MemoryState

pytest.importorskip("fastapi", reason="the extra `service` is not installed")

QUESTION = "Who found the moon of Saturn?"
PARROT = "zanzibarparrot"
MOMENTS = {
    "while it is answered": lambda text: "yes (a supplementary plan" in text,
    "while it is learnt from": lambda text: "workflow" in text and "Write the plan" not in text,
}


class Doing:
    """A request on a thread of its own."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._work = work
        self.told: Any = None
        self._thread = threading.Thread(target=self._do)
        self._thread.start()

    def _do(self) -> None:
        self.told = self._work()

    def wait(self, seconds: float = 60.0) -> bool:
        """Whether it is done."""
        self._thread.join(seconds)
        return not self._thread.is_alive()


def know(server: Server) -> str:
    """Remember what nobody is to read any more; the id of the memory."""
    told = {"question": f"{QUESTION} ({PARROT})", "workflow": f"1. ask the {PARROT} (page → a name)"}
    return str(server.post("/v1/memories", told)["id"])


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_memory_that_an_answer_was_shown_is_gone_with_it(
    serve: Serving, tmp_path: Path, endpoint: Endpoint, moment: str
) -> None:
    server = serve(tmp_path, endpoint)
    memory = know(server)
    endpoint.behave, met, go_on = hold(MOMENTS[moment])
    asking = Doing(lambda: server.ask(QUESTION))
    assert met.wait(60)
    erasing = Doing(lambda: server.client.delete(f"/v1/memories/{memory}"))
    # It waits for what is learnt from at this moment, and for no answer.
    assert erasing.wait(60 if moment == "while it is answered" else 0.5) is (moment == "while it is answered")
    go_on.set()
    assert asking.wait()
    assert erasing.wait()
    assert erasing.told.status_code == 200
    assert asking.told["answer"] == RIGHT
    server.absorb_all()
    # That it was shown is still told, and no word of it.
    (shown,) = server.get(f"/v1/episodes/{asking.told['episode_id']}/why")["recall"]["shown"]
    assert (shown["memory_id"], shown["question"]) == (memory, "[erased]")
    assert len(server.get("/v1/memories", state="all")["memories"]) == 1
    server.kill()
    assert holding(tmp_path, PARROT) == set()


@pytest.mark.parametrize("moment", MOMENTS)
def test_an_answer_that_began_before_its_scope_was_erased_leaves_nothing(
    serve: Serving, tmp_path: Path, endpoint: Endpoint, moment: str
) -> None:
    """By another process that knows of the memory, and of no server that shares it."""
    store = tmp_path / "shared" / "memory.db"
    server = serve(tmp_path / "server", endpoint, MIA_MEMORY__PATH=str(store))
    know(server)
    endpoint.behave, met, go_on = hold(MOMENTS[moment])
    asking = Doing(lambda: server.ask(QUESTION))
    assert met.wait(60)
    erased = serve.nursery.mia(
        *("--home", tmp_path / "other", "memory", "purge", "--everything", "--scope", "default", "--yes"),
        **variables_of(endpoint) | {"MIA_MEMORY__PATH": str(store)},
    )
    assert erased.code == 0, erased.stderr
    go_on.set()
    assert asking.wait()
    assert asking.told["answer"] == RIGHT
    server.absorb_all()
    assert server.client.get(f"/v1/episodes/{asking.told['episode_id']}").status_code == 404
    assert server.get("/v1/memories", state="all")["memories"] == []
    # What is asked from then on is remembered as ever.
    after = server.ask("Who found the moon of Jupiter?")
    server.absorb_all()
    assert len(server.get("/v1/memories", state="all")["memories"]) == 1
    server.kill()
    with open_store(store) as kept:
        assert [one.episode.id for one in kept.export_episodes(None)] == [after["episode_id"]]
        assert kept.count_memories(states=tuple(MemoryState)) == 1
    assert holding(tmp_path, PARROT) == set()
