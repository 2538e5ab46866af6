"""A figure that carries its own description, and what makes one."""

from __future__ import annotations

import base64
import io
from os import PathLike
from pathlib import Path
from typing import IO, Any, Final, Protocol

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from minisgl.inspector.figures.frame import WIDTH

_SHARP: Final = 200  # pixels to the inch of what a notebook stores; it shows half of them
# Where each format of file keeps a description.
_DESCRIPTION: Final = {".png": "Description", ".svg": "Description", ".pdf": "Subject"}


class Picture(Figure):
    """A figure with its description in words, for those who do not see it.

    A notebook shows the picture and stores the words with it; a PNG, SVG or PDF file carries them
    in its metadata.
    """

    alt = ""

    def savefig(
        self,
        fname: str | PathLike[str] | IO[Any],
        *,
        transparent: bool | None = None,
        **options: Any,
    ) -> None:
        """Like ``Figure.savefig``."""
        name = f".{options['format']}" if "format" in options else _suffix(fname)
        if name in _DESCRIPTION:
            options["metadata"] = {_DESCRIPTION[name]: self.alt} | options.get("metadata", {})
        super().savefig(fname, transparent=transparent, **options)

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, str], dict[str, Any]]:
        data = io.BytesIO()
        self.savefig(data, format="png", dpi=_SHARP)
        width, height = (round(float(side) * _SHARP / 2) for side in self.get_size_inches())
        about = {"alt": self.alt, "width": width, "height": height}
        image = base64.b64encode(data.getvalue()).decode()
        return {"image/png": image, "text/plain": self.alt}, {"image/png": about}


class Drawing(Protocol):
    """What a figure shows, read from a trace: numbers, the same in words, how to draw them."""

    @property
    def height(self) -> float:
        """Inches that it wants."""
        ...

    @property
    def alt(self) -> str:
        """All it says, in words."""
        ...

    def draw(self, ax: Axes) -> None:
        """Draw it."""
        ...


def show(drawing: Drawing, ax: Axes | None) -> Picture | Axes:
    """Draw into a ``Picture`` of its own, and return that, or into ``ax`` and return that.

    Where ``ax`` is part of a Picture, its words are added to those that the Picture has.
    """
    if ax is None:
        size = (WIDTH, drawing.height)
        picture = Picture(figsize=size, layout="constrained", facecolor="white")
        show(drawing, picture.subplots())
        return picture
    drawing.draw(ax)
    figure = ax.get_figure(root=True)
    if isinstance(figure, Picture):
        figure.alt = "\n\n".join(filter(None, (figure.alt, drawing.alt)))
    return ax


def _suffix(fname: str | PathLike[str] | IO[Any]) -> str:
    return Path(fname).suffix.lower() if isinstance(fname, str | PathLike) else ".png"
