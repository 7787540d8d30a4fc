"""A request that is wrong is told so in plain words: where, what came, what is wanted."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient

from mia.service.invalid import faults

JSON = {"content-type": "application/json"}


def told(client: TestClient, method: str, path: str, **request: Any) -> dict[str, Any]:
    reply = client.request(method, path, **request)
    assert reply.status_code == 422, reply.text
    error: dict[str, Any] = reply.json()["error"]
    assert "Input should" not in reply.text
    assert error["request_id"] == reply.headers["x-request-id"]
    return error


@pytest.mark.parametrize(
    ("path", "body", "message", "wanted"),
    [
        ("/v1/ask", {}, "'question' is missing.", ""),
        ("/v1/ask", [1], "the body is a list.", "an object"),
        ("/v1/ask", {"question": 3}, "'question' is a number.", "a text"),
        ("/v1/ask", {"question": None}, "'question' is null.", "a text"),
        ("/v1/ask", {"question": " "}, "'question' is empty.", "some text"),
        ("/v1/ask", {"question": "q" * 100_001}, "'question' is too long.", "100,000 characters at most"),
        ("/v1/ask", {"question": "q", "references": ["r", {}]}, "'references[1]' is an object.", "a text"),
        (
            "/v1/ask",
            {"question": "q", "stream": "perhaps"},
            "'stream' cannot be read as true or false.",
            "true or false",
        ),
        (
            "/v1/ask",
            {"question": "q", "X-[y]": 1},
            "'X-[y]' is not known here.",
            "no other fields than those of the schema",
        ),
        ("/v1/recall", {"question": "q", "k_positive": 51}, "'k_positive' is too large.", "50 or less"),
        (
            "/v1/recall",
            {"question": "q", "kind": "x"},
            "'kind' is none of its possible values.",
            "'workflow' or 'plan_pair'",
        ),
        ("/v1/recall", {}, "there is neither a question nor a question_vector.", ""),
        (
            "/v1/jobs",
            {"questions": [{"question": "q"}, {"question": 3}]},
            "the job: 'questions[1].question' is a number.",
            "a text",
        ),
    ],
)
def test_what_is_wrong_is_told_in_words(client: TestClient, path: str, body: Any, message: str, wanted: str) -> None:
    error = told(client, "POST", path, json=body)
    assert (error["message"], error["wanted"]) == (message, wanted)


def test_all_that_is_wrong_is_in_the_details_and_no_value_is(client: TestClient) -> None:
    body = {"question": 3, "references": "hunter2", "images": [None]}
    error = told(client, "POST", "/v1/ask", json=body)
    assert error["message"] == "'question' is a number. 2 more are in `details`."
    assert [(one["where"], one["message"], one["wanted"]) for one in error["details"]] == [
        (["body", "question"], "'question' is a number.", "a text"),
        (["body", "references"], "'references' is a text.", "a list"),
        (["body", "images", 0], "'images[0]' is null.", "a text"),
    ]
    assert "hunter2" not in str(error)


def test_what_stands_in_the_address_is_told_as_such(client: TestClient) -> None:
    error = told(client, "GET", "/v1/memories", params={"limit": "many", "offset": -1})
    assert error["message"].startswith("the query parameter 'limit' cannot be read as a whole number. 1 more is in")
    assert [one["wanted"] for one in error["details"]] == ["a whole number", "0 or more"]
    error = told(client, "GET", "/v1/memories", headers={"x-mia-scope": "x" * 301})
    assert (error["message"], error["wanted"]) == ("the header 'x-mia-scope' is too long.", "300 characters at most")


@pytest.mark.parametrize(
    ("headers", "came"),
    [({}, "without a content type"), ({"content-type": "text/plain; charset=utf-8"}, "as 'text/plain'")],
)
def test_a_body_that_is_not_said_to_be_json_is_told_how(client: TestClient, headers: dict[str, str], came: str) -> None:
    error = told(client, "POST", "/v1/ask", content=b'{"question": "q"}', headers=headers)
    assert error["message"] == f"the body came {came}, and is not read as JSON."
    assert error["hint"] == "send content-type: application/json"


def test_a_body_that_is_no_json_is_told_so(client: TestClient) -> None:
    error = told(client, "POST", "/v1/ask", content=b'{"question":', headers=JSON)
    assert (error["message"], error["wanted"]) == ("the body is no JSON (Expecting value).", "JSON")


@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"question": "\xff\xfe"}', b'{"question": ' + b"9" * 6_000 + b"}"])
def test_a_body_that_cannot_even_be_read_is_told_so_in_the_form_of_its_path(client: TestClient, body: bytes) -> None:
    reply = client.post("/v1/ask", content=body, headers=JSON)
    error = reply.json()["error"]
    assert (reply.status_code, error["message"]) == (400, "the body cannot be read.")
    assert error["wanted"].startswith("JSON in UTF-8")
    reply = client.post("/v1/chat/completions", content=body, headers=JSON)
    error = reply.json()["error"]
    assert (reply.status_code, error["type"]) == (400, "invalid_request_error")
    assert error["message"].startswith("the body cannot be read. Wanted: JSON in UTF-8")


def test_a_number_that_is_none_and_a_list_that_is_too_long_are_told_as_such(client: TestClient) -> None:
    error = told(client, "POST", "/v1/recall", content=b'{"question": "q", "floor": NaN}', headers=JSON)
    assert (error["message"], error["wanted"]) == ("'floor' is no finite number.", "a number that is finite")
    # It could have been a text, too; what came was a list.
    reply = client.post("/v1/embeddings", json={"model": "mia", "input": ["text"] * 2_049})
    assert "'input' is too long. Wanted: 2,048 entries at most." in reply.json()["error"]["message"]


def test_a_kind_of_fault_that_nobody_thought_of_is_told_too() -> None:
    error = {"type": "url_parsing", "loc": ("body", "url"), "msg": "Input should be a valid URL, x", "input": "secret"}
    (wrong,) = faults([error])
    assert (wrong.got, wrong.wanted) == ("'url' is wrong.", "a valid URL, x")


# ── parameters that a route does not know ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("method", "path", "wanted"),
    [
        ("GET", "/v1/memories/export?scope=x", "all_scopes, episodes, vectors"),
        ("GET", "/v1/episodes?limt=3", "all_scopes, before, limit, outcome, text"),
        ("POST", "/v1/ask?stream=true", "none"),
        ("GET", "/v1/queue?a=1&b=2", "all_scopes, limit"),
        ("GET", "/v1/adapters?Role=planner", "role"),
        ("POST", "/v1/memories/import?dry_run=1", "keep_scopes"),
    ],
)
def test_a_parameter_that_a_route_does_not_know_is_refused(
    client: TestClient, method: str, path: str, wanted: str
) -> None:
    body = {"json": {"question": "q"}} if path.startswith("/v1/ask") else {}
    error = told(client, method, path, **body)
    name = path.partition("?")[2].partition("=")[0]
    assert (error["message"], error["wanted"]) == (f"the query parameter '{name}' is not known here.", wanted)
    assert ("X-MIA-Scope" in error["hint"]) == (name == "scope")


def test_those_that_it_knows_are_taken_and_other_peoples_clients_may_send_more(client: TestClient) -> None:
    for path in ("/v1/memories?limit=3&all_scopes=true", "/v1/models?api-version=2024", "/healthz?probe=1"):
        assert client.get(path).status_code == 200, path
    assert client.post("/memory?x=1", json=[{"question": "q"}]).status_code == 200
