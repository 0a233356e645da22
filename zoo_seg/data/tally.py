"""What was seen of each image, added up over a split."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import combinations

from zoo_seg.data.findings import Size, SplitReport, ValueCount
from zoo_seg.data.labels import IGNORED, MOST_UNKNOWN, UNKNOWN, Rule, Stored, StoredValues
from zoo_seg.data.layouts import SegmentationData
from zoo_seg.data.samples import Listing, Sample
from zoo_seg.data.wording import SHOWN, many, name_some

_MOST_REASONS = 10
"""Different ones why files cannot be read that are told apart."""


@dataclass(frozen=True)
class Seen:
    """What reading one image and its mask showed."""

    size: Size | None = None
    """The image's, None where it cannot be read."""
    digest: bytes | None = None
    """Of the image's file."""
    stored: StoredValues | None = None
    """None where the mask cannot be read."""
    unreadable: tuple[tuple[str, str], ...] = ()
    """(file, reason)"""
    mismatch: str | None = None
    """The image and the mask differ in size."""


@dataclass
class Some:
    """How many there are, and the first of them."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, text: str) -> None:
        self.count += 1
        if len(self.first) < SHOWN:
            self.first.append(text)

    def __str__(self) -> str:
        return name_some(self.first, self.count)


@dataclass
class _Value:
    pixels: int = 0
    masks: Some = field(default_factory=Some)


class Tally:
    """A split, seen image by image; its memory does not grow with the number of images."""

    def __init__(self, data: SegmentationData, split: str, listing: Listing) -> None:
        self.data, self.split, self.listing = data, split, listing
        self.smallest: Size | None = None
        self.largest: Size | None = None
        self.mismatches, self.blank = Some(), Some()
        self.unreadable: dict[str, Some] = {}
        """By reason."""
        self.values: dict[tuple[Stored, int], _Value] = {}
        self.pixels = self.masks = self.unknown = 0
        self.strange: dict[tuple[Rule, type], tuple[StoredValues, Some]] = {}
        """Masks with unknown labels, together where one explanation may hold for them."""

    def add(self, sample: Sample, seen: Seen) -> None:
        for file, reason in seen.unreadable:
            if reason not in self.unreadable and len(self.unreadable) >= _MOST_REASONS:
                reason = "other reasons"
            self.unreadable.setdefault(reason, Some()).add(file)
        if seen.mismatch:
            self.mismatches.add(seen.mismatch)
        if seen.size:
            self.smallest = min(self.smallest or seen.size, seen.size, key=_area)
            self.largest = max(self.largest or seen.size, seen.size, key=_area)
        if seen.stored:
            self._add_mask(self.data.name_labels(sample), seen.stored)

    def _add_mask(self, mask: str, stored: StoredValues) -> None:
        self.masks += 1
        self.pixels += _area(stored.size)
        for value, pixels in stored.pixels.items():
            self._add_value(value, stored.meanings[value], pixels, mask)
        if all(meaning == IGNORED for meaning in stored.meanings.values()):
            self.blank.add(mask)
        unknown = stored.unknown
        if unknown:
            both, masks = self.strange.setdefault(
                (stored.rule, type(unknown[0])), (StoredValues(stored.size, stored.rule), Some())
            )
            masks.add(mask)
            for value, pixels in stored.pixels.items():
                both.add(value, stored.meanings[value], pixels)

    def _add_value(self, value: Stored, meaning: int, pixels: int, mask: str) -> None:
        key = value, meaning
        if key not in self.values:
            self.unknown += meaning == UNKNOWN
            if meaning == UNKNOWN and self.unknown > MOST_UNKNOWN:
                return
        counted = self.values.setdefault(key, _Value())
        counted.pixels += pixels
        counted.masks.add(mask)

    # --- what it comes to -----------------------------------------------------------------------

    def report(self) -> SplitReport:
        def order(item: tuple[tuple[Stored, int], _Value]) -> tuple[int, int]:
            (_, meaning), counted = item
            last = self.data.num_classes
            group = {IGNORED: last, UNKNOWN: last + 1}.get(meaning, meaning)
            return group, -counted.pixels if meaning == UNKNOWN else 0

        names = {IGNORED: "ignored", UNKNOWN: "unknown label", **dict(enumerate(self.data.classes))}
        values = tuple(
            ValueCount(
                str(value),
                names[meaning],
                meaning if meaning >= 0 else None,
                counted.pixels,
                counted.pixels / self.pixels,
                counted.masks.count,
                tuple(counted.masks.first) if meaning == UNKNOWN else (),
            )
            for (value, meaning), counted in sorted(self.values.items(), key=order)
        )
        return SplitReport(self.split, len(self.listing.samples), self.smallest, self.largest, values, self.absent())

    def absent(self) -> tuple[str, ...]:
        present = {meaning for _, meaning in self.values}
        return tuple(name for index, name in enumerate(self.data.classes) if index not in present)

    def errors(self) -> list[str]:
        """Why training would fail."""
        found = self.data.faults(self.listing)
        for reason, files in self.unreadable.items():
            found.append(f"{many(files.count, 'file')} cannot be used: {reason}: {files}")
        if self.mismatches.count:
            found.append(f"{many(self.mismatches.count, 'mask')} of another size than the image: {self.mismatches}")
        for stored, masks in self.strange.values():
            found.append(f"{self.data.labels.explain(stored)}. In {masks.count} of {self.masks} masks: {masks}")
        if self.masks and self.blank.count == self.masks and self.split != "test":
            found.append("every pixel of every mask is ignored")
        elif self._is_for_training and not self.strange and len(self.absent()) == self.data.num_classes - 1:
            found.append(self._one_class())
        return [f"{self.split}: {message}" for message in found]

    @property
    def _is_for_training(self) -> bool:
        return self.split.startswith("train")

    def _one_class(self) -> str:
        (present,) = set(self.data.classes) - set(self.absent())
        text = f"all pixels that are not ignored are {present!r}: there is nothing to learn"
        if self.data.ignore_index == 255 and any(value == 255 for value, _ in self.values):
            text += "; if 255 stands for a class (black and white masks), store its id, such as 1, in the place of 255"
            text += f', or say in dataset.json which one it is, such as "map": {{"255": "{self.data.classes[1]}"}}'
        return text

    def warnings(self) -> list[str]:
        """What is odd, but no hindrance."""
        listing, found = self.listing, []
        if listing.without_image and not listing.without_mask:
            masks = self.data.name_files(listing.without_image)
            found.append(f"{many(len(listing.without_image), 'mask')} without image, not used: {masks}")
        if 0 < self.blank.count < self.masks or (self.blank.count and self.split == "test"):
            found.append(f"{self.blank.count} of {self.masks} masks are ignored in every pixel: {self.blank}")
        absent = self.absent()
        if 0 < len(absent) < self.data.num_classes - self._is_for_training and not self.strange:
            found.append(f"{len(absent)} of {self.data.num_classes} classes never appear: {name_some(absent)}")
        return [f"{self.split}: {message}" for message in found]


class Duplicates:
    """Images that are the same file, byte by byte, in several splits: what was trained on is measured."""

    def __init__(self, splits: Iterable[str]) -> None:
        self.splits = tuple(splits)
        self.users: dict[bytes, int] = {}
        """An image's digest -> its splits, one bit each."""
        self.pairs = {
            pair: Some() for pair in combinations(range(len(self.splits)), 2) if not self._meant_to_overlap(pair)
        }

    def _meant_to_overlap(self, pair: tuple[int, int]) -> bool:
        names = {self.splits[index] for index in pair}
        return names == {"trainval", "val"} or all(name.startswith("train") for name in names)

    def add(self, digest: bytes, name: str, splits: Iterable[str]) -> None:
        before = self.users.get(digest, 0)
        now = before
        for split in splits:
            now |= 1 << self.splits.index(split)
        self.users[digest] = now
        for (first, second), some in self.pairs.items():
            both = 1 << first | 1 << second
            if now & both == both != before & both:
                some.add(name)

    def warnings(self) -> list[str]:
        return [
            f"{self.splits[first]} and {self.splits[second]} share {many(some.count, 'image')}: {some}"
            for (first, second), some in self.pairs.items()
            if some.count
        ]


def _area(size: Size) -> int:
    return size[0] * size[1]
