"""Mask2Former: queries that each find a mask and its class. Cheng et al., https://arxiv.org/abs/2112.01527

As MMSegmentation has it: a pixel decoder of deformable attention, and a decoder whose queries look only at what the
mask of the layer before holds. Each query's mask counts for a class by its probability.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo_seg.errors import OptionError
from zoo_seg.families.registry import Family, Heads, Shapes, register_family
from zoo_seg.keymap import KeyMap
from zoo_seg.layers.losses import LossSum, SegmentationLoss
from zoo_seg.layers.readout import HeadOutput, Queries
from zoo_seg.layers.resample import resize
from zoo_seg.layers.transformer import Attention, DeformableAttention, FeedForward, sine_positions

_HEADS = 8
_LEVELS = 3
"""How many maps, the coarsest, attention reads."""


class _ConvNorm(nn.Sequential):
    """A convolution and GroupNorm."""

    def __init__(self, in_channels: int, channels: int, kernel: int = 1, *, bias: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, kernel, padding=kernel // 2, bias=bias)
        self.gn = nn.GroupNorm(math.gcd(32, channels // 8), channels)  # 32 groups of 256 channels, never of one channel


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
        self.input_convs = nn.ModuleList(_ConvNorm(width, channels, bias=True) for width in reversed(coarse))
        self.layers = nn.ModuleList(_EncoderLayer(channels, hidden) for _ in range(layers))
        self.level_encoding = nn.Embedding(_LEVELS, channels)
        self.lateral, self.output = _ConvNorm(finest, channels), _ConvNorm(channels, channels, 3)
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
    decoder.
    """

    channels: int = 256
    queries: int = 100
    encoder_layers: int = 6
    encoder_hidden: int = 1024
    decoder_layers: int = 9
    decoder_hidden: int = 2048


class Mask2FormerHead(nn.Module):
    """Four backbone maps, finest first -> `Queries`, the masks at the stride of the finest map."""

    def __init__(self, in_channels: Sequence[int], num_classes: int, options: Mask2FormerOptions) -> None:
        super().__init__()
        channels = options.channels
        if channels < 1 or channels % _HEADS or min(options.queries, options.decoder_layers) < 1:
            raise OptionError(
                f"channels is {channels}, queries {options.queries} and decoder_layers {options.decoder_layers}; "
                f"expected a multiple of {_HEADS}, and at least 1 of the others"
            )
        self.pixel_decoder = PixelDecoder(in_channels, channels, options.encoder_layers, options.encoder_hidden)
        self.layers = nn.ModuleList(
            _DecoderLayer(channels, options.decoder_hidden) for _ in range(options.decoder_layers)
        )
        self.post_norm = nn.LayerNorm(channels)
        self.query_feat = nn.Embedding(options.queries, channels)
        self.query_embed = nn.Embedding(options.queries, channels)
        self.level_embed = nn.Embedding(_LEVELS, channels)
        self.mask_embed = nn.Sequential(
            nn.Linear(channels, channels),
            nn.ReLU(inplace=True),
            nn.Linear(channels, channels),
            nn.ReLU(inplace=True),
            nn.Linear(channels, channels),
        )
        self.classifier = nn.Linear(channels, num_classes + 1)  # the last is "no object"
        for layer in (*self.layers, *self.pixel_decoder.layers):
            for name, parameter in layer.named_parameters():
                if parameter.ndim > 1 and not name.startswith(("self_attn.sampling", "self_attn.attention")):
                    nn.init.xavier_normal_(parameter)

    def forward(self, features: Sequence[Tensor]) -> Queries:
        *_, (masks, logits) = self._layer_by_layer(features)
        return Queries(masks, logits.softmax(-1)[..., :-1])

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
_NO_OBJECT = 0.1
_CLASS, _MASK, _DICE = 2.0, 5.0, 5.0
"""Weights of the losses, and of the costs by which queries are matched."""


def _loss(outputs: Sequence[HeadOutput], labels: Tensor, pixel: SegmentationLoss, aux_weight: float) -> list[LossSum]:
    """The published loss: each class of an image is one mask, matched to one query by the least cost, in every layer.

    Masks are compared at random points, most of them where the network is unsure; ignored pixels are outside of all
    masks. It has no use for an auxiliary weight.

    Raises:
        OptionError: the run asks for another loss.
    """
    if pixel.kind != "cross_entropy" or pixel.class_weights is not None:
        raise OptionError("Mask2Former trains its queries by its own loss; leave loss and class_weights out")
    ids = [each.unique() for each in labels.long()]
    ids = [each[each != pixel.ignore_index] for each in ids]
    wanted = [(image == own[:, None, None]).float() for image, own in zip(labels.long(), ids, strict=True)]
    zero = labels.new_zeros((), dtype=torch.float32)
    class_total, class_weight, mask_total, mask_weight = zero, zero, zero, zero
    for output in outputs:
        assert isinstance(output, Queries)
        masks, logits = output.masks.float(), output.classes.float()
        targets = logits.new_full(logits.shape[:2], logits.shape[2] - 1, dtype=torch.long)
        mask_total = mask_total + 0 * masks.sum()  # for a batch without labels
        for image, (own, truth) in enumerate(zip(ids, wanted, strict=True)):
            queries, objects = _match(masks[image].detach(), logits[image].detach(), own, truth)
            targets[image, queries] = own[objects]
            if len(queries):
                mask_total = mask_total + _mask_losses(masks[image, queries], truth[objects])
                mask_weight = mask_weight + len(queries)
        weights = torch.where(targets == logits.shape[2] - 1, _NO_OBJECT, 1.0)
        losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        class_total = class_total + _CLASS * (losses * weights.flatten()).sum()
        class_weight = class_weight + weights.sum()
    # A sum over layers of means: all layers have the same weight.
    layers = len(outputs)
    return [LossSum(class_total, class_weight / layers), LossSum(mask_total, mask_weight / layers)]


@torch.no_grad()
def _match(masks: Tensor, logits: Tensor, ids: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Which query (of masks (Q, h, w) and logits (Q, C + 1)) stands for which of the classes (G,), (G, H, W)."""
    points = torch.rand(1, _POINTS, 2, device=masks.device)
    found, wanted = _sample(masks, points), _sample(truth, points)
    cost = -_CLASS * logits.softmax(-1)[:, ids]
    cost = cost + _MASK * (F.softplus(-found) @ wanted.T + F.softplus(found) @ (1 - wanted).T) / _POINTS
    share = found.sigmoid()
    cost = cost + _DICE * (1 - (2 * share @ wanted.T + 1) / (share.sum(1)[:, None] + wanted.sum(1) + 1))
    queries, objects = assign(cost.cpu().numpy())
    return torch.as_tensor(queries, device=masks.device), torch.as_tensor(objects, device=masks.device)


def _mask_losses(masks: Tensor, truth: Tensor) -> Tensor:
    """The sum over masks (G, h, w) of their cross entropy and Dice losses at points of their own."""
    with torch.no_grad():
        points = torch.rand(len(masks), 3 * _POINTS, 2, device=masks.device)
        unsure = _sample(masks, points).abs().topk(_POINTS * 3 // 4, dim=1, largest=False).indices
        points = torch.cat([points.gather(1, unsure[..., None].expand(-1, -1, 2)), points[:, : _POINTS // 4]], dim=1)
        wanted = _sample(truth, points)
    found = _sample(masks, points)
    entropy = F.binary_cross_entropy_with_logits(found, wanted, reduction="none").mean(1)
    share = found.sigmoid()
    dice = 1 - (2 * (share * wanted).sum(1) + 1) / (share.sum(1) + wanted.sum(1) + 1)
    return (_MASK * entropy + _DICE * dice).sum()


def _sample(masks: Tensor, points: Tensor) -> Tensor:
    """Masks (G, h, w) at points (G or 1, P, 2) of x and y from 0 to 1, (G, P)."""
    grid = (2 * points - 1).expand(len(masks), -1, -1)[:, None]
    return F.grid_sample(masks[:, None], grid, align_corners=False)[:, 0, 0]


def assign(cost: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows and columns, each once, whose costs have the least sum; as many as the shorter side of (rows, columns).

    The Hungarian method with shortest augmenting paths (Jonker and Volgenant 1987).
    """
    if cost.shape[0] > cost.shape[1]:
        columns, rows = assign(cost.T)
        return rows, columns
    height, width = cost.shape
    cost = np.hstack([np.zeros((height, 1)), cost.astype(np.float64)])  # column 0 is where each row starts
    row_price, column_price = np.zeros(height), np.zeros(width + 1)
    owner = np.full(width + 1, -1)
    for row in range(height):
        owner[0], column = row, 0
        distance, before, seen = np.full(width + 1, np.inf), np.zeros(width + 1, int), np.zeros(width + 1, bool)
        while owner[column] >= 0:
            seen[column] = True
            reduced = cost[owner[column]] - row_price[owner[column]] - column_price
            nearer = ~seen & (reduced < distance)
            distance[nearer], before[nearer] = reduced[nearer], column
            nearest = int(np.argmin(np.where(seen, np.inf, distance)))
            step = distance[nearest]
            row_price[owner[seen]] += step
            column_price[seen] -= step
            distance[~seen] -= step
            column = nearest
        while column:
            owner[column] = owner[before[column]]
            column = before[column]
    columns = np.flatnonzero(owner[1:] >= 0)
    return owner[1:][columns], columns


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
        key_maps={"mmseg": _mmseg},
        classifiers=("head.classifier.",),
        no_object=1,
        read_options=_read_options,
        loss=_loss,
    )
)
