"""Class maps as other tools' annotations: labelme's JSON of an image, and COCO's JSON of many."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image

from zoo_seg.errors import MissingExtraError
from zoo_seg.inference.polygons import Polygon, without_holes
from zoo_seg.scale.marks import marking_json
from zoo_seg.version import __version__

_LABELME = "5.5.0"
"""The version of labelme whose members these are; later ones read them."""


def labelme(polygons: Sequence[Polygon], image_path: str, height: int, width: int) -> dict[str, Any]:
    """What labelme opens. It knows no holes: polygons with some are cut into parts of one `group_id`.

    Args:
        image_path: from the folder of the JSON file.
    """
    shapes: list[dict[str, Any]] = []
    for number, polygon in enumerate(polygons):
        parts = without_holes(polygon)
        shapes += [
            {
                "label": polygon.name,
                "points": [list(point) for point in part[:-1]],
                "group_id": number if len(parts) > 1 else None,
                "description": "",
                "shape_type": "polygon",
                "flags": {},
                "mask": None,
            }
            for part in parts
        ]
    return {
        "version": _LABELME,
        "flags": {},
        "shapes": shapes,
        "imagePath": image_path,
        "imageData": None,
        "imageHeight": height,
        "imageWidth": width,
    }


def check_coco() -> Any:
    """`pycocotools.mask`.

    Raises:
        MissingExtraError: it is not installed; the message names the pip command.
    """
    try:
        from pycocotools import mask
    except ImportError as error:
        raise MissingExtraError(f"COCO's run lengths need more ({error}); pip install 'zoo_seg[results]'") from None
    return mask


def write_coco(
    file: BinaryIO,
    mark: str,
    masks: Iterable[tuple[str, str | os.PathLike[str]]],
    classes: Sequence[str],
    palette: Sequence[tuple[int, int, int]],
) -> None:
    """COCO's JSON of class maps: for each image an annotation of each present class, in run lengths, as COCO-Stuff has.

    Categories count from 1, as COCO's do: a category's id is the class id and 1. One class map is held at a time.

    Args:
        masks: the name of each image, and the PNG of its class ids.
    """
    rle = check_coco()
    categories = [
        {"id": index + 1, "name": name, "supercategory": "stuff", "isthing": 0, "color": list(colour)}
        for index, (name, colour) in enumerate(zip(classes, palette, strict=True))
    ]
    images: list[Mapping[str, Any]] = []
    with marking_json(file, mark) as write:
        write(f'"info": {json.dumps({"description": "class maps", "version": f"zoo_seg {__version__}"})}, ')
        write(f'"licenses": [], "categories": {json.dumps(categories)}, "annotations": [')
        number = 0
        for name, path in masks:
            ids = _read(path)
            images.append({"id": len(images) + 1, "file_name": name, "height": ids.shape[0], "width": ids.shape[1]})
            for index in np.flatnonzero(np.bincount(ids.ravel())).tolist():
                region = rle.encode(np.asfortranarray(ids == index, dtype=np.uint8))
                annotation = {
                    "id": number + 1,
                    "image_id": len(images),
                    "category_id": index + 1,
                    "segmentation": {"size": region["size"], "counts": region["counts"].decode("ascii")},
                    "area": int(rle.area(region)),
                    "bbox": rle.toBbox(region).tolist(),
                    "iscrowd": 0,
                }
                write((",\n" if number else "\n") + json.dumps(annotation))
                number += 1
        write(f'], "images": {json.dumps(images)}')


def _read(path: str | os.PathLike[str]) -> npt.NDArray[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # it is our own
        with Image.open(Path(path)) as image:
            return np.asarray(image)
