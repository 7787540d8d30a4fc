"""Errors as answers: `{"error": {"type", "message", "wanted", "hint", "request_id"}}`, with a status that says whose
fault it is. None holds what came in, nor anything of a traceback."""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from mia.errors import (
    BudgetExceeded,
    ConfigError,
    CorpusError,
    JudgeError,
    LearnError,
    MiaError,
    MissingExtra,
    ModelError,
    ModelUnavailable,
    RecordError,
    StoreError,
    ToolError,
)
from mia.redaction import Redactor
from mia.service.auth import Forbidden, GateStuck, Unauthorized
from mia.service.invalid import faults, summary

log = logging.getLogger("mia.service")

RETRY_SECONDS = 5
_redacted = Redactor("secrets")


class NotFound(MiaError):
    """There is no such thing, or it is not yours to see."""


STATUS: tuple[tuple[type[MiaError], int], ...] = (
    (Unauthorized, 401),
    (Forbidden, 403),
    (GateStuck, 503),
    (NotFound, 404),
    (RecordError, 422),
    (BudgetExceeded, 429),
    (ModelUnavailable, 503),
    (ModelError, 502),
    (JudgeError, 502),
    (ToolError, 502),
    (StoreError, 503),
    (CorpusError, 503),
    (LearnError, 409),
    (MissingExtra, 501),
    (ConfigError, 400),
    (MiaError, 500),
)
"""The first that fits."""


def status_of(error: MiaError) -> int:
    return next(status for kind, status in STATUS if isinstance(error, kind))


def problem(
    status: int, message: str, *, kind: str = "", wanted: str = "", hint: str = "", request_id: str = "", **more: Any
) -> dict[str, Any]:
    """The body of an error. What an endpoint says of a request may hold the key that it came with."""
    return {
        "error": {
            "type": kind or HTTPStatus(status).phrase.title().replace(" ", ""),
            "message": _redacted(message),
            "wanted": _redacted(wanted),
            "hint": hint,
            "code": status,
            "request_id": request_id,
            **more,
        }
    }


def answer_of(error: MiaError, request_id: str = "", **more: Any) -> JSONResponse:
    """The answer that an error of ours becomes."""
    status = status_of(error)
    headers = {}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if status in (429, 503):
        headers["Retry-After"] = str(RETRY_SECONDS)
    body = problem(
        status,
        error.got,
        kind=type(error).__name__,
        wanted=error.wanted,
        hint=error.hint,
        request_id=request_id,
        **more,
    )
    return JSONResponse(body, status, headers)


def install(app: FastAPI) -> None:
    """Have an app answer so."""

    @app.exception_handler(MiaError)
    async def ours(request: Request, error: MiaError) -> JSONResponse:
        return answer_of(error, request_id(request))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return JSONResponse(invalid_request(request, error), 422)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse(refused_request(request, error), error.status_code, error.headers)


def refused_request(request: Request, error: HTTPException) -> dict[str, Any]:
    """The body for a request that no route takes, or whose body FastAPI could not read."""
    status, id = error.status_code, request_id(request)
    if status == 400:
        # Nested too deep, no UTF-8, a number of thousands of digits: JSON that is merely torn is a 422.
        wanted = "JSON in UTF-8, nested no deeper than a hundred levels, with numbers of a usual length"
        return problem(400, "the body cannot be read.", wanted=wanted, hint="GET /docs", request_id=id)
    hint = "GET /docs lists what there is" if status in (404, 405) else ""
    return problem(status, str(error.detail), hint=hint, request_id=id)


def invalid_request(request: Request, error: RequestValidationError) -> dict[str, Any]:
    """The body for a request that is not as its schema wants it."""
    errors = error.errors()
    if any(one["loc"] == ("body",) and isinstance(one["input"], bytes) for one in errors):
        # It was not even looked into.
        kind = request.headers.get("content-type", "").partition(";")[0].strip()
        came = f"as '{_redacted(kind[:100])}'" if kind else "without a content type"
        return problem(
            422,
            f"the body came {came}, and is not read as JSON.",
            kind="RequestInvalid",
            wanted="JSON",
            hint="send content-type: application/json",
            request_id=request_id(request),
        )
    wrong = faults(errors)
    return problem(
        422,
        summary(wrong),
        kind="RequestInvalid",
        wanted=wrong[0].wanted,
        hint="GET /docs",
        request_id=request_id(request),
        details=[
            {"where": list(one.where), "message": one.got, "wanted": one.wanted, "type": one.kind} for one in wrong
        ],
    )


def request_id(request: Request) -> str:
    return str(getattr(request.state, "request_id", ""))
