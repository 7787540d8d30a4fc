"""Fixtures of the agents' tests."""

from __future__ import annotations

import pytest
from shelf import ShelfTool

from mia.models.ledger import Ledger


@pytest.fixture
def shelf() -> ShelfTool:
    return ShelfTool()


@pytest.fixture
def ledger() -> Ledger:
    return Ledger("q-1")
