"""The plain Vision Transformer (Dosovitskiy et al. 2020, 2010.11929), and DINOv2's (2304.07193) with registers.

Names are timm's, but for the tokens in front of the patches, which are one tensor here.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo_seg.backbones.registry import register_backbone
from zoo_seg.errors import OptionError
from zoo_seg.keymap import KeyMap, join
from zoo_seg.layers.resample import resize

PATCH = 16
"""Side of a patch in pixels."""
_HEAD = 64
"""Channels of a head."""
_MAPS = 4


class Attention(nn.Module):
    """Every token attends to all; (N, L, C) -> (N, L, C)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)

    def forward(self, x: Tensor, allowed: Tensor | None = None) -> Tensor:
        """`allowed`, (N, 1, L, L), is False where a token must not look."""
        q, k, v = self.qkv(x).unflatten(2, (3, -1, _HEAD)).permute(2, 0, 3, 1, 4)  # (N, heads, L, 64) each
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
        out: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return out


class MLP(nn.Module):
    """Two linear layers; (N, L, C) -> (N, L, C)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.act(self.fc1(x)))
        return out


class LayerScale(nn.Module):
    """A factor for each channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    """Attention and an MLP, each behind a norm and added to its input; (N, L, C) -> (N, L, C)."""

    def __init__(self, channels: int, *, layer_scale: bool, norm_eps: float = 1e-6) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(channels, norm_eps), Attention(channels)
        self.norm2, self.mlp = nn.LayerNorm(channels, norm_eps), MLP(channels)
        self.ls1, self.ls2 = (LayerScale(channels) if layer_scale else nn.Identity() for _ in range(2))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor, allowed: Tensor | None = None) -> Tensor:
        """`allowed`: see `Attention`."""
        x = x + self.ls1(self.attn(self.norm1(x), allowed))
        out: Tensor = x + self.ls2(self.mlp(self.norm2(x)))
        return out


class VisionTransformer(nn.Module):
    """(N, in_chans, H, W) -> up to four maps (N, width, H // 16, W // 16), of blocks a quarter of the depth apart.

    An image that 16 does not divide loses its last rows and columns, as in the original. One that is smaller still is
    padded with zeros. The positions are resized bilinearly to images of other sizes than `image_size`.

    Args:
        depth: blocks.
        width: channels, a multiple of 64.
        registers: tokens without a place beside the one of the class.
        layer_scale: whether each branch is scaled by channel.
        output_stride: 16, which None is too.
        in_chans: channels of the image.
        levels: how many of the last maps to return; None is all four.
        image_size: side of the square images that the positions are for, in pixels.
        norm_eps: of all LayerNorms.
        tokens: return one thing more, after the maps: (N, width, levels, 1 + registers), the tokens without a place
            as they are where each map is taken.
        left_out: so many of the last blocks are not here; somebody else goes on with maps and tokens.

    Raises:
        OptionError: an option has a value that is not allowed.
    """

    def __init__(
        self,
        depth: int,
        width: int,
        *,
        registers: int = 0,
        layer_scale: bool = False,
        output_stride: int | None = None,
        in_chans: int = 3,
        levels: int | None = None,
        image_size: int = 512,
        norm_eps: float = 1e-6,
        tokens: bool = False,
        left_out: int = 0,
    ) -> None:
        super().__init__()
        if output_stride not in (None, PATCH):
            raise OptionError(f"a Vision Transformer's output stride is {output_stride}; expected {PATCH}, or nothing")
        if levels is not None and not 1 <= levels <= _MAPS:
            raise OptionError(f"{levels} feature maps are asked for; VisionTransformer has 1 to {_MAPS}")
        if image_size < PATCH or registers < 0 or not 0 <= left_out <= depth - _MAPS:
            raise OptionError(
                f"image_size is {image_size}, registers {registers} and left_out {left_out}; expected at least "
                f"{PATCH}, at least 0, and 0 to {depth - _MAPS} of the {depth} blocks"
            )
        levels, depth = levels or _MAPS, depth - left_out
        self.channels, self.strides = (width,) * levels, (PATCH,) * levels
        self._returns_tokens = tokens
        self._read = [depth * (index + 1) // _MAPS for index in range(_MAPS)][-levels:]
        self._grid = image_size // PATCH
        self.tokens = nn.Parameter(torch.empty(1 + registers, width))
        self.positions = nn.Parameter(torch.empty(self._grid**2, width))
        self.patch_embed = nn.Conv2d(in_chans, width, PATCH, PATCH)
        self.blocks = nn.ModuleList(Block(width, layer_scale=layer_scale, norm_eps=norm_eps) for _ in range(depth))
        for parameter in (self.tokens, self.positions, self.patch_embed.weight):
            nn.init.trunc_normal_(parameter, std=0.02)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.patch_embed(_at_least_a_patch(x))
        size, count = (x.shape[-2], x.shape[-1]), len(self.tokens)
        places = torch.unflatten(self.positions.mT, 1, (self._grid, self._grid))[None]
        x = (x + resize(places, size)).flatten(2).mT
        x = torch.cat([self.tokens.expand(x.shape[0], -1, -1), x], dim=1)
        maps, tokens = [], []
        for number, block in enumerate(self.blocks, 1):
            x = block(x)
            if number in self._read:
                maps.append(torch.unflatten(x[:, count:].mT, 2, size))
                tokens.append(x[:, :count].mT)
        return [*maps, torch.stack(tokens, dim=2)] if self._returns_tokens else maps


def _at_least_a_patch(x: Tensor) -> Tensor:
    sides = x.shape[-2:]
    if any(isinstance(side, torch.SymInt) for side in sides) or min(sides) >= PATCH:
        return x
    bottom, right = (max(PATCH - side, 0) for side in sides)
    return F.pad(x, (0, right, 0, bottom))


def _create(
    build: partial[VisionTransformer],
    *,
    pretrained: bool = False,
    output_stride: int | None = None,
    in_chans: int = 3,
    levels: int | None = None,
    **options: Any,
) -> nn.Module:
    """`Backbone.create`.

    Raises:
        OptionError: an option is not allowed, or ImageNet weights are asked for.
    """
    if pretrained:
        raise OptionError("there are no ImageNet weights of this Vision Transformer; leave backbone_pretrained out")
    return build(output_stride=output_stride, in_chans=in_chans, levels=levels, **options)


# --- names --------------------------------------------------------------------------------------------


def _joined(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """transformers keeps queries, keys and values apart, and each kind of token without a place."""
    result = join(tensors, (".attn.q.", ".attn.k.", ".attn.v."), ".attn.qkv.")
    single, registers, places = (tensors.get(name) for name in ("class_token", "registers", "positions"))
    if single is None or single.ndim != 3 or (registers is not None and registers.ndim != 3):
        return result  # which will be said when it is put into the network
    tokens = single[0]
    if places is not None and places.ndim == 3:  # the class has a position as well, the first
        tokens, result["positions"] = tokens.float() + places[0, :1].float(), places[0, 1:]
    result["tokens"] = tokens if registers is None else torch.cat([tokens, registers[0]])
    return {name: tensor for name, tensor in result.items() if name not in ("class_token", "registers")}


_VIT_KEYS = KeyMap(
    (
        ("embeddings.cls_token", "class_token"),
        ("embeddings.position_embeddings", "positions"),
        ("embeddings.patch_embeddings.projection.", "patch_embed."),
        ("encoder.layer.{}.layernorm_before.", "blocks.{}.norm1."),
        ("encoder.layer.{}.attention.attention.query.", "blocks.{}.attn.q."),
        ("encoder.layer.{}.attention.attention.key.", "blocks.{}.attn.k."),
        ("encoder.layer.{}.attention.attention.value.", "blocks.{}.attn.v."),
        ("encoder.layer.{}.attention.output.dense.", "blocks.{}.attn.proj."),
        ("encoder.layer.{}.layernorm_after.", "blocks.{}.norm2."),
        ("encoder.layer.{}.intermediate.dense.", "blocks.{}.mlp.fc1."),
        ("encoder.layer.{}.output.dense.", "blocks.{}.mlp.fc2."),
        ("layernorm.", None),  # of the last block's output, which nobody reads
        ("pooler.", None),
    ),
    _joined,
)
_DINOV2_KEYS = KeyMap(
    (
        ("embeddings.cls_token", "class_token"),
        ("embeddings.register_tokens", "registers"),
        ("embeddings.position_embeddings.weight", "positions"),
        ("embeddings.position_ids", None),
        ("embeddings.patch_embeddings.projection.", "patch_embed."),
        ("layers.{}.norm1.", "blocks.{}.norm1."),
        ("layers.{}.attention.q_proj.", "blocks.{}.attn.q."),
        ("layers.{}.attention.k_proj.", "blocks.{}.attn.k."),
        ("layers.{}.attention.v_proj.", "blocks.{}.attn.v."),
        ("layers.{}.attention.out_proj.", "blocks.{}.attn.proj."),
        ("layers.{}.layer_scale1.lambda1", "blocks.{}.ls1.gamma"),
        ("layers.{}.norm2.", "blocks.{}.norm2."),
        ("layers.{}.mlp.", "blocks.{}.mlp."),
        ("layers.{}.layer_scale2.lambda1", "blocks.{}.ls2.gamma"),
    ),
    _joined,
)
"""As EoMT's files name them."""

VITS = {"vit_tiny": (12, 192), "vit_small": (12, 384), "vit_base": (12, 768), "vit_large": (24, 1024)}
"""Depths and widths."""
DINOV2S = {"dinov2_small": (12, 384), "dinov2_base": (12, 768), "dinov2_large": (24, 1024)}
for _name, _shape in VITS.items():
    register_backbone(_name, partial(_create, partial(VisionTransformer, *_shape)), {"transformers": _VIT_KEYS})
for _name, _shape in DINOV2S.items():
    _build = partial(VisionTransformer, *_shape, registers=4, layer_scale=True)
    register_backbone(_name, partial(_create, _build), {"transformers": _DINOV2_KEYS})
