"""A checkpoint becomes the network it belongs to."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn

from zoo_seg.errors import CheckpointError
from zoo_seg.manifest import Architecture
from zoo_seg.network import SegmentationNetwork, build_network
from zoo_seg.pretrained import Checkpoint, classifier_names, fill

_log = logging.getLogger("zoo_seg")


def build(architecture: Architecture, num_classes: int, in_chans: int, **head_options: Any) -> SegmentationNetwork:
    """The network of an architecture with random values (with none at all on the meta device)."""
    return build_network(
        architecture.family,
        architecture.backbone,
        num_classes,
        output_stride=architecture.output_stride,
        in_chans=in_chans,
        **{**architecture.options, **head_options},
    )


def restore(
    checkpoint: Checkpoint, architecture: Architecture, *, num_classes: int | None = None, in_chans: int = 3
) -> SegmentationNetwork:
    """The checkpoint's network in `eval()`: built without values, which then are the file's own.

    Args:
        num_classes: other than the checkpoint's: both classifiers start anew, everything else is kept.
        in_chans: channels of the picture.

    Raises:
        CheckpointError: the checkpoint is of another architecture, or does not fit it.
    """
    _check_fits(checkpoint, architecture)
    found = checkpoint.num_classes
    anew = num_classes is not None and num_classes != found
    with torch.device("meta"):
        network = build(architecture, num_classes or found, in_chans, **checkpoint.network_options)
    fill(network, checkpoint, new_classifiers=anew)
    if anew:
        names = sorted(classifier_names(network.state_dict()))
        for module in network.modules():
            if isinstance(module, nn.Conv2d) and module.weight.is_meta:
                module.to_empty(device="cpu").reset_parameters()
        _log.warning("num_classes=%d instead of %d: %s start from random values", num_classes, found, ", ".join(names))
    return network.eval()


def _check_fits(checkpoint: Checkpoint, architecture: Architecture) -> None:
    """Two strides of one network have the same tensors and different results, so the names are compared as well."""
    found = checkpoint.config.architecture if checkpoint.config else architecture
    if _identity(found) != _identity(architecture):
        raise CheckpointError(
            f"{checkpoint.path.parent} holds {described(found)}, expected {described(architecture)}; "
            "zoo_seg.from_pretrained loads it as what it is"
        )


def _identity(architecture: Architecture) -> tuple[str, str, int | None]:
    return architecture.family, architecture.backbone, architecture.output_stride


def described(architecture: Architecture) -> str:
    """Such as `fcn on resnet50c, output stride 8`."""
    stride = f", output stride {architecture.output_stride}" if architecture.output_stride else ""
    return f"{architecture.family} on {architecture.backbone}{stride}"
