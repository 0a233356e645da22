"""A network made ready for inference: a copy with its BatchNorm folded into the convolutions."""

from __future__ import annotations

import copy
import logging

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from zoo_seg.networks.network import SegmentationNetwork

_log = logging.getLogger("zoo_seg")

_SLICE = 512
"""Channels of a slice: oneDNN's 3x3 kernels reach their full rate up to about this many."""


def prepare(network: SegmentationNetwork, device: torch.device, dtype: torch.dtype) -> SegmentationNetwork:
    """A copy in `eval()`, without the auxiliary head, folded and channels_last; the network stays as it was."""
    ready = _copy(network, device)
    if not fold_batchnorm(ready):
        _log.info("BatchNorm is kept as it is: folding it would change this network's output")
        ready = _copy(network, device)
    if device.type == "cpu":
        slice_wide_convs(ready)
    for parameter in ready.parameters():  # one by one, which needs less memory than all at once
        parameter.data = parameter.to(
            dtype, memory_format=torch.channels_last if parameter.ndim == 4 else torch.preserve_format
        )
    return ready.to(dtype=dtype)


def _copy(network: SegmentationNetwork, device: torch.device) -> SegmentationNetwork:
    parts = {"backbone": network.backbone, "head": network.head}
    memo: dict[int, object] = {}
    copies = {name: copy.deepcopy(part, memo) for name, part in parts.items()}
    return SegmentationNetwork(copies["backbone"], copies["head"], None).eval().requires_grad_(False).float().to(device)


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
    return torch.allclose(expected, network(noise), rtol=1e-3, atol=1e-3 * float(expected.std()))


class SlicedConv(nn.Module):
    """A convolution as the sum of convolutions over slices of its input channels, which fit a CPU's cache."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        parts = torch.split(conv.weight.detach(), _SLICE, dim=1)
        self.weights = nn.ParameterList(nn.Parameter(part.clone(), requires_grad=False) for part in parts)
        self.bias = conv.bias
        self.stride, self.padding, self.dilation = conv.stride, conv.padding, conv.dilation

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor | None = None
        for weight, part in zip(self.weights, torch.split(x, _SLICE, dim=1), strict=True):
            bias = self.bias if total is None else None
            step = F.conv2d(part, weight, bias, self.stride, self.padding, self.dilation)
            total = step if total is None else total.add_(step)
        assert total is not None  # a convolution has at least one slice
        return total


def slice_wide_convs(network: nn.Module) -> None:
    """Put a SlicedConv in the place of every dense 3x3 convolution of more than `_SLICE` channels."""
    for module in network.modules():
        for name, child in module.named_children():
            if not isinstance(child, nn.Conv2d) or child.kernel_size != (3, 3) or child.groups != 1:
                continue
            if child.in_channels > _SLICE and child.in_channels % _SLICE == 0:
                setattr(module, name, SlicedConv(child))


def _pairs(network: SegmentationNetwork, noise: Tensor) -> tuple[Tensor, list[tuple[nn.Conv2d, nn.BatchNorm2d]]]:
    """The logits of the noise, and each convolution with the BatchNorm that was handed its output."""
    made_by: dict[int, tuple[nn.Conv2d, Tensor]] = {}  # the tensor is kept so that its id stays its own
    pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []

    def watch(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, nn.Conv2d):
            made_by[id(output)] = module, output
        elif isinstance(module, nn.BatchNorm2d) and id(inputs[0]) in made_by:
            pairs.append((made_by[id(inputs[0])][0], module))

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
