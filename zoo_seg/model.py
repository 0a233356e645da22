"""A network with its record: what a factory returns and a user holds."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import torch
from PIL import Image
from torch import nn

from zoo_seg.errors import OptionError
from zoo_seg.inference.picture import Picture
from zoo_seg.inference.predictor import Predictor
from zoo_seg.inference.segmentation import Segmentation
from zoo_seg.manifest import Architecture, Metric, Preprocess, Recipe, Weights
from zoo_seg.networks.network import SegmentationNetwork
from zoo_seg.version import __version__
from zoo_seg.weights.card import model_card
from zoo_seg.weights.folder import SCHEMA_VERSION, Config, write_folder


class SegmentationModel(SegmentationNetwork):
    """A segmentation network that knows its classes, its record and how its pictures are prepared.

    `model(x)` takes a normalised float tensor (N, 3, H, W) and returns logits (N, num_classes, H, W).

    Attributes:
        classes, palette: the name and the RGB colour (0..255) of each class id.
        weights: the published record the values came from, or None.
        preprocess: how a picture becomes the network's input.
        protocol: whose order of operations `predict` follows, `"ssseg"` or `"mmseg"`.
        architecture: how the network is built again; None for one that was put together by hand.
        recipe: how the values were trained, where it is known.
        metrics: what was measured of these values, and by whom.
    """

    def __init__(
        self,
        network: SegmentationNetwork,
        *,
        classes: Sequence[str],
        palette: Sequence[tuple[int, int, int]],
        preprocess: Preprocess,
        protocol: Literal["ssseg", "mmseg"] = "ssseg",
        weights: Weights | None = None,
        architecture: Architecture | None = None,
        recipe: Recipe | None = None,
        metrics: Sequence[Metric] = (),
    ) -> None:
        super().__init__(network.backbone, network.head, network.aux_head)
        if len(classes) != len(palette):
            raise OptionError(f"{len(classes)} classes but {len(palette)} palette colours; expected as many")
        self.classes = tuple(classes)
        self.palette = tuple(palette)
        self.preprocess = preprocess
        self.protocol: Literal["ssseg", "mmseg"] = protocol
        self.weights = weights
        self.architecture = architecture
        self.recipe = recipe
        self.metrics = tuple(metrics)
        self._predictor: tuple[object, Predictor] | None = None

    @property
    def num_classes(self) -> int:
        """How many classes the logits have."""
        return len(self.classes)

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
        one = isinstance(images, (str, Image.Image, np.ndarray, torch.Tensor)) or hasattr(images, "__fspath__")
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
        if mode == "slide" and crop is None and self.recipe is not None:
            crop = self.recipe.crop
        predictor = self.predictor(device=device, dtype=dtype, compile=compile)
        return predictor.stream(images, mode=mode, crop=crop, **options)

    def predictor(
        self,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype = "float32",
        compile: bool = False,  # noqa: A002
    ) -> Predictor:
        """The network made ready for many pictures; kept until the options or the network's values change."""
        state = (str(device), str(dtype), compile, _version(self))
        if self._predictor is None or self._predictor[0] != state:
            self._predictor = None  # first free the old one
            predictor = Predictor(
                self,
                classes=self.classes,
                palette=self.palette,
                preprocess=self.preprocess,
                protocol=self.protocol,
                device=device,
                dtype=dtype,
                compile=compile,
            )
            self._predictor = state, predictor
        return self._predictor[1]

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        *,
        ignore_index: int = 255,
        metrics: Sequence[Metric] = (),
        started_from: str | None = None,
    ) -> None:
        """Write `model.safetensors`, `config.json` and a model card, for `from_pretrained` and `--weights`.

        Args:
            folder: made where it does not exist; the files in it are replaced, each in one step.
            ignore_index: the label that training and measuring left out.
            metrics: what was measured; empty stands for those of the weights' record.
            started_from: the weights that training started from.

        Raises:
            OptionError: the network was put together by hand, so nothing could build it again.
            OSError: the folder cannot be written.
        """
        if self.architecture is None:
            raise OptionError("this network has no architecture to save; make it with build_model or create_model")
        config = Config(
            schema_version=SCHEMA_VERSION,
            library=f"zoo_seg {__version__}",
            architecture=self.architecture,
            in_chans=self.in_chans,
            classes=self.classes,
            palette=self.palette,
            ignore_index=ignore_index,
            preprocess=self.preprocess,
            protocol=self.protocol,
            metrics=tuple(metrics) or (self.weights.metrics if self.weights else ()),
            recipe=self.recipe,
            started_from=started_from or (self.weights.id if self.weights else None),
            data_licence=self.weights.licence.data if self.weights else None,
        )
        write_folder(Path(folder), config, self.state_dict(), model_card(config))

    def __getstate__(self) -> dict[str, Any]:
        """A copy or a pickle carries the network, not what was prepared from it."""
        return {**self.__dict__, "_predictor": None}


def _version(module: nn.Module) -> tuple[object, ...]:
    """Changes whenever a value of the module may have changed."""
    tensors = [*module.parameters(), *module.buffers()]
    return tuple((id(tensor), tensor.device, tensor.dtype, tensor._version) for tensor in tensors)
