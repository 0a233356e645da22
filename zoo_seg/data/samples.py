"""An image and what labels it, what lies in a split, and what a layout has to know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from zoo_seg.data.labels import Ids
from zoo_seg.data.shapes import Legend

ALL = "all"
"""The one split of a data set that is not divided."""

_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}


class Drawing(Protocol):
    """Labels that are no mask but shapes; small, and ready to be sent to another process."""

    def draw(self, legend: Legend) -> Ids:
        """The class ids (H, W).

        Raises:
            DataError: the file cannot be read, or a shape has an unknown label or lies outside the image.
        """


@dataclass(frozen=True)
class Sample:
    """An image and its labels; `SegmentationData.read_labels` reads them."""

    image: Path
    mask: Path
    """The file that holds the labels: a mask, or shapes of this and perhaps of other images."""
    name: str
    """Relative to the split, without suffix; unique in it: `aachen/aachen_000000_000019`."""
    drawing: Drawing | None = None
    """What draws the labels where the file is no mask."""

    @property
    def place(self) -> str:
        """The file of the labels, and which of them where it may hold those of several images."""
        is_its_own = self.drawing is None or self.mask.stem == Path(self.name).name
        return str(self.mask) if is_its_own else f"{self.mask} ({self.name})"

    def __post_init__(self) -> None:
        if ".." in Path(self.name).parts or Path(self.name).is_absolute():
            raise ValueError(f"{self.name!r} leads out of the data set's folder")


@dataclass(frozen=True)
class Listing:
    """What lies in a split, sound or not; each in sorted order."""

    samples: tuple[Sample, ...]
    missing: tuple[Path, ...] = ()
    """Images that a list of names has."""
    without_mask: tuple[Path, ...] = ()
    without_image: tuple[Path, ...] = ()
    """Masks: nothing reads them."""
    same_name: tuple[tuple[Path, ...], ...] = ()
    """Images that differ in their suffix only, so that one mask stands for them all."""


class Layout(Protocol):
    """How images and labels lie below a folder. A kind of data set is one class of these."""

    @property
    def splits(self) -> Mapping[str, str]:
        """The data set's own words for its splits -> ours."""

    def lie_in(self, root: Path) -> bool:
        """Whether a folder has them; cheap, as any folder may be asked."""

    def parts(self, root: Path) -> tuple[set[str], set[str]]:
        """Our names of the splits that have images, and of those that have labels."""

    def listing(self, root: Path, split: str) -> Listing:
        """What lies in a split.

        Raises:
            DataError: what lists it cannot be read.
        """


def split_of(name: str) -> str | None:
    """The split that a file or folder is called after: `instances_train2017` -> `train`; None: no one says."""
    word = ""
    for character in name.lower() + " ":
        if character.isalpha():
            word += character
        elif word in _WORDS:
            return _WORDS[word]
        else:
            word = ""
    return None


def words_of_splits() -> Mapping[str, str]:
    """Usual names of the folders of splits -> ours."""
    return dict(_WORDS)
