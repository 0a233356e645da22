"""FCN: two 3x3 convolutions on the last map. Long et al., https://arxiv.org/abs/1411.4038

As SSSegmentation trains it on a dilated ResNet (the head does not concatenate its input). With one
convolution on the map before the last it is also the auxiliary head of FCN and PSPNet.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from zoo_seg.layers.blocks import ConvNormAct


class FCNHead(nn.Module):
    """Backbone maps, finest first -> logits (N, num_classes, h, w) at the stride of the map it reads.

    Args:
        in_channels: channels of the backbone's maps.
        num_classes: classes of the logits.
        channels: width of the convolutions.
        num_convs: how many 3x3 convolutions stand before the classifier.
        level: which map to read, counted as in a list.
    """

    def __init__(
        self, in_channels: Sequence[int], num_classes: int, *, channels: int = 512, num_convs: int = 2, level: int = -1
    ) -> None:
        super().__init__()
        self.level = level
        widths = [in_channels[level]] + [channels] * num_convs
        self.convs = nn.Sequential(*(ConvNormAct(a, b, 3) for a, b in pairwise(widths)))
        self.dropout = nn.Dropout2d(0.1)
        self.classifier = nn.Conv2d(channels, num_classes, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        logits: Tensor = self.classifier(self.dropout(self.convs(features[self.level])))
        return logits
