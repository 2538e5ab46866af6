"""The links between processes: ZMQ sockets in a private folder, msgpack, every message checked.

Each process binds the one inbox it reads and connects to the inboxes it writes to. What cannot be
read as a list of the messages that belong there is dropped with a warning: only a stranger or a
mistake can have sent it, and neither should stop a server.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec
import zmq

from minisgl.message.records import Message

_LOG = logging.getLogger("minisgl")

M = TypeVar("M", bound=Message)


class Inbox(Generic[M]):
    """The bound end of a link, to read from.

    kinds: the union of the messages that may arrive. Usable with ``with``.
    """

    def __init__(self, path: Path, kinds: Any, context: zmq.Context[Any] | None = None) -> None:
        """Binds at ``path``, whose folder must be there."""
        self.name = path.name
        self.socket = (context or zmq.Context.instance()).socket(zmq.PULL)
        self.socket.set_hwm(0)  # what is on its way is bounded where requests are taken
        self.socket.bind(f"ipc://{path}")
        self._decoder: msgspec.msgpack.Decoder[list[M]] = msgspec.msgpack.Decoder(list[kinds])

    def receive(self, timeout: float | None = None) -> list[M]:
        """Everything that has arrived; waits for the first so long (None: for ever). In order."""
        wait = None if timeout is None else max(0, int(timeout * 1000))
        messages: list[M] = []
        if not self.socket.poll(wait):
            return messages
        while True:
            try:
                frames = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return messages
            messages += self.read(frames)

    def read(self, frames: Sequence[bytes]) -> list[M]:
        """The messages in what arrived together; nothing, with a warning, if it is not sound."""
        try:
            (frame,) = frames
            return self._decoder.decode(frame)
        except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
            _LOG.warning("%s: a message that cannot be read was dropped: %s", self.name, error)
            return []

    def close(self) -> None:
        """Read no more."""
        self.socket.close(0)

    def __enter__(self) -> Inbox[M]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Outbox(Generic[M]):
    """The connected end of a link, to write to. It never blocks. Usable with ``with``."""

    def __init__(self, path: Path, context: zmq.Context[Any] | None = None) -> None:
        """Connects to ``path``, which may be bound later."""
        self.socket = (context or zmq.Context.instance()).socket(zmq.PUSH)
        self.socket.set_hwm(0)
        self.socket.connect(f"ipc://{path}")
        self._encoder = msgspec.msgpack.Encoder()

    def send(self, *messages: M) -> None:
        """Send messages together. None: nothing happens."""
        if messages:
            self.socket.send(self._encoder.encode(messages), zmq.NOBLOCK)

    def close(self, linger: float = 2.0) -> None:
        """Write no more; what is on its way may take ``linger`` seconds to leave."""
        self.socket.close(int(linger * 1000))

    def __enter__(self) -> Outbox[M]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
