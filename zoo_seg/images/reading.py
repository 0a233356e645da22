"""Whatever a user calls a picture becomes one thing: RGB, uint8, (H, W, 3)."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from zoo_seg import settings
from zoo_seg.errors import ImageError, OptionError

if TYPE_CHECKING:  # reading files needs no torch
    import torch

RGB = npt.NDArray[np.uint8]
"""A picture: RGB, 0..255, (H, W, 3), contiguous."""


@runtime_checkable
class Opens(Protocol):
    """A file that is no path of this machine: a `zipfile.Path`, or one of `importlib.resources`; `str` is its name."""

    def open(self, mode: str, /) -> IO[bytes]: ...


Picture: TypeAlias = "str | os.PathLike[str] | Opens | Image.Image | npt.NDArray[np.uint8] | torch.Tensor"
"""What `read_picture` takes."""

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
_RUN_BY_PROGRAMS = ("EPS", "WMF")
"""Formats that Pillow hands to another program (Ghostscript, Windows), whatever the file is called."""
_BY_WAY_OF = {"P": "RGBA", "PA": "RGBA", "RGBa": "RGBA", "La": "LA"}
"""Modes which Pillow does not turn into RGB in one step, or not without a warning."""


def read_picture(image: Picture) -> RGB:
    """The pixels of a picture as a fresh, contiguous RGB uint8 array (H, W, 3).

    Files and PIL pictures are turned upright (EXIF orientation) and lose their transparency: the
    colours beneath it are kept, as `cv2.imread` does. Of an animation the first frame counts (of an
    opened PIL picture the current one). 16 bits become 8 by dropping the lower ones. Colour profiles
    are ignored, as they were when the published weights were trained.

    A file that announces more pixels than Pillow's limit (179 million), or than `ZOO_SEG_MAX_PIXELS`
    where that is set, is refused before it is decoded.

    Args:
        image: a path, or what is opened with `open("rb")`; a PIL picture of any mode; an RGB uint8 array
            (H, W, 3) or a grey one (H, W); or an RGB uint8 tensor (3, H, W) on any device.

    Raises:
        ImageError: there is no such file, it is no picture or damaged, the picture is empty or too
            large, or the array has another shape or type; the message says what was found and expected.
        OptionError: `ZOO_SEG_MAX_PIXELS` is not a number.
    """
    if isinstance(image, (str, os.PathLike)):
        return _from_file(Path(image))
    if isinstance(image, Image.Image):
        with _named_errors("the PIL picture"):
            return _from_pil(image, "the PIL picture")
    if isinstance(image, np.ndarray):
        return _from_array(image)
    if isinstance(image, Opens):
        return _from_file(image)
    if isinstance(image, getattr(sys.modules.get("torch"), "Tensor", ())):  # no torch, no tensors
        return _from_tensor(image)
    raise ImageError(
        f"found {type(image).__name__}, expected a path, a PIL picture, an RGB uint8 array (H, W, 3) "
        "or a uint8 tensor (3, H, W); for bytes or an open file, pass PIL.Image.open(...)"
    )


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


def _from_file(path: Path | Opens) -> RGB:
    limit = most_pixels()
    hint = "download the link first" if isinstance(path, Path) and ":/" in str(path) else "check the path"
    with _named_errors(str(path), hint), path.open("rb") as file, Image.open(file) as opened:
        pixels = opened.width * opened.height
        if limit is not None and pixels > limit:
            raise Image.DecompressionBombError(f"Image size ({pixels} pixels) exceeds limit of {limit} pixels.")
        if opened.format in _RUN_BY_PROGRAMS:
            raise ImageError(f"{path}: {opened.format} holds drawing commands, which are not run; save it as a PNG")
        return _from_pil(opened, str(path))


@contextmanager
def _named_errors(name: str, hint: str = "check the path") -> Iterator[None]:
    """Every failure to read becomes an ImageError that names the picture."""
    try:
        yield
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError(f"{name}: there is no such file; {hint}") from None
    except PermissionError as error:
        raise ImageError(f"{name}: cannot be read ({error.strerror}); check the file's permissions") from None
    except UnidentifiedImageError:
        raise ImageError(f"{name}: not a picture that Pillow can read; expected a JPEG, PNG or similar file") from None
    except Image.DecompressionBombError as error:
        raise ImageError(
            f"{name}: {error} If you trust the file, set the environment variable ZOO_SEG_MAX_PIXELS to so many or "
            "more; in Python you can also set PIL.Image.MAX_IMAGE_PIXELS = None, open it with PIL.Image.open and pass "
            "that picture, or pass an array"
        ) from None
    except MemoryError:
        raise ImageError(f"{name}: there is too little memory to read it; make it smaller") from None
    except Exception as error:  # Pillow's decoders raise almost anything on damaged data
        reason = getattr(error, "strerror", None) or error
        raise ImageError(f"{name}: cannot be read ({reason}); expected a complete picture file") from None


def _from_pil(image: Image.Image, name: str) -> RGB:
    if 0 in image.size:
        raise ImageError(f"{name} is {image.width}x{image.height} pixels, expected at least 1x1")
    image.load()
    orientation = _orientation(image)  # after loading: some formats turn themselves
    if orientation in _UPRIGHT:
        image = image.transpose(_UPRIGHT[orientation])
    if image.mode.startswith(("I", "F")):
        return _from_deep_grey(image, name)
    if image.mode in _BY_WAY_OF:
        image = image.convert(_BY_WAY_OF[image.mode])
    return np.array(image.convert("RGB"), dtype=np.uint8)


def _orientation(image: Image.Image) -> int | None:
    """The EXIF orientation; a damaged EXIF block is no reason to refuse the pixels."""
    try:
        value = image.getexif().get(_ORIENTATION)
    except Exception:
        return None
    return value if isinstance(value, int) else None


def _from_deep_grey(image: Image.Image, name: str) -> RGB:
    """Grey of 16 bits (I;16), 32 bits (I) or floating point (F)."""
    grey = np.asarray(image)
    low, high = grey.min(), grey.max()
    if image.mode.startswith("I;16") or (image.mode == "I" and low >= 0 and 255 < high <= 65535):
        grey = grey >> 8
    elif not (low >= 0 and high <= 255) or (image.mode == "F" and 0 < high <= 1):  # `not` catches NaN, too
        raise ImageError(
            f"{name} (mode {image.mode}) has values from {low} to {high}, expected 0 to 255; "
            "scale it and pass a uint8 array"
        )
    return _grey_to_rgb(np.rint(grey).astype(np.uint8))


def _grey_to_rgb(grey: RGB) -> RGB:
    return np.repeat(grey[:, :, None], 3, axis=2)


# --- arrays and tensors -------------------------------------------------------------------------


def _from_array(array: npt.NDArray[np.uint8]) -> RGB:
    found = f"found an array of shape {array.shape} and type {array.dtype}"
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3):
        raise ImageError(f"{found}, expected RGB (H, W, 3) or grey (H, W); {_shape_hint(array.shape)}")
    _check_type_and_size(found, array.shape, str(array.dtype), "np.rint(picture * 255).astype(np.uint8)")
    # a copy: a caller may reuse its buffer (video) while the result still shows this picture
    return _grey_to_rgb(array) if array.ndim == 2 else np.array(array, order="C")


def _shape_hint(shape: tuple[int, ...]) -> str:
    if len(shape) == 4:
        return "pass a batch as a list: list(pictures)"
    if len(shape) == 3 and shape[0] == 3:
        return "move the channels last: picture.transpose(1, 2, 0)"
    if len(shape) == 3 and shape[2] == 4:
        return "drop the alpha channel: picture[:, :, :3]"
    if len(shape) == 3 and shape[2] == 1:
        return "drop the last axis: picture[:, :, 0]"
    return "reshape it"


def _from_tensor(tensor: torch.Tensor) -> RGB:
    shape, dtype = tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")
    found = f"found a tensor of shape {shape} and type {dtype}"
    if len(shape) != 3 or shape[0] != 3:
        hint = "reshape it"
        if len(shape) == 4:
            hint = "pass a batch as a list: list(pictures)"
        elif len(shape) == 3 and shape[2] == 3:
            hint = "move the channels first: picture.permute(2, 0, 1)"
        elif len(shape) in (2, 3) and (len(shape) == 2 or shape[0] == 1):
            hint = "repeat the grey channel: picture.expand(3, -1, -1)"
        raise ImageError(f"{found}, expected RGB (3, H, W); {hint}")
    _check_type_and_size(found, shape, dtype, "(picture * 255).round().to(torch.uint8)")
    return np.array(tensor.cpu().permute(1, 2, 0).numpy(), order="C")


def _check_type_and_size(found: str, shape: tuple[int, ...], dtype: str, convert: str) -> None:
    if dtype != "uint8":
        hint = {"uint16": "shift it: (picture >> 8) as uint8", "bool": "multiply by 255 and convert to uint8"}.get(
            dtype, f"for values from 0 to 1, multiply by 255 and convert to uint8: {convert}"
        )
        raise ImageError(f"{found}, expected uint8 values from 0 to 255; {hint}")
    if 0 in shape:
        raise ImageError(f"{found}, expected at least 1x1 pixels")


def drawn_street() -> Path | None:
    """This project's own picture, of a drawn street: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    found = (package / "packaged" / "street.jpg", package.parent / "examples" / "street.jpg")
    return next((path for path in found if path.is_file()), None)
