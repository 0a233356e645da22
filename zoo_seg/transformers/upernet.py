"""UPerNet's `config.json`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from zoo_seg.decode import Mistake, show
from zoo_seg.manifest import Architecture
from zoo_seg.transformers.convnext import read_convnext
from zoo_seg.transformers.reading import IMAGENET, Reading, count_of, expect
from zoo_seg.transformers.swin import read_swin

HEADS: Mapping[str, Any] = {
    "pool_scales": [1, 2, 3, 6],
    "use_auxiliary_head": True,
    "auxiliary_num_convs": 1,
    "auxiliary_concat_input": False,
}
"""What all heads have."""
_BACKBONES: Mapping[str, Callable[[dict[str, Any]], str]] = {"swin": read_swin, "convnext": read_convnext}
"""By transformers' types."""


def read_upernet(raw: dict[str, Any]) -> Reading:
    """`UperNetForSemanticSegmentation`."""
    expect(raw, HEADS)
    given = raw.get("backbone_config")
    if not isinstance(given, dict):
        given = {"model_type": raw.get("backbone") or "resnet"}  # transformers' default
    kind = given.get("model_type")
    if not isinstance(kind, str) or kind not in _BACKBONES:
        found = f"found {show(kind)}; supported backbones are {', '.join(_BACKBONES)}"
        raise Mistake(found, "backbone_config", "model_type")
    options = {"channels": count_of(raw, "hidden_size", 512), "aux_channels": count_of(raw, "auxiliary_channels", 256)}
    defaults = {**IMAGENET, "resample": 2, "size": {"height": 512, "width": 512}}
    architecture = Architecture("upernet", _BACKBONES[kind](given), options=options)
    return Reading(architecture, "SegformerImageProcessor", defaults, protocol="transformers_upernet")
