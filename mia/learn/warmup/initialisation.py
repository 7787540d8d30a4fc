"""The embedded model before it has learnt anything: a small Llama whose first layers already look where copying must.

Copying names, routes and queries is most of what the model does, and the attention pattern for it (look at what
followed the last occurrence of the present token) takes a small model long to find. So it starts with it:
previous-token heads in layer 0, induction heads in layers 1 and 2. It is only a start: every weight trains.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM

HIDDEN, LAYERS, HEADS, MLP = 128, 4, 4, 384
POSITIONS = 2048
_ROPE_THETA = 10_000.0
_SPREAD = 0.08
_CONSTANT = 0.5
"""What the last dimension of every token's embedding begins as."""


def configuration(vocabulary: int, **ids: int) -> Any:
    """The architecture; `ids`: pad_token_id, eos_token_id."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=HIDDEN,
        intermediate_size=MLP,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=POSITIONS,
        rope_theta=_ROPE_THETA,
        tie_word_embeddings=True,
        bos_token_id=None,
        attn_implementation="sdpa",
        **ids,
    )


def build(vocabulary: int, seed: int, **ids: int) -> LlamaForCausalLM:
    """The model with its structured start; the same seed gives the same weights."""
    import torch
    from transformers import LlamaForCausalLM

    generator = torch.Generator().manual_seed(seed)
    model = LlamaForCausalLM(configuration(vocabulary, **ids)).float()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2:
                weight.copy_(torch.randn(weight.shape, generator=generator) * _SPREAD)
            if name.endswith(("down_proj.weight", "o_proj.weight")):
                weight.mul_(0.1)
        _structure(model, generator)
    return model


def _structure(model: LlamaForCausalLM, generator: torch.Generator) -> None:
    import torch

    width = HIDDEN // HEADS
    # Directions of the hidden space without its last dimension, which is the constant.
    basis = torch.zeros(HIDDEN - 1, HIDDEN)
    basis[:, :-1] = torch.linalg.qr(torch.randn(HIDDEN - 1, HIDDEN - 1, generator=generator))[0]
    content, received = basis[:width], (basis[width : 2 * width], basis[2 * width : 3 * width])
    constant = torch.zeros(HIDDEN)
    constant[-1] = 1.0
    embeddings = model.model.embed_tokens.weight
    # Of one length, so that the constant is the same for every token once the layer has normalised it.
    embeddings[:, :-1] *= _SPREAD * math.sqrt(HIDDEN - 1) / embeddings[:, :-1].norm(dim=1, keepdim=True)
    embeddings[:, -1] = _CONSTANT
    half = width // 2
    frequencies = _ROPE_THETA ** (-torch.arange(half) / half)

    attention = model.model.layers[0].self_attn
    for head, offset in enumerate((1, 2)):
        rows = slice(head * width, (head + 1) * width)
        looking, looked_at = torch.zeros(width), torch.zeros(width)
        looking[:half] = 1.5
        looked_at[:half], looked_at[half:] = (
            1.5 * torch.cos(offset * frequencies),
            1.5 * torch.sin(offset * frequencies),
        )
        attention.q_proj.weight[rows] = torch.outer(looking, constant)
        attention.k_proj.weight[rows] = torch.outer(looked_at, constant)
        attention.v_proj.weight[rows] = content
        attention.o_proj.weight[:, rows] = 0.25 * received[head].T
    for layer in (1, 2):
        attention = model.model.layers[layer].self_attn
        for head in range(2):
            rows = slice(head * width, (head + 1) * width)
            # A random choice of directions, so that the heads carry different parts of the content.
            carried = basis[torch.randperm(HIDDEN - 1, generator=generator)[:width]]
            attention.q_proj.weight[rows] = 1.5 * content
            attention.k_proj.weight[rows] = 1.5 * received[0]
            attention.v_proj.weight[rows] = carried
            attention.o_proj.weight[:, rows] = carried.T


def warmed_rate(step: int, steps: int, peak: float, *, warmup: int, floor: float = 0.05) -> float:
    """The learning rate: up in a line over `warmup` steps, then down in a line to `floor` of the peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * max(floor, 1.0 - (1.0 - floor) * (step - warmup) / max(1, steps - warmup))


def loss_at_chance(vocabulary: int) -> float:
    """The loss in nats of a model that knows nothing."""
    return math.log(vocabulary)
