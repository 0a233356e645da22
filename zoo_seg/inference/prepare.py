"""A network made ready for inference: a copy with its BatchNorm folded into the convolutions."""

from __future__ import annotations

import copy
import logging
import math
import threading
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from zoo_seg.errors import OptionError
from zoo_seg.inference.cpu import suit_cpu
from zoo_seg.inference.memory import drop_file_pages, give_back
from zoo_seg.inference.snapshot import Snapshot, class_name
from zoo_seg.networks.network import SegmentationNetwork

_log = logging.getLogger("zoo_seg")

Sizes = Sequence[tuple[int, int]]
PROBE: Sizes = ((64, 64), (97, 71))
"""(height, width) of the inputs at which a rewritten network is compared with itself; one of them is odd."""


def prepare(
    network: SegmentationNetwork,
    device: torch.device,
    dtype: torch.dtype,
    *,
    compiled: bool = False,
    probe: Sizes = PROBE,
) -> SegmentationNetwork | AsItIs:
    """A copy in `eval()`, without the auxiliary head, folded and channels_last; the network stays as it was.

    Where a copy might compute something else (hooks, patched methods, parametrisations), the network itself.

    Args:
        compiled: it will go through `torch.compile`, which fuses layers itself and cannot look into `cpu`'s.
        probe: (height, width) of inputs that the network takes.

    Raises:
        OptionError: the network must be used as it is, and is on another device.
    """
    reason = _why_not(network)
    if reason is None:
        try:
            ready = _copy(network, device)
        except (RuntimeError, TypeError, NotImplementedError) as error:
            reason = f"it cannot be copied ({error})"
    if reason is not None:
        _log.info("the network is used as it is, which is slower: %s", reason)
        return AsItIs(network, device, dtype)

    def rewrite() -> None:
        _fold(ready, probe[0])
        if device.type == "cpu":
            suit_cpu(ready, dtype, in_place=not compiled)
        _forget_unread_maps(ready, trim=device.type == "cpu" and not compiled)

    if not _keeps(ready, rewrite, probe):
        _log.info("the network is not rewritten for speed: that would change its output")
        ready = _copy(network, device)
    for parameter in ready.parameters():  # one by one, which needs less memory than all at once
        parameter.data = parameter.to(
            dtype, memory_format=torch.channels_last if parameter.ndim == 4 else torch.preserve_format
        )
    return ready.to(dtype=dtype)


def _why_not(network: SegmentationNetwork) -> str | None:
    """Why a copy of the network may compute something else, or None."""
    if own := [name for name in _STEPS if getattr(type(network), name) is not getattr(SegmentationNetwork, name)]:
        return f"{type(network).__name__} has a {own[0]} of its own"
    return Snapshot(network, contents=False).reason


_STEPS = "forward", "forward_logits", "forward_features", "forward_head"


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
    return SegmentationNetwork(copies["backbone"], copies["head"], None).eval()


class AsItIs:
    """A network that is not copied: it computes with its own tensors, hooks and methods, in `eval()`.

    Args:
        dtype: another one than the network's is computed in by autocast.

    Raises:
        OptionError: the network is on another device.
    """

    _alone = threading.RLock()  # the mode of a network is seen by all threads

    def __init__(self, network: SegmentationNetwork, device: torch.device, dtype: torch.dtype) -> None:
        own = next(network.parameters())
        if own.device.type != device.type or device.index not in (None, own.device.index):
            raise OptionError(
                f"the network has hooks or parts that a copy may lose, so it runs where it is, on {own.device}; "
                f"move it with model.to({str(device)!r}), or leave device out"
            )
        self.network, self.dtype, self._own = network, dtype, own.dtype

    @property
    def in_chans(self) -> int:
        """Channels of the picture."""
        return self.network.in_chans

    def forward_logits(self, x: Tensor) -> Tensor:
        """As the network's, or its whole `forward` where something was done to that: logits at the input's size."""
        network = self.network
        plain = Snapshot.is_plain(network) and type(network).forward is SegmentationNetwork.forward
        with self._alone, torch.inference_mode(False), torch.no_grad(), _precision(x.device, self.dtype, self._own):
            trained = [module for module in network.modules() if module.training]
            for module in trained:
                module.training = False
            try:
                # Its hooks get a tensor of the usual kind: one of inference mode cannot be written to outside of it.
                logits: Tensor = (network.forward_logits if plain else network)(x.to(self._own, copy=True))
            finally:
                for module in trained:
                    module.training = True
        return logits


def _precision(device: torch.device, dtype: torch.dtype, own: torch.dtype) -> torch.autocast:
    mixed = dtype not in (own, torch.float32)
    return torch.autocast(device.type, dtype if mixed else None, enabled=mixed)


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
    if class_name(network.backbone) in _STAGE_LISTS and getattr(network.head, "level", None) == -1:
        network.backbone = _LastMap(network.backbone.children(), trim=trim)


_STAGE_LISTS = {"timm.models._features.FeatureListNet"}
"""Backbones that are their children one after the other."""


@torch.no_grad()
def fold_batchnorm(network: SegmentationNetwork, probe: Sizes = PROBE) -> bool:
    """Scale every convolution by the BatchNorm that alone reads it; the same function with fewer steps.

    Returns:
        Whether the network still computes the same; a convolution that something else reads as well spoils it.
    """
    return _keeps(network, lambda: _fold(network, probe[0]), probe)


def _keeps(network: SegmentationNetwork, rewrite: Callable[[], None], probe: Sizes) -> bool:
    """Whether the network computes the same after `rewrite` as before, on noise of every size."""
    noise = [_noise(network, size) for size in probe]
    try:
        expected = [network.forward_logits(x) for x in noise]
        rewrite()
        found = [network.forward_logits(x) for x in noise]
    except Exception as error:  # noqa: BLE001  (whatever a stranger's layer does not take)
        _log.info("comparing the network with itself failed: %s", error)
        return False
    return all(map(_is_close, found, expected))


def _is_close(found: Tensor, expected: Tensor) -> bool:
    tolerance = 1e-3 * float(expected.std())
    return (
        math.isfinite(tolerance)
        and found.shape == expected.shape
        and torch.allclose(expected, found, rtol=1e-3, atol=tolerance)
    )


def _noise(network: SegmentationNetwork, size: tuple[int, int]) -> Tensor:
    weight = next(network.parameters())
    noise = torch.randn(
        1, network.in_chans, *size, generator=torch.Generator("cpu").manual_seed(0), dtype=weight.dtype, device="cpu"
    )
    return noise.to(weight.device)


_NORMS = {"torch.nn.modules.batchnorm.BatchNorm2d", "timm.layers.norm_act.BatchNormAct2d"}


def _fold(network: SegmentationNetwork, size: tuple[int, int]) -> None:
    for conv, norm in _pairs(network, _noise(network, size)):
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

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        made_by[id(output)] = module, output, output._version

    def match(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        conv, made, version = made_by.get(id(inputs[0]), (None, inputs[0], 0))
        if conv is not None and made._version == version:
            pairs.append((conv, module))

    handles = []
    for module in network.modules():
        if type(module) is nn.Conv2d:
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
