"""A run that goes on in a server: its trace as it arrives, and what an administrator may order.

A thread reads the server's events and only puts them into a queue; whoever asks for the trace
rebuilds what has arrived, so all of the history has one writer.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Any, Final
from urllib.parse import urlsplit

from minisgl.trace.file import Reading, parsed
from minisgl.trace.trace import Trace

_CONNECT: Final = 10.0  # seconds to be let in
_SILENCE: Final = 60.0  # seconds without a sign of life after which the server counts as gone
_LINE: Final = 64 << 20  # bytes of an event


class Served:
    """A server's engine, as far as others may see and order it. Usable with ``with``.

    decode: turns token ids into text, where the model's tokenizer is at hand.
    Raises ConnectionError, naming the server, where there is none or it does not let us in.
    """

    def __init__(
        self,
        url: str,
        admin_key: str | None = None,
        api_key: str | None = None,
        decode: Callable[[str], Callable[[Sequence[int]], str] | None] = lambda model: None,
    ) -> None:
        """decode: finds the decoder of a model by its name."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"url must be like http://127.0.0.1:1919, got {url!r:.80}")
        self.url = url.rstrip("/")
        self._address = parts
        self._admin_key, self._api_key = admin_key, api_key
        self._events: SimpleQueue[bytes | None] = SimpleQueue()
        self._reading = Reading(self.url)
        self._over: str | None = None
        self.paused = False
        path = "/watch" if admin_key is None else "/admin/watch"
        self._connection, self._stream = self._open("GET", path, None, _SILENCE)
        self._socket = self._connection.sock
        self._thread = threading.Thread(target=self._read, name="minisgl-watch", daemon=True)
        self._thread.start()
        for _ in range(2):  # the header, and the state with which the view begins
            self._take(self._next(_CONNECT))
        if self._over is not None:
            raise ConnectionError(f"{self.url}: {self._over}")
        self._decode = decode(self._reading.header.model) if admin_key is not None else None

    @property
    def trace(self) -> Trace:
        """What has arrived so far. Raises ValueError for lines that contradict each other."""
        while True:
            try:
                event = self._events.get_nowait()
            except Empty:
                break
            self._take(event)
        reading = self._reading
        return Trace(reading.history, reading.header, reading.start, self._decode)

    @property
    def closed(self) -> bool:
        """Whether nothing more will arrive."""
        return self._over is not None

    @property
    def over(self) -> str | None:
        """Why nothing more will arrive."""
        return self._over

    # ---- orders ----------------------------------------------------------------------------------

    def pause(self) -> None:
        """Let the engine make no further step. This and all orders need the admin key.

        Raises PermissionError without one, ConnectionError if the server is gone, RuntimeError
        with its words if it refuses.
        """
        self._order("pause")

    def resume(self) -> None:
        """Let it step by itself again."""
        self._order("resume")

    def step(self, steps: int = 1) -> None:
        """Let a paused engine make some steps."""
        self._order("step", steps=steps)

    def abort(self, rid: int) -> None:
        """End a request early."""
        self._order("abort", rids=[rid])

    def close(self) -> None:
        """Watch no more. The server goes on."""
        self._over = self._over or "closed"
        self._hang_up()

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = self._over or ("paused" if self.paused else "running")
        return f"Served({self.url}: {state})"

    # ---- inside ----------------------------------------------------------------------------------

    def _order(self, verb: str, **given: Any) -> None:
        if self._admin_key is None:
            raise PermissionError(f"to {verb} it needs the admin key: attach(url, admin_key=...)")
        connection, answer = self._open("POST", f"/admin/{verb}", given, _CONNECT)
        try:
            self.paused = bool(json.loads(answer.read())["paused"])
        finally:
            connection.close()

    def _open(
        self, method: str, path: str, body: dict[str, Any] | None, timeout: float
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        parts = self._address
        kind = (
            http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        )
        assert parts.hostname is not None
        connection = kind(parts.hostname, parts.port, timeout=timeout)
        headers = {"accept": "text/event-stream, application/json"}
        key = self._admin_key if path.startswith("/admin") else self._api_key
        if key is not None:
            headers["authorization"] = f"Bearer {key}"
        if body is not None:
            headers["content-type"] = "application/json"
        try:
            connection.request(
                method, path, None if body is None else json.dumps(body).encode(), headers
            )
            answer = connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise ConnectionError(f"no minisgl server answers at {self.url}: {error}") from error
        if answer.status == 200:
            return connection, answer
        said = _reason(answer.read(1 << 16)) or answer.reason
        connection.close()
        if answer.status in (401, 403):
            raise PermissionError(f"{self.url} does not let us in: {said}")
        raise RuntimeError(f"{self.url} refuses: {said}")

    def _hang_up(self) -> None:
        """End the stream. The thread may be reading it: that must end first, or both would wait."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(_CONNECT)
        self._connection.close()

    def _read(self) -> None:
        """The thread: events into the queue, None at the end."""
        over = "the server has ended"
        ends = False
        try:
            while line := self._stream.readline(_LINE):
                if line.startswith(b"event: end"):
                    ends = True
                elif line.startswith(b"data: ") and ends:
                    over = line[6:].decode(errors="replace").strip()
                elif line.startswith(b"data: "):
                    self._events.put(line[6:])
        except (OSError, ValueError, AttributeError, http.client.HTTPException) as error:
            over = f"the server is gone: {error}"  # AttributeError: closed meanwhile
        self._over = self._over or over
        self._events.put(None)

    def _next(self, timeout: float) -> bytes | None:
        try:
            return self._events.get(timeout=timeout)
        except Empty:
            self.close()
            raise ConnectionError(f"{self.url} sent nothing within {timeout:g} s") from None

    def _take(self, event: bytes | None) -> None:
        if event is None:
            return
        try:
            self._reading.take(parsed(event), len(event))
        except (ValueError, RecursionError) as error:
            self._over = f"what {self.url} sends makes no sense: {error}"
            self._hang_up()
            raise ValueError(self._over) from error


def _reason(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return ""
