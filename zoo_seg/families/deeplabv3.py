"""DeepLabV3: atrous spatial pyramid pooling on the last feature map. Chen et al., https://arxiv.org/abs/1706.05587

SSSegmentation and MMSegmentation merge its branches by a 3x3 convolution; torchvision by a 1x1 one, and a 3x3
convolution follows (`refine`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zoo_seg.families.fcn import MMSEG_AUX, SSSEG_AUX, TORCHVISION_AUX, aux_head, read_widths
from zoo_seg.families.registry import Family, Heads, Shapes, register_family
from zoo_seg.keymap import KeyMap, Transform
from zoo_seg.layers.aspp import ASPP
from zoo_seg.layers.blocks import ConvNormAct


class DeepLabV3Head(nn.Module):
    """Backbone feature maps, finest first -> logits (N, num_classes, h, w) at the stride of the last map.

    Args:
        in_channels: channels of the backbone's feature maps; the last one is read.
        num_classes: classes of the logits.
        channels: width of the branches.
        dilations: of the branches.
        refine: merge the branches by a 1x1 convolution, which a 3x3 one follows; else by a 3x3 one.
    """

    level = -1
    """Which map is read, counted as in a list."""

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        *,
        channels: int = 512,
        dilations: Sequence[int],
        refine: bool = False,
    ) -> None:
        super().__init__()
        self.aspp = ASPP(in_channels[self.level], channels, dilations, kernel_size=1 if refine else 3)
        self.refine = ConvNormAct(channels, channels, 3) if refine else nn.Identity()
        self.dropout = nn.Dropout2d(0.1)
        self.classifier = nn.Conv2d(channels, num_classes, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        logits: Tensor = self.classifier(self.dropout(self.refine(self.aspp(features[self.level]))))
        return logits


@dataclass(frozen=True)
class DeepLabV3Options:
    """See `DeepLabV3Head`; the dilations are those of output stride 8, half of them (1, 6, 12, 18) are for 16.

    `aux_channels` is the width of the auxiliary head, None that of the head.
    """

    channels: int = 512
    aux_channels: int | None = None
    dilations: tuple[int, ...] = (1, 12, 24, 36)
    refine: bool = False


def _build(channels: Sequence[int], num_classes: int, options: DeepLabV3Options, *, align_corners: bool) -> Heads:
    head = DeepLabV3Head(
        channels, num_classes, channels=options.channels, dilations=options.dilations, refine=options.refine
    )
    return Heads(head, [aux_head(channels, num_classes, options.aux_channels or options.channels)])


def part_bottleneck(*, pool_first: bool) -> Transform:
    """The transform that parts a whole bottleneck, over the branches and the pooled one, as `ASPP` keeps it.

    Args:
        pool_first: the file's weight begins with the pooled branch; else it ends with it.
    """

    def transform(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        whole = tensors.get("head.aspp.bottleneck.weight")
        if whole is None or whole.ndim != 4 or whole.shape[1] <= whole.shape[0]:
            return tensors  # something is missing or misshapen, which will be said when it is put into the network
        pooled, branches = whole.shape[0], whole.shape[1] - whole.shape[0]
        if pool_first:
            taps, dense = torch.split(whole, [pooled, branches], dim=1)
        else:
            dense, taps = torch.split(whole, [branches, pooled], dim=1)
        return {**tensors, "head.aspp.bottleneck.weight": dense, "head.aspp.taps.weight": taps.transpose(0, 1)}

    return transform


MMSEG_ASPP = (
    KeyMap(
        (
            ("image_pool.1.conv.", "pool.conv."),
            ("image_pool.1.bn.", "pool.norm."),
            ("aspp_modules.{}.conv.", "branches.{}.conv."),
            ("aspp_modules.{}.bn.", "branches.{}.norm."),
            ("aspp_modules.{}.depthwise_conv.conv.", "branches.{}.depthwise.conv."),
            ("aspp_modules.{}.depthwise_conv.bn.", "branches.{}.depthwise.norm."),
            ("aspp_modules.{}.pointwise_conv.conv.", "branches.{}.pointwise.conv."),
            ("aspp_modules.{}.pointwise_conv.bn.", "branches.{}.pointwise.norm."),
            ("bottleneck.conv.", "bottleneck."),
            ("bottleneck.bn.", "norm."),
        )
    )
    .after("decode_head.", "head.aspp.")
    .rules
)
SSSEG_ASPP = (
    KeyMap(
        (
            ("global_branch.1.", "pool.conv."),
            ("global_branch.2.", "pool.norm."),
            ("parallel_branches.{}.0.", "branches.{}.conv."),
            ("parallel_branches.{}.1.", "branches.{}.norm."),
            ("parallel_branches.{}.depthwise_conv.", "branches.{}.depthwise.conv."),
            ("parallel_branches.{}.depthwise_bn.", "branches.{}.depthwise.norm."),
            ("parallel_branches.{}.pointwise_conv.", "branches.{}.pointwise.conv."),
            ("parallel_branches.{}.pointwise_bn.", "branches.{}.pointwise.norm."),
            ("bottleneck.0.", "bottleneck."),
            ("bottleneck.1.", "norm."),
        )
    )
    .after("aspp_net.", "head.aspp.")
    .rules
)
"""What the projects call the tensors of `head.aspp`."""


def _ssseg(options: DeepLabV3Options) -> KeyMap:
    rules = (*SSSEG_ASPP, ("decoder.1.", "head.classifier."), *SSSEG_AUX)
    return KeyMap(rules, part_bottleneck(pool_first=False))


def _mmseg(options: DeepLabV3Options) -> KeyMap:
    rules = (*MMSEG_ASPP, ("decode_head.conv_seg.", "head.classifier."), *MMSEG_AUX)
    return KeyMap(rules, part_bottleneck(pool_first=True))


def _torchvision(options: DeepLabV3Options) -> KeyMap:
    pool = len(options.dilations)
    rules = (
        (f"0.convs.{pool}.1.", "aspp.pool.conv."),
        (f"0.convs.{pool}.2.", "aspp.pool.norm."),
        ("0.convs.{}.0.", "aspp.branches.{}.conv."),
        ("0.convs.{}.1.", "aspp.branches.{}.norm."),
        ("0.project.0.", "aspp.bottleneck."),
        ("0.project.1.", "aspp.norm."),
        ("1.", "refine.conv."),
        ("2.", "refine.norm."),
        ("4.", "classifier."),
    )
    heads = KeyMap(rules).after("classifier.", "head.").rules
    return KeyMap((*heads, *TORCHVISION_AUX), part_bottleneck(pool_first=False))


def _read_options(shapes: Shapes) -> dict[str, Any]:
    return {**read_widths(shapes), "refine": "head.refine.conv.weight" in shapes}


FAMILY = register_family(
    Family(
        name="deeplabv3",
        title="DeepLabV3",
        paper="https://arxiv.org/abs/1706.05587",
        options=DeepLabV3Options,
        build=_build,
        levels=2,
        key_maps={"ssseg": _ssseg, "mmseg": _mmseg, "torchvision": _torchvision},
        read_options=_read_options,
    )
)
