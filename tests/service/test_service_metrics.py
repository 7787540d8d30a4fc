"""What is counted, and that no label can be made to grow."""

from __future__ import annotations

from starlette.testclient import TestClient

QUESTION = "Where was the discoverer of Titan born?"


def lines(client: TestClient) -> dict[str, float]:
    page = client.get("/metrics")
    assert page.headers["content-type"].startswith("text/plain; version=0.0.4")
    rows = [line for line in page.text.splitlines() if line and not line.startswith("#")]
    return {row.rpartition(" ")[0]: float(row.rpartition(" ")[2]) for row in rows}


def test_an_answer_is_counted_with_its_verdict_and_tokens(client: TestClient) -> None:
    client.post("/v1/ask", json={"question": QUESTION, "references": ["The Hague"]})
    found = lines(client)
    assert found['mia_answers_total{door="api",outcome="correct"}'] == 1
    assert found['mia_requests_total{method="POST",route="/v1/ask",status="200"}'] == 1
    assert found['mia_model_calls_total{role="planner"}'] >= 1
    assert found["mia_asks_under_way"] == 0


def test_a_stream_is_counted_as_an_answer_too(client: TestClient) -> None:
    client.post("/v1/ask", json={"question": QUESTION, "references": ["The Hague"], "stream": True})
    assert lines(client)['mia_answers_total{door="api",outcome="correct"}'] == 1


def test_paths_methods_and_names_make_no_labels(client: TestClient) -> None:
    for number in range(30):
        client.request(f"FOO{number}", "/v1/recall")
        client.get(f"/nothing/{number}")
        client.get(f"/v1/jobs/job-{number}")
    found = lines(client)
    assert not [name for name in found if "FOO" in name or "nothing" in name or "job-" in name]
    assert found['mia_requests_total{method="other",route="/v1/recall",status="405"}'] == 30
    assert sum(name.startswith("mia_requests_total") for name in found) < 10


def test_other_agents_are_counted_under_their_door(client: TestClient) -> None:
    client.post("/mcp", json={"jsonrpc": "2.0", "id": 1, "method": "ping"})
    client.get("/mcp")
    found = lines(client)
    assert sum(found[name] for name in found if name.startswith('mia_requests_total{method="POST",route="/mcp"')) == 1
    assert found['mia_requests_total{method="GET",route="/mcp",status="405"}'] == 1
    assert found['mia_request_seconds_count{route="/mcp"}'] == 2
    assert not [name for name in found if "_created" in name]
