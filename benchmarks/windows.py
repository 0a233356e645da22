"""What a sliding window costs beyond its network: `predict(mode="slide")` beside the network on the same windows.

python benchmarks/windows.py [--model pspnet_resnet50_os8] [--classes 150] [--size 1500 1500] [--crop 512] [--noise]
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image

import zoo_seg
from zoo_seg.images.reading import drawn_street
from zoo_seg.inference.augmented import windows


def seconds(run: Callable[[], object]) -> float:
    started = time.process_time()
    run()
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pspnet_resnet50_os8")
    parser.add_argument("--classes", type=int, default=150)
    parser.add_argument("--size", type=int, nargs=2, default=(1500, 1500))
    parser.add_argument("--crop", type=int, default=512)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--noise", action="store_true", help="an image of noise: nearly every pixel's cells differ")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    model = zoo_seg.create_model(arguments.model, num_classes=arguments.classes).eval()
    height, width = arguments.size
    street = drawn_street()
    assert street is not None
    image = np.asarray(Image.open(street).convert("RGB").resize((width, height)))
    if arguments.noise:
        image = np.random.default_rng(0).integers(0, 256, image.shape, dtype=np.uint8)
    crop, stride = arguments.crop, arguments.crop * 2 // 3
    count = len(windows(height, crop, stride)) * len(windows(width, crop, stride))
    predictor = model.predictor()
    window = predictor.inputs(np.ascontiguousarray(image[:crop, :crop]), resize=None)[0]

    def network() -> None:
        with torch.inference_mode():
            for _ in range(count):
                predictor.network.forward_logits(window)

    def slide() -> None:
        model.predict(image, mode="slide", crop=(crop, crop), stride=(stride, stride), resize=None)

    network(), slide()
    theirs, ours = [], []
    for _ in range(arguments.runs):
        theirs.append(seconds(network))
        ours.append(seconds(slide))
    alone, whole = statistics.median(theirs), statistics.median(ours)
    megapixels = height * width / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{arguments.model}, {arguments.classes} classes, {height}x{width}, {count} windows of {crop}: network alone "
        f"{alone / megapixels:.2f} processor seconds a megapixel, slide {whole / megapixels:.2f}: "
        f"{whole / alone:.2f}x; peak {peak:.0f} MiB"
    )


if __name__ == "__main__":
    main()
