"""What the verbs that run a network share: which one, on which device, and how it looks at a picture."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from zoo_seg.errors import OptionError
from zoo_seg.export.loaded import from_exported, is_exported
from zoo_seg.factory import create_model, from_pretrained
from zoo_seg.hub.download import shown
from zoo_seg.hub.huggingface import repository
from zoo_seg.inference.predicting import Predicting
from zoo_seg.inference.predictor import choose_device
from zoo_seg.inference.protocol import Mode, Protocol
from zoo_seg.manifest import get_architecture, get_weights, list_weights
from zoo_seg.model import SegmentationModel
from zoo_seg.saving.folder import is_network

_LARGEST_SCALE = 8
"""Beyond it memory runs out; whoever writes more means percent."""


PACKAGED = "semanticfpn_mobilenetv4_small.camvid_zoo"
"""The weights that come with the package: used where nobody names others."""


def load_predicting(arguments: argparse.Namespace) -> Predicting:
    """What `predict` runs: an exported file of `--weights`, which runs on the CPU, or a network."""
    weights = arguments.weights
    if weights is None or not is_exported(weights):
        return load_network(arguments)
    if arguments.model is not None:
        raise OptionError(f"--model {arguments.model} and --weights {weights}: an exported file has its own network")
    if arguments.device is None:
        arguments.device = "cpu"
    return from_exported(weights)


def load_network(arguments: argparse.Namespace) -> SegmentationModel:
    """The network of `--model` and `--weights`: a run's folder, an id, or a model with what its factory takes.

    Without weights a model's first ones are taken, and without both those that come with the package.
    """
    name, weights = arguments.model, arguments.weights
    if weights is None:
        weights = (
            PACKAGED if name is None else next((each.id for each in list_weights(get_architecture(name)[0])), None)
        )
        if weights is None:
            raise OptionError(f"{name} has no published weights; add --weights with a path or a link")
        name = None
    if is_network(weights) or (weights.startswith("hf://") and repository(weights)):
        return from_pretrained(weights) if name is None else create_model(name, weights)
    if name is None:
        if is_exported(weights):
            raise OptionError(f"--weights {shown(weights)} is an exported file, which predict takes; name its network")
        model, dot, tag = weights.partition(".")
        if not dot or os.sep in weights or Path(weights).is_file() or tag in ("pth", "pt", "safetensors"):
            if Path(weights).is_dir():
                return from_pretrained(weights)  # which says what the folder lacks
            raise OptionError(
                f"--weights {shown(weights)} needs a --model (see 'zoo-seg list'), or be an id such as 'model.tag'"
            )
        record = get_weights(model, tag)
        return create_model(record.model, record)
    return create_model(name, weights)


def device_of(arguments: argparse.Namespace) -> str:
    """`--device`, else the GPU where there is one."""
    return arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")


def check_looks(mode: Mode, scales: Sequence[float], flip: bool, arguments: argparse.Namespace) -> None:
    """Refuse a protocol, `--crop`, `--stride` or `--device` that cannot be had before anything is fetched or loaded."""
    crop, stride = arguments.crop, arguments.stride
    if mode == "slide":  # a crop that is not given follows from the weights, and fits
        crop = crop or stride or (1, 1)
    Protocol.of(mode, crop, stride, scales, flip, "ssseg")
    if max(scales) > _LARGEST_SCALE:
        raise OptionError(f"--scales are factors of the test size, such as 0.5 1 1.5; found {max(scales):g}")
    if arguments.device is not None:
        choose_device(arguments.device)
