"""What becomes of labelled shapes: which class each is, which lies on top, and what the rest of the image is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from zoo_seg.data.wording import name_some
from zoo_seg.errors import DataError
from zoo_seg.images.reading import most_pixels

Overlaps = Literal["area", "order"]
"""Where shapes overlap, the smaller one is on top, or the later one."""

IGNORED_LABELS = ("__ignore__",)
"""labelme's name for what is not to be trained on."""
BACKGROUNDS = ("background", "_background_")
"""Names of what no shape covers."""


def check_size(place: str, height: int, width: int) -> None:
    """Refuse what no image that is read has.

    Raises:
        DataError: `place` begins the message.
    """
    limit = most_pixels()
    if min(height, width) < 1 or (limit is not None and height * width > limit):
        raise DataError(f"{place} is {width}x{height} pixels; expected at least 1x1, and at most {limit} in all")


@dataclass(frozen=True)
class Legend:
    """From the labels of shapes to class ids."""

    classes: tuple[str, ...]
    ids: Mapping[str, int]
    """Label -> class id, or the id of ignored pixels."""
    unlabelled: int
    """The id of pixels that no shape covers."""
    overlaps: Overlaps = "area"

    def id_of(self, label: str, place: str) -> int:
        """The class id of a label.

        Raises:
            DataError: there is no such class; `place` begins the message.
        """
        if label not in self.ids:
            raise DataError(
                f"{place}: {label!r} is no class; expected one of {name_some(self.classes)}. Add it to 'classes' in "
                f'dataset.json, or say there what it is: "map": {{"{label}": "ignored"}}'
            )
        return self.ids[label]

    def painting_order(self, areas: Sequence[float]) -> list[int]:
        """Which shapes are painted first, by their areas in pixels."""
        places = range(len(areas))
        return sorted(places, key=lambda place: -areas[place]) if self.overlaps == "area" else list(places)
