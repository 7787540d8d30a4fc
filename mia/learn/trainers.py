"""Who turns the rollouts of a stream into the next version of the weights.

    InlineTrainer    in a thread of this process; whoever asks waits. With the same rollouts it gives the same weights.
    ProcessTrainer   in a process of its own (`python -m mia.learn.worker`); answering goes on meanwhile

Both read the files of the spool and leave a candidate in the store of versions. Whether it will answer is not theirs to
say. Rollouts that a version was made of already are not learnt twice: after a death, whoever asks again gets that
version. A worker that dies in the middle, even by kill -9, leaves nothing behind but its spool, and is begun anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mia.config import LearnSettings
from mia.errors import LearnError
from mia.learn.adapters import AdapterStore
from mia.learn.rollouts import Rollout
from mia.learn.spool import read_rollouts

if TYPE_CHECKING:
    from mia.learn.learner import Learner

DEATHS = 3
"""Workers that may die over one update before it is given up for now."""
PATIENCE = 60.0
"""Seconds that a worker has to end when it is asked to."""
WEIGHTS = "weights"
"""The subfolder of a version for what others read; beside it lies what the learner goes on from."""


@dataclass(frozen=True)
class Learnt:
    """What came of some rollouts."""

    version: str = ""
    """The candidate; empty: nothing was to be learnt, and the weights are as they were."""
    rollouts: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Why so many rollouts were not learnt from."""
    seconds: float = 0.0


class Trainer(Protocol):
    @property
    def background(self) -> bool:
        """Whether answering goes on while it is at work."""
        ...

    async def update(self, files: Sequence[Path], parent: str, replay: Sequence[Path] = ()) -> Learnt:
        """Learn the rollouts in some files of a spool, from the weights of a version (empty: those to begin with), and
        along with them those in files that were learnt before. Raises LearnError."""
        ...

    async def close(self) -> None: ...


@dataclass(frozen=True)
class Beginning:
    """The weights that a first version is made from."""

    model: str = ""
    """A folder of transformers; empty: the embedded model."""
    adapter: str = ""
    """The folder of a LoRA adapter to go on with; empty: a new one."""
    device: str = "cpu"
    threads: int = 1

    def open(self, settings: LearnSettings) -> Learner:
        """Raises ConfigError, LearnError and MissingExtra."""
        from mia.learn.learner import Learner

        return Learner.open(
            self.model,
            settings,
            device=self.device,
            threads=self.threads,
            adapter=Path(self.adapter) if self.adapter else None,
        )


class Bench:
    """One learner, and the store that its versions go to. Sync; one update at a time."""

    def __init__(self, beginning: Beginning, settings: LearnSettings, store: AdapterStore) -> None:
        self._beginning = beginning
        self._settings = settings
        self._store = store
        self._learner: Learner | None = None
        self._stands_at = ""
        """The version whose weights the learner has."""
        self._lock = threading.Lock()

    def update(self, files: Sequence[Path], parent: str, replay: Sequence[Path] = ()) -> Learnt:
        """As `Trainer.update`."""
        with self._lock:
            begun = time.monotonic()
            rollouts = read_rollouts(files)
            if made := made_of(self._store, rollouts):
                return Learnt(made, len(rollouts))
            learner = self._at(parent)
            self._stands_at = "?"  # Until the update is over, nobody knows.
            update = learner.update(
                rollouts, version_age=version_age(self._store, parent), replay=read_rollouts(replay)
            )
            version = ""
            if update.moved:
                version = self._store.create(parent, partial(_write, learner), rollouts, update.metrics).name
            self._stands_at = version or parent
            return Learnt(version, len(rollouts), update.metrics, update.dropped, time.monotonic() - begun)

    def _at(self, version: str) -> Learner:
        """The learner with the weights of a version, and its optimizer as it was then."""
        if self._learner is None or (self._stands_at != version and not version):
            self._learner, self._stands_at = self._beginning.open(self._settings), ""
        if self._stands_at != version:
            self._learner.restore(self._store.get(version).folder)
            self._stands_at = version
        return self._learner


def _write(learner: Learner, folder: Path) -> None:
    learner.save_weights(folder / WEIGHTS)
    learner.save(folder)


def made_of(store: AdapterStore, rollouts: Sequence[Rollout]) -> str:
    """The version that was made of these very rollouts, and maybe of others; empty if there is none."""
    ids = {rollout.id for rollout in rollouts}
    if not ids:
        return ""
    return next((one.name for one in reversed(store.versions()) if ids.issubset(one.rollouts)), "")


def version_age(store: AdapterStore, parent: str) -> Callable[[str], int]:
    """How many versions before `parent` another one is. What never came to answer, e.g. what was rolled back, counts as
    older than all; a name that no version has is that of the weights to begin with."""
    chain = [parent]
    while chain[-1]:
        chain.append(store.get(chain[-1]).parent)
    known = {version.name for version in store.versions()}

    def age(name: str) -> int:
        if name in chain:
            return chain.index(name)
        return len(chain) if name in known else len(chain) - 1

    return age


class InlineTrainer:
    """Learns in a thread of this process."""

    background = False

    def __init__(self, beginning: Beginning, settings: LearnSettings, store: AdapterStore) -> None:
        self._bench = Bench(beginning, settings, store)

    async def update(self, files: Sequence[Path], parent: str, replay: Sequence[Path] = ()) -> Learnt:
        """Raises LearnError, ConfigError and MissingExtra."""
        return await asyncio.to_thread(self._bench.update, files, parent, replay)

    async def close(self) -> None:
        """Nothing is held but memory."""


class ProcessTrainer:
    """Learns in a process of its own, begun with the first update. It ends with this one, however this one ends."""

    background = True

    def __init__(
        self, beginning: Beginning, settings: LearnSettings, store: AdapterStore, *, log: Path | None = None
    ) -> None:
        """`log`: a file for what the worker says on stderr; None: nobody reads it."""
        self._page = {
            "beginning": asdict(beginning),
            "settings": settings.model_dump(mode="json"),
            "store": {"folder": str(store.folder), "base": store.base, "role": store.role.value},
        }
        self._log = log
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()

    @property
    def pid(self) -> int | None:
        """Of the worker, while there is one."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    async def update(self, files: Sequence[Path], parent: str, replay: Sequence[Path] = ()) -> Learnt:
        """Raises LearnError: what the worker met, or that too many of them died."""
        job = {"files": [str(path) for path in files], "parent": parent, "replay": [str(path) for path in replay]}
        async with self._turn:
            for _ in range(DEATHS):
                reply = await self._ask(job)
                if reply is not None:
                    return _learnt(reply)
        told = f"its last words are in '{self._log}'" if self._log else "look at the memory of this machine"
        raise LearnError(
            f"the process that trains died {DEATHS} times over one update.",
            hint=f"{told}; nothing is lost: the rollouts wait, and the last good version answers",
        )

    async def close(self) -> None:
        """Let the worker finish, and end it."""
        process, self._process = self._process, None
        if process is None or process.returncode is not None:
            return
        assert process.stdin is not None
        with contextlib.suppress(OSError):
            process.stdin.write(b"null\n")
            await process.stdin.drain()
        try:
            async with asyncio.timeout(PATIENCE):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()

    async def _ask(self, job: Mapping[str, Any]) -> dict[str, Any] | None:
        """One job, done by the worker; None if it died."""
        process = self._process
        try:
            if process is None or process.returncode is not None:
                process = await self._begin()
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps(job).encode() + b"\n")
            await process.stdin.drain()
            line = await process.stdout.readline()
        except OSError:
            line = b""
        except asyncio.CancelledError:
            # Its answer would be taken for the next one's.
            if process is not None and process.returncode is None:
                process.kill()
            raise
        if not line.endswith(b"\n"):
            if process is not None:
                await process.wait()
            self._process = None
            return None
        reply: dict[str, Any] = json.loads(line)
        return reply

    async def _begin(self) -> asyncio.subprocess.Process:
        """Raises OSError."""
        with contextlib.ExitStack() as files:
            log = files.enter_context(self._log.open("ab")) if self._log else asyncio.subprocess.DEVNULL
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "mia.learn.worker"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                # A Ctrl-C at the terminal is for whoever answers; the worker ends after it. Not a session of its own,
                # which Linux may give as much of the processor as all of ours, however nice it is.
                process_group=0,
            )
        self._process = process
        assert process.stdin is not None
        process.stdin.write(json.dumps(self._page).encode() + b"\n")
        await process.stdin.drain()
        return process


def _learnt(reply: Mapping[str, Any]) -> Learnt:
    """Raises LearnError for what the worker met."""
    if "error" in reply:
        raise LearnError(reply["error"], wanted=reply.get("wanted", ""), hint=reply.get("hint", ""))
    return Learnt(**reply)
