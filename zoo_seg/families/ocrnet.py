"""OCRNet: every pixel attends to the objects that a coarse head sees. Yuan et al., https://arxiv.org/abs/1909.11065

As MMSegmentation and SSSegmentation train it, on HRNet (`fuse`) and on a dilated ResNet; their heads differ in the
coarse one's width and in the sizes of kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zoo_seg.families.fcn import FCNHead
from zoo_seg.families.registry import Family, Heads, Shapes, read_width, register_family
from zoo_seg.keymap import KeyMap
from zoo_seg.layers.blocks import ConvNormAct
from zoo_seg.layers.fused import FusedConvNormAct
from zoo_seg.layers.resample import resize


class OCRHead(nn.Module):
    """Backbone feature maps, finest first -> logits (N, num_classes, h, w) at the stride of the map it reads.

    Args:
        in_channels: channels of the backbone's feature maps.
        num_classes: classes of the logits, and objects that pixels attend to.
        channels: width of the pixels' features.
        key_channels: in which pixels and objects are compared.
        coarse_channels: width of the coarse head.
        coarse_kernel_size: of its convolution.
        kernel_size: of the convolution over features and context.
        fuse: both heads read all maps, enlarged to the finest and concatenated; else the last one, the coarse head the
            one before.
        align_corners: of the resizes.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        *,
        channels: int = 512,
        key_channels: int = 256,
        coarse_channels: int = 512,
        coarse_kernel_size: int = 3,
        kernel_size: int = 1,
        fuse: bool = False,
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        self.fuse, self.align_corners = fuse, align_corners
        self.coarse = FCNHead(
            in_channels,
            num_classes,
            channels=coarse_channels,
            num_convs=1,
            level=-2,
            kernel_size=coarse_kernel_size,
            fuse=fuse,
            align_corners=align_corners,
        )
        self.reduce: nn.Module
        if fuse:
            self.reduce = FusedConvNormAct(in_channels, channels, 3, align_corners=align_corners)
        else:
            self.reduce = ConvNormAct(in_channels[-1], channels, 3)
        self.query, self.key = (
            nn.Sequential(ConvNormAct(channels, key_channels, 1), ConvNormAct(key_channels, key_channels, 1))
            for _ in range(2)
        )
        self.value = ConvNormAct(channels, key_channels, 1)
        conv = nn.Conv2d(key_channels, channels, 1, bias=False)
        self.out = nn.ModuleDict({"conv": conv, "norm": nn.BatchNorm2d(channels)})
        self.mix: nn.Module
        if kernel_size == 1:
            self.mix = FusedConvNormAct((channels, channels), channels, 1)  # the widest maps are not copied
        else:
            self.mix = ConvNormAct(2 * channels, channels, kernel_size)
        self.dropout = nn.Dropout2d(0.1)
        self.classifier = nn.Conv2d(channels, num_classes, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        return self.forward_train(features)[0]

    def forward_train(self, features: Sequence[Tensor]) -> list[Tensor]:
        """The logits, and those of the coarse head."""
        coarse: Tensor = self.coarse(features)
        x: Tensor = self.reduce(features if self.fuse else features[-1])
        context = self._context(x, resize(coarse, (x.shape[-2], x.shape[-1]), self.align_corners))
        parts = (context, x)
        mixed = self.mix(parts if isinstance(self.mix, FusedConvNormAct) else torch.cat(parts, dim=1))
        return [self.classifier(self.dropout(mixed)), coarse]

    def _context(self, x: Tensor, coarse: Tensor) -> Tensor:
        """What the objects that a pixel resembles look like; (N, channels, h, w)."""
        shares = coarse.flatten(2).softmax(dim=2)  # (N, K, h * w), of the pixels in each object
        objects = (shares @ x.flatten(2).mT).mT[..., None]  # (N, channels, K, 1)
        query, key = self.query(x).flatten(2).mT, self.key(objects).flatten(2)
        alike = (query @ (key * key.shape[1] ** -0.5)).softmax(dim=2)  # (N, h * w, K)
        # The projection is linear and the weights sum to one, so objects pass it in place of pixels. While training,
        # BatchNorm has to see the pixels.
        projected = self.out["conv"](self.value(objects))
        if not self.training:
            projected = self.out["norm"](projected)
        found = (alike @ projected.flatten(2).mT).mT.unflatten(2, (x.shape[-2], x.shape[-1]))
        context: Tensor = self.out["norm"](found) if self.training else found
        return context.relu_()


@dataclass(frozen=True)
class OCRNetOptions:
    """See `OCRHead`; `coarse_channels` None is the width of the head. With `fuse` four maps are read."""

    channels: int = 512
    key_channels: int = 256
    coarse_channels: int | None = None
    coarse_kernel_size: int = 3
    kernel_size: int = 1
    fuse: bool = False


def _build(channels: Sequence[int], num_classes: int, options: OCRNetOptions, *, align_corners: bool) -> Heads:
    return Heads(
        OCRHead(
            channels,
            num_classes,
            channels=options.channels,
            key_channels=options.key_channels,
            coarse_channels=options.coarse_channels or options.channels,
            coarse_kernel_size=options.coarse_kernel_size,
            kernel_size=options.kernel_size,
            fuse=options.fuse,
            align_corners=align_corners,
        )
    )


_CONVS = (
    ("bottleneck.", "reduce."),
    ("object_context_block.query_project.{}.", "query.{}."),
    ("object_context_block.key_project.{}.", "key.{}."),
    ("object_context_block.value_project.", "value."),
    ("object_context_block.out_project.", "out."),
    ("object_context_block.bottleneck.", "mix."),
)


def _renamed(before: str, conv: str, norm: str) -> list[tuple[str, str]]:
    parts = ((conv, "conv."), (norm, "norm."))
    return [(f"{before}{theirs}{a}", f"head.{ours}{b}") for theirs, ours in _CONVS for a, b in parts]


def _ssseg(options: OCRNetOptions) -> KeyMap:
    return KeyMap(
        (
            ("auxiliary_decoder.0.", "head.coarse.convs.0.conv."),
            ("auxiliary_decoder.1.", "head.coarse.convs.0.norm."),
            ("auxiliary_decoder.4.", "head.coarse.classifier."),
            *_renamed("", "0.", "1."),
            ("decoder.1.", "head.classifier."),
        )
    )


def _mmseg(options: OCRNetOptions) -> KeyMap:
    return KeyMap(
        (
            ("decode_head.0.convs.0.conv.", "head.coarse.convs.0.conv."),
            ("decode_head.0.convs.0.bn.", "head.coarse.convs.0.norm."),
            ("decode_head.0.conv_seg.", "head.coarse.classifier."),
            *_renamed("decode_head.1.", "conv.", "bn."),
            ("decode_head.1.conv_seg.", "head.classifier."),
        )
    )


def _read_options(shapes: Shapes) -> dict[str, Any]:
    """Of the convolutions' weights: (out, in, k, k)."""
    weights = {
        "key_channels": ("head.value.conv.weight", 0),
        "coarse_channels": ("head.coarse.convs.0.conv.weight", 0),
        "coarse_kernel_size": ("head.coarse.convs.0.conv.weight", 2),
        "kernel_size": ("head.mix.conv.weight", 2),
    }
    found = {option: shapes[name][axis] for option, (name, axis) in weights.items() if len(shapes.get(name, ())) == 4}
    return {**read_width(shapes), **found}


FAMILY = register_family(
    Family(
        name="ocrnet",
        title="OCRNet",
        paper="https://arxiv.org/abs/1909.11065",
        options=OCRNetOptions,
        build=_build,
        levels=lambda options: 4 if options.fuse else 2,
        key_maps={"ssseg": _ssseg, "mmseg": _mmseg},
        classifiers=("head.classifier.", "head.coarse.classifier."),
        read_options=_read_options,
    )
)
