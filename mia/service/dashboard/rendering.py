"""How a page is made: templates, what they may call, and what a browser is told when something is wrong.

Every value that a template prints is escaped, and before that `visible`: control characters, lone surrogates and those
that turn the direction of text are shown by their names, so that no text can pass for another.
"""

from __future__ import annotations

import datetime
import importlib.util
import re
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import quote, urlsplit

from fastapi import Form, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse
from fastapi.routing import APIRoute
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

import mia
from mia.errors import MiaError, MissingExtra, install_hint
from mia.service.auth import Principal
from mia.service.invalid import faults
from mia.service.problems import RETRY_SECONDS, status_of
from mia.transcript import describe_call

T = TypeVar("T")

HERE = Path(__file__).parent
HTMX = "static/django_htmx/htmx-2.min.js"

ShortField = Annotated[str, Form(max_length=500)]
"""A short text of a form."""
ShortQuery = Annotated[str, Query(max_length=500)]
"""A short text of an address."""
Offset = Annotated[int, Query(ge=0, le=10_000_000)]
"""Entries of a list that come before the page."""

_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff]")
_SURROGATE = re.compile("[\ud800-\udfff]")


def visible(value: Any) -> Any:
    """The text with a name in place of each character that acts and is not seen. What is no text stays as it is."""
    if not isinstance(value, str) or isinstance(value, Markup) or (value.isascii() and value.isprintable()):
        return value
    return _UNSEEN.sub(_named, _SURROGATE.sub("\ufffd", value.replace("\r\n", "\n")))


def _named(match: re.Match[str]) -> str:
    code = ord(match[0])
    return chr(0x2400 + code) if code < 32 else f"⟨U+{code:04X}⟩"


# ── what templates call ───────────────────────────────────────────────────────────────────────────────────────────


def moment(at: float | None) -> Markup:
    """A time: in UTC, and where scripts run, as the reader's own clock has it."""
    if at is None:
        return Markup("–")
    try:
        when = datetime.datetime.fromtimestamp(at, datetime.UTC)
    except (ValueError, OverflowError, OSError):
        return Markup("–")
    shown = f"{when.day} {when:%b %H:%M}"
    return Markup('<time datetime="{}" title="{} UTC">{} UTC</time>').format(
        when.strftime("%Y-%m-%dT%H:%M:%SZ"), when.strftime("%Y-%m-%d %H:%M:%S"), shown
    )


def duration(seconds: float | None) -> str:
    """As short as it is still told apart: 40 ms, 1.2 s, 48 s, 3 min, 2.5 h, 3 d."""
    if seconds is None:
        return "–"
    if seconds < 0.9995:
        return f"{max(seconds, 0) * 1000:.0f} ms"
    for most, unit, size in ((99.5, "s", 1.0), (5_940, "min", 60.0), (172_800, "h", 3_600.0)):
        if seconds < most:
            value = seconds / size
            return f"{value:.1f} {unit}" if value < 9.95 else f"{value:.0f} {unit}"
    return f"{seconds / 86_400:.0f} d"


def money(cost: float | None) -> str:
    """Dollars; "unknown" where a price is."""
    if cost is None:
        return "unknown"
    return "$0" if not cost else f"${cost:.4f}" if cost < 1 else f"${cost:,.2f}"


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def segment(id: str) -> str:
    """An id as one part of a path."""
    return quote(id.encode("utf-8", "replace"), safe="")


def beginning(text: str, most: int = 160) -> str:
    """In one line, the beginning of a text."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def web_address(source: str) -> str:
    """The address, if it is one of the web; else nothing, for it must not become a link."""
    try:
        parts = urlsplit(source.strip())
    except ValueError:
        return ""
    return source.strip() if parts.scheme in ("http", "https") and parts.netloc else ""


def plural(count: int, noun: str) -> str:
    """ "1 memory", "2 memories"."""
    several = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{count:,} {noun if count == 1 else several}"


def version_label(name: str) -> str:
    """`planner-3f9ac2-v000007` as "v7"; the model as it came has no name."""
    number = name.rpartition("-v")[2]
    return f"v{int(number)}" if number.isdecimal() else name or "base"


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        finalize=visible,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name, call in (
        ("moment", moment),
        ("duration", duration),
        ("money", money),
        ("percent", percent),
        ("segment", segment),
        ("beginning", beginning),
        ("web_address", web_address),
        ("plural", plural),
        ("version_label", version_label),
        ("describe_call", describe_call),
    ):
        environment.filters[name] = call
    return environment


_TEMPLATES = _environment()


# ── pages ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def page(request: Request, template: str, *, status: int = 200, **values: Any) -> HTMLResponse:
    """A page, or a part of one."""
    closed = request.app.state.gate.closed
    text = render(template, request, principal=request.state.principal, closed=closed, **values)
    # Under "no-referrer" a browser keeps the origin of a form to itself, and the guard could not tell whose it is.
    headers = {"referrer-policy": "same-origin"}
    if status == 503:
        headers["retry-after"] = str(RETRY_SECONDS)
    return HTMLResponse(text, status, headers)


def render(template: str, request: Request, *, principal: Principal, closed: bool, **values: Any) -> str:
    """The text of a page, for `principal`; `closed`: whether this server asks for a token."""
    given = {"request_path": request.url.path, "principal": principal, "closed": closed, "version": mia.__version__}
    return _TEMPLATES.get_template(template).render(given | values)


def by_htmx(request: Request) -> bool:
    """Whether a part of a page is wanted."""
    return request.headers.get("hx-request") == "true"


def see_other(address: str) -> RedirectResponse:
    """After a change, where to look at what came of it."""
    return RedirectResponse(address, 303)


def slice_of(rows: Sequence[T], limit: int) -> tuple[Sequence[T], bool]:
    """The first `limit` rows, and whether there are more: one more than that was asked for."""
    return rows[:limit], len(rows) > limit


class PageRoute(APIRoute):
    """A route whose errors are pages, with the status that the API would give."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handled(request: Request) -> Response:
            try:
                return await handle(request)
            except MiaError as error:
                return _trouble(request, status_of(error), error.got, error.wanted, error.hint)
            except RequestValidationError as error:
                first = faults(error.errors())[0]
                return _trouble(request, 422, first.got, first.wanted)

        return handled


def _trouble(request: Request, status: int, got: str, wanted: str = "", hint: str = "") -> Response:
    template = "_trouble.html" if by_htmx(request) else "trouble.html"
    return page(request, template, status=status, code=status, got=got, wanted=wanted, hint=hint, request_id="")


def htmx() -> Callable[[Request], Awaitable[Response]]:
    """Serves htmx out of the package that it was installed with, of which nothing is imported. Raises MissingExtra."""
    found = importlib.util.find_spec("django_htmx")
    places = found.submodule_search_locations if found is not None else None
    path = Path(places[0]) / HTMX if places else None
    if path is None or not path.is_file():
        raise MissingExtra(
            "the dashboard needs the Python package 'django-htmx', for the file of htmx in it.",
            hint=install_hint("service"),
        )

    async def serve(request: Request) -> Response:
        return FileResponse(path, media_type="text/javascript")

    return serve
