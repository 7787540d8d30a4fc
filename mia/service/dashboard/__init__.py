"""The dashboard: pages that a browser reads, beside the API and from the same service (docs/dashboard.md).

Always true: a page is whole without JavaScript, and htmx only renews parts of it; all text from outside is escaped and
its control characters are made visible (`rendering.py`); nothing is loaded from elsewhere; no GET changes anything; and
nobody sees what is of a scope that is not his.
"""

from __future__ import annotations

from fastapi import FastAPI
from starlette.staticfiles import StaticFiles

from mia.service.dashboard import asking, episodes, learning, live, login, memories, queue, reference, status
from mia.service.dashboard.rendering import HERE, htmx


def install(app: FastAPI) -> None:
    """Give an app its pages, and `/static`. Raises MissingExtra."""
    app.state.asking = asking.Asking()
    for part in (live, asking, episodes, memories, learning, queue, status, reference, login):
        app.include_router(part.router)
    # The one file that is not ours lies in the package it was installed with.
    app.add_route("/static/htmx.js", htmx(), include_in_schema=False)
    app.mount("/static", StaticFiles(directory=HERE / "static"), name="static")
