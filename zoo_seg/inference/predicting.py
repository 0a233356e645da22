"""`predict` and `stream`: the same for a network and for an exported file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, overload

import numpy as np
import torch
from PIL import Image

from zoo_seg.errors import OptionError
from zoo_seg.images.bands import Range
from zoo_seg.images.reading import ImageLike, Opens
from zoo_seg.inference.backends import Backend
from zoo_seg.inference.geotiff import predict_raster
from zoo_seg.inference.predictor import Predictor, ProbabilityType
from zoo_seg.inference.protocol import check_test_options
from zoo_seg.inference.segmentation import Segmentation
from zoo_seg.inference.taps import Blend
from zoo_seg.manifest import TestMode, TestOptions


class Predicting:
    """What has a `predictor`."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The name of each class id."""
        raise NotImplementedError

    @property
    def palette(self) -> tuple[tuple[int, int, int], ...]:
        """The RGB colour (0..255) of each class id."""
        raise NotImplementedError

    @property
    def test(self) -> TestOptions:
        """How the weights were tested, which `predict` does unless told otherwise."""
        raise NotImplementedError

    @property
    def training_crop(self) -> tuple[int, int] | None:
        """(height, width) of the window where `mode="slide"` is given none, here or by `test`."""
        raise NotImplementedError

    def test_options(
        self,
        mode: TestMode | None = None,
        crop: Sequence[int] | None = None,
        stride: Sequence[int] | None = None,
        scales: Sequence[float] | None = None,
        flip: bool | None = None,
    ) -> TestOptions:
        """What `predict` does with these options, None for those that are left to the weights' own test.

        Raises:
            OptionError: an option is not allowed, or two contradict each other.
        """
        published = self.test
        mode = mode or published.mode
        if mode != "whole" and crop is None:
            crop = published.crop or self.training_crop
            stride = stride or (published.stride if mode == "slide" else None)
        return check_test_options(
            mode, crop, stride, published.scales if scales is None else scales, published.flip if flip is None else flip
        )

    def predictor(
        self,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype = "float32",
        compile: bool = False,  # noqa: A002  (torch's word for it)
        backend: Backend | None = None,
    ) -> Predictor:
        """Made ready for many images."""
        raise NotImplementedError

    @overload
    def predict(self, images: ImageLike, **options: Any) -> Segmentation: ...
    @overload
    def predict(self, images: Sequence[ImageLike], **options: Any) -> list[Segmentation]: ...
    def predict(  # type: ignore[misc]  # the overloads leave the options to this signature
        self,
        images: ImageLike | Sequence[ImageLike],
        *,
        mode: TestMode | None = None,
        crop: Sequence[int] | None = None,
        stride: Sequence[int] | None = None,
        scales: Sequence[float] | None = None,
        flip: bool | None = None,
        resize: Literal["published"] | int | None = "published",
        range: Range | Sequence[Range] | None = None,  # noqa: A002
        bands: Sequence[int] | None = None,
        batch_size: int = 1,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype = "float32",
        compile: bool = False,  # noqa: A002  (torch's word for it)
        backend: Backend | None = None,
        confidence: bool = False,
        probabilities: bool | ProbabilityType = False,
    ) -> Segmentation | list[Segmentation]:
        """The class map of an image, or of each image of a list, at the image's own size.

        Args:
            images: a path, a PIL image, an RGB uint8 array (H, W, 3) or tensor (3, H, W); or a list of them. Arrays
                are RGB; BGR, as `cv2.imread` returns it, cannot be told from it: turn it with `image[:, :, ::-1]`.
                A network of other channels takes so many of them.
            mode: `"whole"`, or `"slide"`: windows of `crop` at every `stride`, both (height, width); or `"split"`: as
                few windows of `crop` as cover the image, evenly spread. None, here and below, is what the weights were
                tested with.
            crop: the window; without one the crop that the weights were trained on.
            stride: without one two thirds of the crop.
            scales: factors of the test size whose predictions are averaged.
            flip: average with the mirrored image.
            resize: `"published"` is the test size of the weights' record (the image's own size without
                a record); a number of pixels for the shorter side; None for the image's own size.
            range: the values that are black and white in images of more than 8 bits, such as (0, 4095), or such a
                pair for each channel. None, here and below, is what the network was trained with.
            bands: the numbers of an image's bands that are the network's channels, from 1 on. None without any in
                training: there must be as many bands as channels, and colours become RGB for a network of three.
            batch_size: how many neighbouring images of one size go through the network together.
            device: `"cpu"`, `"cuda"`, ...; None is where the network is.
            dtype: `"float32"`, `"bfloat16"` or `"float16"`.
            compile: let `torch.compile` fuse the network; worth it for many images of few sizes.
            backend: what computes the network: `"torch"`, `"openvino"` (on the CPU, in float32 or bfloat16; its graph
                is made once and kept in the cache), or `"auto"`: OpenVINO where it is installed and was measured to
                be 1.1 times as fast on this machine, which the first prediction does, once and for some seconds. None
                is torch, and for an exported file its own runtime: what a plain call computes never depends on what
                is installed or was measured.
            confidence: give `Segmentation.confidence` as well, the probability of each pixel's winner. The class map
                is the same without it, and all classes are held for a few rows only.
            probabilities: give `Segmentation.probabilities` as well, those of all classes: 4 bytes a class and pixel
                (True or `"float32"`) or 2 (`"float16"`): 1.2 GB of 150 classes at 1080x1920 in float32.

        Raises:
            ImageError: an image cannot be read.
            OptionError: an option is not allowed.
            ExportError: OpenVINO cannot have the network.
            MissingExtraError: OpenVINO is not installed; the message names the pip command.
            NumericalError: the logits are NaN or infinite, or too large for float16.
            OutOfMemoryError: one image alone is too much for the device, or its probabilities for this machine.
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
            range=range,
            bands=bands,
            batch_size=batch_size,
            device=device,
            dtype=dtype,
            compile=compile,
            backend=backend,
            confidence=confidence,
            probabilities=probabilities,
        )
        return next(results) if one else list(results)

    def predict_raster(
        self,
        image: str | os.PathLike[str],
        mask: str | os.PathLike[str],
        *,
        confidence: str | os.PathLike[str] | None = None,
        crop: Sequence[int] | None = None,
        stride: Sequence[int] | None = None,
        flip: bool | None = None,
        blend: Blend = "linear",
        range: Range | Sequence[Range] | None = None,  # noqa: A002
        bands: Sequence[int] | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype = "float32",
        compile: bool = False,  # noqa: A002
        backend: Backend | None = None,
        progress: Callable[[int, int], object] | None = None,
    ) -> None:
        """Write the class map of a GeoTIFF as a GeoTIFF of the same size, reference system and transform.

        The image is read, predicted and written by rows of windows: memory grows with its width only. Windows overlap,
        and their logits are averaged. Nothing is resized: the pixels should be about as large on the ground as those
        that the network was trained on. Needs the extra `aerial`.

        Args:
            image: a TIFF of any size on this machine.
            mask: the file to write: class ids in tiles (deflate) with the palette as colours; where the image has no
                data (nodata, a mask or alpha of 0) 255, or 65535 beyond 255 classes, declared as nodata. An existing
                file is replaced; it appears whole or not at all.
            confidence: write the winners' probability as well, 0 to 255; 0 is nodata.
            blend: how windows are averaged where they overlap: `"linear"`, each less and less towards its border, so
                that no border is seen; or `"mean"`, all alike, which is what `predict(image, mode="slide",
                scales=(1,), resize=None)` does: the class map is then the same to the last pixel.
            crop, stride, flip, range, bands, device, dtype, compile, backend: see `predict`.
            progress: called with the number of rows that are written so far, and of all, whenever some were.

        Raises:
            ImageError: the image cannot be read, its bands do not fit, or it has more than 8 bits and no range is
                known.
            OptionError: an option is not allowed, or a file to write is the image.
            MissingExtraError: rasterio, or what the backend needs, is not installed.
            NumericalError: the logits are NaN or infinite, or too large for float16.
            OutOfMemoryError: a row of windows is too much for the device.
            OSError: a file cannot be written.
        """
        if blend not in ("linear", "mean"):
            raise OptionError(f"blend is {blend!r}; expected 'linear' or 'mean'")
        test = self.test_options("slide", crop, stride, (1.0,), flip)
        predictor = self.predictor(device=device, dtype=dtype, compile=compile, backend=backend)
        predict_raster(
            predictor,
            image,
            mask,
            wanted=predictor.wanted(range, bands),
            test=test,
            blend=blend,
            confidence=confidence,
            progress=progress,
        )

    def stream(
        self,
        images: Iterable[ImageLike],
        *,
        mode: TestMode | None = None,
        crop: Sequence[int] | None = None,
        stride: Sequence[int] | None = None,
        scales: Sequence[float] | None = None,
        flip: bool | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype = "float32",
        compile: bool = False,  # noqa: A002
        backend: Backend | None = None,
        **options: Any,
    ) -> Iterator[Any]:
        """As `predict`, for any number of images: each result is yielded in order as soon as it is there.

        The options are those of `predict` and `on_error=`, see `Predictor.stream`.
        """
        test = self.test_options(mode, crop, stride, scales, flip)
        return self.predictor(device=device, dtype=dtype, compile=compile, backend=backend).stream(
            images, test=test, **options
        )
