"""Mask2Former: queries that each find a mask and its class. Cheng et al., https://arxiv.org/abs/2112.01527

As MMSegmentation and transformers have it: a pixel decoder of deformable attention, and a decoder whose queries look
only at what the mask of the layer before holds. Each query's mask counts for a class by its probability.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
from zoo_seg.layers.resample import resize
from zoo_seg.layers.transformer import Attention, DeformableAttention, FeedForward, sine_positions

_HEADS = 8
_LEVELS = 3
"""How many maps, the coarsest, attention reads."""


class _EncoderLayer(nn.Module):
    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.self_attn = DeformableAttention(channels, _HEADS, _LEVELS)
        self.ffn = FeedForward(channels, hidden)
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(2))

    def forward(self, x: Tensor, positions: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
        x = self.norms[0](x + self.self_attn(x, x + positions, sizes))
        out: Tensor = self.norms[1](self.ffn(x))
        return out


class PixelDecoder(nn.Module):
    """Backbone maps, finest first -> (mask features at the stride of the finest, the three coarsest, coarsest first).

    All of them (N, channels, h, w).
    """

    def __init__(self, in_channels: Sequence[int], channels: int, layers: int, hidden: int) -> None:
        super().__init__()
        finest, *coarse = in_channels
        self.input_convs = nn.ModuleList(ConvNorm(width, channels, bias=True) for width in reversed(coarse))
        self.layers = nn.ModuleList(_EncoderLayer(channels, hidden) for _ in range(layers))
        self.level_encoding = nn.Embedding(_LEVELS, channels)
        self.lateral, self.output = ConvNorm(finest, channels), ConvNorm(channels, channels, 3)
        self.mask_feature = nn.Conv2d(channels, channels, 1)

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        finest, *coarse = features
        maps = [conv(each) for conv, each in zip(self.input_convs, reversed(coarse), strict=True)]
        sizes = [(each.shape[-2], each.shape[-1]) for each in maps]
        x = torch.cat([each.flatten(2).mT for each in maps], dim=1)
        positions = torch.cat(
            [
                sine_positions(*size, x.shape[2], x) + level
                for size, level in zip(sizes, self.level_encoding.weight, strict=True)
            ]
        )
        for layer in self.layers:
            x = layer(x, positions, sizes)
        parts = torch.split(x.mT, [height * width for height, width in sizes], dim=2)
        maps = [torch.unflatten(part, 2, size) for part, size in zip(parts, sizes, strict=True)]
        lateral = self.lateral(finest)
        fused = self.output(lateral + resize(maps[-1], (lateral.shape[-2], lateral.shape[-1]))).relu()
        return self.mask_feature(fused), maps


class _DecoderLayer(nn.Module):
    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.cross_attn, self.self_attn = Attention(channels, _HEADS), Attention(channels, _HEADS)
        self.ffn = FeedForward(channels, hidden)
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(3))

    def forward(self, x: Tensor, names: Tensor, memory: Tensor, positions: Tensor, allowed: Tensor) -> Tensor:
        """`names` are added to the queries where they ask or are asked, `positions` to what they look at."""
        x = self.norms[0](x + self.cross_attn(x + names, memory + positions, memory, allowed))
        x = self.norms[1](x + self.self_attn(x + names, x + names, x))
        out: Tensor = self.norms[2](self.ffn(x))
        return out


@dataclass(frozen=True)
class Mask2FormerOptions:
    """`channels` is the width of everything, a multiple of 8.

    Layers and the width of their feed-forward parts are those of the pixel decoder (`encoder_*`) and of the queries'
    decoder. Where queries are mixed, see `MixedAt`: mmseg does it at the input's size, transformers at 384x384.
    """

    channels: int = 256
    queries: int = 100
    encoder_layers: int = 6
    encoder_hidden: int = 1024
    decoder_layers: int = 9
    decoder_hidden: int = 2048
    mixed_at: MixedAt = "input"


class Mask2FormerHead(nn.Module):
    """Four backbone maps, finest first -> `Queries`, the masks at the stride of the finest map."""

    def __init__(self, in_channels: Sequence[int], num_classes: int, options: Mask2FormerOptions) -> None:
        super().__init__()
        channels, self.mixed_at = options.channels, options.mixed_at
        check_queries(channels, _HEADS, options.queries, options.decoder_layers)
        self.pixel_decoder = PixelDecoder(in_channels, channels, options.encoder_layers, options.encoder_hidden)
        self.layers = nn.ModuleList(
            _DecoderLayer(channels, options.decoder_hidden) for _ in range(options.decoder_layers)
        )
        self.post_norm = nn.LayerNorm(channels)
        self.query_feat = nn.Embedding(options.queries, channels)
        self.query_embed = nn.Embedding(options.queries, channels)
        self.level_embed = nn.Embedding(_LEVELS, channels)
        self.mask_embed = mask_embedding(channels)
        self.classifier = nn.Linear(channels, num_classes + 1)  # the last is "no object"
        for layer in (*self.layers, *self.pixel_decoder.layers):
            for name, parameter in layer.named_parameters():
                if parameter.ndim > 1 and not name.startswith(("self_attn.sampling", "self_attn.attention")):
                    nn.init.xavier_normal_(parameter)

    def forward(self, features: Sequence[Tensor]) -> Queries:
        *_, (masks, logits) = self._layer_by_layer(features)
        return Queries.of(masks, logits.softmax(-1)[..., :-1], self.mixed_at)

    def forward_train(self, features: Sequence[Tensor]) -> list[Queries]:
        """The last layer's masks and class logits, then those of the layers before it."""
        return [Queries(*each) for each in self._layer_by_layer(features)][::-1]

    def _layer_by_layer(self, features: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Masks and class logits before the first layer and after each."""
        pixels, maps = self.pixel_decoder(features)
        sizes = [(each.shape[-2], each.shape[-1]) for each in maps]
        memories = [each.flatten(2).mT + level for each, level in zip(maps, self.level_embed.weight, strict=True)]
        positions = [sine_positions(*size, pixels.shape[1], pixels) for size in sizes]
        names = self.query_embed.weight
        x = self.query_feat.weight.expand(pixels.shape[0], -1, -1)
        for i, layer in enumerate([*self.layers, None]):
            normed = self.post_norm(x)
            masks = torch.einsum("nqc,nchw->nqhw", self.mask_embed(normed), pixels)
            yield masks, self.classifier(normed)
            if layer is not None:
                level = i % _LEVELS
                allowed = _inside(masks.detach(), sizes[level])
                x = layer(x, names, memories[level], positions[level], allowed)


def _inside(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, 1, Q, h * w): where each query may look: inside its mask, or everywhere if that is empty."""
    inside = resize(masks, size).flatten(2).sigmoid() >= 0.5
    return (inside | ~inside.any(-1, keepdim=True))[:, None]


def _build(channels: Sequence[int], num_classes: int, options: Mask2FormerOptions, *, align_corners: bool) -> Heads:
    return Heads(Mask2FormerHead(channels, num_classes, options))


# --- training ---------------------------------------------------------------------------------------

_POINTS = 12544
_CLASS, _MASK, _DICE = 2.0, 5.0, 5.0
"""Weights of the losses, and of the costs by which queries are matched."""


def _loss(outputs: Sequence[HeadOutput], labels: Tensor, pixel: SegmentationLoss, aux_weight: float) -> list[LossSum]:
    """The published loss, see `matched_losses`: masks are compared at random points, most of them unsure ones.

    It has no use for an auxiliary weight.

    Raises:
        OptionError: the run asks for another loss.
    """
    return matched_losses("Mask2Former", outputs, labels, pixel, _CLASS, _mask_costs, _mask_losses)


def _mask_costs(masks: Tensor, truth: Tensor) -> Tensor:
    """(Q, G): what masks (Q, h, w) cost as masks (G, H, W), by cross entropy and Dice at points that are drawn."""
    points = torch.rand(1, _POINTS, 2, device=masks.device)
    found, wanted = _sample(masks, points), _sample(truth, points)
    cost = _MASK * (F.softplus(-found) @ wanted.T + F.softplus(found) @ (1 - wanted).T) / _POINTS
    return cost + _DICE * dice_costs(found.sigmoid(), wanted)


def _mask_losses(masks: Tensor, truth: Tensor) -> Tensor:
    """The sum over masks (G, h, w) of their cross entropy and Dice losses at points of their own."""
    with torch.no_grad():
        points = torch.rand(len(masks), 3 * _POINTS, 2, device=masks.device)
        unsure = _sample(masks, points).abs().topk(_POINTS * 3 // 4, dim=1, largest=False).indices
        points = torch.cat([points.gather(1, unsure[..., None].expand(-1, -1, 2)), points[:, : _POINTS // 4]], dim=1)
        wanted = _sample(truth, points)
    found = _sample(masks, points)
    entropy = F.binary_cross_entropy_with_logits(found, wanted, reduction="none").mean(1)
    return (_MASK * entropy + _DICE * dice_losses(found.sigmoid(), wanted)).sum()


def _sample(masks: Tensor, points: Tensor) -> Tensor:
    """Masks (G, h, w) at points (G or 1, P, 2) of x and y from 0 to 1, (G, P)."""
    grid = (2 * points - 1).expand(len(masks), -1, -1)[:, None]
    return F.grid_sample(masks[:, None], grid, align_corners=False)[:, 0, 0]


# --- names --------------------------------------------------------------------------------------------


def _mmseg(options: Mask2FormerOptions) -> KeyMap:
    theirs, ours = "decode_head.pixel_decoder.", "head.pixel_decoder."
    encoder, decoder = (f"{theirs}encoder.layers.{{}}.", f"{ours}layers.{{}}."), ("layers.{}.", "head.layers.{}.")
    decoder = (f"decode_head.transformer_decoder.{decoder[0]}", decoder[1])
    rules = [
        (f"{theirs}lateral_convs.0.", f"{ours}lateral."),
        (f"{theirs}output_convs.0.", f"{ours}output."),
        *((f"{theirs}{part}.", f"{ours}{part}.") for part in ("input_convs", "level_encoding", "mask_feature")),
        (f"{encoder[0]}self_attn.", f"{encoder[1]}self_attn."),
        (f"{decoder[0]}{{}}.attn.in_proj_", f"{decoder[1]}{{}}.in_proj."),
        (f"{decoder[0]}{{}}.attn.out_proj.", f"{decoder[1]}{{}}.out_proj."),
    ]
    for their_layer, our_layer in (encoder, decoder):
        rules += [
            (f"{their_layer}ffn.layers.0.0.", f"{our_layer}ffn.linear1."),
            (f"{their_layer}ffn.layers.1.", f"{our_layer}ffn.linear2."),
            (f"{their_layer}norms.", f"{our_layer}norms."),
        ]
    rules += [
        ("decode_head.transformer_decoder.post_norm.", "head.post_norm."),
        ("decode_head.cls_embed.", "head.classifier."),
    ]
    rules += [
        (f"decode_head.{part}.", f"head.{part}.") for part in ("query_feat", "query_embed", "level_embed", "mask_embed")
    ]
    return KeyMap(tuple(rules))


def _ssseg(options: Mask2FormerOptions) -> KeyMap:
    pixels, ours, queries, layer = "pixel_decoder.", "head.pixel_decoder.", "predictor.", "head.layers.{}."
    encoder = f"{pixels}transformer.encoder.layers.{{}}."
    convolutions = (
        (f"{pixels}lateral_convs.0.", f"{ours}lateral."),
        (f"{pixels}output_convs.0.", f"{ours}output."),
        (f"{pixels}input_proj.{{}}.", f"{ours}input_convs.{{}}."),
    )
    parts = (
        ("self_attention_layers", "self_attn", "self_attn", 1),
        ("cross_attention_layers", "multihead_attn", "cross_attn", 0),
    )
    rules: list[tuple[str, str | None]] = [
        *((f"{theirs}{i}.", f"{own}{part}.") for theirs, own in convolutions for i, part in ((0, "conv"), (1, "gn"))),
        (f"{pixels}transformer.level_embed", f"{ours}level_encoding.weight"),
        (f"{pixels}mask_features.", f"{ours}mask_feature."),
        (f"{encoder}self_attn.", f"{ours}layers.{{}}.self_attn."),
        *((f"{encoder}linear{i}.", f"{ours}layers.{{}}.ffn.linear{i}.") for i in (1, 2)),
        *((f"{encoder}norm{i}.", f"{ours}layers.{{}}.norms.{i - 1}.") for i in (1, 2)),
        *((f"{queries}transformer_ffn_layers.{{}}.linear{i}.", f"{layer}ffn.linear{i}.") for i in (1, 2)),
        (f"{queries}transformer_ffn_layers.{{}}.norm.", f"{layer}norms.2."),
    ]
    for group, theirs, own, norm in parts:
        rules += [
            (f"{queries}transformer_{group}.{{}}.{theirs}.in_proj_", f"{layer}{own}.in_proj."),
            (f"{queries}transformer_{group}.{{}}.{theirs}.out_proj.", f"{layer}{own}.out_proj."),
            (f"{queries}transformer_{group}.{{}}.norm.", f"{layer}norms.{norm}."),
        ]
    rules += [
        *((f"{queries}{part}.", f"head.{part}.") for part in ("query_feat", "query_embed", "level_embed")),
        *((f"{queries}mask_embed.layers.{i}.", f"head.mask_embed.{2 * i}.") for i in range(3)),
        (f"{queries}decoder_norm.", "head.post_norm."),
        (f"{queries}class_embed.", "head.classifier."),
        ("criterion.", None),
    ]
    return KeyMap(tuple(rules))


_PARTS = (".q_proj.", ".k_proj.", ".v_proj.")


def _transformers(options: Mask2FormerOptions) -> KeyMap:
    pixels, ours = "model.pixel_level_module.decoder.", "head.pixel_decoder."
    queries = "model.transformer_module."
    encoder, decoder = f"{pixels}encoder.layers.{{}}.", f"{queries}decoder.layers.{{}}."
    rules: list[tuple[str, str | None]] = [
        (f"{theirs}{number}.", f"{own}.{part}.")
        for theirs, own in (
            (f"{pixels}adapter_1.", f"{ours}lateral"),
            (f"{pixels}layer_1.", f"{ours}output"),
            (f"{pixels}input_projections.{{}}.", f"{ours}input_convs.{{}}"),
        )
        for number, part in ((0, "conv"), (1, "gn"))
    ]
    rules += [
        (f"{pixels}level_embed", f"{ours}level_encoding.weight"),
        (f"{pixels}mask_projection.", f"{ours}mask_feature."),
        (f"{encoder}self_attn_layer_norm.", f"{ours}layers.{{}}.norms.0."),
        (f"{encoder}final_layer_norm.", f"{ours}layers.{{}}.norms.1."),
        (f"{encoder}self_attn.", f"{ours}layers.{{}}.self_attn."),
        (f"{decoder}cross_attn_layer_norm.", "head.layers.{}.norms.0."),
        (f"{decoder}self_attn_layer_norm.", "head.layers.{}.norms.1."),
        (f"{decoder}final_layer_norm.", "head.layers.{}.norms.2."),
        (f"{decoder}cross_attn.in_proj_", "head.layers.{}.cross_attn.in_proj."),
        (f"{decoder}cross_attn.out_proj.", "head.layers.{}.cross_attn.out_proj."),
        (f"{decoder}self_attn.", "head.layers.{}.self_attn."),
        *(
            (f"{theirs}fc{i}.", f"{own}ffn.linear{i}.")
            for theirs, own in ((encoder, f"{ours}layers.{{}}."), (decoder, "head.layers.{}."))
            for i in (1, 2)
        ),
        (f"{queries}decoder.layernorm.", "head.post_norm."),
        (f"{queries}queries_features.", "head.query_feat."),
        (f"{queries}queries_embedder.", "head.query_embed."),
        (f"{queries}level_embed.", "head.level_embed."),
        *((f"{queries}decoder.mask_predictor.mask_embedder.{i}.0.", f"head.mask_embed.{2 * i}.") for i in range(3)),
        ("class_predictor.", "head.classifier."),
        ("criterion.", None),
    ]
    return KeyMap(tuple(rules), lambda tensors: join(tensors, _PARTS, ".in_proj."))


def _read_options(shapes: Shapes) -> dict[str, Any]:
    layers = {
        f"{name}_layers": len({key[len(prefix) :].split(".")[0] for key in shapes if key.startswith(prefix)})
        for name, prefix in (("encoder", "head.pixel_decoder.layers."), ("decoder", "head.layers."))
    }
    found: dict[str, Any] = {name: count for name, count in layers.items() if count}
    sides = {
        "channels": ("head.query_feat.weight", 1),
        "queries": ("head.query_feat.weight", 0),
        "encoder_hidden": ("head.pixel_decoder.layers.0.ffn.linear1.weight", 0),
        "decoder_hidden": ("head.layers.0.ffn.linear1.weight", 0),
    }
    return found | {name: shapes[key][side] for name, (key, side) in sides.items() if len(shapes.get(key, ())) == 2}


FAMILY = register_family(
    Family(
        name="mask2former",
        title="Mask2Former",
        paper="https://arxiv.org/abs/2112.01527",
        options=Mask2FormerOptions,
        build=_build,
        levels=4,
        key_maps={"mmseg": _mmseg, "ssseg": _ssseg, "transformers": _transformers},
        backbone_prefixes={"transformers": "model.pixel_level_module.encoder."},
        implied_options={"transformers": {"mixed_at": "384x384"}},
        classifiers=("head.classifier.",),
        no_object=1,
        read_options=_read_options,
        loss=_loss,
    )
)
