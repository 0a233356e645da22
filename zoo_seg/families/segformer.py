"""SegFormer: every feature map through one 1x1 convolution, and all through another.

Xie et al., https://arxiv.org/abs/2105.15203
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from zoo_seg.families.registry import Family, Heads, Shapes, read_width, register_family
from zoo_seg.keymap import KeyMap
from zoo_seg.layers.blocks import ConvNormAct
from zoo_seg.layers.resample import resize

Projection: TypeAlias = Literal["conv_norm_act", "linear"]


class SegFormerHead(nn.Module):
    """Backbone feature maps, finest first -> logits (N, num_classes, h, w) at the stride of the finest map.

    The paper's second convolution reads all maps, enlarged to the finest, as one. Being linear, it is kept in a part
    for each map, which is applied before the enlarging: the same sum, with a third of the multiplications.

    Args:
        in_channels: channels of the backbone's feature maps.
        num_classes: classes of the logits.
        channels: width of all convolutions.
        projection: the first convolution with BatchNorm and ReLU, or linear (with a bias), as the authors have it.
        align_corners: of the resizes.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        *,
        channels: int = 256,
        projection: Projection = "conv_norm_act",
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        self.align_corners = align_corners
        make = ConvNormAct if projection == "conv_norm_act" else nn.Conv2d
        self.convs = nn.ModuleList(make(width, channels, 1) for width in in_channels)
        fuse = [nn.Conv2d(channels, channels, 1, bias=False) for _ in in_channels]
        self.fuse = nn.ModuleList(fuse)
        self.norm = nn.BatchNorm2d(channels)
        self.act = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout2d(0.1)
        self.classifier = nn.Conv2d(channels, num_classes, 1)
        bound = (len(in_channels) * channels) ** -0.5  # torch's default for the undivided convolution
        for part in fuse:
            nn.init.uniform_(part.weight, -bound, bound)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        maps = [fuse(conv(x)) for fuse, conv, x in zip(self.fuse, self.convs, features, strict=True)]
        total = maps[0]
        for coarser in maps[1:]:
            total = total + resize(coarser, total.shape[-2:], self.align_corners)
        logits: Tensor = self.classifier(self.dropout(self.act(self.norm(total))))
        return logits


@dataclass(frozen=True)
class SegFormerOptions:
    """See `SegFormerHead`."""

    channels: int = 256
    projection: Projection = "conv_norm_act"


def _build(channels: Sequence[int], num_classes: int, options: SegFormerOptions, *, align_corners: bool) -> Heads:
    return Heads(
        SegFormerHead(
            channels,
            num_classes,
            channels=options.channels,
            projection=options.projection,
            align_corners=align_corners,
        )
    )


def _read_options(shapes: Shapes) -> dict[str, Any]:
    is_linear = "head.convs.0.weight" in shapes
    return {**read_width(shapes), **({"projection": "linear"} if is_linear else {})}


def _part_fusion(tensors: dict[str, Tensor], *, coarsest_first: bool = False) -> dict[str, Tensor]:
    """The projects keep the second convolution whole, over the maps from the finest on or from the coarsest."""
    whole = tensors.get("head.fuse.weight")
    if whole is None or whole.ndim != 4:
        return tensors  # something is missing or misshapen, which will be said when it is put into the network
    split = torch.split(whole, whole.shape[0], dim=1)
    ordered = reversed(split) if coarsest_first else split
    parts = {f"head.fuse.{i}.weight": part for i, part in enumerate(ordered)}
    return {**{name: tensor for name, tensor in tensors.items() if name != "head.fuse.weight"}, **parts}


def _ssseg(options: SegFormerOptions) -> KeyMap:
    return KeyMap(
        (
            ("convs.{}.0.", "head.convs.{}.conv."),
            ("convs.{}.1.", "head.convs.{}.norm."),
            ("decoder.0.", "head.fuse."),
            ("decoder.1.", "head.norm."),
            ("decoder.4.", "head.classifier."),
        ),
        _part_fusion,
    )


def _mmseg(options: SegFormerOptions) -> KeyMap:
    return KeyMap(
        (
            ("decode_head.convs.{}.conv.", "head.convs.{}.conv."),
            ("decode_head.convs.{}.bn.", "head.convs.{}.norm."),
            ("decode_head.fusion_conv.conv.", "head.fuse."),
            ("decode_head.fusion_conv.bn.", "head.norm."),
            ("decode_head.conv_seg.", "head.classifier."),
        ),
        _part_fusion,
    )


def _as_convolutions(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    linear = {name: each[:, :, None, None] for name, each in tensors.items() if _is_projection(name) and each.ndim == 2}
    return _part_fusion({**tensors, **linear}, coarsest_first=True)


def _is_projection(name: str) -> bool:
    return name.startswith("head.convs.") and name.endswith(".weight")


def _transformers(options: SegFormerOptions) -> KeyMap:
    return KeyMap(
        (
            ("decode_head.linear_c.{}.proj.", "head.convs.{}."),
            ("decode_head.linear_fuse.", "head.fuse."),
            ("decode_head.batch_norm.", "head.norm."),
            ("decode_head.classifier.", "head.classifier."),
        ),
        _as_convolutions,
    )


FAMILY = register_family(
    Family(
        name="segformer",
        title="SegFormer",
        paper="https://arxiv.org/abs/2105.15203",
        options=SegFormerOptions,
        build=_build,
        levels=4,
        key_maps={"ssseg": _ssseg, "mmseg": _mmseg, "transformers": _transformers},
        backbone_prefixes={"transformers": "segformer.encoder."},
        read_options=_read_options,
    )
)
