"""The engine process: the loop of every engine, with an inbox before each step and an outbox after.

While requests run, the inbox is looked into between steps and never waited for; when nothing is
left to do, it is all that is waited for.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any, Final

from minisgl.build import load
from minisgl.config import EngineConfig
from minisgl.core import (
    Event,
    Finished,
    Logprob,
    Preempted,
    Request,
    Sampled,
    StepRecord,
)
from minisgl.engine.engine import Engine
from minisgl.message.records import (
    Began,
    Cancel,
    Generate,
    Hello,
    Load,
    Order,
    Over,
    Ready,
    Refused,
    Reported,
    Score,
    Scored,
    Stop,
    ToDetokenizer,
    ToEngine,
    Token,
)
from minisgl.message.wire import Inbox, Outbox
from minisgl.server.links import Links
from minisgl.server.stage import Report, plain
from minisgl.server.watch import Gallery
from minisgl.trace.record import Limits, Recorder

_SHOWN: Final = 1000  # requests that an administrator is told of
_GLANCE: Final = 1.0  # seconds between looks at the processes that compute
LOCATED: Final = "located: "  # what the report of the model's folder begins with


@dataclass(frozen=True)
class Recording:
    """Where and how a server writes down what happens."""

    path: Path
    limits: Limits
    redact: bool


@dataclass(frozen=True)
class Generation:
    """The work of the engine process."""

    model: str
    config: EngineConfig
    name: str  # what clients call the model
    recording: Recording | None = None
    check_idle: bool = False

    def __call__(self, links: Links, report: Report) -> None:
        """Report the model's folder, load it, and run until a ``Stop`` has passed."""
        from minisgl.models.hub import locate  # imports torch, which the API can do without

        report(LOCATED + str(locate(self.model)))
        inbox: Inbox[Any] = Inbox(links.engine, ToEngine)
        out: Outbox[Any] = Outbox(links.detokenizer)
        api: Outbox[Any] = Outbox(links.api)
        with load(self.model, self.config) as engine, inbox, out, api:
            service = Service(engine, self.name, self.recording, self.check_idle)
            patience = _GLANCE if engine.workers else None  # one may die while nobody asks
            while not service.stopped:
                messages = inbox.receive(0 if service.busy else patience)
                out.send(*service.take(messages))
                api.send(*service.reports())
                out.send(*service.step())
                api.send(*service.gallery.said())
            service.close()


class Service:
    """An engine as seen from the ring: messages in, messages out. It owns the engine.

    paused: no step is made but those that ``steps_allowed`` counts.
    """

    def __init__(
        self,
        engine: Engine,
        name: str = "",
        recording: Recording | None = None,
        check_idle: bool = False,
    ) -> None:
        self.engine, self.name, self._check_idle = engine, name, check_idle
        self.paused, self.stopped = False, False
        self.steps_allowed = 0
        self._stopping = False
        self._is_settled = True  # the engine has said that it has nothing to do
        self._open: dict[int, _Open] = {}
        self._preempted = 0
        self._reports: list[Reported] = []
        self.gallery = Gallery(engine)
        self._recorder: Recorder | None = None
        self._begin_recording = False  # as soon as nothing is in flight
        if recording is not None:
            path, limits, redact = recording.path, recording.limits, recording.redact
            self._recorder = Recorder(path, engine.header, limits, redact)
            self._recorder.begin(None)
            engine.listeners.append(self._recorder.listen)
            engine.observers.append(self._recorder.record)

    @property
    def busy(self) -> bool:
        """Whether a step could be made without any further message."""
        can_step = not self.paused or self.steps_allowed > 0
        to_do = self.engine.busy or not self._is_settled
        return can_step and to_do or self._stopping or self.gallery.has_visitors

    def take(self, messages: Iterable[ToEngine]) -> list[ToDetokenizer]:
        """Act on messages; returns what is to be said at once."""
        out: list[ToDetokenizer] = []
        for message in messages:
            match message:
                case Generate():
                    out.append(self._add(message))
                case Cancel(rid=rid):
                    self.engine.abort(rid)
                case Order():
                    self._reports.append(self._obey(message))
                case Hello():
                    out.append(self._ready())
                case Stop():
                    self._stopping, self.paused = True, False
        return out

    def reports(self) -> list[Reported]:
        """Answers to orders, since they were asked for last."""
        reports, self._reports = self._reports, []
        return reports

    def step(self) -> list[ToDetokenizer]:
        """Make a step if there is one to make; returns what came of it."""
        if self.gallery.has_visitors and not self.engine.in_flight:
            self.gallery.open()
        if self.paused and not self.steps_allowed and not self.gallery.has_visitors:
            return []
        record = self._next()
        self._is_settled = record is None
        if record is None:
            self.steps_allowed = 0
            if self._check_idle:
                self.engine.check()
            if self._stopping:
                self.stopped = True
                return [Stop()]
            return []
        self.steps_allowed = max(0, self.steps_allowed - 1)
        return [*self._told(record), self._load(record)]

    def close(self) -> None:
        """End the recording."""
        if self._recorder is not None:
            self._recorder.end()

    # ---- inside ----------------------------------------------------------------------------------

    def _next(self) -> StepRecord | None:
        """The next step's record. Before a file of the recording begins, nothing more is launched
        until all that is in flight is collected.
        """
        recorder = self._recorder
        if self.gallery.has_visitors:
            return self.engine.collect()  # the doors open once nothing is in flight
        if recorder is not None and (self._begin_recording or recorder.wants_state):
            if self.engine.in_flight:
                return self.engine.collect()
            self._begin_recording = False
            recorder.begin(self.engine.state())
        return self.engine.step()

    def _record(self, on: bool) -> None:
        recorder = self._recorder
        if recorder is None:
            raise RuntimeError("there is nowhere to record to; start the server with --record FILE")
        if not on:
            recorder.end()
        self._begin_recording = on and not recorder.is_on

    def _add(self, asked: Generate) -> Began | Refused:
        rid = asked.rid
        try:
            request = self.engine.add(asked.prompt, asked.sampling, rid=rid)
        except (TypeError, ValueError) as error:
            return Refused((rid,), str(error))
        self._open[rid] = _Open(request, asked.echo)
        prompt = asked.prompt if asked.echo else None
        return Began(rid, request.prompt_len, prompt, tuple(asked.sampling.stop), asked.whole)

    def _obey(self, order: Order) -> Reported:
        try:
            return Reported(order.key, self._ordered(order.verb, order.given))
        except (OSError, RuntimeError, TypeError, ValueError) as error:
            return Reported(order.key, None, str(error))

    def _ordered(self, verb: str, given: dict[str, Any]) -> dict[str, Any]:
        match verb, given:
            case "pause", {}:
                self.paused, self.steps_allowed = True, 0
            case "resume", {}:
                self.paused, self.steps_allowed = False, 0
            case "step", {"steps": int(steps)}:
                if not self.paused:
                    raise RuntimeError("the engine is not paused, so it steps by itself")
                self.steps_allowed = steps
            case "abort", {"rids": list(rids)}:
                for rid in rids:
                    self.engine.abort(rid)
            case "abort", {}:
                for rid in list(self._open):
                    self.engine.abort(rid)
            case "record", {"on": bool(on)}:
                self._record(on)
            case "watch", {"key": int(key), "redact": bool(redact)}:
                self.gallery.enter(key, redact)
                return {}
            case "unwatch", {"key": int(key)}:
                self.gallery.leave(key)
                return {}
            case "flush_cache", {}:
                self.engine.flush_cache()
            case "config", {}:
                pass
            case _:
                raise ValueError(f"unknown order {verb!r} with {given!r:.80}")
        return self._stands()

    def _records(self) -> dict[str, Any] | None:
        recorder = self._recorder
        if recorder is None:
            return None
        on = recorder.is_on or self._begin_recording
        return {"on": on, "file": str(recorder.path), "failed": recorder.failed}

    def _stands(self) -> dict[str, Any]:
        """The engine as an administrator sees it."""
        engine = self.engine
        return {
            "paused": self.paused,
            "next_step": engine.next_step,
            "recording": self._records(),
            **engine.gauges._asdict(),
            "requests": [
                {
                    "rid": rid,
                    "state": this.request.state,
                    "prompt_tokens": this.request.prompt_len,
                    "generated_tokens": len(this.request.tokens) - this.request.prompt_len,
                }
                for rid, this in list(self._open.items())[:_SHOWN]
            ],
            "config": plain(self._settings),
        }

    def _ready(self) -> Ready:
        engine = self.engine
        limits = engine.config.limits
        sizes = (limits.max_seq_len, limits.max_running, engine.vocab_size)
        return Ready(self.name, plain(self._settings), *sizes)

    @property
    def _settings(self) -> dict[str, Any]:
        return {name: getattr(self.engine.config, name) for name in EngineConfig.describe()}

    def _told(self, record: StepRecord) -> Iterable[ToDetokenizer]:
        now = monotonic()
        for event in record.events:
            yield from self._event(event, now)

    def _event(self, event: Event, now: float) -> Iterable[ToDetokenizer]:
        if isinstance(event, Preempted):
            self._preempted += 1
        if not isinstance(event, Sampled | Finished) or event.rid not in self._open:
            return
        this = self._open[event.rid]
        request = this.request
        if this.wants_prompt and (isinstance(event, Sampled) or event.reason == "length"):
            this.wants_prompt = False
            yield Scored(event.rid, tuple(map(_score, _with_ids(request))))
        if isinstance(event, Sampled):
            made = len(request.tokens) - request.prompt_len
            this.first = this.first or now
            score = None
            if request.sampling.logprobs is not None:
                score = _scored(request.scores[made - 1], event.token)
            yield Token(event.rid, event.token, score)
        else:
            del self._open[event.rid]
            stopped = event.reason == "stop" and request.text_len is None
            over = (event.reason, stopped, request.text_len, request.cached)
            yield Over(event.rid, *over, this.first, request.error)

    def _load(self, record: StepRecord) -> Load:
        g = record.gauges
        pages = (g.free_pages, g.cached_pages, g.evictable_pages)
        counts = (g.waiting, g.running, self._preempted)
        return Load(record.batch.step, *pages, *counts, self.paused)


@dataclass
class _Open:
    """A request that is not over."""

    request: Request
    echo: bool
    first: float | None = None  # when its first token was there

    def __post_init__(self) -> None:
        self.wants_prompt = self.request.sampling.prompt_logprobs is not None


def _with_ids(request: Request) -> Iterable[tuple[Logprob | None, int]]:
    return zip(request.prompt_logprobs or (), request.prompt, strict=True)


def _score(pair: tuple[Logprob | None, int]) -> Score | None:
    return None if pair[0] is None else _scored(pair[0], pair[1])


def _scored(said: Logprob, token: int) -> Score:
    return Score(token, said.logprob, said.top)
