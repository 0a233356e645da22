"""LR-ASPP: the last feature map, gated by its mean, and a finer one. Howard et al., https://arxiv.org/abs/1905.02244

As torchvision trains it: the mean is that of the whole map, where the paper's window is 49x49.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from zoo_seg.families.registry import Family, Heads, Shapes, register_family
from zoo_seg.keymap import KeyMap
from zoo_seg.layers.blocks import ConvNormAct
from zoo_seg.layers.resample import resize


class LRASPPHead(nn.Module):
    """Backbone feature maps, finest first -> logits (N, num_classes, h, w) at the stride of the last but one.

    Args:
        in_channels: channels of the backbone's feature maps; the last two are read.
        num_classes: classes of the logits.
        channels: width of what is made of the last map.
        align_corners: of its enlarging.
    """

    def __init__(
        self, in_channels: Sequence[int], num_classes: int, *, channels: int = 128, align_corners: bool = False
    ) -> None:
        super().__init__()
        low, high = in_channels[-2:]
        self.align_corners = align_corners
        self.reduce = ConvNormAct(high, channels, 1)
        self.gate = nn.Conv2d(high, channels, 1, bias=False)
        self.low_classifier = nn.Conv2d(low, num_classes, 1)
        self.high_classifier = nn.Conv2d(channels, num_classes, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        low, high = features[-2:]
        gated = self.reduce(high) * self.gate(high.mean((2, 3), keepdim=True)).sigmoid()
        # 1x1 convolutions and enlarging may change places: fewer channels are enlarged
        enlarged = resize(self.high_classifier(gated), (low.shape[-2], low.shape[-1]), self.align_corners)
        logits: Tensor = self.low_classifier(low) + enlarged
        return logits


@dataclass(frozen=True)
class LRASPPOptions:
    """See `LRASPPHead`."""

    channels: int = 128


def _build(channels: Sequence[int], num_classes: int, options: LRASPPOptions, *, align_corners: bool) -> Heads:
    return Heads(LRASPPHead(channels, num_classes, channels=options.channels, align_corners=align_corners))


def _torchvision(options: LRASPPOptions) -> KeyMap:
    rules = (
        ("cbr.0.", "reduce.conv."),
        ("cbr.1.", "reduce.norm."),
        ("scale.1.", "gate."),
        ("low_classifier.", "low_classifier."),
        ("high_classifier.", "high_classifier."),
    )
    return KeyMap(rules).after("classifier.", "head.")


def _read_options(shapes: Shapes) -> dict[str, Any]:
    shape = shapes.get("head.high_classifier.weight", ())
    return {"channels": shape[1]} if len(shape) == 4 else {}


FAMILY = register_family(
    Family(
        name="lraspp",
        title="LR-ASPP",
        paper="https://arxiv.org/abs/1905.02244",
        options=LRASPPOptions,
        build=_build,
        levels=2,
        key_maps={"torchvision": _torchvision},
        classifiers=("head.low_classifier.", "head.high_classifier."),
        class_tensor="head.high_classifier.weight",
        read_options=_read_options,
    )
)
