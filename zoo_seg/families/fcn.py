"""FCN: 3x3 convolutions on the last feature map. Long et al., https://arxiv.org/abs/1411.4038

As SSSegmentation and MMSegmentation train it on a dilated ResNet; MMSegmentation's concatenates the head's input to its
features once more (`concat_input`), torchvision's has one convolution. On HRNet one 1x1 convolution reads all maps
(`fuse`), as in its paper. With one convolution on the map before the last it is also the auxiliary head of many
families.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from zoo_seg.errors import OptionError
from zoo_seg.families.registry import Family, Heads, Shapes, read_width, register_family
from zoo_seg.keymap import KeyMap
from zoo_seg.layers.blocks import ConvNormAct
from zoo_seg.layers.fused import FusedConvNormAct


class FCNHead(nn.Module):
    """Backbone feature maps, finest first -> logits (N, num_classes, h, w) at the stride of the map it reads.

    Args:
        in_channels: channels of the backbone's feature maps.
        num_classes: classes of the logits.
        channels: width of the convolutions.
        num_convs: how many 3x3 convolutions stand before the classifier.
        level: which feature map to read, counted as in a list.
        dilation: of the convolutions.
        concat_input: one more convolution over the input beside the convolutions' output.
        kernel_size: of the convolutions.
        fuse: read all maps, enlarged to the finest and concatenated, in place of one; undilated.
        align_corners: of the enlarging.

    Raises:
        OptionError: options do not go together.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        *,
        channels: int = 512,
        num_convs: int = 2,
        level: int = -1,
        dilation: int = 1,
        concat_input: bool = False,
        kernel_size: int = 3,
        fuse: bool = False,
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        if fuse and (concat_input or dilation > 1 or not num_convs):
            raise OptionError("fuse goes with one or more undilated convolutions and without concat_input")
        self.level = None if fuse else level
        width = in_channels[level]
        widths = [width] + [channels] * num_convs
        convs: list[nn.Module] = [ConvNormAct(a, b, kernel_size, dilation=dilation) for a, b in pairwise(widths)]
        if fuse:
            convs[0] = FusedConvNormAct(in_channels, channels, kernel_size, align_corners=align_corners)
        self.convs = nn.Sequential(*convs)
        self.concat = ConvNormAct(width + channels, channels, kernel_size) if concat_input else None
        self.dropout = nn.Dropout2d(0.1)
        self.classifier = nn.Conv2d(channels if num_convs else width, num_classes, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        out = self.convs(features if self.level is None else features[self.level])
        if self.concat is not None and self.level is not None:
            out = self.concat(torch.cat([features[self.level], out], dim=1))
        logits: Tensor = self.classifier(self.dropout(out))
        return logits


@dataclass(frozen=True)
class FCNOptions:
    """See `FCNHead`; `aux_channels` is the width of the auxiliary head, None that of the head.

    With `fuse` the head reads four maps, and there is no auxiliary head.
    """

    channels: int = 512
    aux_channels: int | None = None
    num_convs: int = 2
    level: int = -1
    dilation: int = 1
    concat_input: bool = False
    kernel_size: int = 3
    fuse: bool = False


def _build(channels: Sequence[int], num_classes: int, options: FCNOptions, *, align_corners: bool) -> Heads:
    head = FCNHead(
        channels,
        num_classes,
        channels=options.channels,
        num_convs=options.num_convs,
        level=options.level,
        dilation=options.dilation,
        concat_input=options.concat_input,
        kernel_size=options.kernel_size,
        fuse=options.fuse,
        align_corners=align_corners,
    )
    if options.fuse:
        return Heads(head)
    width = options.aux_channels or options.channels
    return Heads(head, [aux_head(channels, num_classes, width, dilation=options.dilation)])


def aux_head(channels: Sequence[int], num_classes: int, width: int, *, dilation: int = 1) -> FCNHead:
    """The usual auxiliary head: one convolution on the feature map before the last."""
    return FCNHead(channels, num_classes, channels=width, num_convs=1, level=-2, dilation=dilation)


SSSEG_AUX = (
    ("auxiliary_decoder.0.", "aux_heads.0.convs.0.conv."),
    ("auxiliary_decoder.1.", "aux_heads.0.convs.0.norm."),
    ("auxiliary_decoder.4.", "aux_heads.0.classifier."),
)
MMSEG_AUX = (
    ("auxiliary_head.convs.0.conv.", "aux_heads.0.convs.0.conv."),
    ("auxiliary_head.convs.0.bn.", "aux_heads.0.convs.0.norm."),
    ("auxiliary_head.conv_seg.", "aux_heads.0.classifier."),
)
TORCHVISION_AUX = (
    ("aux_classifier.0.", "aux_heads.0.convs.0.conv."),
    ("aux_classifier.1.", "aux_heads.0.convs.0.norm."),
    ("aux_classifier.4.", "aux_heads.0.classifier."),
)
"""What the projects call the tensors of `aux_head`."""


def _ssseg(options: FCNOptions) -> KeyMap:
    return KeyMap(
        (
            ("decoder.0.", "head.convs.0.conv."),
            ("decoder.1.", "head.convs.0.norm."),
            ("decoder.3.", "head.convs.1.conv."),
            ("decoder.4.", "head.convs.1.norm."),
            ("decoder.7.", "head.classifier."),
            *SSSEG_AUX,
        )
    )


def _mmseg(options: FCNOptions) -> KeyMap:
    return KeyMap(
        (
            ("decode_head.convs.{}.conv.", "head.convs.{}.conv."),
            ("decode_head.convs.{}.bn.", "head.convs.{}.norm."),
            ("decode_head.conv_cat.conv.", "head.concat.conv."),
            ("decode_head.conv_cat.bn.", "head.concat.norm."),
            ("decode_head.conv_seg.", "head.classifier."),
            *MMSEG_AUX,
        )
    )


def _torchvision(options: FCNOptions) -> KeyMap:
    return KeyMap(
        (
            ("classifier.0.", "head.convs.0.conv."),
            ("classifier.1.", "head.convs.0.norm."),
            ("classifier.4.", "head.classifier."),
            *TORCHVISION_AUX,
        )
    )


def read_widths(shapes: Shapes) -> dict[str, Any]:
    """The widths of a head and its auxiliary head."""
    aux = shapes.get("aux_heads.0.classifier.weight", ())
    return {**read_width(shapes), **({"aux_channels": aux[1]} if len(aux) == 4 else {})}


def _read_options(shapes: Shapes) -> dict[str, Any]:
    conv = shapes.get("head.convs.0.conv.weight", ())
    kernel = {"kernel_size": conv[2]} if len(conv) == 4 else {}
    numbers = {name.split(".")[2] for name in shapes if name.startswith("head.convs.")}
    count = {"num_convs": len(numbers)} if numbers else {}
    return {**read_widths(shapes), "concat_input": "head.concat.conv.weight" in shapes, **kernel, **count}


FAMILY = register_family(
    Family(
        name="fcn",
        title="FCN",
        paper="https://arxiv.org/abs/1411.4038",
        options=FCNOptions,
        build=_build,
        levels=lambda options: 4 if options.fuse else 2,
        key_maps={"ssseg": _ssseg, "mmseg": _mmseg, "torchvision": _torchvision},
        read_options=_read_options,
    )
)
