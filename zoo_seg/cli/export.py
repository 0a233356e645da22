"""`zoo-seg export`"""

from __future__ import annotations

import argparse
from pathlib import Path

from zoo_seg.cli.network import load_network
from zoo_seg.cli.text import megabytes
from zoo_seg.export.write import Exported, choose, export


def run(arguments: argparse.Namespace) -> int:
    """Write the file, and say how far its answers are from the network's."""
    choose(Path(arguments.out), arguments.format, arguments.dtype, arguments.opset)  # before anything is fetched
    written = export(
        load_network(arguments),
        arguments.out,
        arguments.format,
        preprocess=arguments.preprocess,
        argmax=arguments.argmax,
        dtype=arguments.dtype,
        opset=arguments.opset,
        check=arguments.check,
    )
    _print(written)
    return 0


def _print(written: Exported) -> None:
    facts = written.facts
    print(
        f"{written.path}: {written.format}, {facts.dtype}, {megabytes(written.size)}, {facts.input} -> {facts.output}"
    )
    for each in written.differences:
        print(f"  {each}; allowed {written.tolerance:g}")
    if not written.differences:
        print("  not checked")
    print(f"zoo-seg predict IMAGE --weights {written.path}")
