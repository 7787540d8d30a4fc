"""verl and TRL are optional: without them these tests are skipped, and say so.

`make test-parity` makes an environment that has both and sets MIA_TEST_PARITY, under which nothing is skipped.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from parity import references


def _load(load: Callable[[], object]) -> None:
    try:
        load()
    except ImportError as error:
        if os.environ.get("MIA_TEST_PARITY"):
            raise
        pytest.skip(f"{error}; `make test-parity` makes an environment for this")


@pytest.fixture(scope="module")
def verl() -> None:
    _load(references.load_verl)


@pytest.fixture(scope="module")
def trl() -> None:
    _load(references.load_trl)
