"""torch Datasets in the place of a folder: what they may give, and what is refused with the place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset

from zoo_seg.errors import DataError, OptionError
from zoo_seg.training.pairs import check_pairs, of_datasets

CLASSES = ("ground", "disc", "box")
Item = tuple[Any, Any]


class Pairs(Dataset[Item]):
    """The same pair of 48x64 pixels several times, changed at index 1."""

    def __init__(self, change: Callable[[Any, Any], Any] = lambda image, label: (image, label)) -> None:
        self.change = change

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Any:
        image, label = np.full((48, 64, 3), 100, np.uint8), np.zeros((48, 64), np.int64)
        label[:24], label[0] = 1, 255
        return self.change(image, label) if index == 1 else (image, label)


def other_class(image: Any, label: Any) -> Item:
    label[5, 5] = 3
    return image, label


def failing(image: Any, label: Any) -> Item:
    raise OSError("the disk is gone")


@pytest.mark.parametrize(
    "change",
    [
        lambda image, label: (torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(label)),
        lambda image, label: [Image.fromarray(image), Image.fromarray(label.astype(np.uint8))],
        lambda image, label: (image, label.astype(np.uint16)),
    ],
    ids=["tensors", "Pillow", "uint16"],
)
@pytest.mark.parametrize("workers", [0, 1])
def test_every_kind_of_pair_is_counted(change: Callable[[Any, Any], Any], workers: int) -> None:
    data = of_datasets(Pairs(change), Pairs(), CLASSES)
    found = check_pairs(data, workers=workers if change(*Pairs()[0]) else 0, progress=False)
    assert found == [3 * 24 * 64, 3 * 23 * 64, 0]
    image, ids = data.pair(data.samples("train")[1])
    assert data.read_image(image).shape == (48, 64, 3)
    assert (ids.dtype, ids[0, 0], ids[1, 0], ids[30, 0]) == (np.uint8, 255, 1, 0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (other_class, "the label of train[1] holds class id 3; expected 0 to 2, or ignore_index=255"),
        (failing, "train[1] raised OSError: the disk is gone"),
        (lambda image, label: image, "train[1] is of type ndarray; expected a pair"),
        (lambda image, label: (image, label[None]), "the label of train[1] is int64 of shape (1, 48, 64)"),
        (lambda image, label: (image, label / 2), "the label of train[1] is float64 of shape (48, 64); expected integ"),
        (lambda image, label: (image, label[:9]), "the image of train[1] is 64x48 pixels, its label 64x9"),
        (lambda image, label: (image / 255, label), "the image of train[1]: "),
        (lambda image, label: (image[..., :2], label), "the image of train[1]: found an array of shape (48, 64, 2)"),
    ],
)
def test_what_cannot_be_used_is_named_with_its_index(change: Callable[[Any, Any], Any], words: str) -> None:
    with pytest.raises(DataError) as raised:
        check_pairs(of_datasets(Pairs(change), Pairs(), CLASSES), workers=0, progress=False)
    assert words in str(raised.value)
    assert "train[0]" not in str(raised.value)


def test_a_split_without_labels_is_refused() -> None:
    ignored = Pairs(lambda image, label: (image, label))
    ignored.__class__ = type(
        "Ignored", (Pairs,), {"__getitem__": lambda self, i: (np.zeros((8, 8, 3), np.uint8), np.full((8, 8), 255))}
    )
    with pytest.raises(DataError, match=r"val: every pixel is ignored \(255\)"):
        check_pairs(of_datasets(Pairs(), ignored, CLASSES), workers=0, progress=False)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((Pairs(), None, CLASSES), OptionError, "val is of type NoneType; expected a torch Dataset"),
        ((iter([1]), Pairs(), CLASSES), OptionError, "train is of type list_iterator; expected a torch Dataset"),
        ((Pairs(), [], CLASSES), OptionError, "val is empty"),
        ((Pairs(), Pairs(), None), OptionError, "classes is None; with train= and val= expected the names"),
        ((Pairs(), Pairs(), ["ground"]), DataError, "found 1, expected at least 2"),
        ((Pairs(), Pairs(), CLASSES, [(0, 0, 0)]), DataError, "1 colours for 3 classes"),
        ((Pairs(), Pairs(), CLASSES, None, -100), DataError, "-100 cannot be stored in a mask"),
        ((Pairs(), Pairs(), CLASSES, None, 1), DataError, "1 is class 'disc'"),
    ],
)
def test_datasets_that_are_none(arguments: tuple[Any, ...], error: type[Exception], words: str) -> None:
    with pytest.raises(error) as raised:
        of_datasets(*arguments)
    assert words in str(raised.value)
