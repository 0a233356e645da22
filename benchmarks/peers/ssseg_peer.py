"""SSSegmentation's own networks and its own inference, on one image. Needs the environment of this folder's README.

    python benchmarks/peers/ssseg_peer.py --checkpoint pspnet_resnet50os8_voc.pth --outstride 8 --image street.jpg \
        --mode whole --out result.npz

Family, depth and number of classes are read off the checkpoint; the output stride cannot be. `result.npz` holds `mask`
(uint8, the image's size), `logits` (classes, height, width; float32; averaged over scales and flips), `meta` (JSON).
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from ssseg.modules import BuildDataTransform, BuildSegmentor, loadckpts

TEST_SCALE = (2048, 512)
MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
VERSIONS = {
    "ssseg": version("sssegmentation"),
    "opencv": cv2.__version__,
    "torch": torch.__version__,
    "numpy": np.__version__,
}


def config(family: str, num_classes: int, depth: int = 50, outstride: int = 8) -> dict[str, Any]:
    """What ssseg's config files say about these networks (its package carries no config files)."""
    backbone = {
        "type": "ResNet",
        "structure_type": f"resnet{depth}conv3x3stem",
        "depth": depth,
        "outstride": outstride,
        "use_conv3x3_stem": True,
        "pretrained": False,
    }
    if family == "SemanticFPN":
        backbone["selected_indices"] = (0, 1, 2, 3)
        head: dict[str, Any] = {
            "in_channels_list": [256, 512, 1024, 2048],
            "feats_channels": 256,
            "scale_head_channels": 128,
            "feature_stride_list": [4, 8, 16, 32],
            "upsample_cfg": {"mode": "nearest"},
            "dropout": 0.1,
        }
        auxiliary = None
    else:
        backbone["selected_indices"] = (2, 3)
        head = {"in_channels": 2048, "feats_channels": 512, "dropout": 0.1}
        if family == "PSPNet":
            head["pool_scales"] = [1, 2, 3, 6]
        auxiliary = {"in_channels": 1024, "out_channels": 512, "dropout": 0.1}
    return {
        "type": family,
        "num_classes": num_classes,
        "align_corners": False,
        "norm_cfg": {"type": "SyncBatchNorm"},
        "act_cfg": {"type": "ReLU", "inplace": True},
        "backbone": backbone,
        "head": head,
        "auxiliary": auxiliary,
        "inference": {
            "forward": {"mode": "whole"},
            "tta": {"multiscale": [1], "flip": False, "use_probs_before_resize": False},
        },
        "dataset": {"train": {"data_pipelines": []}},
    }


def describe(state_dict: Mapping[str, torch.Tensor]) -> tuple[str, int, int]:
    """Family, number of classes and depth of a checkpoint in ssseg's names."""
    if any(name.startswith("fpn_neck.") for name in state_dict):
        family = "SemanticFPN"
    else:
        family = "PSPNet" if any(name.startswith("ppm_net.") for name in state_dict) else "FCN"
    classifier = "decoder.7.weight" if family == "FCN" else "decoder.1.weight"
    depth = 101 if any(name.startswith("backbone_net.layer3.22.") for name in state_dict) else 50
    return family, state_dict[classifier].shape[0], depth


def build(family: str, num_classes: int, depth: int = 50, outstride: int = 8) -> torch.nn.Module:
    """ssseg's network with its random values: its `state_dict()` has the names and shapes of a checkpoint."""
    return BuildSegmentor(segmentor_cfg=config(family, num_classes, depth, outstride), mode="TEST").eval()


def load(checkpoint: str | Path, outstride: int = 8) -> torch.nn.Module:
    """ssseg's network with a checkpoint's values; it must fit exactly. `outstride` is 32 for SemanticFPN, always."""
    state_dict = loadckpts(str(checkpoint))["model"]
    family, num_classes, depth = describe(state_dict)
    model = build(family, num_classes, depth, 32 if family == "SemanticFPN" else outstride)
    model.load_state_dict(state_dict, strict=True)
    return model


def read(pixels: str | Path, test_scale: Sequence[int] | None = TEST_SCALE) -> tuple[torch.Tensor, tuple[int, int]]:
    """An image through ssseg's own test transforms: (1, 3, h, w) and its original size. None keeps the size."""
    image = cv2.imread(str(pixels))
    return prepare(image, test_scale), image.shape[:2]


def prepare(image: np.ndarray, test_scale: Sequence[int] | None, keep_ratio: bool = True) -> torch.Tensor:
    """A BGR uint8 image through ssseg's own test transforms."""
    sample: dict[str, Any] = {"image": image}
    steps: list[dict[str, Any]] = [{"type": "Normalize", "mean": MEAN, "std": STD}, {"type": "ToTensor"}]
    if test_scale is not None:
        resize = {"type": "Resize", "output_size": tuple(test_scale), "keep_ratio": keep_ratio, "scale_range": None}
        steps.insert(0, resize)
    for step in steps:
        sample = BuildDataTransform(step)(sample)
    return sample["image"].unsqueeze(0)


def predict(
    model: torch.nn.Module,
    x: torch.Tensor,
    output_size: Sequence[int],
    *,
    mode: str = "whole",
    crop: Sequence[int] | None = None,
    stride: Sequence[int] | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
) -> torch.Tensor:
    """Logits (N, C, *output_size) of a normalised tensor: `auginference`, then what ssseg's test.py does with it.

    test.py takes every item to the original size (bilinear), and averages.
    """
    forward: dict[str, Any] = {"mode": mode}
    if mode == "slide":
        forward.update(cropsize=tuple(crop or ()), stride=tuple(stride or ()))
    tta = {"multiscale": list(scales), "flip": flip, "use_probs_before_resize": False}
    model.cfg["inference"] = {"forward": forward, "tta": tta}
    with torch.no_grad():
        items = model.auginference(x)
        items = [
            F.interpolate(item, size=tuple(output_size), mode="bilinear", align_corners=model.align_corners)
            for item in items
        ]
        return sum(items) / len(items)


def main() -> None:
    parser = argparse.ArgumentParser(description="SSSegmentation on one image.")
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--image", required=True)
    parser.add_argument("--out", help=".npz to write")
    parser.add_argument("--outstride", type=int, choices=(8, 16), default=8, help="of FCN and PSPNet")
    parser.add_argument("--mode", choices=("whole", "slide"), default="whole")
    parser.add_argument("--crop", type=int, nargs=2, metavar=("H", "W"), default=(512, 512))
    parser.add_argument("--stride", type=int, nargs=2, metavar=("H", "W"), default=(341, 341))
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0])
    parser.add_argument("--flip", action="store_true")
    parser.add_argument("--test-scale", type=int, nargs=2, metavar=("W", "H"), default=TEST_SCALE)
    parser.add_argument("--repeat", type=int, default=1, help="times to run; the seconds of each run are printed")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    started = time.perf_counter()
    model = load(a.checkpoint, a.outstride)
    loaded = time.perf_counter() - started
    seconds, cpu_seconds = [], []  # far more wall time than cpu time / threads: the machine was busy
    for _ in range(a.repeat):
        started, started_cpu = time.perf_counter(), time.process_time()
        x, original = read(a.image, a.test_scale)
        options = {"mode": a.mode, "crop": a.crop, "stride": a.stride, "scales": a.scales, "flip": a.flip}
        logits = predict(model, x, original, **options)[0]
        mask = logits.argmax(dim=0).numpy().astype(np.uint8)
        seconds.append(time.perf_counter() - started)
        cpu_seconds.append(time.process_time() - started_cpu)
    meta = {"load_seconds": loaded, "seconds": seconds, "cpu_seconds": cpu_seconds, **vars(a), **VERSIONS}
    meta["peak_rss_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(meta))
    if a.out:
        np.savez_compressed(a.out, logits=logits.numpy(), mask=mask, meta=json.dumps(meta))


if __name__ == "__main__":
    main()
