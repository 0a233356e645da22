"""The first convolution's weights for images of another number of channels."""

from __future__ import annotations

from torch import Tensor


def adapt_input_conv(in_chans: int, weight: Tensor) -> Tensor:
    """Weights (N, 3, h, w) of a convolution that reads RGB -> (N, in_chans, h, w), as timm does it.

    One channel takes the sum over the colours. More channels repeat them in turn, scaled so that an image whose
    channels are all alike gives the same output.
    """
    if in_chans == 3:
        return weight
    if in_chans == 1:
        return weight.float().sum(dim=1, keepdim=True).to(weight.dtype)
    repeats = -(-in_chans // 3)
    return (weight.float().repeat(1, repeats, 1, 1)[:, :in_chans] * (3 / in_chans)).to(weight.dtype)
