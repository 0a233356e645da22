"""What training starts from: a network with the data's classes, with random values or with those of other weights."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from zoo_seg.config import is_network
from zoo_seg.data.findings import DataReport
from zoo_seg.data.layouts import SegmentationData
from zoo_seg.errors import OptionError
from zoo_seg.factory import create_model, from_pretrained, new_model
from zoo_seg.families.registry import list_families
from zoo_seg.hub.download import shown
from zoo_seg.images.bands import check_range
from zoo_seg.info import ModelInfo
from zoo_seg.layers.readout import HeadOutput, Queries
from zoo_seg.manifest import Architecture, Recipe, Resize, Weights, get_architecture, get_weights
from zoo_seg.model import SegmentationModel
from zoo_seg.saving.rebuild import check_rebuilds
from zoo_seg.training.settings import Settings


def starting_network(
    data: SegmentationData,
    settings: Settings,
    model: str | SegmentationModel | None,
    weights: str | os.PathLike[str] | Weights | bool | None,
    *,
    backbone: str | None,
    backbone_pretrained: bool,
    channels: int | None,
) -> tuple[SegmentationModel, str | None]:
    """The network to train, with the data's classes, and where its values are from, as a `Config` says it.

    Args: as `finetune`.
    """
    if isinstance(model, SegmentationModel):
        if weights or backbone is not None or backbone_pretrained or channels is not None:
            raise OptionError("the model brings its own weights, backbone and head; leave out all but model and data")
        network, origin = _given(data, model)
    elif weights is None or weights is False:
        network, origin = _from_scratch(data, model, backbone, backbone_pretrained, channels)
    elif backbone is not None or backbone_pretrained or channels is not None:
        raise OptionError("weights bring their own backbone and head; leave out backbone and channels, or the weights")
    else:
        network, origin = _from_weights(data, model, weights)
    for module in network.modules():
        if isinstance(module, nn.Dropout2d) and settings.dropout is not None:
            module.p = settings.dropout
    resize = None if settings.resize is None else Resize(settings.resize, 4 * settings.resize)
    info = ModelInfo(
        classes=data.classes,
        palette=data.palette,
        preprocess=replace(network.preprocess, resize=resize, bands=data.bands, range=check_range(data.range)),
        protocol=network.protocol,
        in_chans=network.in_chans,
        architecture=network.architecture,
    )
    return SegmentationModel(network.network, info), origin


def use_statistics(network: SegmentationModel, report: DataReport) -> None:
    """Normalise by the mean and std of the train split, unless images are RGB, for which published weights have theirs.

    A band that does not vary has a std of 0, and is divided by 1.
    """
    train = next(split for split in report.splits if split.name == "train")
    if network.in_chans != 3:
        std = tuple(max(each, 1.0) for each in train.std)
        network.preprocess = replace(network.preprocess, mean=train.mean, std=std)


def _given(data: SegmentationData, model: SegmentationModel) -> tuple[SegmentationModel, str | None]:
    """A copy, so that the user's own stays as it is; refused at once where it could not be saved."""
    check_rebuilds(model.network, model.architecture, model.num_classes)
    if model.num_classes != data.num_classes:
        raise OptionError(
            f"the model has {model.num_classes} classes, the data {data.num_classes}; expected as many: make it with "
            f"num_classes={data.num_classes}"
        )
    if model.in_chans != data.channels:
        raise OptionError(
            f"the model takes {model.in_chans} channels, the data has {data.channels}; expected as many: make it with "
            f"in_chans={data.channels}"
        )
    network = SegmentationModel(copy.deepcopy(model.network).float().cpu(), model.info)
    return network, model.info.weights or model.info.started_from or "a network in memory"


def _from_weights(
    data: SegmentationData, model: str | None, weights: str | os.PathLike[str] | Weights | Literal[True]
) -> tuple[SegmentationModel, str]:
    if isinstance(weights, Weights):
        model = model or weights.model
    elif not isinstance(weights, (str, os.PathLike)):
        if model is None:
            raise OptionError(f"weights is {weights!r} without a model; expected a model name or an id of weights")
    elif model is None:
        name = os.fspath(weights)
        an_id = "." in name and os.sep not in name and "://" not in name and not Path(name).is_file()
        if is_network(name) or name.startswith("hf://") or (Path(name).is_dir() and not an_id):
            return from_pretrained(name, num_classes=data.num_classes, in_chans=data.channels), name
        if not an_id:
            raise OptionError(f"weights {shown(name)!r} need a model name; zoo_seg.list_models() lists them")
        weights = get_weights(name)
        model = weights.model
    network = create_model(model, weights, num_classes=data.num_classes, in_chans=data.channels)
    return network, network.weights.id if network.weights else shown(os.fspath(weights))  # type: ignore[arg-type]


def _from_scratch(
    data: SegmentationData, model: str | None, backbone: str | None, backbone_pretrained: bool, channels: int | None
) -> tuple[SegmentationModel, str | None]:
    if model is None:
        raise OptionError("there is no model; expected a model name, such as 'pspnet_resnet50_os8'")
    if model not in list_families():
        _, known = get_architecture(model)
        architecture = known if backbone is None else Architecture(known.family, backbone, known.output_stride)
    elif backbone is not None:
        architecture = Architecture(model, backbone)
    else:
        raise OptionError(f"{model!r} is a family; add a backbone, such as backbone='mobilenetv4_conv_small'")
    if channels is not None:
        architecture = replace(architecture, options={**architecture.options, "channels": channels})
    network = new_model(architecture, data.num_classes, in_chans=data.channels, backbone_pretrained=backbone_pretrained)
    return network, f"timm's ImageNet weights of {architecture.backbone}" if backbone_pretrained else None


def freeze(model: SegmentationModel, settings: Settings) -> list[nn.Module]:
    """Switch off the gradients of what stays as it is; the modules that must stay in `eval()` are returned."""
    frozen: list[nn.Module] = []
    if settings.freeze == "backbone":
        frozen = [model.backbone]
    elif settings.freeze == "batchnorm":
        frozen = [each for each in model.modules() if isinstance(each, nn.BatchNorm2d)]
    for module in frozen:
        module.requires_grad_(False)
    return frozen


def freeze_unused(
    network: Callable[[Tensor], list[HeadOutput]], parameters: Iterable[nn.Parameter], in_chans: int = 3
) -> None:
    """Switch off the gradients of values that nothing depends on: several processes would wait for them."""
    trained = [each for each in parameters if each.requires_grad]
    outputs = network(torch.zeros(1, in_chans, 64, 64))
    parts = [part for each in outputs for part in (each[:2] if isinstance(each, Queries) else [each])]
    total = torch.stack([part.sum() for part in parts]).sum()
    for parameter, gradient in zip(trained, torch.autograd.grad(total, trained, allow_unused=True), strict=True):
        parameter.requires_grad_(gradient is not None)


def recipe_of(settings: Settings, schedule: str, steps: int, model: SegmentationModel) -> Recipe:
    """The settings as the record of published weights has them."""
    return Recipe(
        train_split="train",
        crop=settings.crop_size,
        batch_size=settings.batch_size,
        epochs=settings.epochs,
        iterations=steps,
        optimizer={"sgd": "SGD", "adamw": "AdamW"}[settings.optimizer],
        lr=settings.lr,
        schedule=schedule,
        momentum=settings.momentum if settings.optimizer == "sgd" else None,
        weight_decay=settings.weight_decay,
        aux_loss_weight=settings.aux_weight if model.aux_heads else None,
    )
