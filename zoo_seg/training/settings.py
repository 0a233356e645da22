"""What can be chosen about a training run, once for the keywords of `finetune` and the options of the command line.

Imports no torch, so that `zoo-seg --help` stays quick.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from zoo_seg.decode import suggest
from zoo_seg.errors import OptionError

_LEAST = 16
"""Pixels of a crop's side: less holds nothing to learn from."""


ELSEWHERE = {
    "amp": "precision",
    "augment": "photometric",
    "criterion": "loss",
    "early_stopping": "patience",
    "fp16": "precision",
    "image_size": "crop_size",
    "img_size": "crop_size",
    "imgsz": "crop_size",
    "input_size": "crop_size",
    "learning_rate": "lr",
    "lr_scheduler": "schedule",
    "num_workers": "workers",
    "opt": "optimizer",
    "output_dir": "out",
    "pretrained": "weights",
    "scheduler": "schedule",
    "wd": "weight_decay",
}
"""What other libraries call an option of `finetune`."""


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Settings:
    """Every choice that changes the result of a run; the defaults are the published recipe of SSSegmentation.

    A run that is resumed must have the same ones; a finished one may have more `epochs`, see `finetune`.
    """

    epochs: int = _option(50, "passes over the train split")
    batch_size: int = _option(8, "images a step, over all processes")
    accumulate: int = _option(1, "gradient accumulation: equal parts in which a step is computed, for less memory")
    crop_size: tuple[int, int] = _option((512, 512), "height and width that the network is trained on")
    resize: int | None = _option(None, "shorter side that every image is resized to first (default: its own size)")
    scale: tuple[float, float] = _option((0.5, 2.0), "range of the random factor by which an image is resized")
    flip: float = _option(0.5, "probability of a horizontal flip")
    photometric: bool = _option(True, "random brightness, contrast, saturation and hue (default on)")
    optimizer: Literal["sgd", "adamw"] = _option("sgd", "adamw wants a lower lr, such as 0.001")
    lr: float = _option(0.01, "learning rate at the beginning, see schedule")
    schedule: Literal["poly", "cosine", "constant"] = _option(
        "poly", "how lr falls: to a hundredth (poly: power 0.9; cosine: half a wave), or not"
    )
    momentum: float = _option(0.9, "momentum of sgd")
    weight_decay: float = _option(5e-4, "weight decay")
    warmup: int = _option(0, "steps at the beginning in which the learning rate rises from 0")
    loss: Literal["cross_entropy", "ohem", "focal", "dice", "lovasz"] = _option(
        "cross_entropy",
        "ohem: cross entropy of the hard pixels only; focal: sure pixels count less; dice, lovasz: plus this loss",
    )
    class_weights: Literal["none", "balanced"] | tuple[float, ...] = _option(
        "none", "balanced: rare classes count more (ENet's rule); or a number for each class"
    )
    aux_weight: float = _option(0.4, "weight of the auxiliary heads' losses")
    dropout: float | None = _option(None, "dropout of the heads (default: the family's, 0.1)")
    ema: float | None = _option(
        None, "decay of an exponential moving average of the weights, such as 0.999, which is measured and kept instead"
    )
    freeze: Literal["none", "batchnorm", "backbone"] = _option(
        "none", "what is not trained: every BatchNorm, or the backbone"
    )
    precision: Literal["float32", "bfloat16", "float16"] = _option(
        "float32", "mixed precision, unless float32; float16 on a GPU only"
    )
    patience: int | None = _option(None, "end after so many epochs without a better mIoU on val (default: never)")
    seed: int = _option(0, "of random weights, the order of the images and their transforms")

    def __post_init__(self) -> None:
        hints = get_type_hints(Settings)
        for each in fields(self):
            value = getattr(self, each.name)
            if not _fits(hints[each.name], value):
                raise OptionError(f"{each.name} is {value!r}; expected {_words(hints[each.name])} ({_help(each)})")
        for name in ("epochs", "batch_size", "accumulate"):
            self._expect(name, getattr(self, name) >= 1, "at least 1")
        self._expect("crop_size", min(self.crop_size) >= _LEAST, f"height and width of at least {_LEAST}")
        self._expect("patience", self.patience is None or self.patience >= 1, "at least 1")
        weights = self.class_weights
        if not isinstance(weights, str):
            self._expect("class_weights", min(weights) >= 0 < sum(weights), "numbers of at least 0, not all of them 0")
        self._expect("resize", self.resize is None or self.resize >= _LEAST, f"at least {_LEAST}")
        self._expect(
            "scale", 0 < self.scale[0] <= self.scale[1] <= 8, "two rising factors between 0 and 8, such as 0.5 2"
        )
        self._expect("lr", self.lr > 0, "above 0")
        for name in ("flip", "dropout", "ema", "momentum"):
            value = getattr(self, name)
            below = "" if name == "flip" else ", less than 1"
            self._expect(name, value is None or 0 <= value < 1 or (value == 1 and not below), f"from 0 to 1{below}")
        for name in ("weight_decay", "warmup", "aux_weight", "seed"):
            self._expect(name, 0 <= getattr(self, name) < 2**63, "at least 0")
        if self.batch_size % self.accumulate:
            raise OptionError(
                f"batch_size {self.batch_size} cannot be worked on in {self.accumulate} equal parts (accumulate)"
            )

    def _expect(self, name: str, condition: bool, expected: str) -> None:
        if not condition:
            raise OptionError(f"{name} is {getattr(self, name)!r}; expected {expected}")

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Settings:
        """The settings with these values; lists stand for tuples, and `class_weights=None` for none.

        Raises:
            OptionError: an unknown name (near ones are suggested) or a value that is not allowed.
        """
        known = [each.name for each in fields(cls)]
        for name in options:
            if name not in known:
                here = f"here it is {ELSEWHERE[name]!r}" if name in ELSEWHERE else suggest(name, known)
                raise OptionError(f"finetune has no option {name!r}; {here}")
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in options.items()}
        weights = values.get("class_weights", "none")
        if weights is None:
            values["class_weights"] = "none"
        elif hasattr(weights, "tolist"):  # an array or a tensor
            values["class_weights"] = tuple(weights.tolist())
        return cls(**values)

    def differences(self, other: Mapping[str, Any]) -> list[str]:
        """What differs from the settings of an earlier run, in words; one it did not know had its default."""
        now, before = as_plain(self), {**as_plain(Settings()), **other}
        return [f"{name} {before[name]!r} (now {now[name]!r})" for name in now if before[name] != now[name]]


def as_plain(settings: Settings) -> dict[str, Any]:
    """As they are stored: lists for tuples."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(settings).items()}


def _help(each: Any) -> str:
    return str(each.metadata["help"])


def _fits(kind: Any, value: Any) -> bool:
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if get_origin(kind) is tuple:
        each, other = get_args(kind)
        right = isinstance(value, tuple) and (len(value) == 2 if other is each else len(value) > 0)
        return right and all(_fits(each, part) for part in value)
    if get_origin(kind) in (Union, UnionType):
        return any(_fits(each, value) for each in get_args(kind))
    return isinstance(value, kind)


def _words(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(map(repr, get_args(kind)))
    if get_origin(kind) is tuple:
        each, other = get_args(kind)
        return f"{'two of' if other is each else 'several of'}: {_words(each)}"
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(map(_words, get_args(kind)))
    return {int: "a whole number", float: "a number", bool: "True or False", NoneType: "None"}[kind]
