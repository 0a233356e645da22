"""Records and sizes on a terminal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from zoo_seg.manifest import Weights


def record_as_json(record: Weights) -> dict[str, Any]:
    """Everything in a record, with the single-scale mIoU beside it."""
    return {**asdict(record), "miou": record.miou}


def print_json(value: Weights | Sequence[Weights]) -> None:
    """Print one record or a list of them."""
    data = record_as_json(value) if isinstance(value, Weights) else [record_as_json(record) for record in value]
    print(json.dumps(data, indent=2, ensure_ascii=False))


def megabytes(size: int) -> str:
    """A number of bytes for people."""
    return f"{size / 1e6:.1f} MB"
