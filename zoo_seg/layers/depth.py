"""Stochastic depth (Huang et al. 2016, 1603.09382)."""

from __future__ import annotations

from torch import Tensor, nn


class StochasticDepth(nn.Module):
    """In training drops a residual branch for some images and scales it for the others; (N, ...) -> the same.

    Args:
        rate: share of images for which the branch is dropped.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.rate:
            return x
        kept = x.new_empty(len(x), *[1] * (x.ndim - 1)).bernoulli_(1 - self.rate)
        return x * (kept / (1 - self.rate))


def rising_rates(last: float, depth: int) -> list[float]:
    """The rate of each of `depth` blocks, from 0 to `last`."""
    return [last * block / max(depth - 1, 1) for block in range(depth)]
