"""The description of a Vision Transformer in a network's `config.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from zoo_seg.decode import Mistake, show
from zoo_seg.manifest import LARGEST_SIDE
from zoo_seg.transformers.reading import count_of, expect, read

_SHAPE: Mapping[str, Any] = {"patch_size": 16, "hidden_act": "gelu"}
_NAMES = {(192, 12, 3): "tiny", (384, 12, 6): "small", (768, 12, 12): "base", (1024, 24, 16): "large"}
"""By channels, blocks and heads."""


def read_vit(raw: Mapping[str, Any], names: Sequence[str], default: tuple[int, int, int]) -> str:
    """The backbone's name, one of `names`.

    Args:
        raw: the file.
        names: of backbones, such as `vit_base`.
        default: channels, blocks and heads that transformers takes where the file is silent.

    Raises:
        Mistake: it is of a size that is not built here.
    """
    expect(raw, _SHAPE)
    keys = ("hidden_size", "num_hidden_layers", "num_attention_heads")
    width, depth, heads = (count_of(raw, key, other) for key, other in zip(keys, default, strict=True))
    size = _NAMES.get((width, depth, heads))
    for name in names:
        if name.endswith(f"_{size}"):
            return name
    known = [(shape, name) for name in names for shape, size in _NAMES.items() if name.endswith(f"_{size}")]
    listed = ", ".join(f"{', '.join(map(str, shape))} ({name})" for shape, name in known)
    found = f"{width} with num_hidden_layers {depth} and num_attention_heads {heads}"
    raise Mistake(f"found {found}; supported are {listed}", "hidden_size")


def image_size(raw: Mapping[str, Any], default: int) -> int:
    """The side of the square images that the positions are for."""
    size = raw.get("image_size", default)
    if isinstance(size, list) and len(size) == 2 and size[0] == size[1]:
        size = size[0]
    if isinstance(size, list):
        raise Mistake(f"found {show(size)}, expected a square", "image_size")
    side: int = read(int, {"image_size": size}, "image_size", default)
    if not 16 <= side <= LARGEST_SIDE:
        raise Mistake(f"found {side}, expected 16 to {LARGEST_SIDE} pixels", "image_size")
    return side
