"""A network made ready for inference: a copy with its BatchNorm folded into the convolutions."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Iterable

import torch
from timm.models import FeatureListNet
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from zoo_seg.inference.cpu import suit_cpu
from zoo_seg.inference.memory import drop_file_pages, give_back
from zoo_seg.network import SegmentationNetwork

_log = logging.getLogger("zoo_seg")


def prepare(
    network: SegmentationNetwork, device: torch.device, dtype: torch.dtype, *, compiled: bool = False
) -> SegmentationNetwork:
    """A copy in `eval()`, without the auxiliary head, folded and channels_last; the network stays as it was.

    Args:
        compiled: it will go through `torch.compile`, which fuses layers itself and cannot look into `cpu`'s.
    """
    ready = _copy(network, device)
    if not fold_batchnorm(ready):
        _log.info("BatchNorm is kept as it is: folding it would change this network's output")
        ready = _copy(network, device)
    if device.type == "cpu":
        suit_cpu(ready, dtype, in_place=not compiled)
    _forget_unread_maps(ready, trim=device.type == "cpu" and not compiled)
    for parameter in ready.parameters():  # one by one, which needs less memory than all at once
        parameter.data = parameter.to(
            dtype, memory_format=torch.channels_last if parameter.ndim == 4 else torch.preserve_format
        )
    return ready.to(dtype=dtype)


def _copy(network: SegmentationNetwork, device: torch.device) -> SegmentationNetwork:
    """Without the auxiliary head, in float32 and channels_last.

    Each tensor is brought into its last form at once, and the file it may be mapped from let go of, so that the
    values are never held twice.
    """
    parts = nn.ModuleDict({"backbone": network.backbone, "head": network.head})
    memo: dict[int, object] = {}
    for tensor in [*parts.parameters(), *parts.buffers()]:
        dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
        layout = torch.channels_last if tensor.ndim == 4 else torch.preserve_format
        copied = tensor.detach().to(device, dtype, copy=True, memory_format=layout)
        memo[id(tensor)] = nn.Parameter(copied, requires_grad=False) if isinstance(tensor, nn.Parameter) else copied
        drop_file_pages(tensor)
    copies = copy.deepcopy(parts, memo)
    return network.with_parts(copies["backbone"], copies["head"]).eval()


_LARGE = 64 << 20
"""Bytes of a map from which on the gaps between such maps are worth closing: it takes 4 % of the time."""


class _LastMap(nn.Module):
    """A backbone as its stages one after the other: every map is let go of as soon as the next module has read it.

    Args:
        trim: between stages, whose maps differ in size, return large gaps to the system.
    """

    def __init__(self, stages: Iterable[nn.Module], *, trim: bool) -> None:
        super().__init__()
        self.stages, self.trim = nn.ModuleList(stages), trim

    def forward(self, x: Tensor) -> list[Tensor]:
        for stage in self.stages:
            for module in stage if isinstance(stage, nn.Sequential) else [stage]:
                x = module(x)
            if self.trim and x.nbytes >= _LARGE:
                give_back()
        return [x]


def _forget_unread_maps(network: SegmentationNetwork, *, trim: bool) -> None:
    """For a head that reads the last map alone."""
    if isinstance(network.backbone, FeatureListNet) and getattr(network.head, "level", None) == -1:
        network.backbone = _LastMap(network.backbone.values(), trim=trim)


@torch.no_grad()
def fold_batchnorm(network: SegmentationNetwork) -> bool:
    """Scale every convolution by the BatchNorm that alone reads it; the same function with fewer steps.

    Which BatchNorm reads which convolution is observed in a run on noise.

    Returns:
        Whether the network still computes the same; a convolution that something else reads as well spoils it.
    """
    device = next(network.parameters()).device
    noise = torch.randn(1, network.in_chans, 64, 64, generator=torch.Generator().manual_seed(0)).to(device)
    expected, pairs = _pairs(network, noise)
    for conv, norm in pairs:
        mean, var = norm.running_mean, norm.running_var
        assert mean is not None and var is not None  # BatchNorm2d in eval() that had none would be no affine map
        weight, bias = norm.weight, norm.bias
        conv.weight, conv.bias = fuse_conv_bn_weights(conv.weight, conv.bias, mean, var, norm.eps, weight, bias)
        _replace(network, norm)
    tolerance = 1e-3 * float(expected.std())
    return math.isfinite(tolerance) and torch.allclose(expected, network(noise), rtol=1e-3, atol=tolerance)


def _pairs(network: SegmentationNetwork, noise: Tensor) -> tuple[Tensor, list[tuple[nn.Conv2d, nn.BatchNorm2d]]]:
    """The logits of the noise, and each convolution with the BatchNorm that was handed its output."""
    # The tensor is kept so that its id stays its own; its version tells whether something was added to it since.
    made_by: dict[int, tuple[nn.Conv2d, Tensor, int]] = {}
    pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []

    def watch(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, nn.Conv2d):
            made_by[id(output)] = module, output, output._version
        elif isinstance(module, nn.BatchNorm2d) and id(inputs[0]) in made_by:
            conv, made, version = made_by[id(inputs[0])]
            if made._version == version:
                pairs.append((conv, module))

    handles = [module.register_forward_hook(watch) for module in network.modules()]
    try:
        return network(noise), pairs
    finally:
        for handle in handles:
            handle.remove()


def _replace(network: nn.Module, norm: nn.BatchNorm2d) -> None:
    """Put what a BatchNorm did besides normalising (timm's carry an activation) in its place."""
    rest = [part for part in norm.children() if not isinstance(part, nn.Identity)]
    for module in network.modules():
        for name, child in module.named_children():
            if child is norm:
                setattr(module, name, nn.Sequential(*rest) if rest else nn.Identity())
