"""When what waits in the queue is tried again.

Each entry has a time of its own, before which nothing tries it by itself. The first is a minute after it failed; with
every failure the wait doubles, up to a day. What cannot succeed as things are, such as an episode that is too long for
the window of its model, is given up: it stays to be seen, and is tried only where somebody asks for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from mia.store.base import Waiting

FIRST_DELAY = 60.0
"""Seconds before the second try; doubled each time."""
LONGEST_DELAY = 86_400.0


def delay(attempts: int, *, hopeless: bool = False) -> float:
    """Seconds to wait after one more failure, with so many before it; infinite for what is given up."""
    return math.inf if hopeless else min(FIRST_DELAY * 2.0 ** min(attempts, 32), LONGEST_DELAY)


def due(waiting: Sequence[Waiting], now: float) -> Sequence[Waiting]:
    """Those whose time has come; also where the clock was put back since they were put off."""
    return [one for one in waiting if seconds_left(one, now) <= 0]


def seconds_left(one: Waiting, now: float) -> float:
    """Until an entry is due, at least 0; infinite where it was given up."""
    if one.given_up:
        return math.inf
    left = one.retry_at - now
    return 0.0 if left > LONGEST_DELAY else max(0.0, left)
