"""A network in a folder: `model.safetensors`, `config.json` and a model card, as fine-tuning leaves it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from zoo_seg.decode import Mistake, decode, read_json
from zoo_seg.errors import CheckpointError
from zoo_seg.hub.files import replacing
from zoo_seg.manifest import (
    Architecture,
    Metric,
    Preprocess,
    Provenance,
    Recipe,
    Weights,
    architecture_of_schema_1,
    load_manifest,
    metric_of_schema_1,
)
from zoo_seg.version import __version__

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
SCHEMA_VERSION = 1
LIBRARY = f"zoo_seg {__version__}"


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
    is_published: bool = False
    """The values are those of `started_from`, under other names but not trained any further."""
    dataset: str | None = None
    """Title of the data set that the metrics were measured on."""
    provenance: Provenance | None = None
    code_licence: str | None = None
    weights_licence: str | None = None
    data_licence: str | None = None
    """The three licences of the values, or of what training started from; None where nobody stated it."""

    def __post_init__(self) -> None:
        if self.schema_version != SCHEMA_VERSION:
            raise ValueError(f"schema_version is {self.schema_version}, this library reads {SCHEMA_VERSION}")
        if not self.classes or len(self.classes) != len(self.palette):
            raise ValueError(f"{len(self.classes)} classes and {len(self.palette)} palette colours, expected as many")
        if not all(0 <= channel <= 255 for colour in self.palette for channel in colour):
            raise ValueError("a palette colour is outside 0..255")
        if self.in_chans < 1:
            raise ValueError(f"in_chans is {self.in_chans}, expected at least 1")


def config_of(weights: Weights, architecture: Architecture) -> Config:
    """A published record as the config of its network."""
    dataset = load_manifest().datasets.get(weights.dataset)
    return Config(
        schema_version=SCHEMA_VERSION,
        library=LIBRARY,
        architecture=architecture,
        in_chans=3,
        classes=weights.classes,
        palette=weights.palette,
        ignore_index=dataset.ignore_index if dataset else 255,
        preprocess=weights.preprocess,
        protocol=weights.protocol,
        metrics=weights.metrics,
        recipe=weights.recipe,
        started_from=weights.id,
        is_published=True,
        dataset=dataset.title if dataset else weights.dataset,
        provenance=weights.provenance,
        code_licence=weights.licence.code,
        weights_licence=weights.licence.weights,
        data_licence=weights.licence.data,
    )


def is_network(name: str) -> bool:
    """Whether a folder of this name holds a network; one that only happens to have a tag's name does not."""
    return bool(name) and (Path(name) / CONFIG).is_file()


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
        if isinstance(raw.get("architecture"), dict):
            raw["architecture"] = architecture_of_schema_1(raw["architecture"])
        if isinstance(raw.get("metrics"), list):
            raw["metrics"] = [metric_of_schema_1(metric) for metric in raw["metrics"]]
        result: Config = decode(Config, raw, ())
        return result

    return read_json(path, config)


def write_folder(folder: Path, config: Config, tensors: Mapping[str, Tensor], card: str) -> None:
    """Write a network; its files are replaced when all are there, so that a full disk leaves those before.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(asdict(config), indent=1, ensure_ascii=False) + "\n"
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
