"""transformers' UPerNet and BEiT, on the values of `reference.py`, and mmseg's files as openmmlab converted them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    BeitConfig,
    BeitForSemanticSegmentation,
    BeitImageProcessor,
    ConvNextConfig,
    PreTrainedModel,
    SwinConfig,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)
from transformers.core_model_loading import revert_weight_conversion

from helpers.reference import fill

STAGES: dict[str, Any] = {"out_features": ["stage1", "stage2", "stage3", "stage4"]}


def swin(width: int, depths: tuple[int, ...], window: int) -> SwinConfig:
    heads = [width // 32 << stage for stage in range(4)]
    every: dict[str, Any] = {"embed_dim": width, "depths": depths, "num_heads": heads, "window_size": window}
    return SwinConfig(**every, **STAGES)


def convnext(width: int, depths: tuple[int, ...]) -> ConvNextConfig:
    return ConvNextConfig(hidden_sizes=[width << stage for stage in range(4)], depths=depths, **STAGES)


UPERNETS = {
    "swin_tiny": lambda: swin(96, (2, 2, 6, 2), 7),
    "swin_small": lambda: swin(96, (2, 2, 18, 2), 7),
    "swin_base_window12": lambda: swin(128, (2, 2, 18, 2), 12),
    "swin_large_window12": lambda: swin(192, (2, 2, 18, 2), 12),
    "convnext_tiny_seg": lambda: convnext(96, (3, 3, 9, 3)),
    "convnext_small_seg": lambda: convnext(96, (3, 3, 27, 3)),
    "convnext_base_seg": lambda: convnext(128, (3, 3, 27, 3)),
    "convnext_large_seg": lambda: convnext(192, (3, 3, 27, 3)),
    "convnext_xlarge_seg": lambda: convnext(256, (3, 3, 27, 3)),
}
"""The backbones of the published repositories, by our names."""
BEITS: Mapping[str, Mapping[str, Any]] = {
    "beit_base": {"out_indices": [3, 5, 7, 11]},
    "beit_large": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "out_indices": [7, 11, 15, 23],
    },
    "beit_tiny": {
        "hidden_size": 32,
        "intermediate_size": 128,
        "num_hidden_layers": 6,
        "num_attention_heads": 2,
        "out_indices": [2, 3, 4, 5],
        "image_size": 96,
    },
}


def upernet(backbone: SwinConfig | ConvNextConfig, **config: Any) -> UperNetForSemanticSegmentation:
    """Without values."""
    network = UperNetForSemanticSegmentation(UperNetConfig(backbone_config=backbone, **config))
    nn.Module.train(network, False)
    return network


def beit(backbone: str, **config: Any) -> BeitForSemanticSegmentation:
    """Without values."""
    every = {"image_size": 640, "use_relative_position_bias": True, **BEITS[backbone], **config}
    network = BeitForSemanticSegmentation(BeitConfig(**every))
    nn.Module.train(network, False)
    return network


def filled(network: PreTrainedModel) -> PreTrainedModel:
    """With values that leave nothing at zero or one."""
    for name, tensor in network.state_dict().items():
        tensor.copy_(torch.from_numpy(fill(name, tuple(tensor.shape))))
    return network


def save_beit(backbone: str, folder: Path) -> None:
    """As a published repository is."""
    filled(beit(backbone, num_labels=150)).save_pretrained(folder)
    BeitImageProcessor(size={"height": 640, "width": 640}).save_pretrained(folder)


def names_in_file(network: PreTrainedModel) -> dict[str, str]:
    """What `save_pretrained` calls the tensors of `state_dict`.

    Version 5 has given SwinBackbone a norm of the whole network's features, which no older file has and nobody reads.
    """
    own = network.state_dict()
    found = revert_weight_conversion(network, {name: torch.tensor(place) for place, name in enumerate(own)})
    names = {list(own)[int(place)]: name for name, place in found.items()}
    return {name: in_file for name, in_file in names.items() if ".swin.layernorm." not in in_file}


def shapes_in_file(network: PreTrainedModel) -> dict[str, tuple[int, ...]]:
    """The names and shapes of what `save_pretrained` writes."""
    own = network.state_dict()
    return {in_file: tuple(own[name].shape) for name, in_file in names_in_file(network).items()}


def as_converted(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """mmseg's tensors as openmmlab's repositories have them."""
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        new = re.sub(r"\bbn\.", "batch_norm.", name).replace("conv_seg", "classifier")
        if "relative_position_index" in name:
            continue
        if name.startswith("backbone."):
            for pattern, replacement in _BACKBONE:
                new, count = re.subn(pattern, replacement, new)
                if count:
                    break
            new = re.sub(
                r"^backbone\.norm(\d)", lambda match: f"backbone.hidden_states_norms.stage{int(match[1]) + 1}", new
            )
        if "attention.self.qkv" in new:
            parts = zip(("query", "key", "value"), tensor.chunk(3), strict=True)
            result.update({new.replace("qkv", part): each.clone() for part, each in parts})
        elif "encoder.layers" in new and ".downsample." in new:  # unfolded: of each channel its four neighbours
            four = torch.unflatten(tensor, -1, (-1, 4))[..., [0, 2, 1, 3]]
            result[new] = four.mT.flatten(-2).contiguous()
        else:
            result[new] = tensor
    return result


_BLOCK = (r"^backbone\.stages\.(\d+)\.blocks\.(\d+)\.", r"backbone.encoder.layers.\1.blocks.\2.")
_BACKBONE = (
    (r"patch_embed\.projection", "embeddings.patch_embeddings.projection"),
    (r"patch_embed\.norm", "embeddings.norm"),
    (_BLOCK[0] + r"norm1", _BLOCK[1] + "layernorm_before"),
    (_BLOCK[0] + r"norm2", _BLOCK[1] + "layernorm_after"),
    (_BLOCK[0] + r"attn\.w_msa\.proj", _BLOCK[1] + "attention.output.dense"),
    (_BLOCK[0] + r"attn\.w_msa\.", _BLOCK[1] + "attention.self."),
    (_BLOCK[0] + r"ffn\.layers\.0\.0", _BLOCK[1] + "intermediate.dense"),
    (_BLOCK[0] + r"ffn\.layers\.1", _BLOCK[1] + "output.dense"),
    (r"stages\.(\d+)\.downsample", r"encoder.layers.\1.downsample"),
    (r"downsample_layers\.0\.0", "embeddings.patch_embeddings"),
    (r"downsample_layers\.0\.1", "embeddings.layernorm"),
    (r"downsample_layers\.(\d+)\.", r"encoder.stages.\1.downsampling_layer."),
    (r"stages\.(\d+)\.(\d+)\.gamma", r"encoder.stages.\1.layers.\2.layer_scale_parameter"),
    (r"stages\.(\d+)\.(\d+)\.depthwise_conv", r"encoder.stages.\1.layers.\2.dwconv"),
    (r"stages\.(\d+)\.(\d+)\.norm", r"encoder.stages.\1.layers.\2.layernorm"),
    (r"stages\.(\d+)\.(\d+)\.pointwise_conv", r"encoder.stages.\1.layers.\2.pwconv"),
)
