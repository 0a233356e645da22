"""torch Datasets in the place of a folder: pairs of an image and its label, however they are stored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from zoo_seg.data.files import OWN
from zoo_seg.data.labels import Colour, Ids, Labels
from zoo_seg.data.layouts import SegmentationData
from zoo_seg.data.samples import Sample
from zoo_seg.data.wording import SHOWN
from zoo_seg.errors import DataError, ImageError, OptionError
from zoo_seg.images.reading import ImageLike
from zoo_seg.info import voc_palette

_ALONE = Lock()
"""A Dataset need not stand several threads."""


@dataclass(frozen=True)
class DatasetPairs(SegmentationData):
    """Two torch Datasets as the train and val splits of a data set. `of_datasets` makes one."""

    datasets: Mapping[str, Any] = field(default_factory=dict)

    @property
    def expected(self) -> str:
        return "pairs of a uint8 image and an integer label (H, W)"

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self.datasets)

    @cached_property
    def _samples(self) -> dict[str, tuple[Sample, ...]]:
        names = {split: [f"{split}[{i}]" for i in range(len(each))] for split, each in self.datasets.items()}
        return {split: tuple(Sample(Path(n), Path(n), n) for n in each) for split, each in names.items()}

    def samples(self, split: str) -> tuple[Sample, ...]:
        """One for each index, named `train[7]`."""
        return self._samples[split]

    def pair(self, sample: Sample) -> tuple[ImageLike, Ids]:
        """The image as the Dataset gives it, and the class ids (H, W) of its label.

        Raises:
            DataError: the Dataset fails, or gives something else.
        """
        split, _, index = sample.name.rstrip("]").partition("[")
        try:
            with _ALONE:
                item = self.datasets[split][int(index)]
        except Exception as error:
            raise DataError(f"{sample.name} raised {type(error).__name__}: {error}") from error
        if not isinstance(item, (tuple, list)) or len(item) != 2:
            raise DataError(
                f"{sample.name} is of type {type(item).__name__}; expected a pair of an image and its label"
            )
        image, label = item
        return image, self._ids(sample.name, label)

    def _ids(self, name: str, label: Any) -> Ids:
        ids: npt.NDArray[Any] = label.detach().cpu().numpy() if isinstance(label, Tensor) else np.asarray(label)
        if ids.ndim != 2 or ids.dtype.kind not in "iub" or not ids.size:
            raise DataError(f"the label of {name} is {ids.dtype} of shape {ids.shape}; expected integers (H, W)")
        wrong = ids[(ids != self.ignore_index) & ((ids < 0) | (ids >= self.num_classes))]
        if wrong.size:
            raise DataError(
                f"the label of {name} holds class id {wrong[0]}; expected 0 to {self.num_classes - 1}, or "
                f"ignore_index={self.ignore_index}"
            )
        return ids.astype(np.uint8 if self.ignore_index <= 255 else np.uint16)


def of_datasets(
    train: Any,
    val: Any,
    classes: Sequence[str] | None,
    palette: Sequence[Colour] | None = None,
    ignore_index: int = 255,
) -> DatasetPairs:
    """Two map-style Datasets as a data set.

    Raises:
        OptionError: one is missing, has no length or is empty, or `classes` are.
        DataError: nobody can train on these classes, this palette or this `ignore_index`.
    """
    for name, each in (("train", train), ("val", val)):
        if not (hasattr(each, "__getitem__") and hasattr(each, "__len__")):
            raise OptionError(
                f"{name} is of type {type(each).__name__}; expected a torch Dataset with __getitem__ and __len__, of "
                "pairs of a uint8 image and an integer label (H, W)"
            )
        if not len(each):
            raise OptionError(f"{name} is empty; expected images")
    if classes is None or isinstance(classes, str):
        raise OptionError(f"classes is {classes!r}; with train= and val= expected the names of the classes, in order")
    colours = tuple(map(tuple, palette)) if palette is not None else voc_palette(len(classes))
    labels = Labels(tuple(classes), colours, ignore_index, has_palette=palette is not None)  # type: ignore[arg-type]
    pairs = {"train": train, "val": val}
    return DatasetPairs(Path(type(train).__name__), "datasets", labels, OWN, datasets=pairs)  # no file is looked for


class _Looks(Dataset[npt.NDArray[np.int64] | str]):
    """Pixels of each class and of what is ignored, or what is wrong, of every pair of a split."""

    def __init__(self, data: DatasetPairs, split: str) -> None:
        self.data, self.samples = data, data.samples(split)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> npt.NDArray[np.int64] | str:
        sample = self.samples[index]
        try:
            image, ids = self.data.pair(sample)
            size = self.data.read_image(image).shape[:2]
        except DataError as error:
            return str(error)
        except ImageError as error:
            return f"the image of {sample.name}: {error}"
        if size != ids.shape:
            return f"the image of {sample.name} is {_wide(size)} pixels, its label {_wide(ids.shape)}"
        counts = np.bincount(np.minimum(ids, self.data.num_classes).ravel(), minlength=self.data.num_classes + 1)
        return counts.astype(np.int64)


def check_pairs(data: DatasetPairs, *, workers: int, progress: bool) -> list[int]:
    """Read every pair once; return the pixels of each class in train.

    Raises:
        DataError: a pair cannot be used, or a split has no label at all; the message names the indices.
    """
    faults, pixels = [], {}
    with tqdm(
        desc="checking",
        total=sum(len(each) for each in data.datasets.values()),
        unit=" images",
        leave=False,
        disable=None if progress else True,
    ) as bar:
        for split in data.splits:
            total = np.zeros(data.num_classes + 1, np.int64)
            for found in _looks(data, split, workers):
                if isinstance(found, str):
                    faults.append(found)
                else:
                    total += found
                bar.update()
            pixels[split] = total[:-1]
            if not (faults or pixels[split].any()):
                faults.append(f"{split}: every pixel is ignored ({data.ignore_index})")
    if faults:
        more = f"\n  and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        raise DataError("the datasets cannot be used:\n  " + "\n  ".join(faults[:SHOWN]) + more)
    return [int(each) for each in pixels["train"]]


def _looks(data: DatasetPairs, split: str, workers: int) -> Iterator[npt.NDArray[np.int64] | str]:
    yield from DataLoader(
        _Looks(data, split),
        batch_size=None,
        num_workers=workers,
        collate_fn=_as_it_is,
        generator=torch.Generator(),  # else it takes a number from the generator of everybody
    )


def _as_it_is(found: Any) -> Any:
    return found


def _wide(size: tuple[int, ...]) -> str:
    return f"{size[1]}x{size[0]}"
