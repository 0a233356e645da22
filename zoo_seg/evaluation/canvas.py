"""Figures without a screen: the one place that needs matplotlib to be there."""

from __future__ import annotations

from pathlib import Path

from zoo_seg.errors import MissingExtraError
from zoo_seg.hub.files import replacing

try:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch as Patch
except ImportError as error:
    raise MissingExtraError(f"the chart needs matplotlib ({error}); pip install 'zoo_seg[evaluate]'") from None

_LONGEST_NAME = 32
"""Characters of a name that are shown."""


def new_figure(width: float, height: float, dpi: int = 110) -> Figure:
    """Of so many inches."""
    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Path) -> None:
    """As a PNG, which replaces one that is there in one step."""
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=figure.dpi)


def short(name: str) -> str:
    """A name as far as there is room for it."""
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 3].rstrip() + "..."
