"""EoMT and DPT of transformers itself, on the values of `reference.py`."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    DPTConfig,
    DPTForSemanticSegmentation,
    DPTImageProcessor,
    EomtConfig,
    EomtForUniversalSegmentation,
    EomtImageProcessor,
)

from helpers.reference import fill, image_tensor

_LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
CONFIGS: dict[str, dict[str, Any]] = {
    "eomt_dinov2_large": {**_LARGE, "num_queries": 100, "image_size": 512},
    "dpt_vit_large": {
        **_LARGE,
        "intermediate_size": 4096,
        "backbone_out_indices": [5, 11, 17, 23],
        "neck_hidden_sizes": [256, 512, 1024, 1024],
        "use_batch_norm_in_fusion_residual": True,
    },
}
"""What was published."""
SMALL: dict[str, dict[str, Any]] = {
    "eomt": {
        "hidden_size": 384,
        "num_hidden_layers": 12,
        "num_attention_heads": 6,
        "num_queries": 20,
        "image_size": 64,
    },
    "dpt": {
        "hidden_size": 192,
        "num_hidden_layers": 12,
        "num_attention_heads": 3,
        "intermediate_size": 768,
        "neck_hidden_sizes": [24, 48, 96, 192],
        "fusion_hidden_size": 32,
        "image_size": 64,
        "use_batch_norm_in_fusion_residual": True,
    },
}
"""The smallest that are built here, without a head of the published width."""


def original(family: str, **config: Any) -> nn.Module:
    """Without values."""
    network: nn.Module
    if family == "eomt":
        network = EomtForUniversalSegmentation(EomtConfig(**config))
    else:
        network = DPTForSemanticSegmentation(DPTConfig(**config))
    nn.Module.train(network, False)
    return network


def filled(family: str, **config: Any) -> Any:
    """With values that leave nothing at zero or one, but for EoMT's masks, which have faded away."""
    network = original(family, **config)
    for name, tensor in network.state_dict().items():
        tensor.copy_(torch.from_numpy(fill(name, tuple(tensor.shape))))
    if family == "eomt":
        network.get_buffer("attn_mask_probs").zero_()
    return network


@torch.no_grad()
def varied(family: str, **config: Any) -> Any:
    """The small one, whose classes all win somewhere."""
    network = filled(family, **SMALL[family], **config)
    x = torch.from_numpy(image_tensor(64, 64, batch=4))
    if family == "eomt":
        network.class_predictor.weight.mul_(8)
        network.mask_head.fc3.weight.mul_(30)
        network.class_predictor.bias.sub_(network(x).class_queries_logits.mean((0, 1)))
    else:
        network.head.head[4].bias.sub_(network(x).logits.mean((0, 2, 3)))
    return network


def save(model: str, folder: Path) -> None:
    """A published model's size, and the processor of its first record, as transformers saves them."""
    filled(model.split("_")[0], **CONFIGS[model], num_labels=150).save_pretrained(folder)
    processor = (
        EomtImageProcessor(size={"shortest_edge": 512}, do_split_image=True)
        if model.startswith("eomt")
        else DPTImageProcessor(size=480)
    )
    processor.save_pretrained(folder)


@cache
def original_shapes(model: str, num_classes: int, image_size: int | None = None) -> dict[str, tuple[int, ...]]:
    """The names and shapes of a published model's file."""
    config = {**CONFIGS[model], **({} if image_size is None else {"image_size": image_size})}
    with torch.device("meta"):
        network = original(model.split("_")[0], **config, num_labels=num_classes)
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
