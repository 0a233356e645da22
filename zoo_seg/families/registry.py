"""Families by name: a published method is one file beside this one."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from zoo_seg import families
from zoo_seg.decode import Mistake, decode, suggest
from zoo_seg.errors import OptionError, UnknownNameError
from zoo_seg.keymap import KeyMap
from zoo_seg.layers.losses import LossSum, pixel_losses
from zoo_seg.manifest import Architecture

Shapes = Mapping[str, tuple[int, ...]]
"""Of tensors by their names."""


def read_width(shapes: Shapes) -> dict[str, Any]:
    """`read_options` of a family whose classifier, a convolution, tells the `channels` of its head."""
    shape = shapes.get("head.classifier.weight", ())
    return {"channels": shape[1]} if len(shape) == 4 else {}


@dataclass(frozen=True)
class Heads:
    """What stands on a backbone: the head that `predict` uses, and those that only training uses."""

    head: nn.Module
    aux_heads: Sequence[nn.Module] = ()


@dataclass(frozen=True)
class Family:
    """A published method: its heads, their options, and what other projects call their tensors.

    A head takes the backbone's feature maps, finest first, and returns logits (N, num_classes, h, w) at the stride of
    one of them, or `Queries`. One that also predicts on the way returns all that is trained, its own logits first,
    from `forward_train`.
    """

    name: str
    title: str
    paper: str | None
    options: type
    """A frozen dataclass of plain values; it travels whole: record -> network -> saved folder -> network."""
    build: Callable[..., Heads]
    """`build(channels, num_classes, options, align_corners=False)`; `channels` of the feature maps it is given."""
    levels: int | Callable[[Any], int]
    """How many of the backbone's last feature maps the heads read; may depend on the options."""
    asks: Callable[[Any], Mapping[str, Any]] = lambda options: {}
    """What else it asks of its backbone, as options of that; may depend on the family's options."""
    key_maps: Mapping[str, Callable[[Any], KeyMap]] = field(default_factory=dict)
    """For each project whole names, but for the backbone's; they may depend on the options."""
    backbone_prefixes: Mapping[str, str] = field(default_factory=dict)
    """What stands before the names of a backbone's tensors, where it is not what the project usually writes."""
    implied_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """For each project the options by which it computes without a word of it in its files."""
    classifiers: tuple[str, ...] = ("head.classifier.", "aux_heads.{}.classifier.")
    """Beginnings of the tensors that depend on the classes; re-initialised for other classes."""
    class_tensor: str = "head.classifier.weight"
    """Its first dimension tells how many classes the network has, and `no_object` more."""
    no_object: int = 0
    read_options: Callable[[Shapes], dict[str, Any]] | None = None
    """What shapes alone say about the options, for files that come without a record."""
    loss: Callable[..., Sequence[LossSum]] = pixel_losses
    """`loss(outputs, labels, pixel, aux_weight)`: the terms of a batch's loss.

    `outputs` as `SegmentationNetwork.forward_train` gives them, labels (N, H, W) at the size of the padded input, the
    pixel loss that the run asks for, and the weight of auxiliary heads."""
    backbones: tuple[str, ...] | None = None
    """The only ones it stands on; None for any."""
    probe: int = 64
    """Side of the noise image on which a rewritten network is compared with itself."""

    def make_options(self, given: Mapping[str, Any]) -> Any:
        """The options as their dataclass, with its defaults.

        Raises:
            OptionError: one is unknown or of another type.
        """
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}
        try:
            return decode(self.options, plain, ())
        except Mistake as mistake:
            where = "".join(f"{step} " for step in mistake.path)
            raise OptionError(f"{self.name}: {where}{mistake.message}") from None

    def levels_of(self, options: Any) -> int:
        """How many feature maps the heads read with these options."""
        return self.levels if isinstance(self.levels, int) else self.levels(options)

    def key_map(self, project: str, architecture: Architecture) -> KeyMap | None:
        """What a project calls the heads' tensors; None where it published none."""
        make = self.key_maps.get(project)
        return None if make is None else make(self.make_options(architecture.options))

    def is_classifier(self, name: str) -> bool:
        """Whether a tensor depends on the classes."""
        return KeyMap(tuple((each, "") for each in self.classifiers)).has(name)

    def count_classes(self, tensors: Mapping[str, Tensor]) -> int | None:
        """How many classes a network of these tensors has; None where the classifier is missing."""
        tensor = tensors.get(self.class_tensor)
        return None if tensor is None or not tensor.ndim else int(tensor.shape[0]) - self.no_object


_REGISTERED: dict[str, Family] = {}


def register_family(family: Family) -> Family:
    """Make a family known; a later one of the same name takes its place."""
    _REGISTERED[family.name] = family
    return family


def list_families() -> list[str]:
    """The names of all families."""
    own = {module.name for module in pkgutil.iter_modules(families.__path__)} - {"registry"}
    return sorted(own | set(_REGISTERED))


def find_family(name: str) -> Family:
    """A family by its name.

    Raises:
        UnknownNameError: there is none.
    """
    if name not in _REGISTERED:
        if name not in list_families():
            raise UnknownNameError(f"there is no family {name!r}; {suggest(name, list_families())}")
        importlib.import_module(f"{families.__name__}.{name}")
    return _REGISTERED[name]
