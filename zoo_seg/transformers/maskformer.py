"""MaskFormer's `config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zoo_seg.decode import Mistake, show
from zoo_seg.manifest import Architecture
from zoo_seg.transformers.mask2former import MASK_PROCESSOR, read_width
from zoo_seg.transformers.reading import Reading, count_of, expect
from zoo_seg.transformers.swin import read_swin

_SHAPE: Mapping[str, Any] = {
    "model_type": "detr",
    "activation_function": "relu",
    "decoder_attention_heads": 8,
    "auxiliary_loss": False,
}
"""Of the decoder."""
_BACKBONE = {
    "model_type": "swin",
    "depths": [2, 2, 18, 2],
    "embed_dim": 128,
    "num_heads": [4, 8, 16, 32],
    "window_size": 12,
}


def read_maskformer(raw: dict[str, Any]) -> Reading:
    """`MaskFormerForInstanceSegmentation`."""
    expect(raw, {"backbone": None})
    decoder = {} if raw.get("decoder_config") is None else raw["decoder_config"]
    if not isinstance(decoder, dict):
        raise Mistake(f"found {show(decoder)}, expected an object", "decoder_config")
    where = "decoder_config"
    expect(decoder, _SHAPE, where)
    width = read_width(raw, "fpn_feature_size", "mask_feature_size")
    if count_of(decoder, "d_model", 256, where) != width:
        raise Mistake(f"found {decoder['d_model']}, expected the fpn_feature_size, {width}", where, "d_model")
    options = {
        "channels": width,
        "queries": count_of(decoder, "num_queries", 100, where),
        "decoder_layers": count_of(decoder, "decoder_layers", 6, where),
        "decoder_hidden": count_of(decoder, "decoder_ffn_dim", 2048, where),
        "mixed_at": "masks",
    }
    architecture = Architecture("maskformer", read_swin(raw.get("backbone_config"), default=_BACKBONE), options=options)
    return Reading(architecture, "MaskFormerImageProcessor", MASK_PROCESSOR)
