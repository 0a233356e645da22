"""DPT: maps of a Vision Transformer at four scales, fused from the coarsest on. Ranftl et al., https://arxiv.org/abs/2103.13413

As transformers has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch.nn.functional as F
from torch import Tensor, nn

from zoo_seg.backbones.vit import DINOV2S, VITS
from zoo_seg.errors import OptionError
from zoo_seg.families.registry import Family, Heads, Shapes, register_family
from zoo_seg.keymap import KeyMap
from zoo_seg.layers.resample import resize

Readout: TypeAlias = Literal["ignore", "add", "project"]


def _twice(x: Tensor) -> Tensor:
    return resize(x, (2 * x.shape[-2], 2 * x.shape[-1]), align_corners=True)


class _Readout(nn.Linear):
    """A map (N, C, h, w) and the class's token (N, C) -> the map with what the token knows.

    The paper's linear layer reads both as one; here each through its half of the weight, and the token once.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(2 * channels, channels)

    def mix(self, x: Tensor, token: Tensor) -> Tensor:
        of_places, of_token = self.weight.chunk(2, dim=1)
        bias = F.linear(token, of_token, self.bias)
        mixed = F.gelu(F.linear(x.permute(0, 2, 3, 1), of_places) + bias[:, None, None])
        return mixed.permute(0, 3, 1, 2)


class _Residual(nn.Module):
    """ReLU and a 3x3 convolution, twice, added to the input; (N, C, h, w) -> the same."""

    def __init__(self, channels: int, batch_norm: bool, bias: bool) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(channels, channels, 3, padding=1, bias=bias) for _ in range(2))
        self.norm1, self.norm2 = (nn.BatchNorm2d(channels) if batch_norm else nn.Identity() for _ in range(2))
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.norm2(self.conv2(self.act(self.norm1(self.conv1(x.relu())))))
        return out


class _Fusion(nn.Module):
    """The map so far and the next finer one -> both, twice as fine.

    The 1x1 convolution follows the enlarging in the paper; both are linear and change places, for a fourth of the work.
    """

    def __init__(self, channels: int, batch_norm: bool, bias: bool, *, first: bool) -> None:
        super().__init__()
        self.residual1 = None if first else _Residual(channels, batch_norm, bias)
        self.residual2 = _Residual(channels, batch_norm, bias)
        self.project = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, finer: Tensor | None) -> Tensor:
        if self.residual1 is not None and finer is not None:
            x = x + self.residual1(resize(finer, (x.shape[-2], x.shape[-1])))
        return _twice(self.project(self.residual2(x)))


class _PixelHead(nn.Module):
    """A 3x3 convolution, BatchNorm, ReLU and the classifier."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm, self.act = nn.BatchNorm2d(channels), nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(0.1)
        self.classifier = nn.Conv2d(channels, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.dropout(self.act(self.norm(self.conv(x)))))
        return logits


@dataclass(frozen=True)
class DPTOptions:
    """`channels` is the width of the fusion, `reassembled` those of the four maps in front of it, finest first.

    `readout` is what becomes of the class's token; `batch_norm` and `bias` are of the fusion's convolutions;
    `auxiliary` adds a head that is only trained.
    """

    channels: int = 256
    reassembled: tuple[int, ...] = (96, 192, 384, 768)
    readout: Readout = "project"
    batch_norm: bool = True
    bias: bool = False
    auxiliary: bool = True


class DPTHead(nn.Module):
    """Four maps (N, C, h, w) and the tokens without a place (N, C, 4, T) -> logits (N, num_classes, 16h, 16w)."""

    def __init__(self, in_channels: int, num_classes: int, options: DPTOptions) -> None:
        super().__init__()
        widths = options.reassembled
        if len(widths) != 4 or min(*widths, options.channels) < 1:
            raise OptionError(f"reassembled is {widths}, channels {options.channels}; expected the widths of four maps")
        self.readout = options.readout
        self.readouts = nn.ModuleList(_Readout(in_channels) for _ in widths if options.readout == "project")
        self.projections = nn.ModuleList(nn.Conv2d(in_channels, width, 1) for width in widths)
        finest, finer, _, coarsest = widths
        self.resizes = nn.ModuleList(
            [
                nn.ConvTranspose2d(finest, finest, 4, 4),
                nn.ConvTranspose2d(finer, finer, 2, 2),
                nn.Identity(),
                nn.Conv2d(coarsest, coarsest, 3, 2, 1),
            ]
        )
        channels, how = options.channels, (options.batch_norm, options.bias)
        self.convs = nn.ModuleList(nn.Conv2d(width, channels, 3, padding=1, bias=False) for width in widths)
        self.fusions = nn.ModuleList(_Fusion(channels, *how, first=not index) for index in range(4))
        self.pixel = _PixelHead(channels, num_classes)
        self.auxiliary = _PixelHead(channels, num_classes) if options.auxiliary else None

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        return _twice(self.pixel(self._fused(features)))

    def forward_train(self, features: Sequence[Tensor]) -> list[Tensor]:
        """The logits and, at half their size, those of the auxiliary head."""
        fused = self._fused(features)
        logits = [_twice(self.pixel(fused))]
        return logits if self.auxiliary is None else [*logits, self.auxiliary(fused)]

    def _fused(self, features: Sequence[Tensor]) -> Tensor:
        *maps, tokens = features
        fused: Tensor | None = None
        for index, fusion in zip(reversed(range(4)), self.fusions, strict=True):
            x = self._with_token(maps[index], tokens[:, :, index, 0], index)
            x = self.convs[index](self.resizes[index](self.projections[index](x)))
            fused = fusion(x if fused is None else fused, None if fused is None else x)
        assert fused is not None  # there are four
        return fused

    def _with_token(self, x: Tensor, token: Tensor, index: int) -> Tensor:
        if self.readout == "ignore":
            return x
        if self.readout == "add":
            return x + token[:, :, None, None]
        readout = self.readouts[index]
        assert isinstance(readout, _Readout)
        return readout.mix(x, token)


def _build(channels: Sequence[int], num_classes: int, options: DPTOptions, *, align_corners: bool) -> Heads:
    return Heads(DPTHead(channels[-1], num_classes, options))


def _asks(options: DPTOptions) -> dict[str, Any]:
    return {"tokens": True}


# --- names --------------------------------------------------------------------------------------------


def _transformers(options: DPTOptions) -> KeyMap:
    neck, fusion = "neck.reassemble_stage.", "neck.fusion_stage.layers.{}."
    rules: list[tuple[str, str | None]] = [
        (f"{neck}readout_projects.{{}}.0.", "head.readouts.{}."),
        (f"{neck}layers.{{}}.projection.", "head.projections.{}."),
        (f"{neck}layers.{{}}.resize.", "head.resizes.{}."),
        ("neck.convs.{}.", "head.convs.{}."),
        ("neck.fusion_stage.layers.0.residual_layer1.", None),  # nothing is coarser than its map
        (f"{fusion}projection.", "head.fusions.{}.project."),
    ]
    for layer in (1, 2):
        for part in (1, 2):
            for theirs, ours in (("convolution", "conv"), ("batch_norm", "norm")):
                there, here = f"residual_layer{layer}.{theirs}{part}.", f"residual{layer}.{ours}{part}."
                rules.append((f"{fusion}{there}", f"head.fusions.{{}}.{here}"))
    for theirs, ours in (("head.head.", "head.pixel."), ("auxiliary_head.head.", "head.auxiliary.")):
        rules += [(f"{theirs}{i}.", f"{ours}{part}.") for i, part in ((0, "conv"), (1, "norm"), (4, "classifier"))]
    return KeyMap(tuple(rules))


def _read_options(shapes: Shapes) -> dict[str, Any]:
    width, maps = shapes.get("head.pixel.conv.weight", ()), [f"head.projections.{index}.weight" for index in range(4)]
    if len(width) != 4 or not all(len(shapes.get(name, ())) == 4 for name in maps):
        return {}
    return {
        "channels": width[0],
        "reassembled": [shapes[name][0] for name in maps],
        "batch_norm": "head.fusions.0.residual2.norm1.weight" in shapes,
        "bias": "head.fusions.0.residual2.conv1.bias" in shapes,
        "auxiliary": "head.auxiliary.classifier.weight" in shapes,
        **({"readout": "project"} if "head.readouts.0.weight" in shapes else {}),
    }


FAMILY = register_family(
    Family(
        name="dpt",
        title="DPT",
        paper="https://arxiv.org/abs/2103.13413",
        options=DPTOptions,
        build=_build,
        levels=4,
        asks=_asks,
        key_maps={"transformers": _transformers},
        backbone_prefixes={"transformers": "dpt."},
        classifiers=("head.pixel.classifier.", "head.auxiliary.classifier."),
        class_tensor="head.pixel.classifier.weight",
        read_options=_read_options,
        backbones=(*VITS, *DINOV2S),
    )
)
