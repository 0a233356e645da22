"""Swin Transformer as segmentation networks use it: any size, a LayerNorm on every map. Liu et al. 2021, 2103.14030.

Maps are padded to whole windows first and shifted then, in all blocks of odd number. timm's `swin_*_patch4_*` shift
first, and do not shift what is a single window, which gives other maps.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo_seg.backbones.registry import register_backbone
from zoo_seg.backbones.staged import NormedBackbone, check_stride_of_32, create_with_timm_names
from zoo_seg.keymap import KeyMap, join
from zoo_seg.layers.depth import StochasticDepth, rising_rates

_EPS = 1e-5


class Windows(NamedTuple):
    """How a map's places lie in windows."""

    places: Tensor
    """For every place of one window after the other, where the map has it; its number of places for padding."""
    back: Tensor
    """For every place of the map, where the windows have it."""
    mask: Tensor | None
    """(windows, 1, L, L), added to the attention of a window's L places, so that strangers do not see each other."""

    @classmethod
    def of(cls, height: int, width: int, size: int, shift: int, like: Tensor) -> Windows:
        """Windows of size x size places on a map that is padded at the right and bottom and shifted up and left."""
        high, wide = (height + size - 1) // size, (width + size - 1) // size
        cell = torch.arange(size * size, device=like.device)
        down, right = torch.arange(high, device=like.device)[:, None], torch.arange(wide, device=like.device)
        row = (size * down + 0 * right).flatten()[:, None] + cell // size  # (windows, size * size)
        column = (0 * down + size * right).flatten()[:, None] + cell % size
        y, x = _wrapped(row + shift, high * size), _wrapped(column + shift, wide * size)
        places = torch.where((y < height) & (x < width), y * width + x, height * width)
        # The other way round: the row and the column at which the windows have a place of the map.
        y = _wrapped(torch.arange(height, device=like.device) + (high * size - shift), high * size)[:, None]
        x = _wrapped(torch.arange(width, device=like.device) + (wide * size - shift), wide * size)
        back = ((y // size * wide + x // size) * size + y % size) * size + x % size
        mask = None
        if shift:
            part = 3 * _part(row, high * size, size, shift) + _part(column, wide * size, size, shift)
            mask = -100.0 * (part[:, None] != part[:, :, None]).to(like.dtype)[:, None]
        return cls(places.flatten(), back.flatten(), mask)


def _wrapped(at: Tensor, count: int) -> Tensor:
    """Places below 2 * count modulo count, of which exporters know no form for counts that are symbols."""
    return torch.where(at < count, at, at - count)


def _part(at: Tensor, count: int, size: int, shift: int) -> Tensor:
    """Which of three parts a place is in: the last window holds the map's end and, shifted there, its beginning."""
    return (at >= count - size).long() + (at >= count - shift)


class WindowAttention(nn.Module):
    """The places of a window attend to each other; (N, P, C), P places of a map -> the same.

    Args:
        channels: C.
        heads: of the attention.
        size: side of a window.
    """

    def __init__(self, channels: int, heads: int, size: int) -> None:
        super().__init__()
        self.heads, self.size = heads, size
        self.qkv, self.proj = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.bias_table = nn.Parameter(torch.empty((2 * size - 1) ** 2, heads))
        nn.init.trunc_normal_(self.bias_table, std=0.02)

    def forward(self, x: Tensor, windows: Windows) -> Tensor:
        count, _, channels = x.shape
        each = F.pad(x, (0, 0, 0, 1)).index_select(1, windows.places).view(-1, self.size**2, channels)
        query, key, value = self.qkv(each).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        bias = self._bias()
        if windows.mask is not None:
            bias = (windows.mask + bias).repeat(count, 1, 1, 1)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)  # (N * windows, heads, L, C / heads)
        together = mixed.transpose(1, 2).reshape(count, -1, channels)
        out: Tensor = self.proj(together.index_select(1, windows.back))
        return out

    def _bias(self) -> Tensor:
        """(1, heads, L, L): what the table has for the way from each place of a window to each other one."""
        place = torch.arange(self.size**2, device=self.bias_table.device)
        down, right = ((at[:, None] - at + self.size - 1) for at in (place // self.size, place % self.size))
        return self.bias_table[down * (2 * self.size - 1) + right].permute(2, 0, 1)[None]


class Block(nn.Module):
    """Attention and an MLP, each behind a norm and added to its input; (N, P, C) -> the same."""

    def __init__(self, channels: int, heads: int, size: int, drop: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, _EPS)
        self.attn = WindowAttention(channels, heads, size)
        self.norm2 = nn.LayerNorm(channels, _EPS)
        self.mlp = nn.Sequential(nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels))
        self.drop = StochasticDepth(drop)

    def forward(self, x: Tensor, windows: Windows) -> Tensor:
        x = x + self.drop(self.attn(self.norm1(x), windows))
        out: Tensor = x + self.drop(self.mlp(self.norm2(x)))
        return out


class PatchEmbed(nn.Module):
    """Patches of 4x4 as places; (N, in_chans, H, W) -> (N, H / 4, W / 4, C), rounded up."""

    def __init__(self, in_chans: int, channels: int) -> None:
        super().__init__()
        self.proj, self.norm = nn.Conv2d(in_chans, channels, 4, 4), nn.LayerNorm(channels, _EPS)

    def forward(self, x: Tensor) -> Tensor:
        bottom, right = ((side + 3) // 4 * 4 - side for side in x.shape[-2:])
        out: Tensor = self.norm(self.proj(F.pad(x, (0, right, 0, bottom))).permute(0, 2, 3, 1))
        return out


class PatchMerging(nn.Module):
    """Four neighbours become one place; (N, H, W, C) -> (N, H / 2, W / 2, 2 * C), rounded up."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.reduction = nn.LayerNorm(4 * channels, _EPS), nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        count, height, width, channels = x.shape
        high, wide = (height + 1) // 2, (width + 1) // 2
        x = F.pad(x, (0, 0, 0, 2 * wide - width, 0, 2 * high - height)).view(count, high, 2, wide, 2, channels)
        out: Tensor = self.reduction(self.norm(x.permute(0, 1, 3, 5, 2, 4).flatten(3)))
        return out


class Stage(nn.Module):
    """Blocks, every second one shifted by half a window; (N, H, W, C) -> the same."""

    def __init__(self, channels: int, heads: int, size: int, drops: Sequence[float]) -> None:
        super().__init__()
        self.size = size
        self.blocks = nn.ModuleList(Block(channels, heads, size, drop) for drop in drops)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        each = [Windows.of(height, width, self.size, shift, x) for shift in (0, self.size // 2)]
        places = x.flatten(1, 2)
        for number, block in enumerate(self.blocks):
            places = block(places, each[number % 2])
        return places.view(x.shape)


class SwinTransformer(NormedBackbone):
    """(N, in_chans, H, W), of any size -> up to four feature maps, at strides 4, 8, 16 and 32, rounded up.

    Args:
        depths: blocks of the four stages.
        heads: of the first stage, of 32 channels each; each stage has twice those of the one before.
        window_size: side of a window.
        drop_path_rate: stochastic depth of the last block; it rises from 0.
        output_stride: 32, which None is too.
        in_chans: channels of the image.
        levels: how many of the last maps to return; None is all four.

    Raises:
        OptionError: an option has a value that is not allowed.
    """

    def __init__(
        self,
        depths: Sequence[int],
        heads: int,
        window_size: int = 7,
        *,
        drop_path_rate: float = 0.3,
        output_stride: int | None = None,
        in_chans: int = 3,
        levels: int | None = None,
    ) -> None:
        channels = [32 * heads << stage for stage in range(4)]
        super().__init__(channels, (4, 8, 16, 32), levels, _EPS)
        check_stride_of_32("Swin Transformer", output_stride)
        rates = iter(rising_rates(drop_path_rate, sum(depths)))
        self.merges = nn.ModuleList([PatchEmbed(in_chans, channels[0])])
        self.merges.extend(PatchMerging(width) for width in channels[:-1])
        self.layers = nn.ModuleList(
            Stage(width, width // 32, window_size, [next(rates) for _ in range(depth)])
            for width, depth in zip(channels, depths, strict=True)
        )
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def chain(self) -> list[list[nn.Module]]:
        return [list(pair) for pair in zip(self.merges, self.layers, strict=True)]


_SIZES = {
    "swin_tiny": ((2, 2, 6, 2), 3, 7),
    "swin_small": ((2, 2, 18, 2), 3, 7),
    "swin_base": ((2, 2, 18, 2), 4, 7),
    "swin_base_window12": ((2, 2, 18, 2), 4, 12),
    "swin_large": ((2, 2, 18, 2), 6, 7),
    "swin_large_window12": ((2, 2, 18, 2), 6, 12),
}
"""Blocks of each stage, heads of the first, and the side of a window."""

_KEYS = KeyMap(
    (
        ("patch_embed.projection.", "merges.0.proj."),
        ("patch_embed.norm.", "merges.0.norm."),
        *((f"stages.{stage}.downsample.", f"merges.{stage + 1}.") for stage in range(3)),
        ("stages.{}.blocks.{}.attn.w_msa.relative_position_bias_table", "layers.{}.blocks.{}.attn.bias_table"),
        ("stages.{}.blocks.{}.attn.w_msa.relative_position_index", None),  # follows from the window's size
        ("stages.{}.blocks.{}.attn.w_msa.", "layers.{}.blocks.{}.attn."),
        ("stages.{}.blocks.{}.ffn.layers.0.0.", "layers.{}.blocks.{}.mlp.0."),
        ("stages.{}.blocks.{}.ffn.layers.1.", "layers.{}.blocks.{}.mlp.2."),
        ("stages.{}.blocks.{}.", "layers.{}.blocks.{}."),
        *((f"norm{level}.", f"norm{level}.") for level in range(4)),
    )
)


def _from_transformers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """transformers keeps query, key and value apart; merged channels are by column, row and channel there."""
    result = join(tensors, (".attn.query.", ".attn.key.", ".attn.value."), ".attn.qkv.")
    for name, tensor in tensors.items():
        if _MERGING.match(name) and tensor.ndim and tensor.shape[-1] % 4 == 0:
            result[name] = torch.unflatten(tensor, -1, (2, 2, -1)).transpose(-3, -1).flatten(-3)
    return result


_MERGING = re.compile(r"merges\.[123]\.(norm|reduction)\.")


def _transformers_keys(inside: str, norm: Callable[[int], str]) -> tuple[tuple[str, str | None], ...]:
    """Names of one of its two Swins: what stands before all but the maps' norms, and the name of a map's norm."""
    block = f"{inside}encoder.layers.{{}}.blocks.{{}}."
    return (
        (f"{inside}embeddings.patch_embeddings.projection.", "merges.0.proj."),
        (f"{inside}embeddings.norm.", "merges.0.norm."),
        *((f"{inside}encoder.layers.{stage}.downsample.", f"merges.{stage + 1}.") for stage in range(3)),
        (f"{block}attention.self.relative_position_bias_table", "layers.{}.blocks.{}.attn.bias_table"),
        (f"{block}attention.self.relative_position_index", None),
        (f"{block}attention.self.", "layers.{}.blocks.{}.attn."),
        (f"{block}attention.output.dense.", "layers.{}.blocks.{}.attn.proj."),
        (f"{block}layernorm_before.", "layers.{}.blocks.{}.norm1."),
        (f"{block}layernorm_after.", "layers.{}.blocks.{}.norm2."),
        (f"{block}intermediate.dense.", "layers.{}.blocks.{}.mlp.0."),
        (f"{block}output.dense.", "layers.{}.blocks.{}.mlp.2."),
        (f"{inside}layernorm.", None),  # of the whole network's features, which segmentation does not read
        *((f"hidden_states_norms.{norm(level)}.", f"norm{level}.") for level in range(4)),
    )


_TRANSFORMERS_KEYS = KeyMap(
    (
        *_transformers_keys("", lambda level: f"stage{level + 1}"),  # SwinBackbone
        ("swin.layernorm.", None),  # as version 5 writes it
        *_transformers_keys("model.", str),  # MaskFormerSwinBackbone
    ),
    _from_transformers,
)

_MAPS = {"mmseg": _KEYS, "ssseg": _KEYS, "transformers": _TRANSFORMERS_KEYS}
for _name, _size in _SIZES.items():
    _build = partial(SwinTransformer, *_size)
    register_backbone(_name, partial(create_with_timm_names, _name, _build), key_maps=_MAPS)
