"""The published networks by name: what users, scripts and torch.hub call. Importing it loads no torch."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TypeAlias

from zoo_seg.manifest import Weights

if TYPE_CHECKING:
    from zoo_seg.model import SegmentationModel

Pretrained: TypeAlias = str | os.PathLike[str] | Weights | bool | None
"""Which weights: True is the model's first; see `create_model`."""


def _create(
    name: str, pretrained: Pretrained, num_classes: int | None, in_chans: int, progress: bool
) -> SegmentationModel:
    from zoo_seg.factory import create_model  # here, so that listing the names stays cheap

    return create_model(name, pretrained, num_classes=num_classes, in_chans=in_chans, progress=progress)


def fcn_resnet50_os8(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """FCN on ResNet-50-c, output stride 8; the arguments are those of `create_model`."""
    return _create("fcn_resnet50_os8", pretrained, num_classes, in_chans, progress)


def fcn_resnet50_os16(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """FCN on ResNet-50-c, output stride 16; the arguments are those of `create_model`."""
    return _create("fcn_resnet50_os16", pretrained, num_classes, in_chans, progress)


def fcn_resnet101_os8(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """FCN on ResNet-101-c, output stride 8; the arguments are those of `create_model`."""
    return _create("fcn_resnet101_os8", pretrained, num_classes, in_chans, progress)


def fcn_resnet101_os16(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """FCN on ResNet-101-c, output stride 16; the arguments are those of `create_model`."""
    return _create("fcn_resnet101_os16", pretrained, num_classes, in_chans, progress)


def pspnet_resnet50_os8(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """PSPNet on ResNet-50-c, output stride 8; the arguments are those of `create_model`."""
    return _create("pspnet_resnet50_os8", pretrained, num_classes, in_chans, progress)


def pspnet_resnet50_os16(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """PSPNet on ResNet-50-c, output stride 16; the arguments are those of `create_model`."""
    return _create("pspnet_resnet50_os16", pretrained, num_classes, in_chans, progress)


def pspnet_resnet101_os8(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """PSPNet on ResNet-101-c, output stride 8; the arguments are those of `create_model`."""
    return _create("pspnet_resnet101_os8", pretrained, num_classes, in_chans, progress)


def pspnet_resnet101_os16(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """PSPNet on ResNet-101-c, output stride 16; the arguments are those of `create_model`."""
    return _create("pspnet_resnet101_os16", pretrained, num_classes, in_chans, progress)


def semanticfpn_resnet50(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """Semantic FPN on ResNet-50-c; the arguments are those of `create_model`."""
    return _create("semanticfpn_resnet50", pretrained, num_classes, in_chans, progress)


def semanticfpn_resnet101(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """Semantic FPN on ResNet-101-c; the arguments are those of `create_model`."""
    return _create("semanticfpn_resnet101", pretrained, num_classes, in_chans, progress)


def semanticfpn_mobilenetv4_small(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """Semantic FPN, 48 channels wide, on MobileNetV4-Conv-Small; `pretrained="camvid"` comes with the package.

    The arguments are those of `create_model`.
    """
    return _create("semanticfpn_mobilenetv4_small", pretrained, num_classes, in_chans, progress)


# Aliases, one object under two names.
fcn_r50_os8 = fcn_resnet50_os8
fcn_r50_os16 = fcn_resnet50_os16
fcn_r101_os8 = fcn_resnet101_os8
fcn_r101_os16 = fcn_resnet101_os16
pspnet_r50_os8 = pspnet_resnet50_os8
pspnet_r50_os16 = pspnet_resnet50_os16
pspnet_r101_os8 = pspnet_resnet101_os8
pspnet_r101_os16 = pspnet_resnet101_os16
semantic_fpn_mobilenetv4_small = semanticfpn_mobilenetv4_small
semanticfpn_r50 = semanticfpn_resnet50
semantic_fpn_resnet50 = semanticfpn_resnet50
semantic_fpn_r50 = semanticfpn_resnet50
semanticfpn_r101 = semanticfpn_resnet101
semantic_fpn_resnet101 = semanticfpn_resnet101
semantic_fpn_r101 = semanticfpn_resnet101
