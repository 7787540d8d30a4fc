"""Logprobs of chosen tokens, without ever keeping an array of [tokens, vocabulary].

With hidden states h, the matrix W of the vocabulary, logits z = h Wᵀ and a chosen token y, the logprob is
z_y - log Σ exp(z). Its derivative by h is W_y - Σ_v p_v W_v: as wide as h, and not as the vocabulary. So it is taken on
the way forward, for a few tokens at a time while their logits are at hand, and the way back is one product with what
comes from above. Imports torch: to be imported where that is loaded anyway.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

_CHUNK = {"cpu": 1 << 18, "cuda": 1 << 27}
"""Logits that are computed at a time: as float32 they stay in a core's cache, or in a part of the card's memory."""


def selected_logprobs(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """`log_softmax(hidden @ weight.T)` at the targets, [tokens], with gradients by `hidden` and `weight` where they
    want them; and the entropy of what they were chosen from, [tokens], without. Both float32.

    `hidden` [tokens, width], `weight` [vocabulary, width], `targets` [tokens]. Logits are float32 on a CPU, and
    products of bfloat16 elsewhere.
    """
    if torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad):
        chosen, entropy = _Selected.apply(hidden, weight, targets)
        return chosen, entropy
    return _select(hidden, weight, targets, None)


class _Selected(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(
        context: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        slope = torch.empty_like(hidden) if context.needs_input_grad[0] else None
        chosen, entropy = _select(hidden, weight, targets, slope)
        context.mark_non_differentiable(entropy)
        context.save_for_backward(slope, *((hidden, weight, targets) if context.needs_input_grad[1] else ()))
        return chosen, entropy

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor, _: torch.Tensor) -> Any:
        slope, *kept = context.saved_tensors
        by_hidden = None if slope is None else slope * gradient[:, None].to(slope.dtype)
        return by_hidden, _by_weight(gradient, *kept) if kept else None, None


def _select(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, slope: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """`slope` [tokens, width], where given, is filled with the derivative of each logprob by its hidden state."""
    chosen = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
    entropy = torch.empty_like(chosen)
    matrix = weight.to(_working(hidden))
    for part in _parts(len(targets), matrix):
        logits = (hidden[part].to(matrix.dtype) @ matrix.T).float()
        total = logits.logsumexp(-1)
        chosen[part] = logits.gather(-1, targets[part, None])[:, 0] - total
        believed = (logits - total[:, None]).exp_()
        entropy[part] = total - torch.linalg.vecdot(believed, logits)
        if slope is not None:
            slope[part] = matrix[targets[part]] - believed.to(matrix.dtype) @ matrix
    return chosen, entropy


def _by_weight(
    gradient: torch.Tensor, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    """The gradient by the vocabulary's matrix. What the model believes is computed anew: it was too large to keep."""
    matrix = weight.to(_working(hidden))
    total = torch.zeros_like(weight)
    for part in _parts(len(targets), matrix):
        inputs = hidden[part].to(matrix.dtype)
        pulled = (inputs @ matrix.T).float().softmax(-1) * -gradient[part, None]
        pulled.scatter_add_(-1, targets[part, None], gradient[part, None])
        total += (pulled.to(matrix.dtype).T @ inputs).to(total.dtype)
    return total


def _working(hidden: torch.Tensor) -> torch.dtype:
    return torch.float32 if hidden.device.type == "cpu" else torch.bfloat16


def _parts(tokens: int, matrix: torch.Tensor) -> Iterator[slice]:
    rows = max(16, _CHUNK.get(matrix.device.type, _CHUNK["cuda"]) // len(matrix))
    for start in range(0, tokens, rows):
        yield slice(start, start + rows)
