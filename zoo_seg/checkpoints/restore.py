"""Tensors become the network they belong to."""

from __future__ import annotations

import logging
import math
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from zoo_seg.errors import CheckpointError
from zoo_seg.families.registry import Family, find_family
from zoo_seg.manifest import Architecture
from zoo_seg.network import SegmentationNetwork, build_network, without_weights
from zoo_seg.text import table

_log = logging.getLogger("zoo_seg")

MOST_CLASSES = 1 << 16
"""A mask holds no more."""


def count_classes(path: Path, tensors: Mapping[str, Tensor], architecture: Architecture) -> int:
    """How many classes a checkpoint's network has.

    Raises:
        CheckpointError: it has no classifier, or more classes than a mask can hold.
    """
    family = find_family(architecture.family)
    count = family.count_classes(tensors)
    if count is None:
        raise CheckpointError(f"{path} has no {family.class_tensor!r}, so its classes cannot be counted")
    if not 0 < count <= MOST_CLASSES:
        raise CheckpointError(f"{path} has {count} classes; a mask can hold 1 to {MOST_CLASSES}")
    return count


def restore(
    path: Path,
    tensors: Mapping[str, Tensor],
    architecture: Architecture,
    *,
    num_classes: int | None = None,
    in_chans: int = 3,
    adapt: bool = True,
    original: Callable[[str], str | None] = lambda name: name,
) -> SegmentationNetwork:
    """The network of a checkpoint's tensors in `eval()`: built without weights, which then are the tensors themselves.

    Args:
        path: the file, for messages.
        tensors: under this library's names.
        num_classes: other than the checkpoint's: the classifiers start anew, everything else is kept.
        in_chans: channels of the image.
        adapt: fit a first convolution that was trained on RGB to other channels.
        original: what the file calls a tensor.

    Raises:
        CheckpointError: the tensors do not fit the architecture; a table says which.
    """
    family = find_family(architecture.family)
    found = count_classes(path, tensors, architecture) if num_classes is None else family.count_classes(tensors)
    anew = num_classes is not None and num_classes != found
    classes = num_classes or found
    assert classes is not None
    with without_weights():
        network = build_network(architecture, classes, in_chans=in_chans)
    _fill(network, path, tensors, family if anew else None, adapt, original)
    _complete(network, lambda: build_network(architecture, classes, in_chans=in_chans))
    if anew:
        names = sorted(name for name in network.state_dict() if family.is_classifier(name))
        _log.warning("num_classes=%d instead of %d: %s start from random values", classes, found, ", ".join(names))
    return network.eval()


def _fill(
    network: SegmentationNetwork,
    path: Path,
    tensors: Mapping[str, Tensor],
    renewed: Family | None,
    adapt: bool,
    original: Callable[[str], str | None],
) -> None:
    """Put tensors into a network on the meta device, strictly; they are used as they are, not copied."""
    expected = network.state_dict()
    given = dict(tensors)
    stem = next(name for name, tensor in expected.items() if tensor.ndim == 4)
    channels = expected[stem].shape[1]
    if adapt and stem in given and given[stem].ndim == 4 and given[stem].shape[1] == 3 != channels:
        given[stem] = adapt_first_conv(given[stem], channels)
    left_out = {name for name in {*expected, *given} if renewed and renewed.is_classifier(name)}
    for name in left_out:
        given.pop(name, None)

    def shown(name: str) -> str:
        return original(name) or name

    rows = [
        (shown(name), "-", _shape(expected[name])) for name in expected if name not in given and name not in left_out
    ]
    rows += [(shown(name), _shape(tensor), "-") for name, tensor in given.items() if name not in expected]
    rows += [
        (shown(name), _shape(tensor), _shape(expected[name]))
        for name, tensor in given.items()
        if name in expected and _shape(tensor) != _shape(expected[name])
    ]
    if rows:
        raise CheckpointError(_misfits(path, rows))
    network.load_state_dict(given, strict=False, assign=True)


def _complete(network: nn.Module, build: Callable[[], nn.Module]) -> None:
    """Give values to what no checkpoint holds: new classifiers, buffers and constants kept out of the state dict."""
    if not any(tensor.is_meta for _, _, tensor in _tensors(network)):
        return
    whole = {(name, key): tensor for name, key, tensor in _tensors(build())}
    for name, key, tensor in _tensors(network):
        if tensor.is_meta:
            module = network.get_submodule(name)
            places: tuple[dict[str, Any], ...] = (module._parameters, module._buffers, module.__dict__)
            next(place for place in places if key in place)[key] = whole[name, key]


def _tensors(network: nn.Module) -> list[tuple[str, str, Tensor]]:
    """(module, name in it, tensor) of every parameter, buffer and plain attribute."""
    return [
        (name, key, value)
        for name, module in network.named_modules()
        for place in (module._parameters, module._buffers, module.__dict__)
        for key, value in list(place.items())
        if isinstance(value, Tensor)
    ]


def adapt_first_conv(weight: Tensor, in_chans: int) -> Tensor:
    """A first convolution over RGB, (N, 3, h, w), for other channels, as timm does it.

    One channel gets their sum; more repeat them, scaled so that the sum stays the same.
    """
    if in_chans == 1:
        return weight.sum(dim=1, keepdim=True)
    repeated = weight.repeat(1, math.ceil(in_chans / 3), 1, 1)[:, :in_chans]
    return repeated * (3 / in_chans)


def _shape(tensor: Tensor) -> str:
    kind = "" if tensor.is_floating_point() else " of integers"
    return ("x".join(map(str, tensor.shape)) or "scalar") + kind


def _misfits(path: Path, rows: list[tuple[str, str, str]], most: int = 20) -> str:
    """What does not fit, as text: one row a tensor, `-` where a side has none."""
    text = table(("tensor", "in the file", "in the network"), rows[:most])
    if len(rows) > most:
        text += f"\n... and {len(rows) - most} more"
    return f"{path} does not fit the network in {len(rows)} tensors:\n" + textwrap.indent(text, "  ")
