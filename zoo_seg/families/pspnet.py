"""PSPNet: pyramid pooling in front of a 3x3 convolution. Zhao et al., https://arxiv.org/abs/1612.01105"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zoo_seg.families.fcn import MMSEG_AUX, SSSEG_AUX, aux_head, read_widths
from zoo_seg.families.registry import Family, Heads, register_family
from zoo_seg.keymap import KeyMap
from zoo_seg.layers.blocks import ConvNormAct
from zoo_seg.layers.resample import pooling_matrix, tap_matrix

POOL_SIZES = (1, 2, 3, 6)


class PSPHead(nn.Module):
    """Backbone maps, finest first -> logits (N, num_classes, h, w) at the stride of the last map.

    The paper's bottleneck is a 3x3 convolution over [x, up(p1), up(p2), up(p3), up(p6)], linear in each
    part, so its weight is kept in parts: `bottleneck` for x and `taps` for the pooled parts. Those have at
    most 6x6 cells; their cells are multiplied by the nine taps first and spread over the map afterwards.
    Half of the multiplications vanish, the sum stays the same.

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
        super().__init__()
        self.align_corners = align_corners
        width = in_channels[self.level]
        self.branches = nn.ModuleList(ConvNormAct(width, channels, 1) for _ in POOL_SIZES)
        self.bottleneck = nn.Conv2d(width, channels, 3, padding=1, bias=False)
        self.taps = nn.ModuleList(nn.ConvTranspose2d(channels, channels, 3, stride=3, bias=False) for _ in POOL_SIZES)
        self.norm = nn.BatchNorm2d(channels)
        self.act = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout2d(0.1)
        self.classifier = nn.Conv2d(channels, num_classes, 1)
        bound = (9 * (width + len(POOL_SIZES) * channels)) ** -0.5  # torch's default for the undivided convolution
        for part in (self.bottleneck, *self.taps):
            nn.init.uniform_(part.weight, -bound, bound)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        x = features[self.level]
        total = self.bottleneck(x).add_(self._spread(self._branch_outputs(x), x))
        logits: Tensor = self.classifier(self.dropout(self.act(self.norm(total))))
        return logits

    def _branch_outputs(self, x: Tensor) -> list[Tensor]:
        """The pooled branches before they are enlarged: (N, channels, s, s) for each pool size s."""
        count, channels, height, width = x.shape
        rows = torch.cat([pooling_matrix(height, size, x) for size in POOL_SIZES])
        strips = (rows @ x.permute(0, 2, 3, 1).flatten(2)).view(count, -1, width, channels)
        parts = torch.split(strips, list(POOL_SIZES), dim=1)
        pooled = [pooling_matrix(width, size, x) @ strip for size, strip in zip(POOL_SIZES, parts, strict=True)]
        return [branch(cells.permute(0, 3, 1, 2)) for branch, cells in zip(self.branches, pooled, strict=True)]

    def _spread(self, pooled: list[Tensor], like: Tensor) -> Tensor:
        """The bottleneck's answer to the enlarged branches, (N, channels, H, W)."""
        height, width = like.shape[-2:]
        rows = torch.cat([tap_matrix(size, height, like, self.align_corners) for size in POOL_SIZES], dim=1)
        strips = [
            tap(cells) @ tap_matrix(size, width, like, self.align_corners).T  # (N, channels, 3s, W)
            for tap, cells, size in zip(self.taps, pooled, POOL_SIZES, strict=True)
        ]
        together = torch.cat(strips, dim=2)
        del strips  # memory is scarcest here
        return rows @ together


@dataclass(frozen=True)
class PSPNetOptions:
    """`channels` is the width of the head, `aux_channels` of the auxiliary head (None: the same)."""

    channels: int = 512
    aux_channels: int | None = None


def _build(channels: Sequence[int], num_classes: int, options: PSPNetOptions, *, align_corners: bool) -> Heads:
    head = PSPHead(channels, num_classes, channels=options.channels, align_corners=align_corners)
    return Heads(head, [aux_head(channels, num_classes, options.aux_channels or options.channels)])


def _part_bottleneck(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Both projects keep the bottleneck over [x, pooled parts] whole; see `PSPHead` for the parts."""
    branches = [tensors.get(f"head.branches.{i}.conv.weight") for i in range(len(POOL_SIZES))]
    widths = [branch.shape[0] for branch in branches if branch is not None and branch.ndim == 4]
    whole = tensors.get("head.bottleneck.weight")
    if whole is None or whole.ndim != 4 or whole.shape[1] <= sum(widths):
        return tensors  # something is missing or misshapen, which will be said when it is put into the network
    dense, *pooled = torch.split(whole, [whole.shape[1] - sum(widths), *widths], dim=1)
    taps = {f"head.taps.{i}.weight": part.transpose(0, 1) for i, part in enumerate(pooled)}
    return {**tensors, "head.bottleneck.weight": dense, **taps}


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
