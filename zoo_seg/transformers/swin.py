"""The description of a Swin Transformer inside another network's `config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zoo_seg.decode import Mistake, decode, show
from zoo_seg.transformers.reading import expect, read

_SHAPE: Mapping[str, Any] = {
    "num_channels": 3,
    "patch_size": 4,
    "mlp_ratio": 4,
    "qkv_bias": True,
    "hidden_act": "gelu",
    "use_absolute_embeddings": False,
    "layer_norm_eps": 1e-5,
}
_SIZES = {
    ((2, 2, 6, 2), 96, 7): "swin_tiny",
    ((2, 2, 18, 2), 96, 7): "swin_small",
    ((2, 2, 18, 2), 128, 7): "swin_base",
    ((2, 2, 18, 2), 128, 12): "swin_base_window12",
    ((2, 2, 18, 2), 192, 7): "swin_large",
    ((2, 2, 18, 2), 192, 12): "swin_large_window12",
}
"""By depths, channels of the first stage and side of a window."""


def read_swin(given: object, path: str = "backbone_config", default: Mapping[str, Any] | None = None) -> str:
    """The backbone's name.

    Args:
        given: the description; None for `default`.
        path: where it stands in its file.
        default: transformers' own for such a network.

    Raises:
        Mistake: it is another network, or of a size that is not built here.
    """
    raw = (default or {}) if given is None else given
    if not isinstance(raw, Mapping) or raw.get("model_type") not in ("swin", "maskformer-swin"):
        kind = show(raw.get("model_type")) if isinstance(raw, Mapping) else show(raw)
        raise Mistake(f"found {kind}; the only supported backbone is a Swin Transformer (swin)", path, "model_type")
    expect(raw, _SHAPE, path)
    depths = read(tuple[int, ...], raw, "depths", (2, 2, 6, 2), path)
    width = read(int, raw, "embed_dim", 96, path)
    window = read(int, raw, "window_size", 7, path)
    name = _SIZES.get((depths, width, window))
    if name is None:
        known = ", ".join(f"{show(each)}, {of} and {side} ({name})" for (each, of, side), name in _SIZES.items())
        found = f"{show(depths)} with embed_dim {width} and window_size {window}"
        raise Mistake(f"found {found}; supported are {known}", path, "depths")
    heads = [width // 32 << stage for stage in range(4)]
    if read(tuple[int, ...], raw, "num_heads", (3, 6, 12, 24), path) != tuple(heads):
        raise Mistake(f"found {show(raw.get('num_heads'))}, expected {heads}", path, "num_heads")
    stages = tuple(f"stage{number}" for number in range(1, 5))
    if decode(tuple[str, ...], raw.get("out_features") or list(stages), (path, "out_features")) != stages:
        raise Mistake(f"found {show(raw['out_features'])}, expected {', '.join(stages)}", path, "out_features")
    return name
