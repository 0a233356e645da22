r"""Every architecture in every format: does the exported file compute what the network does?

    python benchmarks/export_all.py [PATTERN ...] [--formats onnx openvino torch_export] [--graphs plain image] \
        [--dtype float16] [--out DIR]

The published architectures and two networks on ConvNeXt, with random values and 21 classes, go through
`zoo_seg.export`, which runs each file in its own runtime at two sizes and compares. A table row appears as soon as its
file is done: seconds of export and check, size, the largest difference from the network in standard deviations of its
logits (for a class map: by how much a chosen class falls short), and the pixels with another class. The exit code is 1
if a file fails. Random networks amplify rounding far more than trained ones: in float16 some fail here.
"""

from __future__ import annotations

import argparse
import fnmatch
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

import zoo_seg
from zoo_seg.errors import ZooSegError

SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "torch_export": ".pt2"}
GRAPHS = {"plain": {}, "image": {"preprocess": True, "argmax": True}}
"""Normalised tensor to logits, and uint8 image to class map."""
CONVNEXT = {
    f"{family}_convnext_tiny": lambda family=family: zoo_seg.build_model(family, "convnext_tiny", 21)
    for family in ("semanticfpn", "fcn")
}
WIDTHS = (29, 12, 5, 8, 7, 9, 8)


@torch.no_grad()
def awake(model: zoo_seg.SegmentationModel) -> zoo_seg.SegmentationModel:
    """Give every layer a say, and every class a part of the image.

    In a fresh network residual branches are multiplied by zero, the image fades from layer to layer, and one logit is
    the largest everywhere.
    """
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter.normal_(0, 0.1) if name.endswith("bias") else parameter.uniform_(0.5, 1.5)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the statistics become those of one run
    x = torch.randn(2, 3, 96, 128)
    model.train()(x)
    model.head.classifier.bias -= model.eval()(x).mean((0, 2, 3))
    return model


def line(*cells: str) -> None:
    print(" | ".join(f"{cell:<{width}}" for cell, width in zip(cells, WIDTHS, strict=False)), *cells[7:], flush=True)


def export(model: zoo_seg.SegmentationModel, name: str, path: Path, kind: str, graph: str, dtype: str) -> bool:
    """Print a row; whether the file passed."""
    started = time.perf_counter()
    size = largest = pixels = "-"
    try:
        written = zoo_seg.export(model, path, kind, dtype=dtype, **GRAPHS[graph])
    except ZooSegError as error:
        verdict = f"FAILED: {error}"
    else:
        verdict = "ok"
        size = f"{written.size / 1e6:.1f} MB"
        largest = f"{max(each.largest for each in written.differences):.1e}"
        pixels = f"{max(each.pixels for each in written.differences):.3%}"
    line(name, kind, graph, f"{time.perf_counter() - started:.1f} s", size, largest, pixels, f"| {verdict}")
    return verdict == "ok"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("patterns", nargs="*", default=["*"], metavar="PATTERN", help="architectures, as fcn_*")
    parser.add_argument("--formats", nargs="+", choices=SUFFIXES, default=list(SUFFIXES))
    parser.add_argument("--graphs", nargs="+", choices=GRAPHS, default=["plain"])
    parser.add_argument("--dtype", choices=["float32", "float16"], default="float32")
    parser.add_argument("--out", type=Path, metavar="DIR", help="keep the files here")
    arguments = parser.parse_args()

    builders: dict[str, Callable[[], zoo_seg.SegmentationModel]] = {
        **{name: lambda name=name: zoo_seg.create_model(name) for name in zoo_seg.list_models()},
        **CONVNEXT,
    }
    chosen = [name for name in builders if any(fnmatch.fnmatch(name, each) for each in arguments.patterns)]
    line("architecture", "format", "graph", "time", "size", "largest", "pixels", "| verdict")
    passed = True
    for name in chosen:
        model = awake(builders[name]())
        for graph in arguments.graphs:
            for kind in arguments.formats:
                with tempfile.TemporaryDirectory() as folder:
                    path = (arguments.out or Path(folder)) / f"{name}-{graph}{SUFFIXES[kind]}"
                    passed &= export(model, name, path, kind, graph, arguments.dtype)
    return 0 if passed else 1


if __name__ == "__main__":
    raise SystemExit(main())
