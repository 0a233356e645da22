"""Networks of torchvision and transformers in those packages' own pipelines, for `zoo.py`.

Both sides open the same files, written as the package writes them, with the values of the tests' references, and lead a
decoded image to its class map, preparing it as the package does.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

import zoo_seg

SOURCES = ("torchvision", "transformers")
sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))


def names() -> list[str]:
    """Each network of each source once."""
    return sorted({f"{each.model}.{each.source}" for each in zoo_seg.list_weights() if each.source in SOURCES})


def write_files(name: str, folder: Path) -> Path:
    """A file of torchvision's, or a folder of transformers'."""
    model, source = name.split(".")
    path = folder / name
    if source == "torchvision":
        from helpers import torchvision_original

        path = path / zoo_seg.get_weights(model, "coco_voc_torchvision").files[0].name
        path.parent.mkdir()
        torch.save(torchvision_original.filled(model)[1], path)
    else:
        _save_transformers(model, path)
    return path


def _save_transformers(model: str, folder: Path) -> None:
    import transformers
    from helpers import transformers_masks, transformers_original, transformers_vit, upernet_original

    family, backbone = model.split("_", 1)
    processors = {"mask2former": "Mask2FormerImageProcessor", "maskformer": "MaskFormerImageProcessor"}
    if model in transformers_vit.CONFIGS:
        transformers_vit.save(model, folder)
    elif backbone in upernet_original.BEITS:
        upernet_original.save_beit(backbone, folder)
    else:
        original = transformers_masks if family in processors else transformers_original
        original.filled(model, num_labels=150).save_pretrained(folder)
        getattr(transformers, processors.get(family, "SegformerImageProcessor"))().save_pretrained(folder)


def ours(work: dict[str, Any]) -> Callable[[], np.ndarray]:
    """`predict` as it comes."""
    model, source = work["network"].split(".")
    if source == "torchvision":  # as published weights are had: a file alone would not know its test size
        mirror = Path(work["files"]).parent
        os.environ.update(ZOO_SEG_MIRROR=str(mirror), ZOO_SEG_HOME=str(mirror / "home"))
        network = zoo_seg.create_model(model, "coco_voc_torchvision", progress=False)
    else:
        network = zoo_seg.from_pretrained(work["files"])
    image = np.asarray(Image.open(work["image"]))
    return lambda: network.predict(image, dtype=work["dtype"]).mask


def theirs(work: dict[str, Any]) -> Callable[[], np.ndarray]:
    """The package's transform, network and way back to the image's size."""
    model, source = work["network"].split(".")
    image = Image.open(work["image"]).convert("RGB")
    return _torchvision(model, work["files"], image) if source == "torchvision" else _transformers(work["files"], image)


def _torchvision(model: str, file: str, image: Image.Image) -> Callable[[], np.ndarray]:
    from helpers.torchvision_original import original
    from torchvision.models import get_model_weights

    network = original(model)
    network.load_state_dict(torch.load(file))
    transform = get_model_weights(model).DEFAULT.transforms()

    @torch.inference_mode()
    def run() -> np.ndarray:
        logits = F.interpolate(network(transform(image)[None])["out"], image.size[::-1], mode="bilinear")
        found: np.ndarray = logits.argmax(1)[0].byte().numpy()
        return found

    return run


def _transformers(folder: str, image: Image.Image) -> Callable[[], np.ndarray]:
    import transformers

    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    (kind,) = transformers.AutoConfig.from_pretrained(folder).architectures
    network = getattr(transformers, kind).from_pretrained(folder)

    @torch.inference_mode()
    def run() -> np.ndarray:
        outputs = network(**processor(images=image, return_tensors="pt"))
        (found,) = processor.post_process_semantic_segmentation(outputs, target_sizes=[image.size[::-1]])
        return np.asarray(found.byte())

    return run
