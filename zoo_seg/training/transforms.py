"""Paired transforms for training: the published protocol, made of torchvision's v2 transforms and three of our own.

A sample goes through as `(tv_tensors.Image, tv_tensors.Mask)`, so a user's `v2.Compose` may mix in any
transform of v2. Every draw comes from torch's global generator: after `torch.manual_seed(n)` a sample is
the same in whichever worker it is made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from zoo_seg.errors import OptionError
from zoo_seg.images.preprocess import resized_size
from zoo_seg.manifest import LARGEST_SIDE, Resize
from zoo_seg.training.callables import blaming

_TRIES = 10


def published_transforms(
    crop: tuple[int, int],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    ignore_index: int,
    base: Resize | int | None = None,
    scale: tuple[float, float] = (0.5, 2.0),
    cat_max_ratio: float = 0.75,
    flip: float = 0.5,
    photometric: bool = True,
) -> v2.Transform:
    """The transforms with which the published networks were trained.

    Random scale and crop, horizontal flip, photometric distortion, normalising, padding to the crop.

    Args:
        crop: height and width of every sample in pixels.
        mean, std: one number a channel, for values from 0 to 255.
        ignore_index: the mask's value for pixels that do not count; the padding's too.
        base: what the random factor multiplies: a record's `Resize`, a number of pixels for the shorter
            side, or None for the image's own size.
        scale: range of the random factor; (1, 1) for none.
        cat_max_ratio: a crop in which one class has at least this share of the labelled pixels is drawn anew,
            ten times at most; 1 for no limit.
        flip: probability of mirroring left and right.
        photometric: whether to distort brightness, contrast, saturation and hue; the last two of three channels only.

    Returns:
        A transform of (uint8 (C, H, W), integer mask (H, W)) into (float32 (C, *crop), mask (*crop)). The mask is
        int64, but a uint8 one stays so where it can hold `ignore_index`: a worker sends 8 bits much faster than 64.
    """
    mask_type = None if 0 <= ignore_index <= 255 else torch.int64
    steps = [
        ToPair(),
        RandomScaleCrop(crop, base=base, scale=scale, cat_max_ratio=cat_max_ratio, ignore_index=ignore_index),
        v2.RandomHorizontalFlip(flip),
        *([PhotometricDistortion()] if photometric else []),
        v2.ToDtype({tv_tensors.Image: torch.float32, tv_tensors.Mask: mask_type}),
        v2.Normalize(list(mean), list(std), inplace=True),
        PadTo(crop, ignore_index=ignore_index),
        v2.ToPureTensor(),
    ]
    return v2.Compose(steps)


class OwnTransforms:
    """Transforms of one's own, of (uint8 (C, H, W), integer mask (H, W)) into the same kinds or a float image.

    A uint8 image is normalised as the published ones are; a float one is taken as it is. What is smaller than the crop
    is padded to it, normalised image and mask alike.

    Args:
        transforms: what is called.
        name: what it is called in messages.
        num_classes: class ids are below it.
        crop, mean, std, ignore_index: as `published_transforms`.

    Raises:
        TrainingError: when called, and it fails.
        OptionError: when called, and it returns something else, more than the crop, or other class ids.
    """

    def __init__(
        self,
        transforms: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
        name: str,
        crop: tuple[int, int],
        num_classes: int,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        ignore_index: int,
    ) -> None:
        self.transforms, self.name, self.crop, self.num_classes = transforms, name, crop, num_classes
        self.mean, self.std, self.ignore_index = list(mean), list(std), ignore_index
        self.pad = PadTo(crop, ignore_index=ignore_index)
        self.mask_type = torch.uint8 if 0 <= ignore_index <= 255 else torch.int64

    def __call__(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """As `transforms`."""
        channels = len(image)
        with blaming(f"the transforms {self.name}"):
            found = self.transforms(image, mask)
        parts = list(found) if isinstance(found, (tuple, list)) else [found]
        if not (len(parts) == 2 and all(isinstance(each, Tensor) for each in parts)):
            kinds = ", ".join(type(each).__name__ for each in parts)
            raise OptionError(f"the transforms {self.name} returned {kinds}; expected two tensors, image and mask")
        image, mask = (each.as_subclass(Tensor) for each in parts)
        fits = image.shape == (channels, *mask.shape) and mask.ndim == 2 and not mask.is_floating_point()
        if not fits or any(side > most for side, most in zip(mask.shape, self.crop, strict=True)):
            raise OptionError(
                f"the transforms {self.name} returned {image.dtype} {tuple(image.shape)} and {mask.dtype} "
                f"{tuple(mask.shape)}; expected an image ({channels}, h, w) and integers (h, w) of at most the "
                f"crop_size, {self.crop}"
            )
        wrong = mask[(mask != self.ignore_index) & ((mask < 0) | (mask >= self.num_classes))]
        if wrong.numel():
            raise OptionError(
                f"the transforms {self.name} returned a mask with class id {int(wrong[0])}; expected 0 to "
                f"{self.num_classes - 1}, or {self.ignore_index} (ignored)"
            )
        uint8 = image.dtype == torch.uint8
        image = v2.functional.normalize(image.float(), self.mean, self.std) if uint8 else image.float()
        padded, labels = self.pad(image, mask.to(self.mask_type))
        return padded.as_subclass(Tensor), labels.as_subclass(Tensor)


class ToPair(v2.Transform):  # type: ignore[misc]
    """Names the two parts for v2, which would take a plain mask for something to leave alone."""

    def forward(self, image: Tensor, mask: Tensor) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        """Of a uint8 image (C, H, W) and a mask (H, W) of any integer type."""
        if mask.dtype != torch.uint8:
            mask = mask.to(torch.int64)  # torch cannot index uint16
        return tv_tensors.Image(image), tv_tensors.Mask(mask)


# --- scale and crop -----------------------------------------------------------------------------


class RandomScaleCrop(v2.Transform):  # type: ignore[misc]
    """Resizes by a random factor and takes a random crop, of which only the crop is computed.

    The image is resized bilinearly without antialiasing and the mask to the nearest pixel, both where
    OpenCV samples them; the image's values differ from OpenCV's by one at most. An image smaller than the crop
    in a direction stays so; `PadTo` fills it up.

    Args: as `published_transforms`.
    """

    def __init__(
        self,
        crop: tuple[int, int],
        *,
        ignore_index: int,
        base: Resize | int | None = None,
        scale: tuple[float, float] = (0.5, 2.0),
        cat_max_ratio: float = 0.75,
    ) -> None:
        super().__init__()
        self.crop = crop
        self.ignore_index = ignore_index
        self.base = base
        self.scale = scale
        self.cat_max_ratio = cat_max_ratio

    def forward(self, image: Tensor, mask: Tensor) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        labels = mask.as_subclass(Tensor)
        size = self._size(labels.shape[0], labels.shape[1], _uniform(*self.scale))
        height, width = (min(pair) for pair in zip(self.crop, size, strict=True))
        tries = 1 if (height, width) == size or self.cat_max_ratio >= 1 else _TRIES
        for left in reversed(range(tries)):
            box = _below(size[0] - height + 1), _below(size[1] - width + 1), height, width
            part = resized_mask(labels, size, box)
            if left == 0 or self._mixed(part):
                break
        return tv_tensors.Image(resized_image(image.as_subclass(Tensor), size, box)), tv_tensors.Mask(part)

    def _size(self, height: int, width: int, factor: float) -> tuple[int, int]:
        if self.base is None:
            return max(int(height * factor + 0.5), 1), max(int(width * factor + 0.5), 1)
        if isinstance(self.base, int):
            return resized_size(height, width, max(int(self.base * factor), 1))
        short, long = (min(max(int(side * factor), 1), LARGEST_SIDE) for side in (self.base.short, self.base.long))
        return resized_size(height, width, replace(self.base, short=short, long=long))

    def _mixed(self, mask: Tensor) -> bool:
        """More than one class, and none with `cat_max_ratio` of the labelled pixels or more."""
        if self.ignore_index < 0:
            counts = torch.bincount(mask[mask != self.ignore_index])
        else:
            counts = torch.bincount(mask.flatten(), minlength=self.ignore_index + 1)
            counts[self.ignore_index] = 0
        return int((counts > 0).sum()) > 1 and int(counts.max()) < self.cat_max_ratio * int(counts.sum())


Box = tuple[int, int, int, int]
"""Top, left, height and width, in pixels of the resized image."""


def resized_image(image: Tensor, size: tuple[int, int], box: Box) -> Tensor:
    """A box of the image resized to `size`: uint8 (C, H, W) to uint8 (C, height, width), bilinear."""
    spans, centres = [], []
    for old, new, start, length in zip(image.shape[-2:], size, box[:2], box[2:], strict=True):
        place = (torch.arange(start, start + length, dtype=torch.float64) + 0.5) * (old / new) - 0.5
        first, last = max(int(place[0]), 0), min(int(place[-1]) + 2, old)
        spans.append(slice(first, last))
        centres.append(((place - first + 0.5) * (2 / (last - first)) - 1).float())  # -1 to 1, as grid_sample has it
    source = image[:, spans[0], spans[1]].float()
    y, x = torch.meshgrid(centres[0], centres[1], indexing="ij")
    grid = torch.stack([x, y], dim=-1)
    values = F.grid_sample(source[None], grid[None], mode="bilinear", padding_mode="border", align_corners=False)
    return _uint8(values[0].add_(0.5))


def resized_mask(mask: Tensor, size: tuple[int, int], box: Box) -> Tensor:
    """A box of the mask resized to `size`: (H, W) to (height, width), the nearest pixel by OpenCV's rule."""
    rows, columns = (
        (torch.arange(start, start + length, dtype=torch.float64) * (1 / (new / old))).long().clamp_(max=old - 1)
        for old, new, start, length in zip(mask.shape, size, box[:2], box[2:], strict=True)
    )
    return mask.index_select(0, rows).gather(1, columns.expand(len(rows), -1))


def _uint8(values: Tensor) -> Tensor:
    return values.to(torch.int16).to(torch.uint8)  # three times as fast as in one step


class PadTo(v2.Transform):  # type: ignore[misc]
    """Pads a normalised image with 0, the mean colour, and a mask with the ignored value; the content is centred."""

    def __init__(self, size: tuple[int, int], *, ignore_index: int) -> None:
        super().__init__()
        self.size = size
        self.ignore_index = ignore_index

    def forward(self, image: Tensor, mask: Tensor) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        height, width = (max(new - old, 0) for old, new in zip(mask.shape, self.size, strict=True))
        if height == width == 0:
            return tv_tensors.Image(image), tv_tensors.Mask(mask)
        padding = width // 2, width - width // 2, height // 2, height - height // 2
        return (
            tv_tensors.Image(F.pad(image.as_subclass(Tensor), padding)),
            tv_tensors.Mask(F.pad(mask.as_subclass(Tensor), padding, value=self.ignore_index)),
        )


# --- colours ------------------------------------------------------------------------------------


class PhotometricDistortion(v2.Transform):  # type: ignore[misc]
    """Brightness, contrast, saturation and hue, each with probability 1/2, contrast before or after the colours.

    The rule of SSD (Liu et al. 2016, 1512.02325) as both original projects have it: brightness is added, contrast
    and saturation are factors, and after each step the values are clipped and cut to whole numbers. They turn
    saturation and hue in OpenCV's 8 bit HSV, which rounds hue to 2 degrees; here nothing is rounded on the way.
    Saturation and hue are of RGB: images of other than three channels get brightness and contrast only.

    Args:
        brightness: largest shift, of 255.
        contrast, saturation: ranges of the factors.
        hue: largest turn in steps of 2 degrees; 0 for none.
    """

    def __init__(
        self,
        brightness: float = 32,
        contrast: tuple[float, float] = (0.5, 1.5),
        saturation: tuple[float, float] = (0.5, 1.5),
        hue: int = 18,
    ) -> None:
        super().__init__()
        self.brightness = brightness
        self.contrast = contrast
        self.saturation = saturation
        self.hue = hue

    def forward(self, image: Tensor, mask: Tensor) -> tuple[tv_tensors.Image, Tensor]:
        """Of a uint8 image (C, H, W); the mask passes."""
        is_rgb = image.shape[0] == 3
        values = image.as_subclass(Tensor).float()
        if _coin():
            values = adjust_brightness(values, _uniform(-self.brightness, self.brightness))
        contrast_first = _coin()
        if contrast_first and _coin():
            values = adjust_contrast(values, _uniform(*self.contrast))
        if is_rgb and _coin():
            values = adjust_saturation(values, _uniform(*self.saturation))
        if is_rgb and self.hue and _coin():
            values = adjust_hue(values, _below(2 * self.hue) - self.hue)
        if not contrast_first and _coin():
            values = adjust_contrast(values, _uniform(*self.contrast))
        return tv_tensors.Image(_uint8(values)), mask


def adjust_brightness(values: Tensor, shift: float) -> Tensor:
    """Adds `shift`; whole numbers from 0 to 255 as float (C, H, W); below, C is 3 for the last two."""
    return (values + shift).clamp_(0, 255).floor_()


def adjust_contrast(values: Tensor, factor: float) -> Tensor:
    """Multiplies every value."""
    return (values * factor).clamp_(0, 255).floor_()


def adjust_saturation(values: Tensor, factor: float) -> Tensor:
    """Multiplies the saturation of HSV, up to full saturation: each channel's distance from the largest one."""
    largest, chroma = _largest_and_chroma(values)
    factors = (largest / chroma.clamp_(min=1)).clamp_(max=factor)
    return (values - largest).mul_(factors).add_(largest).round_()


def adjust_hue(values: Tensor, steps: int) -> Tensor:
    """Turns the hue of HSV by `steps` of 2 degrees (180 are the circle), from red towards green."""
    red, green, blue = values
    largest, chroma = _largest_and_chroma(values)
    # in sixths of the circle: red is 0, green 2 and blue 4; chosen by factors of 0 and 1, as torch.where is slow
    not_red, not_green = (largest - red).sign_(), (largest - green).sign_()
    hue = torch.lerp((blue - red).add_(chroma, alpha=2), (red - green).add_(chroma, alpha=4), not_green)
    hue = torch.lerp(green - blue, hue, not_red).div_(chroma.clamp(min=1)).add_(steps / 30)
    hue.sub_(torch.floor(hue / 6).mul_(6))
    # a channel is at its largest for a third of the circle and at its smallest for another, with ramps between
    result = torch.empty_like(values)
    torch.sub(hue, 3, out=result[0]).abs_().sub_(1)
    torch.sub(hue, 2, out=result[1]).abs_().neg_().add_(2)
    torch.sub(hue, 4, out=result[2]).abs_().neg_().add_(2)
    return result.clamp_(0, 1).mul_(chroma).add_(largest - chroma).round_()


def _largest_and_chroma(values: Tensor) -> tuple[Tensor, Tensor]:
    """(H, W) each: the largest of the channels, and its distance from the smallest."""
    red, green, blue = values
    largest = torch.maximum(red, green)
    smallest = torch.minimum(red, green)
    largest = torch.maximum(largest, blue)
    return largest, largest - torch.minimum(smallest, blue)


# --- draws --------------------------------------------------------------------------------------


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand(()))


def _below(end: int) -> int:
    """A whole number from 0 to `end - 1`."""
    return int(torch.randint(end, ()))


def _coin() -> bool:
    return float(torch.rand(())) < 0.5
