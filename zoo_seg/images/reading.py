"""Whatever a user calls an image becomes one thing: uint8, (H, W, C), and RGB unless other bands are wanted."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from zoo_seg import settings
from zoo_seg.errors import ImageError, MissingExtraError, OptionError
from zoo_seg.images.bands import Range, Wanted, check_bands, check_range, many
from zoo_seg.images.raster import read_tiff, tiff_bands

if TYPE_CHECKING:  # reading files needs no torch
    import torch

RGB = npt.NDArray[np.uint8]
"""An image: RGB, 0..255, (H, W, 3), contiguous."""
Pixels = npt.NDArray[np.uint8]
"""An image of any number of channels: 0..255, (H, W, C), contiguous."""


@runtime_checkable
class Opens(Protocol):
    """A file that is no path of this machine: a `zipfile.Path`, or one of `importlib.resources`; `str` is its name."""

    def open(self, mode: str, /) -> IO[bytes]: ...


ImageLike: TypeAlias = "str | os.PathLike[str] | Opens | Image.Image | npt.NDArray[Any] | torch.Tensor"
"""What `read_image` takes."""

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION = 0x0112
_DEEP = ("I", "F")
"""How the modes begin that hold more than 8 bits."""
_BITS, _PHOTOMETRIC, _SAMPLES, _PLANES = 258, 262, 277, 284
"""Tags of a TIFF: bits of each channel; whether 0 is black or white; channels; colours together or apart."""
_RUN_BY_PROGRAMS = ("EPS", "WMF")
"""Formats that Pillow hands to another program (Ghostscript, Windows), whatever the file is called."""
_BY_WAY_OF = {"P": "RGBA", "PA": "RGBA", "RGBa": "RGBA", "La": "LA", "1": "L"}
"""Modes which Pillow does not turn into RGB in one step, or not without a warning."""
_IN_BANDS = ("L", "LA", "RGB", "RGBA", "RGBX")
"""Modes whose bands are what a file stores; all others are colours."""
_WITH_ALPHA = ("LA", "RGBA", "RGBX")
_LOWER = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
"""Of 16 bits a channel Pillow keeps the upper byte; read in the other byte order, it keeps the lower one."""


def read_image(
    image: ImageLike,
    range: Range | Sequence[Range] | None = None,  # noqa: A002  (the field's word)
    *,
    channels: int = 3,
    bands: Sequence[int] | None = None,
) -> Pixels:
    """The pixels of an image as a fresh, contiguous uint8 array (H, W, channels): RGB, unless others are asked for.

    Files and PIL images are turned upright (EXIF orientation) and lose their transparency: the
    colours beneath it are kept, as `cv2.imread` does. Of an animation the first frame counts (of an
    opened PIL image the current one). Colour profiles are ignored, as they were when the published
    weights were trained. Arrays and tensors are RGB: BGR, as `cv2.imread` returns it, looks the same
    and cannot be told; turn it with `image[:, :, ::-1]`.

    Images of 8 bits are taken as they are. An image of 16 bits whose brightest value uses the top bit
    (32768 or more) loses its lower byte. All others (10, 12 or 14 bits in 16, 32 bits, floating point)
    do not tell which value is white, and are refused without `range`.

    With `bands`, or `channels` other than 3, the bands are what the file stores, in its order: nothing is repeated or
    converted, and alpha alone is left out where it is one too many. TIFFs of several bands are then read by rasterio
    (the extra `aerial`), which knows all number types.

    A file that announces more pixels than Pillow's limit (179 million), or than `ZOO_SEG_MAX_PIXELS`
    where that is set, is refused before it is decoded.

    Args:
        image: a path, or what is opened with `open("rb")`; a PIL image of any mode; an RGB uint8 array
            (H, W, 3) or a grey one (H, W); or an RGB uint8 tensor (3, H, W) on any device.
        range: the values that become black and white where the image has more than 8 bits, such as
            (0, 4095); arrays and tensors may then be of any real type. It leaves images of 8 bits alone.
            A pair for each channel is allowed as well.
        channels: how many the result has.
        bands: the numbers of the bands to read, from 1 on; None reads all of them.

    Raises:
        ImageError: there is no such file, it is no image or damaged, the image is empty or too
            large, its range is not known, the array has another shape or type, or the bands do not fit; the message
            says what was found and expected.
        OptionError: `range` is not two rising numbers, `bands` are no numbers of bands, or `ZOO_SEG_MAX_PIXELS` is not
            a number.
        MissingExtraError: rasterio is needed, and not installed.
    """
    wanted = Wanted(channels, check_bands(bands, channels), check_range(range, channels))
    if isinstance(image, (str, os.PathLike)):
        return _from_file(Path(image), wanted)
    if isinstance(image, Image.Image):
        with named_errors("the PIL image"):
            return _from_pil(image, "the PIL image", wanted)
    if isinstance(image, np.ndarray):
        return _from_array(image, wanted)
    if isinstance(image, Opens):
        return _from_file(image, wanted)
    if isinstance(image, getattr(sys.modules.get("torch"), "Tensor", ())):  # no torch, no tensors
        return _from_tensor(image, wanted)
    raise ImageError(
        f"found {type(image).__name__}, expected a path, a PIL image, an RGB uint8 array (H, W, 3) "
        "or a uint8 tensor (3, H, W); for bytes or an open file, pass PIL.Image.open(...)"
    )


def as_rgb(pixels: Pixels) -> RGB:
    """An image of any number of channels (H, W, C) to be looked at: the first three, or the first one as grey."""
    if pixels.shape[2] == 3:
        return pixels
    return np.ascontiguousarray(pixels[:, :, :3] if pixels.shape[2] > 3 else pixels[:, :, [0, 0, 0]])


# --- files and PIL ------------------------------------------------------------------------------


def most_pixels() -> int | None:
    """How many pixels a file may announce: `ZOO_SEG_MAX_PIXELS`, else Pillow's limit; None: any number.

    Raises:
        OptionError: the variable is not a number.
    """
    text = settings.max_pixels()
    if text is None:
        return None if Image.MAX_IMAGE_PIXELS is None else 2 * Image.MAX_IMAGE_PIXELS  # below that it only warns
    if not text.isdecimal() or int(text) < 1:
        raise OptionError(f"ZOO_SEG_MAX_PIXELS is {text!r}; expected a number of pixels, such as 500000000")
    Image.MAX_IMAGE_PIXELS = int(text)  # Pillow checks as well, with one limit for all threads
    return int(text)


def _from_file(path: Path | Opens, wanted: Wanted) -> Pixels:
    limit = most_pixels()
    hint = "download the link first" if isinstance(path, Path) and ":/" in str(path) else "check the path"
    with named_errors(str(path), hint), path.open("rb") as file:
        if not wanted.is_rgb and tiff_bands(file) > 1:  # of which Pillow makes colours
            return finished(read_tiff(file, str(path), wanted, limit), str(path), wanted)
        try:
            opened = Image.open(file)
        except UnidentifiedImageError:
            if tiff_bands(file) == 0:
                raise
            return _from_odd_tiff(file, str(path), wanted, limit)
        with opened:
            pixels = opened.width * opened.height
            if limit is not None and pixels > limit:
                raise Image.DecompressionBombError(f"Image size ({pixels} pixels) exceeds limit of {limit} pixels.")
            if opened.format in _RUN_BY_PROGRAMS:
                raise ImageError(f"{path}: {opened.format} holds drawing commands, which are not run; save it as a PNG")
            return _from_pil(opened, str(path), wanted, file)


def _from_odd_tiff(file: IO[bytes], name: str, wanted: Wanted, limit: int | None) -> Pixels:
    """A TIFF that Pillow does not know: of other number types, or of more bands."""
    found = tiff_bands(file)
    wanted.choose(found, name, has_alpha=found > 1)  # what cannot fit, alpha or not, is told without the extra
    try:
        return finished(read_tiff(file, name, wanted, limit), name, wanted)
    except MissingExtraError as error:
        if wanted.is_rgb:  # such a file among others has always been passed over
            raise ImageError(str(error)) from None
        raise


@contextmanager
def named_errors(name: str, hint: str = "check the path") -> Iterator[None]:
    """Every failure to read becomes an ImageError that names the image."""
    try:
        yield
    except (ImageError, MissingExtraError):
        raise
    except FileNotFoundError:
        raise ImageError(f"{name}: there is no such file; {hint}") from None
    except PermissionError as error:
        raise ImageError(f"{name}: cannot be read ({error.strerror}); check the file's permissions") from None
    except UnidentifiedImageError:
        raise ImageError(f"{name}: not an image that Pillow can read; expected a JPEG, PNG or similar file") from None
    except Image.DecompressionBombError as error:
        raise ImageError(
            f"{name}: {error} If you trust the file, set the environment variable ZOO_SEG_MAX_PIXELS to so many or "
            "more; in Python you can also set PIL.Image.MAX_IMAGE_PIXELS = None, open it with PIL.Image.open and pass "
            "that image, or pass an array"
        ) from None
    except MemoryError:
        raise ImageError(f"{name}: there is too little memory to read it; make it smaller") from None
    except Exception as error:  # Pillow's decoders raise almost anything on damaged data
        reason = getattr(error, "strerror", None) or error
        raise ImageError(f"{name}: cannot be read ({reason}); expected a complete image file") from None


def _from_pil(image: Image.Image, name: str, wanted: Wanted, file: IO[bytes] | None = None) -> Pixels:
    """`file`: what the image was opened from, where it can be opened once more."""
    if 0 in image.size:
        raise ImageError(f"{name} is {image.width}x{image.height} pixels, expected at least 1x1")
    mode, tags, is_cut = stored_mode(image), getattr(image, "tag_v2", {}), loses_bits(image)
    if image.mode.startswith(_DEEP) and tags.get(_PHOTOMETRIC) == 0:
        raise ImageError(f"{name}: a TIFF of mode {image.mode} whose 0 is white; save it with 0 for black")
    if is_cut and (tags.get(_PLANES) == 2 or mode.startswith("RGBa")):
        what = "its colours in separate planes" if tags.get(_PLANES) == 2 else "colours multiplied by alpha"
        raise ImageError(f"{name}: a 16-bit TIFF with {what}, which Pillow misreads; save it as plain RGB")
    if tags and mode.startswith("RGB") and "X" in mode:
        wanted.choose(tags.get(_SAMPLES, 4), name)  # beside RGB, and no alpha: Pillow would drop them unseen
    image = upright(image)
    if mode.startswith("LA;") and not wanted.is_rgb:
        image = image.convert("LA")  # Pillow makes RGBA of its 16 bits
    if image.mode.startswith(_DEEP):
        values = np.asarray(image)[:, :, None]
        return finished(values[:, :, wanted.choose(1, name)], name, wanted)
    if is_cut:
        bands = np.asarray(image)
        chosen = wanted.choose(bands.shape[2], name, has_alpha=image.mode in _WITH_ALPHA)
        if wanted.ranges is not None or bands[:, :, chosen].max() < 128:
            return finished(_sixteen_bits(bands, chosen, mode, name, file), name, wanted)
    colours = wanted.is_rgb or image.mode in ("P", "PA")
    if image.mode in _BY_WAY_OF:
        image = image.convert(_BY_WAY_OF[image.mode])
    if colours or image.mode not in _IN_BANDS:
        image = image.convert("RGB")
    values = np.asarray(image).reshape(image.height, image.width, -1)
    chosen = wanted.choose(values.shape[2], name, has_alpha=image.mode in _WITH_ALPHA)
    return finished(values[:, :, chosen], name, wanted)


def stored_mode(image: Image.Image) -> str:
    """How a pixel is stored in the file, in Pillow's words (`L;4`, `RGB;16B`); empty where Pillow does not tell."""
    tiles = getattr(image, "tile", None)
    arguments = tiles[0][3] if tiles else None
    if isinstance(arguments, tuple) and arguments:
        arguments = arguments[0]
    return arguments if isinstance(arguments, str) else ""


def loses_bits(image: Image.Image) -> bool:
    """Whether the file stores more than 8 bits a channel, of which Pillow gives the upper 8."""
    is_deep = max(getattr(image, "tag_v2", {}).get(_BITS, (8,))) > 8
    return not image.mode.startswith(_DEEP) and (is_deep or stored_mode(image).endswith((";16B", ";16L", ";16N")))


def upright(image: Image.Image) -> Image.Image:
    """The loaded image, turned as its EXIF orientation says."""
    image.load()
    orientation = _orientation(image)  # after loading: some formats turn themselves
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _orientation(image: Image.Image) -> int | None:
    """The EXIF orientation; a damaged EXIF block is no reason to refuse the pixels."""
    try:
        value = image.getexif().get(_ORIENTATION)
    except Exception:
        return None
    return value if isinstance(value, int) else None


def _sixteen_bits(
    bands: Pixels, chosen: slice | list[int], mode: str, name: str, file: IO[bytes] | None
) -> npt.NDArray[np.uint16]:
    """All bits of the chosen bands of 16-bit RGB, of which Pillow has given the upper byte."""
    upper = bands[:, :, chosen]
    kind, order = mode.partition(";")[0], mode[-1]
    if file is None or kind not in ("RGB", "RGBA", "RGBX"):
        raise ImageError(
            f"{name}: 16-bit {kind}, of which Pillow gives the upper 8 bits only, and they hold at most {upper.max()}; "
            + ("save it as 8-bit RGB" if file else "pass its path, or an array and its range=")
        )
    file.seek(0)
    with Image.open(file) as again:
        other = mode[:-1] + _LOWER[order]
        again.tile = [
            (*tile[:3], (other, *tile[3][1:]) if isinstance(tile[3], tuple) else other)  # type: ignore[misc]
            for tile in again.tile
        ]
        lower = np.asarray(upright(again))[:, :, chosen]
    both: npt.NDArray[np.uint16] = upper.astype(np.uint16) << 8 | lower
    return both


def finished(values: npt.NDArray[Any], name: str, wanted: Wanted) -> Pixels:
    """The chosen bands, (H, W, bands), as a fresh image; grey is repeated where colours are wanted."""
    if values.dtype != np.uint8:
        values = _to_8_bits(values, name, wanted.ranges)
    if wanted.is_rgb and values.shape[2] == 1:
        return np.repeat(values, 3, axis=2)
    return np.array(values, order="C")


def _to_8_bits(values: npt.NDArray[Any], name: str, ranges: tuple[Range, ...] | None) -> Pixels:
    """Values of more than 8 bits, (H, W, bands), as 0..255."""
    low, high = values.min().item(), values.max().item()
    if low != low:
        raise ImageError(f"{name}: pixels that are not a number (NaN); expected a value for each")
    if ranges is not None:
        scaled = np.empty(values.shape, np.uint8)
        for band in range(values.shape[2]):
            scaled[:, :, band] = np.rint(np.interp(values[:, :, band], ranges[band % len(ranges)], (0, 255)))
        return scaled
    is_whole = values.dtype.kind in "iu"
    if is_whole and low >= 0 and (high == 0 or 32768 <= high <= 65535):
        return (values >> 8).astype(np.uint8)
    found = f"{name}: values from {low:g} to {high:g} ({values.dtype}), expected 8 bits, or 16 that use the top one"
    if math.isinf(low) or math.isinf(high):
        raise ImageError(f"{found}; say which values are black and white (--range, or range= in Python)")
    black = math.floor(min(low, 0))
    white = (1 << high.bit_length()) - 1 if is_whole and low >= 0 else max(math.ceil(high), black + 1)
    raise ImageError(
        f"{found} (32768 and more). Say which values are black and white, such as --range {black} {white} "
        f'(range=({black}, {white}) in Python, "range": [{black}, {white}] in a dataset.json)'
    )


# --- arrays and tensors -------------------------------------------------------------------------


def _from_array(array: npt.NDArray[Any], wanted: Wanted) -> Pixels:
    found, channels = f"found an array of shape {array.shape} and type {array.dtype}", wanted.channels
    fits = array.ndim == 3 and (wanted.bands is not None or array.shape[2] == channels)
    if not fits and not (array.ndim == 2 and (wanted.is_rgb or channels == 1)):
        expected = (
            "RGB (H, W, 3) or grey (H, W)" if wanted.is_rgb else f"{many(channels, 'channel')} (H, W, {channels})"
        )
        raise ImageError(f"{found}, expected {expected}; {_shape_hint(array.shape, channels)}")
    # a copy: a caller may reuse its buffer (video) while the result still shows this image
    return _in_8_bits(found, array if array.ndim == 3 else array[:, :, None], wanted)


def _shape_hint(shape: tuple[int, ...], channels: int) -> str:
    if len(shape) == 4:
        return "pass a batch as a list: list(images)"
    if len(shape) == 3 and shape[0] == channels:
        return "move the channels last: image.transpose(1, 2, 0)"
    if len(shape) == 3 and shape[2] > channels != 3:
        return f"choose bands, such as bands={list(range(1, channels + 1))}"
    if channels == 3 and len(shape) == 3 and shape[2] == 4:
        return "drop the alpha channel: image[:, :, :3]"
    if channels == 3 and len(shape) == 3 and shape[2] == 1:
        return "drop the last axis: image[:, :, 0]"
    return "reshape it"


def _from_tensor(tensor: torch.Tensor, wanted: Wanted) -> Pixels:
    shape, dtype, channels = tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), wanted.channels
    found = f"found a tensor of shape {shape} and type {dtype}"
    if len(shape) != 3 or (shape[0] != channels and wanted.bands is None):
        hint = "reshape it"
        if len(shape) == 4:
            hint = "pass a batch as a list: list(images)"
        elif len(shape) == 3 and shape[2] == channels:
            hint = "move the channels first: image.permute(2, 0, 1)"
        elif channels == 3 and len(shape) in (2, 3) and (len(shape) == 2 or shape[0] == 1):
            hint = "repeat the grey channel: image.expand(3, -1, -1)"
        expected = "RGB (3, H, W)" if wanted.is_rgb else f"{many(channels, 'channel')} ({channels}, H, W)"
        raise ImageError(f"{found}, expected {expected}; {hint}")
    if tensor.is_meta or str(tensor.layout) != "torch.strided":
        raise ImageError(f"{found} that is {'meta' if tensor.is_meta else 'sparse'}, expected one that holds pixels")
    tensor = tensor.detach().cpu()
    array = (tensor.float() if dtype == "bfloat16" else tensor).permute(1, 2, 0).numpy()
    return _in_8_bits(found, array, wanted)


def _in_8_bits(found: str, array: npt.NDArray[Any], wanted: Wanted) -> Pixels:
    """The wanted bands of (H, W, bands) as a fresh image."""
    if 0 in array.shape:
        raise ImageError(f"{found}, expected at least 1x1 pixels")
    if array.dtype != np.uint8 and array.dtype.kind not in "iuf":
        raise ImageError(f"{found}, expected uint8 values from 0 to 255")
    if array.dtype != np.uint8 and wanted.ranges is None:
        usual = "(0, 65535)" if array.dtype == np.uint16 else "(0, 1)"
        raise ImageError(
            f"{found}, expected uint8 values from 0 to 255; or say which values are black and white, such as "
            f"range={usual}"
        )
    return finished(array[:, :, wanted.choose(array.shape[2], found)], found, wanted)


def drawn_street() -> Path | None:
    """This project's own image, of a drawn street: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    found = (package / "packaged" / "street.jpg", package.parent / "examples" / "street.jpg")
    return next((path for path in found if path.is_file()), None)
