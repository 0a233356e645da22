"""Pictures in, class maps out: what `predict` uses."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from zoo_seg.errors import OptionError
from zoo_seg.inference.labels import class_map
from zoo_seg.inference.picture import RGB, Picture, read_picture
from zoo_seg.inference.prepare import prepare
from zoo_seg.inference.preprocess import normalise, resize_uint8, resized_size
from zoo_seg.inference.protocol import Protocol, Rules, Size, combine, passes, scaled_inputs
from zoo_seg.inference.segmentation import Segmentation
from zoo_seg.manifest import Preprocess, Resize
from zoo_seg.networks.network import SegmentationNetwork

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""The types a network computes in."""


def choose_device(device: str | torch.device) -> torch.device:
    """The device by its name.

    Raises:
        OptionError: torch knows no such device, or it is not there.
    """
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        present = [
            "cpu",
            *(["cuda"] if torch.cuda.is_available() else []),
            *(["mps"] if torch.backends.mps.is_available() else []),
        ]
        reason = str(error).splitlines()[0]
        raise OptionError(
            f"device {str(device)!r} cannot be used ({reason}); here there is {', '.join(present)}"
        ) from None
    return chosen


def choose_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """The type by its name, `"float32"`, `"bfloat16"` or `"float16"`.

    Raises:
        OptionError: another one.
    """
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise OptionError(f"dtype is {name!r}; expected one of {', '.join(DTYPES)}")
    return DTYPES[name]


class Predictor:
    """A network prepared once for many pictures; the network it is made from stays as it was.

    Args:
        network: any `SegmentationNetwork` on RGB pictures.
        classes, palette: the name and RGB colour of each class id.
        preprocess: mean, std and the published test size.
        protocol: whose order of operations, `"ssseg"` or `"mmseg"`.
        device: where to compute; None stays where the network is.
        dtype: `"float32"`, `"bfloat16"` or `"float16"`.
    """

    def __init__(
        self,
        network: SegmentationNetwork,
        *,
        classes: Sequence[str],
        palette: Sequence[tuple[int, int, int]],
        preprocess: Preprocess,
        protocol: Rules = "ssseg",
        device: str | torch.device | None = None,
        dtype: str | torch.dtype = "float32",
    ) -> None:
        weight = next(parameter for parameter in network.backbone.parameters() if parameter.ndim == 4)
        if weight.shape[1] != 3:
            raise OptionError(
                f"the network takes {weight.shape[1]} channels; predict takes RGB pictures, call model(x)"
            )
        self.device = weight.device if device is None else choose_device(device)
        self.dtype = choose_dtype(dtype)
        self.network = prepare(network, self.device, self.dtype)
        self.classes, self.palette = tuple(classes), tuple(palette)
        self.preprocess, self.rules = preprocess, protocol

    def stream(
        self,
        images: Iterable[Picture],
        *,
        mode: Literal["whole", "slide"] = "whole",
        crop: Size | None = None,
        stride: Size | None = None,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        resize: Literal["published"] | int | None = "published",
        batch_size: int = 1,
    ) -> Iterator[Segmentation]:
        """The class map of each picture, in order, as soon as it is there.

        Args:
            images: paths, PIL pictures, RGB uint8 arrays (H, W, 3) or tensors (3, H, W).
            mode: `"whole"`, or `"slide"`: windows of `crop` at every `stride` (height, width).
            scales: factors of the test size whose predictions are averaged.
            flip: also look at the mirrored picture.
            resize: `"published"` is the test size of the weights' record (the picture's own without
                a record); a number of pixels for the shorter side; None for the picture's own.
            batch_size: how many neighbouring pictures of one size go through the network together.

        Raises:
            OptionError, ImageError: before any work on the picture concerned.
        """
        if batch_size < 1:
            raise OptionError(f"batch_size is {batch_size}; expected at least 1")
        protocol = Protocol.of(mode, crop, stride, scales, flip, self.rules)
        target = self._resize(resize)
        for _, group in groupby((read_picture(image) for image in images), key=lambda picture: picture.shape):
            batch: list[RGB] = []
            for picture in group:
                batch.append(picture)
                if len(batch) == batch_size:
                    yield from self._predict(batch, protocol, target)
                    batch = []
            if batch:
                yield from self._predict(batch, protocol, target)

    def _resize(self, resize: Literal["published"] | int | None) -> Resize | int | None:
        if resize == "published":
            return self.preprocess.resize
        if isinstance(resize, (str, bool, float)):
            raise OptionError(f"resize is {resize!r}; expected 'published', a number of pixels, or None")
        return resize

    @torch.inference_mode()
    def _predict(self, pictures: list[RGB], protocol: Protocol, target: Resize | int | None) -> list[Segmentation]:
        """Pictures of one size."""
        size = (pictures[0].shape[0], pictures[0].shape[1])
        test_size = resized_size(*size, target)
        looks = passes(self.network, self._inputs(pictures, test_size, target, protocol), protocol)
        if protocol.is_plain:
            masks = class_map(next(looks), [size] if self.rules == "ssseg" else [test_size, size])
        else:
            masks = class_map(combine(looks, size, protocol), [size])
        dtype = np.uint8 if len(self.classes) <= 256 else np.uint16
        return [
            Segmentation(mask.astype(dtype, copy=False), self.classes, self.palette, picture)
            for mask, picture in zip(masks.cpu().numpy(), pictures, strict=True)
        ]

    def _inputs(self, pictures: list[RGB], size: Size, target: Resize | int | None, protocol: Protocol) -> list[Tensor]:
        """The normalised input of every scale; mmseg's are resized from the pictures, ssseg's from the tensor."""
        if protocol.rules == "mmseg":
            height, width = pictures[0].shape[:2]
            sizes = [resized_size(height, width, _scaled(target, size, scale)) for scale in protocol.scales]
            return [self._normalised(pictures, each) for each in sizes]
        return scaled_inputs(self._normalised(pictures, size), protocol)

    def _normalised(self, pictures: list[RGB], size: Size) -> Tensor:
        mean, std = self.preprocess.mean, self.preprocess.std
        batch = torch.cat([normalise(resize_uint8(picture, *size), mean, std) for picture in pictures])
        return batch.to(device=self.device, dtype=self.dtype)


def _scaled(target: Resize | int | None, size: Size, scale: float) -> Resize:
    """The test size times a scale, as mmseg 0.x does: the frame is scaled and cut to whole pixels."""
    if isinstance(target, int):
        target = Resize(target, 10**9)
    elif target is None:
        target = Resize(min(size), max(size))
    return Resize(max(int(target.short * scale), 1), max(int(target.long * scale), 1))
