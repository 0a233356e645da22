"""A network's convolutions rewritten for inference on a CPU: in slices that fit its cache, adding in place, with ReLU.

Adding in place, and ReLU in the same pass, are oneDNN's, through the operators that `torch.compile` calls as well. They
have no public name, so `can_add_in_place` tries them first; where they are missing, blocks stay as they are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo_seg.inference.snapshot import class_name

_BLOCKS = {
    f"{module}.{name}": count
    for module in ("zoo_seg.backbones.resnet", "timm.models.resnet")
    for name, count in (("BasicBlock", 2), ("Bottleneck", 3))
}
"""Residual blocks of one structure, and how many convolutions they have; timm's may hold more."""
_SLICE = 512
"""Channels of a slice: oneDNN's 3x3 kernels reach their full rate up to about this many."""


def optimize_for_cpu(
    network: nn.Module, dtype: torch.dtype, run: Callable[[], object], *, in_place: bool = True
) -> None:
    """Rewrite a network without BatchNorm for inference in `dtype` on a CPU; in place where that is possible.

    Args:
        run: computes the network once, which shows what follows what.
    """
    in_place = in_place and can_add_in_place(torch.float32) and can_add_in_place(dtype)  # compared in float32
    for module in network.modules():
        for name, child in module.named_children():
            if _is_wide(child):
                setattr(module, name, SlicedConv(child, in_place))
    for stage in [module for module in network.modules() if in_place and type(module) is nn.Sequential]:
        for i, block in enumerate(stage):
            if _is_plain(block):
                stage[i] = ResidualBlock(block, keep=i == 0)  # a stage's input may be one of the backbone's maps
    if in_place:
        _fuse_relu(network, run)


class SlicedConv(nn.Module):
    """A convolution as the sum of convolutions over slices of its input channels, which fit a CPU's cache."""

    def __init__(self, conv: nn.Conv2d, in_place: bool) -> None:
        super().__init__()
        parts = torch.split(conv.weight.detach(), _SLICE, dim=1)
        self.weights = nn.ParameterList(nn.Parameter(part.clone(), requires_grad=False) for part in parts)
        self.bias = conv.bias
        self.how: tuple[Any, Any, Any] = conv.stride, conv.padding, conv.dilation
        self.in_place = in_place

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.split(x, _SLICE, dim=1)
        total = F.conv2d(parts[0], self.weights[0], self.bias, *self.how)
        for part, weight in zip(parts[1:], self.weights[1:], strict=True):
            if self.in_place:
                _add_conv(total, part, weight, None, *self.how)
            else:
                total += F.conv2d(part, weight, None, *self.how)
        return total


def _is_wide(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    """A dense 3x3 convolution of more than one slice."""
    if not _is_dense(module) or module.kernel_size != (3, 3):
        return False
    return module.in_channels > _SLICE and module.in_channels % _SLICE == 0


def _is_dense(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    return type(module) is nn.Conv2d and module.groups == 1 and module.padding_mode == "zeros"


class ResidualBlock(nn.Module):
    """A ResNet's block, its BatchNorm folded, that adds into its shortcut: the widest map is held once, not twice.

    Without a `downsample` the shortcut is the input itself, which is overwritten, or a copy of it to `keep` it.
    """

    def __init__(self, block: Any, *, keep: bool) -> None:
        super().__init__()
        *first, self.last = (getattr(block, f"conv{i + 1}") for i in range(_BLOCKS[class_name(block)]))
        self.first, self.downsample, self.keep = nn.Sequential(*map(ConvReLU, first)), block.downsample, keep

    def forward(self, x: Tensor) -> Tensor:
        y, conv = self.first(x), self.last
        if self.downsample is not None:
            x = self.downsample(x)
        elif self.keep:
            x = x.clone()
        return _add_conv(x, y, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, "relu")


def _is_plain(block: Any) -> bool:
    """A block that is dense convolutions and ReLUs, and nothing else."""
    count = _BLOCKS.get(class_name(block), 0)
    convs, norms, acts = ([getattr(block, f"{part}{i + 1}") for i in range(count)] for part in ("conv", "bn", "act"))
    more = [getattr(block, name, None) for name in ("se", "drop_path", "aa", "drop_block")]
    nothing = *norms, *(part for part in more if part is not None)
    return (
        count > 0
        and all(_is_dense(conv) for conv in convs)
        and all(type(part) is nn.Identity for part in nothing)
        and all(type(act) is nn.ReLU for act in acts)
    )


class ConvReLU(nn.Module):
    """A convolution and a ReLU, in one pass over the result."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        return _conv_relu(x, self.conv)


def _fuse_relu(network: nn.Module, run: Callable[[], object]) -> None:
    """Make ReLU in place a part of the convolutions whose outputs alone it is given, each computed once."""
    made_by: dict[int, tuple[nn.Conv2d, Tensor, int]] = {}  # the tensor is kept so that its id stays its own
    outputs: Counter[nn.Module] = Counter()
    reads: dict[nn.Module, list[nn.Conv2d | None]] = {}

    def note(module: nn.Conv2d, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        made_by[id(output)] = module, output, output._version
        outputs[module] += 1

    def match(module: nn.ReLU, inputs: tuple[Tensor, ...]) -> None:
        conv, made, version = made_by.get(id(inputs[0]), (None, inputs[0], -1))
        reads.setdefault(module, []).append(conv if made._version == version else None)

    handles = []
    for module in network.modules():
        if type(module) is nn.Conv2d and module.padding_mode == "zeros" and not isinstance(module.padding, str):
            handles.append(module.register_forward_hook(note))
        elif type(module) is nn.ReLU and module.inplace:  # whoever else reads the map sees it after ReLU as well
            handles.append(module.register_forward_pre_hook(match))
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    fused: dict[nn.Module, nn.Module] = {}
    for relu, convs in reads.items():
        if all(conv is not None and outputs[conv] == 1 for conv in convs):
            fused[relu] = nn.Identity()
            fused.update({conv: ConvReLU(conv) for conv in convs if conv is not None})
    for module in list(network.modules()):
        for name, child in module.named_children():
            if child in fused:
                setattr(module, name, fused[child])


# --- oneDNN's operators -------------------------------------------------------------------------


@cache
def can_add_in_place(dtype: torch.dtype) -> bool:
    """Whether this torch on this processor has the operators, and whether they do what they should."""
    x = torch.arange(-9.0, 9.0, dtype=dtype, device="cpu").view(1, 2, 3, 3).to(memory_format=torch.channels_last)
    conv = nn.Conv2d(2, 2, 1, dtype=dtype, device="cpu").requires_grad_(False)
    expected = F.relu(conv(x)), F.relu(x + conv(x))
    try:
        total = x.clone()
        _add_conv(total, x, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, "relu")
        found = _conv_relu(x, conv), total
    except (AttributeError, RuntimeError, TypeError):
        return False
    tolerance = 8 * torch.finfo(dtype).eps
    return all(torch.allclose(a, b, tolerance, tolerance) for a, b in zip(found, expected, strict=True))


def _conv_relu(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """relu(conv(x)), in one pass over the result."""
    call = torch.ops.mkldnn._convolution_pointwise
    y: Tensor = call(x, conv.weight, conv.bias, conv.padding, conv.stride, conv.dilation, conv.groups, "relu", [], "")
    return y


def _add_conv(
    total: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    then: str | None = None,
) -> Tensor:
    """total += conv(x), with a ReLU after it if `then` is `"relu"`; returns `total`."""
    call = torch.ops.mkldnn._convolution_pointwise_.binary
    result: Tensor = call(total, x, weight, bias, padding, stride, dilation, 1, "add", 1.0, then, [], "")
    return result
