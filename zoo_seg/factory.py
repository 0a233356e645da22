"""A name becomes a SegmentationModel."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from zoo_seg.errors import OptionError
from zoo_seg.info import IMAGENET, ModelInfo, as_palette, for_channels, voc_palette
from zoo_seg.manifest import Architecture, Weights, get_architecture
from zoo_seg.model import SegmentationModel, check_positive, class_names
from zoo_seg.network import build_network, with_all_options
from zoo_seg.pretrained import load_checkpoint

NUM_CLASSES = 21
"""Classes of a network built without weights and without `num_classes` (torchvision's choice as well)."""


def create_model(
    name: str,
    pretrained: bool | str | os.PathLike[str] | Weights | None = None,
    *,
    num_classes: int | None = None,
    in_chans: int = 3,
    progress: bool = True,
) -> SegmentationModel:
    """Build a published network by name, with weights on request.

    Args:
        name: a model name or alias, see `list_models()`.
        pretrained: True for the model's first weights, a tag (`"ade20k"`, `"ade20k_mmseg"`), a path (.pth,
            .safetensors), an `https://`, `file://` or `hf://org/repo[@revision][/file]` link, a folder that
            `finetune` wrote, or a record; None for random weights.
        num_classes: other than the weights': both classifiers start anew, everything else is kept.
            None takes the weights' number, 21 without weights.
        in_chans: channels of the image; other than 3 adapts the first convolution.
        progress: show a bar while downloading (on a terminal only).

    Returns:
        The network: in `eval()` with weights, in `train()` without.

    Raises:
        UnknownNameError: no such model or tag; the message suggests near ones.
        DownloadError, CheckpointError: the weights cannot be had, opened, or fitted.
        OptionError: a number is not allowed.
    """
    canonical, architecture = get_architecture(name)
    check_positive(num_classes=num_classes, in_chans=in_chans)
    if pretrained is None or pretrained is False:
        return new_model(architecture, num_classes or NUM_CLASSES, in_chans=in_chans)
    checkpoint = load_checkpoint(canonical, pretrained, progress=progress)
    return SegmentationModel.from_checkpoint(checkpoint, num_classes=num_classes, in_chans=in_chans)


def from_pretrained(
    name: str | os.PathLike[str],
    *,
    revision: str | None = None,
    num_classes: int | None = None,
    in_chans: int | None = None,
    progress: bool = True,
) -> SegmentationModel:
    """The network in a folder or in a repository of the Hugging Face Hub, see `SegmentationModel.from_pretrained`."""
    return SegmentationModel.from_pretrained(
        name, revision=revision, num_classes=num_classes, in_chans=in_chans, progress=progress
    )


def build_model(
    family: str,
    backbone: str,
    num_classes: int,
    *,
    output_stride: int | None = None,
    in_chans: int = 3,
    backbone_pretrained: bool = False,
    classes: Sequence[str] | None = None,
    palette: Sequence[tuple[int, int, int]] | None = None,
    **options: Any,
) -> SegmentationModel:
    """Build a new network of a family on a backbone of this library or any of timm's.

    Args:
        family: such as `"pspnet"`.
        backbone: e.g. `"resnet50"`, or any timm model name (`timm.list_models()`), e.g. `"convnext_tiny"`.
        num_classes: at least 1.
        output_stride: of the backbone's last map (8 and 16 are usual for FCN and PSPNet); None keeps
            the backbone's own.
        in_chans: channels of the image.
        backbone_pretrained: fetch timm's ImageNet weights for the backbone; else random values.
        classes, palette: names and RGB colours; None for `class_0`, ... and VOC's colours.
        options: the family's own, such as `channels=`, the width of its head; see its options' dataclass.

    Raises:
        UnknownNameError: no such family or backbone.
        OptionError: the backbone cannot do this.
    """
    check_positive(num_classes=num_classes, in_chans=in_chans)
    architecture = Architecture(family, backbone, output_stride, options=options)
    return new_model(
        architecture,
        num_classes,
        in_chans=in_chans,
        classes=classes,
        palette=palette,
        backbone_pretrained=backbone_pretrained,
    )


def new_model(
    architecture: Architecture,
    num_classes: int,
    *,
    in_chans: int = 3,
    classes: Sequence[str] | None = None,
    palette: Sequence[tuple[int, int, int]] | None = None,
    backbone_pretrained: bool = False,
) -> SegmentationModel:
    """The network of an architecture with random weights; see `build_model`."""
    network = build_network(architecture, num_classes, in_chans=in_chans, backbone_pretrained=backbone_pretrained)
    names = tuple(classes or class_names(num_classes))
    if len(names) != num_classes:
        raise OptionError(f"{len(names)} classes for a network with {num_classes}; expected a name for each")
    try:
        info = ModelInfo(
            classes=names,
            palette=as_palette(voc_palette(num_classes) if palette is None else palette),
            preprocess=for_channels(IMAGENET, in_chans),
            in_chans=in_chans,
            architecture=with_all_options(architecture),
        )
    except ValueError as error:
        raise OptionError(str(error)) from None
    return SegmentationModel(network, info)
