"""`/login` and `/logout`: a token becomes a session of this browser."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, Request, Response

from mia.service.auth import Unauthorized
from mia.service.dashboard.rendering import PageRoute, page, see_other
from mia.service.sessions import COOKIE, LASTS

router = APIRouter(include_in_schema=False, route_class=PageRoute)


@router.get("/login")
async def form(request: Request) -> Response:
    return page(request, "login.html", trouble="") if request.app.state.gate.closed else see_other("/")


@router.post("/login")
async def begin(request: Request, token: Annotated[str, Form(max_length=500)] = "") -> Response:
    try:
        session = request.app.state.sessions.begin(token.strip())
    except Unauthorized as error:
        return page(request, "login.html", status=401, trouble=error.got)
    answer = see_other("/")
    secure = request.url.scheme == "https"
    answer.set_cookie(COOKIE, session, max_age=int(LASTS), httponly=True, samesite="strict", secure=secure)
    return answer


@router.post("/logout")
async def end(request: Request) -> Response:
    request.app.state.sessions.end(request.cookies.get(COOKIE, ""))
    answer = see_other("/login")
    answer.delete_cookie(COOKIE, httponly=True, samesite="strict")
    return answer
