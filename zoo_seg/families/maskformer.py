"""MaskFormer: queries that each find a mask and its class. Cheng et al., https://arxiv.org/abs/2107.06278

As transformers has it: a feature pyramid for the masks, DETR's decoder (2005.12872) on the coarsest map for the
queries. Each query's mask counts for a class by its probability.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo_seg.families.registry import Family, Heads, Shapes, register_family
from zoo_seg.keymap import KeyMap, join
from zoo_seg.layers.losses import LossSum, SegmentationLoss
from zoo_seg.layers.queries import ConvNorm, check_queries, dice_costs, dice_losses, mask_embedding, matched_losses
from zoo_seg.layers.readout import HeadOutput, MixedAt, Queries
from zoo_seg.layers.resample import resize, resize_nearest
from zoo_seg.layers.transformer import Attention, FeedForward, sine_positions

_HEADS = 8
_DROPOUT = 0.1


class PixelDecoder(nn.Module):
    """Backbone maps, finest first -> the features of pixels, (N, channels, h, w) at the stride of the finest."""

    def __init__(self, in_channels: Sequence[int], channels: int) -> None:
        super().__init__()
        *finer, coarsest = in_channels
        self.stem = ConvNorm(coarsest, channels, 3)
        self.laterals = nn.ModuleList(ConvNorm(width, channels) for width in reversed(finer))
        self.outputs = nn.ModuleList(ConvNorm(channels, channels, 3) for _ in finer)
        self.mask_feature = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        *finer, coarsest = features
        x = self.stem(coarsest).relu()
        for lateral, output, feature in zip(self.laterals, self.outputs, reversed(finer), strict=True):
            side = lateral(feature)
            x = output(side + resize_nearest(x, (side.shape[-2], side.shape[-1]))).relu()
        out: Tensor = self.mask_feature(x)
        return out


class _DecoderLayer(nn.Module):
    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.self_attn, self.cross_attn = Attention(channels, _HEADS), Attention(channels, _HEADS)
        self.ffn = FeedForward(channels, hidden, _DROPOUT)
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(3))
        self.drop = nn.Dropout(_DROPOUT)

    def forward(self, x: Tensor, names: Tensor, memory: Tensor, positions: Tensor) -> Tensor:
        """`names` are added to the queries where they ask or are asked, `positions` to what they look at."""
        x = self.norms[0](x + self.drop(self.self_attn(x + names, x + names, x)))
        x = self.norms[1](x + self.drop(self.cross_attn(x + names, memory + positions, memory)))
        out: Tensor = self.norms[2](self.ffn(x))
        return out


@dataclass(frozen=True)
class MaskFormerOptions:
    """`channels` is the width of everything, a multiple of 8; layers and their width are those of the queries' decoder.

    Where queries are mixed, see `MixedAt`: the paper does it at the input's size, transformers at the masks' own.
    """

    channels: int = 256
    queries: int = 100
    decoder_layers: int = 6
    decoder_hidden: int = 2048
    mixed_at: MixedAt = "masks"


class MaskFormerHead(nn.Module):
    """Backbone maps, finest first -> `Queries`, the masks at the stride of the finest map."""

    def __init__(self, in_channels: Sequence[int], num_classes: int, options: MaskFormerOptions) -> None:
        super().__init__()
        channels, self.mixed_at = options.channels, options.mixed_at
        check_queries(channels, _HEADS, options.queries, options.decoder_layers)
        self.pixel_decoder = PixelDecoder(in_channels, channels)
        self.input_proj = nn.Conv2d(in_channels[-1], channels, 1)
        self.layers = nn.ModuleList(
            _DecoderLayer(channels, options.decoder_hidden) for _ in range(options.decoder_layers)
        )
        self.post_norm = nn.LayerNorm(channels)
        self.query_embed = nn.Embedding(options.queries, channels)
        self.mask_embed = mask_embedding(channels)
        self.classifier = nn.Linear(channels, num_classes + 1)  # the last is "no object"
        for parameter in self.layers.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(self, features: Sequence[Tensor]) -> Queries:
        masks, logits, _ = self._read(self._layer_by_layer(features)[-1], self.pixel_decoder(features))
        return Queries.of(masks, logits.softmax(-1)[..., :-1], self.mixed_at)

    def forward_train(self, features: Sequence[Tensor]) -> list[Queries]:
        """The last layer's masks and class logits, then those of the layers before it."""
        pixels = self.pixel_decoder(features)
        return [self._read(x, pixels) for x in self._layer_by_layer(features)][::-1]

    def _layer_by_layer(self, features: Sequence[Tensor]) -> list[Tensor]:
        """The queries (N, Q, channels) after each layer."""
        coarsest = self.input_proj(features[-1])
        memory, names = coarsest.flatten(2).mT, self.query_embed.weight
        positions = sine_positions(coarsest.shape[-2], coarsest.shape[-1], coarsest.shape[1], coarsest)
        x, found = torch.zeros_like(names).expand(memory.shape[0], -1, -1), []
        for layer in self.layers:
            x = layer(x, names, memory, positions)
            found.append(x)
        return found

    def _read(self, x: Tensor, pixels: Tensor) -> Queries:
        x = self.post_norm(x)
        return Queries(torch.einsum("nqc,nchw->nqhw", self.mask_embed(x), pixels), self.classifier(x))


def _build(channels: Sequence[int], num_classes: int, options: MaskFormerOptions, *, align_corners: bool) -> Heads:
    return Heads(MaskFormerHead(channels, num_classes, options))


# --- training ---------------------------------------------------------------------------------------

_CLASS, _MASK, _DICE = 1.0, 20.0, 1.0
"""Weights of the losses, and of the costs by which queries are matched."""
_FOCUS, _INSIDE = 2.0, 0.25
"""Focal loss's gamma and alpha."""


def _loss(outputs: Sequence[HeadOutput], labels: Tensor, pixel: SegmentationLoss, aux_weight: float) -> list[LossSum]:
    """The published loss, see `matched_losses`: masks are compared by focal loss and Dice.

    It has no use for an auxiliary weight.

    Raises:
        OptionError: the run asks for another loss.
    """
    return matched_losses("MaskFormer", outputs, labels, pixel, _CLASS, _mask_costs, _mask_losses)


def _mask_costs(masks: Tensor, truth: Tensor) -> Tensor:
    """(Q, G): what masks (Q, h, w) cost as masks (G, H, W), at the size of the former."""
    found = masks.flatten(1)
    wanted = F.interpolate(truth[:, None], masks.shape[-2:], mode="nearest").flatten(1)
    inside, outside = _focal(found, torch.ones_like(found)), _focal(found, torch.zeros_like(found))
    focal = (inside @ wanted.T + outside @ (1 - wanted).T) / found.shape[1]
    return _MASK * focal + _DICE * dice_costs(found.sigmoid(), wanted)


def _mask_losses(masks: Tensor, truth: Tensor) -> Tensor:
    """The sum over masks (G, h, w) of their focal and Dice losses, at the size of the labels (G, H, W)."""
    found, wanted = resize(masks[:, None], (truth.shape[-2], truth.shape[-1])).flatten(1), truth.flatten(1)
    return (_MASK * _focal(found, wanted).mean(1) + _DICE * dice_losses(found.sigmoid(), wanted)).sum()


def _focal(logits: Tensor, wanted: Tensor) -> Tensor:
    """Focal loss (Lin et al. 2017, 1708.02002) of every pixel."""
    losses = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    alpha = _INSIDE * wanted + (1 - _INSIDE) * (1 - wanted)
    return alpha * losses * (-torch.expm1(-losses)) ** _FOCUS


# --- names --------------------------------------------------------------------------------------------

_PARTS = (".q_proj.", ".k_proj.", ".v_proj.")


def _transformers(options: MaskFormerOptions) -> KeyMap:
    pixels, ours = "model.pixel_level_module.decoder.", "head.pixel_decoder."
    queries = "model.transformer_module."
    theirs, own = f"{queries}decoder.layers.{{}}.", "head.layers.{}."
    convolutions = (
        (f"{pixels}fpn.stem.", f"{ours}stem."),
        (f"{pixels}fpn.layers.{{}}.proj.", f"{ours}laterals.{{}}."),
        (f"{pixels}fpn.layers.{{}}.block.", f"{ours}outputs.{{}}."),
    )
    rules: list[tuple[str, str | None]] = [
        (f"{old}{number}.", f"{new}{part}.") for old, new in convolutions for number, part in ((0, "conv"), (1, "gn"))
    ]
    rules += [
        (f"{pixels}mask_projection.", f"{ours}mask_feature."),
        (f"{theirs}self_attn_layer_norm.", f"{own}norms.0."),
        (f"{theirs}encoder_attn_layer_norm.", f"{own}norms.1."),
        (f"{theirs}final_layer_norm.", f"{own}norms.2."),
        (f"{theirs}self_attn.", f"{own}self_attn."),
        (f"{theirs}encoder_attn.", f"{own}cross_attn."),
        *((f"{theirs}fc{i}.", f"{own}ffn.linear{i}.") for i in (1, 2)),
        (f"{queries}decoder.layernorm.", "head.post_norm."),
        (f"{queries}queries_embedder.", "head.query_embed."),
        (f"{queries}input_projection.", "head.input_proj."),
        *((f"mask_embedder.{i}.0.", f"head.mask_embed.{2 * i}.") for i in range(3)),
        ("class_predictor.", "head.classifier."),
        ("criterion.", None),
    ]
    return KeyMap(tuple(rules), lambda tensors: join(tensors, _PARTS, ".in_proj."))


def _read_options(shapes: Shapes) -> dict[str, Any]:
    prefix = "head.layers."
    layers = len({key[len(prefix) :].split(".")[0] for key in shapes if key.startswith(prefix)})
    found: dict[str, Any] = {"decoder_layers": layers} if layers else {}
    sides = {
        "channels": ("head.query_embed.weight", 1),
        "queries": ("head.query_embed.weight", 0),
        "decoder_hidden": ("head.layers.0.ffn.linear1.weight", 0),
    }
    return found | {name: shapes[key][side] for name, (key, side) in sides.items() if len(shapes.get(key, ())) == 2}


FAMILY = register_family(
    Family(
        name="maskformer",
        title="MaskFormer",
        paper="https://arxiv.org/abs/2107.06278",
        options=MaskFormerOptions,
        build=_build,
        levels=4,
        key_maps={"transformers": _transformers},
        backbone_prefixes={"transformers": "model.pixel_level_module.encoder."},
        classifiers=("head.classifier.",),
        no_object=1,
        read_options=_read_options,
        loss=_loss,
    )
)
