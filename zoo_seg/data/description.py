"""dataset.json: what a data set of one's own says of itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from zoo_seg.data.labels import IGNORED, Colour, Labels, mistake_in
from zoo_seg.data.shapes import BACKGROUNDS, IGNORED_LABELS, Legend, Overlaps
from zoo_seg.data.wording import name_some
from zoo_seg.decode import Mistake, decode, read_json, show
from zoo_seg.errors import DataError, ManifestError, OptionError
from zoo_seg.images.bands import Range, check_bands, check_range
from zoo_seg.info import voc_palette

DESCRIPTION = "dataset.json"
"""The classes of a data set of one's own."""
MISSING = (
    "is missing; it names the classes in the order of their ids, for example:\n"
    '  {"classes": ["background", "cat", "dog"], "palette": [[0, 0, 0], [128, 0, 0], [0, 128, 0]], '
    '"ignore_index": 255}'
)
"""What follows its path where there is none and nothing else names the classes."""
_IGNORED = "ignored"
"""What dataset.json calls pixels that are no class."""


@dataclass(frozen=True)
class Description:
    """dataset.json."""

    classes: tuple[str, ...] | None = None
    """None: those that the labels name."""
    palette: tuple[Colour, ...] | None = None
    ignore_index: int = 255
    ignore_color: Colour | None = None
    range: Range | None = None
    ranges: tuple[Range, ...] | None = None
    """`range` with a pair for each channel."""
    channels: int | None = None
    bands: tuple[int, ...] | None = None
    map: Mapping[str, Any] = field(default_factory=dict)
    """Stored value, or label of a shape or a colour -> class name or `"ignored"`."""
    overlaps: Overlaps = "area"
    unlabelled: str | None = None
    """The class of pixels that no shape covers, or `"ignored"`; None: the background, if there is one."""
    title: str | None = None
    url: str | None = None
    licence: str | None = None

    def count_channels(self) -> int:
        """Of the images: as many as `bands`, or three."""
        return self.channels or (3 if self.bands is None else len(self.bands))

    def named(self, labels: Iterable[str]) -> tuple[str, ...]:
        """The classes that these labels come to."""
        names = (self.map.get(label, label) for label in labels)
        return tuple(dict.fromkeys(name for name in names if name != _IGNORED))

    def value_map(self) -> tuple[tuple[int, int], ...]:
        """What index masks store -> class id or IGNORED."""
        classes = self.classes or ()
        return tuple(
            (int(value), classes.index(name) if name in classes else IGNORED) for value, name in self.map.items()
        )

    def legend(self, labels: Labels) -> Legend:
        """What becomes of labels by name.

        Raises:
            OptionError: a name that should be a class is none.
        """

        def id_of(key: str, name: str) -> int:
            if name not in (*labels.classes, _IGNORED):
                raise OptionError(
                    f"{key}: {name!r} is no class; expected one of {name_some(labels.classes)}, {_IGNORED}"
                )
            return labels.classes.index(name) if name in labels.classes else labels.ignore_index

        backgrounds = [name for name in BACKGROUNDS if name in labels.classes]
        return Legend(
            labels.classes,
            {
                **dict.fromkeys(IGNORED_LABELS, labels.ignore_index),
                **{name: index for index, name in enumerate(labels.classes)},
                **{label: id_of(f"map.{label}", name) for label, name in self.map.items()},
            },
            id_of("unlabelled", self.unlabelled or next(iter(backgrounds), _IGNORED)),
            self.overlaps,
        )


def describe(root: Path, of_masks: bool = False) -> Description:
    """dataset.json; what it would say where there is none.

    Args:
        of_masks: labels are masks of class ids, so that only it can name the classes.
    """
    path = root / DESCRIPTION
    if not path.is_file():
        return Description()
    try:
        return read_json(path, lambda raw: _decode_description(raw, of_masks))
    except ManifestError as error:
        raise DataError(str(error)) from None


def _decode_description(raw: Any, of_masks: bool) -> Description:
    ranges = raw.get("range") if isinstance(raw, dict) else None
    if isinstance(ranges, list) and any(isinstance(each, list) for each in ranges):  # a pair for each channel
        ranges = decode(tuple[Range, ...], ranges, ("range",))
        raw = {key: value for key, value in raw.items() if key != "range"}
    else:
        ranges = None
    described: Description = decode(Description, raw, ())
    described = replace(described, ranges=ranges)
    classes = described.classes
    if classes is None and of_masks:
        raise Mistake("the key 'classes' is missing")
    if classes is not None:
        palette = described.palette or voc_palette(len(classes))
        wrong = mistake_in(classes, palette, described.ignore_index, described.ignore_color)
        if wrong:
            key, message = wrong
            raise Mistake(message, key)
    for value, name in described.map.items():
        if not isinstance(name, str) or (classes is not None and name not in (*classes, _IGNORED)):
            raise Mistake(f"found {show(name)}, expected one of 'classes', or {_IGNORED!r}", "map", value)
        if of_masks and not (value.isdecimal() and int(value) <= 65535):
            raise Mistake(f"found {show(value)}, expected a value that masks store, from 0 to 65535", "map", value)
    if described.channels is not None and described.channels < 1:
        raise Mistake(f"found {described.channels}, expected at least 1", "channels")
    where = "bands"
    try:
        check_bands(described.bands, described.count_channels())
        where = "range"
        check_range(described.range or described.ranges, described.count_channels())
    except OptionError as error:
        raise Mistake(str(error), where) from None
    return described


def labels_of(described: Description, classes: tuple[str, ...], value_map: tuple[tuple[int, int], ...] = ()) -> Labels:
    """These classes, and how masks store them."""
    return Labels(
        classes,
        described.palette or voc_palette(len(classes)),
        described.ignore_index,
        described.ignore_color,
        has_palette=bool(described.palette),
        value_map=value_map,
    )
