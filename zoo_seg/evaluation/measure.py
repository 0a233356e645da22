"""A network measured on a data set: images through `predict`, class maps against labels."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from tqdm import tqdm

from zoo_seg.data.labels import Ids
from zoo_seg.data.layouts import SegmentationData
from zoo_seg.data.samples import Sample
from zoo_seg.errors import DataError, ImageError, OptionError
from zoo_seg.evaluation.details import Collector, Details, merged
from zoo_seg.evaluation.metrics import SegmentationMetrics
from zoo_seg.images.reading import ImageLike
from zoo_seg.inference.predictor import in_order
from zoo_seg.inference.segmentation import Segmentation
from zoo_seg.manifest import TestMode, TestOptions
from zoo_seg.model import SegmentationModel


@dataclass(frozen=True)
class Measurement:
    """What was measured, how, and what came out."""

    scores: dict[str, float]
    """`mIoU`, `aAcc`, `mAcc`, `mDice`, `mFscore` in percent."""
    per_class: dict[str, npt.NDArray[np.float64]]
    """`IoU`, `Acc`, `Dice`, `Fscore` of each class in percent, NaN where it is 0/0."""
    classes: tuple[str, ...]
    """The data set's names of the class ids."""
    split: str
    images: int
    is_whole: bool
    """Every image of the split was measured."""
    protocol: TestOptions
    options: dict[str, Any]
    """Further options of `predict`: `resize`, `crop`, `stride`, `batch_size`, where they were given, and `compile`."""
    device: str
    dtype: str
    seconds: float
    details: Details | None = None
    """Confusion matrix, scores of each image and the worst ones, where they were asked for."""


def measure(
    model: SegmentationModel,
    data: SegmentationData,
    split: str = "val",
    *,
    mode: TestMode = "whole",
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype = "float32",
    compile: bool = False,  # noqa: A002  (torch's word for it)
    limit: int | None = None,
    details: bool = False,
    progress: bool = True,
    rank: int = 0,
    world_size: int = 1,
    **options: Any,
) -> Measurement:
    """Predict every image of a split and compare it with its label, at the label's own size.

    Args:
        model: has as many classes as `data`, in the same order.
        mode, scales, flip, device, dtype, compile, options: as in `SegmentationModel.predict`.
        limit: measure only so many images, the first ones.
        details: count as well which class is taken for which, and score each image.
        progress: show a bar (on a terminal only).
        rank, world_size: this process measures every `world_size`-th image from `rank` on, and each process
            returns the score of all; torch.distributed must be initialised.

    Raises:
        DataError: the classes or channels do not match; an image or a label cannot be read, or their sizes differ
            (none is passed over, since the score would be another data set's); or every pixel is ignored.
        OptionError: an option is not allowed.
        OutOfMemoryError: one image alone is too much for the device.
    """
    _check(model, data, limit, world_size)
    try:
        protocol = TestOptions(mode, scales=tuple(scales), flip=flip)
    except ValueError as error:
        raise OptionError(str(error)) from None
    everything = data.samples(split)
    chosen = everything[:limit]
    share = chosen[rank::world_size]
    predictor = model.predictor(device=device, dtype=dtype, compile=compile)
    metric = SegmentationMetrics(data.num_classes, data.ignore_index, sync_on_compute=world_size > 1)
    metric.to(predictor.device)  # where the processes' counts are added up
    collector = Collector(data.num_classes, data.ignore_index)
    labels: deque[Ids] = deque()

    def images() -> Iterator[ImageLike]:
        for image, label in in_order(share, data.pair, ahead=2 * options.get("batch_size", 1)):
            labels.append(label)
            yield image

    started = time.perf_counter()
    results = model.stream(
        images(),
        mode=mode,
        scales=scales,
        flip=flip,
        device=device,
        dtype=dtype,
        compile=compile,
        range=data.range,
        bands=data.bands,
        on_error="yield",
        **options,
    )
    bar = tqdm(total=len(share), unit="image", disable=None if progress and rank == 0 else True)
    with bar:
        for place, (sample, result) in enumerate(zip(share, results, strict=True)):
            label = labels.popleft()
            mask = _mask(sample, result, label)
            metric.update(mask, label)
            if details:
                collector.add(rank + place * world_size, sample.name, mask, label)
            bar.update()
    found = metric.compute()
    if found["aAcc"] != found["aAcc"]:  # NaN: 0 of 0 pixels
        raise DataError(f"{data.root}: no pixel of the {len(chosen)} images of {split!r} has a label; all are ignored")
    return Measurement(
        scores={name: value for name, value in found.items() if isinstance(value, float)},
        per_class={name: value for name, value in found.items() if not isinstance(value, float)},
        classes=data.classes,
        split=split,
        images=len(chosen),
        is_whole=len(chosen) == len(everything),
        protocol=protocol,
        options={**options, "compile": compile},
        device=str(predictor.device),
        dtype=str(predictor.dtype).removeprefix("torch."),
        seconds=time.perf_counter() - started,
        details=merged(_of_all(collector, world_size)) if details else None,
    )


def _of_all(collector: Collector, world_size: int) -> list[Collector]:
    """Every process's."""
    if world_size == 1:
        return [collector]
    found: list[Any] = [None] * world_size
    dist.all_gather_object(found, collector)
    return found


def _check(model: SegmentationModel, data: SegmentationData, limit: int | None, world_size: int) -> None:
    if model.num_classes != data.num_classes:
        raise DataError(
            f"the network has {model.num_classes} classes, the data set {data.root} {data.num_classes}; "
            "expected as many: take weights that were trained on these classes"
        )
    if model.in_chans != data.channels:
        raise DataError(
            f"the network takes images of {model.in_chans} channels, the data set {data.root} has {data.channels}; "
            f'expected as many: "channels": {model.in_chans} in its dataset.json, or "bands" that choose so many'
        )
    if limit is not None and limit < 1:
        raise OptionError(f"limit is {limit}; expected at least 1 image")
    if world_size > 1 and not dist.is_initialized():
        raise OptionError("several processes add up their counts by torch.distributed, which is not initialised")


def _mask(sample: Sample, result: Segmentation | ImageError, label: Ids) -> Ids:
    if isinstance(result, ImageError):
        raise DataError(str(result))
    if result.mask.shape != label.shape:
        (height, width), (label_height, label_width) = result.mask.shape, label.shape
        raise DataError(
            f"{sample.place} is {label_width}x{label_height} pixels and its image {width}x{height}; "
            "expected the same size"
        )
    return result.mask
