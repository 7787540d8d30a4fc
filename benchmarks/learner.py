"""What the learner learns in a second, and TRL's GRPOTrainer beside it: the same model, rollouts and thread.

    python benchmarks/learner.py [--json] [--rounds 5] [--rollouts FILE.jsonl] [--path FOLDER] [--batch-tokens 4096]

TRL wants an environment of its own (it brings other versions of transformers):

    python -m venv trl && trl/bin/pip install "trl>=1.16" peft -e .

Forward, backward and optimizer step over given rollouts with given advantages: the loss of DAPO (token mean, clip 0.2 /
0.28, dual clip 3) over an adapter with random weights, without and with divergence from the base, and over all weights.
Both sides pad micro-batches to the same budget of tokens. TRL's side is its own `training_step` with the rollouts
handed in where it would generate; its gradient checkpointing, which trades time for memory, is off. It is timed twice:

- "as it is": prompts and completions are padded to the longest of all rollouts, as GRPOTrainer does, and rows stand in
  the order they come;
- "trimmed": rows sorted by length, each micro-batch padded to its own longest only, which is the best that the same
  code can do.

Rounds alternate; medians of processor seconds, one thread. Wanted: the same loss to 1e-5, and at least 1.5 times the
rate of "as it is"; the ratio to "trimmed" is told beside it. Without `--rollouts` (rows of `Rollout.as_dict`) they are
made up: 8 questions of 60 to 160 tokens, 8 samples each, of 1 to 5 turns of 3 to 60 tokens, with 20 to 90 tokens of
observation between.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import transformers

from mia.config import LearnSettings
from mia.learn.advantages import advantages
from mia.learn.learner import Learner
from mia.learn.rollouts import Conversation, Rollout, load_rollout
from mia.models.local import EMBEDDED
from mia.models.weights import silenced

CASES = (("adapter", "lora", 0.0), ("adapter, divergence", "lora", 0.02), ("all weights", "full", 0.0))
"""Name, what learns, weight of the divergence."""
TOLERANCE = 1e-5
WANTED = 1.5
RATE = 1e-12
"""So small that every update is of the same weights."""


# ── the rollouts ──────────────────────────────────────────────────────────────────────────────────────────────────


def made_up(vocabulary: int, seed: int = 0) -> list[Rollout]:
    rng = random.Random(seed)

    def some(low: int, high: int) -> list[int]:
        return [rng.randrange(vocabulary) for _ in range(rng.randint(low, high))]

    found = []
    for question in range(8):
        prompt = some(60, 160)
        for _ in range(8):
            ids, mask = list(prompt), [False] * len(prompt)
            for turn in range(rng.randint(1, 5)):
                if turn:
                    observed = some(20, 90)
                    ids, mask = ids + observed, mask + [False] * len(observed)
                said = some(3, 60)
                ids, mask = ids + said, mask + [True] * len(said)
            row = Conversation(tuple(ids), tuple(mask), (0.0,) * len(ids))
            found.append(Rollout(group=f"q{question}", reward=rng.random(), conversations=(row,)))
    return found


def with_logprobs(rollouts: Sequence[Rollout], network: Any) -> list[Rollout]:
    """As an earlier policy sampled them: the model's own logprobs, moved so far that every clip has work to do."""
    rng = random.Random(1)
    found = []
    for rollout in rollouts:
        rows = []
        for row in rollout.conversations:
            with torch.no_grad():
                told = network(torch.tensor([row.ids])).logits[0].float().log_softmax(-1)
            own = [0.0, *told[torch.arange(len(row.ids) - 1), torch.tensor(row.ids[1:])].tolist()]
            moved = (value + rng.gauss(0, 0.3) if mark else 0.0 for value, mark in zip(own, row.mask, strict=True))
            rows.append(replace(row, logprobs=tuple(moved)))
        found.append(replace(rollout, conversations=tuple(rows)))
    return found


# ── the two sides ─────────────────────────────────────────────────────────────────────────────────────────────────


def ours(learner: Learner, rollouts: Sequence[Rollout], values: Sequence[float]) -> tuple[float, int]:
    """One update; its loss, and the tokens that went through the network."""
    done = learner.forward_backward(rollouts, values)
    step = learner.optim_step()
    assert not step.skipped, step.skipped
    return done.loss, done.read_tokens


class Theirs:
    """GRPOTrainer with the rollouts handed in where it would generate."""

    def __init__(self, network: Any, tokenizer: Any, kl: float, folder: str) -> None:
        from datasets import Dataset
        from trl import GRPOConfig, GRPOTrainer

        class Given(GRPOTrainer):  # type: ignore[misc]
            def _prepare_inputs(self, generation_batch: Any) -> Any:
                return generation_batch

        arguments = GRPOConfig(
            output_dir=folder,
            use_cpu=True,
            report_to=[],
            beta=0.0,  # The reference is computed below, as TRL's own code does it.
            loss_type="dapo",
            epsilon=0.2,
            epsilon_high=0.28,
            delta=3.0,
            learning_rate=RATE,
            weight_decay=0.0,
            max_grad_norm=1.0,
            gradient_checkpointing=False,
            bf16=False,
            num_generations=2,
            per_device_train_batch_size=2,
        )
        data = Dataset.from_list([{"prompt": "none"}] * 4)
        with silenced(transformers):
            self.trainer = Given(network, lambda **_: [0.0], arguments, train_dataset=data, processing_class=tokenizer)
        self.trainer.beta = kl
        self.trainer.model.train()
        self.trainer.create_optimizer()

    def update(self, batches: Sequence[dict[str, Any]]) -> tuple[float, int]:
        trainer = self.trainer
        trainer.current_gradient_accumulation_steps = len(batches)
        trainer.args.steps_per_generation = len(batches)
        loss, read = 0.0, 0
        for batch in batches:
            if trainer.beta:
                batch = {**batch, "ref_per_token_logps": self._reference(batch)}
            loss += float(trainer.training_step(trainer.model, batch, None))
            read += batch["prompt_ids"].numel() + batch["completion_ids"].numel()
        torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), 1.0)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()
        return loss, read

    def _reference(self, batch: dict[str, Any]) -> Any:
        with torch.no_grad(), self.trainer.model.disable_adapter():
            told = self.trainer._get_per_token_logps_and_entropies(
                self.trainer.model,
                torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1),
                torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1),
                batch["completion_ids"].shape[1],
            )
        return told[0]


def padded(rollouts: Sequence[Rollout], values: Sequence[float], budget: int, trimmed: bool) -> list[dict[str, Any]]:
    """Micro-batches as GRPOTrainer has them: prompts padded on the left, completions on the right."""
    rows = [
        (row.ids, row.mask, row.logprobs, value, row.mask.index(True))
        for rollout, value in zip(rollouts, values, strict=True)
        for row in rollout.conversations
    ]
    tokens = sum(sum(mask) for _, mask, _, _, _ in rows)
    if trimmed:
        rows.sort(key=lambda row: -len(row[0]))

    def shape(some: Sequence[Any]) -> tuple[int, int]:
        return max(row[4] for row in some), max(len(row[0]) - row[4] for row in some)

    found, start = [], 0
    while start < len(rows):
        end = start + 1
        while end < len(rows):
            wide = sum(shape(rows[start : end + 1] if trimmed else rows))
            if wide * (end + 1 - start) > budget:
                break
            end += 1
        some = rows[start:end]
        found.append(_batch(some, *shape(some if trimmed else rows), tokens))
        start = end
    return found


def _batch(rows: Sequence[Any], before: int, after: int, tokens: int) -> dict[str, Any]:
    prompt = torch.zeros(len(rows), before, dtype=torch.int64)
    completion = torch.zeros(len(rows), after, dtype=torch.int64)
    batch = {
        "prompt_ids": prompt,
        "prompt_mask": prompt.clone(),
        "completion_ids": completion,
        "completion_mask": completion.clone(),
        "tool_mask": completion.clone(),
        "old_per_token_logps": torch.zeros(len(rows), after),
        "advantages": torch.tensor([row[3] for row in rows]),
        "num_items_in_batch": torch.tensor(float(tokens)),
    }
    for number, (ids, mask, logprobs, _, first) in enumerate(rows):
        length = len(ids) - first
        batch["prompt_ids"][number, before - first :] = torch.tensor(ids[:first])
        batch["prompt_mask"][number, before - first :] = 1
        batch["completion_ids"][number, :length] = torch.tensor(ids[first:])
        batch["completion_mask"][number, :length] = 1
        batch["tool_mask"][number, :length] = torch.tensor(mask[first:], dtype=torch.int64)
        batch["old_per_token_logps"][number, :length] = torch.tensor(logprobs[first:])
    return batch


# ── the run ───────────────────────────────────────────────────────────────────────────────────────────────────────


def write_adapter(path: str, folder: Path) -> Path:
    """One with random weights, so that every part of it gets a gradient and the base is not the policy; small ones, for
    ours bounds the divergence of a token (`objective.K3_LIMIT`) and TRL does not."""
    import peft

    torch.manual_seed(0)
    config = peft.LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    network = peft.get_peft_model(_read(path), config)
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.002)
    network.save_pretrained(folder)
    return folder


def _read(path: str) -> Any:
    with silenced(transformers):
        return transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="sdpa")


def measure(
    path: str, adapter: Path, rollouts: Sequence[Rollout], kind: str, kl: float, rounds: int, budget: int
) -> dict[str, Any]:
    import peft

    values = advantages(rollouts, divide=True, epsilon=1e-4).values
    settings = LearnSettings(weights=kind, kl=kl, rate=RATE, batch_tokens=budget, recompute=False)
    learner = Learner.open(path, settings, adapter=adapter if kind == "lora" else None)
    network = _read(path)
    if kind == "lora":
        network = peft.PeftModel.from_pretrained(network, adapter, is_trainable=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    sides: dict[str, Callable[[], tuple[float, int]]] = {"ours": lambda: ours(learner, rollouts, values)}
    with tempfile.TemporaryDirectory() as folder:
        theirs = Theirs(network, tokenizer, kl, folder)
        for name, trimmed in (("as it is", False), ("trimmed", True)):
            batches = padded(rollouts, values, budget, trimmed)
            sides[name] = lambda batches=batches: theirs.update(batches)  # type: ignore[misc]
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        first: dict[str, tuple[float, int]] = {}
        for number in range(rounds + 1):
            for name, side in sides.items():
                begun = time.process_time()
                told = side()
                if number:  # The first is to warm up.
                    seconds[name].append(time.process_time() - begun)
                else:
                    first[name] = told
    asyncio.run(learner.close())
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    learned = sum(rollout.learned for rollout in rollouts)
    return {
        "loss": {name: told[0] for name, told in first.items()},
        "read_tokens": {name: told[1] for name, told in first.items()},
        "seconds": medians,
        "learned_tokens_per_second": {name: learned / each for name, each in medians.items()},
        "ratio": {name: medians[name] / medians["ours"] for name in ("as it is", "trimmed")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rollouts", type=Path, help="rows of Rollout.as_dict; made-up ones if left out")
    parser.add_argument("--path", default=str(EMBEDDED), help="the model's folder")
    parser.add_argument("--batch-tokens", type=int, default=4096)
    options = parser.parse_args()
    try:
        import datasets  # noqa: F401
        import peft  # noqa: F401
        import trl
    except ImportError as error:
        sys.exit(f'{error}. An environment of its own: python -m venv trl && trl/bin/pip install "trl>=1.16" peft -e .')
    torch.set_num_threads(1)
    network = _read(options.path)
    if options.rollouts:
        lines = options.rollouts.read_text(encoding="utf-8").splitlines()
        rollouts = [load_rollout(json.loads(line)) for line in lines if line.strip()]
        rollouts = [one for one in rollouts if one.learned and all(row.learned for row in one.conversations)]
    else:
        rollouts = made_up(network.config.vocab_size)
    rollouts = with_logprobs(rollouts, network)
    with tempfile.TemporaryDirectory() as folder:
        adapter = write_adapter(options.path, Path(folder) / "adapter")
        found = {
            name: measure(options.path, adapter, rollouts, kind, kl, options.rounds, options.batch_tokens)
            for name, kind, kl in CASES
        }
    versions = {"trl": trl.__version__, "transformers": transformers.__version__, "torch": torch.__version__}
    if options.json:
        print(json.dumps({"versions": versions, "machine": platform.processor(), "cases": found}, indent=2))
    else:
        tokens = sum(len(row.ids) for one in rollouts for row in one.conversations)
        print(f"{len(rollouts)} rollouts, {tokens} tokens, {sum(one.learned for one in rollouts)} learned; {versions}")
        print(f"{'':22}{'ours':>10}{'TRL':>10}{'trimmed':>10}{'ratio':>8}{'trimmed':>9}{'loss apart':>12}")
        for name, row in found.items():
            rates, apart = row["learned_tokens_per_second"], _apart(row)
            print(
                f"{name:22}{rates['ours']:10.0f}{rates['as it is']:10.0f}{rates['trimmed']:10.0f}"
                f"{row['ratio']['as it is']:8.2f}{row['ratio']['trimmed']:9.2f}{apart:12.1e}"
            )
        print(f"learned tokens a second; wanted: ratio {WANTED}, losses apart by {TOLERANCE:.0e} at most")
    missed = [n for n, row in found.items() if row["ratio"]["as it is"] < WANTED or not _apart(row) <= TOLERANCE]
    sys.exit(f"missed: {', '.join(missed)}" if missed else 0)


def _apart(row: dict[str, Any]) -> float:
    losses = row["loss"].values()
    return max(losses) - min(losses) if all(map(math.isfinite, losses)) else math.inf


if __name__ == "__main__":
    main()
