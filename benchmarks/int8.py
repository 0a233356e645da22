"""PSPNet R-50-D8 in 8-bit integers beside `predict` in bfloat16: one 512x683 image, turn by turn, medians.

python benchmarks/int8.py [--classes 150] [--runs 9] [--size 512 683] [--formats .xml .onnx]

From a decoded image to its class map at its own size. The network has random values, which cost the same time; what
int8 costs in mIoU is what `zoo-seg export --dtype int8 --calibration DATA` prints for trained weights.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import zoo_seg


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=150)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--size", type=int, nargs=2, default=(512, 683), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--formats", nargs="+", choices=[".xml", ".onnx"], default=[".xml", ".onnx"])
    arguments = parser.parse_args()

    torch.manual_seed(0)
    model = zoo_seg.build_model("pspnet", "resnet50c", arguments.classes, output_stride=8).eval()
    image = np.random.default_rng(0).integers(0, 256, (*arguments.size, 3), np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder, "images")
        images.mkdir()
        for seed in range(4):
            pixels = np.random.default_rng(seed).integers(0, 256, (*arguments.size, 3), np.uint8)
            Image.fromarray(pixels).save(images / f"{seed}.png")
        works = {"predict, bfloat16": partial(model.predict, image, dtype="bfloat16")}
        for suffix in arguments.formats:
            path = Path(folder, f"int8{suffix}")
            zoo_seg.export(model, path, dtype="int8", calibration=images, check=False)
            works[f"int8 {suffix}"] = partial(zoo_seg.from_exported(path).predict, image)
        seconds: dict[str, list[float]] = {name: [] for name in works}
        for _ in range(arguments.runs + 1):
            for name, work in works.items():
                began = time.perf_counter()
                work()
                seconds[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(taken[1:]) for name, taken in seconds.items()}
    first = medians["predict, bfloat16"]
    for name, median in medians.items():
        print(f"{name:20} {1000 * median:7.0f} ms  {first / median:.2f}x")


if __name__ == "__main__":
    main()
