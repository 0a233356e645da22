"""A name becomes a SegmentationModel."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from zoo_seg.data.labels import voc_palette
from zoo_seg.errors import CheckpointError, OptionError
from zoo_seg.manifest import Architecture, Preprocess, Weights, get_architecture
from zoo_seg.model import SegmentationModel
from zoo_seg.networks.network import SegmentationNetwork, build_network
from zoo_seg.weights.load import Checkpoint, classifier_names, fill, load_checkpoint, open_folder

_log = logging.getLogger("zoo_seg")

NUM_CLASSES = 21
"""Classes of a network built without weights and without `num_classes` (torchvision's choice as well)."""

IMAGENET = Preprocess(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375), resize=None)


def create_model(
    name: str,
    pretrained: str | os.PathLike[str] | Weights | None = None,
    *,
    num_classes: int | None = None,
    in_chans: int = 3,
    progress: bool = True,
) -> SegmentationModel:
    """Build a published network by name, with weights on request.

    Args:
        name: a model name or alias, see `list_models()`.
        pretrained: a tag (`"ade20k"`, `"ade20k_mmseg"`), a path (.pth, .safetensors), an `https://`,
            `file://` or `hf://org/repo[@revision][/file]` link, a folder that `finetune` wrote, or a record; None
            for random values.
        num_classes: other than the weights': both classifiers start anew, everything else is kept.
            None takes the weights' number, 21 without weights.
        in_chans: channels of the picture; other than 3 adapts the first convolution.
        progress: show a bar while downloading (on a terminal only).

    Returns:
        The network: in `eval()` with weights, in `train()` without.

    Raises:
        UnknownNameError: no such model or tag; the message suggests near ones.
        DownloadError, CheckpointError: the weights cannot be had, opened, or fitted.
        OptionError: a number is not allowed.
    """
    canonical, architecture = get_architecture(name)
    _check_positive(num_classes=num_classes, in_chans=in_chans)
    if pretrained is None:
        classes = num_classes or NUM_CLASSES
        return _assemble(_build(architecture, classes, in_chans), architecture, classes, None)
    checkpoint = load_checkpoint(canonical, pretrained, progress=progress)
    return _restore(architecture, checkpoint, num_classes, in_chans)


def from_pretrained(name: str | os.PathLike[str], *, num_classes: int | None = None) -> SegmentationModel:
    """The network in a folder that `finetune` or `save_pretrained` wrote, in `eval()`.

    Args:
        name: the folder.
        num_classes: other than the folder's: both classifiers start anew, everything else is kept.

    Raises:
        CheckpointError: the folder holds no such network.
        ManifestError: its `config.json` is broken.
    """
    _check_positive(num_classes=num_classes)
    if not Path(name).is_dir():
        raise CheckpointError(f"there is no folder {os.fspath(name)!r}; expected one that finetune wrote")
    checkpoint = open_folder(Path(name))
    assert checkpoint.config is not None
    return _restore(checkpoint.config.architecture, checkpoint, num_classes, checkpoint.config.in_chans)


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
    **head_options: Any,
) -> SegmentationModel:
    """Build a new network of a family on any timm backbone.

    Args:
        family: `"fcn"`, `"pspnet"` or `"semanticfpn"`.
        backbone: a timm model name, e.g. `"convnext_tiny"`; `timm.list_models()` lists them.
        num_classes: at least 1.
        output_stride: of the backbone's last map (8 and 16 are usual for FCN and PSPNet); None keeps
            the backbone's own.
        in_chans: channels of the picture.
        backbone_pretrained: fetch timm's ImageNet weights for the backbone; else random values.
        classes, palette: names and RGB colours; None for `class_0`, ... and VOC's colours.
        head_options: `channels=` is the width of the head, `neck=` Semantic FPN's neck.

    Raises:
        UnknownNameError: no such family or backbone.
        OptionError: the backbone cannot do this.
    """
    _check_positive(num_classes=num_classes, in_chans=in_chans)
    network = build_network(
        family,
        backbone,
        num_classes,
        output_stride=output_stride,
        in_chans=in_chans,
        backbone_pretrained=backbone_pretrained,
        **head_options,
    )
    return SegmentationModel(
        network,
        classes=classes or _class_names(num_classes),
        palette=palette or voc_palette(num_classes),
        preprocess=IMAGENET,
        architecture=Architecture(family, backbone, output_stride, head_options.get("channels")),
    )


def _check_positive(**numbers: int | None) -> None:
    for name, value in numbers.items():
        if value is not None and (not isinstance(value, int) or value < 1):
            raise OptionError(f"{name} is {value!r}; expected a whole number of at least 1")


def _build(architecture: Architecture, num_classes: int, in_chans: int, **head_options: Any) -> SegmentationNetwork:
    if architecture.channels is not None:
        head_options.setdefault("channels", architecture.channels)
    return build_network(
        architecture.family,
        architecture.backbone,
        num_classes,
        output_stride=architecture.output_stride,
        in_chans=in_chans,
        **head_options,
    )


def _restore(
    architecture: Architecture, checkpoint: Checkpoint, num_classes: int | None, in_chans: int
) -> SegmentationModel:
    """The checkpoint's network: built without values, which then are the file's own."""
    found = checkpoint.num_classes
    anew = num_classes is not None and num_classes != found
    with torch.device("meta"):
        network = _build(architecture, num_classes or found, in_chans, **checkpoint.network_options)
    fill(network, checkpoint, new_classifiers=anew)
    if anew:
        names = sorted(classifier_names(network.state_dict()))
        for module in network.modules():
            if isinstance(module, nn.Conv2d) and module.weight.is_meta:
                module.to_empty(device="cpu").reset_parameters()
        _log.warning("num_classes=%d instead of %d: %s start from random values", num_classes, found, ", ".join(names))
    return _assemble(network, architecture, num_classes or found, checkpoint).eval()


def _assemble(
    network: SegmentationNetwork, architecture: Architecture, num_classes: int, checkpoint: Checkpoint | None
) -> SegmentationModel:
    """The network with its names, colours and rules: those of its record or config, where there is one."""
    weights = checkpoint.weights if checkpoint else None
    facts = weights or (checkpoint.config if checkpoint else None)
    known = facts is not None and len(facts.classes) == num_classes
    layout: Literal["ssseg", "mmseg"] = "mmseg" if checkpoint and checkpoint.layout == "mmseg" else "ssseg"
    return SegmentationModel(
        network,
        classes=facts.classes if facts and known else _class_names(num_classes),
        palette=facts.palette if facts and known else voc_palette(num_classes),
        preprocess=facts.preprocess if facts else IMAGENET,
        protocol=facts.protocol if facts else layout,
        weights=weights,
        architecture=architecture,
        recipe=facts.recipe if facts else None,
    )


def _class_names(num_classes: int) -> tuple[str, ...]:
    return tuple(f"class_{i}" for i in range(num_classes))
