"""What happened, to be looked at: the engine's history as frames, words, files and timelines."""

from minisgl.trace.history import History
from minisgl.trace.trace import Trace

__all__ = ["History", "Trace"]
