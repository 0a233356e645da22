"""The description of a ConvNeXt inside another network's `config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zoo_seg.decode import Mistake, show
from zoo_seg.transformers.reading import expect, read

_STAGES = ("stage1", "stage2", "stage3", "stage4")
_SHAPE: Mapping[str, Any] = {"num_channels": 3, "patch_size": 4, "num_stages": 4, "hidden_act": "gelu"}
_SIZES = {
    ((3, 3, 9, 3), 96): "convnext_tiny_seg",
    ((3, 3, 27, 3), 96): "convnext_small_seg",
    ((3, 3, 27, 3), 128): "convnext_base_seg",
    ((3, 3, 27, 3), 192): "convnext_large_seg",
    ((3, 3, 27, 3), 256): "convnext_xlarge_seg",
}
"""By depths and channels of the first stage."""


def read_convnext(raw: Mapping[str, Any], path: str = "backbone_config") -> str:
    """The backbone's name; `path` is where `raw` stands in its file.

    Raises:
        Mistake: it is of a size that is not built here, or returns other feature maps than all four.
    """
    expect(raw, _SHAPE, path)
    depths = read(tuple[int, ...], raw, "depths", (3, 3, 9, 3), path)
    widths = read(tuple[int, ...], raw, "hidden_sizes", (96, 192, 384, 768), path)
    name = _SIZES.get((depths, widths[0])) if widths else None
    if name is None or widths != tuple(widths[0] << stage for stage in range(4)):
        known = ", ".join(f"{show(each)} from {width} on ({name})" for (each, width), name in _SIZES.items())
        raise Mistake(f"found {show(depths)} with hidden_sizes {show(widths)}; supported are {known}", path, "depths")
    maps = read(tuple[str, ...], raw, "out_features", _STAGES[-1:], path)
    if maps != _STAGES:
        raise Mistake(f"found {show(maps)}, expected {', '.join(_STAGES)}", path, "out_features")
    return name
