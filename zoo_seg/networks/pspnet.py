"""PSPNet: pyramid pooling in front of a 3x3 convolution. Zhao et al., https://arxiv.org/abs/1612.01105"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo_seg.networks.layers import ConvNormAct
from zoo_seg.networks.resample import bilinear_matrix, pooling_matrix

POOL_SIZES = (1, 2, 3, 6)


class PSPHead(nn.Module):
    """Backbone maps, finest first -> logits (N, num_classes, h, w) at the stride of the last map.

    The paper's bottleneck is a 3x3 convolution over [x, up(p1), up(p2), up(p3), up(p6)], linear in each
    part. A pooled part has at most 6x6 cells, so its cells are multiplied by the nine taps first and
    spread over the map afterwards: half of the multiplications vanish, the sum stays the same.

    Args:
        in_channels: channels of the backbone's maps; the last one is read.
        num_classes: classes of the logits.
        channels: width of the pooled branches and of the bottleneck.
    """

    def __init__(self, in_channels: Sequence[int], num_classes: int, *, channels: int = 512) -> None:
        super().__init__()
        self.in_channels, self.channels = in_channels[-1], channels
        self.branches = nn.ModuleList(ConvNormAct(self.in_channels, channels, 1) for _ in POOL_SIZES)
        self.bottleneck = ConvNormAct(self.in_channels + len(POOL_SIZES) * channels, channels, 3)
        self.dropout = nn.Dropout2d(0.1)
        self.classifier = nn.Conv2d(channels, num_classes, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        x = features[-1]
        parts = [self.in_channels] + [self.channels] * len(POOL_SIZES)
        dense, *pooled = torch.split(self.bottleneck.conv.weight, parts, dim=1)
        total = F.conv2d(x, dense, self.bottleneck.conv.bias, padding=1)
        total = total + self._spread(self._branch_outputs(x), pooled, x)
        logits: Tensor = self.classifier(self.dropout(self.bottleneck.act(self.bottleneck.norm(total))))
        return logits

    def _branch_outputs(self, x: Tensor) -> list[Tensor]:
        """The pooled branches before they are enlarged: (N, channels, s, s) for each pool size s."""
        height, width = x.shape[-2:]
        rows = torch.cat([pooling_matrix(height, size, x) for size in POOL_SIZES])
        strips = (rows @ x.transpose(1, 2).flatten(2)).reshape(len(x), -1, self.in_channels, width)
        outputs = []
        for strip, size, branch in zip(
            torch.split(strips, list(POOL_SIZES), dim=1), POOL_SIZES, self.branches, strict=True
        ):
            outputs.append(branch((strip @ pooling_matrix(width, size, x).T).transpose(1, 2)))
        return outputs

    def _spread(self, pooled: list[Tensor], weights: list[Tensor], like: Tensor) -> Tensor:
        """The bottleneck's answer to the enlarged branches, (N, channels, H, W)."""
        height, width = like.shape[-2:]
        strips = []
        for cells, weight in zip(pooled, weights, strict=True):
            taps = F.conv_transpose2d(cells, weight.transpose(0, 1), stride=3)  # (N, channels, 3s, 3s)
            strips.append(taps @ _tap_matrix(cells.shape[-1], width, like).T)
        rows = torch.cat([_tap_matrix(size, height, like) for size in POOL_SIZES], dim=1)
        return rows @ torch.cat(strips, dim=2)


def _tap_matrix(size: int, new_size: int, like: Tensor) -> Tensor:
    """(new_size, 3 * size): column 3i + t holds what cell i, enlarged and seen through tap t, adds to each place.

    Tap t of a 3x3 convolution reads place y + t - 1; beyond the border it reads zero.
    """
    spread = F.pad(bilinear_matrix(size, new_size, like), (0, 0, 1, 1))
    return torch.stack([spread[tap : tap + new_size] for tap in range(3)], dim=2).flatten(1)
