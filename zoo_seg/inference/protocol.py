"""The test protocols of the two original projects, to the order of operations.

Sources: SSSegmentation (`BaseSegmentor.auginference` and `test.py`) and MMSegmentation
(`EncoderDecoder.inference` of 1.x; multi-scale as 0.x measured its published column).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo_seg.errors import OptionError
from zoo_seg.networks.network import SegmentationNetwork
from zoo_seg.networks.resample import resize

Size = tuple[int, int]
Mode = Literal["whole", "slide"]
Rules = Literal["ssseg", "mmseg"]


@dataclass(frozen=True)
class Protocol:
    """How the logits of a picture come about; checked when it is made.

    Raises:
        OptionError: a value is not allowed, or two contradict each other.
    """

    mode: Mode = "whole"
    crop: Size | None = None
    stride: Size | None = None
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    rules: Rules = "ssseg"

    @classmethod
    def of(
        cls,
        mode: Mode,
        crop: Sequence[int] | None,
        stride: Sequence[int] | None,
        scales: Sequence[float],
        flip: bool,
        rules: Rules,
    ) -> Protocol:
        """From what users pass: lists as well as tuples."""
        return cls(mode, _pair("crop", crop), _pair("stride", stride), tuple(scales), flip, rules)

    def __post_init__(self) -> None:
        if self.mode not in ("whole", "slide"):
            raise OptionError(f"mode is {self.mode!r}; expected 'whole' or 'slide'")
        if self.rules not in ("ssseg", "mmseg"):
            raise OptionError(f"protocol is {self.rules!r}; expected 'ssseg' or 'mmseg'")
        if not self.scales or not all(0 < scale < float("inf") for scale in self.scales):
            raise OptionError(f"scales is {self.scales!r}; expected positive numbers, such as (0.75, 1.0, 1.25)")
        if self.mode == "whole":
            if self.crop is not None or self.stride is not None:
                raise OptionError("crop and stride belong to mode='slide'; mode is 'whole'")
            return
        if self.crop is None or self.stride is None:
            raise OptionError("mode='slide' needs crop=(height, width) and stride=(height, width)")
        for name, size in (("crop", self.crop), ("stride", self.stride)):
            if min(size) < 1:
                raise OptionError(f"{name} is {size}; expected (height, width) of at least 1 pixel")
        if self.stride[0] > self.crop[0] or self.stride[1] > self.crop[1]:
            raise OptionError(f"stride {self.stride} is larger than crop {self.crop}: pixels between would be left out")

    @property
    def is_plain(self) -> bool:
        """One pass over the picture, so that the result is logits under either project's rules."""
        return len(self.scales) == 1 and not self.flip


def _pair(name: str, value: Sequence[int] | None) -> Size | None:
    if value is None:
        return None
    if len(value) != 2 or not all(isinstance(side, int) for side in value):
        raise OptionError(f"{name} is {value!r}; expected (height, width) in whole pixels")
    return value[0], value[1]


def windows(size: int, crop: int, stride: int) -> list[tuple[int, int]]:
    """(start, end) of the windows along one axis; the last one is shifted inward, never padded."""
    count = max(size - crop + stride - 1, 0) // stride + 1
    ends = [min(i * stride + crop, size) for i in range(count)]
    return [(max(end - crop, 0), end) for end in ends]


def _slide(network: SegmentationNetwork, x: Tensor, crop: Size, stride: Size) -> Tensor:
    """The mean of overlapping windows' logits, each resized to its window; (N, C, H, W) at the input's size."""
    height, width = x.shape[-2:]
    total: Tensor | None = None
    count = x.new_zeros(height, width)
    for top, bottom in windows(height, crop[0], stride[0]):
        for left, right in windows(width, crop[1], stride[1]):
            logits = network(x[..., top:bottom, left:right])
            if total is None:
                total = logits.new_zeros(*logits.shape[:2], height, width)
            total[..., top:bottom, left:right] += logits
            count[top:bottom, left:right] += 1
    assert total is not None  # there is at least one window
    return total / count


def _pass(network: SegmentationNetwork, x: Tensor, protocol: Protocol) -> Tensor:
    """One look at one input; ssseg's whole mode leaves the logits at the head's stride."""
    if protocol.crop is not None and protocol.stride is not None:
        return _slide(network, x, protocol.crop, protocol.stride)
    logits = network.forward_head(network.forward_features(x))
    if protocol.rules == "mmseg":
        return resize(logits, (x.shape[-2], x.shape[-1]))
    return logits


def passes(network: SegmentationNetwork, inputs: Sequence[Tensor], protocol: Protocol) -> Iterator[Tensor]:
    """The logits of every look (one input a scale, each plain and then flipped), flipped back."""
    for x in inputs:
        yield _pass(network, x, protocol)
        if protocol.flip:
            yield _pass(network, x.flip(-1), protocol).flip(-1)


def scaled_inputs(x: Tensor, protocol: Protocol) -> list[Tensor]:
    """The input at every scale, resized from the normalised tensor.

    ssseg's rule is exact (torch maps coordinates by the factor, not by the sizes). mmseg resizes the
    picture instead; whoever has the picture passes inputs made from it.
    """
    if protocol.rules == "ssseg":
        return [
            x if scale == 1 else F.interpolate(x, scale_factor=scale, mode="bilinear", align_corners=False)
            for scale in protocol.scales
        ]
    height, width = x.shape[-2:]
    sizes = [(max(int(height * s + 0.5), 1), max(int(width * s + 0.5), 1)) for s in protocol.scales]
    return [resize(x, size) for size in sizes]


def combine(looks: Iterator[Tensor], output_size: Size, protocol: Protocol) -> Tensor:
    """Every look at the output size, averaged: logits, or for mmseg with several looks probabilities."""
    total: Tensor | None = None
    count = 0
    for logits in looks:
        item = resize(logits, output_size)
        if protocol.rules == "mmseg" and not protocol.is_plain:
            item = item.softmax(1)
        total = item if total is None else total + item
        count += 1
    assert total is not None  # a protocol has at least one scale
    return total / count if count > 1 else total


@torch.inference_mode()
def predict_logits(
    model: SegmentationNetwork,
    x: Tensor | Sequence[Tensor],
    *,
    output_size: Size,
    mode: Mode = "whole",
    crop: Size | None = None,
    stride: Size | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    protocol: Rules = "ssseg",
) -> Tensor:
    """The averaged logits of normalised inputs, by the rules of the project that published the weights.

    Args:
        model: a network in `eval()`.
        x: (N, 3, H, W), normalised float; or one such tensor a scale, already resized (which mmseg's
            rule needs: it resizes the uint8 picture before normalising).
        output_size: (height, width) of the result, usually the picture's own.
        mode: `"whole"`, or `"slide"` with windows of `crop` at every `stride` (height, width), the last
            ones shifted inward.
        scales: factors of the input's size.
        flip: also look at the mirrored input.
        protocol: `"ssseg"` (one resize to the output, mean of logits) or `"mmseg"` (by way of the
            input's size, mean of softmax probabilities).

    Returns:
        (N, num_classes, *output_size): logits; for mmseg with several scales or flip probabilities.

    Raises:
        OptionError: an option or the input's shape is not allowed.
    """
    rules = Protocol.of(mode, crop, stride, scales, flip, protocol)
    if isinstance(x, Tensor):
        if x.ndim != 4 or 0 in x.shape or not x.is_floating_point():
            raise OptionError(f"x is {x.dtype} of shape {tuple(x.shape)}; expected a normalised float (N, 3, H, W)")
        inputs = scaled_inputs(x, rules)
    else:
        inputs = list(x)
        if len(inputs) != len(rules.scales):
            raise OptionError(f"x holds {len(inputs)} tensors for {len(rules.scales)} scales; expected one a scale")
    return combine(passes(model, inputs, rules), (int(output_size[0]), int(output_size[1])), rules)
