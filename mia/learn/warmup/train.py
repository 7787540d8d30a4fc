"""`mia world train`: from an empty folder to the embedded model, resumable at every step.

    dialogues → tokenizer → shards of token ids → steps of AdamW → checkpoint, metrics, curves

One folder holds all of it. A run that was killed goes on from its last checkpoint and takes the same steps as one that
was not; two processes cannot train into one folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

import numpy

from mia.errors import ConfigError, LearnError
from mia.learn.warmup import initialisation, lessons, tokenizer
from mia.learn.warmup.dialogues import dialogues
from mia.learn.warmup.lessons import Shard

if TYPE_CHECKING:
    import torch

FORMAT = 1
"""The version of a checkpoint, in its config.json as `mia_format`."""
_SAMPLE_WORLDS = 24
"""Worlds whose dialogues the tokenizer is made from."""


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights."""

    steps: int = 3_600
    batch_tokens: int = 3_072
    """Tokens of one step, padding included."""
    shards: int = 8
    """Of `lessons.WORLDS_PER_SHARD` worlds each; when they are used up, they come again in another order."""
    rate: float = 3e-3
    """Peak learning rate of AdamW."""
    warmup: int = 50
    """Steps until it is reached."""
    weight_decay: float = 0.01
    clip: float = 1.0
    """Largest norm of a gradient."""
    copy_steps: int = 300
    """Steps in which half of the batches are random tokens, said twice; later a twentieth."""
    seed: int = 1

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Progress:
    """Where a training stands."""

    stage: str
    """"dialogues" or "steps"."""
    done: int
    total: int
    loss: float | None = None
    """Nats per learned token, averaged over the last steps."""
    tokens: int = 0
    seconds: float = 0.0


class OnProgress(Protocol):
    def __call__(self, progress: Progress) -> None: ...


def train(
    folder: Path,
    recipe: Recipe,
    *,
    on_progress: OnProgress,
    save_every: int = 200,
    processes: int = 2,
    threads: int = 1,
) -> Path:
    """Train, or go on training, in a folder; returns the folder of the finished model (`folder`/model).

    Raises ConfigError for a folder that holds another recipe's training or that another process trains into, LearnError
    if the loss becomes NaN.
    """
    import torch

    torch.set_num_threads(threads)
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        _check_recipe(folder, recipe)
        kept = folder / "tokenizer"
        if not (kept / "tokenizer.json").is_file():
            _make_tokenizer(recipe).save_pretrained(kept)
        shards = lessons.build_shards(
            folder / "lessons",
            kept,
            recipe.shards,
            seed=recipe.seed,
            processes=processes,
            on_shard=lambda done, total: on_progress(Progress("dialogues", done, total)),
        )
        _take_steps(folder, recipe, shards, on_progress, save_every)
        return _export(folder, recipe)


def _make_tokenizer(recipe: Recipe) -> Any:
    said = [
        turn.message
        for world in lessons.train_worlds(0, _SAMPLE_WORLDS)
        for dialogue in dialogues(world, recipe.seed)
        for turn in dialogue.turns
    ]
    return tokenizer.build(tokenizer.vocabulary(said))


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    lock: IO[str] = (folder / "lock").open("w")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(
                f"another process is training into '{folder}'.", hint="wait for it, or --out ANOTHER"
            ) from None
        yield


def _check_recipe(folder: Path, recipe: Recipe) -> None:
    path = folder / "recipe.json"
    page = json.dumps(asdict(recipe), indent=2, sort_keys=True)
    if path.is_file() and path.read_text(encoding="utf-8") != page:
        raise ConfigError(
            f"'{folder}' holds the training of another recipe.",
            wanted="the same settings as in its recipe.json, or another folder",
            hint="--out ANOTHER",
        )
    _write(path, page)


# ── steps ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _take_steps(folder: Path, recipe: Recipe, shards: Sequence[Path], on_progress: OnProgress, save_every: int) -> None:
    import torch

    words = _load_tokenizer(folder)
    model = initialisation.build(
        len(words), recipe.seed, pad_token_id=words.pad_token_id, eos_token_id=words.eos_token_id
    )
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.rate, betas=(0.9, 0.98), weight_decay=recipe.weight_decay
    )
    checkpoint = folder / "checkpoint.pt"
    first, tokens, seconds = 0, 0, 0.0
    if checkpoint.is_file():
        kept = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(kept["model"])
        optimizer.load_state_dict(kept["optimizer"])
        first, tokens, seconds = kept["step"], kept["tokens"], kept["seconds"]
    metrics = folder / "metrics.jsonl"
    _cut_metrics(metrics, first)
    batches = _batches(shards, recipe, first, len(words), words.pad_token_id)
    begun = time.monotonic() - seconds
    losses: list[float] = []
    model.train()
    with metrics.open("a", encoding="utf-8") as log:
        for step in range(first, recipe.steps):
            ids, learned = next(batches)
            rate = initialisation.warmed_rate(step, recipe.steps, recipe.rate, warmup=recipe.warmup)
            for group in optimizer.param_groups:
                group["lr"] = rate
            loss = _loss(model, ids, learned)
            if not torch.isfinite(loss):
                raise LearnError(f"the loss became {loss.item()} at step {step}.", hint="a smaller --rate")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
            optimizer.step()
            tokens += ids.numel()
            losses.append(loss.item())
            seconds = time.monotonic() - begun
            if (step + 1) % 20 == 0 or step + 1 == recipe.steps:
                mean = sum(losses) / len(losses)
                losses.clear()
                row = {"step": step + 1, "loss": mean, "rate": rate, "tokens": tokens, "seconds": round(seconds, 1)}
                log.write(json.dumps(row) + "\n")
                log.flush()
                on_progress(Progress("steps", step + 1, recipe.steps, mean, tokens, seconds))
            if (step + 1) % save_every == 0 or step + 1 == recipe.steps:
                _save(checkpoint, model, optimizer, step + 1, tokens, seconds)


def _loss(model: Any, ids: torch.Tensor, learned: torch.Tensor) -> torch.Tensor:
    """Cross entropy over the learned tokens. Rows are padded on the right, so the causal mask alone is right."""
    import torch

    hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
    counted = learned[:, 1:]
    logits = model.lm_head(hidden[counted])
    return torch.nn.functional.cross_entropy(logits, ids[:, 1:][counted])


def _batches(
    shards: Sequence[Path], recipe: Recipe, skip: int, vocabulary: int, pad: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches without end; after `skip` of them. Each is decided by its number alone."""
    import torch

    number = 0
    for rows in _filled(shards, recipe):
        chance = random.Random(f"batch {recipe.seed} {number}")
        while chance.random() < (0.5 if number < recipe.copy_steps else 0.05):
            if number >= skip:
                yield _copying(chance, recipe, vocabulary)
            number += 1
            chance = random.Random(f"batch {recipe.seed} {number}")
        if number >= skip:
            width = max(len(ids) for ids, _ in rows)
            ids = numpy.full((len(rows), width), pad, dtype=numpy.int64)
            learned = numpy.zeros((len(rows), width), dtype=numpy.bool_)
            for row, (one, counts) in enumerate(rows):
                ids[row, : len(one)], learned[row, : len(one)] = one, counts
            yield torch.from_numpy(ids), torch.from_numpy(learned)
        number += 1


def _copying(chance: random.Random, recipe: Recipe, vocabulary: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random tokens said twice; the second time counts."""
    import torch

    length = chance.randrange(16, 64)
    rows = recipe.batch_tokens // (2 * length)
    generator = torch.Generator().manual_seed(chance.getrandbits(48))
    said = torch.randint(0, vocabulary, (rows, length), generator=generator)
    learned = torch.zeros(rows, 2 * length, dtype=torch.bool)
    learned[:, length + 1 :] = True
    return torch.cat([said, said], dim=1), learned


def _filled(shards: Sequence[Path], recipe: Recipe) -> Iterator[list[tuple[Any, Any]]]:
    """Lots of rows of about one length that fill a batch, shard after shard, in another order each time round."""
    epoch = 0
    while True:
        order = random.Random(f"order {recipe.seed} {epoch}")
        for path in order.sample(list(shards), len(shards)):
            yield from _lots(lessons.load_shard(path), recipe.batch_tokens, order)
        epoch += 1


def _lots(shard: Shard, batch_tokens: int, order: random.Random) -> Iterator[list[tuple[Any, Any]]]:
    rows = sorted(shard.rows(), key=lambda row: len(row[0]) + order.random())
    lots: list[list[tuple[Any, Any]]] = [[]]
    for row in rows:
        if lots[-1] and (len(lots[-1]) + 1) * len(row[0]) > batch_tokens:
            lots.append([])
        lots[-1].append(row)
    order.shuffle(lots)
    yield from lots


# ── files ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _load_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder / "tokenizer")


def _save(path: Path, model: Any, optimizer: Any, step: int, tokens: int, seconds: float) -> None:
    """Whole or not at all."""
    import torch

    fresh = path.with_suffix(f".{os.getpid()}.tmp")
    torch.save(
        {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "step": step,
            "tokens": tokens,
            "seconds": seconds,
        },
        fresh,
    )
    fresh.replace(path)


def _cut_metrics(path: Path, step: int) -> None:
    """Leave out what was written after the checkpoint that a training goes on from."""
    if path.is_file():
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
        _write(path, "".join(json.dumps(row) + "\n" for row in rows if row["step"] <= step))


def _export(folder: Path, recipe: Recipe) -> Path:
    """The model as transformers reads it: configuration, weights, tokenizer."""
    import torch

    words = _load_tokenizer(folder)
    model = initialisation.build(
        len(words), recipe.seed, pad_token_id=words.pad_token_id, eos_token_id=words.eos_token_id
    )
    model.load_state_dict(torch.load(folder / "checkpoint.pt", weights_only=True)["model"])
    model.config.mia_format = FORMAT
    model.config.mia_recipe = asdict(recipe)
    out = folder / "model"
    model.save_pretrained(out)
    words.save_pretrained(out)
    return out


def _write(path: Path, text: str) -> None:
    fresh = path.with_suffix(f".{os.getpid()}.tmp")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(path)
