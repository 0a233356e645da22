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
from zoo_seg.inference.looks import Infer, Look, Size, Slide, Whole
from zoo_seg.layers.resample import resize
from zoo_seg.network import SegmentationNetwork

_FIRST_ROWS = 8
"""Rows of the first strip, whose shape tells how many fit into the following ones."""
_STRIP = 1 << 22
"""Logits held at full size at a time (16 MB)."""

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
        """From what users pass: lists as well as tuples; without a stride two thirds of the crop."""
        window, step = _pair("crop", crop), _pair("stride", stride)
        if mode == "slide" and window is not None and step is None:
            step = max(window[0] * 2 // 3, 1), max(window[1] * 2 // 3, 1)
        return cls(mode, window, step, tuple(scales), flip, rules)

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
            raise OptionError("mode='slide' needs crop=(height, width)")
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


def looks(infer: Infer, inputs: Sequence[Tensor], output_size: Size, protocol: Protocol) -> Iterator[Look]:
    """One look at every scale's input, each plain and then mirrored where `flip` asks for it."""
    for x in inputs:
        through = [(x.shape[-2], x.shape[-1])] if protocol.rules == "mmseg" else []
        for flip in (False, True) if protocol.flip else (False,):
            seen = x.flip(-1) if flip else x
            logits: Whole | Slide
            if protocol.crop is not None and protocol.stride is not None:
                logits = Slide(infer, seen, protocol.crop, protocol.stride)
            else:
                logits = Whole(infer, seen)
            yield Look(logits, [*through, output_size], flip)


def strips(all_looks: Sequence[Look], protocol: Protocol) -> Iterator[tuple[int, Tensor]]:
    """The average of all looks from top to bottom: (first row, (N, C, rows, W)).

    Logits, or for mmseg with several looks softmax probabilities. Only a strip is held at full size.
    """
    height, width = all_looks[0].sizes[-1]
    step = _FIRST_ROWS
    top = 0
    while top < height:
        total: Tensor | None = None
        for look in all_looks:
            strip = look.strip(top, min(top + step, height))
            if protocol.rules == "mmseg" and not protocol.is_plain:
                strip = strip.softmax(1)
            total = strip if total is None else total + strip
        assert total is not None  # a protocol has at least one scale
        yield top, total / len(all_looks) if len(all_looks) > 1 else total
        top += step
        step = max(_STRIP // (total.shape[0] * total.shape[1] * width), 1)


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
        mode: `"whole"`, or `"slide"` with windows of `crop` at every `stride` (height, width; two thirds of
            the crop if left out), the last ones shifted inward. A crop larger than the input is the input.
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
        if x.shape[1] != model.in_chans:
            raise OptionError(f"x has {x.shape[1]} channels; expected {model.in_chans}, as the network takes")
        if not x.isfinite().all():
            raise OptionError(f"x holds {int((~x.isfinite()).sum())} values that are NaN or infinite; expected none")
        inputs = scaled_inputs(x, rules)
    else:
        inputs = list(x)
        if len(inputs) != len(rules.scales):
            raise OptionError(f"x holds {len(inputs)} tensors for {len(rules.scales)} scales; expected one a scale")
    size = (int(output_size[0]), int(output_size[1]))
    result: Tensor | None = None
    for top, strip in strips(list(looks(model.forward_logits, inputs, size, rules)), rules):
        if result is None:
            result = strip.new_empty(*strip.shape[:2], *size)
        result[:, :, top : top + strip.shape[2]] = strip
    assert result is not None  # every size has a first strip
    return result
