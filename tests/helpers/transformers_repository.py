"""Repositories as transformers writes them, and what it makes of images."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from helpers.drawn import scenes
from helpers.reference import image_tensor
from zoo_seg.families.registry import find_family
from zoo_seg.layers.losses import SegmentationLoss
from zoo_seg.network import SegmentationNetwork

SIZES = (
    (96, 128),
    (128, 96),
    (150, 150),
    (128, 128),
    (64, 201),
    (203, 77),
    (300, 225),
    (90, 91),
    (40, 40),
    (257, 129),
)


def linked(folder: Path, other: Path) -> Path:
    """A copy of a folder whose weights, which nobody writes, are the same file."""

    def copy(source: str, target: str) -> None:
        (os.link if source.endswith(".safetensors") else shutil.copy)(source, target)

    return Path(shutil.copytree(folder, other, copy_function=copy))


def change(path: Path, **values: Any) -> None:
    """Values of a JSON file; `...` takes one away."""
    raw = {**json.loads(path.read_text(encoding="utf-8")), **values}
    path.write_text(json.dumps({name: value for name, value in raw.items() if value is not ...}), encoding="utf-8")


def images(sizes: tuple[tuple[int, int], ...] = SIZES) -> list[Image.Image]:
    """One of each (height, width)."""
    return [image for seed, size in enumerate(sizes) for image, _ in scenes(1, size, 8, seed)]


@torch.inference_mode()
def class_map(network: Any, processor: Any, image: Image.Image) -> np.ndarray:
    """What transformers makes of an image, (H, W)."""
    outputs = network(**processor(images=image, return_tensors="pt"))
    (found,) = processor.post_process_semantic_segmentation(outputs, target_sizes=[image.size[::-1]])
    return np.asarray(found)


def untrained(network: SegmentationNetwork, family: str) -> list[str]:
    """The parameters that a step of a family's loss leaves as they are."""
    labels = torch.zeros(2, 48, 80, dtype=torch.long)
    labels[:, 16:, 20:44] = 5
    outputs = network.train().forward_train(torch.from_numpy(image_tensor(48, 80, batch=2)))
    terms = find_family(family).loss(outputs, labels, SegmentationLoss(ignore_index=255), 0.4)
    sum((each.total / each.weight.clamp(min=1) for each in terms), torch.zeros(())).backward()  # type: ignore[no-untyped-call]
    return [name for name, each in network.named_parameters() if each.grad is None or not each.grad.any()]
