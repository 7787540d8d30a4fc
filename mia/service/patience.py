"""A question of a job whose model cannot be asked waits until it can, instead of failing: an endpoint that is down at
night is up in the morning.

It is put again later and later. An endpoint that is down for all is waited for long; a question that a model answers in
part, or does not answer while it answers others, is let go after some tries: each of them may cost something.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

FIRST = 1.0
"""Seconds until the second try."""
LONGEST = 60.0
"""Seconds between two tries, at most."""
LONG = 24 * 3600.0
"""Seconds for which a question waits, whatever happens to others."""
TRIES = 10
"""Of a question, while a model is reached for parts of it or for others."""


class Patience:
    """Of one question."""

    def __init__(self, heard: Callable[[], int], *, clock: Callable[[], float] = time.monotonic) -> None:
        """`heard`: how many questions a model was reached for since the start, of all that were asked."""
        self._heard = heard
        self._clock = clock
        self._since = clock()
        self._tries = 0
        self._tries_answered = 0
        """Those while which a model answered something."""
        self._heard_before = heard()

    def pause(self, *, in_part: bool = False) -> float | None:
        """After a try that was broken off: seconds until the next one; None: it is not to be tried any more.
        `in_part`: a model had answered something until then."""
        self._tries += 1
        heard, before = self._heard(), self._heard_before
        self._heard_before = heard
        self._tries_answered += in_part or heard != before
        if self._tries_answered >= TRIES or self._clock() - self._since >= LONG:
            return None
        # Those that were broken off together need not come back together.
        return min(LONGEST, FIRST * 2.0 ** (self._tries - 1)) * random.uniform(0.5, 1.0)
