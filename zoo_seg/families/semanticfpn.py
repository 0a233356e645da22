"""Semantic FPN: a feature pyramid, summed at stride 4. Kirillov et al., https://arxiv.org/abs/1901.02446

The two projects that published weights build different necks: SSSegmentation's convolutions carry
BatchNorm and ReLU (`neck="conv_norm_act"`), MMSegmentation's only a bias (`neck="conv"`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from zoo_seg.layers.blocks import ConvNormAct
from zoo_seg.layers.resample import resize

NECKS = ("conv_norm_act", "conv")


def _neck_conv(neck: str, in_channels: int, out_channels: int, kernel_size: int) -> nn.Module:
    if neck == "conv":
        return nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
    return ConvNormAct(in_channels, out_channels, kernel_size)


class FeaturePyramid(nn.Module):
    """Backbone maps, finest first -> as many maps of `channels`, each with what the coarser ones know."""

    def __init__(self, in_channels: Sequence[int], channels: int, neck: str) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(_neck_conv(neck, width, channels, 1) for width in in_channels)
        self.output = nn.ModuleList(_neck_conv(neck, channels, channels, 3) for _ in in_channels)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        maps = [conv(x) for conv, x in zip(self.lateral, features, strict=True)]
        for i in range(len(maps) - 1, 0, -1):
            maps[i - 1] = maps[i - 1] + F.interpolate(maps[i], size=maps[i - 1].shape[-2:], mode="nearest")
        return [conv(x) for conv, x in zip(self.output, maps, strict=True)]


class ScaleHead(nn.Module):
    """Level i of the pyramid: max(1, i) 3x3 convolutions, for i >= 1 each followed by a bilinear x2."""

    def __init__(self, level: int, in_channels: int, channels: int) -> None:
        super().__init__()
        self.upsample = level > 0
        self.convs = nn.ModuleList(
            ConvNormAct(in_channels if i == 0 else channels, channels, 3) for i in range(max(1, level))
        )

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = conv(x)
            if self.upsample:
                x = resize(x, (2 * x.shape[-2], 2 * x.shape[-1]))
        return x


class SemanticFPNHead(nn.Module):
    """Backbone maps, finest first -> logits (N, num_classes, h, w) at the stride of the finest map.

    Args:
        in_channels: channels of the backbone's maps (strides 4, 8, 16 and 32 in the published networks).
        num_classes: classes of the logits.
        channels: width of the scale heads; the pyramid is twice as wide.
        neck: `"conv_norm_act"` (SSSegmentation) or `"conv"` (MMSegmentation).
    """

    def __init__(
        self, in_channels: Sequence[int], num_classes: int, *, channels: int = 128, neck: str = NECKS[0]
    ) -> None:
        super().__init__()
        self.neck = FeaturePyramid(in_channels, 2 * channels, neck)
        self.scale_heads = nn.ModuleList(ScaleHead(i, 2 * channels, channels) for i in range(len(in_channels)))
        self.dropout = nn.Dropout2d(0.1)
        self.classifier = nn.Conv2d(channels, num_classes, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        maps = self.neck(features)
        total = self.scale_heads[0](maps[0])
        for head, x in zip(self.scale_heads[1:], maps[1:], strict=True):
            total = total + resize(head(x), total.shape[-2:])
        logits: Tensor = self.classifier(self.dropout(total))
        return logits
