"""A network in a folder: `model.safetensors`, `config.json` and a model card, as fine-tuning leaves it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from zoo_seg.config import CARD, CONFIG, LIBRARY, SCHEMA_VERSION, WEIGHTS
from zoo_seg.hub.files import replacing
from zoo_seg.info import ModelInfo

_LATER = {
    "bands": None,
    "range": None,
    "interpolation": "opencv",
    "rounding": "nearest",
    "divisor": 1,
    "orientation": "image",
}
"""What earlier versions do not know of images; left out where it says nothing, so that they read the folder."""


def write_folder(folder: Path, info: ModelInfo, tensors: Mapping[str, Tensor], card: str) -> None:
    """Write a network; its files are replaced when all are there, so that a full disk leaves those before.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = {"schema_version": SCHEMA_VERSION, "library": LIBRARY, **asdict(info)}
    for part in (config["preprocess"], config["preprocess"]["resize"] or {}):
        for name in _LATER.keys() & part:
            if part[name] == _LATER[name]:
                del part[name]
    text = json.dumps(config, indent=1, ensure_ascii=False) + "\n"
    with ExitStack() as stack:
        weights, *texts = (stack.enter_context(replacing(folder / name)) for name in (WEIGHTS, CONFIG, CARD))
        weights.touch()
        mode = weights.stat().st_mode  # safetensors makes its files readable by their owner only
        try:
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, weights)
        except SafetensorError as error:
            raise OSError(f"{folder / WEIGHTS}: {error}") from None
        weights.chmod(mode)
        for path, content in zip(texts, (text, card), strict=True):
            path.write_text(content, encoding="utf-8")
