"""EoMT: a Vision Transformer whose last blocks see queries among the patches. Kerssies et al., https://arxiv.org/abs/2503.19108

As transformers has it. Each query's mask counts for a class by its probability.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from zoo_seg.backbones.vit import DINOV2S, Block
from zoo_seg.errors import CheckpointError, OptionError
from zoo_seg.families.mask2former import FAMILY as MASK2FORMER
from zoo_seg.families.registry import Family, Heads, Shapes, register_family
from zoo_seg.keymap import KeyMap
from zoo_seg.layers.readout import Queries
from zoo_seg.layers.resample import resize


@dataclass(frozen=True)
class EoMTOptions:
    """The last `blocks` of the backbone see the queries; `upscales` times the map of patches is doubled for the masks.

    In the last `masked` of these blocks a query sees only the patches of its mask. Published networks were trained with
    masks that fade away, and have none.
    """

    queries: int = 100
    blocks: int = 4
    upscales: int = 2
    masked: int = 0


class _Upscale(nn.Module):
    """(N, C, h, w) -> (N, C, 2h, 2w)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.act = nn.ConvTranspose2d(channels, channels, 2, 2), nn.GELU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.norm = nn.LayerNorm(channels, 1e-6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2(self.act(self.conv1(x)))
        out: Tensor = self.norm(x.permute(0, 2, 3, 1))
        return out.permute(0, 3, 1, 2)


class EoMTHead(nn.Module):
    """The backbone's map (N, C, h, w) and tokens (N, C, 1, T) -> `Queries`, the masks 2^`upscales` times as fine."""

    masks: Tensor

    def __init__(self, channels: int, num_classes: int, options: EoMTOptions) -> None:
        super().__init__()
        if options.queries < 1 or options.upscales < 0 or not 0 <= options.masked <= options.blocks:
            raise OptionError(
                f"queries is {options.queries}, upscales {options.upscales} and masked {options.masked}; expected at "
                f"least 1, at least 0, and 0 to {options.blocks}, the blocks that see the queries"
            )
        self.masked = options.masked
        if options.masked:
            self.register_buffer("masks", torch.ones(options.masked))  # so that files tell how many
        self.query = nn.Parameter(torch.empty(options.queries, channels))
        self.blocks = nn.ModuleList(Block(channels, layer_scale=True) for _ in range(options.blocks))
        self.norm = nn.LayerNorm(channels, 1e-6)
        self.upscale = nn.Sequential(*(_Upscale(channels) for _ in range(options.upscales)))
        self.mask_embed = nn.Sequential(
            nn.Linear(channels, channels),
            nn.GELU(),
            nn.Linear(channels, channels),
            nn.GELU(),
            nn.Linear(channels, channels),
        )
        self.classifier = nn.Linear(channels, num_classes + 1)  # the last is "no object"
        nn.init.normal_(self.query)

    def forward(self, features: Sequence[Tensor]) -> Queries:
        *_, (masks, logits) = self._block_by_block(features, self.masked)
        return Queries(masks, logits.softmax(-1)[..., :-1])

    def forward_train(self, features: Sequence[Tensor]) -> list[Queries]:
        """The last block's masks and class logits, then those in front of the blocks before it."""
        return [Queries(*each) for each in self._block_by_block(features, len(self.blocks))][::-1]

    def _block_by_block(self, features: Sequence[Tensor], last: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Masks and class logits in front of the `last` blocks, and after all."""
        places, tokens = features
        size, tokens = (places.shape[-2], places.shape[-1]), tokens.flatten(2).mT
        first = len(self.query) + tokens.shape[1]  # of the patches
        x = torch.cat([self.query.expand(places.shape[0], -1, -1), tokens, places.flatten(2).mT], dim=1)
        for left, block in zip(range(len(self.blocks), 0, -1), self.blocks, strict=True):
            allowed = None
            if left <= last:
                masks, logits = self._read(x, first, size)
                yield masks, logits
                if left <= self.masked:
                    inside = resize(masks.detach(), size).flatten(2) > 0
                    allowed = inside.new_ones(x.shape[0], 1, x.shape[1], x.shape[1])
                    allowed[:, 0, : len(self.query), first:] = inside
            x = block(x, allowed)
        yield self._read(x, first, size)

    def _read(self, x: Tensor, first: int, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """What the queries among the tokens say: masks (N, Q, h, w) and class logits (N, Q, C + 1)."""
        x = self.norm(x)
        queries, pixels = x[:, : len(self.query)], self.upscale(torch.unflatten(x[:, first:].mT, 2, size))
        return torch.einsum("nqc,nchw->nqhw", self.mask_embed(queries), pixels), self.classifier(queries)


def _build(channels: Sequence[int], num_classes: int, options: EoMTOptions, *, align_corners: bool) -> Heads:
    return Heads(EoMTHead(channels[-1], num_classes, options))


def _asks(options: EoMTOptions) -> dict[str, Any]:
    return {"tokens": True, "left_out": options.blocks}


# --- names --------------------------------------------------------------------------------------------


def _to_the_head(tensors: dict[str, Tensor], blocks: int) -> dict[str, Tensor]:
    """The last blocks are the head's, and so is how many of them mask."""
    numbers = [int(found[1]) for name in tensors if (found := re.match(r"backbone\.blocks\.([0-9]{1,4})\.", name))]
    first = max(numbers, default=-1) + 1 - blocks

    def ours(name: str) -> str:
        found = re.match(r"backbone\.blocks\.([0-9]{1,4})\.", name)
        if found is None or int(found[1]) < first:
            return name
        return f"head.blocks.{int(found[1]) - first}.{name[found.end() :]}"

    result = {ours(name): tensor for name, tensor in tensors.items()}
    probabilities = result.pop("head.masks", None)
    if probabilities is not None:
        each = probabilities.flatten().tolist()
        masked = int(sum(each))
        if each != [0.0] * (len(each) - masked) + [1.0] * masked:
            raise CheckpointError(
                f"its attn_mask_probs are {[round(share, 4) for share in each]}: with these transformers itself draws "
                "masks at random; expected 0 where blocks mask no longer, and then 1"
            )
        if masked:
            result["head.masks"] = torch.ones(masked)
    return result


def _transformers(options: EoMTOptions) -> KeyMap:
    return KeyMap(
        (
            ("query.weight", "head.query"),
            ("layernorm.", "head.norm."),
            ("upscale_block.block.{}.conv1.", "head.upscale.{}.conv1."),
            ("upscale_block.block.{}.conv2.", "head.upscale.{}.conv2."),
            ("upscale_block.block.{}.layernorm2d.", "head.upscale.{}.norm."),
            ("mask_head.fc1.", "head.mask_embed.0."),
            ("mask_head.fc2.", "head.mask_embed.2."),
            ("mask_head.fc3.", "head.mask_embed.4."),
            ("class_predictor.", "head.classifier."),
            ("attn_mask_probs", "head.masks"),
            ("criterion.", None),
        ),
        partial(_to_the_head, blocks=options.blocks),
    )


def _read_options(shapes: Shapes) -> dict[str, Any]:
    query, masks = shapes.get("head.query", ()), shapes.get("head.masks", ())
    found = {"queries": query[0]} if len(query) == 2 else {}
    return found | {"masked": masks[0] if masks else 0}


FAMILY = register_family(
    Family(
        name="eomt",
        title="EoMT",
        paper="https://arxiv.org/abs/2503.19108",
        options=EoMTOptions,
        build=_build,
        levels=1,
        asks=_asks,
        key_maps={"transformers": _transformers},
        backbone_prefixes={"transformers": ""},
        classifiers=("head.classifier.",),
        no_object=1,
        read_options=_read_options,
        loss=MASK2FORMER.loss,
        backbones=tuple(DINOV2S),
    )
)
