"""A service whose model is scripted by purpose, so that it answers any number of questions, offline and at once.

It knows one shelf (`shelf.py`): it looks Titan up, and answers "The Hague". A question with "slow" in it waits for the
delay; one with "wrong" in it is answered wrongly.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shelf import ShelfTool, call

from mia.config import Config, load_config
from mia.models import Models
from mia.models.base import ChatRequest
from mia.models.scripted import ScriptedModel
from mia.service.core import Service

RIGHT, WRONG = "The Hague", "Leiden"
WORKFLOW = "1. Find who found it (Titan → Huygens)\n2. Find his birthplace (Huygens → The Hague)"


def says(request: ChatRequest) -> str:
    """What the model of these tests says."""
    asked = request.messages[1].content if len(request.messages) > 1 else request.messages[0].content
    if request.purpose in ("plan", "replan"):
        return "<think>t</think>1. Look up Titan.\n2. Look up its discoverer."
    if request.purpose == "reflect":
        return "<think>t</think>no"
    if request.purpose == "execute":
        if request.messages[-1].role == "user" and "<tool_response>" in request.messages[-1].content:
            answer = WRONG if "wrong" in asked else RIGHT
            return f"<think>t</think><answer>{answer}</answer>"
        return call("Titan")
    if request.purpose == "compress":
        return WORKFLOW
    if request.json_schema is not None:
        return json.dumps({"score": 9, "reason": "It holds.", "correct": True, "verdict": "correct", "index": 0})
    return "CORRECT"


def models(answers: Callable[[ChatRequest], Any] = says, *, delay: float = 0.0) -> Models:
    model = ScriptedModel(answers, delay=delay, keep_requests=False)
    return Models(model, model, model, model)


def settings(home: Path, **flags: Any) -> Config:
    """`flags`: more, by dotted names with "__" for the dots."""
    base: dict[str, Any] = {"home": home, "memory.embedder": "hashing", "judge.kind": "reference"}
    return load_config(flags=base | {name.replace("__", "."): value for name, value in flags.items()})


def make_service(
    home: Path, *, answers: Callable[[ChatRequest], Any] = says, delay: float = 0.0, **flags: Any
) -> Service:
    return Service(settings(home, **flags), models=models(answers, delay=delay), tools=[ShelfTool()])
