"""Mask2Former's `config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zoo_seg.decode import Mistake
from zoo_seg.manifest import Architecture
from zoo_seg.transformers.reading import IMAGENET, Reading, count_of, expect
from zoo_seg.transformers.swin import read_swin

MASK_PROCESSOR: Mapping[str, Any] = {
    **IMAGENET,
    "resample": 2,
    "size": {"shortest_edge": 800, "longest_edge": 1333},
    "size_divisor": 32,
}
"""What Mask2FormerImageProcessor and MaskFormerImageProcessor take where a file says nothing."""
_SHAPE: Mapping[str, Any] = {
    "num_attention_heads": 8,
    "activation_function": "relu",
    "pre_norm": False,
    "enforce_input_projection": False,
    "common_stride": 4,
    "feature_strides": [4, 8, 16, 32],
    "backbone": None,  # the name of another one
}
_BACKBONE = {"model_type": "swin", "depths": [2, 2, 18, 2]}


def read_mask2former(raw: dict[str, Any]) -> Reading:
    """`Mask2FormerForUniversalSegmentation`."""
    expect(raw, _SHAPE)
    options = {
        "channels": read_width(raw, "feature_size", "mask_feature_size", "hidden_dim"),
        "queries": count_of(raw, "num_queries", 100),
        "encoder_layers": count_of(raw, "encoder_layers", 6),
        "encoder_hidden": count_of(raw, "encoder_feedforward_dim", 1024),
        "decoder_layers": count_of(raw, "decoder_layers", 10) - 1,  # transformers counts the queries themselves
        "decoder_hidden": count_of(raw, "dim_feedforward", 2048),
        "mixed_at": "384x384",
    }
    if not options["decoder_layers"]:
        raise Mistake("found 1, expected at least 2", "decoder_layers")
    architecture = Architecture(
        "mask2former", read_swin(raw.get("backbone_config"), default=_BACKBONE), options=options
    )
    return Reading(architecture, "Mask2FormerImageProcessor", MASK_PROCESSOR)


def read_width(raw: dict[str, Any], *names: str) -> int:
    """The one number that several names give."""
    width, *others = (count_of(raw, name, 256) for name in names)
    if width % 256 or any(each != width for each in others):
        raise Mistake(
            f"{', '.join(names)} are {', '.join(map(str, [width, *others]))}; expected one multiple of 256", names[0]
        )
    return width
