"""The backbones that are written here, by name; every other name is timm's."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache

from torch import Tensor, nn

import zoo_seg.backbones
from zoo_seg.checkpoints.keymap import KeyMap
from zoo_seg.errors import OptionError


@dataclass(frozen=True)
class Backbone:
    """How a backbone is built, and what other projects call its parameters."""

    name: str
    create: Callable[..., nn.Module]
    """`create(*, output_stride=None, in_chans=3, levels=None, **options)`: a module with `channels` and `strides` that
    returns the last `levels` of its feature maps (None: all), finest first."""
    key_maps: Mapping[str, KeyMap] = field(default_factory=dict)
    """By project, of what stands after its prefix of the backbone (`backbone.` in mmseg, `backbone_net.` in ssseg)."""
    imagenet: Callable[[int], Mapping[str, Tensor]] | None = None
    """Number of input channels -> parameters trained on ImageNet, under our names; fetches them."""

    def create_pretrained(self, *, in_chans: int = 3, **options: object) -> nn.Module:
        """`create`, with parameters that were trained on ImageNet.

        Raises:
            OptionError: there are none.
            DownloadError: they cannot be fetched.
        """
        if self.imagenet is None:
            raise OptionError(f"there are no ImageNet weights of {self.name!r}; leave backbone_pretrained out")
        network = self.create(in_chans=in_chans, **options)
        network.load_state_dict(self.imagenet(in_chans))
        return network


_BACKBONES: dict[str, Backbone] = {}


def register_backbone(
    name: str,
    create: Callable[..., nn.Module],
    *,
    key_maps: Mapping[str, KeyMap] | None = None,
    imagenet: Callable[[int], Mapping[str, Tensor]] | None = None,
) -> Backbone:
    """Make a backbone known under a name; the arguments are the fields of `Backbone`."""
    _BACKBONES[name] = Backbone(name, create, key_maps or {}, imagenet)
    return _BACKBONES[name]


def find_backbone(name: str) -> Backbone | None:
    """The backbone of this name, or None where it is not written here."""
    _import_all()
    return _BACKBONES.get(name)


def list_backbones() -> list[str]:
    """The names of all backbones that are written here."""
    _import_all()
    return sorted(_BACKBONES)


@cache
def _import_all() -> None:
    """Each file of this folder registers its own."""
    for module in pkgutil.iter_modules(zoo_seg.backbones.__path__):
        importlib.import_module(f"zoo_seg.backbones.{module.name}")
