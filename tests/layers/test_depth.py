"""Stochastic depth."""

from __future__ import annotations

import pytest
import torch

from zoo_seg.layers.depth import StochasticDepth, rising_rates


def test_whole_images_are_dropped_and_the_mean_stays() -> None:
    torch.manual_seed(0)
    layer, x = StochasticDepth(0.25), torch.rand(4000, 3, 2) + 1
    share = layer(x) / x
    kept = share[:, 0, 0] > 0
    torch.testing.assert_close(share, (kept / 0.75)[:, None, None].expand_as(share))
    assert float(kept.float().mean()) == pytest.approx(0.75, abs=0.03)


def test_inference_drops_nothing() -> None:
    x = torch.randn(2, 3)
    assert StochasticDepth(0.9).eval()(x) is x
    assert StochasticDepth(0.0)(x) is x


def test_rates_rise_from_zero() -> None:
    assert rising_rates(0.3, 4) == pytest.approx([0, 0.1, 0.2, 0.3])
    assert rising_rates(0.3, 1) == [0]
