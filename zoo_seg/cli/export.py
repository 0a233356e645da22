"""`zoo-seg export`"""

from __future__ import annotations

import argparse
from pathlib import Path

from zoo_seg.cli.network import load_network
from zoo_seg.cli.text import megabytes
from zoo_seg.export.calibration import open_calibration
from zoo_seg.export.int8 import AGREEMENT
from zoo_seg.export.write import Exported, choose, export


def run(arguments: argparse.Namespace) -> int:
    """Write the file, and say how far its answers are from the network's."""
    # before anything is fetched
    choose(Path(arguments.out), arguments.format, arguments.dtype, arguments.opset, arguments.calibration)
    if arguments.calibration is not None:
        open_calibration(arguments.calibration, arguments.calibration_images)
    written = export(
        load_network(arguments),
        arguments.out,
        arguments.format,
        preprocess=arguments.preprocess,
        argmax=arguments.argmax,
        dtype=arguments.dtype,
        opset=arguments.opset,
        calibration=arguments.calibration,
        calibration_images=arguments.calibration_images,
        check=arguments.check,
    )
    _print(written)
    return 0


def _print(written: Exported) -> None:
    facts = written.facts
    print(
        f"{written.path}: {written.format}, {facts.dtype}, {megabytes(written.size)}, {facts.input} -> {facts.output}"
    )
    before = "in float32: " if facts.dtype == "int8" else ""
    for each in written.differences:
        print(f"  {before}{each}; allowed {written.tolerance:g}")
    if (found := facts.quantisation) is not None:
        print(f"  calibrated with {found.calibrated} images, compared on {found.compared} others:")
        print(f"  {found.agreement:.2%} of the pixels have the network's class; expected {AGREEMENT:.0%} or more")
        if found.miou is not None:
            network, file = found.miou
            print(f"  mIoU {network:.2f} % -> {file:.2f} %: {network - file:.2f} points lost")
    if not written.differences:
        print("  not checked")
    print(f"zoo-seg predict IMAGE --weights {written.path}")
