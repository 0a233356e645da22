"""BEiT as segmentation networks use it: one grid of patches, brought to four strides. Bao et al. 2021, 2106.08254."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo_seg.backbones.registry import register_backbone
from zoo_seg.backbones.staged import check_stride_of_32, pad_small
from zoo_seg.errors import OptionError
from zoo_seg.keymap import KeyMap
from zoo_seg.layers.depth import StochasticDepth, rising_rates

_PATCH = 16
_EPS = 1e-12


def ways_between(height: int, width: int, like: Tensor) -> Tensor:
    """(L, L): where a table has the way from each token to each other one.

    The tokens are the class token and the places of a grid. A table has (2 * height - 1) * (2 * width - 1) ways between
    places, then those from the class token to a place, back, and to itself.
    """
    row, column = (torch.arange(side, device=like.device) for side in (height, width))
    at = (row[:, None] + 0 * column).flatten(), (0 * row[:, None] + column).flatten()
    down, right = (each[:, None] - each for each in at)
    ways = F.pad((down + height - 1) * (2 * width - 1) + right + width - 1, (1, 0, 1, 0))
    is_class = torch.arange(height * width + 1, device=like.device) == 0
    special = torch.where(is_class[:, None], torch.where(is_class, 2, 0), 1)
    return torch.where(is_class[:, None] | is_class, (2 * height - 1) * (2 * width - 1) + special, ways)


def spread(between: Tensor, special: Tensor, height: int, width: int) -> Tensor:
    """(heads, L, L): a table at `ways_between`, from (heads, 2 * height - 1, 2 * width - 1) and (heads, 3).

    Rows of the grid see the table through windows that move, so whole pieces are copied: faster than place by place.
    Gradients go the other way.
    """
    rows = between.flip(1, 2).unfold(2, width, 1).flip(2).transpose(1, 2).contiguous()
    bias = between.new_empty(len(between), height * width + 1, height * width + 1)
    bias[:, :1, 1:], bias[:, 1:, :1], bias[:, :1, :1] = special[:, :, None, None].unbind(1)
    places = torch.unflatten(torch.unflatten(bias[:, 1:, 1:], 2, (height, width)), 1, (height, width))
    for y in range(height):
        places[:, y] = rows[:, :, height - 1 - y : 2 * height - 1 - y]
    return bias


class PositionBias(nn.Module):
    """What attention adds for the way from each token to each other one.

    The table is that of the grid in training; for another one it is resized bilinearly.

    Args:
        heads: of the attention.
        side: of the grid in training, in places.
    """

    def __init__(self, heads: int, side: int) -> None:
        super().__init__()
        self.side = side
        self.table = nn.Parameter(torch.zeros((2 * side - 1) ** 2 + 3, heads))

    def forward(self, height: int, width: int, ways: Tensor | None) -> Tensor:
        """(1, heads, L, L), for a grid; `ways` are `ways_between` its tokens, where `spread` does not do."""
        table = self.table.mT
        between = torch.unflatten(table[:, :-3], 1, (2 * self.side - 1, -1))[None]
        between = F.interpolate(between, (2 * height - 1, 2 * width - 1), mode="bilinear", align_corners=False)[0]
        if ways is None:
            return spread(between, table[:, -3:], height, width)[None]
        return torch.cat([between.flatten(1), table[:, -3:]], 1)[:, ways][None]


class Attention(nn.Module):
    """All tokens attend to each other; (N, L, C) -> the same."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.value = nn.Linear(channels, channels), nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels, bias=False)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        query, key, value = (
            torch.unflatten(project(x), 2, (self.heads, -1)).transpose(1, 2)
            for project in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        out: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return out


class Block(nn.Module):
    """Attention and an MLP, each behind a norm, scaled and added to its input; (N, L, C) -> the same."""

    def __init__(self, channels: int, heads: int, drop: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, _EPS)
        self.attn = Attention(channels, heads)
        self.norm2 = nn.LayerNorm(channels, _EPS)
        self.mlp = nn.Sequential(nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels))
        self.scale1, self.scale2 = (nn.Parameter(torch.full((channels,), 0.1)) for _ in range(2))
        self.drop = StochasticDepth(drop)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        x = torch.addcmul(x, self.scale1, self.drop(self.attn(self.norm1(x), bias)))
        return torch.addcmul(x, self.scale2, self.drop(self.mlp(self.norm2(x))))


class BEiT(nn.Module):
    """(N, in_chans, H, W), of any size -> up to four feature maps, at strides 4, 8, 16 and 32, rounded down.

    The four maps are the places after four of the blocks. Rows and columns that fill no place are lost, as in the
    original. An image whose side is below two places, which the original refuses, is padded with zeros.

    Args:
        channels: of every map.
        heads: of the attention.
        blocks: after how many of the blocks each map is read. Blocks after the last of them are not built.
        image_size: side in training, in pixels; what the tables of relative positions are for.
        shared_bias: one such table for all blocks in place of one each.
        drop_path_rate: stochastic depth of the last block; it rises from 0.
        output_stride: 32, which None is too.
        in_chans: channels of the image.
        levels: how many of the last maps to return; None is all four.

    Raises:
        OptionError: an option has a value that is not allowed.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        blocks: Sequence[int],
        *,
        image_size: int = 640,
        shared_bias: bool = False,
        drop_path_rate: float = 0.1,
        output_stride: int | None = None,
        in_chans: int = 3,
        levels: int | None = None,
    ) -> None:
        super().__init__()
        check_stride_of_32("BEiT", output_stride)
        if len(blocks) != 4 or not 0 <= blocks[0] < blocks[1] < blocks[2] < blocks[3]:
            raise OptionError(f"blocks is {list(blocks)}; expected four rising numbers, one for each feature map")
        if levels is not None and not 1 <= levels <= 4:
            raise OptionError(f"{levels} feature maps are asked for; BEiT has 1 to 4")
        if image_size < _PATCH:
            raise OptionError(f"image_size is {image_size}; expected at least {_PATCH}")
        skipped, side = 4 - (levels or 4), image_size // _PATCH
        self.read = tuple(blocks[skipped:])
        self.channels, self.strides = (channels,) * len(self.read), (4, 8, 16, 32)[skipped:]
        self.cls_token = nn.Parameter(torch.zeros(1, 1, channels))
        self.patches = nn.Conv2d(in_chans, channels, _PATCH, _PATCH)
        self.shared_bias, tables = shared_bias, 1 if shared_bias else blocks[-1]
        self.biases = nn.ModuleList(PositionBias(heads, side) for _ in range(tables))
        rates = rising_rates(drop_path_rate, blocks[-1])
        self.blocks = nn.ModuleList(Block(channels, heads, rate) for rate in rates)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        up = partial(nn.ConvTranspose2d, channels, channels, 2, 2)
        scalings = {
            "to4": nn.Sequential(up(), nn.BatchNorm2d(channels), nn.GELU(), up()),
            "to8": up(),
            "to16": nn.Identity(),
            "to32": nn.MaxPool2d(2),
        }
        self.scalings = nn.ModuleDict(dict(list(scalings.items())[skipped:]))

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.patches(pad_small(x, 2 * _PATCH))
        height, width = x.shape[-2:]
        tokens = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x.flatten(2).mT], 1)
        traced = torch.compiler.is_compiling() or isinstance(height, torch.SymInt)
        ways = ways_between(height, width, x) if traced or torch.is_grad_enabled() else None
        shared = self.biases[0](height, width, ways) if self.shared_bias else None
        maps = [tokens] if self.read[0] == 0 else []
        for index, block in enumerate(self.blocks):
            tokens = block(tokens, self.biases[index](height, width, ways) if shared is None else shared)
            if index + 1 in self.read:
                maps.append(tokens)
        return [
            scale(torch.unflatten(each[:, 1:].mT, 2, (height, width)))
            for scale, each in zip(self.scalings.values(), maps, strict=True)
        ]


def register_beit(name: str, channels: int, heads: int, depth: int, read: tuple[int, int, int, int]) -> None:
    """Make a BEiT of so many channels, heads and blocks known; by default its maps are read after these blocks."""

    def create(*, blocks: Sequence[int] = read, pretrained: bool = False, **options: Any) -> BEiT:
        if pretrained:
            raise OptionError(f"there are no ImageNet weights of {name!r}; leave backbone_pretrained out")
        return BEiT(channels, heads, blocks, **options)

    def transformers(options: Mapping[str, Any]) -> KeyMap:
        unread = range(max(options.get("blocks", read)), depth)
        return KeyMap((*((f"beit.encoder.layer.{number}.", None) for number in unread), *_TRANSFORMERS))

    register_backbone(name, create, key_maps={"transformers": transformers}, prefixes={"transformers": ""})


_BLOCK = "beit.encoder.layer.{}."
_TRANSFORMERS = (
    ("beit.embeddings.cls_token", "cls_token"),
    ("beit.embeddings.mask_token", None),
    ("beit.embeddings.patch_embeddings.projection.", "patches."),
    ("beit.encoder.relative_position_bias.relative_position_bias_table", "biases.0.table"),
    ("beit.encoder.relative_position_bias.relative_position_index", None),
    (f"{_BLOCK}attention.attention.relative_position_bias.relative_position_bias_table", "biases.{}.table"),
    (f"{_BLOCK}attention.attention.relative_position_bias.relative_position_index", None),
    (f"{_BLOCK}attention.attention.", "blocks.{}.attn."),
    (f"{_BLOCK}attention.output.dense.", "blocks.{}.attn.proj."),
    (f"{_BLOCK}layernorm_before.", "blocks.{}.norm1."),
    (f"{_BLOCK}layernorm_after.", "blocks.{}.norm2."),
    (f"{_BLOCK}intermediate.dense.", "blocks.{}.mlp.0."),
    (f"{_BLOCK}output.dense.", "blocks.{}.mlp.2."),
    (f"{_BLOCK}lambda_", "blocks.{}.scale"),
    ("beit.layernorm.", None),  # of the whole network's features, which segmentation does not read
    ("fpn1.", "scalings.to4."),
    ("fpn2.0.", "scalings.to8."),
)
"""transformers' names."""

# Maps are read after two blocks less than the authors do by the same `out_indices`, as transformers counts.
register_beit("beit_base", 768, 12, 12, (2, 4, 6, 10))
register_beit("beit_large", 1024, 16, 24, (6, 10, 14, 22))
