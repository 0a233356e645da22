"""DPT's `config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zoo_seg.decode import Mistake, show
from zoo_seg.manifest import Architecture
from zoo_seg.transformers.reading import Reading, count_of, expect, read
from zoo_seg.transformers.vit import image_size, read_vit

_SHAPE: Mapping[str, Any] = {
    "is_hybrid": False,
    "backbone_config": None,
    "backbone": None,
    "qkv_bias": True,
    "reassemble_factors": [4, 2, 1, 0.5],
    "head_in_index": -1,
}
_BACKBONES = ("vit_tiny", "vit_small", "vit_base", "vit_large")
_READOUTS = ("ignore", "add", "project")


def read_dpt(raw: dict[str, Any]) -> Reading:
    """`DPTForSemanticSegmentation` on a Vision Transformer; hybrids with a ResNet in front are refused."""
    expect(raw, _SHAPE)
    backbone = read_vit(raw, _BACKBONES, (768, 12, 12))
    width, depth = count_of(raw, "hidden_size", 768), count_of(raw, "num_hidden_layers", 12)
    expect(
        {"intermediate_size": 3072, "backbone_out_indices": [2, 5, 8, 11], **raw},
        {
            "intermediate_size": 4 * width,
            "backbone_out_indices": [depth * (index + 1) // 4 - 1 for index in range(4)],
        },
    )
    readout = raw.get("readout_type", "project")
    if readout not in _READOUTS:
        raise Mistake(f"found {show(readout)}, expected {', '.join(_READOUTS)}", "readout_type")
    widths = read(tuple[int, ...], raw, "neck_hidden_sizes", (96, 192, 384, 768))
    if len(widths) != 4 or not all(0 < each <= 1 << 16 for each in widths):
        raise Mistake(f"found {show(list(widths))}, expected the channels of four maps", "neck_hidden_sizes")
    batch_norm = bool(read(bool | None, raw, "use_batch_norm_in_fusion_residual", False))
    bias = read(bool | None, raw, "use_bias_in_fusion_residual", None)
    architecture = Architecture(
        "dpt",
        backbone,
        options={
            "channels": count_of(raw, "fusion_hidden_size", 256),
            "reassembled": list(widths),
            "readout": readout,
            "batch_norm": batch_norm,
            "bias": not batch_norm if bias is None else bias,
            "auxiliary": bool(read(bool | None, raw, "use_auxiliary_head", True)),
        },
        backbone_options={
            "image_size": image_size(raw, 384),
            "norm_eps": read(float, raw, "layer_norm_eps", 1e-12),
        },
    )
    defaults = {
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "resample": 3,
        "size": {"height": 384, "width": 384},
    }
    return Reading(architecture, "DPTImageProcessor", defaults, adapt=_adapt)


def _adapt(raw: dict[str, Any]) -> dict[str, Any]:
    """Sides are rounded to a multiple; transformers segments nothing but squares, so no ratio is kept."""
    expect(raw, {"keep_aspect_ratio": False, "do_pad": False, "do_center_crop": False})
    multiple, size = count_of(raw, "ensure_multiple_of", 1), raw["size"]
    sides = {"height": size, "width": size} if isinstance(size, int) else size
    if multiple > 1 and isinstance(sides, dict):
        sides = {
            name: round(side / multiple) * multiple if isinstance(side, int) else side for name, side in sides.items()
        }
    return {**raw, "size": sides}
