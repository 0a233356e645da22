"""ConvNeXt as segmentation networks use it: a LayerNorm on every map. Liu et al. 2022, 2201.03545.

`convnext_tiny` and its like, without `_seg`, are timm's: the same stages without these norms.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from zoo_seg.backbones.registry import register_backbone
from zoo_seg.backbones.staged import NormedBackbone, check_stride_of_32, create_with_timm_names, pad_small
from zoo_seg.keymap import KeyMap
from zoo_seg.layers.depth import StochasticDepth, rising_rates

_EPS = 1e-6


class Block(nn.Module):
    """A 7x7 convolution of each channel alone and an MLP, scaled and added to the input; (N, H, W, C) -> the same."""

    def __init__(self, channels: int, drop: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, _EPS)
        self.fc1, self.act, self.fc2 = nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels)
        self.drop = StochasticDepth(drop)
        self.scale = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        return torch.addcmul(x, self.scale, self.drop(self.fc2(self.act(self.fc1(y)))))


class Patches(nn.Module):
    """Patches side by side as places; (N, in_channels, H, W) -> (N, H / patch, W / patch, C).

    Rows and columns that fill no patch are lost, as in the original. A map that is smaller than one, which the original
    refuses, is padded with zeros.
    """

    def __init__(self, in_channels: int, channels: int, patch: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, patch, patch)
        self.patch = patch

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(pad_small(x, self.patch))
        return out.permute(0, 2, 3, 1)


class Stem(nn.Module):
    """(N, in_chans, H, W) -> (N, H / 4, W / 4, C)."""

    def __init__(self, in_chans: int, channels: int) -> None:
        super().__init__()
        self.patches, self.norm = Patches(in_chans, channels, 4), nn.LayerNorm(channels, _EPS)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.patches(x))
        return out


class Downsample(nn.Module):
    """(N, H, W, in_channels) -> (N, H / 2, W / 2, C)."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.norm, self.patches = nn.LayerNorm(in_channels, _EPS), Patches(in_channels, channels, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.patches(self.norm(x).permute(0, 3, 1, 2))
        return out


class ConvNeXt(NormedBackbone):
    """(N, in_chans, H, W), of any size -> up to four feature maps, at strides 4, 8, 16 and 32, rounded down.

    Args:
        depths: blocks of the four stages.
        width: channels of the first stage; each has twice those of the one before.
        drop_path_rate: stochastic depth of the last block; it rises from 0.
        output_stride: 32, which None is too.
        in_chans: channels of the image.
        levels: how many of the last maps to return; None is all four.

    Raises:
        OptionError: an option has a value that is not allowed.
    """

    def __init__(
        self,
        depths: Sequence[int],
        width: int,
        *,
        drop_path_rate: float = 0.4,
        output_stride: int | None = None,
        in_chans: int = 3,
        levels: int | None = None,
    ) -> None:
        channels = [width << stage for stage in range(4)]
        super().__init__(channels, (4, 8, 16, 32), levels, _EPS)
        check_stride_of_32("ConvNeXt", output_stride)
        rates = iter(rising_rates(drop_path_rate, sum(depths)))
        self.downsample = nn.ModuleList([Stem(in_chans, width)])
        self.downsample.extend(Downsample(before, after) for before, after in pairwise(channels))
        self.layers = nn.ModuleList(
            nn.Sequential(*(Block(each, next(rates)) for _ in range(depth)))
            for each, depth in zip(channels, depths, strict=True)
        )
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=0.02)
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def chain(self) -> list[list[nn.Module]]:
        return [list(pair) for pair in zip(self.downsample, self.layers, strict=True)]


_SIZES = {
    "convnext_tiny_seg": ((3, 3, 9, 3), 96, 0.4),
    "convnext_small_seg": ((3, 3, 27, 3), 96, 0.3),
    "convnext_base_seg": ((3, 3, 27, 3), 128, 0.4),
    "convnext_large_seg": ((3, 3, 27, 3), 192, 0.4),
    "convnext_xlarge_seg": ((3, 3, 27, 3), 256, 0.4),
}
"""Blocks of each stage, the first stage's channels, and the stochastic depth of the published UPerNets."""

_KEYS = KeyMap(
    (
        ("downsample_layers.0.0.", "downsample.0.patches.conv."),
        ("downsample_layers.0.1.", "downsample.0.norm."),
        ("downsample_layers.{}.0.", "downsample.{}.norm."),
        ("downsample_layers.{}.1.", "downsample.{}.patches.conv."),
        ("stages.{}.{}.depthwise_conv.", "layers.{}.{}.conv."),
        ("stages.{}.{}.norm.", "layers.{}.{}.norm."),
        ("stages.{}.{}.pointwise_conv1.", "layers.{}.{}.fc1."),
        ("stages.{}.{}.pointwise_conv2.", "layers.{}.{}.fc2."),
        ("stages.{}.{}.gamma", "layers.{}.{}.scale"),
        *((f"norm{level}.", f"norm{level}.") for level in range(4)),
    )
)

_TRANSFORMERS_KEYS = KeyMap(
    (
        ("embeddings.patch_embeddings.", "downsample.0.patches.conv."),
        ("embeddings.layernorm.", "downsample.0.norm."),
        ("encoder.stages.{}.downsampling_layer.0.", "downsample.{}.norm."),
        ("encoder.stages.{}.downsampling_layer.1.", "downsample.{}.patches.conv."),
        ("encoder.stages.{}.layers.{}.dwconv.", "layers.{}.{}.conv."),
        ("encoder.stages.{}.layers.{}.layernorm.", "layers.{}.{}.norm."),
        ("encoder.stages.{}.layers.{}.pwconv1.", "layers.{}.{}.fc1."),
        ("encoder.stages.{}.layers.{}.pwconv2.", "layers.{}.{}.fc2."),
        ("encoder.stages.{}.layers.{}.layer_scale_parameter", "layers.{}.{}.scale"),
        ("layernorm.", None),  # of the whole network's features, which segmentation does not read
        *((f"hidden_states_norms.stage{level + 1}.", f"norm{level}.") for level in range(4)),
    )
)

_MAPS = {"mmseg": _KEYS, "ssseg": _KEYS, "transformers": _TRANSFORMERS_KEYS}
for _name, (_depths, _width, _rate) in _SIZES.items():
    _build = partial(ConvNeXt, _depths, _width, drop_path_rate=_rate)
    register_backbone(_name, partial(create_with_timm_names, _name, _build), key_maps=_MAPS)
