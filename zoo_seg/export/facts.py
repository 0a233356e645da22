"""What an exported file says about itself, besides the graph."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal

from zoo_seg.decode import Mistake, decode
from zoo_seg.errors import CheckpointError
from zoo_seg.manifest import Preprocess
from zoo_seg.model import SegmentationModel
from zoo_seg.version import __version__

SCHEMA_VERSION = 1

Input = Literal["x", "image"]
"""Name of the graph's input: `x` is float32 (N, in_chans, H, W), normalised; `image` is uint8 RGB (N, H, W, 3)."""
Output = Literal["logits", "class_map"]
"""Name of the graph's output: `logits` are float32 (N, num_classes, H, W); a `class_map` is (N, H, W), uint8, or int16
beyond 256 classes."""
Dtype = Literal["float32", "float16"]


@dataclass(frozen=True)
class Facts:
    """The metadata of an exported file: every field by its name, its value as JSON."""

    schema_version: int
    library: str
    """Name and version of what wrote it."""
    weights: str | None
    """The id of the published weights; None for others."""
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    preprocess: Preprocess
    protocol: Literal["ssseg", "mmseg"]
    crop: tuple[int, int] | None
    """(height, width) of the training crop: the window of `mode="slide"`."""
    in_chans: int
    input: Input
    output: Output
    dtype: Dtype
    """What the network computes in, between float32 inputs and logits."""

    def __post_init__(self) -> None:
        if self.schema_version != SCHEMA_VERSION:
            raise ValueError(f"schema_version is {self.schema_version}, this library reads {SCHEMA_VERSION}")
        if not self.classes or len(self.classes) != len(self.palette):
            raise ValueError(f"{len(self.classes)} classes and {len(self.palette)} palette colours, expected as many")

    @classmethod
    def of(cls, model: SegmentationModel, input: Input, output: Output, dtype: Dtype) -> Facts:  # noqa: A002
        """What is known of a network that is to be exported."""
        return cls(
            schema_version=SCHEMA_VERSION,
            library=f"zoo_seg {__version__}",
            weights=model.weights.id if model.weights else None,
            classes=model.classes,
            palette=model.palette,
            preprocess=model.preprocess,
            protocol=model.protocol,
            crop=model.training_crop,
            in_chans=model.in_chans,
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
    missing = [name for name in NAMES if name not in found]
    if missing:
        raise CheckpointError(
            f"{path} does not say its {missing[0]}: it was not written by zoo-seg export, or by another version; "
            "export the network again"
        )
    try:
        facts: Facts = decode(Facts, {name: json.loads(found[name]) for name in NAMES}, ())
    except Mistake as mistake:
        where = ".".join(map(str, mistake.path)) or "metadata"
        raise CheckpointError(f"{path}: {where}: {mistake.message}; export the network again") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: its metadata is damaged ({error}); export the network again") from None
    return facts
