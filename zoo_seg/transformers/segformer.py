"""SegFormer's `config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zoo_seg.decode import Mistake, show
from zoo_seg.manifest import Architecture
from zoo_seg.transformers.reading import IMAGENET, Reading, count_of, read

_MIT_SHAPE: Mapping[str, Any] = {
    "num_encoder_blocks": 4,
    "sr_ratios": [8, 4, 2, 1],
    "patch_sizes": [7, 3, 3, 3],
    "strides": [4, 2, 2, 2],
    "num_attention_heads": [1, 2, 5, 8],
    "mlp_ratios": [4, 4, 4, 4],
    "hidden_act": "gelu",
    "reshape_last_stage": True,
}
"""What all Mix Transformers have, which are transformers' defaults too."""
_MIT = {
    ((2, 2, 2, 2), (32, 64, 160, 256)): "mit_b0",
    ((2, 2, 2, 2), (64, 128, 320, 512)): "mit_b1",
    ((3, 4, 6, 3), (64, 128, 320, 512)): "mit_b2",
    ((3, 4, 18, 3), (64, 128, 320, 512)): "mit_b3",
    ((3, 8, 27, 3), (64, 128, 320, 512)): "mit_b4",
    ((3, 6, 40, 3), (64, 128, 320, 512)): "mit_b5",
}
"""By depths and widths."""


def read_segformer(raw: dict[str, Any]) -> Reading:
    """`SegformerForSemanticSegmentation`."""
    for name, expected in _MIT_SHAPE.items():
        if raw.get(name, expected) != expected:
            raise Mistake(f"found {show(raw[name])}, expected {show(expected)} as in MiT-B0 to B5", name)
    depths = read(tuple[int, ...], raw, "depths", (2, 2, 2, 2))
    widths = read(tuple[int, ...], raw, "hidden_sizes", (32, 64, 160, 256))
    backbone = _MIT.get((depths, widths))
    if backbone is None:
        known = ", ".join(f"{show(each)} with {show(of)} ({name})" for (each, of), name in _MIT.items())
        raise Mistake(f"found {show(depths)} with hidden_sizes {show(widths)}; supported are {known}", "depths")
    architecture = Architecture(
        "segformer",
        backbone,
        options={"channels": count_of(raw, "decoder_hidden_size", 256), "projection": "linear"},
        backbone_options={"norm_eps": 1e-5},  # whatever `layer_norm_eps` says, which transformers does not read
    )
    defaults = {**IMAGENET, "resample": 2, "size": {"height": 512, "width": 512}}
    return Reading(architecture, "SegformerImageProcessor", defaults)
