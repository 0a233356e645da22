"""What an exported file says about itself, besides the graph."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from zoo_seg.decode import Mistake, decode
from zoo_seg.errors import CheckpointError
from zoo_seg.info import ModelInfo
from zoo_seg.model import SegmentationModel
from zoo_seg.version import __version__

SCHEMA_VERSION = 2

Input = Literal["x", "image"]
"""Name of the graph's input: `x` is float32 (N, in_chans, H, W), normalised; `image` is uint8 (N, H, W, in_chans)."""
Output = Literal["logits", "class_map"]
"""Name of the graph's output: `logits` are float32 (N, num_classes, H, W); a `class_map` is (N, H, W), uint8, or int16
beyond 256 classes."""
Dtype = Literal["float32", "float16", "int8"]


@dataclass(frozen=True)
class Quantisation:
    """How an int8 file was made, and how it answers images that it was not calibrated with."""

    calibrated: int
    """Images that its ranges are from."""
    compared: int
    """Other images, whose class maps were compared with the network's."""
    agreement: float
    """The share of their pixels that have the network's class, 0 to 1."""
    miou: tuple[float, float] | None
    """The network's and the file's on those images, in percent; None without labels."""


@dataclass(frozen=True)
class Facts:
    """The metadata of an exported file: every field by its name, its value as JSON."""

    schema_version: int
    library: str
    """Name and version of what wrote it."""
    info: ModelInfo
    input: Input
    output: Output
    dtype: Dtype
    """What the network computes in, between float32 inputs and logits."""
    quantisation: Quantisation | None = None
    """Of an int8 file; None where it was not compared."""

    def __post_init__(self) -> None:
        if self.schema_version != SCHEMA_VERSION:
            raise ValueError(f"schema_version is {self.schema_version}, this library reads {SCHEMA_VERSION}")

    @classmethod
    def of(cls, model: SegmentationModel, input: Input, output: Output, dtype: Dtype) -> Facts:  # noqa: A002
        """What is known of a network that is to be exported."""
        return cls(
            schema_version=SCHEMA_VERSION,
            library=f"zoo_seg {__version__}",
            info=model.info,
            input=input,
            output=output,
            dtype=dtype,
        )

    def as_strings(self) -> dict[str, str]:
        """For the file."""
        return {name: json.dumps(value, ensure_ascii=False) for name, value in asdict(self).items()}


NAMES = tuple(field.name for field in fields(Facts))


def read_facts(path: Path, found: Mapping[str, str]) -> Facts:
    """The facts among a file's metadata.

    Raises:
        CheckpointError: the file was not written by `export`, or by another version of it.
    """
    if "schema_version" not in found:
        raise CheckpointError(
            f"{path} does not say its schema_version: it was not written by zoo-seg export; export the network again"
        )
    try:
        values = {name: json.loads(text) for name, text in found.items() if name in (*NAMES, *_NAMES_OF_SCHEMA_1)}
        facts: Facts = decode(Facts, _of_schema_1(values) if values["schema_version"] == 1 else values, ())
    except Mistake as mistake:
        where = ".".join(map(str, mistake.path)) or "metadata"
        raise CheckpointError(f"{path}: {where}: {mistake.message}; export the network again") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: its metadata is damaged ({error}); export the network again") from None
    return facts


_NAMES_OF_SCHEMA_1 = ("weights", "classes", "palette", "preprocess", "protocol", "crop", "in_chans")


def _of_schema_1(values: dict[str, Any]) -> dict[str, Any]:
    """What an earlier version wrote, which had these facts one by one."""
    missing = [name for name in _NAMES_OF_SCHEMA_1 if name not in values]
    if missing:
        raise Mistake(f"the key {missing[0]!r} is missing")
    info = {name: values.pop(name) for name in _NAMES_OF_SCHEMA_1}
    info["window"] = info.pop("crop")
    return {**values, "schema_version": SCHEMA_VERSION, "info": info}
