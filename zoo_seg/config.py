"""`config.json`: what a saved network says about itself, beside its weights. Nothing here imports torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zoo_seg.decode import Mistake, decode, read_json, show
from zoo_seg.errors import CheckpointError
from zoo_seg.info import ModelInfo
from zoo_seg.manifest import architecture_of_schema_1, metric_of_schema_1
from zoo_seg.transformers.repository import info_from, is_transformers
from zoo_seg.version import __version__

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
SCHEMA_VERSION = 2
LIBRARY = f"zoo_seg {__version__}"


def is_network(name: str) -> bool:
    """Whether a folder of this name holds a network; one that only happens to have a tag's name does not."""
    return bool(name) and (Path(name) / CONFIG).is_file()


def read_config(folder: Path) -> ModelInfo:
    """The `config.json` of a folder that this library wrote, or transformers.

    Raises:
        CheckpointError: there is none.
        ManifestError: the file is broken; the message names line and key.
    """
    path = folder / CONFIG
    if not path.is_file():
        found = ", ".join(sorted(each.name for each in folder.iterdir())[:5]) or "nothing"
        raise CheckpointError(f"{folder} holds {found}; expected {CONFIG} and {WEIGHTS}, as finetune writes them")

    def info(raw: object) -> ModelInfo:
        return info_from(raw, folder) if is_transformers(raw) else _decode(raw)

    return read_json(path, info)


def _decode(raw: object) -> ModelInfo:
    if not isinstance(raw, dict):
        raise Mistake("expected an object")
    version = raw.get("schema_version")
    if version not in (1, SCHEMA_VERSION):
        found = show(version)
        raise Mistake(
            f"found {found}, this library reads {SCHEMA_VERSION}; install a matching zoo_seg", "schema_version"
        )
    known = {name: value for name, value in raw.items() if name not in ("schema_version", "library")}
    info: ModelInfo = decode(ModelInfo, _of_schema_1(known) if version == 1 else known, ())
    if info.architecture is None:
        raise Mistake("expected the network's architecture", "architecture")
    return info


def _of_schema_1(raw: dict[str, Any]) -> dict[str, Any]:
    """What zoo_seg wrote before a network's options travelled whole, under today's names."""
    published = raw.pop("is_published", False)
    licences = {name: raw.pop(f"{name}_licence", None) for name in ("code", "weights", "data")}
    return {
        **raw,
        "architecture": architecture_of_schema_1(raw["architecture"]) if "architecture" in raw else None,
        "metrics": [metric_of_schema_1(metric) for metric in raw.get("metrics", ())],
        "licence": licences,
        "weights": raw.get("started_from") if published else None,
    }
