"""Aerial and satellite images that are read by rows, however large they are. Needs the extra `aerial`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from zoo_seg.errors import ImageError
from zoo_seg.images.bands import Wanted
from zoo_seg.images.raster import chosen_bands, get_rasterio
from zoo_seg.images.reading import Pixels, finished, named_errors

_CACHE = 128 << 20
"""Bytes of decoded blocks that GDAL keeps; left alone it takes a twentieth of the machine's memory."""
_AT_ONCE = 1 << 24
"""Values that are brought to 8 bits at a time."""

Transform = tuple[float, float, float, float, float, float]
"""As of `affine.Affine`, from pixels to a map."""


class Raster:
    """An open TIFF.

    Args:
        source: rasterio's dataset.
        name: for messages.
        wanted: its bands, and the range of their values.

    Raises:
        ImageError: it has other bands, or values whose range is not known.
    """

    def __init__(self, source: Any, name: str, wanted: Wanted) -> None:
        self.source, self.name, self.wanted = source, name, wanted
        self.size: tuple[int, int] = (source.height, source.width)
        self.bands = chosen_bands(source, name, wanted)
        (self.dtype,) = {np.dtype(source.dtypes[band - 1]) for band in self.bands}  # a TIFF has one
        if self.dtype.kind not in "iuf":
            raise ImageError(f"{name}: values of type {self.dtype}, expected whole or floating-point numbers")
        if self.dtype != np.uint8 and wanted.ranges is None:
            raise ImageError(
                f"{name}: values of type {self.dtype}, expected 8 bits. Say which values are black and white, such as "
                '--range 0 10000 (range=(0, 10000) in Python, "range": [0, 10000] in a dataset.json)'
            )

    def pixels(self, top: int, bottom: int) -> Pixels:
        """Rows top..bottom as `read_image` gives them, (bottom - top, W, channels).

        Raises:
            ImageError: they cannot be read.
        """
        width = self.size[1]
        result = np.empty((bottom - top, width, self.wanted.channels), np.uint8)
        step = max(_AT_ONCE // (width * len(self.bands)), 1)
        with _named_errors(self.name):
            for first in range(top, bottom, step):
                last = min(first + step, bottom)
                window = ((first, last), (0, width))
                values = self.source.read(self.bands, window=window)
                result[first - top : last - top] = self._in_8_bits(values, self.source.dataset_mask(window=window))
        return result

    def valid(self, top: int, bottom: int) -> npt.NDArray[np.bool_]:
        """Which pixels of rows top..bottom have data: neither nodata, nor masked, nor transparent."""
        with _named_errors(self.name):
            return self.source.dataset_mask(window=((top, bottom), (0, self.size[1]))) != 0  # type: ignore[no-any-return]

    def thumbnail(self, longest: int) -> tuple[Pixels, npt.NDArray[np.bool_]]:
        """The image with at most `longest` pixels a side, by nearest pixels, and which of them have data."""
        height, width = self.thumbnail_size(longest)
        with _named_errors(self.name):
            values = self.source.read(self.bands, out_shape=(len(self.bands), height, width))
            mask = self.source.dataset_mask(out_shape=(height, width))
            return self._in_8_bits(values, mask), mask != 0

    def thumbnail_size(self, longest: int) -> tuple[int, int]:
        """(height, width) of `thumbnail`."""
        scale = min(longest / max(self.size), 1)
        height, width = (max(round(side * scale), 1) for side in self.size)
        return height, width

    def _in_8_bits(self, values: npt.NDArray[Any], mask: npt.NDArray[np.uint8]) -> Pixels:
        """(bands, H, W) as (H, W, channels); what has no data may be no number."""
        if self.dtype.kind == "f":
            values[:, mask == 0] = np.nan_to_num(values[:, mask == 0])
        return finished(np.moveaxis(values, 0, 2), self.name, self.wanted)


@contextmanager
def open_raster(path: str | os.PathLike[str], wanted: Wanted) -> Iterator[Raster]:
    """A TIFF of this machine, to be read by rows.

    Raises:
        ImageError: it cannot be read, or has other bands.
        MissingExtraError: rasterio is not installed.
    """
    name, file = os.fspath(path), Path(path).absolute()
    rasterio = get_rasterio(name)
    with rasterio.Env(GDAL_CACHEMAX=_CACHE):
        with _named_errors(name):
            file.stat()  # GDAL would take a name for a place of its own
            source = rasterio.open(file, driver="GTiff")
        with source:
            yield Raster(source, name, wanted)


def reference_system(path: str | os.PathLike[str]) -> tuple[Transform, str | None]:
    """A GeoTIFF's transform, and the name of its reference system in GeoJSON, such as `urn:ogc:def:crs:EPSG::25832`.

    Its WKT where it has no number; None for longitude and latitude (WGS 84).

    Raises:
        ImageError: it has none, or the file cannot be read.
        MissingExtraError: rasterio is not installed.
    """
    name = os.fspath(path)
    rasterio = get_rasterio(name)
    with _named_errors(name), rasterio.open(Path(path).absolute(), driver="GTiff") as source:
        crs, transform = source.crs, tuple(source.transform)[:6]
    if not crs:
        raise ImageError(
            f"{name}: it names no reference system (CRS), so its polygons have no place on a map; name it, such as "
            "with gdal_edit.py -a_srs EPSG:25832 FILE, or leave out geojson"
        )
    number = crs.to_epsg()
    if number == 4326:
        return transform, None
    return transform, f"urn:ogc:def:crs:EPSG::{number}" if number else str(crs.to_wkt())


@contextmanager
def _named_errors(name: str) -> Iterator[None]:
    """As `named_errors`, with GDAL's reason in place of rasterio's."""
    with named_errors(name):
        try:
            yield
        except get_rasterio(name).errors.RasterioError as error:
            raise OSError(error.__cause__ or error) from None
