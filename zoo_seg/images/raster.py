"""TIFFs of any number of bands and any number type, which Pillow reads only some of. Needs the extra `aerial`."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from functools import cache
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from zoo_seg.errors import ImageError, MissingExtraError
from zoo_seg.images.bands import Wanted

_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_ORIENTATION, _BANDS, _SOFTWARE = 274, 277, 305
_OFFSETS, _BYTES = 324, 325
"""Of tiles."""
_PIXEL_SCALE, _TRANSFORMATION = 33550, 34264
"""Of a GeoTIFF: where its pixels lie on a map."""


def tiff_bands(file: IO[bytes]) -> int:
    """How many bands an open file's first image has by its tags; 0 where it is no TIFF, or a damaged one."""
    return _tag(file, _BANDS)


def is_on_a_map(file: IO[bytes]) -> bool:
    """Whether an open file is a GeoTIFF that says where its pixels lie, in whatever reference system."""
    tags = _tags(file)
    return _PIXEL_SCALE in tags or _TRANSFORMATION in tags


def holds_all_tiles(file: IO[bytes]) -> bool:
    """Whether an open TIFF has the data of every tile that it lists; GDAL does not tell of a full disk."""
    tags = _tags(file)
    size = file.seek(0, os.SEEK_END)
    tiles = list(zip(tags.get(_OFFSETS, ()), tags.get(_BYTES, ()), strict=True))
    return bool(tiles) and all(count > 0 and offset + count <= size for offset, count in tiles)


def software(file: IO[bytes]) -> str:
    """What an open TIFF says that it was written by; empty where it does not."""
    try:
        return str(_tags(file).get(_SOFTWARE, ""))
    except Exception:  # Pillow raises almost anything on damaged data
        return ""


def _tag(file: IO[bytes], number: int) -> int:
    """A tag of an open file's first image, 1 where it is left out; 0 where the file is no TIFF, or a damaged one."""
    try:
        tags = _tags(file)
        return int(tags.get(number, 1)) if tags else 0
    except Exception:
        return 0


def _tags(file: IO[bytes]) -> Mapping[int, Any]:
    """The tags of an open file's first image; none where the file is no TIFF, or a damaged one."""
    file.seek(0)
    header = file.read(8)
    try:
        if header[:4] not in _MAGIC:
            return {}
        tags = ImageFileDirectory_v2(header + (file.read(8) if b"+" in header[:4] else b""))
        file.seek(tags.next)
        tags.load(file)
        return tags
    except Exception:  # Pillow raises almost anything on damaged data; whoever reads the file will tell
        return {}
    finally:
        file.seek(0)


def read_tiff(file: IO[bytes], name: str, wanted: Wanted, limit: int | None) -> npt.NDArray[Any]:
    """The wanted bands of an open TIFF as they are stored: (H, W, bands), of any real type.

    Args:
        limit: the most pixels that are read.

    Raises:
        ImageError: it has other bands than wanted, or cannot be read.
        MissingExtraError: rasterio is not installed.
        DecompressionBombError: it has more pixels than `limit`; Pillow's.
    """
    if 1 < _tag(file, _ORIENTATION) <= 8:
        raise ImageError(f"{name}: a multi-band TIFF that its orientation tag turns; save it upright")
    rasterio = get_rasterio(name)
    # from memory, and as nothing but a TIFF: GDAL would follow other formats to further files and to the network
    with rasterio.MemoryFile(file.read()) as memory, memory.open(driver="GTiff") as source:
        pixels = source.width * source.height
        if limit is not None and pixels > limit:
            raise Image.DecompressionBombError(f"Image size ({pixels} pixels) exceeds limit of {limit} pixels.")
        values: npt.NDArray[Any] = source.read(chosen_bands(source, name, wanted))
    if values.dtype.kind not in "iuf":
        raise ImageError(f"{name}: values of type {values.dtype}, expected whole or floating-point numbers")
    return np.moveaxis(values, 0, 2)


def chosen_bands(source: Any, name: str, wanted: Wanted) -> list[int]:
    """The numbers of an open dataset's wanted bands.

    Raises:
        ImageError: it has others.
    """
    has_alpha = source.colorinterp[-1].name == "alpha"
    chosen = wanted.choose(source.count, name, has_alpha=has_alpha)
    return list(range(1, source.count + 1))[chosen] if isinstance(chosen, slice) else [i + 1 for i in chosen]


def get_rasterio(name: str) -> Any:
    """rasterio, to read a file of this name.

    Raises:
        MissingExtraError: it is not installed; the message names the pip command.
    """
    try:
        return _quiet_rasterio()
    except ImportError as error:
        raise MissingExtraError(
            f"{name}: a TIFF of such bands needs rasterio ({error}); pip install 'zoo_seg[aerial]'"
        ) from None


@cache
def _quiet_rasterio() -> Any:
    import rasterio
    import rasterio.enums

    # once, as readers are threads: tiles without coordinates are fine
    warnings.filterwarnings("ignore", category=rasterio.errors.NotGeoreferencedWarning)
    return rasterio
