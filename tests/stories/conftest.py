"""What the stories share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from nursery import Nursery
from serving import Endpoint, Serving

EMBEDDED = ("mia.models.local", "mia.models.sampling", "transformers.models.llama.modeling_llama")
"""What processes that run the embedded model need not load themselves."""


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
    with Nursery(imports=EMBEDDED) as nursery:
        yield nursery


@pytest.fixture
def torch_nursery(shared_torch_nursery: Nursery) -> Iterator[Nursery]:
    """The same for processes that run the embedded model: they need not load its libraries."""
    yield shared_torch_nursery
    shared_torch_nursery.sweep()


@pytest.fixture
def serve() -> Iterator[Serving]:
    """Starts `mia serve`."""
    with Serving.open() as serving:
        yield serving


@pytest.fixture
def serve_learning() -> Iterator[Serving]:
    """The same for servers of the embedded model."""
    with Serving.open(*EMBEDDED) as serving:
        yield serving


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    """A model for them."""
    with Endpoint().running() as endpoint:
        yield endpoint
