"""Whether a saved network would be the same after loading: what cannot be rebuilt is refused when saving."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.utils import parametrize

from zoo_seg.errors import OptionError
from zoo_seg.manifest import Architecture
from zoo_seg.network import SegmentationNetwork, build_network, without_weights


def check_rebuilds(network: SegmentationNetwork, architecture: Architecture | None, num_classes: int) -> None:
    """Refuse a network that its architecture does not describe any more.

    Raises:
        OptionError: names the first layer that differs, and says what to do instead.
    """
    if architecture is None:
        raise OptionError("this network has no architecture to save; make it with build_model or create_model")
    saved = network.state_dict().keys()
    kept_out = [name for name, _ in network.named_buffers() if name not in saved]
    with torch.device("cpu") if kept_out else without_weights(), torch.random.fork_rng(devices=[]):
        rebuilt = build_network(architecture, num_classes, in_chans=network.in_chans)
    for (name, here), (_, there) in zip(_layers(network), _layers(rebuilt), strict=False):
        if here != there:
            raise OptionError(f"{name} is {here}, and would be {there} after loading; {_INSTEAD}")
    shapes = [{name: str(tuple(each.shape)) for name, each in part.state_dict().items()} for part in (network, rebuilt)]
    for name in sorted(shapes[0].keys() | shapes[1].keys()):
        here, there = (each.get(name, "nothing") for each in shapes)
        if here != there:
            raise OptionError(f"{name} is {here}, and would be {there} after loading; {_INSTEAD}")
    fresh = dict(rebuilt.named_buffers())
    for name, buffer in network.named_buffers():
        if name in kept_out and not torch.equal(buffer.cpu(), fresh[name]):
            raise OptionError(f"the buffer {name} is not saved, and would have other values after loading; {_INSTEAD}")


_INSTEAD = "expected the network that build_model or create_model made: save a changed one with torch.save(model)"


def _layers(network: nn.Module) -> Iterator[tuple[str, str]]:
    """(name, what it is) of every layer; dropout does nothing when predicting."""
    for name, module in network.named_modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            yield name, "Dropout"
            continue
        kind = type(module)
        if parametrize.is_parametrized(module):
            yield name, f"a parametrised {kind.__name__.removeprefix('Parametrized')}"
        elif "forward" in module.__dict__:
            yield name, f"a {kind.__name__} with another forward"
        else:
            yield name, f"{kind.__module__}.{kind.__qualname__}({module.extra_repr()})"
