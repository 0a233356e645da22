"""The reference files of the original projects' networks: readable, filled by one rule, small."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from helpers import reference

NAMES = sorted(path.stem for path in reference.REFERENCES.glob("*.npz"))
RULE = Path(__file__).parents[1] / "benchmarks" / "reference_checkpoint.py"


@pytest.fixture(scope="module")
def rule() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference_checkpoint", RULE)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_fill_is_the_rule_that_the_original_networks_were_filled_by(rule: ModuleType) -> None:
    entries = [
        ("layer1.0.conv1.weight", (4, 3, 3, 3)),
        ("layer1.0.bn3.weight", (8,)),
        ("layer1.0.bn2.weight", (8,)),
        ("bn.bias", (8,)),
        ("bn.running_mean", (8,)),
        ("bn.running_var", (8,)),
        ("bn.num_batches_tracked", ()),
        ("attn.relative_position_index", (9, 9)),
        ("gamma", (5,)),
    ]
    scales = [(r"bn2\.weight$", 0.25), (r"^gamma", 2.0)]
    ours = reference.state_dict(entries, 3, scales)
    theirs = rule.filled_state_dict(rule.entries_of(ours), 3, scales)
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert np.array_equal(reference.image_tensor(21, 13, 5), rule.image_tensor(21, 13, 5))


def test_relative_position_index_is_swins_table() -> None:
    side = 3
    index = reference.relative_position_index((side * side, side * side))
    assert index[0, 0] == index[4, 4] == (2 * side - 1) * (side - 1) + side - 1  # no offset: the middle of the table
    assert index[8, 0] == (2 * side - 1) ** 2 - 1
    assert index[0, 8] == 0
    assert index[1, 0] - index[0, 0] == 1
    assert index[3, 0] - index[0, 0] == 2 * side - 1


@pytest.mark.parametrize("name", NAMES)
def test_reference_file_is_whole(name: str) -> None:
    published = reference.published_reference(name)
    meta = published.meta
    assert name.startswith(f"{meta['model']}.{meta['project']}")
    assert len({key for key, _ in published.keys}) == len(published.keys)
    buffers = ("running_mean", "running_var", "num_batches_tracked", "_index", "empty_weight")
    counts = [int(np.prod(shape)) for key, shape in published.keys if not key.endswith(buffers)]
    assert sum(counts) == meta["parameters"]
    assert len(published.runs) >= 2
    # Masked attention has a threshold: rounding can put a pixel on its other side.
    assert published.tolerance < (5e-3 if name.startswith("mask2former") else 2e-4)
    for run in published.runs:
        assert run.shape == (meta["num_classes"], *run.size)
        assert np.isfinite(run.logits).all()
        assert run.logits.std() == pytest.approx(run.std, rel=0.2)  # the sample is of the whole
        assert run.error(torch.zeros(1, *run.shape)) > 0.5


def test_reference_files_stay_small() -> None:
    assert sum(path.stat().st_size for path in reference.REFERENCES.glob("*.npz")) < 6e6
