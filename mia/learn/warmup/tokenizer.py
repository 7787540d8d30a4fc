"""The embedded model's tokenizer: the words of the world, syllables, and whatever the dialogues repeat, as one token.

Text is cut at what varies (relations, sources, syllables of names, digits); the pieces between that occur often enough
(the fixed parts of prompts, the JSON of a tool call, tags) become tokens of their own. Matching is leftmost-longest.
Anything else is spelt in bytes, so that every text comes back exactly as it went in.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from mia.types import Message
from mia.world.language import RELATION, SOURCES, SYLLABLES, UNKNOWN

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, END = "<|pad|>", "<|end|>"
ROLES = ("system", "user", "assistant", "tool")
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""Chat template: a mark for the role, the content, the end of the turn."""

_FIRST = tuple(syllable.capitalize() for syllable in SYLLABLES)
_WHERE = tuple(f"{how} in {source}" for how in ("", " not") for source in SOURCES)
_VIA = tuple(f" {how} {relation}" for how in ("via", "kept by") for relation in RELATION)
"""Where a step goes follows its relation at once, so that looking it up is looking at what follows a token."""
_SLOT = re.compile(
    rf"(?:{'|'.join((*_WHERE, *_VIA))})\b|\b(?:{'|'.join((*RELATION, *SOURCES))})\b"
    rf"|\b(?:{'|'.join(_FIRST)})(?:{'|'.join(SYLLABLES)}){{1,2}}\b|\d"
)


def pieces(messages: Iterable[Message]) -> Counter[str]:
    """What stands between the slots, counted whole and line by line."""
    counted: Counter[str] = Counter()
    for message in messages:
        for piece in _SLOT.split(message.content):
            counted.update({piece, *piece.splitlines(keepends=True)})
    return counted


def vocabulary(messages: Iterable[Message], *, least: int = 8) -> list[str]:
    """The texts that are tokens: slots, frequent pieces, and the answers that are no name. `least`: occurrences."""
    words = [*RELATION, *SOURCES, *_WHERE, *_VIA, *SYLLABLES, *_FIRST, *"0123456789", UNKNOWN, "yes", "no"]
    frequent = sorted(piece for piece, count in pieces(messages).items() if piece and count >= least)
    return list(dict.fromkeys([*words, *frequent]))


def build(words: Iterable[str]) -> PreTrainedTokenizerFast:
    """The tokenizer over these texts, in this order, behind the marks and the 256 bytes."""
    from tokenizers import AddedToken, Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    marks = [PAD, END, *(f"<|{role}|>" for role in ROLES)]
    spelt = [f"<0x{byte:02X}>" for byte in range(256)]
    vocabulary = {token: number for number, token in enumerate([*marks, *spelt])}
    # Without merges: whatever is no added token falls apart into its bytes.
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in marks])
    tokenizer.add_tokens([AddedToken(word, special=False, normalized=False) for word in words])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, clean_up_tokenization_spaces=False
    )
    fast.chat_template = TEMPLATE
    return fast
