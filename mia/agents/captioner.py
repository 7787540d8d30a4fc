"""Captions: what an image shows, in words, made once by the Manager's vision model and kept by image hash."""

from __future__ import annotations

import json
import os
from pathlib import Path

from mia.errors import ModelReplyError, StoreError
from mia.models.base import ChatModel, ChatRequest
from mia.models.ledger import Ledger
from mia.prompt import Prompt, split_thinking
from mia.transcript import cut_words
from mia.types import Image, Message, Question, Role

_CAPTION = Prompt.beside(__file__, "caption")

CAPTION_WORDS = 80


class Captioner:
    """Captions images through one model; `folder` keeps one small JSON file per image hash and prompt version."""

    def __init__(self, model: ChatModel, folder: Path) -> None:
        self._model = model
        self._folder = folder

    @property
    def prompts(self) -> dict[str, str]:
        """Prompt name → version."""
        return {_CAPTION.name: _CAPTION.version}

    async def caption(self, question: Question, ledger: Ledger) -> Question:
        """The question with a caption, if it has images and none. Raises ModelError, BudgetExceeded, StoreError."""
        if not question.images or question.caption:
            return question
        captions = [await self._caption(image, ledger) for image in question.images]
        return question.evolve(caption=" ".join(captions))

    async def _caption(self, image: Image, ledger: Ledger) -> str:
        kept = self._folder / f"{image.sha256}.{_CAPTION.version}.json"
        try:
            return str(json.loads(kept.read_text(encoding="utf-8"))["caption"])
        except (OSError, ValueError, KeyError, TypeError):
            pass  # Not made yet, or torn by a crash: made (again) below.
        messages = (Message(role="user", content=_CAPTION.text, images=(image,)),)
        request = ChatRequest(messages=messages, role=Role.MANAGER, question_id=ledger.question_id, purpose="caption")
        reply = await ledger.complete(self._model, request)
        parts = split_thinking(reply.text)
        caption = cut_words(parts[1], CAPTION_WORDS) if parts else ""
        if not caption:
            raise ModelReplyError("the vision model wrote no caption.")
        self._keep(kept, caption)
        return caption

    def _keep(self, path: Path, caption: str) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            fresh = path.with_suffix(f".{os.getpid()}.tmp")
            fresh.write_text(json.dumps({"caption": caption, "model": self._model.name}), encoding="utf-8")
            fresh.replace(path)
        except OSError as error:
            raise StoreError(f"cannot keep a caption at '{path}': {error.strerror}.") from error
