"""`mia world train`: from an empty folder to the embedded model, resumable at every step.

    dialogues → tokenizer → shards of token ids → steps of AdamW → checkpoint, metrics, curves

One folder holds all of it. A run that was killed goes on from its last checkpoint and takes the same steps as one that
was not, to the last bit; two processes cannot train into one folder. Every file is written whole or not at all.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy

from mia.errors import ConfigError, require
from mia.learn.folder import alone, write_whole
from mia.learn.warmup import initialisation, lessons, tokenizer
from mia.learn.warmup.dialogues import dialogues
from mia.learn.warmup.lessons import Shard
from mia.learn.warmup.steps import OnProgress, Progress, Steps, Wording, check_numbers
from mia.world.seeds import TRAIN

if TYPE_CHECKING:
    import torch

FORMAT = 1
"""The version of a checkpoint, in its config.json as `mia_format`."""
_WORDING = Wording(stage="steps", name="training", rate="--rate", anew="the steps begin anew, the dialogues are kept")


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights."""

    steps: int = 8_200
    batch_tokens: int = 3_072
    """Tokens of one step, padding included."""
    shards: int = 12
    """When they are used up, they come again in another order."""
    worlds_per_shard: int = 100
    tokenizer_worlds: int = 24
    """Worlds whose dialogues the tokenizer is made from."""
    rate: float = 3e-3
    """Peak learning rate of AdamW."""
    warmup: int = 50
    """Steps until it is reached."""
    weight_decay: float = 0.01
    clip: float = 1.0
    """Largest norm of a gradient."""
    copy_steps: int = 300
    """Steps in which half of the batches are random tokens, said twice; later a twentieth."""
    bfloat16: bool = True
    """Multiply in bfloat16, with weights, optimizer and losses in float32: a third faster on most processors."""
    seed: int = 1

    def __post_init__(self) -> None:
        """Raises ConfigError for numbers that no training can be made of."""
        check_numbers(
            self,
            counts=("steps", "batch_tokens", "shards", "worlds_per_shard", "tokenizer_worlds", "warmup"),
            positive=("rate", "clip"),
        )
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed is {self.seed}.", wanted="a whole number from 0 up, below 2**63")
        if self.shards * self.worlds_per_shard > len(TRAIN):
            raise ConfigError(
                f"{self.shards} shards of {self.worlds_per_shard} worlds are more than there are for training.",
                wanted=f"at most {len(TRAIN):,} worlds",
            )


def train(
    folder: Path,
    recipe: Recipe,
    *,
    on_progress: OnProgress,
    stop: Callable[[], bool] = lambda: False,
    break_off: Callable[[], bool] | None = None,
    save_every: int = 200,
    processes: int = 2,
    threads: int = 1,
) -> Path | None:
    """Train, or go on training, in a folder; returns the folder of the finished model (`folder`/model).

    `stop`: asked after each step; once it says yes, the checkpoint is saved and None returned. `break_off`: asked while
    dialogues are built here; a yes raises KeyboardInterrupt. `processes`: those that
    build dialogues; with 1 this one does. Raises ConfigError for a folder that cannot be written, that holds another
    recipe's training or that another process trains into; LearnError if the loss becomes NaN, if the checkpoint cannot
    be read, and if a process that builds dialogues dies.
    """
    torch: Any = require("torch", extra="local", purpose="training")
    torch.set_num_threads(threads)
    with alone(folder):
        _check_recipe(folder, recipe)
        kept = folder / "tokenizer"
        if not kept.is_dir():
            _save_folder(kept, [_make_tokenizer(recipe)])
        shards = lessons.build_shards(
            folder / "lessons",
            kept,
            recipe.shards,
            worlds=recipe.worlds_per_shard,
            seed=recipe.seed,
            processes=processes,
            on_shard=lambda done, total: on_progress(Progress("dialogues", done, total)),
            stop=break_off,
        )
        if not _take_steps(folder, recipe, shards, on_progress, stop, save_every):
            return None
        return _export(folder, recipe)


def _make_tokenizer(recipe: Recipe) -> Any:
    said = [
        turn.message
        for world in lessons.train_worlds(0, recipe.tokenizer_worlds)
        for dialogue in dialogues(world, recipe.seed)
        for turn in dialogue.turns
    ]
    return tokenizer.build(tokenizer.vocabulary(said))


def _check_recipe(folder: Path, recipe: Recipe) -> None:
    path = folder / "recipe.json"
    wanted = asdict(recipe)
    if path.is_file():
        try:
            # What a recipe of an earlier MIA does not name, it had as the defaults say.
            kept = asdict(Recipe()) | json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, TypeError) as error:
            raise ConfigError(
                f"cannot read '{path}': {error}.", wanted="the recipe of the training there", hint="--out ANOTHER"
            ) from error
        if other := sorted(name for name in kept.keys() | wanted.keys() if kept.get(name) != wanted.get(name)):
            differences = ", ".join(f"{name} ({kept.get(name)} there, {wanted.get(name)} now)" for name in other)
            raise ConfigError(
                f"'{folder}' holds the training of another recipe: it differs in {differences}.",
                wanted="the same settings, or another folder",
                hint="--out ANOTHER",
            )
    write_whole(path, json.dumps(wanted, indent=2, sort_keys=True).encode())


# ── steps ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _take_steps(
    folder: Path,
    recipe: Recipe,
    shards: Sequence[Path],
    on_progress: OnProgress,
    stop: Callable[[], bool],
    save_every: int,
) -> bool:
    """Whether all steps were taken, and not stopped before the last."""
    words = _load_tokenizer(folder)
    model = initialisation.build(
        len(words), recipe.seed, pad_token_id=words.pad_token_id, eos_token_id=words.eos_token_id
    )
    steps = Steps(
        folder,
        recipe,
        list(model.parameters()),
        weight_decay=recipe.weight_decay,
        keep=lambda: {"model": model.state_dict()},
        load=lambda kept: model.load_state_dict(kept["model"]),
        wording=_WORDING,
    )
    batches = _batches(shards, recipe, steps.done, len(words), words.pad_token_id)
    model.train()

    def learn() -> tuple[torch.Tensor, int]:
        ids, learned = next(batches)
        loss = _loss(model, ids, learned, bfloat16=recipe.bfloat16)
        loss.backward()
        return loss, ids.numel()

    return steps.take(learn, on_progress, stop, save_every)


def _loss(model: Any, ids: torch.Tensor, learned: torch.Tensor, *, bfloat16: bool) -> torch.Tensor:
    """Cross entropy over the learned tokens. Rows are padded on the right, so the causal mask alone is right."""
    import torch

    counted = learned[:, 1:]
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
        hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
        logits = model.lm_head(hidden[counted])
    return torch.nn.functional.cross_entropy(logits.float(), ids[:, 1:][counted])


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
    _save_folder(out, [model, words])
    return out


def _save_folder(folder: Path, parts: Sequence[Any]) -> None:
    """Let each part save itself into the folder, which takes its name when all have."""
    import transformers

    from mia.models.weights import silenced

    fresh = folder.with_suffix(".tmp")
    shutil.rmtree(fresh, ignore_errors=True)
    with silenced(transformers):
        for part in parts:
            part.save_pretrained(fresh)
    for file in fresh.iterdir():
        # Weights are written for their owner alone, and a package is read by everybody.
        file.chmod(0o644)
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)
