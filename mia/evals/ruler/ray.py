"""The same items on many machines, where Ray is installed. A thin layer: each machine makes, asks and scores an item,
and the results come back to the one log, so resuming and reports are the same.

Every machine needs MIA, and the endpoint must be reached from all of them; texts and questions travel with the task.
"""

from __future__ import annotations

import importlib
from types import ModuleType

from mia.errors import MiaError, MissingExtra
from mia.evals.ruler.items import Sources, Work
from mia.evals.ruler.methods import MethodSettings, build_method
from mia.evals.ruler.results import Result
from mia.evals.ruler.runner import Evaluator
from mia.reader.chunks import TokenCounter


def require_ray() -> ModuleType:
    """Raises MissingExtra without Ray, which no extra of ours brings."""
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise MissingExtra(
            f"the Python package 'ray' is needed for --ray and is not installed ({error}).",
            hint="pip install ray, on every machine of the cluster; or leave --ray out",
        ) from error


class Machine:
    """What runs on a machine: an evaluator with a model of its own."""

    def __init__(self, sources: Sources, method: MethodSettings, counter: TokenCounter | None) -> None:
        self._evaluate = Evaluator(sources, build_method(method, counter))

    async def evaluate(self, work: Work) -> Result | MiaError:
        """An error travels as a value: Ray would wrap it into one of its own."""
        try:
            return await self._evaluate(work)
        except MiaError as error:
            return error


class Cluster:
    """Evaluates items on the machines of a Ray cluster."""

    def __init__(
        self,
        address: str,
        sources: Sources,
        method: MethodSettings,
        counter: TokenCounter | None = None,
        *,
        concurrency: int = 8,
    ) -> None:
        """`address`: of the cluster, as Ray takes it ("auto", "local", "ray://…"); `concurrency`: items at a time on
        one machine. Raises MissingExtra."""
        ray = require_ray()
        ray.init(address=address, log_to_driver=False)
        self._ray = ray
        kept = ray.put(sources)
        machine = ray.remote(max_concurrency=concurrency, scheduling_strategy="SPREAD")(Machine)
        nodes = sum(bool(node["Alive"]) for node in ray.nodes())
        self._machines = [machine.remote(kept, method, counter) for _ in range(nodes)]
        self._next = 0

    async def __call__(self, work: Work) -> Result:
        """As `Evaluator`, on the machines in turn."""
        machine = self._machines[self._next % len(self._machines)]
        self._next += 1
        result = await machine.evaluate.remote(work)
        if isinstance(result, MiaError):
            raise result
        return result  # type: ignore[no-any-return]

    def close(self) -> None:
        """Leave the cluster."""
        self._ray.shutdown()
