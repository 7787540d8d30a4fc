"""Errors in OpenAI's form, on the paths that speak its API: `{"error": {"message", "type", "param", "code"}}`.

Programs show `message` and nothing else, so it says all: what came, what is wanted, what to do. What the guard at the
door refuses (a token, too many requests) comes in the form of our own, which such programs read as well.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import ConfigDict
from starlette.exceptions import HTTPException

from mia.errors import ConfigError, MiaError
from mia.service.invalid import faults
from mia.service.problems import NotFound, answer_of, invalid_request, refused_request, request_id
from mia.service.schemas import PROBLEMS, Reply


class Unsupported(ConfigError):
    """A request for what is not done here (400)."""

    code = "unsupported_value"

    def __init__(self, got: str, *, param: str, wanted: str = "", hint: str = "") -> None:
        """`param`: the field that asks for it."""
        super().__init__(got, wanted=wanted, hint=hint)
        self.param = param


class NoModel(NotFound):
    """Another model than ours (404)."""

    code = "model_not_found"
    param = "model"


class OpenAIProblem(Reply):
    """The body of an error."""

    class Error(Reply):
        model_config = ConfigDict(extra="allow", use_attribute_docstrings=True)

        message: str
        """What came, what is wanted, and what to do."""
        type: str
        """invalid_request_error, rate_limit_error, server_error; what the guard refuses has the name of its error."""
        param: str | None = None
        """The field that is wrong, such as `messages[0].role`; null: it is none of them."""
        code: str | int | None = None
        """A name for what is wrong; what the guard refuses has the status here."""
        request_id: str = ""

    error: Error


OPENAI_PROBLEMS: dict[int | str, dict[str, Any]] = {status: {"model": OpenAIProblem} for status in PROBLEMS}
"""The errors that a route of OpenAI's API may answer with."""


class OpenAIRoute(APIRoute):
    """A route whose errors have OpenAI's form."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handled(request: Request) -> Response:
            try:
                return await handle(request)
            except MiaError as error:
                return openai_answer(error, request_id(request))
            except RequestValidationError as error:
                said = invalid_request(request, error)["error"]
                first = faults(error.errors())[0]
                code = "missing_required_parameter" if first.kind == "missing" else "invalid_value"
                return JSONResponse(_body(422, said, param=first.place or None, code=code), 422)
            except HTTPException as error:
                said = refused_request(request, error)["error"]
                return JSONResponse(_body(error.status_code, said, param=None, code="invalid_value"), error.status_code)

        return handled


def openai_answer(error: MiaError, request_id: str, **more: Any) -> JSONResponse:
    """The answer that an error of ours becomes; `more` stands beside what OpenAI says."""
    answer = answer_of(error, request_id)
    body = _body(
        answer.status_code,
        json.loads(bytes(answer.body))["error"],
        param=getattr(error, "param", None),
        code=getattr(error, "code", None),
        **more,
    )
    headers = {name: value for name, value in answer.headers.items() if name in ("retry-after", "www-authenticate")}
    return JSONResponse(body, answer.status_code, headers)


def _body(status: int, said: dict[str, Any], *, param: str | None, code: str | None, **more: Any) -> dict[str, Any]:
    wanted = f" Wanted: {said['wanted']}." if said["wanted"] else ""
    hint = f" Try: {said['hint']}." if said["hint"] else ""
    kind = "server_error" if status >= 500 else "rate_limit_error" if status == 429 else "invalid_request_error"
    return {
        "error": {
            "message": f"{said['message']}{wanted}{hint}",
            "type": kind,
            "param": param,
            "code": code or (HTTPStatus(status).name.lower() if status >= 500 else None),
            "request_id": said["request_id"],
            **more,
        }
    }
