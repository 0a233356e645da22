"""The parts of a transformer that reads feature maps."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def sine_positions(height: int, width: int, channels: int, like: Tensor) -> Tensor:
    """(height * width, channels): sines and cosines of each place's row, then of its column (DETR, 2005.12872)."""
    count = channels // 2
    index = torch.arange(count, device=like.device, dtype=torch.float32)
    periods = 10000 ** (2 * torch.div(index, 2, rounding_mode="floor") / count)
    axes = []
    for size in (height, width):
        place = torch.arange(1, size + 1, device=like.device, dtype=torch.float32)
        angles = (place / (place[-1:] + 1e-6) * (2 * math.pi))[:, None] / periods
        axes.append(torch.stack([angles[:, 0::2].sin(), angles[:, 1::2].cos()], dim=2).flatten(1))
    rows = axes[0][:, None].expand(height, width, count)
    columns = axes[1][None].expand(height, width, count)
    return torch.cat([rows, columns], dim=2).flatten(0, 1).to(like.dtype)


class FeedForward(nn.Module):
    """Two linear layers and the shortcut; (N, L, channels) -> the same."""

    def __init__(self, channels: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.linear1, self.act, self.linear2 = nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.drop(self.linear2(self.act(self.linear1(x))))
        return out


class Attention(nn.Module):
    """Multi-head attention; queries (N, Q, channels), keys and values (N, K, channels) -> (N, Q, channels)."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj, self.out_proj = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None = None) -> Tensor:
        """`allowed`, (N, 1, Q, K), is False where a query must not look."""
        weights, biases = self.in_proj.weight.chunk(3), self.in_proj.bias.chunk(3)
        q, k, v = (
            torch.unflatten(F.linear(x, weight, bias), 2, (self.heads, -1)).transpose(1, 2)
            for x, weight, bias in zip((query, key, value), weights, biases, strict=True)
        )
        found = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
        out: Tensor = self.out_proj(found.transpose(1, 2).flatten(2))
        return out


class DeformableAttention(nn.Module):
    """Each place reads a few places of every map, around its own (Deformable DETR, 2010.04159).

    Args:
        channels: of the maps.
        heads: groups of channels that read at places of their own.
        levels: how many maps there are.
        points: how many places of each map a head reads.
    """

    def __init__(self, channels: int, heads: int, levels: int, points: int = 4) -> None:
        super().__init__()
        self.heads, self.shape = heads, (heads, levels, points)
        self.sampling_offsets = nn.Linear(channels, heads * levels * points * 2)
        self.attention_weights = nn.Linear(channels, heads * levels * points)
        self.value_proj, self.output_proj = nn.Linear(channels, channels), nn.Linear(channels, channels)
        for each in (self.sampling_offsets, self.attention_weights):
            nn.init.zeros_(each.weight)
            nn.init.zeros_(each.bias)
        angles = torch.arange(heads, device="cpu") * (2 * math.pi / heads)  # values also where the weights have none
        rays = torch.stack([angles.cos(), angles.sin()], dim=1)
        rays = rays / rays.abs().amax(dim=1, keepdim=True)
        steps = torch.arange(1, points + 1, device="cpu")[:, None]
        with torch.no_grad():
            self.sampling_offsets.bias.copy_((rays[:, None, None] * steps).expand(*self.shape, 2).flatten())

    def forward(self, x: Tensor, query: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
        """What every place has read.

        Args:
            x: the maps of these sizes (height, width) one after the other, (N, L, channels).
            query: the same with their positions.
            sizes: of the maps.
        """
        exact = torch.promote_types(x.dtype, torch.float32)  # places need the digits
        offsets = self.sampling_offsets(query).unflatten(2, (*self.shape, 2)).to(exact)
        weights = self.attention_weights(query).unflatten(2, (self.heads, -1)).softmax(-1)
        values = self.value_proj(x).unflatten(2, (self.heads, -1)).permute(0, 2, 3, 1).flatten(0, 1)
        places = torch.cat([_centres(*size, offsets) for size in sizes])[:, None, None]  # (L, 1, 1, 2)
        found = []
        for level, (size, value) in enumerate(zip(sizes, values.split([h * w for h, w in sizes], dim=2), strict=True)):
            spread = torch.tensor([size[1], size[0]], device=x.device, dtype=exact)
            grid = (2 * (places + offsets[:, :, :, level] / spread) - 1).transpose(1, 2).flatten(0, 1)
            found.append(F.grid_sample(value.unflatten(2, size).to(exact), grid, align_corners=False))
        each = torch.cat(found, dim=3) * weights.transpose(1, 2).flatten(0, 1)[:, None]
        out: Tensor = self.output_proj(each.sum(3).unflatten(0, (-1, self.heads)).flatten(1, 2).mT.to(x.dtype))
        return out


def _centres(height: int, width: int, like: Tensor) -> Tensor:
    """(height * width, 2): x and y of each pixel's centre, of a map from 0 to 1."""
    y = (torch.arange(height, device=like.device, dtype=like.dtype) + 0.5) / height
    x = (torch.arange(width, device=like.device, dtype=like.dtype) + 0.5) / width
    return torch.stack([x[None].expand(height, width), y[:, None].expand(height, width)], dim=2).flatten(0, 1)
