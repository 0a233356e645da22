"""What can be chosen about a training run, once for the keywords of `finetune` and the options of the command line.

Imports no torch, so that `zoo-seg --help` stays quick.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from zoo_seg.decode import suggest
from zoo_seg.errors import OptionError


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Settings:
    """Every choice that changes the result of a run; the defaults are the published recipe of SSSegmentation.

    A run that is resumed must have the same ones, `epochs` included: the learning rate depends on it.
    """

    epochs: int = _option(50, "passes over the train split")
    batch_size: int = _option(8, "pictures a step, over all processes")
    accumulate: int = _option(1, "parts that the pictures of a step are worked on in, one after another (less memory)")
    crop_size: tuple[int, int] = _option((512, 512), "height and width that the network is trained on")
    resize: int | None = _option(None, "shorter side to bring every picture to first (default: its own size)")
    scale: tuple[float, float] = _option((0.5, 2.0), "range of the random scale")
    flip: float = _option(0.5, "share of mirrored pictures")
    photometric: bool = _option(True, "random brightness, contrast, saturation and hue")
    optimizer: Literal["sgd", "adamw"] = _option("sgd", "optimizer")
    lr: float = _option(0.01, "learning rate of the first step; falls to a hundredth of it (poly, power 0.9)")
    momentum: float = _option(0.9, "of sgd")
    weight_decay: float = _option(5e-4, "weight decay")
    warmup: int = _option(0, "steps in which the learning rate rises from 0")
    loss: Literal["cross_entropy", "ohem", "dice"] = _option(
        "cross_entropy", "ohem keeps the hard pixels only, dice adds the Dice loss to cross entropy"
    )
    class_weights: Literal["none", "balanced"] = _option("none", "balanced: rare classes count more (ENet's rule)")
    aux_weight: float = _option(0.4, "share of the auxiliary head's loss")
    dropout: float | None = _option(None, "of the heads (default: the family's 0.1)")
    ema: float | None = _option(None, "decay of an averaged copy, such as 0.999, which is measured and kept instead")
    freeze: Literal["none", "batchnorm", "backbone"] = _option("none", "what stays as it is")
    precision: Literal["float32", "bfloat16", "float16"] = _option("float32", "type of the matrix products")
    seed: int = _option(0, "of the values, the order and the transforms")

    def __post_init__(self) -> None:
        hints = get_type_hints(Settings)
        for each in fields(self):
            value = getattr(self, each.name)
            if not _fits(hints[each.name], value):
                raise OptionError(f"{each.name} is {value!r}; expected {_words(hints[each.name])} ({_help(each)})")
        for name in ("epochs", "batch_size", "accumulate"):
            self._expect(name, getattr(self, name) >= 1, "at least 1")
        self._expect("crop_size", min(self.crop_size) >= 1, "two numbers of at least 1")
        self._expect("resize", self.resize is None or self.resize >= 1, "at least 1")
        self._expect("scale", 0 < self.scale[0] <= self.scale[1] <= 8, "two rising factors between 0 and 8")
        self._expect("lr", self.lr > 0, "above 0")
        for name in ("flip", "dropout", "ema", "momentum"):
            value = getattr(self, name)
            self._expect(name, value is None or (0 <= value <= 1 and (value < 1 or name == "flip")), "from 0 to 1")
        for name in ("weight_decay", "warmup", "aux_weight", "seed"):
            self._expect(name, getattr(self, name) >= 0, "at least 0")
        if self.batch_size % self.accumulate:
            raise OptionError(
                f"batch_size {self.batch_size} cannot be worked on in {self.accumulate} equal parts (accumulate)"
            )

    def _expect(self, name: str, condition: bool, expected: str) -> None:
        if not condition:
            raise OptionError(f"{name} is {getattr(self, name)!r}; expected {expected}")

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Settings:
        """The settings with these values; lists stand for tuples.

        Raises:
            OptionError: an unknown name (near ones are suggested) or a value that is not allowed.
        """
        known = [each.name for each in fields(cls)]
        for name in options:
            if name not in known:
                raise OptionError(f"finetune has no option {name!r}; {suggest(name, known)}")
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in options.items()}
        return cls(**values)

    def differences(self, other: Mapping[str, Any]) -> list[str]:
        """What differs from the settings of an earlier run, in words."""
        mine = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        return [f"{name} {other.get(name)!r} (now {mine[name]!r})" for name in mine if other.get(name) != mine[name]]


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
        return isinstance(value, tuple) and len(value) == 2 and all(_fits(get_args(kind)[0], each) for each in value)
    if get_args(kind):  # a kind or None
        return value is None or _fits(get_args(kind)[0], value)
    return isinstance(value, kind)


def _words(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(map(repr, get_args(kind)))
    if get_origin(kind) is tuple:
        return f"two of: {_words(get_args(kind)[0])}"
    if get_args(kind):
        return f"{_words(get_args(kind)[0])} or None"
    return {int: "a whole number", float: "a number", bool: "True or False"}[kind]
