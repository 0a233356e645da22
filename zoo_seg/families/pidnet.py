"""PIDNet: a detail, a context and a boundary branch side by side. Xu et al., https://arxiv.org/abs/2206.02066

A whole network: its trunk is a backbone that no other family stands on. Names and widths are MMSegmentation's.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo_seg.backbones.registry import register_backbone
from zoo_seg.errors import OptionError
from zoo_seg.families.registry import Family, Heads, read_width, register_family
from zoo_seg.keymap import KeyMap
from zoo_seg.layers.losses import LossSum, SegmentationLoss, pixel_losses
from zoo_seg.layers.readout import HeadOutput
from zoo_seg.layers.resample import resize


def conv_bn(in_channels: int, channels: int, kernel: int = 1, stride: int = 1, *, relu: bool = False) -> nn.Sequential:
    """A convolution without bias that keeps the size (but for its stride), BatchNorm, and ReLU on request."""
    conv = nn.Conv2d(in_channels, channels, kernel, stride, kernel // 2, bias=False)
    parts = OrderedDict[str, nn.Module](conv=conv, bn=nn.BatchNorm2d(channels))
    return nn.Sequential(OrderedDict(parts, relu=nn.ReLU(inplace=True)) if relu else parts)


def bn_conv(in_channels: int, channels: int, kernel: int = 1, groups: int = 1) -> nn.Sequential:
    """BatchNorm and ReLU in front of the convolution."""
    conv = nn.Conv2d(in_channels, channels, kernel, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(OrderedDict(bn=nn.BatchNorm2d(in_channels), relu=nn.ReLU(inplace=True), conv=conv))


class _Block(nn.Module):
    """Convolutions, a shortcut, and ReLU if `relu`; (N, in, H, W) -> (N, out, H / stride, W / stride)."""

    def __init__(self, convs: Sequence[nn.Module], in_channels: int, out: int, stride: int, relu: bool) -> None:
        super().__init__()
        self.count = len(convs)
        for i, conv in enumerate(convs, 1):
            self.add_module(f"conv{i}", conv)
        same = stride == 1 and in_channels == out
        self.downsample = None if same else conv_bn(in_channels, out, stride=stride)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for i in range(1, self.count + 1):
            y = self.get_submodule(f"conv{i}")(y)
        y += x if self.downsample is None else self.downsample(x)
        return y.relu_() if self.relu else y


def basic_blocks(in_channels: int, out: int, count: int, stride: int = 1) -> list[_Block]:
    """Two 3x3 convolutions each; ReLU follows all but the last."""
    blocks = []
    for i in range(count):
        width, step = (in_channels, stride) if i == 0 else (out, 1)
        convs = [conv_bn(width, out, 3, step, relu=True), conv_bn(out, out, 3)]
        blocks.append(_Block(convs, width, out, step, relu=i < count - 1))
    return blocks


def bottlenecks(in_channels: int, channels: int, count: int, stride: int = 1) -> list[_Block]:
    """A 1x1, a 3x3 and a 1x1 convolution each, which doubles the channels; no ReLU follows."""
    blocks = []
    for i in range(count):
        width, step = (in_channels, stride) if i == 0 else (2 * channels, 1)
        first, middle = conv_bn(width, channels, relu=True), conv_bn(channels, channels, 3, step, relu=True)
        convs = [first, middle, conv_bn(channels, 2 * channels)]
        blocks.append(_Block(convs, width, 2 * channels, step, relu=False))
    return blocks


class _Guided(nn.Module):
    """Detail and context mixed at every pixel by how alike they are (the paper's Pag)."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.f_i, self.f_p = conv_bn(in_channels, channels), conv_bn(in_channels, channels)

    def forward(self, detail: Tensor, context: Tensor) -> Tensor:
        size = (detail.shape[-2], detail.shape[-1])
        alike = (self.f_p(detail) * resize(self.f_i(context), size)).sum(1, keepdim=True).sigmoid()
        mixed: Tensor = alike * resize(context, size) + (1 - alike) * detail
        return mixed


class ContextPyramid(nn.Module):
    """Context pooled over windows of 5, 9 and 17 pixels and over the whole map.

    `side_by_side` (PAPPM) adds each to the unpooled map; without it (DDRNet's DAPPM) each builds on the one before.
    """

    def __init__(self, in_channels: int, channels: int, out: int, *, side_by_side: bool) -> None:
        super().__init__()
        pools = [nn.AvgPool2d(4 * step + 1, 2 * step, 2 * step) for step in (1, 2, 4)]
        self.scales = nn.ModuleList([bn_conv(in_channels, channels)])
        self.scales.extend(nn.Sequential(pool, bn_conv(in_channels, channels)) for pool in pools)
        self.scales.append(nn.Sequential(nn.AdaptiveAvgPool2d(1), bn_conv(in_channels, channels)))
        self.processes: nn.Module
        if side_by_side:
            self.processes = bn_conv(4 * channels, 4 * channels, 3, groups=4)
        else:
            self.processes = nn.ModuleList(bn_conv(channels, channels, 3) for _ in range(4))
        self.compression, self.shortcut = bn_conv(5 * channels, out), bn_conv(in_channels, out)

    def forward(self, x: Tensor) -> Tensor:
        size = (x.shape[-2], x.shape[-1])
        first, *pooled = (scale(x) for scale in self.scales)
        maps = [first]
        if isinstance(self.processes, nn.ModuleList):
            for process, each in zip(self.processes, pooled, strict=True):
                maps.append(process(resize(each, size) + maps[-1]))
        else:
            maps.append(self.processes(torch.cat([resize(each, size) + first for each in pooled], dim=1)))
        out: Tensor = self.compression(torch.cat(maps, dim=1)) + self.shortcut(x)
        return out


class _LightFusion(nn.Module):
    """Detail where the boundary branch fires, context elsewhere (the paper's Light-Bag)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.f_p, self.f_i = conv_bn(channels, channels), conv_bn(channels, channels)

    def forward(self, detail: Tensor, context: Tensor, boundary: Tensor) -> Tensor:
        share = boundary.sigmoid()
        out: Tensor = self.f_p((1 - share) * context + detail) + self.f_i(context + share * detail)
        return out


class _Fusion(nn.Module):
    """The same with one 3x3 convolution (Bag)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = bn_conv(channels, channels, 3)

    def forward(self, detail: Tensor, context: Tensor, boundary: Tensor) -> Tensor:
        share = boundary.sigmoid()
        out: Tensor = self.conv(share * detail + (1 - share) * context)
        return out


class PIDNetTrunk(nn.Module):
    """(N, in_chans, H, W) -> maps at stride 8: of the detail branch, of the boundary branch, and both with the context.

    MMSegmentation's takes multiples of 8 only. This one takes any size, and computes the same at those.

    Args:
        width: channels of the stem.
        pyramid: channels of each of the context pyramid's scales.
        deep: the large network: one more block everywhere, and the heavier modules.
        in_chans: channels of the image.
        levels: how many of the last maps to return; None is all three.

    Raises:
        OptionError: there are not so many.
    """

    def __init__(
        self, width: int, pyramid: int, *, deep: bool = False, in_chans: int = 3, levels: int | None = None
    ) -> None:
        super().__init__()
        if levels is not None and not 1 <= levels <= 3:
            raise OptionError(f"{levels} feature maps are asked for; PIDNet has 1 to 3")
        self._skipped = 3 - (levels or 3)
        self.channels: tuple[int, ...] = (2 * width, 2 * width, 4 * width)[self._skipped :]
        self.strides: tuple[int, ...] = (8, 8, 8)[self._skipped :]
        few, many = (3, 4) if deep else (2, 3)
        self.stem = nn.Sequential(
            conv_bn(in_chans, width, 3, 2, relu=True),
            conv_bn(width, width, 3, 2, relu=True),
            nn.Sequential(*basic_blocks(width, width, few)),
            nn.ReLU(),
            nn.Sequential(*basic_blocks(width, 2 * width, few, 2)),
            nn.ReLU(),
        )
        self.i_branch_layers = nn.ModuleList(
            nn.Sequential(*blocks)
            for blocks in (
                basic_blocks(2 * width, 4 * width, many, 2),
                basic_blocks(4 * width, 8 * width, many, 2),
                bottlenecks(8 * width, 8 * width, 2, 2),
            )
        )
        self.p_branch_layers = nn.ModuleList(
            nn.Sequential(*blocks)
            for blocks in (
                basic_blocks(2 * width, 2 * width, few),
                basic_blocks(2 * width, 2 * width, few),
                bottlenecks(2 * width, 2 * width, 1),
            )
        )
        thin = 2 * width if deep else width
        second = basic_blocks(thin, thin, 1)[0] if deep else nn.Sequential(*bottlenecks(thin, thin, 1))
        last = nn.Sequential(*bottlenecks(2 * width, 2 * width, 1))
        self.d_branch_layers = nn.ModuleList([basic_blocks(2 * width, thin, 1)[0], second, last])
        self.compression_1, self.compression_2 = conv_bn(4 * width, 2 * width), conv_bn(8 * width, 2 * width)
        self.pag_1, self.pag_2 = _Guided(2 * width, width), _Guided(2 * width, width)
        self.diff_1, self.diff_2 = conv_bn(4 * width, thin, 3), conv_bn(8 * width, 2 * width, 3)
        self.spp = ContextPyramid(16 * width, pyramid, 4 * width, side_by_side=not deep)
        self.dfm = _Fusion(4 * width) if deep else _LightFusion(4 * width)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.stem(x)
        size = (x.shape[-2], x.shape[-1])
        context = self.i_branch_layers[0](x).relu()
        detail = self.pag_1(self.p_branch_layers[0](x), self.compression_1(context))
        boundary = self.d_branch_layers[0](x) + resize(self.diff_1(context), size)
        early = detail

        context = self.i_branch_layers[1](context).relu()
        detail = self.pag_2(self.p_branch_layers[1](detail.relu()), self.compression_2(context))
        boundary = self.d_branch_layers[1](boundary.relu()) + resize(self.diff_2(context), size)

        context = resize(self.spp(self.i_branch_layers[2](context)), size)
        edges = self.d_branch_layers[2](boundary.relu())
        out = self.dfm(self.p_branch_layers[2](detail.relu()), context, edges)
        return [early, boundary, out][self._skipped :]


def create_trunk(
    title: str,
    build: Callable[..., nn.Module],
    *,
    output_stride: int | None = None,
    in_chans: int = 3,
    levels: int | None = None,
    pretrained: bool = False,
) -> nn.Module:
    """`Backbone.create` of a trunk that belongs to one family: of output stride 8, without ImageNet weights.

    Raises:
        OptionError: another output stride, or weights, are asked for.
    """
    if output_stride not in (None, 8):
        raise OptionError(f"output_stride is {output_stride}; {title}'s is 8, leave it out")
    if pretrained:
        raise OptionError(f"there are no ImageNet weights of {title}; leave backbone_pretrained out")
    return build(in_chans=in_chans, levels=levels)


_SIZES = {"pidnet_small": (32, 96, False), "pidnet_medium": (64, 96, False), "pidnet_large": (64, 112, True)}
_PARTS = ("stem", "i_branch_layers", "p_branch_layers", "d_branch_layers", "compression_{}", "pag_{}", "diff_{}")
_TRUNK = KeyMap(tuple((f"{part}.", f"{part}.") for part in (*_PARTS, "spp", "dfm")))
for _name, (_width, _pyramid, _deep) in _SIZES.items():
    _trunk = partial(PIDNetTrunk, _width, _pyramid, deep=_deep)
    register_backbone(_name, partial(create_trunk, "PIDNet", _trunk), key_maps={"mmseg": _TRUNK})


class PIDHead(nn.Module):
    """BatchNorm, ReLU, a 3x3 convolution, BatchNorm, ReLU and the classifier, on one of the trunk's maps.

    Args:
        in_channels: channels of the trunk's maps.
        out: channels of the logits.
        channels: width of the convolution.
        level: which map to read, counted as in a list.
    """

    def __init__(self, in_channels: Sequence[int], out: int, channels: int, level: int) -> None:
        super().__init__()
        self.level = level
        self.conv = bn_conv(in_channels[level], channels, 3)
        self.norm, self.act = nn.BatchNorm2d(channels), nn.ReLU(inplace=True)
        self.dropout = nn.Dropout2d(0.1)
        self.classifier = nn.Conv2d(channels, out, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        logits: Tensor = self.classifier(self.dropout(self.act(self.norm(self.conv(features[self.level])))))
        return logits


@dataclass(frozen=True)
class PIDNetOptions:
    """`channels` is the width of the head and of the detail branch's auxiliary head."""

    channels: int = 128


def _build(channels: Sequence[int], num_classes: int, options: PIDNetOptions, *, align_corners: bool) -> Heads:
    detail = PIDHead(channels, num_classes, options.channels, level=0)
    boundary = PIDHead(channels, 1, channels[-1] // 4, level=1)
    return Heads(PIDHead(channels, num_classes, options.channels, level=-1), [detail, boundary])


_BOUNDARY_WEIGHT = 20.0
_BOUNDARY = 0.8
"""Probability from which on a pixel counts as one of a boundary."""


def _loss(outputs: Sequence[HeadOutput], labels: Tensor, pixel: SegmentationLoss, aux_weight: float) -> list[LossSum]:
    """The pixel loss of the logits, the detail branch's weighted by `aux_weight`, and the boundary's two.

    Those are cross entropy, both sides balanced, of whether a pixel is near another class, and the pixel loss once
    more where the boundary branch says so. The published pixel loss is `loss="ohem"` with a limit of 0.9 where ours has
    0.7, plain cross entropy on the detail branch, and Cityscapes' class weights; its boundaries are about as wide.
    """
    if len(outputs) == 1:  # trained without the auxiliary heads
        return pixel_losses(outputs, labels, pixel, aux_weight)
    logits, detail, boundary = outputs
    assert isinstance(logits, Tensor)
    assert isinstance(boundary, Tensor)
    found = resize(boundary.float(), (labels.shape[-2], labels.shape[-1]), pixel.align_corners)[:, 0]
    wanted = boundaries(labels, pixel.ignore_index)
    share = wanted.float().mean()
    losses = F.binary_cross_entropy_with_logits(found, wanted.float(), reduction="none")
    balanced = _BOUNDARY_WEIGHT * (losses * torch.where(wanted, 1 - share, share)).sum()
    there = labels.masked_fill(found.detach().sigmoid() <= _BOUNDARY, pixel.ignore_index)
    return [
        *pixel_losses([logits, detail], labels, pixel, aux_weight),
        LossSum(balanced, losses.new_tensor(losses.numel())),
        pixel(logits, there),
    ]


def boundaries(labels: Tensor, ignore_index: int) -> Tensor:
    """(N, H, W) class ids -> (N, H, W), whether two classes lie within two pixels; what is ignored is none."""
    ids, ignored = labels.float(), labels == ignore_index
    highest = F.max_pool2d(ids.masked_fill(ignored, -torch.inf)[:, None], 5, 1, 2)
    lowest = -F.max_pool2d((-ids).masked_fill(ignored, -torch.inf)[:, None], 5, 1, 2)
    return (highest > lowest)[:, 0]


def _mmseg(options: PIDNetOptions) -> KeyMap:
    return KeyMap(
        (
            ("decode_head.i_head.", "head."),
            ("decode_head.conv_seg.", "head.classifier."),
            ("decode_head.p_head.", "aux_heads.0."),
            ("decode_head.p_cls_seg.", "aux_heads.0.classifier."),
            ("decode_head.d_head.", "aux_heads.1."),
            ("decode_head.d_cls_seg.", "aux_heads.1.classifier."),
        )
    )


FAMILY = register_family(
    Family(
        name="pidnet",
        title="PIDNet",
        paper="https://arxiv.org/abs/2206.02066",
        options=PIDNetOptions,
        build=_build,
        levels=3,
        key_maps={"mmseg": _mmseg},
        classifiers=("head.classifier.", "aux_heads.0.classifier."),
        read_options=read_width,
        loss=_loss,
        backbones=tuple(_SIZES),
    )
)
