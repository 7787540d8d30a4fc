"""Sampling for many conversations at once, in one thread: a request joins the running batch, a finished row leaves it.

Each turn of the loop reads the prompts that wait (those of like length together, and of a known beginning only what is
new) and then samples one token for every row. A row knows nothing of the others:

- It draws from a generator of its own, so that its tokens depend on its request and its seed alone.
- Numbers do depend on company, in their last digits: a matrix product of 32 rows rounds otherwise than one of a single
  row. Where a choice is so close that this could decide it, the row's next token is computed once more, alone and from
  its tokens, and that result counts. So in float32 the tokens do not depend on the batch at all; logprobs agree to
  about 1e-5 (`tests/models/test_models_sampling.py`). In lower precision there is no such promise.

Whatever fails in here fails the requests it concerns with a `ModelError`; the thread goes on.
"""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import numpy
import torch

from mia.errors import ModelError, ModelUnavailable
from mia.models.slots import Finished, Slots
from mia.models.weights import Weights

T = TypeVar("T")

REUSE_BYTES = 128 << 20
"""Keys and values of ended conversations that are kept."""
_LOGIT_TOLERANCE = 1e-4
"""Logits closer than this share of the greatest are weighed again alone. Rounding moved them by less than a tenth of it
in 22 architectures with random weights."""
_SHARE_TOLERANCE = 5e-5
"""The same for probabilities added up, at temperature 1."""
_PREFILL_TOKENS = 2048
"""Tokens that one call of the network reads: more costs memory and gains nothing."""
_PADDING = 1.25
"""Prompts share a call where the longest is at most this many times the shortest."""
_IDLE_BYTES_KEPT = 256 << 20


@dataclass(frozen=True)
class Sampled:
    """What came of one request."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    ended: Literal["stop", "length"]
    version: str = ""
    """The weights of the network when the row joined (`Weights.version`)."""


@dataclass(eq=False)
class Job:
    """One request, as token ids. The two callbacks are called in the sampling thread and must not block."""

    prompt_ids: tuple[int, ...]
    max_tokens: int
    done: Callable[[Sampled | BaseException], None]
    """Called once, with the result or what went wrong; not at all for a job that was cancelled."""
    take: Callable[[int], bool] = lambda _: False
    """Called with each token but the end of the turn; True ends the reply."""
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    adapter: str = ""
    cancelled: bool = False


@dataclass(eq=False)
class _Row:
    """A job in the batch."""

    job: Job
    random: random.Random
    version: str = ""
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    failure: BaseException | None = None
    ended: Literal["stop", "length"] | None = None
    read: int = 0
    """Tokens whose keys and values stand in the slot."""
    draw: float = 0.0
    """The random number for the next token."""

    @property
    def leaves(self) -> bool:
        return self.ended is not None or self.failure is not None or self.job.cancelled

    def report(self) -> None:
        """Tell who asked."""
        if self.failure is not None:
            self.job.done(self.failure)
        elif self.ended is not None:
            self.job.done(Sampled(tuple(self.ids), tuple(self.logprobs), self.ended, self.version))

    def sequence(self) -> Any:
        return numpy.array((*self.job.prompt_ids, *self.ids), dtype=numpy.int64)


class Sampler:
    """The thread and its batch. Safe to call from any thread."""

    def __init__(self, weights: Weights, *, batch: int = 32, threads: int = 1, reuse_bytes: int = REUSE_BYTES) -> None:
        """`batch`: rows at most. `threads`: of torch, for the whole process, on a CPU."""
        self.weights = weights
        self.steps = 0
        """Calls of the network for new tokens so far."""
        self.weighed = 0
        """Tokens so far whose choice was so close that it was made once more, alone."""
        self.read_tokens = 0
        """Prompt tokens that the network read, those found again not counted."""
        self._batch = batch
        self._threads = threads
        self._slots = Slots(weights.network.config.get_text_config().num_hidden_layers)
        self._finished = Finished(reuse_bytes)
        self._rows: list[_Row] = []
        self._waiting: deque[Job] = deque()
        self._calls: list[tuple[Callable[[], Any], Future[Any], str]] = []
        self._changes: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._closed = False
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None
        self._exact = weights.network.dtype == torch.float32

    # ── from other threads ────────────────────────────────────────────────────────────────────────────────────────

    def submit(self, job: Job) -> None:
        """Queue a job. Raises ModelUnavailable after `close`."""
        with self._wake:
            self._refuse_when_closed()
            self._waiting.append(job)
            self._start()

    def cancel(self, job: Job) -> None:
        """Let a job leave the batch at the next step; `done` is not called any more."""
        with self._wake:
            job.cancelled = True
            self._wake.notify()

    def call(self, function: Callable[[], T], *, after: str = "") -> Future[T]:
        """Run something between two steps, in the sampling thread; with `after` not before the last request with that
        adapter has ended. Raises ModelUnavailable after `close`."""
        future: Future[T] = Future()
        with self._wake:
            self._refuse_when_closed()
            self._calls.append((function, future, after))
            self._start()
        return future

    def change(self, function: Callable[[], T]) -> Future[T]:
        """Run something in the sampling thread while nothing is sampled: rows of the batch end first, and what waits
        joins afterwards. What was kept of conversations is dropped. Raises ModelUnavailable after `close`."""
        future: Future[T] = Future()
        with self._wake:
            self._refuse_when_closed()
            self._changes.append((function, future))
            self._start()
        return future

    def forget(self, adapter: str) -> None:
        """Drop what was kept of an adapter's conversations; in the sampling thread."""
        self._finished.forget(adapter)

    def close(self, timeout: float = 10.0) -> None:
        """End the thread after its present step; what is under way fails. Calling it twice is harmless."""
        with self._wake:
            self._closed = True
            self._wake.notify()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)

    def _refuse_when_closed(self) -> None:
        if self._closed:
            raise ModelUnavailable(f"the model {self.weights.name} is closed.", hint="build the models anew")

    def _start(self) -> None:
        if self._thread is None:
            # A daemon: a program that forgets to close must still be able to end.
            self._thread = threading.Thread(target=self._run, name=f"sampling {self.weights.name}", daemon=True)
            self._thread.start()
        self._wake.notify()

    # ── the loop ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _run(self) -> None:
        torch.set_num_threads(self._threads)
        died: BaseException | None = None
        try:
            with torch.inference_mode():
                while (new := self._next()) is not None:
                    self._guard(new, self._join, new)
                    self._sweep()
                    if self._rows:
                        self._guard(tuple(self._rows), self._step)
                        self._sweep()
        except BaseException as error:
            died = error
            raise
        finally:
            self._end(died)

    def _end(self, died: BaseException | None) -> None:
        """Nobody is left waiting when the thread is gone. `died`: of what, where it was not closed."""
        with self._wake:
            self._closed = True
            jobs = [*(row.job for row in self._rows), *self._waiting]
            futures = [*(future for _, future, _ in self._calls), *(future for _, future in self._changes)]
            self._rows, self._waiting, self._calls, self._changes = [], deque(), [], deque()
        how = f"ended ({type(died).__name__}: {str(died)[:300]})" if died is not None else "was closed"
        gone = ModelUnavailable(
            f"the model {self.weights.name} {how} while it was answering.", hint="build the models anew"
        )
        for job in jobs:
            if not job.cancelled:
                self._guard((), job.done, gone)
        for future in futures:
            if future.set_running_or_notify_cancel():
                future.set_exception(gone)
        self._slots.release()
        self._finished.clear()

    def _next(self) -> list[_Row] | None:
        """Wait until there is something to do; run what was to be run between two steps; the rows that join now. None:
        the sampler is closed."""
        while True:
            with self._wake:
                if not (self._rows or self._waiting or self._calls or self._changes or self._closed):
                    self._wake.wait()
                if self._closed:
                    return None
                used = {row.job.adapter for row in self._rows}
                used |= {job.adapter for job in self._waiting if not job.cancelled}
                calls = [call for call in self._calls if not call[2] or call[2] not in used]
                self._calls = [call for call in self._calls if call not in calls]
                changes: list[tuple[Callable[[], Any], Future[Any]]] = []
                if not self._rows:
                    changes, self._changes = list(self._changes), deque()
            for function, future, _ in calls:
                _resolve(future, function)
            for function, future in changes:
                self._finished.clear()
                _resolve(future, function)
            with self._wake:
                new: list[_Row] = []
                while self._waiting and not self._changes and len(self._rows) + len(new) < self._batch:
                    job = self._waiting.popleft()
                    if not job.cancelled:
                        new.append(_Row(job, random.Random(job.seed), self.weights.version))
            if new or self._rows:
                return new

    def _guard(self, rows: Sequence[_Row], work: Callable[..., None], *arguments: Any) -> None:
        """Do one piece of work for these rows; a failure is theirs."""
        try:
            work(*arguments)
        except Exception as error:  # noqa: BLE001 — the one place that records it: out of memory, a broken layer, a bug.
            failure = ModelError(
                f"{self.weights.name} failed while sampling ({type(error).__name__}: {str(error)[:300]}).",
                hint="if memory ran out, lower models.*.batch or models.*.context_window",
            )
            failure.__cause__ = error
            for row in rows:
                row.failure = row.failure or failure

    def _sweep(self) -> None:
        """Let rows leave: keep what may be begun from again, close the gap, tell who asked."""
        failed = False
        for slot in range(len(self._rows) - 1, -1, -1):
            row = self._rows[slot]
            if not row.leaves:
                continue
            if row.failure is not None:
                failed = True
                self._slots.wipe(slot)
            else:
                kept = row.sequence()[: row.read]
                self._guard((), self._finished.keep, kept, row.job.adapter, self._slots, slot)
            last = self._rows.pop()
            if last is not row:
                self._rows[slot] = last
                self._slots.move(len(self._rows), slot, last.read)
            if not row.job.cancelled:
                self._guard((), row.report)
        # After a failure too: what was wanted may be more than there is memory for, and must not be wanted for good.
        if not self._rows and (failed or self._slots.bytes > _IDLE_BYTES_KEPT):
            self._slots.release()

    # ── joining ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _join(self, new: list[_Row]) -> None:
        """Read the prompts of new rows, and sample the first token of each."""
        if not new:
            return
        base = len(self._rows)
        self._rows += new
        twins: dict[tuple[str, tuple[int, ...]], list[_Row]] = {}
        for row in new:
            twins.setdefault((row.job.adapter, row.job.prompt_ids), []).append(row)
        found = []
        for first, *others in twins.values():
            ids = first.sequence()
            kept = self._finished.find(ids, first.job.adapter)
            found.append((len(ids) - (kept[1] if kept else 0), first, others, ids, kept))
        found.sort(key=lambda each: each[0])
        # Rows that are read together stand together; those with the same prompt take it from their leader.
        leaders = [each[1] for each in found]
        self._rows[base:] = [*leaders, *(row for each in found for row in each[2])]
        longest = max(len(row.job.prompt_ids) for row in new)
        self._slots.reserve(min(self._batch, _power(len(self._rows))), longest + longest // 4 + 1)
        for slot, (_, first, _, _, kept) in enumerate(found, start=base):
            if kept is not None:
                self._slots.put(slot, *kept)
                first.read = kept[1]
        logits: dict[_Row, Any] = {}
        for start, end in _groups([each[0] for each in found]):
            group = leaders[start:end]
            self._guard(group, self._prefill, base + start, group, logits)
        slot = base + len(found)
        for source, (_, first, others, _, _) in enumerate(found, start=base):
            for row in others:
                row.failure = first.failure
                if first in logits:
                    self._slots.move(source, slot, first.read)
                    row.read = first.read
                    logits[row] = logits[first]
                slot += 1
        read = [row for row in new if row in logits]
        if read:
            self._choose(read, torch.stack([logits[row] for row in read]))

    def _prefill(self, first: int, rows: list[_Row], logits: dict[_Row, Any]) -> None:
        """Read the prompts of rows in slots that stand in a row, in pieces where they are long; add the logits behind
        each prompt's last token."""
        piece = max(_PREFILL_TOKENS // len(rows), 16)
        while any(row.read < len(row.job.prompt_ids) for row in rows):
            # Rows that are through stand at the front: they have the shortest rest.
            through = sum(row.read == len(row.job.prompt_ids) for row in rows)
            first, rows = first + through, rows[through:]
            ids = [row.job.prompt_ids[row.read : row.read + piece] for row in rows]
            starts = [row.read for row in rows]
            queries = max(map(len, ids))
            length = max(starts) + queries
            self._slots.reserve(0, length)
            self._slots.prefill(first, starts, length)
            padded = torch.tensor([[*row, *([0] * (queries - len(row)))] for row in ids], device=self.weights.device)
            positions = torch.tensor(starts, device=padded.device)[:, None] + torch.arange(
                queries, device=padded.device
            )
            keep = sorted({len(row) - 1 for row in ids})
            output = self.weights.forward(
                padded,
                positions,
                cache=self._slots.cache,
                length=length,
                keep=torch.tensor(keep, device=padded.device),
                adapters=[row.job.adapter for row in rows],
            )
            for number, (row, part) in enumerate(zip(rows, ids, strict=True)):
                row.read += len(part)
                self.read_tokens += len(part)
                if row.read == len(row.job.prompt_ids):
                    logits[row] = output[number, keep.index(len(part) - 1)]

    # ── sampling ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _step(self) -> None:
        """Read the last token of every row, and sample the next one."""
        rows = self._rows
        columns = torch.tensor([row.read for row in rows], device=self.weights.device)
        length = max(row.read for row in rows) + 1
        self._slots.reserve(0, length)
        self._slots.step(torch.arange(len(rows), device=columns.device), columns, length)
        logits = self.weights.forward(
            torch.tensor([row.ids[-1:] for row in rows], device=columns.device),
            columns[:, None],
            cache=self._slots.cache,
            length=length,
            adapters=[row.job.adapter for row in rows],
        )
        for row in rows:
            row.read += 1
        self.steps += 1
        self._choose(rows, logits[:, -1])

    def _choose(self, rows: Sequence[_Row], logits: Any) -> None:
        """Give every row its next token. `logits`: [rows, vocabulary]."""
        for row in rows:
            if row.job.temperature > 0:
                row.draw = row.random.random()
        for row, (token, logprob, close) in zip(rows, choose(rows, logits), strict=True):
            # Who drew without a seed cannot ask for the same again.
            if close and self._exact and (row.job.temperature == 0 or row.job.seed is not None):
                self.weighed += 1
                self._guard((row,), self._take_alone, row)
            else:
                self._take(row, int(token), logprob)

    def _take_alone(self, row: _Row) -> None:
        """Choose the row's next token once more, computed as if no other row and no kept beginning existed."""
        ids = torch.from_numpy(row.sequence())[None].to(self.weights.device)
        positions = torch.arange(ids.shape[1], device=ids.device)[None]
        logits = self.weights.forward(ids, positions, adapters=[row.job.adapter])
        ((token, logprob, _),) = choose([row], logits[:, -1])
        self._take(row, int(token), logprob)

    def _take(self, row: _Row, token: int, logprob: float) -> None:
        if logprob != logprob:
            row.failure = ModelError(
                f"{self.weights.name} gave numbers that are none (NaN or infinite) after {len(row.ids)} tokens.",
                hint="look at the weights and the adapter: training that went wrong leaves such numbers",
            )
            return
        row.ids.append(token)
        row.logprobs.append(logprob)
        if token in self.weights.end_ids:
            row.ended = "stop"
            return
        self._guard((row,), self._tell, row, token)
        if row.ended is None and len(row.ids) >= row.job.max_tokens:
            row.ended = "length"

    def _tell(self, row: _Row, token: int) -> None:
        if row.job.take(token):
            row.ended = "stop"


def choose(rows: Sequence[_Row], logits: Any) -> list[tuple[float, float, float]]:
    """For each row its token, that token's logprob (NaN where the row's numbers are none), and whether the choice was
    so close that rounding may have decided it. `logits`: float32, [rows, vocabulary].

    Temperature 0 takes the greatest logit, of equal ones that of the lowest id. Else the row's draw, uniform in [0, 1),
    picks where it falls in the probabilities added up in the order of ids; with top_p < 1 only the most probable
    tokens count, as few as reach it together.
    """
    total = logits.logsumexp(-1)
    best = logits.max(-1)
    tokens = best.indices
    nearly = best.values - _LOGIT_TOLERANCE * best.values.abs().clamp(min=1.0)
    close = (logits > nearly[:, None]).sum(-1) > 1
    drawn = [number for number, row in enumerate(rows) if row.job.temperature > 0]
    if drawn:
        some = len(drawn) < len(rows)
        picked, near = _draw([rows[number] for number in drawn], logits[drawn] if some else logits)
        if some:
            tokens, close = tokens.clone(), close.clone()
            tokens[drawn], close[drawn] = picked, near
        else:
            tokens, close = picked, near
    logprobs = logits.gather(-1, tokens[:, None])[:, 0] - total
    logprobs = torch.where(total.isfinite(), logprobs, torch.nan)
    chosen: list[tuple[float, float, float]] = torch.stack(
        (tokens.double(), logprobs.double(), close.double()), 1
    ).tolist()
    return chosen


def _draw(rows: Sequence[_Row], logits: Any) -> tuple[Any, Any]:
    """Tokens by the rows' draws, and whether a draw fell near an edge."""
    like = {"dtype": torch.float64, "device": logits.device}
    # As float32, anything smaller is 0, and 0 / 0 no number.
    temperatures = torch.tensor([max(row.job.temperature, 1e-30) for row in rows], **like)
    # Rounding weighs more where differences are blown up.
    tolerance = _SHARE_TOLERANCE / temperatures.clamp(max=1.0)
    shares = ((logits - logits.max(-1, keepdim=True).values) / temperatures[:, None].float()).softmax(-1)
    close = torch.zeros(len(rows), dtype=torch.bool, device=logits.device)
    if any(row.job.top_p < 1 for row in rows):
        shares, close = _nucleus(shares, torch.tensor([row.job.top_p for row in rows], **like), tolerance)
    edges = shares.cumsum(-1, dtype=torch.float64)
    # A draw just below 1 must not be rounded up onto the last edge.
    draws = torch.tensor([row.draw * (1 - 1e-12) for row in rows], **like)
    points = draws[:, None] * edges[:, -1:]
    tokens = torch.searchsorted(edges, points, right=True).clamp_(max=logits.shape[-1] - 1)
    upper = edges.gather(-1, tokens)
    lower = upper - shares.gather(-1, tokens)
    close = close | (torch.minimum(points - lower, upper - points) < tolerance[:, None])[:, 0]
    return tokens[:, 0], close


def _nucleus(shares: Any, top_p: Any, tolerance: Any) -> tuple[Any, Any]:
    """The shares with all but the most probable tokens set to 0, and whether the border is doubtful."""
    ordered, order = shares.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(-1, dtype=torch.float64) - ordered
    kept = before < top_p[:, None]
    doubtful = ((before - top_p[:, None]).abs() < tolerance[:, None]).any(-1)
    count = kept.sum(-1, keepdim=True)
    inside = ordered.gather(-1, count - 1)
    outside = ordered.gather(-1, count.clamp(max=shares.shape[-1] - 1))
    # Two tokens as probable as each other on the two sides of the border could change places.
    doubtful = doubtful | ((count < shares.shape[-1]) & (inside - outside < 10 * tolerance[:, None] * inside))[:, 0]
    ordered = ordered.masked_fill(~kept, 0.0)
    whole = top_p >= 1
    nucleus = torch.where(whole[:, None], shares, torch.zeros_like(shares).scatter_(-1, order, ordered))
    return nucleus, doubtful & ~whole


def _groups(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Stretches of rising lengths that are read together: of like length, and not too many tokens at once."""
    groups: list[tuple[int, int]] = []
    start = 0
    for end in range(1, len(lengths) + 1):
        full = end == len(lengths)
        if full or lengths[end] > lengths[start] * _PADDING + 8 or lengths[end] * (end - start + 1) > _PREFILL_TOKENS:
            groups.append((start, end))
            start = end
    return groups


def _power(number: int) -> int:
    """The next power of two."""
    return 1 << (number - 1).bit_length()


def _resolve(future: Future[Any], function: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return  # Whoever asked for it went away before it began.
    try:
        future.set_result(function())
    # Also what is no Exception: a panic in a library of Rust is none.
    except BaseException as error:  # noqa: BLE001 — handed on to whoever waits for it.
        future.set_exception(error)
