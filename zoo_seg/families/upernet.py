"""UPerNet: a feature pyramid on top of pyramid pooling. Xiao et al., https://arxiv.org/abs/1807.10221"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from zoo_seg.families.fcn import SSSEG_AUX, aux_head, read_widths
from zoo_seg.families.registry import Family, Heads, register_family
from zoo_seg.keymap import KeyMap
from zoo_seg.layers.blocks import ConvNormAct
from zoo_seg.layers.enlarged import Taps, convolve_enlarged, init_parts, part_weight, weights_of
from zoo_seg.layers.pyramid import POOL_SIZES, PyramidPooling
from zoo_seg.layers.resample import resize

_LEVELS = 4


class UPerHead(nn.Module):
    """Backbone feature maps, finest first -> logits (N, num_classes, h, w) at the stride of the finest map.

    The paper's last 3x3 convolution reads all levels, enlarged to the finest, as one. Its weight is kept in parts:
    `fuse` for the finest level and `taps` for the others, see `layers.enlarged`. Most of the multiplications of the
    others vanish, the sum stays the same.

    Args:
        in_channels: channels of the backbone's feature maps.
        num_classes: classes of the logits.
        channels: width of all convolutions.
        align_corners: of the resizes.
    """

    def __init__(
        self, in_channels: Sequence[int], num_classes: int, *, channels: int = 512, align_corners: bool = False
    ) -> None:
        super().__init__()
        self.align_corners = align_corners
        *finer, coarsest = in_channels
        self.pyramid = PyramidPooling(coarsest, channels, align_corners)
        self.lateral = nn.ModuleList(ConvNormAct(width, channels, 1) for width in finer)
        self.output = nn.ModuleList(ConvNormAct(channels, channels, 3) for _ in finer)
        self.fuse = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        taps = [Taps(channels, channels) for _ in finer]
        self.taps = nn.ModuleList(taps)
        self.norm = nn.BatchNorm2d(channels)
        self.act = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout2d(0.1)
        self.classifier = nn.Conv2d(channels, num_classes, 1)
        init_parts(self.fuse, taps)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        *finer, coarsest = features
        known = self.pyramid(coarsest)
        levels = [known]
        for x, lateral, output in reversed(list(zip(finer, self.lateral, self.output, strict=True))):
            x = lateral(x)
            known = x + resize(known, (x.shape[-2], x.shape[-1]), self.align_corners)
            levels.insert(0, output(known))
        finest, *coarser = levels
        size = (finest.shape[-2], finest.shape[-1])
        coarse = convolve_enlarged(weights_of(self.taps), coarser, size, self.align_corners)
        total = self.fuse(finest).add_(coarse)
        logits: Tensor = self.classifier(self.dropout(self.act(self.norm(total))))
        return logits


@dataclass(frozen=True)
class UPerNetOptions:
    """`channels` is the width of the head, `aux_channels` of the auxiliary head (None: the same)."""

    channels: int = 512
    aux_channels: int | None = None


def _build(channels: Sequence[int], num_classes: int, options: UPerNetOptions, *, align_corners: bool) -> Heads:
    head = UPerHead(channels, num_classes, channels=options.channels, align_corners=align_corners)
    return Heads(head, [aux_head(channels, num_classes, options.aux_channels or options.channels)])


def _part_weights(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """All projects keep the pyramid's bottleneck and the last 3x3 convolution whole."""
    tensors = part_weight(tensors, "head.pyramid.bottleneck", "head.pyramid.taps", len(POOL_SIZES))
    return part_weight(tensors, "head.fuse", "head.taps", _LEVELS - 1)


def _ssseg(options: UPerNetOptions) -> KeyMap:
    return KeyMap(
        (
            ("ppm_net.branches.{}.1.", "head.pyramid.branches.{}.conv."),
            ("ppm_net.branches.{}.2.", "head.pyramid.branches.{}.norm."),
            ("ppm_net.bottleneck.0.", "head.pyramid.bottleneck."),
            ("ppm_net.bottleneck.1.", "head.pyramid.norm."),
            ("lateral_convs.{}.0.", "head.lateral.{}.conv."),
            ("lateral_convs.{}.1.", "head.lateral.{}.norm."),
            ("fpn_convs.{}.0.", "head.output.{}.conv."),
            ("fpn_convs.{}.1.", "head.output.{}.norm."),
            ("decoder.0.", "head.fuse."),
            ("decoder.1.", "head.norm."),
            ("decoder.4.", "head.classifier."),
            *SSSEG_AUX,
        ),
        _part_weights,
    )


def _mmseg(options: UPerNetOptions) -> KeyMap:
    return KeyMap(_rules("bn", "conv_seg"), _part_weights)


def _transformers(options: UPerNetOptions) -> KeyMap:
    """Of UperNetForSemanticSegmentation, and of BeitForSemanticSegmentation."""
    return KeyMap(_rules("batch_norm", "classifier") + _rules("bn", "classifier"), _part_weights)


def _rules(norm: str, classifier: str) -> tuple[tuple[str, str], ...]:
    return (
        ("decode_head.psp_modules.{}.1.conv.", "head.pyramid.branches.{}.conv."),
        (f"decode_head.psp_modules.{{}}.1.{norm}.", "head.pyramid.branches.{}.norm."),
        ("decode_head.bottleneck.conv.", "head.pyramid.bottleneck."),
        (f"decode_head.bottleneck.{norm}.", "head.pyramid.norm."),
        ("decode_head.lateral_convs.{}.conv.", "head.lateral.{}.conv."),
        (f"decode_head.lateral_convs.{{}}.{norm}.", "head.lateral.{}.norm."),
        ("decode_head.fpn_convs.{}.conv.", "head.output.{}.conv."),
        (f"decode_head.fpn_convs.{{}}.{norm}.", "head.output.{}.norm."),
        ("decode_head.fpn_bottleneck.conv.", "head.fuse."),
        (f"decode_head.fpn_bottleneck.{norm}.", "head.norm."),
        (f"decode_head.{classifier}.", "head.classifier."),
        ("auxiliary_head.convs.0.conv.", "aux_heads.0.convs.0.conv."),
        (f"auxiliary_head.convs.0.{norm}.", "aux_heads.0.convs.0.norm."),
        (f"auxiliary_head.{classifier}.", "aux_heads.0.classifier."),
    )


FAMILY = register_family(
    Family(
        name="upernet",
        title="UPerNet",
        paper="https://arxiv.org/abs/1807.10221",
        options=UPerNetOptions,
        build=_build,
        levels=_LEVELS,
        key_maps={"ssseg": _ssseg, "mmseg": _mmseg, "transformers": _transformers},
        read_options=read_widths,
    )
)
