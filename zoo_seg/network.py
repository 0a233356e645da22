"""A backbone, a head and auxiliary heads, and how they are built from an architecture."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from zoo_seg.backbones.registry import find_backbone
from zoo_seg.errors import ExportError, OptionError
from zoo_seg.families.registry import Family, find_family
from zoo_seg.layers.readout import HeadOutput, Queries, mixed_early, read_out
from zoo_seg.layers.resample import resize
from zoo_seg.manifest import Architecture


@contextmanager
def without_weights() -> Iterator[None]:
    """What is built in it lies on the meta device: shapes, and no values."""
    with torch.device("meta"), _NoFills():
        yield


class _NoFills(TorchFunctionMode):
    """Leaves tensors without values as they are: torch would import its compiler to draw values for them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (Tensor.normal_, Tensor.uniform_) or getattr(func, "__module__", "") == nn.init.__name__:
            tensor = args[0] if args else kwargs["tensor"]
            if tensor.is_meta:
                return tensor
        return func(*args, **kwargs)


class SegmentationNetwork(nn.Module):
    """The pure network: tensors in, tensors out.

    Args:
        backbone: (N, in_chans, H, W) -> feature maps, finest first.
        head: feature maps -> logits at the stride of one of them, or `Queries`.
        aux_heads: read the same maps; trained with a part of the loss, unused in `forward`.
        align_corners: of the resize to the input's size.
        size_divisor: the input is padded with zeros (the mean colour) at the right and bottom to a multiple.
        probe: side of the noise image on which a rewritten network is compared with itself.
    """

    backbone: nn.Module
    head: nn.Module
    aux_heads: nn.ModuleList

    def __init__(
        self,
        backbone: nn.Module,
        head: nn.Module,
        aux_heads: Sequence[nn.Module] = (),
        *,
        align_corners: bool = False,
        size_divisor: int = 1,
        probe: int = 64,
    ) -> None:
        super().__init__()
        self.backbone, self.head, self.aux_heads = backbone, head, nn.ModuleList(aux_heads)
        self.align_corners, self.size_divisor, self.probe = align_corners, size_divisor, probe

    def with_parts(self, backbone: nn.Module, head: nn.Module) -> SegmentationNetwork:
        """A network like this one on other parts, without auxiliary heads."""
        return SegmentationNetwork(
            backbone, head, align_corners=self.align_corners, size_divisor=self.size_divisor, probe=self.probe
        )

    @property
    def in_chans(self) -> int:
        """Channels of the image: those that the first convolution reads."""
        return next(parameter for parameter in self.backbone.parameters() if parameter.ndim == 4).shape[1]

    def forward_features(self, x: Tensor) -> list[Tensor]:
        """(N, in_chans, H, W) -> the backbone's feature maps, finest first."""
        return list(self.backbone(self.pad(x)))

    def forward_head(self, features: list[Tensor]) -> HeadOutput:
        """The backbone's feature maps -> logits (N, num_classes, h, w) at the head's own stride, or `Queries`."""
        output: HeadOutput = self.head(features)
        return output

    def forward_train(self, x: Tensor, *, auxiliary: bool = True) -> list[HeadOutput]:
        """(N, in_chans, H, W) -> what training compares with the labels: the head's logits, then the auxiliary ones."""
        features = self.forward_features(x)
        trained = getattr(self.head, "forward_train", None)
        outputs = list(trained(features)) if trained else [self.forward_head(features)]
        return outputs + [head(features) for head in self.aux_heads if auxiliary]

    def forward_logits(self, x: Tensor) -> HeadOutput:
        """(N, in_chans, H, W) -> logits (N, num_classes, h, w) at the head's own stride, or `Queries`."""
        return self.forward_head(self.forward_features(x))

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_chans, H, W), normalised float -> logits (N, num_classes, H, W), resized bilinearly."""
        if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
            warnings.warn(
                f"torch.jit.trace may keep the input's size, {x.shape[-2]}x{x.shape[-1]}: compare the trace at others "
                "with the network; zoo_seg.export(model, 'net.pt2') is for any size, and is compared",
                stacklevel=2,
            )
        return self.read(self.forward_logits(x), (x.shape[-2], x.shape[-1]))

    def __prepare_scriptable__(self) -> NoReturn:  # torch.jit.script asks for it
        raise ExportError("torch.jit.script is not supported; zoo_seg.export(model, 'net.pt2') takes its place")

    def read(self, output: HeadOutput, size: tuple[int, int]) -> Tensor:
        """What the head returned for an input of a size as logits (N, num_classes, *size)."""
        output = mixed_early(output)
        values, classes = output[:2] if isinstance(output, Queries) else (output, None)
        values = resize(values, padded_size(*size, self.size_divisor), self.align_corners)
        if self.size_divisor > 1 and any(isinstance(side, torch.SymInt) for side in size):
            # An exported graph copies: a view would bind it to sizes with padding, or to those without.
            values = values.narrow_copy(2, 0, size[0]).narrow_copy(3, 0, size[1])
        return read_out(values[..., : size[0], : size[1]], classes)

    def pad(self, x: Tensor, value: float = 0.0) -> Tensor:
        """The input, or its labels, at a size that the network takes."""
        height, width = padded_size(x.shape[-2], x.shape[-1], self.size_divisor)
        if self.size_divisor == 1:
            return x
        return F.pad(x, (0, width - x.shape[-1], 0, height - x.shape[-2]), value=value)


def padded_size(height: int, width: int, divisor: int) -> tuple[int, int]:
    """The sides rounded up to multiples; without negative numbers, which exported graphs round the other way."""
    return (height + divisor - 1) // divisor * divisor, (width + divisor - 1) // divisor * divisor


def with_all_options(architecture: Architecture) -> Architecture:
    """The same with every option of its family, so that a later version's defaults change nothing.

    Raises:
        OptionError: an option is not allowed.
    """
    return replace(architecture, options=asdict(find_family(architecture.family).make_options(architecture.options)))


def build_network(
    architecture: Architecture, num_classes: int, *, in_chans: int = 3, backbone_pretrained: bool = False
) -> SegmentationNetwork:
    """The network of an architecture, with random weights but for the backbone's on request.

    Raises:
        UnknownNameError: there is no such family or backbone.
        OptionError: they do not go together, or an option is not allowed.
    """
    if num_classes < 1 or in_chans < 1:
        raise OptionError(f"num_classes is {num_classes} and in_chans {in_chans}; both must be at least 1")
    family = find_family(architecture.family)
    options = family.make_options(architecture.options)
    asked = {"levels": family.levels_of(options), **family.asks(options)}
    body = _build_backbone(architecture, family, asked, in_chans, backbone_pretrained)
    channels: Sequence[int] = body.channels  # type: ignore[assignment]
    heads = family.build(channels, num_classes, options, align_corners=architecture.align_corners)
    return SegmentationNetwork(
        body,
        heads.head,
        heads.aux_heads,
        align_corners=architecture.align_corners,
        size_divisor=architecture.size_divisor,
        probe=family.probe,
    )


def _build_backbone(
    architecture: Architecture, family: Family, asked: Mapping[str, Any], in_chans: int, pretrained: bool
) -> nn.Module:
    name = architecture.backbone
    if family.backbones is not None and name not in family.backbones:
        raise OptionError(f"{family.name} stands on {' or '.join(family.backbones)}, not on {name!r}")
    create, options = find_backbone(name).create, architecture.backbone_options
    shape = {"output_stride": architecture.output_stride, "in_chans": in_chans, **asked}
    try:
        return create(**shape, pretrained=pretrained, **options)
    except TypeError as error:
        if not any(repr(option) in str(error) for option in options):
            raise
        raise OptionError(f"the backbone {name!r} does not take these options: {error}") from None
