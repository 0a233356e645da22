"""A network in a folder: `model.safetensors`, `config.json` and a model card, as fine-tuning leaves it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from safetensors.torch import save_file
from torch import Tensor

from zoo_seg.decode import Mistake, decode, read_json
from zoo_seg.errors import CheckpointError
from zoo_seg.manifest import Architecture, Metric, Preprocess, Recipe
from zoo_seg.weights.files import replacing

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Config:
    """Everything about a network but its values: `config.json`."""

    schema_version: int
    library: str
    """Name and version of what wrote it."""
    architecture: Architecture
    in_chans: int
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    ignore_index: int
    preprocess: Preprocess
    protocol: Literal["ssseg", "mmseg"]
    metrics: tuple[Metric, ...] = ()
    recipe: Recipe | None = None
    started_from: str | None = None
    """The weights that training started from: an id, a link or a file name; None is random values."""
    data_licence: str | None = None

    def __post_init__(self) -> None:
        if self.schema_version != SCHEMA_VERSION:
            raise ValueError(f"schema_version is {self.schema_version}, this library reads {SCHEMA_VERSION}")
        if not self.classes or len(self.classes) != len(self.palette):
            raise ValueError(f"{len(self.classes)} classes and {len(self.palette)} palette colours, expected as many")
        if self.in_chans < 1:
            raise ValueError(f"in_chans is {self.in_chans}, expected at least 1")


def read_config(folder: Path) -> Config:
    """The `config.json` of a folder.

    Raises:
        CheckpointError: the folder is not one that this library wrote.
        ManifestError: the file is broken; the message names line and key.
    """
    path = folder / CONFIG
    if not path.is_file():
        found = ", ".join(sorted(each.name for each in folder.iterdir())[:5]) or "nothing"
        raise CheckpointError(f"{folder} holds {found}; expected {CONFIG} and {WEIGHTS}, as finetune writes them")

    def config(raw: object) -> Config:
        if not isinstance(raw, dict):
            raise Mistake("expected an object")
        result: Config = decode(Config, raw, ())
        return result

    return read_json(path, config)


def write_folder(folder: Path, config: Config, tensors: Mapping[str, Tensor], card: str) -> None:
    """Write a network; each file is replaced in one step, so that a full disk leaves the one before.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / WEIGHTS) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode  # safetensors makes its files readable by their owner only
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, temporary)
        temporary.chmod(mode)
    text = json.dumps(asdict(config), indent=1, ensure_ascii=False) + "\n"
    for name, content in ((CONFIG, text), (CARD, card)):
        with replacing(folder / name) as temporary:
            temporary.write_text(content, encoding="utf-8")
