"""A backbone, a head and an auxiliary head, and how to build one by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from zoo_seg.backbones.timm_backbone import create_backbone
from zoo_seg.errors import OptionError, UnknownNameError
from zoo_seg.families.fcn import FCNHead
from zoo_seg.families.pspnet import PSPHead
from zoo_seg.families.semanticfpn import NECKS, SemanticFPNHead
from zoo_seg.layers.resample import resize


@dataclass(frozen=True)
class Family:
    """What makes a family: its head, how many of the backbone's last maps it reads, and an auxiliary head."""

    head: Callable[..., nn.Module]
    levels: int
    auxiliary: bool


FAMILIES = {
    "fcn": Family(FCNHead, levels=2, auxiliary=True),
    "pspnet": Family(PSPHead, levels=2, auxiliary=True),
    "semanticfpn": Family(SemanticFPNHead, levels=4, auxiliary=False),
}


class SegmentationNetwork(nn.Module):
    """The pure network: tensors in, tensors out."""

    backbone: nn.Module
    head: nn.Module
    aux_head: nn.Module | None
    """Reads the same maps as `head`; trained with a part of the loss, unused in `forward`."""

    def __init__(self, backbone: nn.Module, head: nn.Module, aux_head: nn.Module | None) -> None:
        super().__init__()
        self.backbone, self.head, self.aux_head = backbone, head, aux_head

    @property
    def in_chans(self) -> int:
        """Channels of the picture: those that the first convolution reads."""
        return next(parameter for parameter in self.backbone.parameters() if parameter.ndim == 4).shape[1]

    def forward_features(self, x: Tensor) -> list[Tensor]:
        """(N, in_chans, H, W) -> the backbone's maps, finest first."""
        return list(self.backbone(x))

    def forward_head(self, features: list[Tensor]) -> Tensor:
        """The backbone's maps -> logits (N, num_classes, h, w) at the head's own stride."""
        logits: Tensor = self.head(features)
        return logits

    def forward_logits(self, x: Tensor) -> Tensor:
        """(N, in_chans, H, W) -> logits (N, num_classes, h, w) at the head's own stride."""
        return self.forward_head(self.forward_features(x))

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_chans, H, W), normalised float -> logits (N, num_classes, H, W), resized bilinearly."""
        return resize(self.forward_logits(x), (x.shape[-2], x.shape[-1]))


def build_network(
    family: str,
    backbone: str,
    num_classes: int,
    *,
    output_stride: int | None = None,
    in_chans: int = 3,
    backbone_pretrained: bool = False,
    aux_channels: int | None = None,
    **head_options: Any,
) -> SegmentationNetwork:
    """Build a network of a family on a timm backbone, with random values but for the backbone on request.

    Args:
        family: `"fcn"`, `"pspnet"` or `"semanticfpn"`.
        backbone: a timm model name.
        num_classes: at least 1.
        output_stride: of the backbone's last map; None keeps the backbone's own.
        in_chans: channels of the picture.
        backbone_pretrained: fetch timm's ImageNet weights for the backbone.
        aux_channels: width of the auxiliary head of FCN and PSPNet; None is that of the head.
        head_options: `channels=` (width of the head) for every family, `neck=` for Semantic FPN.
    """
    if family not in FAMILIES:
        raise UnknownNameError(f"there is no family {family!r}; known are {', '.join(FAMILIES)}")
    if num_classes < 1 or in_chans < 1:
        raise OptionError(f"num_classes is {num_classes} and in_chans {in_chans}; both must be at least 1")
    if head_options.get("neck", NECKS[0]) not in NECKS:
        raise OptionError(f"neck is {head_options['neck']!r}; expected one of {', '.join(NECKS)}")
    kind = FAMILIES[family]
    body, channels = create_backbone(
        backbone, levels=kind.levels, output_stride=output_stride, in_chans=in_chans, pretrained=backbone_pretrained
    )
    try:
        head = kind.head(channels, num_classes, **head_options)
    except TypeError as error:
        raise OptionError(f"{family} does not take these options: {error}") from None
    if not kind.auxiliary:
        return SegmentationNetwork(body, head, None)
    width = aux_channels or head_options.get("channels", 512)
    return SegmentationNetwork(body, head, FCNHead(channels, num_classes, channels=width, num_convs=1, level=-2))
