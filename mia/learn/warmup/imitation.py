"""The reader's warm-up: an adapter over the embedded model learns to read as the teacher does, turn by turn.

    texts of training worlds → the teacher's dialogues → steps of AdamW on its own words → adapter/

The base is not changed. Turns are made while they are learnt from, so that none comes twice, and each batch is decided
by its number: a training that was stopped goes on from its last checkpoint and takes the same steps. One process at a
time trains into a folder.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy

from mia.config import LearnSettings, ReaderSettings
from mia.errors import require
from mia.learn.batching import Row, make_lots, pad
from mia.learn.folder import alone
from mia.learn.policy import Policy
from mia.learn.stages import check_page
from mia.learn.warmup.lessons import encode
from mia.learn.warmup.readings import readings
from mia.learn.warmup.steps import OnProgress, Steps, Wording, check_numbers
from mia.reader.chunks import ModelTokens
from mia.world.facts import World
from mia.world.seeds import TRAIN, check_training

if TYPE_CHECKING:
    import torch

FORMAT = 1
"""The version of a warm-up's folder."""
_WORLDS_AT_ONCE = 8
"""Whose turns are shuffled together."""
_TEXTS_PER_WORLD = 8
_OVERHEAD = 128
"""What a batch costs beside its tokens, in tokens (`mia.learn.batching`)."""
_WORDING = Wording(stage="warm-up", name="warm-up", rate="rate", anew="the steps begin anew")


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the adapter, beside the model and the reader's settings."""

    steps: int = 6_000
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
        check_numbers(self, counts=("steps", "batch_tokens", "rank", "warmup"), positive=("alpha", "rate", "clip"))
        check_training(self.first_seed)


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
        if not _take_steps(folder, recipe, reader, policy, on_progress, stop, save_every):
            return None
        policy.save(out)
    return out


def _page(base: str, recipe: Recipe, reader: ReaderSettings) -> dict[str, Any]:
    decisive = {name: getattr(reader, name) for name in ("chunk_tokens", "memory_tokens", "reply_tokens")}
    told = asdict(recipe)
    # Unlike those of a stage, more steps are another warm-up: the rate falls towards the last of them.
    return {"format": FORMAT, "base": base, "length": told.pop("steps"), "recipe": told, "reader": decisive}


def _take_steps(
    folder: Path,
    recipe: Recipe,
    reader: ReaderSettings,
    policy: Policy,
    on_progress: OnProgress,
    stop: Callable[[], bool],
    save_every: int,
) -> bool:
    """Whether all steps were taken, and not stopped before the last."""
    import torch

    def load(kept: Mapping[str, Any]) -> None:
        with torch.no_grad():
            for name, parameter in policy.parameters.items():
                parameter.copy_(kept["weights"][name])

    steps = Steps(
        folder,
        recipe,
        list(policy.parameters.values()),
        weight_decay=0.0,
        keep=lambda: {"weights": {name: value.detach() for name, value in policy.parameters.items()}},
        load=load,
        wording=_WORDING,
    )
    batches = _batches(recipe, reader, policy.tokenizer.backend_tokenizer, steps.done)

    def learn() -> tuple[torch.Tensor, int]:
        rows = next(batches)
        learned = sum(len(row.places) for row in rows)
        loss, tokens = torch.zeros(()), 0
        # Turns of every kind to a step, those of like length through the network together.
        for lot in make_lots(rows, budget=recipe.batch_tokens, overhead=_OVERHEAD):
            tensors = policy.tensors(pad(lot))
            logprobs, _ = policy.logprobs(tensors)
            part = -(logprobs * tensors.mask).sum() / learned
            part.backward()
            loss += part.detach()
            tokens += tensors.inputs.numel()
        return loss, tokens

    return steps.take(learn, on_progress, stop, save_every)


# ── turns ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _batches(recipe: Recipe, reader: ReaderSettings, tokenizer: Any, skip: int) -> Iterator[list[Row]]:
    """The turns of each step, without end; those of the first `skip` steps are left out."""
    batch: list[Row] = []
    tokens = number = 0
    for row in _turns(recipe, reader, tokenizer):
        batch.append(row)
        tokens += row.width
        if tokens >= recipe.batch_tokens:
            if number >= skip:
                yield batch
            batch, tokens, number = [], 0, number + 1


def _turns(recipe: Recipe, reader: ReaderSettings, tokenizer: Any) -> Iterator[Row]:
    """Those of some worlds after the other, shuffled."""
    for number in itertools.count():
        first = recipe.first_seed + number * _WORLDS_AT_ONCE
        seeds = (TRAIN[seed % len(TRAIN)] for seed in range(first, first + _WORLDS_AT_ONCE))
        rows = [row for seed in seeds for row in _rows(World.make(seed), recipe, reader, tokenizer)]
        random.Random(f"imitation {recipe.seed} {number}").shuffle(rows)
        yield from rows


def _rows(world: World, recipe: Recipe, reader: ReaderSettings, tokenizer: Any) -> Iterator[Row]:
    counter = ModelTokens(tokenizer, "the base model's")
    for dialogue in readings(world, reader, counter, texts=_TEXTS_PER_WORLD, seed=recipe.seed):
        ids, learned = encode(dialogue, tokenizer)
        places = numpy.flatnonzero(numpy.array(learned))
        yield Row(
            numpy.array(ids[: places[-1] + 1], dtype=numpy.int64),
            places,
            numpy.zeros(len(places), dtype=numpy.float32),
            advantage=1.0,
            rollout=0,
        )
