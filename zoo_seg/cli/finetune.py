"""`zoo-seg finetune`"""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields
from pathlib import Path

from zoo_seg.model import SegmentationModel
from zoo_seg.training.finetune import finetune, is_main_process
from zoo_seg.training.run import LOG
from zoo_seg.training.settings import Settings


def run(arguments: argparse.Namespace) -> int:
    """Train, and say where the result is."""
    options = {each.name: getattr(arguments, each.name) for each in fields(Settings)}
    try:
        model = finetune(
            arguments.data,
            arguments.model,
            arguments.weights,
            out=arguments.out,
            layout=arguments.layout,
            val_fraction=arguments.val_fraction,
            mask_suffix=arguments.mask_suffix,
            backbone=arguments.backbone,
            backbone_pretrained=arguments.backbone_pretrained,
            channels=arguments.channels,
            log_with=arguments.log_with,
            resume=arguments.resume,
            device=arguments.device,
            workers=arguments.workers,
            **options,
        )
    except KeyboardInterrupt:
        if not (Path(arguments.out) / LOG).is_file():  # nothing was begun
            raise
        print(f"\nzoo-seg: interrupted; the same command with --resume goes on in {arguments.out}", file=sys.stderr)
        return 130
    if is_main_process():
        _print(model, arguments.out)
    return 0


def _print(model: SegmentationModel, out: str) -> None:
    (metric,) = model.metrics
    print(f"{out}: mIoU {metric.value:.2f} % on {metric.split}, {len(model.classes)} classes")
    print(f"zoo-seg predict IMAGE --weights {out}")
