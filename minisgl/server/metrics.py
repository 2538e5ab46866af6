"""Counters, gauges and histograms, named as the field does, for Prometheus to read."""

from __future__ import annotations

from time import monotonic
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from minisgl.server.desk import Desk, Reply

_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """What was served so far, and how the engine stands. Gauges are read from the desk."""

    media_type: Final = CONTENT_TYPE_LATEST

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        registry = self._registry = CollectorRegistry()

        def gauge(name: str, doc: str) -> Gauge:
            return Gauge(f"minisgl:{name}", doc, registry=registry)

        def counter(name: str, doc: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(f"minisgl:{name}", doc, labels, registry=registry)

        def seconds(name: str, doc: str) -> Histogram:
            return Histogram(f"minisgl:{name}", doc, registry=registry, buckets=_SECONDS)

        self._running = gauge("num_requests_running", "requests that hold a slot")
        self._waiting = gauge("num_requests_waiting", "requests that wait for a slot")
        self._usage = gauge("kv_cache_usage_perc", "share of the KV pages that requests hold")
        self._step = gauge("engine_steps", "steps of the engine so far")
        self._preempted = gauge("num_preemptions", "requests preempted so far")
        self._open = gauge("num_requests_open", "requests that clients wait for")
        self._prompt = counter("prompt_tokens", "prompt tokens of finished requests")
        self._cached = counter("prefix_cache_hits", "prompt tokens found in the prefix cache")
        self._asked = counter("prefix_cache_queries", "prompt tokens looked for there")
        self._made = counter("generation_tokens", "generated tokens")
        self._success = counter("request_success", "finished answers", ("finished_reason",))
        self._failed = counter("request_failed", "requests without an answer", ("status",))
        self._first = seconds("time_to_first_token_seconds", "until the first token was there")
        self._between = seconds("inter_token_latency_seconds", "between tokens, a request's mean")
        self._whole = seconds("e2e_request_latency_seconds", "until the last token was there")

    def ended(self, reply: Reply) -> None:
        """A request has ended, one way or the other."""
        if reply.error is not None:
            self._failed.labels(str(reply.error.status)).inc()
        now = monotonic()
        for choice in reply.choices.values():
            self._made.inc(choice.total_tokens)
            over, opened = choice.over, choice.opened
            if over is None or opened is None:
                continue
            self._success.labels(over.reason).inc()
            self._prompt.inc(opened.prompt_len)
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
            self._preempted.set(load.preempted)
            pages = int(ready.config["num_pages"])
            held = pages - load.free_pages - load.evictable_pages
            self._usage.set(held / pages)
        return generate_latest(self._registry)
