"""The steps of a warm-up in its folder: the metrics, the checkpoint, and going on from it.

    a step:  the rate of its number → gradients of the next batch → clipped → AdamW

A training that was killed goes on from its last checkpoint and takes the same steps as one that was not, to the last
bit; what the metrics tell of later ones is cut off. What is learnt from, and by which weights, its owner says.
"""

from __future__ import annotations

import io
import json
import math
import pickle
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mia.errors import ConfigError, LearnError
from mia.learn.folder import read_rows, write_rows, write_whole
from mia.learn.warmup.initialisation import warmed_rate

if TYPE_CHECKING:
    import torch

_LOG_EVERY = 20
"""Steps between two lines of the metrics."""


@dataclass(frozen=True)
class Progress:
    """Where a training stands."""

    stage: str
    """"dialogues" or "steps"; of the reader's warm-up "warm-up"."""
    done: int
    total: int
    loss: float | None = None
    """Nats per learned token, averaged over the last steps; None before there are any."""
    tokens: int = 0
    seconds: float = 0.0


class OnProgress(Protocol):
    def __call__(self, progress: Progress) -> None: ...


class Pace(Protocol):
    """What of a recipe decides the steps."""

    @property
    def steps(self) -> int: ...

    @property
    def rate(self) -> float:
        """The peak; it is reached after `warmup` steps, and from there falls in a line."""
        ...

    @property
    def warmup(self) -> int: ...

    @property
    def clip(self) -> float:
        """Largest norm of a gradient."""
        ...


@dataclass(frozen=True)
class Wording:
    """What is said of one kind of training and not of another."""

    stage: str
    """In its progress."""
    name: str
    rate: str
    """How whoever types the command calls its rate."""
    anew: str
    """What the same command does where the checkpoint was removed."""


def check_numbers(recipe: object, *, counts: Sequence[str], positive: Sequence[str]) -> None:
    """Raises ConfigError for numbers that no training can be made of."""
    for name in counts:
        if getattr(recipe, name) < 1:
            raise ConfigError(f"{name} is {getattr(recipe, name)}.", wanted="a whole number from 1 up")
    for name in positive:
        if not (math.isfinite(getattr(recipe, name)) and getattr(recipe, name) > 0):
            raise ConfigError(f"{name} is {getattr(recipe, name)}.", wanted="a number above 0")


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The rows of a training's metrics: step, loss (nats a learned token, the mean since the row before), rate, tokens
    and seconds, so far. Rows that a crash tore are passed over."""
    wanted = {"step", "loss", "rate", "tokens", "seconds"}
    return [row for row in read_rows(folder / "metrics.jsonl") if wanted <= row.keys()]


class Steps:
    """Those of one training, from its checkpoint on."""

    def __init__(
        self,
        folder: Path,
        pace: Pace,
        parameters: Sequence[Any],
        *,
        weight_decay: float,
        keep: Callable[[], dict[str, Any]],
        load: Callable[[Mapping[str, Any]], object],
        wording: Wording,
    ) -> None:
        """Go back to the folder's checkpoint, if there is one. `keep`: the weights for a checkpoint; `load`: puts them
        back. Raises LearnError for a checkpoint that cannot be read."""
        import torch

        self.done = 0
        """Steps that were taken."""
        self._folder = folder
        self._pace = pace
        self._parameters = parameters
        self._keep = keep
        self._wording = wording
        self._optimizer: Any = torch.optim.AdamW(parameters, lr=pace.rate, betas=(0.9, 0.98), weight_decay=weight_decay)
        self._tokens = 0
        self._seconds = 0.0
        self._losses: list[float] = []
        """Since the last line of the metrics."""
        self._restore(load)

    def take(
        self,
        learn: Callable[[], tuple[torch.Tensor, int]],
        on_progress: OnProgress,
        stop: Callable[[], bool],
        save_every: int,
    ) -> bool:
        """All that are left; False where `stop` said yes after a step that was not the last, and the checkpoint is
        saved. `learn`: adds the gradients of the next batch, and returns its loss and the tokens it took. Raises
        LearnError for a loss that is no number."""
        metrics = self._folder / "metrics.jsonl"
        write_rows(metrics, [row for row in read_metrics(self._folder) if row["step"] <= self.done])
        on_progress(self._progress(None))
        begun = time.monotonic() - self._seconds
        with metrics.open("a", encoding="utf-8") as log:
            while self.done < self._pace.steps:
                rate = self._step(learn)
                self._seconds = time.monotonic() - begun
                last = self.done == self._pace.steps
                if self.done % _LOG_EVERY == 0 or last:
                    row = self._row(rate)
                    log.write(json.dumps(row) + "\n")
                    log.flush()
                    on_progress(self._progress(row["loss"]))
                stopped = not last and stop()
                if self.done % save_every == 0 or last or stopped:
                    self._save()
                if stopped:
                    return False
        return True

    def _step(self, learn: Callable[[], tuple[torch.Tensor, int]]) -> float:
        """Take one, at the rate that is returned. Raises LearnError before a loss that is no number reaches the
        weights, so that the last checkpoint stays one to go on from."""
        import torch

        rate = warmed_rate(self.done, self._pace.steps, self._pace.rate, warmup=self._pace.warmup)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.zero_grad(set_to_none=True)
        loss, tokens = learn()
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, self._pace.clip)
        if not (torch.isfinite(loss) and torch.isfinite(norm)):
            raise LearnError(
                f"the loss became {loss.item()}, its gradient {norm.item()}, at step {self.done + 1}.",
                hint=f"a smaller {self._wording.rate}, into another --out",
            )
        self._optimizer.step()
        self.done += 1
        self._tokens += tokens
        self._losses.append(loss.item())
        return rate

    def _progress(self, loss: float | None) -> Progress:
        return Progress(self._wording.stage, self.done, self._pace.steps, loss, self._tokens, self._seconds)

    def _row(self, rate: float) -> dict[str, float]:
        """The next line of the metrics."""
        mean = sum(self._losses) / len(self._losses)
        self._losses.clear()
        seconds = round(self._seconds, 1)
        return {"step": self.done, "loss": mean, "rate": rate, "tokens": self._tokens, "seconds": seconds}

    def _save(self) -> None:
        import torch

        content = io.BytesIO()
        torch.save(
            {
                **self._keep(),
                "optimizer": self._optimizer.state_dict(),
                "step": self.done,
                "tokens": self._tokens,
                "seconds": self._seconds,
                "losses": list(self._losses),
            },
            content,
        )
        write_whole(self._folder / "checkpoint.pt", content.getvalue())

    def _restore(self, load: Callable[[Mapping[str, Any]], object]) -> None:
        import torch

        path = self._folder / "checkpoint.pt"
        if not path.is_file():
            return
        try:
            kept = torch.load(path, weights_only=True)
            load(kept)
            self._optimizer.load_state_dict(kept["optimizer"])
            self.done, self._tokens, self._seconds = int(kept["step"]), int(kept["tokens"]), float(kept["seconds"])
            self._losses = list(kept.get("losses", ()))
        except (OSError, RuntimeError, ValueError, LookupError, TypeError, EOFError, pickle.UnpicklingError) as error:
            why = (str(error) or type(error).__name__).splitlines()[0]
            raise LearnError(
                f"the checkpoint '{path}' cannot be read ({why[:200]}).",
                wanted=f"a checkpoint of this {self._wording.name}, whole",
                hint=f"rm '{path}' and the same command: {self._wording.anew}",
            ) from error
