"""Sessions of the dashboard: a browser that has shown a token holds a random id instead of it. They end with the
server, and after half a day."""

from __future__ import annotations

import secrets
import time

from mia.service.auth import Gate, Principal

COOKIE = "mia_session"
LASTS = 12 * 3600.0
_MOST = 1_000


class Sessions:
    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._open: dict[str, tuple[str, float]] = {}
        """Session → its token and when it ends; a token that is taken back ends it."""

    def begin(self, token: str) -> str:
        """Returns the session's id. Raises Unauthorized."""
        self._gate.principal(token)
        now = time.monotonic()
        self._open = {id: one for id, one in self._open.items() if one[1] > now}
        while len(self._open) >= _MOST:
            del self._open[next(iter(self._open))]
        id = secrets.token_urlsafe(32)
        self._open[id] = (token, now + LASTS)
        return id

    def principal(self, id: str) -> Principal | None:
        """Whose it is; None: it has ended, or never was. Raises Unauthorized for a token taken back meanwhile."""
        token, ends = self._open.get(id, ("", 0.0))
        if not token or ends <= time.monotonic():
            self._open.pop(id, None)
            return None
        return self._gate.principal(token)

    def end(self, id: str) -> None:
        self._open.pop(id, None)
