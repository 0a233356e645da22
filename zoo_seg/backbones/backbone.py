"""What a backbone is to the library."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from zoo_seg.keymap import KeyMap


@dataclass(frozen=True)
class Backbone:
    """How a backbone is built, and what other projects call its tensors.

    `create(output_stride=None, in_chans=3, levels=None, pretrained=False, **options)` returns a module that takes
    (N, in_chans, H, W) and returns its last `levels` feature maps, finest first, with `channels` and `strides`: those
    of the maps. `key_maps` name what stands behind the project's own prefix, which `prefixes` has where it is the
    backbone's own; they may depend on the options. `implied_options` are those by which a project computes without a
    word of it in its files.
    """

    name: str
    create: Callable[..., nn.Module]
    key_maps: Mapping[str, KeyMap | Callable[[Mapping[str, Any]], KeyMap]] = field(default_factory=dict)
    implied_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    prefixes: Mapping[str, str] = field(default_factory=dict)

    def key_map(self, project: str, options: Mapping[str, Any]) -> KeyMap | None:
        """What a project calls its tensors; None where it published none."""
        found = self.key_maps.get(project)
        return found(options) if callable(found) else found
