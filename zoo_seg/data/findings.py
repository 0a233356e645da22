"""What checking a data set found, as records."""

from __future__ import annotations

from dataclasses import dataclass

from zoo_seg.data.wording import SHOWN
from zoo_seg.errors import DataError

Size = tuple[int, int]
"""(height, width) in pixels."""


@dataclass(frozen=True)
class ValueCount:
    """A value that the masks of a split store."""

    value: str
    """An index such as `38`, or a colour such as `(128, 0, 0)`."""
    meaning: str
    """The name of the class, `ignored` or `unknown label`."""
    class_id: int | None
    pixels: int
    share: float
    """Of all pixels of the split's masks, 0..1."""
    files: int
    first: tuple[str, ...]
    """Of an unknown label: the first masks that store it."""


@dataclass(frozen=True)
class SplitReport:
    """What lies in a split."""

    name: str
    pictures: int
    """So called in the JSON that `check-data` prints."""
    smallest: Size | None
    """Of the image with the fewest pixels; None where none could be read."""
    largest: Size | None
    values: tuple[ValueCount, ...]
    """In the order of the classes, then what is ignored, then unknown labels, the commonest first."""
    absent: tuple[str, ...]
    """Classes of which there is no pixel."""


@dataclass(frozen=True)
class DataReport:
    """What `check_data` found; a message names the split and the first files."""

    root: str
    layout: str
    splits: tuple[SplitReport, ...]
    errors: tuple[str, ...]
    """Training would fail."""
    warnings: tuple[str, ...]
    notes: tuple[str, ...] = ()
    """What nobody said about the data and was decided."""

    def raise_if_bad(self) -> None:
        """Do nothing where training can begin.

        Raises:
            DataError: it would fail; the message sums up why.
        """
        if not self.errors:
            return
        lines = list(self.errors[:SHOWN])
        if len(self.errors) > SHOWN:
            lines.append(f"and {len(self.errors) - SHOWN} more")
        lines.append(f"('zoo-seg check-data {self.root}' tells more)")
        raise DataError(f"{self.root} cannot be used:\n  " + "\n  ".join(lines))
