"""Whatever the schema allows, and what it does not: no answer is a fault of the server, and each is as documented.

schemathesis makes requests from `/openapi.json`, valid and invalid ones, and looks at status, content type, headers and
body of every answer.
"""

from __future__ import annotations

import contextlib
import time
import unittest
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from listening import listening, until
from service_team import WORKFLOW, make_service

from mia.service.core import Service

requests = pytest.importorskip("requests", reason="it comes with schemathesis, of the extra `dev`")

EXAMPLES, MORE_EXAMPLES = 2, 25
"""Valid ones for each operation in a round, and as many invalid ones."""
SECONDS, MORE_SECONDS = 0.0, 600.0
"""After which no new round begins; there is always one."""
MISSING = {501, 503}
"""Answers of 500 and above that are documented, and no fault: something is not installed, switched on or reachable."""


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return make_service(tmp_path / "home", serve__max_body_mb=2)


@pytest.fixture
def url(service: Service) -> Iterator[str]:
    for number in range(5):
        service.memory("default").add(f"Where was the discoverer of moon {number} born?", WORKFLOW, "correct")
    with listening(service, log_level="critical") as url:
        yield url


def _lines(context: Any, value: Any) -> bytes:
    """Of `application/jsonl`, and of other text, as the schema has it."""
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "replace")


def violations(url: str, examples: int, seconds: float) -> list[str]:
    """Each operation and what is wrong with an answer of it, once for each kind of fault."""
    import schemathesis
    from hypothesis import HealthCheck, Phase, given, seed, settings
    from hypothesis.errors import Unsatisfiable
    from schemathesis.checks import not_a_server_error
    from schemathesis.core.failures import Failure, FailureGroup
    from schemathesis.generation import GenerationMode
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        response_headers_conformance,
        response_schema_conformance,
        status_code_conformance,
    )

    checks = [
        status_code_conformance,
        content_type_conformance,
        response_headers_conformance,
        response_schema_conformance,
    ]
    schemathesis.serializer("application/jsonl", "application/x-ndjson")(_lines)
    found: dict[str, str] = {}
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    operations = [one.ok() for one in schema.get_all_operations()]
    assert len(operations) > 3
    ends = time.monotonic() + seconds
    session = requests.Session()

    def run(operation: Any, mode: GenerationMode, number: int) -> None:
        @seed(number)
        @settings(
            max_examples=examples,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def one(case: Any) -> None:
            what = f"{operation.method.upper()} {operation.path}"
            try:
                reply = case.call(session=session, timeout=20)
            except requests.exceptions.Timeout:
                found.setdefault(f"{what}: no answer in 20 s", repr(case.body)[:300])
                return
            except (requests.exceptions.InvalidHeader, requests.exceptions.InvalidURL, UnicodeEncodeError):
                return
            if reply.status_code >= 500 and reply.status_code not in MISSING:
                found.setdefault(
                    f"{what}: {reply.status_code}", f"{reply.text[:300]}\n    {case.as_curl_command()[:600]}"
                )
            try:
                case.validate_response(reply, checks=checks, excluded_checks=[not_a_server_error])
            except FailureGroup as group:
                for failure in group.exceptions:
                    assert isinstance(failure, Failure)
                    kind = f"{what}: {reply.status_code}: {failure.title}"
                    found.setdefault(kind, f"{failure.message[:400]}\n    {case.as_curl_command()[:600]}")
            except Failure as failure:
                kind = f"{what}: {reply.status_code}: {failure.title}"
                found.setdefault(kind, f"{failure.message[:400]}\n    {case.as_curl_command()[:600]}")

        one()

    number = 0
    while number == 0 or time.monotonic() < ends:
        number += 1
        for operation in operations:
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
                # An operation that takes nothing has no invalid request.
                with contextlib.suppress(Unsatisfiable, unittest.SkipTest):
                    run(operation, mode, number)
    session.close()
    return [f"{what}\n    {why}" for what, why in found.items()]


def test_every_answer_is_as_documented_and_none_a_fault(url: str, service: Service) -> None:
    found = violations(url, EXAMPLES, SECONDS)
    assert not found, f"{len(found)} violations:\n\n" + "\n\n".join(found)
    # And it still works.
    until(lambda: service.live.under_way == 0, 30)
    assert requests.post(f"{url}/v1/ask", json={"question": "Where was he born?"}, timeout=30).status_code == 200


@pytest.mark.slow
def test_every_answer_to_many_more_requests_is_so_too(url: str) -> None:
    found = violations(url, MORE_EXAMPLES, MORE_SECONDS)
    assert not found, f"{len(found)} violations:\n\n" + "\n\n".join(found)


def test_every_operation_documents_its_errors_and_says_what_it_does(url: str) -> None:
    page = requests.get(f"{url}/openapi.json", timeout=30).json()
    for path, operations in page["paths"].items():
        for method, operation in operations.items():
            where = f"{method} {path}"
            assert operation.get("summary"), where
            if path.startswith("/v1/"):
                assert {"401", "403", "422", "429", "503"} <= set(operation["responses"]), where
    ids = [one["operationId"] for operations in page["paths"].values() for one in operations.values()]
    assert len(ids) == len(set(ids))
