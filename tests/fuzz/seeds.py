"""Small valid files, and hostile ones, from which a fuzzer starts."""

from __future__ import annotations

import io
import json
import zipfile
from typing import Any

import torch
from conftest import toy_manifest
from helpers.hostile import headers, legacy, pickles, tensor, zipped
from PIL import Image
from safetensors.torch import save

from zoo_seg.config import SCHEMA_VERSION


def toy_config() -> dict[str, Any]:
    """A small `config.json`."""
    raw = toy_manifest()
    weights = raw["weights"]["toy_r50.toys_me"]
    return {
        "schema_version": SCHEMA_VERSION,
        "library": "zoo_seg 1",
        "architecture": {"family": "fcn", "backbone": "mobilenetv3_small_050", "output_stride": 16},
        "in_chans": 3,
        "classes": ["ground", "wall", "sky"],
        "palette": [[10, 20, 30], [200, 0, 0], [0, 0, 200]],
        "ignore_index": 255,
        "preprocess": weights["preprocess"],
        "protocol": "ssseg",
        "metrics": weights["metrics"],
        "recipe": weights["recipe"],
    }


def saved(content: Any, *, zip_: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=zip_)
    return buffer.getvalue()


def masks() -> list[bytes]:
    """A mask in each of the ways to store one."""
    found = []
    for mode, kind in (
        ("L", "PNG"),
        ("P", "PNG"),
        ("1", "PNG"),
        ("RGB", "PNG"),
        ("I;16", "PNG"),
        ("L", "TIFF"),
        ("P", "GIF"),
        ("L", "BMP"),
        ("LA", "PNG"),
    ):
        buffer = io.BytesIO()
        image = Image.new(mode, (5, 4))
        if mode == "P":
            image.putpalette([10, 20, 30, 200, 0, 0, 0, 0, 200])
        image.save(buffer, kind)
        found.append(buffer.getvalue())
    return found


def _small(files: dict[str, tuple[bytes, str]]) -> list[tuple[str, bytes]]:
    return [(name, content) for name, (content, _) in files.items() if len(content) < 20_000]


def _pickle_in(archive: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        return opened.read("archive/data.pkl")


def seeds(target: str) -> list[bytes]:
    """Where to start for a target of `targets.py`."""
    state = {"head.classifier.weight": torch.ones(3, 4, 1, 1), "backbone.bn1.num_batches_tracked": torch.tensor(0)}
    weights = [saved({"epoch": 1, "model": state}, zip_=zip_) for zip_ in (True, False)]
    weights += [save(state), legacy({"a": tensor(16)}), zipped({"a": tensor(16)})]
    hostile = [content for _, content in (*_small(pickles()), *_small(headers()))]
    return {
        "manifest": [json.dumps(toy_manifest(), indent=1).encode(), b'{"schema_version": 1, "weights": {}}'],
        "config": [json.dumps(toy_config(), indent=1).encode()],
        "checkpoint": weights + hostile,
        "pickled": [_pickle_in(content) for name, content in _small(pickles()) if name.endswith(".zip.pth")],
        "header": [content[8:] for _, content in _small(headers())],
        "weight_file": weights + hostile,
        "mask": masks(),
        "answer": [
            b'206\nContent-Range:bytes 1000-1999/2000\nETag:"v1"\nDate:Mon, 01 Jan 2024 00:00:00 GMT',
            b"200\nContent-Length:2000\nLast-Modified:Mon, 01 Jan 2024 00:00:00 GMT\nDate:Tue, 2 Jan 2024 00:00:00 +01",
            b"503\nRetry-After:Mon, 01 Jan 2024 00:00:00 GMT",
            b"429\nRetry-After:120",
        ],
    }[target]
