"""The memory's queue, worked off by the clock: what a model could not do is tried again when its time has come, whether
or not anybody asks a question meanwhile.

A few entries at a time, each no earlier than its own time (`mia/memory/waiting.py`). While nothing succeeds, the rest
of what is due waits a little, so that an endpoint that is down is not asked for all of it in a row.
"""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from typing import TYPE_CHECKING

from mia.errors import MiaError
from mia.memory.retrying import Retried
from mia.memory.waiting import due, seconds_left
from mia.models.ledger import Ledger
from mia.redaction import Redactor
from mia.team import budget

if TYPE_CHECKING:
    from mia.service.core import Service

log = logging.getLogger("mia.service")

LOOK = 30.0
"""Seconds after which the queue is looked at again, whatever is in it: another process may fill it."""
BREATH = 1.0
"""Seconds between two looks, at least."""


async def retry_when_due(service: Service) -> None:
    """For ever, for all scopes."""
    redactor = Redactor(service.config.memory.redact)
    while True:
        try:
            pause = await _retry(service)
        except MiaError as error:
            log.error("what waits for a model could not be worked off: %s", error.got)
            pause = LOOK
        except Exception:  # noqa: BLE001 - what one entry meets must not end the work on all others
            log.error("what waits for a model: %s", redactor(traceback.format_exc()))
            pause = LOOK
        await asyncio.sleep(min(LOOK, max(BREATH, pause)))


async def _retry(service: Service) -> float:
    """Work off a little of each scope; seconds until there may be more to do. Raises StoreError, ConfigError."""
    waiting = await asyncio.to_thread(service.store.queue)
    now = time.time()
    total = Retried()
    for scope in sorted({one.scope for one in due(waiting, now)}):
        ledger = Ledger("queue", budget=budget(service.config.budget.run))
        total += await service.memory(scope).retry_due(ledger)
    if total.done or total.dropped:
        return 0.0
    if total.failed:
        return LOOK
    # What is due and was not tried is being worked on by somebody else.
    return min((left for one in waiting if (left := seconds_left(one, now))), default=LOOK)
