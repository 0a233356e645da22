"""Annotations in COCO's JSON (https://cocodataset.org/#format-data): polygons, and run lengths of both kinds."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from zoo_seg.data.annotations import holds, items, parse
from zoo_seg.data.labels import Ids
from zoo_seg.data.samples import ALL, Listing, Sample, split_of, words_of_splits
from zoo_seg.data.shapes import Legend, check_size
from zoo_seg.data.wording import name_some
from zoo_seg.errors import DataError, MissingExtraError

_OTHER_TASKS = ("captions_", "person_keypoints_", "image_info_", "panoptic_")
"""How files of COCO begin that have the same lists and no labels of pixels."""
_LOOKED_AT = 20
"""Files or images that tell a data set."""
_FARTHEST = 100_000
"""Pixels that a corner may lie outside: beyond, drawing would need any amount of memory."""


@dataclass(frozen=True)
class CocoJson:
    """A file for each split: anywhere in the folder, in annotations/, or in the folders of the splits."""

    splits: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return "annotations/instances_train.json (COCO's format) with images/NAME.jpg or train/NAME.jpg"

    def lie_in(self, root: Path) -> bool:
        return bool(_files(root))

    def parts(self, root: Path) -> tuple[set[str], set[str]]:
        return set(_files(root)), set(_files(root))

    def names(self, root: Path) -> tuple[str, ...]:
        """The categories of all files, in the order of their ids."""
        found: dict[int, str] = {}
        for paths in _files(root).values():
            for path in paths:
                found = {**_index(path).categories, **found}
        return tuple(dict.fromkeys(found[each] for each in sorted(found)))

    def listing(self, root: Path, split: str) -> Listing:
        path, *others = _files(root)[split]
        if others:
            raise DataError(f"{path} and {name_some(others)} are both of the split {split!r}; keep one of them")
        index = _index(path)
        folder = _folder_of_images(root, index, split)
        there, missing = [], []
        for row, file in enumerate(index.files):
            image = folder / file
            if image.is_file():
                name = Path(file).with_suffix("").as_posix()
                there.append(Sample(image, path, name, _CocoLabels(index, row)))
            else:
                missing.append(image)
        by_name = defaultdict(list)
        for sample in there:
            by_name[sample.name].append(sample.image)
        return Listing(
            tuple(sorted(there, key=lambda sample: sample.name)),
            tuple(sorted(missing)),
            same_name=tuple(tuple(paths) for paths in by_name.values() if len(paths) > 1),
        )


def _files(root: Path) -> dict[str, list[Path]]:
    """The files of annotations of each split."""
    found = defaultdict(list)
    for place in (root, *(root / name for name in ("annotations", *words_of_splits()))):
        for path in islice(sorted(place.glob("*.json")), _LOOKED_AT):
            if not path.name.startswith(_OTHER_TASKS) and holds(path, "images", "annotations", "categories"):
                of_folder = split_of(place.name) if place != root else None
                found[split_of(path.stem) or of_folder or ALL].append(path)
    return dict(found)


# --- a file -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Index:
    """Where each annotation stands in a file; the file stays where it is, however large."""

    path: Path
    state: tuple[int, int]
    """Its size and time when it was read."""
    categories: Mapping[int, str]
    files: tuple[str, ...]
    """Of the images."""
    sizes: npt.NDArray[np.int32]
    """(height, width) of each."""
    spans: npt.NDArray[np.int64]
    """First and last byte of each annotation, image by image."""
    first: npt.NDArray[np.int64]
    """The first annotation of each image, and their number."""


def _state(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
    return status.st_size, status.st_mtime_ns


def _index(path: Path) -> _Index:
    return _read_index(path, _state(path))


@lru_cache(maxsize=8)
def _read_index(path: Path, state: tuple[int, int]) -> _Index:
    """The file, read once; what is kept of an annotation is its place."""
    categories: dict[int, str] = {}
    images: dict[Any, tuple[str, int, int]] = {}
    owners: list[Any] = []
    users: dict[int, str] = {}
    """The first annotation of each category."""
    spans: list[tuple[int, int]] = []
    for key, value, start, end in items(path, ("images", "annotations", "categories")):
        if key == "categories":
            identity, name = _fields(path, key, value, id=int, name=str)
            if categories.setdefault(identity, name) != name:
                raise DataError(f"{path}: the category id {identity} is {categories[identity]!r} and {name!r}")
        elif key == "images":
            identity, file, height, width = _fields(
                path, key, value, id=(int, str), file_name=str, height=int, width=int
            )
            file = file.replace("\\", "/").removeprefix("./")
            if ".." in file.split("/") or file.startswith("/"):
                raise DataError(f"{path}: image {identity} ({file}) lies outside the folder of the images")
            check_size(f"{path}: image {identity} ({file})", height, width)
            if images.setdefault(identity, (file, height, width)) != (file, height, width):
                raise DataError(f"{path}: the image id {identity} is {images[identity][0]} and {file}")
        else:
            owner, kind = _fields(path, key, value, image_id=(int, str), category_id=int)
            owners.append(owner)
            users.setdefault(kind, str(value.get("id")))
            spans.append((start, end))
    for kind, annotation in users.items():
        if kind not in categories:
            known = name_some(sorted(categories))
            raise DataError(f"{path}: annotation {annotation}: category_id {kind} is unknown; the file has {known}")
    rows = {identity: row for row, identity in enumerate(images)}
    for owner in owners:
        if owner not in rows:
            raise DataError(f"{path}: an annotation has the image_id {owner!r}, which no image has")
    order = np.array([rows[owner] for owner in owners], np.int64)
    return _Index(
        path,
        state,
        categories,
        tuple(file for file, _, _ in images.values()),
        np.array([size for _, *size in images.values()], np.int32).reshape(-1, 2),
        np.array(spans, np.int64).reshape(-1, 2)[np.argsort(order, kind="stable")],
        np.concatenate([[0], np.cumsum(np.bincount(order, minlength=len(images)))]).astype(np.int64),
    )


_KINDS: Mapping[type | tuple[type, ...], str] = {
    int: "a whole number",
    str: "a text",
    (int, str): "a number or a text",
}


def _fields(path: Path, key: str, value: Any, **kinds: type | tuple[type, ...]) -> list[Any]:
    name = f"{path}: an entry of {key!r}"
    if not isinstance(value, dict):
        raise DataError(f"{name} is no object")
    for each, kind in kinds.items():
        if not isinstance(value.get(each), kind) or isinstance(value[each], bool):
            raise DataError(
                f"{name} (id {value.get('id')}) has {each!r} {repr(value.get(each))[:60]}; expected {_KINDS[kind]}"
            )
    return [value[each] for each in kinds]


def _folder_of_images(root: Path, index: _Index, split: str) -> Path:
    """Where the names of the images begin: of the usual places the first that has one of them."""
    around = index.path.parent
    words = [index.path.stem.rpartition("_")[2], split]
    places = [around, root / "images", root]
    places += [place / word for place in (root / "images", root) for word in words]
    shown = index.files[:_LOOKED_AT]
    return next((place for place in places if any((place / file).is_file() for file in shown)), root / "images")


# --- an image -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _CocoLabels:
    """The annotations of one image."""

    index: _Index
    row: int

    def draw(self, legend: Legend) -> Ids:
        try:
            from pycocotools import mask
        except ImportError:
            raise MissingExtraError("COCO's JSON needs pycocotools: pip install 'zoo_seg[annotations]'") from None
        height, width = self.index.sizes[self.row].tolist()
        ids = np.full((height, width), legend.unlabelled, np.uint16)
        shapes = []
        for annotation in self._annotations():
            place = f"{self.index.path}: annotation {annotation.get('id')} of {self.index.files[self.row]}"
            value = legend.id_of(self.index.categories[annotation["category_id"]], place)
            try:
                runs = _runs(annotation.get("segmentation"), height, width)
                shapes.append((runs, value, float(mask.area(runs)), place))
            except (ValueError, TypeError, OverflowError, KeyError, AttributeError) as error:
                raise DataError(f"{place}: {error}") from None
        for each in legend.painting_order([area for _, _, area, _ in shapes]):
            runs, value, _, place = shapes[each]
            try:
                ids[mask.decode(runs) > 0] = value
            except ValueError as error:
                raise DataError(f"{place}: {error}") from None
        return ids

    def _annotations(self) -> list[dict[str, Any]]:
        index = self.index
        if _state(index.path) != index.state:
            raise DataError(f"{index.path} has changed since it was opened; run this again")
        found = []
        with index.path.open("rb") as file:
            for start, end in index.spans[index.first[self.row] : index.first[self.row + 1]].tolist():
                file.seek(start, os.SEEK_SET)
                found.append(parse(index.path, file.read(end - start).decode("latin-1")))
        return found


def _runs(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """Compressed run lengths of a segmentation of any kind.

    Raises:
        ValueError: it is none, or lies outside the image.
    """
    from pycocotools import mask

    if isinstance(segmentation, dict):
        counts, size = segmentation["counts"], segmentation["size"]
        if list(size) != [height, width]:
            raise ValueError(f"run lengths of {size} (height, width) for an image of [{height}, {width}]")
        if isinstance(counts, list):
            if sum(counts) != height * width:
                raise ValueError(f"run lengths of {sum(counts)} pixels for an image of {height * width}")
            return mask.frPyObjects(segmentation, height, width)  # type: ignore[no-any-return]
        return {"size": [height, width], "counts": counts}
    if not isinstance(segmentation, list) or not segmentation:
        raise ValueError("no 'segmentation', only a box perhaps; expected polygons or run lengths")
    polygons = segmentation if isinstance(segmentation[0], list) else [segmentation]
    for polygon in polygons:
        _check_corners(polygon, height, width)
    if all(_is_outside(polygon, height, width) for polygon in polygons):
        corner = f"({polygons[0][0]:g}, {polygons[0][1]:g})"
        raise ValueError(f"the polygon from {corner} lies outside the image of {width}x{height} pixels")
    drawn = [polygon for polygon in polygons if len(polygon) >= 6]  # fewer than three corners cover nothing
    if not drawn:
        raise ValueError("a polygon of fewer than three corners")
    return mask.merge(mask.frPyObjects(drawn, height, width))  # type: ignore[no-any-return]


def _check_corners(polygon: Sequence[Any], height: int, width: int) -> None:
    if not isinstance(polygon, list) or len(polygon) % 2 or not polygon:
        raise ValueError("a polygon that is no list of pairs x, y")
    if not all(math.isfinite(each) and -_FARTHEST < each < max(height, width) + _FARTHEST for each in polygon):
        raise ValueError("a polygon with a corner far outside the image")


def _is_outside(polygon: Sequence[float], height: int, width: int) -> bool:
    x, y = polygon[::2], polygon[1::2]
    return max(x) <= 0 or min(x) >= width or max(y) <= 0 or min(y) >= height
