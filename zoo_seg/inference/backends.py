"""What computes a network's logits for `predict`, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from zoo_seg.errors import MissingExtraError, OptionError
from zoo_seg.inference.prepare import prepare
from zoo_seg.layers.readout import HeadOutput
from zoo_seg.network import SegmentationNetwork

Backend = Literal["torch", "openvino", "auto"]


class InferenceBackend(Protocol):
    """What computes logits, see `SegmentationNetwork`: a prepared network, or a graph in another runtime."""

    @property
    def in_chans(self) -> int: ...
    @property
    def align_corners(self) -> bool: ...
    @property
    def size_divisor(self) -> int: ...
    def forward_logits(self, x: Tensor) -> HeadOutput: ...


class Prepare(Protocol):
    """Makes a network ready on a device in a type; `owner` and `compiled` are `prepare`'s."""

    def __call__(
        self,
        network: SegmentationNetwork,
        device: torch.device,
        dtype: torch.dtype,
        *,
        owner: nn.Module | None = None,
        compiled: bool = False,
    ) -> InferenceBackend: ...


def _openvino() -> Prepare:
    from zoo_seg.export.backend import prepare_openvino  # needs an extra

    return prepare_openvino


def _fastest() -> Prepare:
    try:
        from zoo_seg.export.backend import prepare_fastest
    except MissingExtraError:
        return prepare
    return prepare_fastest


BACKENDS: Mapping[str, Callable[[], Prepare]] = {"torch": lambda: prepare, "openvino": _openvino, "auto": _fastest}
"""How what prepares for each is had; what needs an extra is imported when it is asked for."""


def find_backend(name: str | None) -> Prepare:
    """What prepares a network for the backend of this name; None is torch.

    Raises:
        OptionError: there is none.
        MissingExtraError: it needs a package; the message names the pip command.
    """
    if name is not None and name not in BACKENDS:
        raise OptionError(f"backend is {name!r}; expected one of {', '.join(BACKENDS)}")
    return BACKENDS[name or "torch"]()
