"""Events say in words what people are told of them."""

from __future__ import annotations

import pytest

from mia.events import Retrying
from mia.types import Role


@pytest.mark.parametrize(
    ("seconds", "when"), [(0.0, "at once"), (0.04, "at once"), (0.4, "in 0.4 s"), (30.0, "in 30.0 s")]
)
def test_when_a_call_is_tried_again(seconds: float, when: str) -> None:
    told = Retrying(question_id="q", at=0.0, role=Role.PLANNER, attempt=1, wait_seconds=seconds, reason="it is busy")
    assert told.when == when
