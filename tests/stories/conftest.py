"""What the stories share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from nursery import Nursery


@pytest.fixture(scope="session")
def shared_nursery() -> Iterator[Nursery]:
    with Nursery() as nursery:
        yield nursery


@pytest.fixture
def nursery(shared_nursery: Nursery) -> Iterator[Nursery]:
    """Where the processes of a story come from; none of them outlives it."""
    yield shared_nursery
    shared_nursery.sweep()


@pytest.fixture(scope="session")
def shared_torch_nursery() -> Iterator[Nursery]:
    with Nursery(
        imports=("mia.models.local", "mia.models.sampling", "transformers.models.llama.modeling_llama")
    ) as nursery:
        yield nursery


@pytest.fixture
def torch_nursery(shared_torch_nursery: Nursery) -> Iterator[Nursery]:
    """The same for processes that run the embedded model: they need not load its libraries."""
    yield shared_torch_nursery
    shared_torch_nursery.sweep()
