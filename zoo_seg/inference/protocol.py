"""The test protocols of the original projects, to the order of operations.

Sources: SSSegmentation (`BaseSegmentor.auginference` and `test.py`) and MMSegmentation
(`EncoderDecoder.inference` of 1.x; multi-scale as 0.x measured its published column).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo_seg.decode import suggest
from zoo_seg.errors import OptionError
from zoo_seg.inference.augmented import (
    Geometry,
    Infer,
    LinearLogits,
    Logits,
    QueryLogits,
    Size,
    queries_over,
    windowed_logits,
)
from zoo_seg.layers.readout import Queries
from zoo_seg.layers.resample import resize
from zoo_seg.manifest import Protocol, TestMode, TestOptions, load_manifest
from zoo_seg.network import SegmentationNetwork

_FIRST_ROWS = 8
"""Rows of the first strip, whose shape tells how many fit into the following ones."""
_STRIP = 1 << 22
"""Logits held at full size at a time (16 MB)."""

_LEAST_SCORE = 1e-12
"""Where no query's mask is, all classes are as likely."""

Mode = TestMode


def find_protocol(name: str) -> Protocol:
    """The rules of a name in the manifest's `protocols`.

    Raises:
        OptionError: there is none.
    """
    known = load_manifest().protocols
    if name not in known:
        raise OptionError(f"protocol is {name!r}; {suggest(str(name), known)}")
    return known[name]


def check_test_options(
    mode: Mode = "whole",
    crop: Sequence[int] | None = None,
    stride: Sequence[int] | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
) -> TestOptions:
    """From what users pass: lists as well as tuples; without a stride two thirds of the crop.

    Raises:
        OptionError: a value is not allowed, or two contradict each other.
    """
    window, step = _pair("crop", crop), _pair("stride", stride)
    if mode not in get_args(TestMode):
        raise OptionError(f"mode is {mode!r}; expected 'whole', 'slide' or 'split'")
    if not scales or not all(0 < scale < float("inf") for scale in scales):
        raise OptionError(f"scales is {tuple(scales)!r}; expected positive numbers, such as (0.75, 1.0, 1.25)")
    if mode == "whole" and (window is not None or step is not None):
        raise OptionError("crop and stride belong to mode='slide'; mode is 'whole'")
    if mode == "split" and step is not None:
        raise OptionError("stride belongs to mode='slide'; windows of mode='split' are evenly spread")
    if mode != "whole":
        if window is None:
            raise OptionError(f"mode={mode!r} needs crop=(height, width)")
        if min(window) < 1:
            raise OptionError(f"crop is {window}; expected (height, width) of at least 1 pixel")
    if mode == "slide":
        assert window is not None  # it was looked at
        step = step or (max(window[0] * 2 // 3, 1), max(window[1] * 2 // 3, 1))
        if min(step) < 1:
            raise OptionError(f"stride is {step}; expected (height, width) of at least 1 pixel")
        if step[0] > window[0] or step[1] > window[1]:
            raise OptionError(f"stride {step} is larger than crop {window}: pixels between would be left out")
    try:
        return TestOptions(mode, window, step, tuple(scales), flip)
    except ValueError as error:
        raise OptionError(str(error)) from None


def _pair(name: str, value: Sequence[int] | None) -> Size | None:
    if value is None:
        return None
    if len(value) != 2 or not all(isinstance(side, int) for side in value):
        raise OptionError(f"{name} is {value!r}; expected (height, width) in integer pixels")
    return value[0], value[1]


def scaled_inputs(x: Tensor, scales: Sequence[float], rules: Protocol) -> list[Tensor]:
    """The input at every scale, resized from the normalised tensor.

    Under ssseg's rules that is exact (torch maps coordinates by the factor, not by the sizes). mmseg resizes the
    image instead; whoever has the image passes inputs made from it.
    """
    if rules.rescale == "tensor":
        return [
            x if scale == 1 else F.interpolate(x, scale_factor=scale, mode="bilinear", align_corners=False)
            for scale in scales
        ]
    height, width = x.shape[-2:]
    sizes = [(max(int(height * s + 0.5), 1), max(int(width * s + 0.5), 1)) for s in scales]
    return [resize(x, size) for size in sizes]


def augmented_logits(
    infer: Infer, inputs: Sequence[Tensor], output_size: Size, test: TestOptions, rules: Protocol, geometry: Geometry
) -> Iterator[Logits]:
    """The logits of every scale's input, each plain and then mirrored where `flip` asks for it."""
    for x in inputs:
        size = (x.shape[-2], x.shape[-1])
        for flip in (False, True) if test.flip else (False,):
            seen = x.flip(-1) if flip else x
            if test.crop is not None:
                yield windowed_logits(infer, seen, test.crop, test.stride, output_size, geometry, flip=flip)
                continue
            output = infer(seen)
            if isinstance(output, Queries) and output.mixed_at is None:
                yield QueryLogits(queries_over(output, size, geometry), output_size, flip, geometry.align_corners)
            else:
                yield LinearLogits.of(output, size, output_size, geometry, via_input=rules.via_input_size, flip=flip)


def strips(
    all_logits: Sequence[Logits], rules: Protocol, rows: tuple[int, int] | None = None
) -> Iterator[tuple[int, Tensor]]:
    """The average of all logits from top to bottom: (first row, (N, C, rows, W)).

    Where the rules average probabilities, those of several. Only a strip is held at full size.

    Args:
        rows: the first one, and the one after the last; None is all.
    """
    height, width = all_logits[0].size
    top, bottom = rows or (0, height)
    step = _FIRST_ROWS
    while top < bottom:
        total: Tensor | None = None
        for logits in all_logits:
            strip = logits.strip(top, min(top + step, bottom))
            if rules.average == "probabilities" and len(all_logits) > 1:
                strip = strip.softmax(1)
            total = strip if total is None else total + strip
        assert total is not None  # there is at least one scale
        yield top, total / len(all_logits) if len(all_logits) > 1 else total
        top += step
        step = max(_STRIP // (total.shape[0] * total.shape[1] * width), 1)


def probabilities(strip: Tensor, rules: Protocol, *, several: bool, scores: bool) -> Tensor:
    """A strip of `strips` (N, C, rows, W) as probabilities: of each pixel they add up to 1, and the same class wins.

    Args:
        several: the strip is the average of several logits.
        scores: it was read out of `Queries`, whose values are no logits: each class's share of the masks there. A
            probability is then a class's part of their sum.
    """
    averaged = several and rules.average == "probabilities"
    if not scores:
        return strip if averaged else strip.softmax(1)
    if averaged:  # the rules take the scores for logits; undone, up to a constant, which the least score stands for
        strip = strip.log()
        strip = strip - strip.amin(1, keepdim=True)
    strip = strip + _LEAST_SCORE
    return strip / strip.sum(1, keepdim=True)


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
    protocol: str = "ssseg",
) -> Tensor:
    """The averaged logits of normalised inputs, by the rules of the project that published the weights.

    Args:
        model: a network in `eval()`.
        x: (N, in_chans, H, W), normalised float; or one such tensor a scale, already resized (which mmseg's
            rule needs: it resizes the uint8 image before normalising).
        output_size: (height, width) of the result, usually the image's own.
        mode: `"whole"`, or `"slide"` with windows of `crop` at every `stride` (height, width; two thirds of
            the crop if left out), the last ones shifted inward. A crop larger than the input is the input. Or
            `"split"`: as few windows of `crop` as cover the input, evenly spread.
        scales: factors of the input's size.
        flip: average with the mirrored input.
        protocol: `"ssseg"` (one resize to the output, mean of logits), `"mmseg"` (by way of the input's size, mean of
            softmax probabilities), or another name in the manifest's `protocols`.

    Returns:
        (N, num_classes, *output_size): logits; for mmseg with several scales or flip probabilities.

    Raises:
        OptionError: an option or the input's shape is not allowed.
    """
    rules, test = find_protocol(protocol), check_test_options(mode, crop, stride, scales, flip)
    if isinstance(x, Tensor):
        if x.ndim != 4 or 0 in x.shape or not x.is_floating_point():
            raise OptionError(
                f"x is {x.dtype} of shape {tuple(x.shape)}; expected a normalised float (N, {model.in_chans}, H, W)"
            )
        if x.shape[1] != model.in_chans:
            raise OptionError(f"x has {x.shape[1]} channels; expected {model.in_chans}, as the network takes")
        if not x.isfinite().all():
            raise OptionError(f"x holds {int((~x.isfinite()).sum())} values that are NaN or infinite; expected none")
        inputs = scaled_inputs(x, test.scales, rules)
    else:
        inputs = list(x)
        if len(inputs) != len(test.scales):
            raise OptionError(f"x holds {len(inputs)} tensors for {len(test.scales)} scales; expected one a scale")
    size = (int(output_size[0]), int(output_size[1]))
    geometry = Geometry(model.align_corners, model.size_divisor)
    result: Tensor | None = None
    for top, strip in strips(list(augmented_logits(model.forward_logits, inputs, size, test, rules, geometry)), rules):
        if result is None:
            result = strip.new_empty(*strip.shape[:2], *size)
        result[:, :, top : top + strip.shape[2]] = strip
    assert result is not None  # every size has a first strip
    return result
