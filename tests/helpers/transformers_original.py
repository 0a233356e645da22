"""The networks of transformers itself, on the values of `reference.py`."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import torch
from torch import nn
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from helpers.reference import fill
from helpers.upernet_original import beit, shapes_in_file

_WIDE = {"hidden_sizes": [64, 128, 320, 512]}
_SEGFORMERS: dict[str, dict[str, Any]] = {
    "segformer_mit_b0": {},
    "segformer_mit_b1": _WIDE,
    "segformer_mit_b2": {**_WIDE, "depths": [3, 4, 6, 3], "decoder_hidden_size": 768},
    "segformer_mit_b3": {**_WIDE, "depths": [3, 4, 18, 3], "decoder_hidden_size": 768},
    "segformer_mit_b4": {**_WIDE, "depths": [3, 8, 27, 3], "decoder_hidden_size": 768},
    "segformer_mit_b5": {**_WIDE, "depths": [3, 6, 40, 3], "decoder_hidden_size": 768},
}
_IN_FILES = (
    (r"stages\.(\d+)\.patch_embeddings\.", r"encoder.patch_embeddings.\1."),
    (r"stages\.(\d+)\.blocks\.", r"encoder.block.\1."),
    (r"stages\.(\d+)\.layer_norm\.", r"encoder.layer_norm.\1."),
    (r"attention\.q_proj", "attention.self.query"),
    (r"attention\.k_proj", "attention.self.key"),
    (r"attention\.v_proj", "attention.self.value"),
    (r"attention\.sequence_reduction\.sequence_reduction", "attention.self.sr"),
    (r"attention\.sequence_reduction\.layer_norm", "attention.self.layer_norm"),
    (r"attention\.o_proj", "attention.output.dense"),
    (r"mlp\.fc", "mlp.dense"),
    (r"layernorm_before", "layer_norm_1"),
    (r"layernorm_after", "layer_norm_2"),
    (r"linear_projections", "linear_c"),
)
"""What `save_pretrained` of transformers 5 calls its tensors in files, which kept the names of version 4."""


def original(model: str, **config: Any) -> SegformerForSemanticSegmentation:
    """Without values."""
    network = SegformerForSemanticSegmentation(SegformerConfig(**_SEGFORMERS[model], **config))
    nn.Module.train(network, False)
    return network


def filled(model: str, **config: Any) -> SegformerForSemanticSegmentation:
    """With values that leave nothing at zero or one."""
    network = original(model, **config)
    for name, tensor in network.state_dict().items():
        tensor.copy_(torch.from_numpy(fill(name, tuple(tensor.shape))))
    return network


@cache
def original_shapes(model: str, num_classes: int) -> dict[str, tuple[int, ...]]:
    """The names and shapes of its file."""
    if model.startswith("upernet_beit"):
        with torch.device("meta"):
            other = beit(model.removeprefix("upernet_"), num_labels=num_classes)
        return shapes_in_file(other)
    with torch.device("meta"):
        network = original(model, num_labels=num_classes)
    return {_in_file(name): tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def _in_file(name: str) -> str:
    for pattern, replacement in _IN_FILES:
        name = re.sub(pattern, replacement, name)
    return name
