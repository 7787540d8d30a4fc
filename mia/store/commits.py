"""Group commit: what several threads want to write at once goes to the disk with one commit.

A commit costs as much for eight pieces of work as for one: it waits for the disk. So each thread puts its work in a
line; the one at its head leads: it takes all that waits, runs it in one transaction, commits for all, wakes them, and
hands the lead to the next in line. Each caller gets its own result or its own error, and none returns before the
commit: if a piece raises, all are rolled back and run again one by one, so a piece of work may run twice. Where there
were several writers a moment ago, the leader gives them a fraction of a commit's time to come with their next piece; a
thread that is alone waits for nobody.
"""

from __future__ import annotations

import signal
import sqlite3
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import FrameType
from typing import Generic, TypeVar

T = TypeVar("T")
W = TypeVar("W")

MOST = 64
"""Pieces in one commit."""
GATHERING_SECONDS = 0.0002
"""How long a leader waits for those who wrote beside it last time."""


class _Piece(Generic[W, T]):
    """One thread's work, and what came of it."""

    def __init__(self, work: Callable[[W], T]) -> None:
        self.work = work
        self.turn = threading.Lock()
        """Released when the piece is done, or is to lead."""
        self.turn.acquire()
        self.leads = False
        """It is its turn to lead."""
        self.done = False
        self.left = False
        """Its thread was interrupted and waits no more."""
        self.result: T
        self.error: BaseException | None = None

    def outcome(self) -> T:
        if self.error is not None:
            raise self.error
        return self.result


class _CtrlCHeldBack:
    """Ctrl-C waits until what was begun is committed: between a commit and its acknowledgement there is no good moment
    for it, and a leader works for other threads too. A second one does not wait; those after it change nothing: it is
    on its way out.

    Only the main thread is ever interrupted, and only where nobody has put a handler of his own.
    """

    def __init__(self) -> None:
        self._noted = 0

    def __enter__(self) -> None:
        self._holds = (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        )
        if self._holds:
            signal.signal(signal.SIGINT, self._note)

    def __exit__(self, *failure: object) -> None:
        if self._holds:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            if self._noted:
                raise KeyboardInterrupt

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._noted += 1
        if self._noted == 2:
            raise KeyboardInterrupt


class Commits(Generic[W]):
    """The line of writers before one connection.

    `transaction` opens the transaction, commits it when its body ends, and rolls back when the body raises; it yields
    what the pieces are handed.
    """

    def __init__(self, connection: sqlite3.Connection, transaction: Callable[[], AbstractContextManager[W]]) -> None:
        self._connection = connection
        self._transaction = transaction
        self._line: list[_Piece[W, object]] = []
        self._led = False
        self._guard = threading.Lock()
        """Over the line and who leads it."""
        self._writers = 1
        """How many wrote at once lately."""
        self._gathered = threading.Event()
        self.writing = threading.Lock()
        """Held while anything is written."""

    def run(self, work: Callable[[W], T]) -> T:
        """Run the work and commit it, perhaps together with others'. Raises what the work raises, or what the commit
        raises; the work has then left no trace."""
        piece: _Piece[W, T] = _Piece(work)
        with _CtrlCHeldBack():
            self._queue_up(piece)
        return piece.outcome()

    def _queue_up(self, piece: _Piece[W, T]) -> None:
        """Return when the piece is done."""
        try:
            with self._guard:
                self._line.append(piece)  # type: ignore[arg-type]
                piece.leads = not self._led
                self._led = True
                if len(self._line) >= self._writers:
                    self._gathered.set()
            if not piece.leads:
                piece.turn.acquire()
            if not piece.done:
                self._lead(piece)
        except BaseException:
            self._leave(piece)
            raise

    def _leave(self, piece: _Piece[W, T]) -> None:
        """Out of the line with an interrupted piece: nobody would take up the lead in its name. One that a leader has
        taken already is his to finish."""
        with self._guard:
            piece.left = True
            if piece in self._line:
                self._line.remove(piece)  # type: ignore[arg-type]
                if piece.leads:
                    self._hand_on()

    def _hand_on(self) -> None:
        """Whoever is at the head of the line leads now. Called under the guard."""
        self._led = bool(self._line)
        if self._led:
            self._line[0].leads = True
            self._line[0].turn.release()

    def _lead(self, own: _Piece[W, T]) -> None:
        """Commit a batch in which our own piece is first, and hand the lead on."""
        batch: list[_Piece[W, object]] = []
        try:
            if self._writers > 1:
                self._gathered.wait(GATHERING_SECONDS)
            with self._guard:
                batch, self._line = self._line[:MOST], self._line[MOST:]
                self._writers = max(len(batch), self._writers - 1)
                self._gathered.clear()
            with self.writing:
                self._commit(batch)
        finally:
            with self._guard:
                # What is not done goes back, except what nobody waits for.
                waiting = [piece for piece in batch if not (piece.done or piece.left)] + self._line
                self._line = [piece for piece in waiting if piece is not own]
                self._hand_on()
            for piece in batch[1:]:
                if piece.done:
                    piece.turn.release()

    def _commit(self, batch: list[_Piece[W, object]]) -> None:
        """Run the pieces and commit; if one of them raises, each in a transaction of its own."""
        try:
            with self._transaction() as writing:
                for piece in batch:
                    piece.result = piece.work(writing)
        except Exception as error:  # noqa: BLE001 - its caller raises it again
            if len(batch) == 1:
                batch[0].error = error
            else:
                for piece in batch:
                    self._commit([piece])
        for piece in batch:
            piece.done = True
