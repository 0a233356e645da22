"""Class maps of aerial and satellite images, on the same grid of the map. Needs the extra `aerial`."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import EllipsisType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from zoo_seg.errors import OptionError
from zoo_seg.images.bands import Wanted
from zoo_seg.images.geotiff import Raster, open_raster
from zoo_seg.images.preprocess import normalise
from zoo_seg.images.raster import get_rasterio, holds_all_tiles
from zoo_seg.images.reading import Pixels, as_rgb
from zoo_seg.inference.polygons import Polygon, each_polygon, polygons
from zoo_seg.inference.predictor import Predictor
from zoo_seg.inference.segmentation import Segmentation, whole
from zoo_seg.inference.taps import Blend
from zoo_seg.manifest import TestOptions

_BLOCK = 256
"""Pixels a side of a tile that is written."""


@dataclass
class _Windows:
    """Normalised windows of a raster; it is read where they are, a row of them at a time."""

    raster: Raster
    predictor: Predictor
    mirrored: bool
    span: tuple[int, int] = (0, 0)
    rows: Pixels = field(default_factory=lambda: np.empty((0, 0, 0), np.uint8))

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return 1, self.raster.wanted.channels, *self.raster.size

    @property
    def device(self) -> torch.device:
        return self.predictor.device

    def __len__(self) -> int:
        return 1

    def __getitem__(self, place: tuple[EllipsisType, slice, slice], /) -> Tensor:
        _, rows, columns = place
        if self.span != (rows.start, rows.stop):
            self.rows, self.span = self.raster.pixels(rows.start, rows.stop), (rows.start, rows.stop)
        seen = self.rows[:, ::-1] if self.mirrored else self.rows
        rules = self.predictor.preprocess
        pixels = np.ascontiguousarray(seen[:, columns])
        return normalise(pixels, rules.mean, rules.std).to(self.device, self.predictor.dtype)


def predict_raster(
    predictor: Predictor,
    image: str | os.PathLike[str],
    mask: str | os.PathLike[str],
    *,
    wanted: Wanted,
    test: TestOptions,
    blend: Blend = "linear",
    confidence: str | os.PathLike[str] | None = None,
    software: str = "zoo_seg",
    progress: Callable[[int, int], object] | None = None,
) -> None:
    """See `Predicting.predict_raster`."""
    outputs = [Path(path) for path in (mask, confidence) if path is not None]
    for path in outputs:
        if path.exists() and Path(image).exists() and path.samefile(image):
            raise OptionError(f"{path} is the image itself; choose another file to write")
    classes = predictor.classes
    ids: type[np.unsignedinteger[Any]] = np.uint8 if len(classes) <= 255 else np.uint16
    nodata = np.iinfo(ids).max
    with open_raster(image, wanted) as raster, ExitStack() as stack:
        about = {"classes": json.dumps(classes)}
        masks = stack.enter_context(_writing(outputs[0], raster, ids, int(nodata), software, about))
        if ids is np.uint8:
            colours = {number: (*colour, 255) for number, colour in enumerate(predictor.palette)}
            masks.write_colormap(1, colours | {int(nodata): (0, 0, 0, 0)})
        sure = [stack.enter_context(_writing(path, raster, np.uint8, 0, software, {})) for path in outputs[1:]]

        def write(top: int, found: npt.NDArray[Any], shares: npt.NDArray[Any] | None) -> None:
            rows, width = found.shape
            window, valid = ((top, top + rows), (0, width)), raster.valid(top, top + rows)
            masks.write(np.where(valid, found, nodata).astype(ids), 1, window=window)
            for each in sure:
                assert shares is not None  # asked for below
                each.write(np.where(valid, np.rint(shares * 255), 0).astype(np.uint8), 1, window=window)
            if progress is not None:
                progress(top + rows, raster.size[0])

        predictor.write_rows(
            lambda flip: _Windows(raster, predictor, flip),
            raster.size,
            test,
            write,
            blend=blend,
            confidence=bool(sure),
        )


@contextmanager
def _writing(
    path: Path, like: Raster, dtype: type[Any], nodata: int, software: str, tags: dict[str, str]
) -> Iterator[Any]:
    """A dataset of one band on the grid of another, which becomes a file when the block ends well.

    Raises:
        OSError: it cannot be written there.
    """
    rasterio, source = get_rasterio(str(path)), like.source
    with whole(path) as part:
        try:
            with rasterio.open(
                *(part, "w", "GTiff", source.width, source.height, 1, source.crs, source.transform, dtype, nodata),
                tiled=True,
                blockxsize=_BLOCK,
                blockysize=_BLOCK,
                compress="deflate",
                BIGTIFF="IF_SAFER",
            ) as target:
                target.update_tags(TIFFTAG_SOFTWARE=software, **tags)
                yield target
        except rasterio.errors.RasterioError as error:
            raise OSError(errno.EIO, str(error.__cause__ or error), str(path)) from None
        with part.open("rb") as file:
            if not holds_all_tiles(file):
                raise OSError(errno.ENOSPC, "not all of it could be written; is there room on the disk?", str(path))


def overview(
    image: str | os.PathLike[str],
    mask: str | os.PathLike[str],
    wanted: Wanted,
    classes: Sequence[str],
    palette: Sequence[tuple[int, int, int]],
    longest: int = 2048,
) -> Segmentation:
    """An image and its class map, made smaller (nearest pixels) to be looked at; what has no data is a class as well.

    Args:
        mask: as `predict_raster` wrote it.
        longest: the most pixels a side.
    """
    with open_raster(image, wanted) as raster:
        pixels, valid = raster.thumbnail(longest)
    with get_rasterio(str(mask)).open(mask, driver="GTiff") as source:
        ids = source.read(1, out_shape=valid.shape)
        empty = ids == source.nodata
    if not empty.any():
        return Segmentation(ids, tuple(classes), tuple(palette), as_rgb(pixels))
    ids[empty] = len(classes)
    return Segmentation(ids, (*classes, "no data"), (*palette, (0, 0, 0)), as_rgb(pixels))


def raster_polygons(
    mask: str | os.PathLike[str], classes: Sequence[str], min_area: float = 0, tolerance: float = 0.0
) -> Iterator[Polygon]:
    """The polygons of a class map that `predict_raster` wrote, in pixels: one by one, unless they are simplified.

    `feature_collection(list(polygons), palette, transform=..., crs=...)` makes GeoJSON of them, on the map with the
    transform of the GeoTIFF. The options are those of `Segmentation.polygons`.
    """
    rasterio, path = get_rasterio(str(mask)), Path(mask).absolute()
    with rasterio.open(path, driver="GTiff", GEOREF_SOURCES="NONE") as source:  # in pixels
        band = rasterio.band(source, 1)
        if tolerance:
            yield from polygons(band, classes, min_area, tolerance)
        else:
            yield from each_polygon(band, classes, min_area)
