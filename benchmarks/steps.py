"""What each step brings: PSPNet R-50-D8, 150 classes, one 512x683 image, from the plain network to `predict`.

python benchmarks/steps.py [--compile]
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

import zoo_seg
from zoo_seg.families.pspnet import POOL_SIZES, PSPHead
from zoo_seg.inference.cpu import optimize_for_cpu
from zoo_seg.inference.labels import class_map
from zoo_seg.inference.prepare import fold_batchnorm
from zoo_seg.network import SegmentationNetwork

SIZE = (512, 683)


def textbook(network: SegmentationNetwork, weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The network with the paper's head: enlarge the pooled branches, concatenate, one convolution."""
    head = network.head
    features = network.forward_features(x)[-1]
    size = features.shape[-2:]
    pooled = [branch(F.adaptive_avg_pool2d(features, s)) for s, branch in zip(POOL_SIZES, head.branches, strict=True)]
    parts = [features, *(F.interpolate(each, size=size, mode="bilinear") for each in pooled)]
    return head.classifier(head.act(head.norm(F.conv2d(torch.cat(parts, dim=1), weight, padding=1))))


def undivided(head: PSPHead) -> torch.Tensor:
    """The bottleneck's weight over [x, pooled parts], as the paper has it."""
    return torch.cat([head.bottleneck.weight, *(tap.weight.transpose(0, 1) for tap in head.taps)], dim=1)


def full_size(logits: torch.Tensor) -> torch.Tensor:
    return F.interpolate(logits.float(), size=SIZE, mode="bilinear").argmax(1)


def median(run: Callable[[], object], runs: int = 7) -> float:
    run()
    seconds = []
    for _ in range(runs):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compile", action="store_true", help="also through torch.compile with frozen weights")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    model = zoo_seg.pspnet_resnet50_os8(num_classes=150).eval()
    network = model.network.with_parts(model.backbone, model.head)
    x = F.interpolate(torch.randn(1, 3, 16, 22), size=SIZE, mode="bicubic")

    whole = undivided(network.head)
    plain = median(lambda: full_size(textbook(network, whole, x)))
    rows = [("plain network of timm parts, full-size logits", plain)]

    def step(name: str, run: Callable[[], object]) -> None:
        rows.append((name, median(run)))

    step("the bottleneck in its factorised form", lambda: full_size(network.forward_logits(x)))
    step("class map without full-size logits", lambda: class_map(network.forward_logits(x), [SIZE]))
    wide = copy.deepcopy(network).to(memory_format=torch.channels_last)
    y = x.to(memory_format=torch.channels_last)
    step("channels_last", lambda: class_map(wide.forward_logits(y), [SIZE]))
    with torch.inference_mode(False):
        ready = copy.deepcopy(network).requires_grad_(False)
        assert fold_batchnorm(ready)
        ready = ready.to(memory_format=torch.channels_last)
    step("BatchNorm folded", lambda: class_map(ready.forward_logits(y), [SIZE]))
    with torch.inference_mode(False):
        optimize_for_cpu(ready, torch.float32, lambda: ready.forward_logits(x))
        ready = ready.to(memory_format=torch.channels_last)
    step("wide convolutions in slices", lambda: class_map(ready.forward_logits(y), [SIZE]))
    if arguments.compile:
        compiled = torch.compile(ready.forward_logits, options={"freezing": True})
        step("torch.compile", lambda: class_map(compiled(y), [SIZE]))
    half = copy.deepcopy(ready).bfloat16()
    step("bfloat16", lambda: class_map(half.forward_logits(y.bfloat16()), [SIZE]))
    if arguments.compile:
        compiled_half = torch.compile(half.forward_logits, options={"freezing": True})
        step("torch.compile in bfloat16", lambda: class_map(compiled_half(y.bfloat16()), [SIZE]))

    print("| step | seconds | faster than plain |\n|---|---|---|")
    for name, seconds in rows:
        print(f"| {name} | {seconds:.3f} | {rows[0][1] / seconds:.2f}x |")


if __name__ == "__main__":
    main()
