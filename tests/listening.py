"""A service that listens on loopback, in a thread of its own, for clients that need a socket."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from mia.service.app import create_app
from mia.service.core import Service


@contextmanager
def listening(service: Service, **options: Any) -> Iterator[str]:
    """Gives its address, `http://127.0.0.1:PORT`. `options`: of uvicorn."""
    config = uvicorn.Config(create_app(service), **({"host": "127.0.0.1", "port": 0, "log_level": "error"} | options))
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        until(lambda: server.started)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


def until(holds: Callable[[], bool], seconds: float = 10.0) -> None:
    """Waits for something to hold."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come to hold"
        time.sleep(0.01)
