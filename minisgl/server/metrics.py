"""Counters, gauges and histograms, named as the field does, for Prometheus to read."""

from __future__ import annotations

from time import monotonic
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from minisgl.server.desk import Desk, Reply

_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_TOKENS: Final = tuple(2.0**n for n in range(18))
_MODEL: Final = "model_name"  # every metric says it


class Metrics:
    """What was served so far, and how the engine stands. Gauges are read from the desk.

    Names, labels and meanings are vLLM's, with another prefix. model: what clients call it.
    """

    media_type: Final = CONTENT_TYPE_LATEST

    def __init__(self, desk: Desk, model: str) -> None:
        self._desk, self._model = desk, model
        registry = self._registry = CollectorRegistry()

        def gauge(name: str, doc: str) -> Gauge:
            return Gauge(f"minisgl:{name}", doc, [_MODEL], registry=registry).labels(model)

        def counter(name: str, doc: str, labels: tuple[str, ...] = ()) -> Counter:
            made = Counter(f"minisgl:{name}", doc, [_MODEL, *labels], registry=registry)
            return made if labels else made.labels(model)

        def histogram(name: str, doc: str, buckets: tuple[float, ...]) -> Histogram:
            made = Histogram(f"minisgl:{name}", doc, [_MODEL], registry=registry, buckets=buckets)
            return made.labels(model)

        self._running = gauge("num_requests_running", "requests that hold a slot")
        self._waiting = gauge("num_requests_waiting", "requests that wait for a slot")
        self._usage = gauge("kv_cache_usage_perc", "share of the KV pages that requests hold")
        self._step = gauge("engine_steps", "steps of the engine so far")
        self._open = gauge("num_requests_open", "requests that clients wait for")
        self._preempted = counter("num_preemptions", "times that a request was preempted")
        self._num_preempted = 0
        self._prompt = counter("prompt_tokens", "prompt tokens of finished requests")
        self._cached = counter("prefix_cache_hits", "prompt tokens found in the prefix cache")
        self._asked = counter("prefix_cache_queries", "prompt tokens looked for there")
        self._made = counter("generation_tokens", "generated tokens")
        self._success = counter("request_success", "finished answers", ("finished_reason",))
        self._failed = counter("request_failed", "requests without an answer", ("status",))
        self._prompt_len = histogram("request_prompt_tokens", "a request's", _TOKENS)
        self._answer_len = histogram("request_generation_tokens", "a request's", _TOKENS)
        self._first = histogram("time_to_first_token_seconds", "from its arrival on", _SECONDS)
        self._between = histogram(
            "request_time_per_output_token_seconds", "after the first, a request's mean", _SECONDS
        )
        self._whole = histogram("e2e_request_latency_seconds", "until its last token", _SECONDS)

    def ended(self, reply: Reply) -> None:
        """A request has ended, one way or the other."""
        if reply.error is not None:
            self._failed.labels(self._model, str(reply.error.status)).inc()
        now = monotonic()
        for choice in reply.choices.values():
            self._made.inc(choice.total_tokens)
            over, opened = choice.over, choice.opened
            if over is None or opened is None:
                continue
            self._success.labels(self._model, over.reason).inc()
            self._prompt.inc(opened.prompt_len)
            self._prompt_len.observe(opened.prompt_len)
            self._answer_len.observe(choice.total_tokens)
            self._asked.inc(opened.prompt_len)
            self._cached.inc(over.cached)
            self._whole.observe(now - reply.begun)
            if over.first is not None:
                self._first.observe(over.first - reply.begun)
                if choice.total_tokens > 1:
                    self._between.observe((now - over.first) / (choice.total_tokens - 1))

    def text(self) -> bytes:
        """All of them, as Prometheus reads them."""
        load, ready = self._desk.load, self._desk.ready
        self._open.set(self._desk.num_open)
        if load is not None and ready is not None:
            self._running.set(load.running)
            self._waiting.set(load.waiting)
            self._step.set(load.step + 1)
            self._preempted.inc(load.preempted - self._num_preempted)
            self._num_preempted = load.preempted
            pages = int(ready.config["num_pages"])
            held = pages - load.free_pages - load.evictable_pages
            self._usage.set(held / pages)
        return generate_latest(self._registry)
