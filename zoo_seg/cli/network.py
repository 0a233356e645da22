"""What the verbs that run a network share: which one, on which device, and how it looks at an image."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path

import torch

from zoo_seg.checkpoints.digest import tensors_sha256
from zoo_seg.config import is_network, read_config
from zoo_seg.errors import OptionError, UnknownNameError
from zoo_seg.export.loaded import from_exported, is_exported
from zoo_seg.factory import create_model, from_pretrained
from zoo_seg.hub.download import shown
from zoo_seg.hub.files import hash_file
from zoo_seg.hub.huggingface import repository
from zoo_seg.inference.predicting import Predicting
from zoo_seg.inference.predictor import choose_device
from zoo_seg.inference.protocol import Mode, check_test_options
from zoo_seg.manifest import Weights, get_architecture, get_weights
from zoo_seg.model import SegmentationModel
from zoo_seg.pretrained import first_weights, load_checkpoint

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
    """The network of `--model` and `--weights`: a run's folder, an id, or a model with what its factory takes."""
    name, weights = _named(arguments)
    return from_pretrained(str(weights)) if name is None else create_model(name, weights)


def weights_sha256(arguments: argparse.Namespace) -> str:
    """A digest of what `--model` and `--weights` stand for now: all that makes another class map of the same image.

    Nothing is built for it. What is not here yet is fetched.
    """
    digest = hashlib.sha256()
    if arguments.weights is not None and is_exported(arguments.weights):
        path = Path(arguments.weights)
        for each in (path, path.with_suffix(".bin")):  # beside OpenVINO's .xml
            digest.update(hash_file(each).encode() if each.is_file() else b"-")
        return digest.hexdigest()
    name, weights = _named(arguments)
    checkpoint = load_checkpoint(None if name is None else get_architecture(name)[0], weights)
    info = checkpoint.info
    rules = info and [info.classes, info.palette, asdict(info.preprocess), info.protocol, asdict(info.test)]
    tensors = checkpoint.tensors_sha256 or tensors_sha256(checkpoint.tensors)
    facts = [asdict(checkpoint.architecture), checkpoint.naming, rules, tensors]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _named(arguments: argparse.Namespace) -> tuple[str | None, str | Weights]:
    """A model and its weights; a folder or repository that brings its own model has None.

    Without weights a model's first ones are taken, and without both those that come with the package.
    """
    name, weights = arguments.model, arguments.weights
    if weights is None:
        record = get_weights(PACKAGED) if name is None else first_weights(get_architecture(name)[0])
        return record.model, record
    if is_network(weights) or (weights.startswith("hf://") and repository(weights)):
        return name, weights
    if name is None:
        if is_exported(weights):
            raise OptionError(f"--weights {shown(weights)} is an exported file, which predict takes; name its network")
        model, dot, tag = weights.partition(".")
        if not dot or os.sep in weights or Path(weights).is_file() or tag in ("pth", "pt", "safetensors"):
            if Path(weights).is_dir():
                read_config(Path(weights))  # says what the folder lacks
            raise OptionError(
                f"--weights {shown(weights)} needs a --model (see 'zoo-seg list'), or be an id such as 'model.tag'"
            )
        record = get_weights(model, tag)
        return record.model, record
    return name, weights


def dataset_of(arguments: argparse.Namespace) -> str | None:
    """The published data set of `--model` and `--weights`; None where no record says it."""
    name, weights = _named(arguments)
    if isinstance(weights, Weights):
        return weights.dataset
    try:
        return None if name is None else get_weights(name, weights).dataset
    except UnknownNameError:  # a file
        return None


def device_of(arguments: argparse.Namespace) -> str:
    """`--device`, else the GPU where there is one."""
    return arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")


def check_test_arguments(arguments: argparse.Namespace) -> None:
    """Refuse `--mode` to `--flip` or `--device` that cannot be had before anything is fetched or loaded."""
    crop, stride, scales = arguments.crop, arguments.stride, arguments.scales or (1.0,)
    if max(scales) > _LARGEST_SCALE:
        raise OptionError(f"--scales are factors of the test size, such as 0.5 1 1.5; found {max(scales):g}")
    mode: Mode = arguments.mode or ("slide" if crop or stride else "whole")  # the weights may say so
    if mode != "whole":  # a crop that is not given follows from the weights, and fits
        crop = crop or stride or (1, 1)
    check_test_options(mode, crop, stride, scales, bool(arguments.flip))
    if arguments.device is not None:
        choose_device(arguments.device)
