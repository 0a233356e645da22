"""A backbone as stages, each of which leads from one feature map to the next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo_seg.errors import OptionError


class StagedBackbone(nn.Module):
    """Base of backbones that are a plain chain of modules, which inference may run map by map to keep what is read.

    (N, in_chans, H, W) -> the feature maps, finest first.

    Args:
        channels: of all feature maps.
        strides: of all feature maps.
        levels: how many of the last maps to return; None is all.

    Raises:
        OptionError: there are not so many.
    """

    channels: tuple[int, ...]
    """Of the feature maps that are returned, finest first."""
    strides: tuple[int, ...]

    def __init__(self, channels: Sequence[int], strides: Sequence[int], levels: int | None) -> None:
        super().__init__()
        if levels is not None and not 1 <= levels <= len(channels):
            raise OptionError(f"{levels} feature maps are asked for; {type(self).__name__} has 1 to {len(channels)}")
        self._skipped = len(channels) - (levels or len(channels))
        self.channels, self.strides = tuple(channels[self._skipped :]), tuple(strides[self._skipped :])

    def chain(self) -> list[list[nn.Module]]:
        """For each of all feature maps the modules that, one after the other, lead to it from the map before."""
        raise NotImplementedError

    def stages(self) -> list[list[nn.Module]]:
        """`chain`, for each of the feature maps that are returned."""
        chain, first = self.chain(), self._skipped + 1
        return [[module for stage in chain[:first] for module in stage], *chain[first:]]

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for stage in self.stages():
            for module in stage:
                x = module(x)
            maps.append(x)
        return maps


class NormedBackbone(StagedBackbone):
    """One that normalises every map it returns; the next stage reads the map as it was.

    Stages pass (N, H, W, C) on. Only maps that are returned have a norm, `norm0` the finest of all.

    Args:
        eps: of the norms.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int], levels: int | None, eps: float) -> None:
        super().__init__(channels, strides, levels)
        for index, width in enumerate(self.channels, self._skipped):
            self.add_module(f"norm{index}", nn.LayerNorm(width, eps))

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for index, stage in enumerate(self.stages(), self._skipped):
            for module in stage:
                x = module(x)
            maps.append(self.get_submodule(f"norm{index}")(x).permute(0, 3, 1, 2))
        return maps


def check_stride_of_32(kind: str, output_stride: int | None) -> None:
    """Refuse to dilate what cannot be dilated.

    Raises:
        OptionError: the output stride is neither 32 nor left out.
    """
    if output_stride not in (None, 32):
        raise OptionError(f"a {kind}'s output stride is {output_stride}; expected 32, or nothing")


def pad_small(x: Tensor, least: int) -> Tensor:
    """Images or maps (N, C, H, W) with zeros at the right and bottom up to the least side that a network takes."""
    sides = x.shape[-2:]
    if any(isinstance(side, torch.SymInt) for side in sides) or min(sides) >= least:
        return x
    bottom, right = (max(least - side, 0) for side in sides)
    return F.pad(x, (0, right, 0, bottom))


def create_with_timm_names(
    name: str,
    build: Callable[..., StagedBackbone],
    *,
    levels: int | None = None,
    output_stride: int | None = None,
    in_chans: int = 3,
    pretrained: bool = False,
    **options: Any,
) -> StagedBackbone:
    """`Backbone.create` of a network whose parameters have timm's names, so that timm's ImageNet weights fit.

    Raises:
        OptionError: an option is not allowed, or timm has no such weights.
        DownloadError: they cannot be fetched.
    """
    backbone = build(levels=levels, output_stride=output_stride, in_chans=in_chans, **options)
    if pretrained:
        from zoo_seg.backbones.timm_backbone import imagenet_weights

        backbone.load_state_dict(imagenet_weights(name, in_chans))
    return backbone
