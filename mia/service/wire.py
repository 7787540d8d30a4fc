"""HTTP/1.1 for clients that come to the point: whoever opens a connection and does not say what he wants, or says it a
letter at a time, is let go of. Without this, connections that ask nothing could use up all that there are."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 20.0
"""From the first letter of a request, or the beginning of a connection, to the end of its headers."""


class PunctualProtocol(H11Protocol):
    """As uvicorn speaks it, with a deadline for the head of every request."""

    head_seconds = HEAD_SECONDS
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop_waiting()
        elif self.conn.trailing_data[0]:
            # A part of a head: the clock runs from its first letter, not from its last.
            self._expect_head()
        elif self.cycle is not None:
            # Between two requests; the keep-alive time counts.
            self._stop_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _expect_head(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(self.head_seconds, self._too_late)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_late(self) -> None:
        self._deadline = None
        if not self.transport.is_closing():
            self.transport.close()
