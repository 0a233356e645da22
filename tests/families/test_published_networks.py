"""Every network that the manifest knows computes what the project that published it computes, see `references/`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.reference import REFERENCES, PublishedReference, published_reference

from zoo_seg.families.registry import list_families
from zoo_seg.manifest import Architecture, find_model, get_architecture, list_weights
from zoo_seg.pretrained import from_tensors

NAMES = [path.stem for path in sorted(REFERENCES.glob("*.npz"), key=lambda path: path.stat().st_size)]
KNOWN = {name: model.architecture.family for name in NAMES if (model := find_model(name.split(".")[0]))}


def cases() -> Iterator[Any]:
    """All, of which the first of a family and project is always run; `-m reference` runs the others."""
    seen = set()
    for name, family in KNOWN.items():
        kind = family, published_reference(name).meta["project"]
        yield pytest.param(name, marks=[pytest.mark.reference, pytest.mark.slow] if kind in seen else [])
        seen.add(kind)


def architecture_of(published: PublishedReference) -> tuple[Architecture, bool]:
    """That of a record of the project, else the model's, which the shapes have to complete."""
    meta = published.meta
    for record in list_weights(meta["model"], source=meta["project"]):
        same = record.architecture.align_corners, record.architecture.size_divisor, record.num_classes
        if same == (meta["align_corners"], meta["size_divisor"], meta["num_classes"]):
            return record.architecture, True
    model = get_architecture(meta["model"])[1]
    return replace(model, align_corners=meta["align_corners"], size_divisor=meta["size_divisor"]), False


@pytest.mark.slow
@pytest.mark.parametrize("name", list(cases()))
@torch.inference_mode()
def test_logits_equal_the_original_s(name: str) -> None:
    published = published_reference(name)
    architecture, stated = architecture_of(published)
    file = from_tensors(Path(name), published.state_dict(), architecture, stated=stated)
    network = file.build()
    assert file.naming == published.meta["project"]
    assert sum(each.numel() for each in network.parameters()) == published.meta["parameters"]
    # The masks that queries look at have a threshold, which rounding may cross.
    dtype = torch.float64 if architecture.family == "mask2former" else torch.float32
    for run in published.runs:
        assert run.error(network.to(dtype)(run.image().to(dtype))) < published.tolerance


def test_every_family_and_every_project_of_it_has_a_reference() -> None:
    here = {(family, name.split(".")[1].split("_")[0]) for name, family in KNOWN.items()}
    older = {("semanticfpn", "ssseg"), ("semanticfpn", "mmseg")}  # in test_networks.py
    # in tests/transformers, which ask the original itself
    queries = ("mask2former", "maskformer", "eomt")
    asked = {(family, "transformers") for family in ("segformer", "upernet", "dpt", *queries)}
    published = {(record.architecture.family, record.source) for record in list_weights()}
    published = {(family, source) for family, source in published if source != "torchvision"}  # in test_torchvision.py
    assert published - {("semanticfpn", "zoo")} <= here | older | asked
    assert set(list_families()) <= {name.split("_")[0] for name in NAMES} | {
        *("semanticfpn", "lraspp", "maskformer", "eomt", "dpt")
    }
