"""What the server counts, as Prometheus reads it. No label holds what a user wrote."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

from mia.types import Episode

_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """One registry for one app."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        # When a counter began is told by the first sample of it: one more line for each would say nothing.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.requests = Counter(
            "mia_requests", "Requests answered.", ("method", "route", "status"), registry=self.registry
        )
        self.seconds = Histogram(
            "mia_request_seconds", "How long requests took.", ("route",), buckets=_SECONDS, registry=self.registry
        )
        self.under_way = Gauge("mia_requests_under_way", "Requests under way.", registry=self.registry)
        self.answers = Counter(
            "mia_answers", "Questions answered, by verdict.", ("door", "outcome"), registry=self.registry
        )
        self.tokens = Counter(
            "mia_model_tokens", "Tokens of models, by role.", ("role", "kind"), registry=self.registry
        )
        self.calls = Counter("mia_model_calls", "Calls of models, by role.", ("role",), registry=self.registry)
        self.cost = Counter("mia_model_cost_dollars", "Cost of models, where it is known.", registry=self.registry)
        self.recalled = Counter("mia_memories_shown", "Memories shown to a question.", registry=self.registry)
        self.pending = Gauge("mia_pending", "Answers and memories that wait to be stored.", registry=self.registry)
        self.memories = Gauge("mia_memories", "Memories in sight.", registry=self.registry)
        self.asks = Gauge("mia_asks_under_way", "Questions under way.", registry=self.registry)

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """`route`: the pattern, such as `/v1/jobs/{id}`, never a path."""
        # A method is any word that a client likes.
        self.requests.labels(method if method in _METHODS else "other", route, str(status)).inc()
        self.seconds.labels(route).observe(seconds)

    def answered(self, episode: Episode, door: str) -> None:
        outcome = episode.verdict.outcome.value if episode.verdict is not None else "unjudged"
        self.answers.labels(door, outcome).inc()
        for role, usage in episode.usage.items():
            self.calls.labels(role.value).inc(usage.calls)
            self.tokens.labels(role.value, "prompt").inc(usage.prompt_tokens)
            self.tokens.labels(role.value, "completion").inc(usage.completion_tokens)
        if episode.total_usage.cost:
            self.cost.inc(episode.total_usage.cost)
        if episode.recall is not None:
            self.recalled.inc(len(episode.recall.shown))

    def page(self) -> bytes:
        return generate_latest(self.registry)
