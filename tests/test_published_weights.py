"""Every published record loads, strictly, from a file like its own: the original's names and shapes, from a mirror."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import torchvision_original, transformers_masks, transformers_original, transformers_vit
from helpers.cli import runner
from helpers.reference import REFERENCES, key_list, keys, published_reference, state_dict
from PIL import Image

import zoo_seg
from zoo_seg import Weights

STREET = Path(__file__).parents[1] / "examples" / "street.jpg"


def cases() -> Iterator[Any]:
    """All, of which the first of a family and project is run unless it is large; `-m reference` runs the others."""
    seen = set()
    for record in zoo_seg.list_weights():
        if record.files[0].packaged is None:
            kind = record.architecture.family, record.source
            rarely = kind in seen or record.parameters > 200_000_000
            marks = [pytest.mark.reference, pytest.mark.slow] if rarely else []
            yield pytest.param(record, marks=marks, id=record.id)
            seen.add(kind)


@cache
def original_keys(model: str, source: str) -> tuple[int, dict[str, tuple[int, ...]]]:
    """The classes of the original network that a reference holds, and the names and shapes of its file."""
    for path in sorted(REFERENCES.glob(f"{model}.{source}*.npz")):
        published = published_reference(path.stem)
        return published.meta["num_classes"], dict(published.keys)
    if source == "torchvision":
        return 21, torchvision_original.original_shapes(model)
    if source == "transformers" and model.startswith(("mask2former", "maskformer")):
        return 150, transformers_masks.original_shapes(model, 150)
    if source == "transformers":
        return 150, transformers_original.original_shapes(model, 150)
    record = zoo_seg.list_weights(model, source=source)[0]
    return record.num_classes, dict(keys(*key_list(record)))


def shapes_of(record: Weights) -> dict[str, tuple[int, ...]]:
    """What the record's file holds: the original network's names and shapes, for the record's classes."""
    if record.model in transformers_vit.CONFIGS:
        size = record.architecture.backbone_options["image_size"]
        return transformers_vit.original_shapes(record.model, record.num_classes, size)
    classes, shapes = original_keys(record.model, record.source)
    more = record.num_classes - classes
    return {
        name: (shape[0] + more, *shape[1:]) if shape and shape[0] in (classes, classes + 1) else shape
        for name, shape in shapes.items()
    }


def save_as(project: str, tensors: dict[str, torch.Tensor], path: Path) -> None:
    """A file as the project writes it."""
    if project == "ssseg":
        torch.save({"epoch": 1, "model": tensors}, path)
    elif project in ("torchvision", "transformers"):
        torch.save(tensors, path)
    else:
        torch.save({"meta": {"epoch": 1, "iter": 1}, "state_dict": tensors}, path)


def of_other_bytes(record: Weights) -> Weights:
    """The record of files with these names and shapes, whatever their values."""
    files = [replace(file, size=None, sha256=None, tensors_sha256=None) for file in record.files]
    return replace(record, files=tuple(files))


def zeros(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    whole = name.endswith(("num_batches_tracked", "relative_position_index"))
    return torch.zeros(shape, dtype=torch.int64 if whole else torch.float32)


@pytest.fixture
def site(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A mirror, which is emptied at once, as the cache is: all files together have a hundred gigabytes."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("zoo_seg.pretrained.save_file", full)
    monkeypatch.setenv("ZOO_SEG_MIRROR", str(tmp_path))
    yield tmp_path
    shutil.rmtree(tmp_path)
    shutil.rmtree(home)


@pytest.mark.slow
@pytest.mark.parametrize("record", list(cases()))
def test_it_loads_from_a_mirror(record: Weights, site: Path) -> None:
    tensors = {name: zeros(name, shape) for name, shape in shapes_of(record).items()}
    save_as(record.source, tensors, site / record.files[0].name)
    model = zoo_seg.create_model(record.model, of_other_bytes(record))
    assert model.weights == record
    assert sum(each.numel() for each in model.parameters()) == record.parameters
    assert model.num_classes == len(model.classes) == record.num_classes


SMALLEST = {record.architecture.family: record for record in reversed(zoo_seg.list_weights(sort="parameters"))}


@pytest.mark.slow
@pytest.mark.reference
@pytest.mark.parametrize("record", SMALLEST.values(), ids=list(SMALLEST))
def test_the_first_command_on_an_image(record: Weights, site: Path, capfd: pytest.CaptureFixture[str]) -> None:
    if record.files[0].packaged is None:
        values = state_dict(shapes_of(record).items(), scales=scales_of(record))
        save_as(record.source, dict(values), site / record.files[0].name)
    out = site / "out"
    result = runner(capfd)("predict", STREET, "--model", record.model, "--weights", record.tag, "--out", out)
    assert result.code == 0, result.err
    with Image.open(out / "street_mask.png") as mask, Image.open(STREET) as street:
        assert mask.size == street.size
        assert np.asarray(mask).max() < record.num_classes


def scales_of(record: Weights) -> list[tuple[str, float]]:
    """What keeps the values of an original network apart, see `benchmarks/peers/references.py`."""
    for path in sorted(REFERENCES.glob(f"{record.model}.{record.source}*.npz")):
        return [(pattern, factor) for pattern, factor in published_reference(path.stem).meta["scales"]]
    return []
