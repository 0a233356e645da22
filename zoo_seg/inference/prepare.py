"""A network made ready for inference: a copy with its BatchNorm folded into the convolutions."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from zoo_seg.backbones.staged import StagedBackbone
from zoo_seg.errors import OptionError
from zoo_seg.inference.cpu import optimize_for_cpu
from zoo_seg.inference.memory import drop_file_pages, give_back
from zoo_seg.inference.snapshot import LOCK, Snapshot, class_name, is_called_otherwise
from zoo_seg.layers.fused import FusedConv
from zoo_seg.layers.readout import HeadOutput, Queries
from zoo_seg.network import SegmentationNetwork

_log = logging.getLogger("zoo_seg")


@torch.no_grad()
def prepare(
    network: SegmentationNetwork,
    device: torch.device,
    dtype: torch.dtype,
    *,
    owner: nn.Module | None = None,
    compiled: bool = False,
) -> SegmentationNetwork | AsItIs:
    """A copy in `eval()`, without the auxiliary heads, folded and channels_last; the network stays as it was.

    Where a copy might compute something else (hooks, patched methods, parametrisations) it is the network itself.

    Args:
        owner: the module around the network that users call.
        compiled: it will go through `torch.compile`, which fuses layers itself and cannot look into `cpu`'s.

    Raises:
        OptionError: the network is to be used as it is, and is on another device.
    """
    owner = owner or network
    copied, reason = plain_copy(network, device, owner)
    if copied is None:
        _log.info("the network is used as it is, neither copied nor rewritten for speed: %s", reason)
        return AsItIs(network, owner, device, dtype)
    ready = copied

    def rewrite() -> None:
        _fold(ready)
        if device.type == "cpu":
            noise = _noise(ready, (ready.probe, ready.probe))
            optimize_for_cpu(ready, dtype, lambda: ready.forward_logits(noise), in_place=not compiled)
        _keep_last_map_only(ready, trim=device.type == "cpu" and not compiled)

    if not _computes_the_same(ready, rewrite):
        _log.info("the network is not rewritten for speed, which would change its output")
        ready = _copy(network, device)
    for parameter in ready.parameters():  # one by one, which needs less memory than all at once
        parameter.data = parameter.to(
            dtype, memory_format=torch.channels_last if parameter.ndim == 4 else torch.preserve_format
        )
    return ready.to(dtype=dtype)


def plain_copy(
    network: SegmentationNetwork, device: torch.device, owner: nn.Module
) -> tuple[SegmentationNetwork | None, str]:
    """A float32 copy in `eval()` that nothing was rewritten in, or None and why it may compute something else."""
    if reason := Snapshot(owner, contents=False).reason:
        return None, reason
    try:
        return _copy(network, device), ""
    except (RuntimeError, TypeError, NotImplementedError) as error:
        return None, f"it cannot be copied ({error})"


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


class AsItIs:
    """A network that is not copied: it computes with its own weights, hooks and methods, in `eval()`.

    Args:
        owner: the module around the network that users call, or the network.
        dtype: if it is not the network's own, autocast computes in it.

    Raises:
        OptionError: the network is on another device.
    """

    def __init__(
        self, network: SegmentationNetwork, owner: nn.Module, device: torch.device, dtype: torch.dtype
    ) -> None:
        weight = next(network.parameters())
        if weight.device.type != device.type or device.index not in (None, weight.device.index):
            raise OptionError(
                f"the network has hooks or parts that a copy may lose, so it runs where it is, on {weight.device}; "
                f"move it with model.to({str(device)!r}), or leave device out"
            )
        self.network, self.owner, self.dtype = network, owner, weight.dtype
        self.mixed = None if dtype in (weight.dtype, torch.float32) else dtype

    @property
    def in_chans(self) -> int:
        """Channels of the image."""
        return self.network.in_chans

    @property
    def align_corners(self) -> bool:
        """The network's."""
        return self.network.align_corners

    @property
    def size_divisor(self) -> int:
        """The network's; `forward` has cut its logits already."""
        return 1 if self._called_otherwise else self.network.size_divisor

    @property
    def _called_otherwise(self) -> nn.Module | None:
        return next(filter(is_called_otherwise, (self.owner, self.network)), None)

    def forward_logits(self, x: Tensor) -> HeadOutput:
        """The network's; where something was done to the whole of it, the logits of `forward`, at the input's size."""
        call = self._called_otherwise or self.network.forward_logits
        # All threads see a network's mode. Its hooks get a usual tensor: one of inference mode is of no use outside.
        precision = torch.autocast(x.device.type, self.mixed, enabled=self.mixed is not None)
        with LOCK, torch.inference_mode(False), torch.no_grad(), precision:
            trained = [module for module in self.owner.modules() if module.training]
            for module in trained:
                module.training = False
            try:
                logits: HeadOutput = call(x.to(self.dtype, copy=True))
            finally:
                for module in trained:
                    module.training = True
        return logits


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


def _keep_last_map_only(network: SegmentationNetwork, *, trim: bool) -> None:
    """For a head that reads the last map alone."""
    body = network.backbone
    if getattr(network.head, "level", None) != -1:
        return
    if isinstance(body, StagedBackbone) and type(body).forward is StagedBackbone.forward:
        network.backbone = _LastMap((module for stage in body.chain() for module in stage), trim=trim)
    elif class_name(body) == "timm.models._features.FeatureListNet":  # its children one after the other
        network.backbone = _LastMap(body.children(), trim=trim)


@torch.no_grad()
def fold_batchnorm(network: SegmentationNetwork) -> bool:
    """Scale every convolution by the BatchNorm that alone reads it; the same function with fewer steps.

    Returns:
        Whether the network still computes the same; a convolution that something else reads as well spoils it.
    """
    return _computes_the_same(network, lambda: _fold(network))


def _computes_the_same(network: SegmentationNetwork, rewrite: Callable[[], None]) -> bool:
    """Whether `rewrite` leaves the network's output on noise of two sizes, one of them odd, as it is."""
    side = network.probe
    noise = [_noise(network, size) for size in ((side, side), (side + side // 2 + 1, side + 7))]
    try:
        expected = [network.forward_logits(x) for x in noise]
        rewrite()
        found = [network.forward_logits(x) for x in noise]
    except Exception as error:  # whatever a layer that nobody here knows may raise
        _log.info("the network could not be compared with itself: %s", error)
        return False
    return all(map(_is_close, found, expected))


def _is_close(found: HeadOutput, expected: HeadOutput) -> bool:
    if isinstance(found, Queries) and isinstance(expected, Queries):
        return all(map(_is_close, found[:2], expected[:2]))
    assert isinstance(found, Tensor)
    assert isinstance(expected, Tensor)
    tolerance = 1e-3 * float(expected.std())
    return math.isfinite(tolerance) and torch.allclose(expected, found, rtol=1e-3, atol=tolerance)


def _noise(network: SegmentationNetwork, size: tuple[int, int]) -> Tensor:
    weight, generator = next(network.parameters()), torch.Generator("cpu").manual_seed(0)
    noise = torch.randn(1, network.in_chans, *size, generator=generator, dtype=torch.float32, device="cpu")
    return noise.to(weight.device, weight.dtype)


_NORMS = {"torch.nn.modules.batchnorm.BatchNorm2d", "timm.layers.norm_act.BatchNormAct2d"}


def _fold(network: SegmentationNetwork) -> None:
    for conv, norm in _pairs(network, _noise(network, (network.probe, network.probe))):
        mean, var = norm.running_mean, norm.running_var
        if mean is None or var is None:  # it normalises by the map itself, in `eval()` as well
            continue
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, mean, var, norm.eps, norm.weight, norm.bias
        )
        _replace(network, norm)


def _pairs(network: SegmentationNetwork, noise: Tensor) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Each convolution with the BatchNorm that was handed its output in a run on noise."""
    # The tensor is kept so that its id stays its own; its version tells whether something was added to it since.
    made_by: dict[int, tuple[nn.Conv2d, Tensor, int]] = {}
    pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []

    def note(module: nn.Conv2d, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        made_by[id(output)] = module, output, output._version

    def match(module: nn.BatchNorm2d, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        conv, made, version = made_by.get(id(inputs[0]), (None, inputs[0], 0))
        if conv is not None and made._version == version:
            pairs.append((conv, module))

    handles = []
    for module in network.modules():
        if type(module) in (nn.Conv2d, FusedConv):
            handles.append(module.register_forward_hook(note))
        elif class_name(module) in _NORMS:
            handles.append(module.register_forward_hook(match))
    try:
        network.forward_logits(noise)
    finally:
        for handle in handles:
            handle.remove()
    return pairs


def _replace(network: nn.Module, norm: nn.BatchNorm2d) -> None:
    """Put what a BatchNorm did besides normalising (timm's carry an activation) in its place."""
    rest = [part for part in norm.children() if type(part) is not nn.Identity]
    for module in network.modules():
        for name, child in module.named_children():
            if child is norm:
                setattr(module, name, nn.Sequential(*rest) if rest else nn.Identity())
