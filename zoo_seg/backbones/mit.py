"""Mix Transformer, the encoder of SegFormer (Xie et al. 2021, 2105.15203).

Written after PVTv2 (Wang et al. 2021, 2106.13797), of whose parts it is made.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo_seg.backbones.registry import register_backbone
from zoo_seg.backbones.staged import StagedBackbone, check_stride_of_32, create_with_timm_names
from zoo_seg.keymap import KeyMap

_norm = nn.LayerNorm  # with the `norm_eps` that `MixTransformer` gives to all of them


class Attention(nn.Module):
    """Every place attends to the places of a map reduced by `reduction`; (N, H, W, C) -> (N, H, W, C).

    A map that `reduction` does not divide loses its last rows and columns in it, as in the original. One that is
    smaller still, which the original refuses, is padded with zeros.
    """

    def __init__(self, channels: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.heads, self.reduction = heads, reduction
        self.q = nn.Linear(channels, channels)
        self.kv = nn.Linear(channels, 2 * channels)
        self.proj = nn.Linear(channels, channels)
        if reduction > 1:
            self.sr = nn.Conv2d(channels, channels, reduction, reduction)
            self.norm = _norm(channels)

    def forward(self, x: Tensor) -> Tensor:
        key, value = self.kv(self._reduced(x)).flatten(1, 2).chunk(2, dim=-1)
        query = self.q(x).flatten(1, 2)
        split = [each.unflatten(-1, (self.heads, -1)).transpose(1, 2) for each in (query, key, value)]
        mixed = F.scaled_dot_product_attention(*split)  # (N, heads, H * W, C / heads)
        out: Tensor = self.proj(mixed.transpose(1, 2).reshape(x.shape))
        return out

    def _reduced(self, x: Tensor) -> Tensor:
        if self.reduction == 1:
            return x
        x = x.permute(0, 3, 1, 2)
        sides = x.shape[-2:]
        if not any(isinstance(side, torch.SymInt) for side in sides) and min(sides) < self.reduction:
            bottom, right = (max(self.reduction - side, 0) for side in sides)
            x = F.pad(x, (0, right, 0, bottom))
        out: Tensor = self.norm(self.sr(x).permute(0, 2, 3, 1))
        return out


class MLP(nn.Module):
    """Two 1x1 convolutions around a depthwise 3x3, which tells places apart; (N, C, H, W) -> (N, C, H, W)."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.dwconv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.act(self.dwconv(self.fc1(x))))
        return out


class Block(nn.Module):
    """Attention and an MLP, each behind a norm and added to its input; (N, H, W, C) -> (N, H, W, C)."""

    def __init__(self, channels: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.norm1 = _norm(channels)
        self.attn = Attention(channels, heads, reduction)
        self.norm2 = _norm(channels)
        self.mlp = MLP(channels, 4 * channels)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return out


class PatchEmbed(nn.Module):
    """Overlapping patches as places; (N, in_channels, H, W) -> (N, H / stride, W / stride, C)."""

    def __init__(self, in_channels: int, channels: int, patch: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, channels, patch, stride, patch // 2)
        self.norm = _norm(channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.proj(x).permute(0, 2, 3, 1))
        return out


class Stage(nn.Module):
    """(N, in_channels, H, W) -> (N, C, H / stride, W / stride)."""

    def __init__(
        self, in_channels: int, channels: int, depth: int, *, heads: int, reduction: int, patch: int, stride: int
    ) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(in_channels, channels, patch, stride)
        self.blocks = nn.Sequential(*(Block(channels, heads, reduction) for _ in range(depth)))
        self.norm = _norm(channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.blocks(self.patch_embed(x)))
        return out.permute(0, 3, 1, 2)


_DEPTHS = {
    "mit_b0": (2, 2, 2, 2),
    "mit_b1": (2, 2, 2, 2),
    "mit_b2": (3, 4, 6, 3),
    "mit_b3": (3, 4, 18, 3),
    "mit_b4": (3, 8, 27, 3),
    "mit_b5": (3, 6, 40, 3),
}
"""Blocks of each stage."""
_HEADS = (1, 2, 5, 8)


class MixTransformer(StagedBackbone):
    """(N, in_chans, H, W), of any size -> up to four feature maps, at strides 4, 8, 16 and 32.

    Args:
        depths: blocks of the four stages.
        width: channels of one head; the stages have 1, 2, 5 and 8 heads.
        output_stride: 32, which None is too.
        in_chans: channels of the image.
        levels: how many of the last maps to return; None is all four.
        norm_eps: of all LayerNorms; transformers computes with 1e-5.

    Raises:
        OptionError: an option has a value that is not allowed.
    """

    def __init__(
        self,
        depths: Sequence[int],
        width: int,
        *,
        output_stride: int | None = None,
        in_chans: int = 3,
        levels: int | None = None,
        norm_eps: float = 1e-6,
    ) -> None:
        channels = [width * heads for heads in _HEADS]
        super().__init__(channels, (4, 8, 16, 32), levels)
        check_stride_of_32("Mix Transformer", output_stride)
        inputs, reductions = [in_chans, *channels], (8, 4, 2, 1)
        self.layers = nn.ModuleList(
            Stage(
                inputs[index],
                channels[index],
                depth,
                heads=_HEADS[index],
                reduction=reductions[index],
                patch=3 if index else 7,
                stride=2 if index else 4,
            )
            for index, depth in enumerate(depths)
        )
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                module.eps = norm_eps
            elif isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
                nn.init.normal_(module.weight, 0, math.sqrt(2 / fan_out))
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def chain(self) -> list[list[nn.Module]]:
        return [[stage] for stage in self.layers]


def _split_attention(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The projects keep the projections of query, key and value in one."""
    result = {}
    for name, tensor in tensors.items():
        if ".attn.qkv." in name and tensor.ndim and tensor.shape[0] % 3 == 0:
            third = tensor.shape[0] // 3
            result[name.replace(".qkv.", ".q.")] = tensor[:third]
            result[name.replace(".qkv.", ".kv.")] = tensor[third:]
        else:
            result[name] = tensor
    return result


_KEYS = KeyMap(
    (
        ("layers.{}.0.projection.", "layers.{}.patch_embed.proj."),
        ("layers.{}.0.norm.", "layers.{}.patch_embed.norm."),
        ("layers.{}.1.{}.attn.attn.in_proj_", "layers.{}.blocks.{}.attn.qkv."),
        ("layers.{}.1.{}.attn.attn.out_proj.", "layers.{}.blocks.{}.attn.proj."),
        ("layers.{}.1.{}.ffn.layers.0.", "layers.{}.blocks.{}.mlp.fc1."),
        ("layers.{}.1.{}.ffn.layers.1.", "layers.{}.blocks.{}.mlp.dwconv."),
        ("layers.{}.1.{}.ffn.layers.4.", "layers.{}.blocks.{}.mlp.fc2."),
        ("layers.{}.1.{}.", "layers.{}.blocks.{}."),
        ("layers.{}.2.", "layers.{}.norm."),
    ),
    _split_attention,
)


def _join_attention(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """transformers keeps key and value apart, and has linear layers where the MLP here has 1x1 convolutions."""
    result = {}
    for name, tensor in tensors.items():
        if ".attn.value." in name and name.replace(".value.", ".key.") in tensors:
            continue
        value = tensors.get(name.replace(".attn.key.", ".attn.value."))
        if ".attn.key." in name and value is not None and tensor.shape == value.shape and tensor.ndim:
            result[name.replace(".key.", ".kv.")] = torch.cat([tensor, value])
        elif ".mlp.fc" in name and tensor.ndim == 2:
            result[name] = tensor[:, :, None, None]
        else:
            result[name] = tensor
    return result


_TRANSFORMERS_KEYS = KeyMap(
    (
        ("patch_embeddings.{}.proj.", "layers.{}.patch_embed.proj."),
        ("patch_embeddings.{}.layer_norm.", "layers.{}.patch_embed.norm."),
        ("block.{}.{}.layer_norm_1.", "layers.{}.blocks.{}.norm1."),
        ("block.{}.{}.layer_norm_2.", "layers.{}.blocks.{}.norm2."),
        ("block.{}.{}.attention.self.query.", "layers.{}.blocks.{}.attn.q."),
        ("block.{}.{}.attention.self.key.", "layers.{}.blocks.{}.attn.key."),
        ("block.{}.{}.attention.self.value.", "layers.{}.blocks.{}.attn.value."),
        ("block.{}.{}.attention.self.sr.", "layers.{}.blocks.{}.attn.sr."),
        ("block.{}.{}.attention.self.layer_norm.", "layers.{}.blocks.{}.attn.norm."),
        ("block.{}.{}.attention.output.dense.", "layers.{}.blocks.{}.attn.proj."),
        ("block.{}.{}.mlp.dense1.", "layers.{}.blocks.{}.mlp.fc1."),
        ("block.{}.{}.mlp.dwconv.dwconv.", "layers.{}.blocks.{}.mlp.dwconv."),
        ("block.{}.{}.mlp.dense2.", "layers.{}.blocks.{}.mlp.fc2."),
        ("layer_norm.{}.", "layers.{}.norm."),
    ),
    _join_attention,
)

for _name, _depths in _DEPTHS.items():
    _build = partial(MixTransformer, _depths, 32 if _name == "mit_b0" else 64)
    register_backbone(
        _name,
        partial(create_with_timm_names, _name, _build),
        key_maps={"mmseg": _KEYS, "ssseg": _KEYS, "transformers": _TRANSFORMERS_KEYS},
        implied_options={"transformers": {"norm_eps": 1e-5}},
    )
