"""Real processes for stories, fast: a nursery imports MIA once and forks a worker for each piece of work.

A worker has a process id, standard streams and memory of its own; it can be killed, and ends with an exit status, like
any other process. Only the time for the imports is saved, so that a story can afford hundreds of them. What workers do
is told in `memory_work.py`.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Self

from program import Ended

PATIENCE = 120.0
"""Seconds that a story waits for a worker at most."""
_MESSAGE = 65_536
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
"""A fork must find no other thread at work."""


@dataclass
class Worker:
    """One process at work."""

    pid: int
    stdin: IO[str]
    stdout: IO[str]
    stderr: IO[str]
    _nursery: Nursery = field(repr=False)
    _status: int | None = None

    def say(self, *words: object) -> None:
        """One line to its stdin."""
        self.stdin.write(f"{' '.join(map(str, words))}\n")
        self.stdin.flush()

    def hear(self) -> str:
        """One line of its stdout; empty when it has ended."""
        return self.stdout.readline().removesuffix("\n")

    def kill(self) -> None:
        """`kill -9`, and wait until it is gone."""
        os.kill(self.pid, signal.SIGKILL)
        self.wait()

    def wait(self) -> int:
        """Its exit status; of one that a signal ended, the number of the signal, negative."""
        if self._status is None:
            self._status = self._nursery.ask({"wait": self.pid})["status"]
        return self._status

    def finish(self) -> list[str]:
        """Close its stdin, wait for its end, and return the rest of what it said, line by line."""
        self.stdin.close()
        said = self.stdout.read().splitlines()
        errors = self.stderr.read()
        assert self.wait() == 0, errors
        return said

    def ended(self) -> Ended:
        """All that a command said, and its exit status."""
        self.stdin.close()
        stdout, stderr = self.stdout.read(), self.stderr.read()
        return Ended(self.wait(), stdout, stderr)

    def close(self) -> None:
        if self._status is None:
            self.kill()
        for stream in (self.stdin, self.stdout, self.stderr):
            # It may have ended without having read all that it was told.
            with suppress(BrokenPipeError):
                stream.close()


class Nursery:
    """Where workers come from. `inside`: the beginning of a command that runs another one in surroundings of its own;
    all workers live in these then. `imports`: modules that are imported once for all of them."""

    def __init__(self, *inside: str, imports: Sequence[str] = ()) -> None:
        self._socket, theirs = socket.socketpair()
        self._socket.settimeout(PATIENCE)
        arguments = [*inside, sys.executable, __file__, str(theirs.fileno()), *imports]
        paths = [*map(str, Path(__file__).parents[:2]), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, **_ONE_THREAD, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        self._process = subprocess.Popen(arguments, pass_fds=[theirs.fileno()], env=environment)
        theirs.close()
        self._workers: list[Worker] = []

    def start(self, work: str, *, stdin: int = -1, stdout: int = -1, **arguments: object) -> Worker:
        """A worker for one of the works of `memory_work.py`. `stdin`, `stdout`: file descriptors that it takes instead
        of pipes to us; they are closed here."""
        its_stdin, our_stdin = (stdin, os.open(os.devnull, os.O_WRONLY)) if stdin >= 0 else os.pipe()
        our_stdout, its_stdout = (os.open(os.devnull, os.O_RDONLY), stdout) if stdout >= 0 else os.pipe()
        our_stderr, its_stderr = os.pipe()
        theirs = [its_stdin, its_stdout, its_stderr]
        try:
            pid = self.ask({"work": work, "arguments": arguments}, theirs)["pid"]
        finally:
            for descriptor in theirs:
                os.close(descriptor)
        streams = [
            os.fdopen(descriptor, mode, encoding="utf-8")
            for descriptor, mode in ((our_stdin, "w"), (our_stdout, "r"), (our_stderr, "r"))
        ]
        worker = Worker(pid, *streams, _nursery=self)
        self._workers.append(worker)
        return worker

    def do(self, work: str, **arguments: object) -> list[str]:
        """What a worker says, from its beginning to its good end."""
        return self.start(work, **arguments).finish()

    def mia(self, *arguments: object, **settings: str) -> Ended:
        """A command of the program, as `mia …`; `settings` are variables of its environment."""
        return self.start("cli", arguments=[*map(str, arguments)], settings=settings).ended()

    def ask(self, request: dict[str, Any], descriptors: Sequence[int] = ()) -> dict[str, Any]:
        """One request to the nursery's own process."""
        socket.send_fds(self._socket, [json.dumps(request).encode()], descriptors)
        reply: dict[str, Any] = json.loads(self._socket.recv(_MESSAGE))
        return reply

    def sweep(self) -> None:
        """End whoever is left."""
        for worker in self._workers:
            worker.close()
        self._workers.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self.sweep()
        self._socket.close()
        self._process.kill()
        self._process.wait()


# ── the nursery's own process ─────────────────────────────────────────────────────────────────────────────────────


def serve(descriptor: int, imports: Sequence[str]) -> None:
    """Fork workers until the story has gone."""
    import memory_work

    for module in imports:
        importlib.import_module(module)

    with socket.socket(fileno=descriptor) as line:
        while True:
            message, descriptors, _, _ = socket.recv_fds(line, _MESSAGE, 3)
            if not message:
                return
            request = json.loads(message)
            if "wait" in request:
                _, status = os.waitpid(request["wait"], 0)
                line.send(json.dumps({"status": os.waitstatus_to_exitcode(status)}).encode())
                continue
            pid = os.fork()
            if not pid:
                line.detach()
                os.close(descriptor)
                _work(getattr(memory_work, request["work"]), request["arguments"], descriptors)
            for one in descriptors:
                os.close(one)
            line.send(json.dumps({"pid": pid}).encode())


def _work(work: Any, arguments: dict[str, Any], descriptors: Sequence[int]) -> None:
    """The life of a worker."""
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    # The old ones remember what kind of file was behind their numbers.
    sys.stdin, sys.stdout, sys.stderr = (
        os.fdopen(number, mode, encoding="utf-8", closefd=False) for number, mode in enumerate("rww")
    )
    code = 1
    try:
        work(**arguments)
        code = 0
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else int(left.code is not None)
    except BaseException:  # noqa: BLE001 - it is told, and shows in the exit status
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve(int(sys.argv[1]), sys.argv[2:])
