"""Mask2Former and MaskFormer of transformers itself, on the values of `reference.py`."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import torch
from torch import nn
from transformers import (
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    MaskFormerConfig,
    MaskFormerForInstanceSegmentation,
    PreTrainedModel,
    SwinConfig,
)
from transformers.core_model_loading import revert_weight_conversion

from helpers.reference import fill

_BASE = {"depths": [2, 2, 18, 2], "embed_dim": 128, "num_heads": [4, 8, 16, 32]}
_LARGE = {"depths": [2, 2, 18, 2], "embed_dim": 192, "num_heads": [6, 12, 24, 48]}
_SWINS: dict[str, dict[str, Any]] = {
    "swin_tiny": {},
    "swin_small": {"depths": [2, 2, 18, 2]},
    "swin_base": _BASE,
    "swin_base_window12": {**_BASE, "window_size": 12},
    "swin_large": _LARGE,
    "swin_large_window12": {**_LARGE, "window_size": 12},
}
_ALL_MAPS: dict[str, Any] = {"out_features": ["stage1", "stage2", "stage3", "stage4"]}
_SCALES = (
    (r"queries_(features|embedder)\.weight$", 16.0),
    (r"transformer_module\.decoder\..*(o_proj|out_proj|fc2)\.weight$", 0.25),
    (r"mask_embedder\.2\.0\.weight$", 0.125),
)
"""What keeps queries apart, and their masks neither full nor empty."""


def original(model: str, **config: Any) -> PreTrainedModel:
    """Without values, and without gradients."""
    family, backbone = model.split("_", 1)
    swin = SwinConfig(**_SWINS[backbone], **_ALL_MAPS)
    network: PreTrainedModel
    if family == "mask2former":
        network = Mask2FormerForUniversalSegmentation(Mask2FormerConfig(backbone_config=swin, **config))
    else:
        network = MaskFormerForInstanceSegmentation(MaskFormerConfig(backbone_config=swin, **config))
    nn.Module.train(network, False)
    return network.requires_grad_(False)


def filled(model: str, **config: Any) -> PreTrainedModel:
    """With values that leave nothing at zero or one."""
    network = original(model, **config)
    for name, tensor in network.state_dict().items():
        if not tensor.is_floating_point():
            continue  # an index that follows from the window
        tensor.copy_(torch.from_numpy(fill(name, tuple(tensor.shape))))
        for pattern, factor in _SCALES:
            if re.search(pattern, name):
                tensor.mul_(factor)
    return network


@cache
def original_shapes(model: str, num_classes: int) -> dict[str, tuple[int, ...]]:
    """The names and shapes of its file."""
    with torch.device("meta"):
        return file_shapes(original(model, num_labels=num_classes))


def file_shapes(network: PreTrainedModel) -> dict[str, tuple[int, ...]]:
    """The names, which transformers 5 kept from version 4, and shapes of a network's file."""
    tensors = revert_weight_conversion(network, network.state_dict())
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
