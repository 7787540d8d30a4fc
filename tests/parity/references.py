"""The objective and the advantages as verl and TRL compute them: their own functions, called on our cases.

Both packages are optional (`make test-parity` makes an environment that has them). Loading raises ImportError with a
reason where they are missing.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
import sys
import tempfile
import types
import warnings
from collections import defaultdict
from typing import Any

import numpy as np
import torch
from parity.cases import Case, Outcome, tensors, with_gradient

AGGREGATIONS = {"token-mean": "token-mean", "sequence-mean": "seq-mean-token-mean"}
"""Ours by verl's names."""
NO_DUAL_CLIP = 1e12
"""verl always has one; the ratio never comes near this."""


def versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("verl", "trl", "torch")}


def load_verl() -> tuple[Any, Any, Any]:
    """The modules `core_algos` and `rollout_corr_helper`, and the class ActorConfig.

    `import verl` imports Ray for its distributed data, which nothing here touches: an empty module stands in for it
    where it is not installed.
    """
    if importlib.util.find_spec("verl") is None:
        raise ImportError("verl is not installed")
    if "ray" not in sys.modules and importlib.util.find_spec("ray") is None:
        stand_in = types.ModuleType("ray")
        stand_in.__spec__ = importlib.machinery.ModuleSpec("ray", loader=None)
        stand_in.ObjectRef = object  # type: ignore[attr-defined]  # Named by annotations.
        sys.modules["ray"] = stand_in
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return (
            importlib.import_module("verl.trainer.ppo.core_algos"),
            importlib.import_module("verl.trainer.ppo.rollout_corr_helper"),
            importlib.import_module("verl.workers.config").ActorConfig,
        )


def load_trl() -> Any:
    """The module of GRPOTrainer."""
    if importlib.util.find_spec("trl") is None:
        raise ImportError("TRL is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("trl.trainer.grpo_trainer")


def verl(case: Case) -> Outcome:
    """verl's clipped policy loss, with and without importance weights, its k3 divergence and its aggregation."""
    algorithms, correction, actor_config = load_verl()
    logprobs, old, reference, sampled, mask, advantages = tensors(case)
    config = actor_config(
        strategy="fsdp",
        rollout_n=1,
        ppo_micro_batch_size_per_gpu=1,
        clip_ratio_low=case.clip_low,
        clip_ratio_high=case.clip_high,
        clip_ratio_c=NO_DUAL_CLIP if case.dual_clip is None else case.dual_clip,
    )
    how = AGGREGATIONS[case.how]
    weights, _ = correction.compute_rollout_correction_weights(
        old - sampled, mask, rollout_is="token", rollout_is_threshold=case.cap
    )
    divergence = algorithms.kl_penalty(logprobs, reference, "low_var_kl")

    def policy_loss(with_weights: torch.Tensor | None) -> tuple[torch.Tensor, dict[str, float]]:
        result: tuple[torch.Tensor, dict[str, float]] = algorithms.compute_policy_loss_vanilla(
            old, logprobs, advantages, mask, loss_agg_mode=how, config=config, rollout_is_weights=with_weights
        )
        return result

    loss, metrics = policy_loss(None)
    outcome: Outcome = {
        "k3": divergence.tolist(),
        "importance": weights.tolist(),
        "clipped": metrics["actor/pg_clipfrac"],
        "dual clipped": metrics["actor/pg_clipfrac_lower"],
        "divergence from old": metrics["actor/ppo_kl"],
    }
    for name, value in {
        "": loss,
        "weighted ": policy_loss(weights)[0],
        "k3 ": algorithms.agg_loss(divergence, mask, how),
    }.items():
        outcome[f"{name}loss"], outcome[f"{name}gradient"] = with_gradient(value, logprobs)
    return outcome


def verl_advantages(rewards: list[float], groups: list[str], *, divide: bool, epsilon: float) -> list[float]:
    """verl's group-relative advantages, one for each sample. Each is a row of one token here."""
    algorithms, _, _ = load_verl()
    column = torch.tensor(rewards, dtype=torch.float64)[:, None]
    values, _ = algorithms.compute_grpo_outcome_advantage(
        column, torch.ones_like(column), np.array(groups), epsilon=epsilon, norm_adv_by_std_in_grpo=divide
    )
    return [float(value) for value in values[:, 0]]


class _Given(torch.nn.Module):
    """A model whose logprobs are given, in the shape that GRPOTrainer asks its models for."""

    def __init__(self, logprobs: torch.Tensor) -> None:
        super().__init__()
        self.logprobs = logprobs

    def forward(self, **_: Any) -> types.SimpleNamespace:
        return types.SimpleNamespace(log_probs=self.logprobs, entropy=torch.zeros_like(self.logprobs))


def trl(case: Case, *, whole: Case | None = None) -> Outcome:
    """TRL's DAPO loss: the trainer's own `_compute_loss`, over a model that gives our logprobs.

    `whole`: the batch that the case is a micro-batch of.
    """
    trainer_module = load_trl()
    logprobs, old, reference, _, mask, advantages = tensors(case)
    model = _Given(logprobs)
    trainer = trainer_module.GRPOTrainer.__new__(trainer_module.GRPOTrainer)
    set_up_trainer(trainer, case, model)
    rows = len(case.mask)
    loss = trainer._compute_loss(
        model,
        {
            "prompt_ids": torch.zeros(rows, 1, dtype=torch.long),
            "prompt_mask": torch.ones(rows, 1, dtype=torch.long),
            "completion_ids": torch.zeros_like(mask),
            "completion_mask": torch.ones_like(mask),
            "tool_mask": mask,
            "advantages": advantages[:, 0],
            "old_per_token_logps": old,
            "ref_per_token_logps": reference,
            "num_items_in_batch": torch.tensor((whole or case).tokens),
        },
    )
    value, gradient = with_gradient(loss, logprobs)
    told = trainer._metrics["train"]
    return {
        "loss": value,
        "gradient": gradient,
        "clipped low": told["clip_ratio/low_mean"][0],
        "clipped high": told["clip_ratio/high_mean"][0],
    }


def trl_settings(case: Case, folder: str) -> Any:
    """GRPOConfig of the case. One gradient step a generation, so that `num_items_in_batch` is the whole batch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("trl").GRPOConfig(
            output_dir=folder,
            use_cpu=True,
            bf16=False,
            report_to="none",
            loss_type="dapo",
            per_device_train_batch_size=2,
            num_generations=2,
            gradient_accumulation_steps=1,
            steps_per_generation=1,
            epsilon=case.clip_low,
            epsilon_high=case.clip_high,
            delta=case.dual_clip,
            # TRL multiplies the divergence by the ratio if not told otherwise; verl, and ours, do not.
            use_bias_correction_kl=False,
            temperature=1.0,
        )


def set_up_trainer(trainer: Any, case: Case, model: torch.nn.Module) -> None:
    """What `_compute_loss` reads of a trainer that was not made by its constructor: as the constructor sets it from
    GRPOConfig."""
    with tempfile.TemporaryDirectory() as folder:
        settings = trl_settings(case, folder)
    trainer.args = settings
    trainer.model = model.train()
    trainer.accelerator = importlib.import_module("accelerate").Accelerator(cpu=True)
    trainer.loss_type = settings.loss_type
    trainer.beta = case.kl
    trainer.epsilon_low, trainer.epsilon_high = settings.epsilon, settings.epsilon_high
    trainer.importance_sampling_level = settings.importance_sampling_level
    trainer.top_entropy_quantile = settings.top_entropy_quantile
    trainer.off_policy_mask_threshold = settings.off_policy_mask_threshold
    trainer.use_vllm = settings.use_vllm
    trainer.aux_loss_enabled = trainer._entropy_bonus_enabled = False
    trainer.current_gradient_accumulation_steps = settings.gradient_accumulation_steps
    trainer._metrics = {"train": defaultdict(list)}
