"""Ours against the DAPO loss of the installed TRL: over given logprobs, and through a tiny model to its weights."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from parity import recorded, references
from parity.cases import Case, draw, fired, ours_as_trl

from mia.learn.objective import aggregate, k3, policy_terms

pytestmark = [pytest.mark.usefixtures("trl"), pytest.mark.filterwarnings("ignore")]

SEEDS = range(3000, 3200)


def test_every_branch_of_trl_is_reached() -> None:
    reached = sum((fired(draw(seed, far=False)) for seed in SEEDS), Counter())
    for branch in (
        "clipped low",
        "clipped high",
        "below the clip with a positive advantage",
        "above the clip with a negative advantage",
        "inside the clip",
        "dual clip",
        "no advantage",
        "masked token",
        "row without a learned token",
    ):
        assert reached[branch] >= 20, branch


def test_loss() -> None:
    for seed in SEEDS:
        case = draw(seed, far=False)
        assert recorded.differences(ours_as_trl(case), references.trl(case), tolerance=1e-12) == [], seed


def test_micro_batches() -> None:
    for seed in SEEDS[:20]:
        whole = draw(seed, far=False)
        rows = len(whole.mask)
        for start, stop in ((0, rows // 2), (rows // 2, rows)):
            part = whole.rows(start, stop)
            ours, theirs = ours_as_trl(part, whole=whole), references.trl(part, whole=whole)
            assert recorded.differences(ours, theirs, tolerance=1e-12) == [], (seed, start)


def test_the_recorded_loss_is_what_trl_gives() -> None:
    for case, outcome in recorded.objective("trl"):
        assert recorded.differences(outcome, references.trl(case)) == []


VOCABULARY = 32


@pytest.mark.parametrize("seed", range(4))
def test_gradients_of_the_weights_of_a_model(tmp_path: Path, seed: int) -> None:
    """A GRPOTrainer made by its constructor, with the forward pass that it gives its model."""
    case = draw(seed, far=False)
    model, mine = _tiny_model(seed), _tiny_model(seed)
    trainer = _trainer(model, case, tmp_path)
    rows, tokens = len(case.mask), len(case.mask[0])
    ids = torch.randint(3, VOCABULARY, (rows, tokens + 4), generator=torch.Generator().manual_seed(seed))
    mask, advantages = torch.tensor(case.mask), torch.tensor(case.advantages)

    logprobs = mine(ids).logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[:, -tokens:, 0]
    chance = random.Random(seed)

    def near(scale: float) -> torch.Tensor:
        return logprobs.detach() + torch.tensor([[chance.gauss(0, scale) for _ in range(tokens)] for _ in range(rows)])

    old, reference = near(0.4), near(0.5)
    theirs = trainer._compute_loss(
        model,
        {
            "prompt_ids": ids[:, :4],
            "prompt_mask": torch.ones(rows, 4, dtype=torch.long),
            "completion_ids": ids[:, 4:],
            "completion_mask": torch.ones(rows, tokens, dtype=torch.long),
            "tool_mask": mask,
            "advantages": advantages,
            "old_per_token_logps": old,
            "ref_per_token_logps": reference,
            "num_items_in_batch": mask.sum(),
        },
    )
    theirs.backward()
    terms = policy_terms(
        logprobs, old, advantages, clip_low=case.clip_low, clip_high=case.clip_high, dual_clip=case.dual_clip
    )
    assert (terms.clipped_low | terms.clipped_high).any()
    ours = aggregate(
        terms.loss + 0.3 * k3(logprobs, reference),
        mask,
        "token-mean",
        tokens=case.tokens,
        sequences=case.sequences,
    )
    ours.backward()

    assert ours.item() == pytest.approx(theirs.item(), abs=1e-5)
    assert sum(float(weights.grad.abs().sum()) for weights in mine.parameters()) > 0.1
    for (name, one), other in zip(mine.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-6, msg=name)


def _tiny_model(seed: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            initializer_range=0.3,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )


def _trainer(model: Any, case: Case, folder: Path) -> Any:
    """`beta` is set afterwards: with it the constructor would look for the name of a reference model, and what that
    model says is given here."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"w{number}": number for number in range(VOCABULARY)}, unk_token="w3"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = references.load_trl().GRPOTrainer(
        model=model,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=references.trl_settings(case, str(folder)),
        train_dataset=Dataset.from_list([{"prompt": "w4 w5"}] * 4),
        processing_class=PreTrainedTokenizerFast(
            tokenizer_object=words, pad_token="w0", bos_token="w1", eos_token="w2"
        ),
    )
    trainer.beta = 0.3
    trainer.current_gradient_accumulation_steps = 1
    return trainer
