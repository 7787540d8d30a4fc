"""The memory and Planner service: requests as the reference's inference client writes them, and what came of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from service_team import make_service, says
from starlette.testclient import TestClient

from mia.models.base import ChatRequest
from mia.service.app import create_app
from mia.service.core import Service
from mia.types import Memory, MemoryState

QUESTION = "Where was the discoverer of Titan born?"
ROUNDS = [
    {
        "role": "assistant",
        "content": "<think>who?</think>\n<tool_call>"
        '{"name": "search", "arguments": {"query_list": ["Titan"]}}</tool_call>',
    },
    # The reference closes the tag with itself.
    {"role": "user", "content": "<tool_response>\\Titan was found by Huygens.\n<tool_response>"},
    {"role": "assistant", "content": "<think>born there</think><answer>The Hague</answer>"},
]
WORKFLOW = (
    f"### Question: {QUESTION}\n### Round 1:\n#### Agent Reasoning and Tool Call:\n{ROUNDS[0]['content']}\n"
    "#### Tool Call Return Results:\n<tool_response>Titan was found by Huygens.</tool_response>\n"
    f"### Round 2:\n#### Agent Reasoning and Tool Call:\n{ROUNDS[2]['content']}\n"
)


class Served:
    """A service, its client, and everything its model was asked."""

    def __init__(self, home: Path, answers: Any = says, **flags: Any) -> None:
        self.asked: list[ChatRequest] = []

        def heard(request: ChatRequest) -> Any:
            self.asked.append(request)
            return answers(request)

        self.service: Service = make_service(home, answers=heard, **{"memory__floor": -1.0, **flags})
        self.client = TestClient(create_app(self.service), raise_server_exceptions=False)

    def post(self, path: str, body: Any, status: int = 200) -> Any:
        reply = self.client.post(path, json=body)
        assert reply.status_code == status, (path, reply.status_code, reply.text)
        return reply.json()

    def memories(self, scope: str | None = None) -> tuple[Memory, ...]:
        return self.service.store.list_memories(scope, limit=100)

    def prompts(self, purpose: str) -> list[str]:
        return ["\n".join(one.content for one in asked.messages) for asked in self.asked if asked.purpose == purpose]


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    one = Served(tmp_path / "home")
    with one.client:
        yield one


def save_item(**more: Any) -> dict[str, Any]:
    return {
        "data_id": "q-1",
        "question": QUESTION,
        "image_caption": "",
        "messages": ROUNDS,
        "plan": "1. Look up Titan.",
        "judgement": "correct",
        "used_memory_indices": [],
        **more,
    }


def learn(served: Served, count: int = 4) -> dict[str, Memory]:
    """Memories, half of them of incorrect answers, through the wire."""
    items = [
        save_item(
            data_id=f"old-{number}",
            question=f"Who found moon number {number} of Saturn?",
            judgement="correct" if number % 2 else "incorrect",
        )
        for number in range(count)
    ]
    assert served.post("/batch_memory_save", items) == {"status": "success"}
    return {memory.id: memory for memory in served.memories()}


@pytest.mark.parametrize("prefix", ["", "/memory-service"])
def test_a_finished_run_becomes_a_memory_and_credits_those_it_was_shown(served: Served, prefix: str) -> None:
    known = learn(served)
    shown = list(known)[:2]
    served.post(f"{prefix}/batch_memory_save", [save_item(used_memory_indices=[*shown, "mem-gone"])])
    new = {memory.id: memory for memory in served.memories()}
    (made,) = (memory for id, memory in new.items() if id not in known)
    assert (made.question, made.plan, made.judgement) == (QUESTION, "1. Look up Titan.", "correct")
    assert made.provenance.leaned_on == tuple(shown)
    assert [(new[id].uses, new[id].wins) for id in known] == [(2, 2) if id in shown else (1, 1) for id in known]
    episode = served.service.store.load_episode(made.provenance.episode_id)
    call = episode.steps[0].tool_call
    assert call is not None
    assert call.arguments == {"query_list": ["Titan"]}
    assert episode.steps[0].observation is not None
    assert "Huygens" in episode.steps[0].observation.text
    assert episode.answer is not None
    assert episode.answer.text == "The Hague"
    # The same run sent again is the same run; a failure is counted, and wins nothing.
    served.post(f"{prefix}/batch_memory_save", [save_item(used_memory_indices=shown)])
    assert served.memories() == tuple(new.values())
    served.post(
        f"{prefix}/batch_memory_save", [save_item(data_id="q-2", judgement="wrong", used_memory_indices=shown[:1])]
    )
    after = served.service.store.memories(shown)
    assert [(after[id].uses, after[id].wins) for id in shown] == [(3, 2), (2, 2)]


def test_reviews_are_kept_with_the_memory(served: Served) -> None:
    feedback = {f"evaluator_{n}_feedback": f"- Score: {n + 5}\n- Reason: reason {n}" for n in (1, 2)}
    served.post("/batch_memory_save", [save_item(**feedback, evaluator_3_feedback="Error")])
    (made,) = served.memories()
    assert [(one.reviewer, one.score, one.reason) for one in made.reviews] == [
        ("reasoning", 6, "reason 1"),
        ("sourcing", 7, "reason 2"),
    ]


def test_recall_gives_stable_ids_and_passes_over(served: Served) -> None:
    known = learn(served, 8)
    item = {"data_id": "q", "question": "Who found moon number 1 of Saturn?", "image_caption": [], "mem_top_k": 2}
    (first,) = served.post("/memory", [item])
    assert first["context"].count("<memory judgement=") == 4
    assert {known[id].judgement for id in first["pos_indices"]} == {"correct"}
    assert {known[id].judgement for id in first["neg_indices"]} == {"incorrect"}
    (second,) = served.post("/memory", [{**item, "pass_num": 2}])
    assert len(second["pos_indices"]) == len(second["neg_indices"]) == 2
    shown = [id for answer in (first, second) for id in answer["pos_indices"] + answer["neg_indices"]]
    assert len(set(shown)) == 8
    answers = served.post("/memory", [{**item, "mem_top_k": 0}, {**item, "mem_top_k": "1"}])
    assert [len(one["pos_indices"]) for one in answers] == [0, 1]


def test_lists_objects_and_empty_lists_are_told_apart(served: Served) -> None:
    known = learn(served)
    item = {"data_id": 7, "question": QUESTION, "image_caption": ""}
    (listed,) = served.post("/memory", [item])
    assert listed.keys() == {"context", "pos_indices", "neg_indices"}
    single = served.post("/memory", item)
    assert single.keys() == {"prompt", "indices"}
    assert set(single["indices"]) <= known.keys()
    assert single["indices"]
    assert served.post("/memory", []) == []
    assert served.post("/plan", []) == []
    (planned,) = served.post("/plan", [item])
    assert planned.keys() == {"plan", "messages", "pos_indices", "neg_indices"}
    executed = served.post("/plan", {**item, "plan": "1. Look up Titan."})
    assert executed.keys() == {"prompt", "trace", "history_messages"}
    # Under a prefix, the other shape is wrong.
    served.post("/memory-service/memory", item, 422)
    served.post("/agent-service/memory", [item], 422)


def test_the_whole_way_of_the_references_inference_client(served: Served) -> None:
    learn(served)
    (planned,) = served.post("/plan", [{"data_id": "q-1", "question": QUESTION, "image_caption": [], "mem_top_k": 2}])
    assert planned["plan"] == "1. Look up Titan.\n2. Look up its discoverer."
    assert [one["role"] for one in planned["messages"]] == ["system", "user", "assistant"]
    assert planned["messages"][1]["content"].count("<memory judgement=") == 4
    used = planned["pos_indices"] + planned["neg_indices"]
    (judged,) = served.post(
        "/judge_replan",
        [{"memory_indices": used, "workflow": WORKFLOW, "past_messages": planned["messages"]}],
    )
    assert judged["need_replan"] == "no"
    assert [one["role"] for one in judged["messages"]][3:] == ["user", "assistant"]
    seen = judged["messages"][3]["content"]
    assert "Call: search" in seen
    assert "Titan was found by Huygens." in seen
    assert "The Hague" in seen
    (replanned,) = served.post(
        "/replan",
        [
            {
                "data_id": "q-1",
                "question": QUESTION,
                "past_messages": judged["messages"],
                "image_caption": [],
                "mem_top_k": 0,
                "pass_num": 2,
            }
        ],
    )
    assert replanned["replan"].startswith("1. Look up Titan.")
    assert replanned["pos_indices"] == replanned["neg_indices"] == []
    assert replanned["messages"][: len(judged["messages"])] == judged["messages"]
    assert replanned["messages"][-1]["role"] == "assistant"
    before = {memory.id: (memory.uses, memory.wins) for memory in served.memories()}
    served.post("/batch_memory_save", [save_item(used_memory_indices=used)])
    after = {memory.id: (memory.uses, memory.wins) for memory in served.memories()}
    assert all(after[id] == (before[id][0] + 1, before[id][1] + 1) for id in used)


def test_a_replan_shows_fresh_memories_only(served: Served) -> None:
    learn(served, 8)
    item = {"data_id": "q-1", "question": "Who found moon number 1 of Saturn?", "image_caption": ""}
    (planned,) = served.post("/plan", [{**item, "mem_top_k": 2}])
    (replanned,) = served.post("/replan", [{**item, "past_messages": planned["messages"]}])
    fresh = replanned["pos_indices"] + replanned["neg_indices"]
    assert len(fresh) == 2
    assert not set(fresh) & {*planned["pos_indices"], *planned["neg_indices"]}
    request = served.prompts("replan")[-1]
    for memory in served.service.store.memories(fresh).values():
        assert memory.question in request


def test_yes_is_one_word(tmp_path: Path) -> None:
    words = iter(("<think>no?</think>yes", "<think>t</think>yes, replan", "<think>yes</think>no"))

    def answers(request: ChatRequest) -> Any:
        return next(words) if request.purpose == "reflect" else says(request)

    served = Served(tmp_path, answers)
    with served.client:
        item = {"memory_indices": [], "workflow": WORKFLOW, "past_messages": [{"role": "user", "content": "plan"}]}
        told = [served.post("/judge_replan", [item])[0]["need_replan"] for _ in range(3)]
    assert told == ["yes", "no", "no"]


def test_the_best_of_four_plans(tmp_path: Path) -> None:
    made: list[str] = []

    def answers(request: ChatRequest) -> Any:
        if request.purpose == "plan":
            assert request.temperature == 1.0
            made.append(f"1. Plan {len(made)}.")
            return made[-1]
        return json.dumps({"index": 2}) if request.purpose == "choose" else says(request)

    served = Served(tmp_path, answers)
    with served.client:
        (best,) = served.post("/best_plan", [{"data_id": "q", "question": QUESTION, "image_caption": ""}])
    assert best["all_plans"] == made
    assert len(made) == 4
    assert best["selected_plan_number"] == 3
    assert best["plan"] == made[2] == best["messages"][-1]["content"]


def test_a_plan_for_the_training_of_the_executor(served: Served) -> None:
    body = {
        "question": QUESTION,
        "plan": "1. Look in the attic.",
        "trace": WORKFLOW,
        "mem_context1": "<memory>first</memory>",
        "mem_context2": "<memory>second</memory>",
    }
    answer = served.post("/replan_train", body)
    assert answer == {"replan": True, "content": "1. Look up Titan.\n2. Look up its discoverer."}
    assert not served.prompts("plan")
    (asked,) = (one for one in served.asked if one.purpose == "replan")
    assert [one.role for one in asked.messages] == ["system", "user", "assistant", "user"]
    assert asked.messages[2].content == "1. Look in the attic."
    assert "first" in asked.messages[1].content
    assert "Titan was found by Huygens." in asked.messages[3].content
    assert "second" in asked.messages[3].content


def test_an_image_caption_may_be_a_list(served: Served) -> None:
    served.post("/batch_memory_save", [save_item(image_caption=["A moon.", "?"])])
    (made,) = served.memories()
    assert (made.caption, made.modality) == ("A moon.", "text-image")
    item = {"data_id": "q", "question": QUESTION}
    with_image, without = served.post("/memory", [{**item, "image_caption": ["A moon."]}, item])
    assert with_image["pos_indices"] == [made.id]
    assert without["pos_indices"] == []


# ── export, import, clear ─────────────────────────────────────────────────────────────────────────────────────────


def test_saved_cleared_and_loaded(served: Served) -> None:
    known = learn(served)
    home = served.service.config.home
    # The reference's client names a full path of its own machine.
    assert served.post("/save_memory", {"save_path": "/data/out/run-1/memory.jsonl"}) == {"status": "success"}
    assert (home / "exports").stat().st_mode & 0o077 == 0
    lines = (home / "exports" / "memory.jsonl").read_text().splitlines()
    assert {json.loads(line)["memory"]["id"] for line in lines[1:]} == known.keys()
    assert not list(Path("/data/out").glob("run-1")) if Path("/data/out").exists() else True
    # Its trainer sends an empty list; its inference client nothing at all.
    cleared = served.client.post("/clear_memory")
    assert cleared.json() == {"status": "success", "message": "4 memories forgotten; they can be restored."}
    assert served.memories() == ()
    kept = served.service.store.memories(list(known))
    assert {memory.state for memory in kept.values()} == {MemoryState.FORGOTTEN}
    assert served.post("/load_memory", {"load_path": "memory.jsonl"}) == {"status": "success"}
    assert {memory.id: memory.workflow for memory in served.memories()} == {
        id: memory.workflow for id, memory in known.items()
    }
    assert served.post("/clear_memory", [])["message"].startswith("4 ")


def test_a_memory_that_is_loaded_elsewhere_goes_into_the_scope_that_loads(tmp_path: Path) -> None:
    one, other = Served(tmp_path / "one"), Served(tmp_path / "other")
    with one.client, other.client:
        known = learn(one)
        one.post("/save_memory", {"save_path": "memory.jsonl.gz"})
        source = tmp_path / "one" / "exports" / "memory.jsonl.gz"
        target = tmp_path / "other" / "exports"
        target.mkdir()
        (target / source.name).write_bytes(source.read_bytes())
        other.post("/load_memory", {"load_path": source.name})
        assert {memory.id for memory in other.memories()} == known.keys()


@pytest.mark.parametrize(
    "path",
    [
        "../memory.jsonl",
        "/etc/../memory.jsonl",
        "a/../../b",
        "..",
        ".",
        ".hidden",
        "",
        "a\x00b",
        "..\\x",
        "x" * 300,
        "a/",
    ],
)
def test_paths_that_are_no_names_are_refused(served: Served, path: str) -> None:
    home = served.service.config.home
    before = sorted(str(one) for one in home.parent.rglob("*") if "db" not in one.name)
    if path != "a/":  # Its last component is a plain name.
        served.post("/save_memory", {"save_path": path}, 422)
    served.post("/load_memory", {"load_path": path}, 422)
    assert sorted(str(one) for one in home.parent.rglob("*") if "db" not in one.name) == before


def test_nothing_outside_the_folder_is_loaded_or_overwritten(served: Served, tmp_path: Path) -> None:
    learn(served)
    exports = served.service.config.home / "exports"
    exports.mkdir()
    outside = tmp_path / "outside.jsonl"
    outside.write_text("precious")
    (exports / "link.jsonl").symlink_to(outside)
    (exports / "folder.jsonl").mkdir()
    for name in ("link.jsonl", "folder.jsonl"):
        served.post("/save_memory", {"save_path": name}, 422)
        served.post("/load_memory", {"load_path": name}, 422)
    served.post("/load_memory", {"load_path": str(outside)}, 422)
    served.post("/load_memory", {"load_path": "absent.jsonl"}, 404)
    assert outside.read_text() == "precious"


def test_each_scope_has_its_own(tmp_path: Path) -> None:
    served = Served(tmp_path)
    with served.client as client:
        for scope in ("acme", "other"):
            client.headers["X-MIA-Scope"] = scope
            served.post("/batch_memory_save", [save_item(data_id=scope)])
            served.post("/save_memory", {"save_path": "memory.jsonl"})
        client.headers["X-MIA-Scope"] = "acme"
        (foreign,) = served.memories("other")
        served.post("/batch_memory_save", [save_item(data_id="again", used_memory_indices=[foreign.id])])
        assert served.memories("other") == (foreign,)
        assert served.post("/clear_memory", [])["message"].startswith("1 ")
        assert served.memories("other") == (foreign,)
        served.post("/load_memory", {"load_path": "memory.jsonl"})
        assert {memory.scope for memory in served.memories("acme")} == {"acme"}


# ── bad input ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/memory", [{"data_id": "q"}]),
        ("/memory", [{"question": ""}]),
        ("/memory", [{"question": 5}]),
        ("/memory", [{"question": "x", "data_id": "../../etc"}]),
        ("/memory", [{"question": "x", "mem_top_k": -1}]),
        ("/memory", [{"question": "x", "mem_top_k": 10**6}]),
        ("/memory", "text"),
        ("/plan", [{"question": "x", "image_caption": [[1]]}]),
        ("/plan", [None]),
        ("/judge_replan", [{"workflow": "x", "past_messages": [{"role": "wizard", "content": "x"}]}]),
        ("/judge_replan", [{"workflow": "x", "past_messages": [{"role": "user", "content": [{"type": "video"}]}]}]),
        ("/replan", [{"question": "x", "past_messages": "x"}]),
        ("/replan_train", {"question": "x", "plan": ""}),
        ("/batch_memory_save", [{"question": "x", "messages": ROUNDS}]),
        ("/batch_memory_save", [save_item(used_memory_indices=[3])]),
        ("/batch_memory_save", [save_item(messages=[{"role": "assistant", "content": 5}])]),
        ("/batch_memory_save", [save_item(messages=[{"role": "wizard", "content": "x"}])]),
        ("/batch_memory_save", [save_item(data_id="a/b")]),
        ("/batch_memory_save", [save_item()] * 300),
        ("/save_memory", {"save_path": None}),
        ("/save_memory", [1]),
    ],
)
def test_what_is_wrong_is_told_and_leaves_nothing(served: Served, path: str, body: Any) -> None:
    answer = served.post(path, body, 422)
    assert answer["error"]["message"]
    assert served.memories() == ()


def test_a_run_without_turns_still_credits(served: Served) -> None:
    known = learn(served, 1)
    (id,) = known
    served.post("/batch_memory_save", [save_item(messages=[], used_memory_indices=[id])])
    (memory,) = served.memories()
    assert (memory.id, memory.uses, memory.wins) == (id, 2, 2)


def test_deep_and_broken_json_is_no_fault_of_the_server(served: Served) -> None:
    for content in (b"[" * 100_000, b'[{"question": "\xff"}]', b"{", b'[{"question": "\\ud800", "data_id": 1}]'):
        reply = served.client.post("/memory", content=content, headers={"content-type": "application/json"})
        assert reply.status_code in (400, 422), reply.text
