"""The networks of torchvision itself, on the values of `reference.py`."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn
from torchvision.models import get_model

from helpers.reference import state_dict


def original(model: str, num_classes: int = 21) -> nn.Module:
    """Without values; auxiliary heads are where the published files have them."""
    auxiliary: dict[str, Any] = {} if model.startswith("lraspp") else {"aux_loss": True}
    network: nn.Module = get_model(model, weights=None, weights_backbone=None, num_classes=num_classes, **auxiliary)
    return network.eval()


@cache
def original_shapes(model: str, num_classes: int = 21) -> dict[str, tuple[int, ...]]:
    """The names and shapes of its file."""
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in original(model, num_classes).state_dict().items()}


def filled(model: str) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """The network and its state dict."""
    network, values = original(model), dict(state_dict(original_shapes(model).items()))
    network.load_state_dict(values)
    return network, values
