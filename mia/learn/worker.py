"""The process that trains while another one answers: `python -m mia.learn.worker`.

It is told what to do on stdin, a JSON object a line: first what it trains, then one job after the other; `null` ends
it. Each job is answered with a line on stdout. When its stdin ends without `null`, whoever began it has died, and it
ends at once, even in the middle of an update: a version is in the store whole or not at all. It steps back behind
everybody else who wants the processor.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from mia.config import LearnSettings
from mia.errors import MiaError
from mia.learn.adapters import AdapterStore
from mia.learn.trainers import Beginning, Bench
from mia.types import Role

NICENESS = 5
"""Answers come first."""


def main() -> None:
    """Work until told to end."""
    # Libraries print; what they print must not be taken for an answer.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    os.nice(NICENESS)
    jobs: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(sys.stdin, jobs), daemon=True).start()
    page = jobs.get()
    if page is None:
        return
    bench: Bench | None = None
    while (job := jobs.get()) is not None:
        try:
            bench = bench or _bench(page)
            files, replay = ([Path(path) for path in job[name]] for name in ("files", "replay"))
            reply = asdict(bench.update(files, job["parent"], replay))
        except MiaError as error:
            reply = {"error": error.got, "wanted": error.wanted, "hint": error.hint}
        answers.write(json.dumps(reply) + "\n")
        answers.flush()


def _bench(page: Mapping[str, Any]) -> Bench:
    store = page["store"]
    return Bench(
        Beginning(**page["beginning"]),
        LearnSettings(**page["settings"]),
        AdapterStore(Path(store["folder"]), store["base"], Role(store["role"])),
    )


def _listen(lines: IO[str], jobs: queue.SimpleQueue[dict[str, Any] | None]) -> None:
    for line in lines:
        job = json.loads(line)
        jobs.put(job)
        if job is None:
            return
    os._exit(1)


if __name__ == "__main__":
    main()
