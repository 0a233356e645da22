"""PSPNet: pyramid pooling in front of a 3x3 convolution. Zhao et al., https://arxiv.org/abs/1612.01105"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from zoo_seg.families.fcn import MMSEG_AUX, SSSEG_AUX, aux_head, read_widths
from zoo_seg.families.registry import Family, Heads, register_family
from zoo_seg.keymap import KeyMap
from zoo_seg.layers.enlarged import part_weight
from zoo_seg.layers.pyramid import POOL_SIZES, PyramidPooling


class PSPHead(PyramidPooling):
    """Backbone maps, finest first -> logits (N, num_classes, h, w) at the stride of the last map.

    Args:
        in_channels: channels of the backbone's maps; the last one is read.
        num_classes: classes of the logits.
        channels: width of the pooled branches and of the bottleneck.
        align_corners: of the resize that enlarges the pooled parts.
    """

    level = -1
    """Which map is read, counted as in a list."""

    def __init__(
        self, in_channels: Sequence[int], num_classes: int, *, channels: int = 512, align_corners: bool = False
    ) -> None:
        super().__init__(in_channels[self.level], channels, align_corners)
        self.dropout = nn.Dropout2d(0.1)
        self.classifier = nn.Conv2d(channels, num_classes, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:  # type: ignore[override]
        logits: Tensor = self.classifier(self.dropout(self.pool(features[self.level])))
        return logits


@dataclass(frozen=True)
class PSPNetOptions:
    """`channels` is the width of the head, `aux_channels` of the auxiliary head (None: the same)."""

    channels: int = 512
    aux_channels: int | None = None


def _build(channels: Sequence[int], num_classes: int, options: PSPNetOptions, *, align_corners: bool) -> Heads:
    head = PSPHead(channels, num_classes, channels=options.channels, align_corners=align_corners)
    return Heads(head, [aux_head(channels, num_classes, options.aux_channels or options.channels)])


def _part_bottleneck(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Both projects keep the bottleneck over [x, pooled parts] whole."""
    return part_weight(tensors, "head.bottleneck", "head.taps", len(POOL_SIZES))


def _ssseg(options: PSPNetOptions) -> KeyMap:
    return KeyMap(
        (
            ("ppm_net.branches.{}.1.", "head.branches.{}.conv."),
            ("ppm_net.branches.{}.2.", "head.branches.{}.norm."),
            ("ppm_net.bottleneck.0.", "head.bottleneck."),
            ("ppm_net.bottleneck.1.", "head.norm."),
            ("ppm_net.fuse_layer.0.", "head.bottleneck."),  # until 2020-12-14
            ("ppm_net.fuse_layer.1.", "head.norm."),
            ("decoder.1.", "head.classifier."),
            *SSSEG_AUX,
        ),
        _part_bottleneck,
    )


def _mmseg(options: PSPNetOptions) -> KeyMap:
    return KeyMap(
        (
            ("decode_head.psp_modules.{}.1.conv.", "head.branches.{}.conv."),
            ("decode_head.psp_modules.{}.1.bn.", "head.branches.{}.norm."),
            ("decode_head.bottleneck.conv.", "head.bottleneck."),
            ("decode_head.bottleneck.bn.", "head.norm."),
            ("decode_head.conv_seg.", "head.classifier."),
            *MMSEG_AUX,
        ),
        _part_bottleneck,
    )


FAMILY = register_family(
    Family(
        name="pspnet",
        title="PSPNet",
        paper="https://arxiv.org/abs/1612.01105",
        options=PSPNetOptions,
        build=_build,
        levels=2,
        key_maps={"ssseg": _ssseg, "mmseg": _mmseg},
        read_options=read_widths,
    )
)
