"""A 3x3 convolution over enlarged maps, multiplied before it is enlarged.

A convolution over several maps side by side, some of them enlarged to the first, is a sum with a part for each map, and
both the enlarging and the convolution are linear. So a small map's places are multiplied by the nine taps of its part
first, and the products are spread over the large map by a matrix along each axis.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from zoo_seg.layers.resample import tap_matrix


class Taps(nn.Module):
    """The part of a 3x3 convolution's weight that meets one of the enlarged maps: (in_channels, channels, 3, 3)."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(in_channels, channels, 3, 3))


def weights_of(taps: nn.ModuleList) -> Iterator[Tensor]:
    """The weights of several `Taps`, as they are now."""
    for tap in taps:
        yield tap.weight  # type: ignore[misc]


def _products(x: Tensor, weight: Tensor) -> Tensor:
    """The nine products of every place: (N, in_channels, h, w) -> (N, 3 * h, 3 * w, channels).

    Row t * h + i holds place i's products with row t of the kernel, column 3 * j + t place j's with column t.
    """
    count, _, height, width = x.shape
    places = x.permute(0, 2, 3, 1).flatten(1, 2)[:, None]
    weight = weight.permute(2, 0, 3, 1).flatten(2)  # (3, in_channels, 3 * channels)
    return (places @ weight).view(count, 3 * height, 3 * width, -1)


def convolve_enlarged(
    weights: Iterable[Tensor], maps: Sequence[Tensor], size: tuple[int, int], align_corners: bool
) -> Tensor:
    """The sum of 3x3 convolutions of the maps, each enlarged to a size: (N, channels, *size).

    Args:
        weights: one for each map, (in_channels, channels, 3, 3).
        maps: (N, in_channels, h, w) each, at least one.
        size: height and width.
        align_corners: of the enlarging.
    """
    total: Tensor | None = None
    for weight, x in zip(weights, maps, strict=True):
        height, width = x.shape[-2:]
        rows = tap_matrix(height, size[0], x, align_corners).mT.flatten(1).expand(x.shape[0], -1, -1)
        columns = tap_matrix(width, size[1], x, align_corners).flatten(1)
        strips = (columns @ _products(x, weight)).flatten(2)  # (N, 3 * height, size[1] * channels)
        total = torch.bmm(rows, strips) if total is None else total.baddbmm_(rows, strips)
        del strips  # memory is scarcest here
    assert total is not None
    return total.view(*total.shape[:2], size[1], -1).permute(0, 3, 1, 2)


def init_parts(conv: nn.Conv2d, taps: Sequence[Taps]) -> None:
    """torch's default for the undivided convolution."""
    width = conv.in_channels + sum(tap.weight.shape[0] for tap in taps)
    for weight in (conv.weight, *(tap.weight for tap in taps)):
        nn.init.uniform_(weight, -((9 * width) ** -0.5), (9 * width) ** -0.5)


def part_weight(tensors: Mapping[str, Tensor], conv: str, taps: str, count: int) -> dict[str, Tensor]:
    """A whole convolution `conv`, over a map and `count` more of its output's channels, as its own part and `taps`."""
    whole = tensors.get(f"{conv}.weight")
    if whole is None or whole.ndim != 4 or whole.shape[1] <= count * whole.shape[0]:
        return dict(tensors)  # something is missing or misshapen, which will be said when it is put into the network
    own, *others = torch.split(whole, [whole.shape[1] - count * len(whole), *[len(whole)] * count], dim=1)
    parts = {f"{taps}.{i}.weight": other.transpose(0, 1) for i, other in enumerate(others)}
    return {**tensors, f"{conv}.weight": own, **parts}
