"""EoMT's `config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zoo_seg.decode import Mistake, show
from zoo_seg.manifest import LARGEST_SIDE, Architecture
from zoo_seg.transformers.reading import IMAGENET, Reading, count_of, expect, read
from zoo_seg.transformers.vit import image_size, read_vit

_SHAPE: Mapping[str, Any] = {"layer_norm_eps": 1e-6, "mlp_ratio": 4, "use_swiglu_ffn": False}
_BACKBONES = ("dinov2_small", "dinov2_base", "dinov2_large")


def read_eomt(raw: dict[str, Any]) -> Reading:
    """`EomtForUniversalSegmentation`, for semantic segmentation."""
    expect(raw, _SHAPE)
    architecture = Architecture(
        "eomt",
        read_vit(raw, _BACKBONES, (1024, 24, 16)),
        size_divisor=16,  # transformers takes one size only, which 16 divides
        options={
            "queries": count_of(raw, "num_queries", 200),
            "blocks": count_of(raw, "num_blocks", 4),
            "upscales": count_of(raw, "num_upscale_blocks", 2),
        },
        backbone_options={
            "image_size": image_size(raw, 640),
            "registers": count_of(raw, "num_register_tokens", 4),
        },
    )
    defaults = {
        **IMAGENET,
        "resample": 2,
        "size": {"shortest_edge": 640, "longest_edge": 640},
        "do_split_image": False,
    }
    return Reading(architecture, "EomtImageProcessor", defaults, adapt=_adapt, splits=True)


def _adapt(raw: dict[str, Any]) -> dict[str, Any]:
    """Images are cut into squares of their shorter side; otherwise they are padded, which is for instances."""
    if not read(bool, raw, "do_split_image", False):
        raise Mistake("found false, expected true, as networks for semantic segmentation have it", "do_split_image")
    expect(raw, {"do_resize": True})
    size = {"shortest_edge": raw["size"]} if isinstance(raw["size"], int) else raw["size"]
    if not isinstance(size, dict) or not {"shortest_edge"} <= set(size) <= {"shortest_edge", "longest_edge"}:
        raise Mistake(f"found {show(size)}, expected shortest_edge", "size")
    if size.get("longest_edge") is not None:
        raise Mistake(f"found {show(size['longest_edge'])}, expected null", "size", "longest_edge")
    return {**raw, "size": {"shortest_edge": size["shortest_edge"], "longest_edge": LARGEST_SIDE}}
