"""Where the server's processes find each other: in a folder that only its user can enter."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Final, NamedTuple

_LONGEST: Final = 80  # characters of the folder's path: a socket's whole path may have 107


class Links(NamedTuple):
    """The inbox of each process."""

    folder: Path

    @staticmethod
    def make() -> Links:
        """A new folder with mode 0700."""
        folder = Path(tempfile.mkdtemp(prefix="minisgl-"))
        if len(str(folder)) > _LONGEST:
            folder.rmdir()
            folder = Path(tempfile.mkdtemp(prefix="minisgl-", dir="/tmp"))
        return Links(folder)

    @property
    def tokenizer(self) -> Path:
        """From the API."""
        return self.folder / "tokenizer"

    @property
    def engine(self) -> Path:
        """From the tokenizer."""
        return self.folder / "engine"

    @property
    def detokenizer(self) -> Path:
        """From the engine."""
        return self.folder / "detokenizer"

    @property
    def api(self) -> Path:
        """From all of them."""
        return self.folder / "api"

    def remove(self) -> None:
        """Delete the folder. Called twice, it does nothing."""
        shutil.rmtree(self.folder, ignore_errors=True)
