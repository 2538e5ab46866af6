"""Figures of what was recorded, one message each. matplotlib comes with the extra ``[lab]``."""

from minisgl.inspector.figures.picture import Picture

__all__ = ["Picture"]
