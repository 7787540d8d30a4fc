"""The reader's warm-up: an adapter over the embedded model learns to read as the teacher does, turn by turn.

    texts of training worlds → the teacher's dialogues → steps of AdamW on its own words → adapter/

The base is not changed. Turns are made while they are learnt from, so that none comes twice, and each batch is decided
by its number: a training that was stopped goes on from its last checkpoint and takes the same steps. One process at a
time trains into a folder.
"""

from __future__ import annotations

import io
import itertools
import json
import math
import pickle
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy

from mia.config import LearnSettings, ReaderSettings
from mia.errors import ConfigError, LearnError, require
from mia.learn.batching import Row, make_lots, pad
from mia.learn.folder import alone, read_rows, write_rows, write_whole
from mia.learn.policy import Policy
from mia.learn.stages import check_page
from mia.learn.warmup.initialisation import warmed_rate
from mia.learn.warmup.lessons import encode
from mia.learn.warmup.readings import readings
from mia.learn.warmup.train import OnProgress, Progress
from mia.reader.chunks import ModelTokens
from mia.world.facts import World
from mia.world.seeds import TRAIN

FORMAT = 1
"""The version of a warm-up's folder."""
_WORLDS_AT_ONCE = 8
"""Whose turns are shuffled together."""
_TEXTS_PER_WORLD = 8
_OVERHEAD = 128
"""What a batch costs beside its tokens, in tokens (`mia.learn.batching`)."""
_LOG_EVERY = 20
"""Steps between two lines of the metrics."""


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the adapter, beside the model and the reader's settings."""

    steps: int = 1_500
    batch_tokens: int = 3_072
    """Tokens of one step, about."""
    rank: int = 16
    alpha: float = 32.0
    rate: float = 4e-3
    """Peak learning rate of AdamW."""
    warmup: int = 50
    """Steps until it is reached; from there it falls in a line."""
    clip: float = 1.0
    """Largest norm of a gradient."""
    first_seed: int = 100_000
    """The first world, of the training split."""
    seed: int = 1

    def __post_init__(self) -> None:
        """Raises ConfigError for numbers that no training can be made of."""
        for name in ("steps", "batch_tokens", "rank", "warmup"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}.", wanted="a whole number from 1 up")
        for name in ("alpha", "rate", "clip"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ConfigError(f"{name} is {getattr(self, name)}.", wanted="a number above 0")
        if self.first_seed not in TRAIN:
            raise ConfigError(
                f"the world {self.first_seed} is not for training.",
                wanted=f"seeds from {TRAIN.start} to {TRAIN.stop - 1}",
            )


def imitate(
    folder: Path,
    recipe: Recipe,
    reader: ReaderSettings,
    *,
    model: str = "",
    on_progress: OnProgress = lambda progress: None,
    stop: Callable[[], bool] = lambda: False,
    save_every: int = 100,
    threads: int = 1,
) -> Path | None:
    """Train, or go on training, in a folder; returns the adapter's folder (`folder`/adapter), or None where `stop` said
    yes after a step, and the checkpoint is saved. A folder whose warm-up has ended stays as it is.

    `model`: the base; empty: the embedded one. Raises ConfigError for a folder that cannot be written, that holds
    another warm-up or that another process trains into; LearnError if the loss becomes NaN or the checkpoint cannot be
    read; MissingExtra.
    """
    torch: Any = require("torch", extra="local", purpose="training")
    torch.set_num_threads(threads)
    out = folder / "adapter"
    with alone(folder):
        settings = LearnSettings(rank=recipe.rank, alpha=recipe.alpha)
        policy = Policy.open(model, settings, seed=recipe.seed)
        check_page(folder, _page(policy.base, recipe, reader))
        if out.is_dir():
            # Left as it is: equal weights need not be equal files, and a stage remembers the file that it began with.
            return out
        imitation = _Imitation(folder, recipe, reader, policy, on_progress, stop, save_every)
        if not imitation.run():
            return None
        policy.save(out)
    return out


def read_losses(folder: Path) -> list[dict[str, float]]:
    """The rows of a warm-up's metrics: step, loss (nats a learned token, the mean since the row before), rate, tokens
    and seconds, so far."""
    wanted = {"step", "loss", "rate", "tokens", "seconds"}
    return [row for row in read_rows(folder / "metrics.jsonl") if wanted <= row.keys()]


def _page(base: str, recipe: Recipe, reader: ReaderSettings) -> dict[str, Any]:
    decisive = {name: getattr(reader, name) for name in ("chunk_tokens", "memory_tokens", "reply_tokens")}
    told = asdict(recipe)
    # Unlike those of a stage, more steps are another warm-up: the rate falls towards the last of them.
    return {"format": FORMAT, "base": base, "length": told.pop("steps"), "recipe": told, "reader": decisive}


class _Imitation:
    """One call of `imitate`."""

    def __init__(
        self,
        folder: Path,
        recipe: Recipe,
        reader: ReaderSettings,
        policy: Policy,
        on_progress: OnProgress,
        stop: Callable[[], bool],
        save_every: int,
    ) -> None:
        import torch

        self._folder = folder
        self._recipe = recipe
        self._reader = reader
        self._policy = policy
        self._on_progress = on_progress
        self._stop = stop
        self._save_every = save_every
        self._parameters = list(policy.parameters.values())
        self._optimizer = torch.optim.AdamW(self._parameters, lr=recipe.rate, betas=(0.9, 0.98), weight_decay=0.0)
        self._tokenizer = policy.tokenizer.backend_tokenizer
        self._step = 0
        self._tokens = 0
        self._seconds = 0.0
        self._losses: list[float] = []

    def run(self) -> bool:
        """Whether all steps were taken, and not stopped before the last."""
        recipe = self._recipe
        self._restore()
        write_rows(
            self._folder / "metrics.jsonl", [row for row in read_losses(self._folder) if row["step"] <= self._step]
        )
        self._tell(None)
        batches = self._batches()
        begun = time.monotonic() - self._seconds
        while self._step < recipe.steps:
            self._take(next(batches))
            self._seconds = time.monotonic() - begun
            last = self._step == recipe.steps
            if self._step % _LOG_EVERY == 0 or last:
                self._log()
            stopped = not last and self._stop()
            if self._step % self._save_every == 0 or last or stopped:
                self._save()
            if stopped:
                return False
        return True

    def _take(self, rows: list[Row]) -> None:
        """One step. Raises LearnError before a loss that is no number reaches the weights."""
        import torch

        rate = warmed_rate(self._step, self._recipe.steps, self._recipe.rate, warmup=self._recipe.warmup)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.zero_grad(set_to_none=True)
        learned = sum(len(row.places) for row in rows)
        loss = torch.zeros(())
        # Turns of every kind to a step, those of like length through the network together.
        for lot in make_lots(rows, budget=self._recipe.batch_tokens, overhead=_OVERHEAD):
            tensors = self._policy.tensors(pad(lot))
            logprobs, _ = self._policy.logprobs(tensors)
            part = -(logprobs * tensors.mask).sum() / learned
            part.backward()
            loss += part.detach()
            self._tokens += tensors.inputs.numel()
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, self._recipe.clip)
        if not (torch.isfinite(loss) and torch.isfinite(norm)):
            raise LearnError(
                f"the loss became {loss.item()}, its gradient {norm.item()}, at step {self._step + 1}.",
                hint="a smaller rate, into another --out",
            )
        self._optimizer.step()
        self._step += 1
        self._losses.append(loss.item())

    # ── turns ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _batches(self) -> Iterator[list[Row]]:
        """The turns of each step, without end, those of the steps that were taken left out."""
        batch: list[Row] = []
        tokens = number = 0
        for row in self._turns():
            batch.append(row)
            tokens += row.width
            if tokens >= self._recipe.batch_tokens:
                if number >= self._step:
                    yield batch
                batch, tokens, number = [], 0, number + 1

    def _turns(self) -> Iterator[Row]:
        """Those of some worlds after the other, shuffled."""
        for number in itertools.count():
            first = self._recipe.first_seed + number * _WORLDS_AT_ONCE
            seeds = (TRAIN[seed % len(TRAIN)] for seed in range(first, first + _WORLDS_AT_ONCE))
            rows = [row for seed in seeds for row in self._rows(seed)]
            random.Random(f"imitation {self._recipe.seed} {number}").shuffle(rows)
            yield from rows

    def _rows(self, seed: int) -> Iterator[Row]:
        counter = ModelTokens(self._tokenizer, "the base model's")
        for dialogue in readings(
            World.make(seed), self._reader, counter, texts=_TEXTS_PER_WORLD, seed=self._recipe.seed
        ):
            ids, learned = encode(dialogue, self._tokenizer)
            places = numpy.flatnonzero(numpy.array(learned))
            yield Row(
                numpy.array(ids[: places[-1] + 1], dtype=numpy.int64),
                places,
                numpy.zeros(len(places), dtype=numpy.float32),
                advantage=1.0,
                rollout=0,
            )

    # ── files ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _log(self) -> None:
        mean = sum(self._losses) / len(self._losses)
        self._losses.clear()
        row = {
            "step": self._step,
            "loss": mean,
            "rate": self._optimizer.param_groups[0]["lr"],
            "tokens": self._tokens,
            "seconds": round(self._seconds, 1),
        }
        with (self._folder / "metrics.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps(row) + "\n")
        self._tell(mean)

    def _tell(self, loss: float | None) -> None:
        self._on_progress(Progress("warm-up", self._step, self._recipe.steps, loss, self._tokens, self._seconds))

    def _save(self) -> None:
        import torch

        content = io.BytesIO()
        torch.save(
            {
                "weights": {name: value.detach() for name, value in self._policy.parameters.items()},
                "optimizer": self._optimizer.state_dict(),
                "step": self._step,
                "tokens": self._tokens,
                "seconds": self._seconds,
                "losses": self._losses,
            },
            content,
        )
        write_whole(self._folder / "checkpoint.pt", content.getvalue())

    def _restore(self) -> None:
        """Go back to the checkpoint, if there is one. Raises LearnError for one that cannot be read."""
        import torch

        path = self._folder / "checkpoint.pt"
        if not path.is_file():
            return
        try:
            kept = torch.load(path, weights_only=True)
            with torch.no_grad():
                for name, parameter in self._policy.parameters.items():
                    parameter.copy_(kept["weights"][name])
            self._optimizer.load_state_dict(kept["optimizer"])
            self._step, self._tokens, self._seconds = int(kept["step"]), int(kept["tokens"]), float(kept["seconds"])
            self._losses = list(kept["losses"])
        except (OSError, RuntimeError, ValueError, LookupError, TypeError, EOFError, pickle.UnpicklingError) as error:
            why = (str(error) or type(error).__name__).splitlines()[0]
            raise LearnError(
                f"the checkpoint '{path}' cannot be read ({why[:200]}).",
                wanted="a checkpoint of this warm-up, whole",
                hint=f"rm '{path}' and the same command: the steps begin anew",
            ) from error
