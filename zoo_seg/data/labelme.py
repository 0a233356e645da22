"""labelme's JSON (https://github.com/wkentaro/labelme): a file beside each image, with its shapes."""

from __future__ import annotations

import base64
import io
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from zoo_seg.data.annotations import holds, read_lines, read_object
from zoo_seg.data.files import Files
from zoo_seg.data.labels import Ids
from zoo_seg.data.samples import ALL, Listing, Sample, words_of_splits
from zoo_seg.data.shapes import Legend, check_size
from zoo_seg.errors import DataError

_LABELS = "labels.txt"
"""The labels, as labelme's own converters take them."""
_KEYS = ("shapes", "imageData")
"""One of these stands near the beginning of a file."""
_LINE, _POINT = 10, 5
"""Width of a line, radius of a point, in pixels: those of labelme's `shape_to_mask`."""
_FARTHEST = 1 << 20
"""Pixels that a corner may lie outside."""
_LOOKED_AT = 20
"""Files that tell a data set."""

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Labelme:
    """NAME.json beside NAME.jpg, in the folder itself or in a folder for each split."""

    splits: Mapping[str, str] = field(default_factory=words_of_splits)

    def __str__(self) -> str:
        return "NAME.json (labelme's) beside NAME.jpg, or both in train/ and val/"

    def lie_in(self, root: Path) -> bool:
        return any(map(_has_labelme, [root, *(root / word for word in self.splits)]))

    def parts(self, root: Path) -> tuple[set[str], set[str]]:
        found = {ours for word, ours in self.splits.items() if _has_labelme(root / word)} or {ALL}
        return found, found

    def names(self, root: Path) -> tuple[str, ...]:
        """The labels in labels.txt, else those of all shapes, sorted."""
        if (root / _LABELS).is_file():
            return tuple(dict.fromkeys(line for _, line in read_lines(root / _LABELS)))
        labels = set()
        for split in self.parts(root)[0]:
            for sample in self.listing(root, split).samples:
                labels |= {shape.label for shape in _shapes(sample.mask)}
        return tuple(sorted(labels))

    def listing(self, root: Path, split: str) -> Listing:
        below = next((f"{word}/" for word, ours in self.splits.items() if ours == split and (root / word).is_dir()), "")
        listing = Files(f"{below}{{name}}.jpg", [f"{below}{{name}}.json"]).listing(root, split)
        return Listing(
            tuple(
                Sample(each.image, each.mask, each.name, _LabelmeLabels(each.mask, each.image))
                for each in listing.samples
            ),
            without_mask=listing.without_mask,
            without_image=tuple(path for path in listing.without_image if holds(path, *_KEYS)),
            same_name=listing.same_name,
        )


def _has_labelme(folder: Path) -> bool:
    return folder.is_dir() and any(holds(path, *_KEYS) for path in islice(sorted(folder.glob("*.json")), _LOOKED_AT))


# --- a file -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Shape:
    label: str
    kind: str
    points: Points
    group: Any
    mask: str | None
    """A PNG in base64, of the box between the two points."""
    place: str

    @property
    def area(self) -> float:
        """In pixels, nearly."""
        if self.kind == "polygon":
            x, y = np.array(self.points).T
            return abs(float(x @ np.roll(y, 1) - y @ np.roll(x, 1))) / 2
        if self.kind in ("rectangle", "mask"):
            (left, top), (right, bottom) = self.points
            return abs(right - left) * abs(bottom - top)
        if self.kind == "circle":
            return math.pi * math.dist(*self.points) ** 2
        if self.kind in ("line", "linestrip"):
            return _LINE * sum(map(math.dist, self.points, self.points[1:]))
        return math.pi * _POINT**2


_CORNERS = {
    "polygon": range(3, 1 << 30),
    "rectangle": (2,),
    "mask": (2,),
    "circle": (2,),
    "line": (2,),
    "linestrip": range(2, 1 << 30),
    "point": (1,),
    "points": range(1, 1 << 30),
}
"""How many points a shape of each kind has."""


def _shapes(path: Path) -> list[_Shape]:
    return list(_shapes_in(path, read_object(path)))


def _shapes_in(path: Path, raw: Mapping[str, Any]) -> Iterator[_Shape]:
    shapes = raw.get("shapes")
    if not isinstance(shapes, list):
        raise DataError(f"{path}: no list of 'shapes'; expected a file of labelme")
    for number, shape in enumerate(shapes, start=1):
        place = f"{path}: shape {number}"
        try:
            kind, label = shape.get("shape_type") or "polygon", shape["label"]
            points = tuple((float(x), float(y)) for x, y in shape["points"])
            if not isinstance(label, str) or not all(map(math.isfinite, [each for point in points for each in point])):
                raise ValueError
        except (TypeError, ValueError, KeyError, AttributeError, OverflowError):
            raise DataError(f"{place}: expected a 'label' and 'points', pairs of x and y") from None
        kind = "polygon" if kind == "oriented_rectangle" else kind
        if kind not in _CORNERS:
            raise DataError(f"{place} ({label!r}) is of the type {kind!r}; expected one of {', '.join(_CORNERS)}")
        if len(points) not in _CORNERS[kind]:
            raise DataError(f"{place} ({label!r}): a {kind} of {len(points)} points")
        yield _Shape(label, kind, points, shape.get("group_id"), shape.get("mask"), f"{place} ({label!r})")


@dataclass(frozen=True)
class _LabelmeLabels:
    """The shapes of one image."""

    path: Path
    image: Path

    def draw(self, legend: Legend) -> Ids:
        """As labelme's own `shapes_to_label` draws them, but for their order."""
        raw = read_object(self.path)
        shapes = list(_shapes_in(self.path, raw))
        size = self._size(raw)
        ids = [legend.id_of(shape.label, shape.place) for shape in shapes]
        for shape in shapes:
            _check_inside(shape, size)
        canvas = Image.new("I", size, legend.unlabelled)
        for place in legend.painting_order(_areas(shapes)):
            _paint(canvas, shapes[place], ids[place])
        return np.asarray(canvas).astype(np.uint16)

    def _size(self, raw: Mapping[str, Any]) -> tuple[int, int]:
        """(width, height): what the file says, as points are measured in it; else the image's."""
        size = raw.get("imageWidth"), raw.get("imageHeight")
        if size == (None, None):
            try:
                with Image.open(self.image) as image:
                    return image.size
            except OSError as error:
                raise DataError(f"{self.image}: cannot be read ({error})") from None
        width, height = size
        if type(width) is not int or type(height) is not int:
            raise DataError(f"{self.path}: imageWidth and imageHeight are {size}; expected pixels")
        check_size(str(self.path), height, width)
        return width, height


def _areas(shapes: Sequence[_Shape]) -> list[float]:
    """Of each shape, those of one group taken together."""
    groups: dict[Any, float] = defaultdict(float)
    keys = [(shape.label, str(shape.group)) if shape.group is not None else place for place, shape in enumerate(shapes)]
    for key, shape in zip(keys, shapes, strict=True):
        groups[key] += shape.area
    return [groups[key] for key in keys]


def _check_inside(shape: _Shape, size: tuple[int, int]) -> None:
    if max(abs(each) for point in shape.points for each in point) > _FARTHEST:
        raise DataError(f"{shape.place} has a corner far outside the image")
    reach = {"circle": math.dist(*shape.points) if shape.kind == "circle" else 0, "point": _POINT, "points": _POINT}
    margin = reach.get(shape.kind, _LINE if "line" in shape.kind else 0)
    points = shape.points[:1] if shape.kind == "circle" else shape.points
    for values, length in zip(zip(*points, strict=True), size, strict=True):
        if max(values) + margin < 0 or min(values) - margin >= length:
            raise DataError(f"{shape.place} lies outside the image of {size[0]}x{size[1]} pixels")


def _paint(canvas: Image.Image, shape: _Shape, value: int) -> None:
    draw, points = ImageDraw.Draw(canvas), list(shape.points)
    if shape.kind == "polygon":
        draw.polygon(points, fill=value, outline=value)
    elif shape.kind == "rectangle":
        (left, right), (top, bottom) = (sorted(values) for values in zip(*points, strict=True))
        draw.rectangle((left, top, right, bottom), fill=value, outline=value)
    elif shape.kind in ("line", "linestrip"):
        draw.line(points, fill=value, width=_LINE)
    elif shape.kind == "mask":
        stamp = _stamp(shape)
        canvas.paste(value, (int(points[0][0]), int(points[0][1])), stamp)
    else:
        radius = math.dist(*points) if shape.kind == "circle" else _POINT
        for x, y in points[:1] if shape.kind == "circle" else points:
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=value, outline=value)


def _stamp(shape: _Shape) -> Image.Image:
    (left, top), (right, bottom) = shape.points
    size = int(right) - int(left) + 1, int(bottom) - int(top) + 1
    try:
        with Image.open(io.BytesIO(base64.b64decode(shape.mask or ""))) as image:
            stamp = image.convert("L").point(lambda level: 255 if level else 0)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{shape.place}: its mask cannot be read ({error})") from None
    if stamp.size != size:
        raise DataError(
            f"{shape.place}: a mask of {stamp.width}x{stamp.height} for a box of {size[0]}x{size[1]} pixels"
        )
    return stamp
