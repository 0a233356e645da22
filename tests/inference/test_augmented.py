"""Windows, flips and resizes as one mixing equal what the same operations give one after the other."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from zoo_seg.inference.augmented import Geometry, LinearLogits, Size, windowed_logits, windows
from zoo_seg.inference.labels import winners
from zoo_seg.inference.taps import Taps, bilinear, overlapping
from zoo_seg.layers.readout import HeadOutput, Queries, read_out
from zoo_seg.layers.resample import bilinear_matrix
from zoo_seg.network import padded_size

STRIDE = 4
"""Of the head's logits over its input."""


def infer(classes: int, geometry: Geometry) -> Callable[[Tensor], Tensor]:
    """Logits that depend on every place of the input, padded as a network pads it."""
    weight = torch.randn(classes, 3, STRIDE, STRIDE, generator=torch.Generator().manual_seed(1))

    def logits(x: Tensor) -> Tensor:
        height, width = padded_size(x.shape[-2], x.shape[-1], geometry.size_divisor)
        x = F.pad(x, (0, width - x.shape[-1], 0, height - x.shape[-2]))
        return F.conv2d(x, weight, stride=STRIDE, padding=STRIDE // 2)

    return logits


def enlarged(output: HeadOutput, size: Size, geometry: Geometry) -> Tensor:
    """A head's output at the size of the network's input, as a network gives it."""

    def resized(values: Tensor) -> Tensor:
        whole = padded_size(*size, geometry.size_divisor)
        values = F.interpolate(values, whole, mode="bilinear", align_corners=geometry.align_corners)
        return values[..., : size[0], : size[1]]

    if isinstance(output, Queries):
        return read_out(resized(output.masks), output.classes)
    return resized(output)


def slid(
    run: Callable[[Tensor], HeadOutput], x: Tensor, crop: Size, stride: Size, output: Size, geometry: Geometry
) -> Tensor:
    """The windows' logits added up at full size, divided by how many there are, and resized."""
    total, count = None, torch.zeros(x.shape[-2:])
    for top, bottom in windows(x.shape[-2], crop[0], stride[0]):
        for left, right in windows(x.shape[-1], crop[1], stride[1]):
            found = enlarged(run(x[..., top:bottom, left:right]), (bottom - top, right - left), geometry)
            if total is None:
                total = found.new_zeros(*found.shape[:2], *x.shape[-2:])
            total[..., top:bottom, left:right] += found
            count[top:bottom, left:right] += 1
    assert total is not None
    return F.interpolate(total / count, output, mode="bilinear", align_corners=geometry.align_corners)


CASES = [
    # input, crop, stride, output
    ((40, 52), (16, 20), (11, 13), (40, 52)),
    ((40, 52), (16, 20), (5, 6), (57, 61)),
    ((40, 52), (16, 20), (16, 20), (23, 31)),
    ((33, 35), (32, 32), (1, 2), (33, 35)),
    ((16, 90), (40, 20), (30, 19), (16, 90)),
]


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("geometry", [Geometry(), Geometry(True), Geometry(False, 8), Geometry(True, 32)])
@pytest.mark.parametrize(("size", "crop", "stride", "output"), CASES)
def test_windows(size: Size, crop: Size, stride: Size, output: Size, geometry: Geometry, flip: bool) -> None:
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(2))
    run = infer(7, geometry)
    expected = slid(run, x, crop, stride, output, geometry)
    if flip:
        expected = expected.flip(-1)
    got = windowed_logits(run, x, crop, stride, output, geometry, flip=flip)
    assert got.size == output
    strips = [got.strip(top, min(top + 5, output[0])) for top in range(0, output[0], 5)]
    torch.testing.assert_close(torch.cat(strips, dim=2), expected, rtol=1e-5, atol=1e-4)
    again = windowed_logits(run, x, crop, stride, output, geometry, flip=flip)
    assert isinstance(again, LinearLogits)
    chosen = expected.gather(1, winners(again).long()[:, None])[:, 0]
    assert (expected.amax(1) - chosen).abs().max() < 1e-4  # the winner, or one that ties with it


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("geometry", [Geometry(), Geometry(False, 8)])
@pytest.mark.parametrize(("size", "crop", "stride", "output"), CASES)
def test_windows_of_queries(size: Size, crop: Size, stride: Size, output: Size, geometry: Geometry, flip: bool) -> None:
    x = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(2))
    masks = infer(5, geometry)
    classes = torch.rand(1, 5, 4, generator=torch.Generator().manual_seed(3))

    def run(seen: Tensor) -> Queries:
        return Queries(masks(seen), classes)

    expected = slid(run, x, crop, stride, output, geometry)
    if flip:
        expected = slid(run, x, crop, stride, size, geometry).flip(-1)
        expected = F.interpolate(expected, output, mode="bilinear", align_corners=geometry.align_corners)
    got = windowed_logits(run, x, crop, stride, output, geometry, flip=flip)
    strips = [got.strip(top, min(top + 5, output[0])) for top in range(0, output[0], 5)]
    torch.testing.assert_close(torch.cat(strips, dim=2), expected, rtol=1e-5, atol=1e-4)


def test_a_wide_image_costs_memory_by_its_width_only() -> None:
    """Of a high one a few rows of windows are held, and every window is seen once."""
    geometry, seen = Geometry(), 0
    run = infer(3, geometry)

    def counted(x: Tensor) -> Tensor:
        nonlocal seen
        seen += 1
        return run(x)

    logits = windowed_logits(counted, torch.randn(1, 3, 400, 40), (24, 24), (16, 16), (400, 40), geometry, flip=False)
    assert isinstance(logits, LinearLogits)
    held = []
    for top in range(0, 400, 10):
        logits.strip(top, top + 10)
        held.append(len(logits.cells.held))  # type: ignore[attr-defined]
    assert max(held) <= 3  # the last window is shifted inward
    assert seen == len(windows(400, 24, 16)) * len(windows(40, 24, 16))


def dense(taps: Taps, cells: int) -> Tensor:
    used, matrix = taps.matrix(torch.empty(0, dtype=torch.float64))
    return torch.zeros(len(taps), cells, dtype=torch.float64).index_copy_(1, used, matrix)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("size", "new"), [(1, 7), (7, 1), (5, 5), (6, 17), (17, 6), (64, 512)])
def test_taps_are_the_resize(size: int, new: int, align_corners: bool) -> None:
    taps = bilinear(size, new, align_corners)
    like = torch.empty(0, dtype=torch.float64)
    expected = bilinear_matrix(size, new, like, align_corners=align_corners)
    torch.testing.assert_close(dense(taps, size), expected)
    torch.testing.assert_close(
        dense(taps.resized(11, align_corners), size),
        bilinear_matrix(new, 11, like, align_corners=align_corners) @ expected,
    )
    assert taps.cells.shape[1] <= 2
    assert (taps.cells.diff(dim=1) >= 0).all()


def test_overlapping_windows_are_averaged() -> None:
    taps = overlapping([(0, 4), (2, 6)], bilinear(2, 4), 2)
    own = bilinear_matrix(2, 4, torch.empty(0, dtype=torch.float64))
    expected = torch.zeros(6, 4, dtype=torch.float64)
    expected[:4, :2] += own
    expected[2:, 2:] += own
    expected[2:4] /= 2
    torch.testing.assert_close(dense(taps, 4), expected)
