"""All that is known of a network besides its weights. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral
from typing import Any

from zoo_seg.manifest import (
    Architecture,
    Licence,
    Metric,
    Preprocess,
    Provenance,
    Recipe,
    TestOptions,
    Weights,
    load_manifest,
)

IMAGENET = Preprocess(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375), resize=None)


def for_channels(rules: Preprocess, channels: int) -> Preprocess:
    """The rules for RGB, repeated for other channels as the weights of the first convolution are.

    One channel gets the average of the three. Rules that are for so many channels stay.
    """
    if len(rules.mean) == channels or len(rules.mean) != 3:
        return rules
    if channels == 1:
        return replace(rules, mean=(sum(rules.mean) / 3,), std=(sum(rules.std) / 3,), bands=None, range=None)
    mean, std = (tuple(three[i % 3] for i in range(channels)) for three in (rules.mean, rules.std))
    return replace(rules, mean=mean, std=std, bands=None, range=None)


@dataclass(frozen=True)
class ModelInfo:
    """What a network is, how its images are prepared and tested, and where its weights come from."""

    classes: tuple[str, ...]
    """The name of each class id."""
    palette: tuple[tuple[int, int, int], ...]
    """The RGB colour (0..255) of each class id."""
    preprocess: Preprocess = IMAGENET
    """How an image becomes the network's input."""
    protocol: str = "ssseg"
    """Whose order of operations `predict` follows."""
    test: TestOptions = field(default_factory=TestOptions)
    """How the weights were tested, and what `predict` does unless told otherwise."""
    window: tuple[int, int] | None = None
    """(height, width) of the sliding window where nobody names one; None is the crop of the recipe."""
    in_chans: int = 3
    ignore_index: int = 255
    """The label that training and measuring leave out."""
    architecture: Architecture | None = None
    """How the network is built again; None for one that was put together by hand."""
    recipe: Recipe | None = None
    """How the weights were trained, where it is known."""
    metrics: tuple[Metric, ...] = ()
    """What was measured of these weights, and by whom."""
    weights: str | None = None
    """The id of the published record that the weights are."""
    started_from: str | None = None
    """What training started from: an id, a link or a file name; None is random weights."""
    dataset: str | None = None
    """Title of the data set that the metrics were measured on."""
    provenance: Provenance | None = None
    licence: Licence = field(default_factory=lambda: Licence(None, None, None))
    """Of the weights, or of those that training started from; None where nobody stated it."""
    tensors_sha256: str | None = None
    """The digest of the weights that all this is true of, see `checkpoints/digest.py`."""

    def __post_init__(self) -> None:
        if not self.classes or len(self.classes) != len(self.palette):
            raise ValueError(f"{len(self.classes)} classes but {len(self.palette)} palette colours; expected as many")
        as_palette(self.palette)
        if self.in_chans < 1:
            raise ValueError(f"in_chans is {self.in_chans}, expected at least 1")

    @property
    def is_published(self) -> bool:
        """Whether the weights are a published record's."""
        return self.weights is not None

    @property
    def training_crop(self) -> tuple[int, int] | None:
        """(height, width) of the crops that the weights were trained on; None where nobody said."""
        return self.window or (self.recipe.crop if self.recipe else None)


def as_palette(colours: Iterable[Sequence[int]]) -> tuple[tuple[int, int, int], ...]:
    """RGB colours as a network knows them.

    Raises:
        ValueError: one is none; the message quotes it.
    """
    return tuple(_as_colour(colour) for colour in colours)


def _as_colour(colour: Any) -> tuple[int, int, int]:
    parts = list(colour) if isinstance(colour, Iterable) else []
    if len(parts) != 3 or not all(isinstance(each, Integral) and 0 <= int(each) <= 255 for each in parts):
        raise ValueError(f"palette has {colour!r}; expected (red, green, blue) as integers from 0 to 255")
    return int(parts[0]), int(parts[1]), int(parts[2])


def voc_palette(count: int) -> tuple[tuple[int, int, int], ...]:
    """VOC's colours: the bits of an index, spread over red, green and blue; all different."""

    def channel(index: int, shift: int) -> int:
        return sum(((index >> (3 * bit + shift)) & 1) << (7 - bit) for bit in range(8))

    return tuple((channel(index, 0), channel(index, 1), channel(index, 2)) for index in range(count))


def info_of(record: Weights) -> ModelInfo:
    """What a published record says of its network."""
    dataset = load_manifest().datasets.get(record.dataset)
    return ModelInfo(
        classes=record.classes,
        palette=record.palette,
        preprocess=record.preprocess,
        protocol=record.protocol,
        test=record.test,
        ignore_index=dataset.ignore_index if dataset else 255,
        architecture=record.architecture,
        recipe=record.recipe,
        metrics=record.metrics,
        weights=record.id,
        started_from=record.id,
        dataset=dataset.title if dataset else record.dataset,
        provenance=record.provenance,
        licence=record.licence,
    )
