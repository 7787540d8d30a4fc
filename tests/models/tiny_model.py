"""Tiny models of transformers with random weights and a tokenizer of their own, written to a folder in a blink.

The tokenizer is a byte-level BPE, so that every text has tokens and some characters have several. Weights are wide
(`initializer_range`), so that greedy replies wander instead of repeating one token.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from mia.models.base import ChatRequest
from mia.models.weights import silenced
from mia.types import Message, Role

TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ("<|system|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|end|>")
LETTERS = "abcdefghijklmnopqrstuvwxyz"
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 512,
    "initializer_range": 0.5,
}


def tiny_tokenizer() -> Any:
    vocabulary = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges = [(first, second) for first in LETTERS for second in LETTERS[:10]]
    for first, second in merges:
        vocabulary[first + second] = len(vocabulary)
    bpe = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|end|>")
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def write_model(
    folder: Path, kind: str = "llama", *, seed: int = 0, template: str | None = TEMPLATE, **changes: Any
) -> str:
    """A model of this architecture in a folder; `changes` are settings of its configuration."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    settings = {**SMALL, "vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, **changes}
    torch.manual_seed(seed)
    with silenced(transformers):
        config = transformers.AutoConfig.for_model(kind, bos_token_id=None, pad_token_id=None, **settings)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return str(folder)


def write_adapter(base: str, folder: Path, *, seed: int = 1, **changes: Any) -> Path:
    """A LoRA adapter with random weights for a base model."""
    import peft

    torch.manual_seed(seed)
    settings = {"r": 4, "target_modules": ["q_proj", "down_proj"], "init_lora_weights": False, **changes}
    with silenced(transformers):
        network = transformers.AutoModelForCausalLM.from_pretrained(base)
        peft.get_peft_model(network, peft.LoraConfig(**settings)).save_pretrained(folder)
    return folder


def asking(text: str, **settings: Any) -> ChatRequest:
    return ChatRequest((Message(role="user", content=text),), Role.EXECUTOR, "q", "execute", **settings)


def random_text(rng: random.Random, longest: int = 200) -> str:
    return "".join(rng.choice("abcdefghij klm é") for _ in range(rng.randint(1, longest)))
