"""`predict` and `stream`: the same for a network and for an exported file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, overload

import numpy as np
import torch
from PIL import Image

from zoo_seg.images.reading import Opens, Picture
from zoo_seg.inference.predictor import Predictor
from zoo_seg.inference.segmentation import Segmentation


class Predicting:
    """What has a `predictor`."""

    @property
    def training_crop(self) -> tuple[int, int] | None:
        """(height, width) of the window where `mode="slide"` is given none."""
        raise NotImplementedError

    def predictor(
        self,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype = "float32",
        compile: bool = False,  # noqa: A002  (torch's word for it)
    ) -> Predictor:
        """Made ready for many pictures."""
        raise NotImplementedError

    @overload
    def predict(self, images: Picture, **options: Any) -> Segmentation: ...
    @overload
    def predict(self, images: Sequence[Picture], **options: Any) -> list[Segmentation]: ...
    def predict(  # type: ignore[misc]  # the overloads leave the options to this signature
        self,
        images: Picture | Sequence[Picture],
        *,
        mode: Literal["whole", "slide"] = "whole",
        crop: Sequence[int] | None = None,
        stride: Sequence[int] | None = None,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        resize: Literal["published"] | int | None = "published",
        batch_size: int = 1,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype = "float32",
        compile: bool = False,  # noqa: A002  (torch's word for it)
    ) -> Segmentation | list[Segmentation]:
        """The class map of a picture, or of each picture of a list, at the picture's own size.

        Args:
            images: a path, a PIL picture, an RGB uint8 array (H, W, 3) or tensor (3, H, W); or a list of them.
            mode: `"whole"`, or `"slide"`: windows of `crop` at every `stride`, both (height, width).
            crop: the window; None is the crop the weights were trained on.
            stride: None is two thirds of the crop.
            scales: factors of the test size whose predictions are averaged.
            flip: also look at the mirrored picture.
            resize: `"published"` is the test size of the weights' record (the picture's own size without
                a record); a number of pixels for the shorter side; None for the picture's own size.
            batch_size: how many neighbouring pictures of one size go through the network together.
            device: `"cpu"`, `"cuda"`, ...; None is where the network is.
            dtype: `"float32"`, `"bfloat16"` or `"float16"`.
            compile: let `torch.compile` fuse the network; worth it for many pictures of few sizes.

        Raises:
            ImageError: a picture cannot be read.
            OptionError: an option is not allowed.
            OutOfMemoryError: one picture alone is too much for the device.
        """
        one = isinstance(images, (str, os.PathLike, Opens, Image.Image, np.ndarray, torch.Tensor))
        results = self.stream(
            [images] if one else images,  # type: ignore[list-item, arg-type]
            mode=mode,
            crop=crop,
            stride=stride,
            scales=scales,
            flip=flip,
            resize=resize,
            batch_size=batch_size,
            device=device,
            dtype=dtype,
            compile=compile,
        )
        return next(results) if one else list(results)

    def stream(
        self,
        images: Iterable[Picture],
        *,
        mode: Literal["whole", "slide"] = "whole",
        crop: Sequence[int] | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype = "float32",
        compile: bool = False,  # noqa: A002
        **options: Any,
    ) -> Iterator[Any]:
        """As `predict`, for any number of pictures: each result is yielded in order as soon as it is there.

        The options are those of `predict` and `on_error=`, see `Predictor.stream`.
        """
        if mode == "slide" and crop is None:
            crop = self.training_crop
        predictor = self.predictor(device=device, dtype=dtype, compile=compile)
        return predictor.stream(images, mode=mode, crop=crop, **options)
