"""From an image to the network's input, with the published test pipelines' very numbers.

Most were measured on images that OpenCV had resized as uint8, so its integer rule is part of the
contract; it is written out here and OpenCV is not needed. torchvision and transformers resize with torch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from zoo_seg.errors import OptionError
from zoo_seg.images.reading import Pixels
from zoo_seg.manifest import Interpolation, Resize

_BLOCK = 32
"""Rows worked on at a time: the intermediate results stay in the processor's cache."""


def resized_size(height: int, width: int, resize: Resize | int | None) -> tuple[int, int]:
    """The height and width to resize an image to; its aspect ratio is kept unless a `Resize` says otherwise.

    Args:
        height, width: the image's size in pixels.
        resize: a record's `Resize`; a number of pixels for the shorter side; or None for no change.

    Raises:
        OptionError: `resize` is a number below 1.
    """
    if resize is None:
        return height, width
    if isinstance(resize, Resize):
        if not resize.keep_ratio:
            upright = height > width if resize.orientation == "image" else resize.orientation == "portrait"
            sides = (resize.long, resize.short) if upright else (resize.short, resize.long)
            return _multiples(sides, resize.divisor)
        if resize.rounding == "floor":
            return _multiples(_floored(height, width, resize), resize.divisor)
        scale = min(resize.long / max(height, width), resize.short / min(height, width))
    elif resize >= 1:
        scale = resize / min(height, width)
    else:
        raise OptionError(f"resize is {resize}, expected at least 1 pixel for the shorter side (such as 512), or None")
    divisor = resize.divisor if isinstance(resize, Resize) else 1
    return _multiples((max(int(height * scale + 0.5), 1), max(int(width * scale + 0.5), 1)), divisor)


def _floored(height: int, width: int, resize: Resize) -> tuple[int, int]:
    """The shorter side to `short` and the longer one cut to whole pixels; both less where it is above `long`."""
    shorter, longer = sorted((height, width))
    raw, short = 0.0, resize.short
    if longer / shorter * short > resize.long:  # the frame's limit as transformers has it
        raw = resize.long * shorter / longer
        short = max(round(raw), 1)
        if short == shorter:
            return height, width
    long = max(int((raw or short) * longer / shorter), 1)
    return (long, short) if height > width else (short, long)


def _multiples(size: tuple[int, int], divisor: int) -> tuple[int, int]:
    height, width = (-(-side // divisor) * divisor for side in size)
    return height, width


def resize_uint8(image: Pixels, height: int, width: int, interpolation: Interpolation = "opencv") -> Pixels:
    """Resizing that equals what published weights were measured with bit for bit.

    Args:
        image: (H, W, C), contiguous; at least 1x1.
        height, width: the new size in pixels, at least 1.
        interpolation: `"opencv"` is `cv2.resize(image, (width, height))`; the others are torch's with `antialias`
            on uint8, as `torchvision.transforms.v2.functional.resize` computes on the CPU.

    Returns:
        An image (height, width, C), 0..255; `image` itself where it has this size.
    """
    if image.shape[:2] == (height, width):
        return image
    if interpolation == "opencv":
        return _like_opencv(image, height, width)
    x = torch.tensor(image).permute(2, 0, 1)[None]  # a copy: an image may be read-only
    resized = F.interpolate(x, (height, width), mode=interpolation, antialias=True)[0]
    return np.ascontiguousarray(resized.permute(1, 2, 0).numpy())


def _like_opencv(image: Pixels, height: int, width: int) -> Pixels:
    left, right, left_share, right_share = _neighbours(image.shape[1], width)
    upper, lower, upper_share, lower_share = _neighbours(image.shape[0], height)
    # At the border both neighbours are the same pixel. OpenCV takes it whole for columns (their rounded
    # shares may miss 2048 by one), but adds its two parts for rows.
    border = left == right
    left_share[border], right_share[border] = 2048, 0

    channels = image.shape[2]
    left, right = ((side[:, None] * channels + np.arange(channels)).ravel() for side in (left, right))
    left_share, right_share = np.repeat(left_share, channels), np.repeat(right_share, channels)
    source = image.reshape(image.shape[0], -1)
    result = np.empty((height, width * channels), np.uint8)
    for start in range(0, height, _BLOCK):
        block = slice(start, start + _BLOCK)
        rows, place = np.unique(np.stack([upper[block], lower[block]]), return_inverse=True)
        place_upper, place_lower = place.reshape(2, -1)
        values = source[rows].astype(np.int32)
        across = values.take(left, axis=1)
        across *= left_share
        part = values.take(right, axis=1)
        part *= right_share
        across += part
        across >>= 4
        total = across[place_upper]
        total *= upper_share[block, None]
        total >>= 16
        part = across[place_lower]
        part *= lower_share[block, None]
        part >>= 16
        total += part
        total += 2
        total >>= 2
        result[block] = total
    return result.reshape(height, width, channels)


_Ints = npt.NDArray[np.int32]


def _neighbours(size: int, new_size: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], _Ints, _Ints]:
    """For each new pixel: the two source pixels around its centre, and their shares in 1/2048."""
    centre = ((np.arange(new_size) + 0.5) * (1.0 / (new_size / size)) - 0.5).astype(np.float32)
    first = np.floor(centre).astype(np.intp)
    share = centre - first.astype(np.float32)
    shares = [np.rint(each * np.float32(2048)).astype(np.int32) for each in (1 - share, share)]
    return first.clip(0, size - 1), (first + 1).clip(0, size - 1), shares[0], shares[1]


def normalise(image: Pixels, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """The network's input: `(image - mean) / std` per channel.

    Args:
        image: (H, W, C), contiguous.
        mean, std: one number a channel, for values from 0 to 255.

    Returns:
        A float32 tensor (1, C, H, W), stored channels_last.
    """
    height, width, channels = image.shape
    pixels = image.reshape(height, -1)
    # float32 for the mean and float64 for std: the published pipeline's arithmetic, equal to the last bit
    means = np.tile(np.array(mean, np.float32), width)
    factors = np.tile(1 / np.array(std, np.float64), width)
    result = np.empty((height, width * channels), np.float32)
    for start in range(0, height, _BLOCK):
        block = slice(start, start + _BLOCK)
        result[block] = (pixels[block] - means) * factors
    return torch.from_numpy(result.reshape(1, height, width, channels)).permute(0, 3, 1, 2)
