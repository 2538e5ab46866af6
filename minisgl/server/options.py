"""How a server is reached and what it allows; each field is an option of the command line."""

from __future__ import annotations

from dataclasses import Field, dataclass, field, fields
from typing import Any, Final

LOOPBACK: Final = "127.0.0.1"
_LEAST: Final = {"port": 0, "drain": 0.0, "keep_alive": 0.001, "stalled": 0.001}  # of others: 1


def _option(default: Any, doc: str, metavar: str = "N", flag: str | None = None) -> Any:
    return field(default=default, metadata={"doc": doc, "metavar": metavar, "flag": flag})


@dataclass(frozen=True)
class ServerOptions:
    """Bounds are checked where a request is taken, before it costs anything.

    Raises ValueError, naming the field, for a number that can never be right.
    """

    host: str = _option(LOOPBACK, "address to listen at", "ADDRESS")
    port: int = _option(1919, "port to listen at; 0: a free one")
    served_model_name: str | None = _option(None, "what clients call the model", "NAME")
    api_key: str | None = _option(
        None, "key that clients must send; also MINISGL_API_KEY, which nobody sees in ps", "KEY"
    )
    admin_key: str | None = _option(
        None, "key for /admin, which is off without one; also MINISGL_ADMIN_KEY", "KEY"
    )
    max_waiting: int = _option(1024, "requests that may wait; others are refused with 429")
    max_body: int = _option(4 << 20, "bytes of a request's body")
    keep_alive: float = _option(10.0, "seconds between signs of life on a stream", "SECONDS")
    stalled: float = _option(60.0, "seconds that a client may take to read, or to send", "SECONDS")
    drain: float = _option(30.0, "seconds that open requests get after SIGTERM", "SECONDS")
    check_idle: bool = _option(False, "check every page and slot whenever nothing is to be done")
    record_to: str | None = _option(
        None, "write there what happens, for Trace.load to read", "FILE", flag="record"
    )
    record_size: int = _option(64, "MiB of a recording before the next file begins")
    record_files: int = _option(4, "files of a recording; older ones are deleted")
    redact: bool = _option(False, "record no token ids and no stop strings")

    def __post_init__(self) -> None:
        for option in fields(self):
            value = getattr(self, option.name)
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                least = _LEAST.get(option.name, 1)
                if not least <= value < 2**53:
                    raise ValueError(f"{option.name} must be at least {least}, got {value}")
        if self.port > 65535:
            raise ValueError(f"port must be at most 65535, got {self.port}")
        for name in ("api_key", "admin_key"):
            if getattr(self, name) == "":
                raise ValueError(f"{name} must not be empty; leave it out for none")

    @staticmethod
    def describe() -> tuple[Field[Any], ...]:
        """Every option with its default and, in its metadata, its sentence."""
        return fields(ServerOptions)
