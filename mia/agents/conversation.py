"""Conversations as tuples of messages: never changed, only grown."""

from __future__ import annotations

from mia.types import Message

Messages = tuple[Message, ...]


def append_request(messages: Messages, request: str) -> Messages:
    """The conversation with a request; it joins a user turn that is still open, for turns must alternate."""
    if messages and messages[-1].role == "user":
        last = messages[-1]
        return (*messages[:-1], last.evolve(content=f"{last.content}\n\n{request}"))
    return (*messages, Message(role="user", content=request))
