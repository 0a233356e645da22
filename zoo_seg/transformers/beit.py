"""BEiT's `config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zoo_seg.decode import Mistake, show
from zoo_seg.manifest import Architecture
from zoo_seg.transformers.reading import Reading, count_of, expect, read
from zoo_seg.transformers.upernet import HEADS

_SHAPE: Mapping[str, Any] = {
    **HEADS,
    "patch_size": 16,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "use_absolute_position_embeddings": False,
}
_SIZES: Mapping[tuple[int, ...], str] = {(768, 12, 12, 3072): "beit_base", (1024, 24, 16, 4096): "beit_large"}
"""By channels, blocks, heads and width of the MLPs."""
_MEAN = [0.5, 0.5, 0.5]


def read_beit(raw: dict[str, Any]) -> Reading:
    """`BeitForSemanticSegmentation`."""
    expect(raw, _SHAPE)
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    size = tuple(count_of(raw, name, default) for name, default in zip(names, (768, 12, 12, 3072), strict=True))
    backbone = _SIZES.get(size)
    if backbone is None:
        known = " or ".join(f"{show(each)} ({name})" for each, name in _SIZES.items())
        raise Mistake(f"found {show(size)} for {', '.join(names)}; supported are {known}", names[0])
    width, depth = size[:2]
    tables = [raw.get(f"use_{kind}relative_position_bias", False) for kind in ("", "shared_")]
    if tables not in ([True, False], [False, True]):
        raise Mistake("expected true, or use_shared_relative_position_bias in its place", "use_relative_position_bias")
    side = raw.get("image_size", 224)
    if isinstance(side, list) and len(side) == 2 and side[0] == side[1]:
        side = side[0]
    options = {
        "blocks": _blocks(raw, depth),
        "image_size": count_of({"image_size": side}, "image_size", 224),
        "shared_bias": tables[1],
    }
    heads = {"channels": width, "aux_channels": count_of(raw, "auxiliary_channels", 256)}
    architecture = Architecture("upernet", backbone, options=heads, backbone_options=options)
    defaults = {"image_mean": _MEAN, "image_std": _MEAN, "resample": 3, "size": {"height": 224, "width": 224}}
    return Reading(architecture, "BeitImageProcessor", defaults)


def _blocks(raw: dict[str, Any], depth: int) -> list[int]:
    """After how many blocks maps are read: one less than `out_indices` says, as transformers counts."""
    name = "segmentation_indices" if raw.get("out_indices") is None else "out_indices"
    found = read(tuple[int, ...], raw, name, ())
    if len(found) != 4 or not 1 <= found[0] < found[1] < found[2] < found[3] <= depth:
        raise Mistake(f"found {show(found)}, expected four rising numbers of 1 to {depth}", "out_indices")
    return [index - 1 for index in found]
