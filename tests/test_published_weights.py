"""Every published record loads, strictly, from a file like its own: the original's names and shapes, from a mirror."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.reference import REFERENCES, key_list, keys, published_reference

import zoo_seg
from zoo_seg import Weights


def cases() -> Iterator[Any]:
    """All, of which the first of a family and project is always run; `-m reference` runs the others."""
    seen = set()
    for record in zoo_seg.list_weights():
        if record.files[0].packaged is None:
            kind = record.architecture.family, record.source
            marks = [pytest.mark.reference, pytest.mark.slow] if kind in seen else []
            yield pytest.param(record, marks=marks, id=record.id)
            seen.add(kind)


@cache
def original_keys(model: str, source: str) -> tuple[int, dict[str, tuple[int, ...]]]:
    """The classes of the original network that a reference holds, and the names and shapes of its file."""
    for path in sorted(REFERENCES.glob(f"{model}.{source}*.npz")):
        published = published_reference(path.stem)
        return published.meta["num_classes"], dict(published.keys)
    record = zoo_seg.list_weights(model, source=source)[0]
    return record.num_classes, dict(keys(*key_list(record)))


def checkpoint_of(record: Weights, path: Path) -> None:
    """A file as the project wrote it, but for the values."""
    classes, shapes = original_keys(record.model, record.source)
    tensors = {}
    for name, shape in shapes.items():
        if shape and shape[0] in (classes, classes + 1):
            shape = (record.num_classes + shape[0] - classes, *shape[1:])
        whole = name.endswith(("num_batches_tracked", "relative_position_index"))
        tensors[name] = torch.zeros(shape, dtype=torch.int64 if whole else torch.float32)
    if record.source == "ssseg":
        torch.save({"epoch": 1, "model": tensors}, path)
    else:
        torch.save({"meta": {"epoch": 1, "iter": 1}, "state_dict": tensors}, path)


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


@pytest.mark.parametrize("record", list(cases()))
def test_it_loads_from_a_mirror(record: Weights, site: Path) -> None:
    checkpoint_of(record, site / record.files[0].name)
    model = zoo_seg.create_model(record.model, record.tag)
    assert model.weights == record
    assert sum(each.numel() for each in model.parameters()) == record.parameters
    assert model.num_classes == len(model.classes) == record.num_classes
