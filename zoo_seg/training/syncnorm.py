"""BatchNorm over the images of all processes, on any device (torch's own works on GPUs only)."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class ProcessBatchNorm(nn.BatchNorm2d):
    """A BatchNorm whose mean and variance are those of every process's images, with the same names and values."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__(norm.num_features, norm.eps, 0.1 if norm.momentum is None else norm.momentum)
        self.weight, self.bias = norm.weight, norm.bias
        self.running_mean, self.running_var = norm.running_mean, norm.running_var
        self.num_batches_tracked = norm.num_batches_tracked
        self.after = nn.Sequential(*norm.children())  # timm's BatchNorm may carry an activation
        self.train(norm.training)

    def forward(self, x: Tensor) -> Tensor:
        x = self._normalise(x.to(self.weight.dtype)).to(x.dtype) if self.training else super().forward(x)
        out: Tensor = self.after(x)
        return out

    def _normalise(self, x: Tensor) -> Tensor:
        count = x.numel() // x.shape[1] * dist.get_world_size()  # every process has as many images
        mean = _over_all(x.sum((0, 2, 3))) / count
        centred = x - mean[:, None, None]
        variance = _over_all(centred.square().sum((0, 2, 3))) / count
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum or 0.0)
            self.running_var.lerp_(variance * count / max(count - 1, 1), self.momentum or 0.0)
            self.num_batches_tracked += 1
        scale: Tensor = self.weight * (variance + self.eps).rsqrt()
        return centred * scale[:, None, None] + self.bias[:, None, None]


class _Sum(torch.autograd.Function):
    """The sum over all processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total


def _over_all(x: Tensor) -> Tensor:
    total: Tensor = _Sum.apply(x)
    return total


def synchronise(module: nn.Module, device: torch.device) -> None:
    """Make every BatchNorm inside `module` look at all processes, in place."""
    if device.type == "cuda":
        _synchronise_on_gpus(module)
        return
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, ProcessBatchNorm(child))
        else:
            synchronise(child, device)


def _synchronise_on_gpus(module: nn.Module) -> None:
    if any(isinstance(each, nn.BatchNorm2d) and [*each.children()] for each in module.modules()):
        from timm.layers.norm_act import convert_sync_batchnorm  # the network's norms are timm's, with activations

        convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
    else:
        nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
