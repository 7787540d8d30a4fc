"""The learner: from rollouts to weights, in four verbs that any backend could offer.

    forward_backward   rollouts and their advantages → gradients, added to those that are there
    optim_step         gradients → weights
    sample             an answer with the weights as they are now
    save_weights       the weights, as others read them

`update` is what learning does with them: advantages, then `settings.passes` times over the rollouts in steps of
`settings.minibatch`. What nothing is learnt from is left out and counted by reason; numbers that are none cost a step,
are told in its record, and never reach the weights.

Started by torchrun, every process is handed the same rollouts, takes its share of the micro-batches, and the gradients
are added up: the update is that of one process. `save` and `restore` keep everything that decides what comes next, so
that going on gives the same weights to the last bit.

One thread calls the learner at a time, except for `sample`, which may go on meanwhile.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import os
import pickle
import random
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mia.config import LearnSettings
from mia.errors import ConfigError, LearnError, require
from mia.learn.advantages import Advantages, advantages, successes
from mia.learn.batching import Row, make_rows, merge, pad, share
from mia.learn.objective import aggregate, importance, k3, policy_terms
from mia.learn.policy import Policy, Tensors, synchronise
from mia.learn.rollouts import Rollout
from mia.models.base import ChatRequest, TokenReply
from mia.models.local import LocalModel
from mia.types import new_id

if TYPE_CHECKING:
    import torch

FORMAT = 1
"""The version of a checkpoint."""
CHECKPOINT = "learner.pt"
"""The file of a checkpoint, in the folder that `save` is given."""
_OVERHEAD = {"cpu": 128, "cuda": 4096}
"""What a micro-batch costs beside its tokens, in tokens."""
_GROUPS = itertools.count()
_ROUNDING = 1e-3
"""Logprobs that differ by less are of the same weights, computed in another company."""
_SUMS = ("loss", "policy", "divergence", "entropy", "clipped_low", "clipped_high", "dual_clipped", "moved", "weight")


@dataclass(frozen=True)
class Pass:
    """One `forward_backward`. Means are over learned tokens; with several processes, over those of all."""

    loss: float = 0.0
    """What gradients were added of, aggregated as the settings say."""
    policy: float = 0.0
    """Its part without the divergence."""
    divergence: float = 0.0
    """From the base model, by k3; 0 where it was not wanted (`kl` 0)."""
    entropy: float = 0.0
    """Nats, of what each token was chosen from."""
    clipped_low: float = 0.0
    """Share of tokens whose loss no longer moves, because they became unlikely enough."""
    clipped_high: float = 0.0
    """… or likely enough."""
    dual_clipped: float = 0.0
    moved: float = 0.0
    """Estimate of the divergence from the policy before the update: the mean of old less new logprob."""
    weight: float = 1.0
    """Importance of a token: below 1 or above where another version sampled it."""
    tokens: int = 0
    """Learned tokens."""
    read_tokens: int = 0
    """Tokens that went through the network, padding included, in this process."""
    conversations: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Conversations that nothing was learnt from, by reason."""
    broken: str = ""
    """Why the next step will be skipped; empty: nothing is wrong."""
    seconds: float = 0.0


@dataclass(frozen=True)
class Step:
    """One `optim_step`."""

    number: int
    """Steps taken so far, this one included if it was."""
    norm: float = 0.0
    """Of the whole gradient, before it was clipped."""
    rate: float = 0.0
    skipped: str = ""
    """Why the weights are as they were; empty: they moved."""
    seconds: float = 0.0


@dataclass(frozen=True)
class Update:
    """What an update did."""

    passes: tuple[Pass, ...]
    steps: tuple[Step, ...]
    dropped: Mapping[str, int]
    """Rollouts, and conversations of others, that nothing was learnt from, by reason."""
    metrics: Mapping[str, float]
    """For a sink of `mia.learn.metrics`."""

    @property
    def moved(self) -> bool:
        """Whether the weights are others than before."""
        return any(not step.skipped for step in self.steps)


@dataclass(eq=False)
class _Batch:
    """One micro-batch of this process."""

    tensors: Tensors
    old: torch.Tensor | None = None
    """Logprobs before the update, [rows, learned], where they are not those of the sampler."""
    reference: torch.Tensor | None = None
    """Those of the base model; they never change."""


@dataclass(frozen=True, eq=False)
class _Plan:
    """What one optimizer step goes over: the micro-batches of this process, and the counts of all."""

    batches: tuple[_Batch, ...]
    tokens: int
    conversations: int


class Learner:
    """See the module's docstring. Made by `open`; `close` lets go of it."""

    def __init__(self, policy: Policy, settings: LearnSettings, model: str, *, threads: int, seed: int) -> None:
        torch: Any = require("torch", extra="local", purpose="learning")
        torch.set_num_threads(threads)
        self.settings = settings
        self.steps = 0
        """Optimizer steps that were taken."""
        self.updates = 0
        """Calls of `update` so far."""
        self._policy = policy
        self._model = model
        self._threads = threads
        self._seed = seed
        self._parameters = list(policy.parameters.values())
        self._optimizer = torch.optim.AdamW(self._parameters, lr=settings.rate, weight_decay=0.0, fused=True)
        self._added = False
        self._broken = ""
        self._lock = threading.Lock()  # Held while weights change or are copied.
        self._id = new_id("learner")
        self._number = 0
        self._serving = _Serving()
        self._batch = 32
        self._made_group = False

    @classmethod
    def open(
        cls,
        model: Path | str = "",
        settings: LearnSettings | None = None,
        *,
        device: str = "cpu",
        threads: int = 1,
        adapter: Path | None = None,
        seed: int = 0,
        batch: int = 32,
    ) -> Learner:
        """A learner of a model's folder (empty: the embedded one) that begins from the base, or from `adapter`
        (`Policy.open`). `seed` decides a new adapter's first weights and the order of rollouts. `batch`: conversations
        that are sampled side by side.

        Under torchrun it joins the other processes: over gloo on a CPU, over NCCL on GPUs. Raises ConfigError for what
        cannot be read and for an adapter of another base; MissingExtra.
        """
        settings = settings or LearnSettings()
        made = _join(device)
        if made and device == "cuda":
            device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        policy = Policy.open(str(model), settings, device=device, adapter=adapter, seed=seed)
        learner = cls(policy, settings, str(model), threads=threads, seed=seed)
        learner._made_group = made
        learner._batch = batch
        if adapter is not None:
            learner._number = 1
        return learner

    async def close(self) -> None:
        """End what `sample` began, and leave the other processes. Calling it twice is harmless."""
        await self._serving.close()
        if self._made_group:
            import torch.distributed

            torch.distributed.destroy_process_group()
            self._made_group = False

    @property
    def base(self) -> str:
        """The digest of the base model's weights."""
        return self._policy.base

    @property
    def version(self) -> str:
        """What `sample` calls the weights as they are now; empty while they are the base model's. Never the same for
        other weights."""
        return f"{self._id}.{self._number}" if self._number else ""

    # ── learning ──────────────────────────────────────────────────────────────────────────────────────────────────

    def update(
        self,
        rollouts: Sequence[Rollout],
        *,
        version_age: Callable[[str], int] | None = None,
        replay: Sequence[Rollout] = (),
    ) -> Update:
        """Learn from rollouts: `settings.passes` times over them, in steps of `settings.minibatch` rollouts. `replay`:
        some that were learnt before and go into this update too, however old their versions are.

        `version_age` tells how many versions ago a name (`Rollout.adapter_version`) was the current one: what is older
        than `settings.max_staleness` is left out, and where anything is older than 0 the probabilities before the
        update are the learner's own, and tokens are weighed by how much likelier they have become
        (`objective.importance`); None: all are current. Raises LearnError for rollouts that cannot be this model's.
        """
        begun = time.monotonic()
        dropped: Counter[str] = Counter()
        ages = [version_age(rollout.adapter_version) if version_age else 0 for rollout in rollouts]
        fresh = [one for one, age in zip(rollouts, ages, strict=True) if age <= self.settings.max_staleness]
        if len(fresh) < len(rollouts):
            dropped[f"more than {self.settings.max_staleness} versions old"] = len(rollouts) - len(fresh)
        fresh += replay
        found = self._advantages(fresh)
        dropped.update(found.dropped)
        kept = [(one, value) for one, value, keep in zip(fresh, found.values, found.kept, strict=True) if keep]
        rows, lost = make_rows(
            [one for one, _ in kept],
            [value for _, value in kept],
            limit=self._policy.limit,
            vocabulary=self._policy.vocabulary,
        )
        dropped.update(lost)
        self._check_same(one.id for one in (*rollouts, *replay))
        plans = [self._plan(some) for some in self._minibatches(rows, len(kept))]
        stale = any(0 < age <= self.settings.max_staleness for age in ages)
        recompute = self.settings.recompute or stale or bool(replay)
        steps_planned = len(plans) * self.settings.passes
        if recompute and steps_planned > 1:
            self._recompute(plans)
        passes: list[Pass] = []
        steps: list[Step] = []
        for _ in range(self.settings.passes):
            for plan in plans:
                passes.append(self._add(plan, recompute, {}))
                steps.append(self.optim_step())
        self.updates += 1
        rewards = [one.reward for one in rollouts]
        metrics = _metrics(passes, steps, dropped) | {
            "rollouts": float(len(rollouts)),
            "rollouts_replayed": float(len(replay)),
            "rollouts_learnt": float(len({row.rollout for row in rows})),
            "reward": sum(rewards) / max(1, len(rewards)),
            "update_seconds": time.monotonic() - begun,
        }
        return Update(tuple(passes), tuple(steps), dict(dropped), metrics)

    def _advantages(self, rollouts: Sequence[Rollout]) -> Advantages:
        if self.settings.advantage == "success":
            return successes(rollouts, threshold=self.settings.success)
        return advantages(rollouts, divide=self.settings.deviation, epsilon=self.settings.epsilon)

    def forward_backward(self, rollouts: Sequence[Rollout], advantages: Sequence[float]) -> Pass:
        """Add the gradients of the loss of these rollouts, each with its advantage, averaged over all of them at once:
        into how many micro-batches they fall changes memory and speed, and not the sum. The probabilities before the
        update are the sampler's, or, with `settings.recompute`, the learner's as it is now.

        Raises LearnError for rollouts that cannot be this model's.
        """
        rows, dropped = make_rows(rollouts, advantages, limit=self._policy.limit, vocabulary=self._policy.vocabulary)
        self._check_same(one.id for one in rollouts)
        return self._add(self._plan(rows), self.settings.recompute, dropped)

    def optim_step(self) -> Step:
        """Move the weights by the gradients that were added, their norm clipped, and forget those. Where the loss or
        the norm is no finite number, or nothing was added, the weights stay and the step says why."""
        import torch

        begun = time.monotonic()
        norm, skipped = 0.0, ""
        if not self._added:
            skipped = "there was nothing to learn from"
        else:
            self._reduce()
            norm = float(torch.nn.utils.clip_grad_norm_(self._parameters, self.settings.clip_norm))
            skipped = self._broken
            if not skipped and not _finite(norm):
                skipped = f"the gradient's norm became {norm}"
        rate = self._rate()
        if not skipped:
            for group in self._optimizer.param_groups:
                group["lr"] = rate
            with self._lock:
                self._optimizer.step()
                self.steps += 1
                self._number += 1
        self._forget()
        return Step(self.steps, norm, rate, skipped, time.monotonic() - begun)

    def _rate(self) -> float:
        """Of the next step: it rises over `settings.warmup` steps, and stays."""
        return self.settings.rate * min(1.0, (self.steps + 1) / max(1, self.settings.warmup))

    def _forget(self) -> None:
        self._optimizer.zero_grad(set_to_none=True)
        self._added, self._broken = False, ""

    def _minibatches(self, rows: Sequence[Row], rollouts: int) -> list[list[Row]]:
        """The rows of each step. Which rollouts stand together is decided by the seed and the number of the update."""
        if not rows:
            return []
        size = self.settings.minibatch or rollouts
        order = list(range(rollouts))
        random.Random(f"{self._seed} {self.updates}").shuffle(order)
        place = {rollout: number // size for number, rollout in enumerate(order)}
        found: dict[int, list[Row]] = {}
        for row in rows:
            found.setdefault(place[row.rollout], []).append(row)
        return [found[number] for number in sorted(found)]

    def _plan(self, rows: Sequence[Row]) -> _Plan:
        rank, ranks = _place()
        lots = share(
            merge(rows, rounding=_ROUNDING),
            budget=self.settings.batch_tokens,
            overhead=_OVERHEAD.get(self._policy.device.type, _OVERHEAD["cuda"]),
            rank=rank,
            ranks=ranks,
        )
        return _Plan(
            batches=tuple(_Batch(self._policy.tensors(pad(lot))) for lot in lots),
            tokens=sum(len(row.places) for row in rows),
            conversations=len(rows),
        )

    def _recompute(self, plans: Sequence[_Plan]) -> None:
        import torch

        with torch.no_grad():
            for plan in plans:
                for batch in plan.batches:
                    batch.old, _ = self._policy.logprobs(batch.tensors)

    def _add(self, plan: _Plan, recompute: bool, dropped: Mapping[str, int]) -> Pass:
        """Forward and backward over a plan's micro-batches."""
        import torch

        begun = time.monotonic()
        if not plan.tokens:
            return Pass(dropped=dropped)
        self._added = True
        sums = torch.zeros(len(_SUMS), dtype=torch.float64)
        for batch in plan.batches:
            loss, parts = self._loss(batch, plan, recompute)
            sums += torch.stack([part.detach().double() for part in (loss, *parts)]).cpu()
            if not _finite(float(sums[0])):
                # Nothing that comes of it may be added to the gradients.
                self._broken = f"the loss became {float(sums[0])}"
                break
            loss.backward()
        sums = self._summed(sums)
        told = dict(zip(_SUMS, sums.tolist(), strict=True))
        for name in _SUMS[3:]:
            told[name] /= plan.tokens
        return Pass(
            **told,
            tokens=plan.tokens,
            read_tokens=sum(batch.tensors.inputs.numel() for batch in plan.batches),
            conversations=plan.conversations,
            dropped=dropped,
            broken=self._broken or ("" if _finite(told["loss"]) else f"the loss became {told['loss']}"),
            seconds=time.monotonic() - begun,
        )

    def _loss(self, batch: _Batch, plan: _Plan, recompute: bool) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The micro-batch's share of the loss, and of the other sums of `_SUMS`: of the two parts of the loss as means
        over the plan, of the rest over tokens."""
        import torch

        settings, tensors = self.settings, batch.tensors
        if settings.kl and batch.reference is None:
            batch.reference = self._policy.reference(tensors)
        logprobs, entropy = self._policy.logprobs(tensors)
        old = tensors.sampled
        weights = torch.ones_like(logprobs)
        if recompute:
            old = logprobs.detach() if batch.old is None else batch.old
            # The sampler's last digits depend on what else it answered; equal tokens are to give equal weights.
            sampled = torch.where((old - tensors.sampled).abs() < _ROUNDING, old, tensors.sampled)
            weights = importance(old, sampled, settings.importance_cap)
        terms = policy_terms(
            logprobs,
            old,
            tensors.advantages,
            clip_low=settings.clip_low,
            clip_high=settings.clip_high,
            dual_clip=settings.dual_clip or None,
        )

        # A row that stands for several conversations weighs as much as they do.
        counts = tensors.counts[:, None].expand_as(logprobs)

        def mean(values: torch.Tensor) -> torch.Tensor:
            return aggregate(
                values * counts, tensors.mask, settings.aggregate, tokens=plan.tokens, sequences=plan.conversations
            )

        def total(values: torch.Tensor) -> torch.Tensor:
            return (values * counts * tensors.mask).sum()

        policy = mean(terms.loss * weights)
        divergence = policy.new_zeros(())
        loss = policy
        if batch.reference is not None:
            divergence = mean(k3(logprobs, batch.reference))
            loss = policy + settings.kl * divergence
        return loss, [
            policy,
            divergence,
            (entropy * counts[tensors.mask]).sum(),
            total(terms.clipped_low),
            total(terms.clipped_high),
            total(terms.dual_clipped),
            total(-terms.log_ratio),
            total(weights),
        ]

    # ── several processes ─────────────────────────────────────────────────────────────────────────────────────────

    def _reduce(self) -> None:
        """Add up the gradients of all processes, and let all know if one of them has none to add."""
        _, ranks = _place()
        if ranks == 1:
            return
        import torch.distributed

        for parameter in self._parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        broken = self._parameters[0].new_tensor([float(bool(self._broken))])
        flat = torch.cat([broken, *(parameter.grad.flatten() for parameter in self._parameters)])
        torch.distributed.all_reduce(flat)
        if flat[0] and not self._broken:
            self._broken = "the loss became no number in another process"
        start = 1
        for parameter in self._parameters:
            parameter.grad.copy_(flat[start : start + parameter.numel()].view_as(parameter))
            start += parameter.numel()

    def _summed(self, sums: torch.Tensor) -> torch.Tensor:
        if _place()[1] > 1:
            import torch.distributed

            there = sums.to(self._policy.device)
            torch.distributed.all_reduce(there)
            return there.cpu()
        return sums

    def _check_same(self, ids: Iterable[str]) -> None:
        """Every process must be handed the same rollouts. Raises LearnError in all of them."""
        _, ranks = _place()
        if ranks == 1:
            return
        import torch.distributed

        digest = int.from_bytes(hashlib.sha256(" ".join(ids).encode()).digest()[:7])
        ours = torch.tensor([digest], dtype=torch.int64, device=self._policy.device)
        all_of_them = [torch.empty_like(ours) for _ in range(ranks)]
        torch.distributed.all_gather(all_of_them, ours)
        if any(int(theirs) != digest for theirs in all_of_them):
            raise LearnError(
                f"the {ranks} processes were handed different rollouts.",
                wanted="the same in each: every process takes its share of them by itself",
                hint="roll out in one process and broadcast_object_list, or read one file",
            )

    # ── sampling ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def sample(self, request: ChatRequest) -> TokenReply:
        """Answer with the weights as they are now; the reply's `adapter` is `version`. Raises what a model raises."""
        model = await self.model()
        return await model.complete(request)

    async def model(self) -> LocalModel:
        """The model of this process that answers with the weights as they are now: the learner's own, which closes it.
        The version before the present one can still be asked for by name if it is an adapter."""
        return await self._serving.current(self)

    # ── files ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def save_weights(self, folder: Path) -> None:
        """Write what others read: a LoRA adapter of peft, or a whole model of transformers, with the digest of its base
        as "mia_base". With several processes the first one writes. Raises LearnError if it cannot."""
        self._written(folder, self._write_weights)

    def save(self, folder: Path) -> None:
        """Write everything that decides what comes next, into one file of a folder: weights, optimizer, counts and
        seed. Whole or not at all. Raises LearnError if it cannot be written."""
        self._written(folder, self._write_checkpoint)

    def _written(self, folder: Path, write: Callable[[Path], None]) -> None:
        """Let the first process write, and all know how it went."""
        rank, ranks = _place()
        failure: LearnError | None = None
        if rank == 0:
            try:
                write(folder)
            except LearnError as error:
                failure = error
        if ranks > 1:
            import torch.distributed

            failed = torch.tensor([float(failure is not None)], device=self._policy.device)
            torch.distributed.all_reduce(failed)
            if failed and failure is None:
                raise LearnError(f"the first process could not write to '{folder}'.", hint="see its own error")
        if failure is not None:
            raise failure

    def _write_weights(self, folder: Path) -> None:
        with self._lock:
            self._policy.save(folder)

    def _write_checkpoint(self, folder: Path) -> None:
        import torch

        content = {
            "format": FORMAT,
            "base": self.base,
            "kind": self.settings.weights,
            "weights": {name: value.detach() for name, value in self._policy.parameters.items()},
            "optimizer": self._optimizer.state_dict(),
            "steps": self.steps,
            "updates": self.updates,
            "seed": self._seed,
        }
        fresh = folder / f"{CHECKPOINT}.tmp"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with fresh.open("wb") as file:
                torch.save(content, file)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(folder / CHECKPOINT)
            synchronise(folder)
        except (OSError, RuntimeError) as error:  # torch tells a full disk as RuntimeError.
            fresh.unlink(missing_ok=True)
            why = getattr(error, "strerror", None) or str(error).splitlines()[0][:200]
            raise LearnError(
                f"the checkpoint cannot be written to '{folder}' ({why}).",
                wanted="a folder on a disk with room",
                hint="free some space, or choose another folder",
            ) from error

    def restore(self, folder: Path) -> None:
        """Go back to what `save` wrote; gradients that were added are forgotten. Settings are this learner's, not the
        checkpoint's. Raises LearnError for a checkpoint that cannot be read or is of another learner; nothing has
        changed then."""
        import torch

        path = folder / CHECKPOINT
        try:
            kept = torch.load(path, weights_only=True, map_location=self._policy.device)
            version, base, kind = kept["format"], kept["base"], kept["kind"]
            weights, optimizer = kept["weights"], kept["optimizer"]
            steps, updates, seed = int(kept["steps"]), int(kept["updates"]), int(kept["seed"])
        except (OSError, RuntimeError, ValueError, LookupError, TypeError, EOFError, pickle.UnpicklingError) as error:
            why = (str(error) or type(error).__name__).splitlines()[0]
            raise LearnError(
                f"the checkpoint '{path}' cannot be read ({why[:200]}).", wanted="what Learner.save wrote, whole"
            ) from error
        self._check_checkpoint(path, version, base, kind, weights)
        with self._lock, torch.no_grad():
            for name, parameter in self._policy.parameters.items():
                parameter.copy_(weights[name])
            self._optimizer.load_state_dict(optimizer)
            self.steps, self.updates, self._seed = steps, updates, seed
            self._number += 1
        self._forget()

    def _check_checkpoint(self, path: Path, version: int, base: str, kind: str, weights: Any) -> None:
        ours = {name: tuple(value.shape) for name, value in self._policy.parameters.items()}
        theirs = {name: tuple(value.shape) for name, value in weights.items()}
        wrong = ""
        if version != FORMAT:
            wrong = f"it has the format {version}, and this MIA reads {FORMAT}"
        elif base != self.base:
            wrong = f"its base model has the digest {base}, and this one {self.base}"
        elif kind != self.settings.weights:
            wrong = f'it trains "{kind}" weights, and this one "{self.settings.weights}"'
        elif different := sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)):
            first = different[0]
            wrong = f"'{first}' has shape {theirs.get(first, 'none')} there, and {ours.get(first, 'none')} here"
        if wrong:
            raise LearnError(
                f"the checkpoint '{path}' is of another learner: {wrong}.",
                wanted="the checkpoint of a learner with the same model, weights and rank",
            )


class _Serving:
    """The model that `sample` asks, and the folder that its weights come through."""

    def __init__(self) -> None:
        self._model: LocalModel | None = None
        self._previous = ""
        self._there = ""
        self._lock: tuple[asyncio.AbstractEventLoop, asyncio.Lock] | None = None

    async def current(self, learner: Learner) -> LocalModel:
        loop = asyncio.get_running_loop()
        if self._lock is None or self._lock[0] is not loop:
            self._lock = (loop, asyncio.Lock())
        async with self._lock[1]:
            if self._model is None:
                self._model = await asyncio.to_thread(
                    LocalModel.open,
                    learner._model,
                    device=str(learner._policy.device),
                    batch=learner._batch,
                    threads=learner._threads,
                )
            if learner.version != self._there:
                await self._publish(learner, self._model)
            return self._model

    async def _publish(self, learner: Learner, model: LocalModel) -> None:
        def write() -> str:
            with learner._lock:
                learner._policy.save(folder / "weights")
                return learner.version

        folder = Path(await asyncio.to_thread(tempfile.mkdtemp))
        try:
            version = await asyncio.to_thread(write)
            if learner.settings.weights == "full":
                await model.replace_weights(folder / "weights", version)
            else:
                await model.load_adapter(version, folder / "weights")
                model.set_adapter(version)
                if self._previous:
                    await model.unload_adapter(self._previous)
                self._previous = self._there
        finally:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        self._there = version

    async def close(self) -> None:
        if self._model is not None:
            await self._model.close()
            self._model = None


def _metrics(passes: Sequence[Pass], steps: Sequence[Step], dropped: Mapping[str, int]) -> dict[str, float]:
    """Means over passes and steps, sums of what is counted."""
    found: dict[str, float] = {}
    for name in _SUMS:
        found[name] = sum(getattr(one, name) for one in passes) / max(1, len(passes))
    found["gradient_norm"] = sum(step.norm for step in steps) / max(1, len(steps))
    found["rate"] = steps[-1].rate if steps else 0.0
    found["steps"] = float(sum(not step.skipped for step in steps))
    found["steps_skipped"] = float(sum(bool(step.skipped) for step in steps))
    found["tokens"] = float(sum(one.tokens for one in passes))
    found["dropped"] = float(sum(dropped.values()))
    return found


def _finite(number: float) -> bool:
    return number - number == 0.0


def _place() -> tuple[int, int]:
    """This process among those that learn together: its number and how many there are."""
    import torch.distributed

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def _join(device: str) -> bool:
    """Join the processes that torchrun started, if it did; whether this call did so."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or "RANK" not in os.environ:
        return False
    torch: Any = require("torch.distributed", extra="local", purpose="learning in several processes")
    if torch.is_initialized():
        return False
    try:
        store, rank, ranks = next(torch.rendezvous("env://"))
        # Under a name of its own: of a group that was left before, this store still tells the addresses, and a process
        # that is ahead of the others would wait for them there for ever.
        store = torch.PrefixStore(f"learner {next(_GROUPS)}", store)
        torch.init_process_group("gloo" if device == "cpu" else "nccl", store=store, rank=rank, world_size=ranks)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"this process cannot join the others ({str(error).splitlines()[0][:200]}).",
            wanted="processes started by torchrun",
            hint="torchrun --nproc-per-node 2 …, or unset WORLD_SIZE",
        ) from error
    return True
