"""DDRNet: a detail and a context branch that inform each other. Hong et al., https://arxiv.org/abs/2101.06085

A whole network: its trunk is a backbone that no other family stands on. Names and widths are MMSegmentation's, whose
DDRNet takes multiples of 8 only; this one takes any size, and computes the same at those. The published pixel loss is
`loss="ohem"` on both heads, with a limit of 0.9 where ours has 0.7, and Cityscapes' class weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from zoo_seg.backbones.registry import register_backbone
from zoo_seg.errors import OptionError
from zoo_seg.families.pidnet import ContextPyramid, PIDHead, basic_blocks, bottlenecks, conv_bn, create_trunk
from zoo_seg.families.registry import Family, Heads, read_width, register_family
from zoo_seg.keymap import KeyMap
from zoo_seg.layers.resample import resize


class DDRNetTrunk(nn.Module):
    """(N, in_chans, H, W) -> maps at stride 8: of the detail branch halfway, and of both branches at the end.

    Args:
        width: channels of the stem.
        in_chans: channels of the image.
        levels: how many of the last maps to return; None is both.

    Raises:
        OptionError: there are not so many.
    """

    def __init__(self, width: int, *, in_chans: int = 3, levels: int | None = None) -> None:
        super().__init__()
        if levels is not None and not 1 <= levels <= 2:
            raise OptionError(f"{levels} feature maps are asked for; DDRNet has 1 or 2")
        self._skipped = 2 - (levels or 2)
        self.channels: tuple[int, ...] = (2 * width, 4 * width)[self._skipped :]
        self.strides: tuple[int, ...] = (8, 8)[self._skipped :]
        self.stem = nn.Sequential(
            conv_bn(in_chans, width, 3, 2, relu=True),
            conv_bn(width, width, 3, 2, relu=True),
            nn.Sequential(*basic_blocks(width, width, 2)),
            nn.ReLU(),
            nn.Sequential(*basic_blocks(width, 2 * width, 2, 2)),
            nn.ReLU(),
        )
        self.context_branch_layers = nn.ModuleList(
            nn.Sequential(*blocks)
            for blocks in (
                basic_blocks(2 * width, 4 * width, 2, 2),
                basic_blocks(4 * width, 8 * width, 2, 2),
                bottlenecks(8 * width, 8 * width, 1, 2),
            )
        )
        self.spatial_branch_layers = nn.ModuleList(
            nn.Sequential(*blocks)
            for blocks in (
                basic_blocks(2 * width, 2 * width, 2),
                basic_blocks(2 * width, 2 * width, 2),
                bottlenecks(2 * width, 2 * width, 1),
            )
        )
        self.compression_1, self.compression_2 = conv_bn(4 * width, 2 * width), conv_bn(8 * width, 2 * width)
        self.down_1 = conv_bn(2 * width, 4 * width, 3, 2)
        self.down_2 = nn.Sequential(conv_bn(2 * width, 4 * width, 3, 2, relu=True), conv_bn(4 * width, 8 * width, 3, 2))
        self.spp = ContextPyramid(16 * width, 128, 4 * width, side_by_side=False)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.stem(x)
        size = (x.shape[-2], x.shape[-1])
        context, detail = self.context_branch_layers[0](x), self.spatial_branch_layers[0](x)
        compressed = resize(self.compression_1(context.relu()), size)
        context += self.down_1(detail.relu())
        early = detail.add_(compressed)

        context, detail = self.context_branch_layers[1](context.relu()), self.spatial_branch_layers[1](early.relu())
        compressed = resize(self.compression_2(context.relu()), size)
        context += self.down_2(detail.relu())
        detail += compressed

        context = self.spp(self.context_branch_layers[2](context.relu()))
        out = self.spatial_branch_layers[2](detail.relu()).add_(resize(context, size))
        return [early, out][self._skipped :]


_WIDTHS = {"ddrnet_23_slim": 32, "ddrnet_23": 64}
_BLOCKS = ("stem.{}.{}.", "context_branch_layers.{}.{}.", "spatial_branch_layers.{}.{}.")
_PARTS = ("stem.", "context_branch_layers.", "spatial_branch_layers.", "compression_{}.", "down_{}.", "spp.")
_TRUNK = KeyMap(
    (
        *((f"{block}downsample.0.", f"{block}downsample.conv.") for block in _BLOCKS),
        *((f"{block}downsample.1.", f"{block}downsample.bn.") for block in _BLOCKS),
        *((part, part) for part in _PARTS),
    )
)
for _name, _width in _WIDTHS.items():
    _trunk = partial(DDRNetTrunk, _width)
    register_backbone(_name, partial(create_trunk, "DDRNet", _trunk), key_maps={"mmseg": _TRUNK})


@dataclass(frozen=True)
class DDRNetOptions:
    """`channels` is the width of the head and of the detail branch's auxiliary head."""

    channels: int = 64


def _build(channels: Sequence[int], num_classes: int, options: DDRNetOptions, *, align_corners: bool) -> Heads:
    detail = PIDHead(channels, num_classes, options.channels, level=0)
    return Heads(PIDHead(channels, num_classes, options.channels, level=-1), [detail])


def _mmseg(options: DDRNetOptions) -> KeyMap:
    return KeyMap(
        (
            ("decode_head.head.0.", "head.conv."),
            ("decode_head.head.1.", "head.norm."),
            ("decode_head.conv_seg.", "head.classifier."),
            ("decode_head.aux_head.0.", "aux_heads.0.conv."),
            ("decode_head.aux_head.1.", "aux_heads.0.norm."),
            ("decode_head.aux_cls_seg.", "aux_heads.0.classifier."),
        )
    )


FAMILY = register_family(
    Family(
        name="ddrnet",
        title="DDRNet",
        paper="https://arxiv.org/abs/2101.06085",
        options=DDRNetOptions,
        build=_build,
        levels=2,
        key_maps={"mmseg": _mmseg},
        read_options=read_width,
        backbones=tuple(_WIDTHS),
    )
)
