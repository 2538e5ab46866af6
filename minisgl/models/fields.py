"""One JSON file of named values, read with checks. Knows nothing of what the fields mean."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path


class Fields:
    """A JSON object whose every wrong field becomes a ValueError that names file and field.

    null counts as missing. A field that is missing takes its default, or is an error without one.
    """

    def __init__(self, values: Mapping[str, object], where: str) -> None:
        self.values, self.where = values, where

    @staticmethod
    def read(path: Path) -> Fields:
        """The object in the file ``path``. Raises FileNotFoundError, or ValueError for no JSON."""
        if not path.is_file():
            raise FileNotFoundError(f"{path.parent} has no {path.name}: it is not a model folder")
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is not readable as JSON: {error}") from None
        if not isinstance(values, dict):
            raise ValueError(f"{path} must hold a JSON object, not a {type(values).__name__}")
        return Fields(values, str(path))

    def wrong(self, name: str, wants: str) -> ValueError:
        """The error that says what field ``name`` should have been."""
        value = self.get(name)
        said = "is missing" if value is None else f"is {value!r}"
        return ValueError(f"{self.where}: {name} {said}; it must be {wants}")

    def get(self, name: str) -> object:
        """The raw value, None if it is missing."""
        return self.values.get(name)

    def integer(self, name: str, default: int | None = None, least: int = 1) -> int:
        """A whole number of at least ``least``."""
        value = default if self.get(name) is None else self.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise self.wrong(name, f"a whole number of at least {least}")
        return value

    def positive(self, name: str, default: float | None = None) -> float:
        """A number above zero."""
        value = default if self.get(name) is None else self.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e30:
            raise self.wrong(name, "a number above 0")
        return float(value)

    def flag(self, name: str, default: bool = False) -> bool:
        """true or false."""
        value = default if self.get(name) is None else self.get(name)
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        """A string."""
        value = default if self.get(name) is None else self.get(name)
        if not isinstance(value, str):
            raise self.wrong(name, "a string")
        return value

    def texts(self, name: str) -> tuple[str, ...] | None:
        """A list of strings, None if it is missing."""
        value = self.get(name)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.wrong(name, "a list of strings")
        return tuple(value)

    def ids(self, name: str) -> tuple[int, ...]:
        """Token ids: one number or a list of them; () if it is missing."""
        value = self.get(name)
        items = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(item, int) and not isinstance(item, bool) for item in items):
            raise self.wrong(name, "a token id or a list of them")
        return tuple(items)

    def inner(self, name: str) -> Fields:
        """The object in a field; an empty one if it is missing."""
        value = {} if self.get(name) is None else self.get(name)
        if not isinstance(value, dict):
            raise self.wrong(name, "an object")
        return Fields(value, f"{self.where}: {name}")

    def refuse(self, name: str, *accepted: object) -> None:
        """Raise ValueError if the field is there and its value is none of ``accepted``."""
        value = self.get(name)
        if value is not None and value not in accepted:
            wants = " or ".join(repr(item) for item in accepted) if accepted else "absent"
            raise ValueError(
                f"{self.where}: {name}={value!r} is not supported for this model; "
                f"it must be {wants}"
            )
